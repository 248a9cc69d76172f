"""`kdtool cache`: mending, dropping, replaying and moving a cache, as typed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kdtool.cache import open_cache

Typed = Callable[..., Any]
CHUNK = "train/logits/values/c/1/0/0"


def tree(root: Path) -> dict[str, bytes]:
    """Every file but the record of who wrote."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "provenance.jsonl"}


def test_repair(work: Path, typed: Typed, refused: Typed) -> None:
    cache = work / "cache.zarr"
    before, size = tree(cache), (cache / CHUNK).stat().st_size
    (cache / CHUNK).write_bytes(b"")
    (cache / "train/zarr.json").unlink()
    found = typed("cache verify --quiet --folder", work)
    assert found.code == 3
    assert found.out.splitlines() == [
        f"{CHUNK}: has 0 bytes, expected {size:,}",
        "train/zarr.json: is missing or does not describe what the manifest has there",
    ]
    assert found.repair == ["cache", "repair", "--folder", str(work)]
    mended = typed("cache repair --quiet --folder", work)
    assert mended.code == 0, mended.err
    assert mended.out.splitlines() == [
        "train/zarr.json: written again",
        f"{CHUNK}: computed again",
        f"{cache} is intact",
    ]
    assert tree(cache) == before
    assert typed("cache verify --quiet --folder", work).code == 0
    assert any("repaired" in record for record in open_cache(cache).provenance)
    assert json.loads(typed("cache repair --json --quiet --folder", work).out) == {
        "recomputed": [],
        "written_again": [],
    }
    assert typed("extract --no-srm --views 4 --dtype float32 --quiet --folder", work).code == 0


def test_a_cache_that_is_named_from_outside_is_mended_by_the_teacher_beside_it(
    work: Path, tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that an error names works where it was named."""
    cache = work / "cache.zarr"
    (cache / CHUNK).unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = typed(f"cache verify --quiet {cache}")
    assert (found.code, f"`kdtool cache repair --folder {work} {cache}` mends what it can" in found.err) == (3, True)
    assert typed(f"cache repair --quiet {cache}").code == 0
    assert typed(f"cache verify --replay 2 --quiet {cache}").code == 0


def test_repair_without_the_teacher_says_what_to_do(work: Path, refused: Typed) -> None:
    (work / "cache.zarr" / CHUNK).unlink()
    (work / "teacher.json").unlink()
    refused(2, ("1 damaged or missing chunks", CHUNK, "there is no teacher"), "cache repair --quiet --folder", work)
    refused(2, "no cache at", "cache repair --quiet --folder", work / "runs")


def test_replay(work: Path, typed: Typed, refused: Typed) -> None:
    found = typed("cache verify --replay 20 --quiet --folder", work)
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0] == f"{work / 'cache.zarr'} is intact"
    assert max(map(len, lines[1:])) <= 80
    rows = json.loads(typed("cache verify --replay 20 --json --quiet --folder", work).out)
    assert {row["key"] for row in rows} == {"logits", "before_fc"}
    assert all(row["right"] and row["identical"] == row["rows"] > 0 for row in rows)
    refused(2, "--replay is at least 1", "cache verify --replay 0 --quiet --json --folder", work)


def test_drop(work: Path, typed: Typed, refused: Typed) -> None:
    cache = work / "cache.zarr"
    before = tree(cache)
    refused(2, "nothing to drop is named", "cache drop --yes --folder", work)
    refused(2, ("no terminal", "--yes"), "cache drop --keep-views 1 --folder", work)
    refused(2, ("unknown key", "did you mean 'logits'"), "cache drop --key logit --yes --folder", work)
    assert tree(cache) == before
    found = typed("cache drop --keep-views 1 --yes --folder", work)
    assert found.code == 0
    assert "dropped" in found.out
    assert open_cache(cache).views("logits") == 1
    assert typed("cache verify --quiet --folder", work).code == 0
    refused(
        3, ("holds 1 complete views", "3 are needed", "kdtool extract"), "distill --method kd --views 3 --folder", work
    )
    again = "extract --no-srm --views 3 --batch 16 --block 16 --dtype float32 --quiet --folder"
    assert typed(again, work).code == 0
    assert tree(cache) == before


def test_export_and_import(work: Path, typed: Typed, refused: Typed, tmp_path: Path) -> None:
    cache, file = work / "cache.zarr", tmp_path / "teacher.h5"
    found = typed("cache export --quiet --folder", work, file)
    assert found.code == 0, found.err
    refused(2, "--overwrite", "cache export --quiet --folder", work, file)
    assert typed("cache export --overwrite --quiet --folder", work, file).code == 0
    with h5py.File(file) as opened:
        wanted = open_cache(cache).array("train", "logits", "values")
        for view in range(3):
            np.testing.assert_array_equal(opened["train/logits/values"][view], wanted.read(view))
    other = Path(shutil.copytree(work, tmp_path / "other", ignore=shutil.ignore_patterns("cache.zarr")))
    found = typed("cache import --quiet --folder", other, file)
    assert found.code == 0, found.err
    assert open_cache(cache).identity_digest[:12] in found.out
    assert tree(other / "cache.zarr") == tree(cache)
    assert typed("cache verify --quiet", file).code == 0
    refused(2, "is there already", "cache import --quiet --folder", other, file)
    content = bytearray(file.read_bytes())
    with h5py.File(file) as opened:
        place = opened["train/logits/values"].id.get_offset()
    content[place] ^= 1
    file.write_bytes(content)
    damaged = typed("cache verify --quiet", file)
    assert damaged.code == 3
    assert "train/logits/values" in damaged.out
    shutil.rmtree(other / "cache.zarr")
    refused(3, "train/logits/values", "cache import --quiet --folder", other, file)
    assert not (other / "cache.zarr").exists()


@pytest.mark.parametrize("line", ["extract --no-srm --views 1 --quiet --cache", "extract --for ab --quiet --cache"])
def test_space_is_looked_at_before_anything_is_written(
    line: str, work: Path, refused: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(work)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(5, ("needs", "its disk has 1,000 free"), line, work / "new", "--folder", work)
    assert [path.name for path in (work / "new").iterdir()] == ["lock"]
