"""SIGTERM and SIGINT stop at a safe point with their exit codes, and the same command then gives the same bytes."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdtool import files
from kdtool.cli.main import run
from kdtool.progress import Terminated, stoppable

Typed = Callable[..., Any]
Started = Callable[..., subprocess.Popen[str]]

DISTILL = "distill --method kda --layer before_fc --epochs 15 --batch 8 --precision float32 --run long"
ANEW = "run the same command again: it starts anew"
GOES_ON = "run the same command again: it goes on from what was saved"
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
    out, err = process.communicate(timeout=900)
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
    assert (found.code, found.out, found.err) == (130, "", f"kdtool: interrupted; {ANEW}\n")


STATELESS = {  # line -> what is under way when the signal comes
    "analyze gram-gap runs/first --quiet": "kdtool.analysis.analyses.of_layers",
    "analyze similarity runs/first --quiet": "kdtool.analysis.analyses.predictions",
    "cache verify --quiet": "kdtool.cache.tree.walk",
    "cache verify --replay 3 --quiet": "kdtool.engine.replay.recorded_job",
    "cache export whole.h5 --quiet": "kdtool.cache.convert.check_file",
    "cache import exported.h5 --cache imported --quiet": "kdtool.cache.convert.tree.metadata",
    "report --quiet": "kdtool.workflows.report.content",
    "plan --quiet": "kdtool.workflows.plan.costs",
    "data check digits --quiet": "kdtool.data.load",
    "models resnet8": "kdtool.workflows.networks.tap_shapes",
}
WITH_STATE = {
    "teach --data digits --quiet --folder new": "kdtool.data.load",
    "extract --views 5 --quiet": "kdtool.engine.prepare.load_data",
    "distill --method kda --quiet": "kdtool.engine.distill.load_data",
    "cache repair --quiet": "kdtool.cache.repair._sound",
}


@pytest.mark.parametrize(
    ("error", "how", "code"), [(KeyboardInterrupt, "interrupted", 130), (Terminated, "terminated", 143)]
)
@pytest.mark.parametrize("line", [*STATELESS, *WITH_STATE])
def test_every_command_ends_with_one_line_and_nothing_half_written(
    line: str,
    error: type[BaseException],
    how: str,
    code: int,
    work: Path,
    typed: Typed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def comes(*given: object, **named: object) -> None:
        raise error

    monkeypatch.chdir(work)
    if "exported" in line:
        assert typed("cache export exported.h5 --quiet").code == 0
    before = {path for path in work.rglob("*") if path.name != "lock"}
    with monkeypatch.context() as patch:
        patch.setattr({**STATELESS, **WITH_STATE}[line], comes)
        found = typed(line)
    following = ANEW if line in STATELESS else GOES_ON
    assert (found.code, found.err) == (code, f"kdtool: {how}; {following}\n")
    assert found.out in ("", "cache.zarr is intact\n")
    assert {path for path in work.rglob("*") if path.name != "lock"} == before


IMPORTING = """
import signal, sys
from kdtool.cli import main

class Signal:
    def find_spec(self, name, *rest):
        if name == "{module}":
            signal.raise_signal({number})

sys.meta_path.insert(0, Signal())
sys.argv = ["kdtool", *"{line}".split()]
main.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("module", "line"), [("kdtool.cli.analyze", "models"), ("torch.nn", "models"), ("zarr", "cache verify")]
)
def test_while_something_is_imported(module: str, line: str, number: int, code: int, work: Path) -> None:
    script = IMPORTING.format(module=module, number=int(number), line=line)
    done = subprocess.run([sys.executable, "-c", script], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"kdtool: {'interrupted' if code == 130 else 'terminated'}; {ANEW}"


def test_a_signal_acts_at_once_where_nothing_would_be_lost() -> None:
    with stoppable() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not stop.requested()
    with stoppable() as stop, stop.deferring():
        signal.raise_signal(signal.SIGINT)
        assert stop.requested()
        with pytest.raises(KeyboardInterrupt):  # the second one
            signal.raise_signal(signal.SIGINT)


def test_extract(work: Path, undisturbed: Path, started: Started, typed: Typed) -> None:
    process = started(work, f"{EXTRACT}long")
    begun = work / "long/train/logits/values/c/1"
    while not begun.exists() and process.poll() is None:
        time.sleep(0.002)
    process.terminate()
    out, err = process.communicate(timeout=900)
    assert process.returncode == 143
    assert out == ""
    assert err.splitlines()[-1].startswith("kdtool: stopped after block")
    assert not (work / "long/train/logits/values/c/11").exists()
    unfinished = typed("cache info --folder", work, work / "long")
    assert "an extract is unfinished" in unfinished.out
    assert typed(f"{EXTRACT}{work / 'long'} --quiet --folder", work).code == 0
    assert cache_files(work / "long") == cache_files(undisturbed / "long")
