"""SIGTERM and SIGINT stop at a safe point with their exit codes, and the same command then gives the same bytes."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdtool import files
from kdtool.cli.main import run

Typed = Callable[..., Any]
Started = Callable[..., subprocess.Popen[str]]

DISTILL = "distill --method kda --layer before_fc --epochs 15 --batch 8 --precision float32 --run long"
EXTRACT = "extract --views 12 --batch 16 --block 16 --for kda --set landmarks=kmeans --cache "


def digest(folder: Path) -> object:
    return files.read_json(folder / "runs/long/result.json", "")["weights_sha256"]


def cache_files(cache: Path) -> dict[str, bytes]:
    """Every file but the lock and the record of who wrote."""
    found = {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name not in ("lock", "provenance.jsonl")}


@pytest.fixture(scope="module")
def undisturbed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the long run and the long extract were left alone."""
    folder = Path(shutil.copytree(built, tmp_path_factory.mktemp("undisturbed") / "work"))
    for line in (DISTILL, f"{EXTRACT}{folder / 'long'}"):
        assert run([*line.split(), "--quiet", "--folder", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_distill(number: int, code: int, work: Path, undisturbed: Path, started: Started, typed: Typed) -> None:
    process = started(work, DISTILL)
    assert process.stderr
    for line in process.stderr:
        if "epoch 3/15" in line:
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert err.splitlines()[-1].startswith("kdtool: stopped in epoch")
    assert "run the same command again" in err
    assert not (work / "runs/long/result.json").exists()
    resumed = typed(f"{DISTILL} --folder", work)
    assert resumed.code == 0
    assert "resumed at stage" in resumed.err
    assert digest(work) == digest(undisturbed)


def test_an_interrupt_outside_of_the_stages(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdtool.workflows.networks.tap_shapes", interrupted)
    found = typed("models")
    assert (found.code, found.out, found.err) == (130, "", "kdtool: interrupted\n")


def test_extract(work: Path, undisturbed: Path, started: Started, typed: Typed) -> None:
    process = started(work, f"{EXTRACT}long")
    begun = work / "long/train/logits/values/c/1"
    while not begun.exists() and process.poll() is None:
        time.sleep(0.002)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert out == ""
    assert err.splitlines()[-1].startswith("kdtool: stopped after block")
    assert not (work / "long/train/logits/values/c/11").exists()
    unfinished = typed("cache info --folder", work, work / "long")
    assert "an extract is unfinished" in unfinished.out
    assert typed(f"{EXTRACT}{work / 'long'} --quiet --folder", work).code == 0
    assert cache_files(work / "long") == cache_files(undisturbed / "long")
