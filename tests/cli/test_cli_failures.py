"""Exit codes 1, 3, 4, 5 and 6: damage, other things than were asked for, resources, non-finite losses, bugs."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kdtool import files
from kdtool.cache import open_cache
from kdtool.cli.main import run
from kdtool.engine import blocks

Typed = Callable[..., Any]

TEACH = "teach --data cifar10 --network resnet8 --student resnet8 --epochs 2 --batch 16 --precision float32 --quiet"
EXTRACT = "extract --no-srm --views 3 --batch 16 --block 16 --dtype float32 --quiet"
DISTILL = "distill --method kda --layer before_fc --epochs 3 --batch 16 --precision float32 --quiet"


def flip(path: Path, place: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def chunks(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*") if p.is_file() and "/c/" in str(p)}


# Something is lacking: exit 3, and the command that the message names mends it.

LACKING = {
    "--views 5": "holds 3 complete views of before_fc, and 5 are needed",
    "--layer before_fc --layer stage3": "holds no stage3.pooled",
    "--layer before_fc --set landmarks=kmeans": "holds no kmeans2.before_fc",
    "--layer stage2 --set landmarks=kmeans --set centres=3": "holds no stage2.pooled and no kmeans3.stage2.pooled",
    "--layer stage3 --with kd --views 2": "holds no stage3.pooled",
}


@pytest.mark.parametrize("options", LACKING)
def test_what_a_cache_lacks_is_added_by_the_command_that_is_named(
    options: str, work: Path, typed: Typed, refused: Typed
) -> None:
    line = f"distill --method kda --epochs 2 --batch 16 --quiet {options} --folder {work}"
    held = open_cache(work / "cache.zarr").views("logits")
    told = refused(3, LACKING[options], line)
    assert typed(" ".join(told.repair), "--quiet").code == 0
    assert typed(line).code == 0
    wanted = 5 if "--views 5" in options else held
    assert open_cache(work / "cache.zarr").views("logits") == wanted


def test_the_command_leads_to_another_cache_and_its_identity(
    work: Path, data: Path, tmp_path: Path, typed: Typed, refused: Typed
) -> None:
    """A cache elsewhere, of a narrowed split, with another seed of the views, and data that have moved."""
    (work / "kdtool.toml").write_text(
        "\n".join(line for line in (work / "kdtool.toml").read_text().splitlines() if "data_folder" not in line)
    )
    cache = tmp_path / "a cache" / "narrow"
    common = ["--data-folder", data, "--folder", work, "--cache", cache]
    words = "--no-srm --few-shot 2 --validation 10 --seed 9 --views 2 --batch 16 --precision bfloat16 --quiet"
    (tmp_path / "a cache").mkdir()
    assert typed(f"extract {words}", *common).code == 0
    line = "distill --method kda --layer stage3 --epochs 2 --batch 16 --quiet"
    told = refused(3, "holds no stage3.pooled", line, *common)
    assert run([*told.repair, "--quiet"]) == 0
    assert typed(line, *common).code == 0
    assert sorted(open_cache(cache).contents) == ["before_fc", "logits", "stage3.pooled"]


def test_gram_gap_of_a_layer_that_is_not_stored(work: Path, typed: Typed, refused: Typed) -> None:
    line = f"analyze gram-gap --layer stage3 --quiet --folder {work}"
    told = refused(3, "holds no stage3.pooled of clean train images", line)
    assert typed(f"{line} --fresh --json").code == 0
    assert typed(" ".join(told.repair), "--quiet").code == 0
    (gap,) = json.loads(typed(f"{line} --json").out)["results"]
    assert gap["layer"] == "stage3"
    assert open_cache(work / "cache.zarr").views("stage3.pooled") == 3


# Something is damaged: exit 3, with the file's name.


def test_a_damaged_chunk(work: Path, typed: Typed, refused: Typed) -> None:
    chunk = "train/before_fc/values/c/1/1/0"
    flip(work / "cache.zarr" / chunk)
    refused(3, (chunk, "damaged"), f"{DISTILL} --run second --folder", work)
    assert not (work / "runs/second/result.json").exists()
    told = typed("cache verify --folder", work)
    assert told.code == 3
    assert chunk in told.out
    assert chunk in told.err
    listed = typed("cache verify --json --folder", work)
    assert listed.code == 3
    assert [problem["file"] for problem in json.loads(listed.out)] == [chunk]


DAMAGED = {
    "cache.zarr/manifest.json": (DISTILL, "cache info", "analyze gram-gap", EXTRACT, "plan"),
    "cache.zarr/train/labels/c/0": (f"{DISTILL} --run second",),
    "cache.zarr/test/logits/values/c/0/0/0": (f"{DISTILL} --run second",),
    "teacher.safetensors": (EXTRACT, "plan", "analyze gram-gap --fresh --quiet"),
    "teacher.json": (EXTRACT, "plan", "analyze gram-gap --fresh --quiet"),
    "teacher.split.json": (EXTRACT, "plan"),
    "runs/first/result.json": ("analyze gram-gap", f"{DISTILL} --run first"),
    "runs/first/student.safetensors": ("analyze gram-gap --quiet",),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file(name: str, work: Path, refused: Typed) -> None:
    flip(work / name, 61)
    for line in DAMAGED[name]:
        refused(3, str(work / name), f"{line} --folder", work)


def test_a_missing_chunk_is_never_zeros(work: Path, refused: Typed) -> None:
    chunk = "train/before_fc/values/c/2/0/0"
    (work / "cache.zarr" / chunk).unlink()
    refused(3, (chunk, "missing"), f"{DISTILL} --run second --folder", work)


def test_a_damaged_state_of_a_run(work: Path, refused: Typed) -> None:
    (work / "runs/first/result.json").unlink()
    files.write_json(work / "runs/first/state.json", {"tensors": "state-1.safetensors", "sha256": "0", "plain": {}})
    (work / "runs/first/state-1.safetensors").write_bytes(b"torn")
    refused(3, "state-1.safetensors", f"{DISTILL} --run first --folder", work)


def test_damaged_data(work: Path, data: Path, tmp_path: Path, refused: Typed) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "torn"))
    file = folder / "cifar-10-batches-bin/data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    for line in (f"{DISTILL} --run second", EXTRACT, TEACH):
        refused(3, ("data_batch_3.bin", "damaged"), f"{line} --data-folder {folder} --folder", work)


# Something else than was asked for: exit 4.


def test_a_cache_of_another_teacher(work: Path, other: Path, refused: Typed) -> None:
    mine, its = (files.read_json(folder / "teacher.json", "")["sha256"][:12] for folder in (work, other))
    repair = f"`kdtool extract --folder {work} --cache {work / 'OTHER.zarr'}`"
    texts = ("cache of another teacher", mine, its, "--cache", repair)
    refused(4, texts, f"{DISTILL} --cache {other / 'cache.zarr'} --folder", work)
    refused(4, texts, f"analyze gram-gap --cache {other / 'cache.zarr'} --folder", work)
    for line in (EXTRACT, "plan"):
        texts = ("identity.teacher.sha256", mine, its)
        refused(4, texts, f"{line} --cache {other / 'cache.zarr'} --folder", work)


def test_a_cache_of_another_split(work: Path, refused: Typed) -> None:
    settings = work / "kdtool.toml"
    digest = files.read_json(work / "teacher.json", "")["split_digest"]
    settings.write_text(settings.read_text().replace(digest, "0" * 64))
    refused(4, ("teacher's split", digest[:12], "0" * 12), f"{DISTILL} --folder", work)
    for line in (EXTRACT, "plan"):
        refused(4, ("identity.split.rule.few_shot", "wanted is 2"), f"{line} --few-shot 2 --folder", work)


def test_another_data_set(work: Path, data: Path, tmp_path: Path, refused: Typed) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "changed"))
    flip(folder / "cifar-10-batches-bin/data_batch_3.bin")
    shutil.rmtree(work / "runs/first/features")
    for line in (f"{DISTILL} --run second", EXTRACT, "plan", "analyze gram-gap --quiet"):
        refused(4, ("cifar10 has other content", "--data-folder"), f"{line} --data-folder {folder} --folder", work)


IDENTITY = {
    "--seed 3": "identity.augmentation.seed",
    "--precision bfloat16": "identity.numeric.precision",
    "--batch 8": "layout.batch",
    "--block 32": "layout.block",
    "--fit-views 2": "layout.fit_views",
    "--dtype float16": "--dtype",
}


@pytest.mark.parametrize("option", IDENTITY)
def test_another_identity_of_the_cache(option: str, work: Path, refused: Typed) -> None:
    for command in ("extract --quiet", "plan"):
        refused(4, IDENTITY[option], f"{command} {option} --folder", work)


def test_another_configuration_in_a_run_folder(work: Path, data: Path, refused: Typed) -> None:
    before = (work / "runs/first/config.toml").read_bytes()
    texts = ("another configuration", "seed is 0 there, 4 asked for", "--run")
    refused(4, texts, f"{DISTILL} --run first --seed 4 --folder", work)
    refused(4, "recipe.epochs is 3 there, 4 asked for", f"{DISTILL} --run first --epochs 4 --folder", work)
    refused(4, ("seed is 0 there, 4 asked for", "--folder"), f"{TEACH} --data-folder {data} --seed 4 --folder", work)
    assert (work / "runs/first/config.toml").read_bytes() == before


def test_another_cache_in_a_run_folder(work: Path, typed: Typed, refused: Typed) -> None:
    other = work / "other.zarr"
    line = f"extract --quiet --views 3 --seed 9 --cache {other}"
    assert typed(f"{line} --folder", work).code == 0
    before = (work / "runs/first/student.safetensors").read_bytes()
    command = f"distill --config {work}/runs/first/config.toml --run first --folder"
    assert typed(command, work).code == 0
    refused(4, ("another cache", "--run"), f"{command} {work} --cache", other)
    assert (work / "runs/first/student.safetensors").read_bytes() == before


# Resources: exit 5.


@pytest.fixture
def held() -> Iterator[Callable[[Path], None]]:
    """Lets another process hold the lock on a file."""
    program = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    running = []

    def hold(path: Path) -> None:
        words = [sys.executable, "-c", program, str(path)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout
        process.stdout.readline()

    yield hold
    for process in running:
        process.kill()
        process.communicate()


def test_a_lock_that_another_process_holds(
    work: Path, data: Path, held: Callable[[Path], None], refused: Typed, typed: Typed
) -> None:
    for name in ("cache.zarr", "runs/first", "runs/teacher"):
        held(work / name / "lock")
    texts = ("another process is", "wait until it has ended")
    refused(5, (*texts, str(work / "cache.zarr")), f"{EXTRACT} --views 4 --folder", work)
    refused(5, (*texts, str(work / "runs/first")), f"{DISTILL} --run first --folder", work)
    refused(5, (*texts, str(work / "runs/teacher")), f"{TEACH} --data-folder {data} --folder", work)
    assert typed(f"{DISTILL} --run second --folder", work).code == 0  # reading needs no lock


def test_a_device_that_is_not_there(built: Path, data: Path, refused: Typed) -> None:
    lines = (DISTILL, EXTRACT, "plan", "analyze gram-gap", f"{TEACH} --data-folder {data}")
    for line in lines:
        refused(5, ("--device cuda:99", "--device cpu"), f"{line} --device cuda:99 --folder", built)


def test_a_full_disk_stops_and_the_same_command_goes_on(
    taught: Path, built: Path, data: Path, tmp_path: Path, refused: Typed, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    real, left = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    for line, writes in (
        (f"{TEACH} --data-folder {data}", (0, 2, 9)),
        (EXTRACT, (0, 2, 11, 25, 60)),
        (f"{DISTILL} --run first", (0, 2, 9)),
        ("analyze gram-gap --quiet", (0,)),
    ):
        for count in writes:
            left = count
            monkeypatch.setattr(os, "fsync", full)
            refused(5, ("no space left", "free some space"), f"{line} --folder", folder)
            monkeypatch.undo()
        assert typed(f"{line} --folder", folder).code == 0
    assert (folder / "teacher.safetensors").read_bytes() == (taught / "teacher.safetensors").read_bytes()
    assert chunks(folder / "cache.zarr") == chunks(built / "cache.zarr")
    digests = [files.read_json(f / "runs/first/result.json", "")["weights_sha256"] for f in (folder, built)]
    assert digests[0] == digests[1]


def test_too_little_room_is_told_before_anything_is_computed(
    work: Path, refused: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(work)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    refused(5, ("10 free", "--cache"), f"{EXTRACT} --views 9 --folder", work)
    assert open_cache(work / "cache.zarr").views("logits") == 3


def test_no_memory_is_a_resource(work: Path, refused: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*given: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("kdtool.engine.distill.make_job", without)
    refused(5, ("not enough memory", "--batch"), f"{DISTILL} --run second --folder", work)


@pytest.mark.parametrize("line", ["--batch 8 --block 8", "--batch 8 --block 8 --views 2"])
def test_an_extract_without_room_for_its_first_batch_can_begin_again_with_a_smaller_one(
    line: str, work: Path, typed: Typed, refused: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = work / "small.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("kdtool.engine.blocks.answered", raising(MemoryError("no room")))
        told = ("not enough memory", "smaller --batch", "name another --cache")
        refused(5, told, f"{EXTRACT} --cache {cache} --folder", work)
    assert [path.name for path in cache.iterdir()] == ["lock"]
    assert typed(f"extract --no-srm --quiet {line} --cache {cache} --folder {work}").code == 0
    assert open_cache(cache).layout.batch == 8


def test_an_extract_that_fails_later_keeps_what_it_has(
    work: Path, typed: Typed, refused: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, calls, answer = work / "begun.zarr", [], blocks.answered

    def twice(*given: object) -> object:
        calls.append(given)
        return answer(*given) if len(calls) < 6 else raising(MemoryError("no room"))()

    with monkeypatch.context() as patch:
        patch.setattr("kdtool.engine.blocks.answered", twice)
        refused(5, ("not enough memory",), f"{EXTRACT} --cache {cache} --folder", work)
    held = open_cache(cache)
    assert held.unfinished
    assert 0 < held.views("logits") < 3
    assert typed(f"{EXTRACT} --cache {cache} --folder {work}").code == 0


def raising(error: Exception) -> Callable[..., NoReturn]:
    def run(*_: object) -> NoReturn:
        raise error

    return run


# A loss that is not finite: exit 6.


def test_a_loss_that_becomes_infinite(work: Path, typed: Typed, refused: Typed) -> None:
    line = f"{DISTILL} --run hot --folder {work}"
    refused(6, ("loss", "epoch", "--learning-rate"), f"{line} --learning-rate 1e30")
    assert not (work / "runs/hot/result.json").exists()
    assert typed(line).code == 0  # what came to nothing does not stand in the way


# Bugs: exit 1, and --debug.


def test_a_bug_is_one_line_and_debug_shows_the_traceback(
    work: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("it\nbroke")

    monkeypatch.setattr("kdtool.engine.distill.make_job", broken)
    line = f"{DISTILL} --run second --folder {work}"
    found = typed(line)
    assert (found.code, found.out) == (1, "")
    assert found.err == "kdtool: a bug in kdtool: RuntimeError: it; broke; `kdtool --debug ...` shows where\n"
    for words in (f"--debug {line}", f"{line} --debug"):
        shown = typed(words)
        assert (shown.code, shown.out) == (1, "")
        assert shown.err.startswith("Traceback (most recent call last):")
        assert "in broken" in shown.err
        assert shown.err.endswith(found.err)


def test_debug_shows_where_a_mistake_was_found(typed: Typed) -> None:
    found = typed("distill --method kad --debug")
    assert found.code == 2
    assert "in chosen_methods" in found.err
    assert found.err.splitlines()[-1].startswith("kdtool: unknown method 'kad'")


def test_a_reader_that_leaves_is_no_error(started: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = started(tmp_path, "data list")
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == ""
    assert process.wait(timeout=900) == 0
