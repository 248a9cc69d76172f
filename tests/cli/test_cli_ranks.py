"""teach and distill under torchrun: one run by several processes, refused, stopped and resumed as by one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trained_together import ranks_ended, ranks_started

Typed = Callable[..., Any]
Launched = Callable[..., subprocess.Popen[str]]

DISTILL = "distill --method kda --layer before_fc --epochs 3 --batch 16 --precision float32"
LONG = "distill --method kda --layer before_fc --epochs 15 --batch 9 --precision float32 --run long"


@pytest.fixture
def launched() -> Iterator[Launched]:
    """Starts a command line in two processes under torchrun, with the folder as the current one."""
    running: list[subprocess.Popen[str]] = []

    def call(folder: Path, line: str) -> subprocess.Popen[str]:
        # without the two dashes torchrun would take --run for a short form of an option of its own
        words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "kdtool", *line.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", *words]
        running.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield call
    for process in running:
        process.terminate()  # and torchrun ends its processes
        process.communicate()


def said(err: str) -> list[str]:
    """What kdtool says itself when it fails."""
    return [line for line in err.splitlines() if line.startswith("kdtool: ")]


def result(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / name / "result.json").read_text())
    return found


def test_a_run_that_is_stopped_goes_on_with_any_number_of_processes(
    work: Path, tmp_path: Path, launched: Launched, typed: Typed
) -> None:
    process = launched(work, LONG)
    assert process.stderr
    for line in process.stderr:
        if "epoch 3/15" in line:
            process.send_signal(signal.SIGTERM)  # torchrun hands it on
            break
    out, err = process.communicate(timeout=900)
    assert process.returncode != 0
    assert out == ""
    assert len(said(err)) == 1, err
    assert said(err)[0].startswith("kdtool: stopped in epoch")
    assert not (work / "runs/long/result.json").exists()
    assert (work / "runs/long/state.json").exists()
    alone = Path(shutil.copytree(work, tmp_path / "alone"))
    process = launched(work, f"{LONG} --json")
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert err.count("resumed at stage") == 1
    assert json.loads(out)["weights_sha256"] == result(work, "long")["weights_sha256"]
    assert typed(f"{LONG} --folder", alone).code == 0
    for folder, count in ((work, 2), (alone, 1)):
        rows = (folder / "runs/long/metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["epoch"] for row in rows] == list(range(15))
        assert json.loads((folder / "runs/long/environment.json").read_text())["ranks"] == count
    assert (alone / "runs/long/config.toml").read_bytes() == (work / "runs/long/config.toml").read_bytes()


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("distill --method kad", 2, "unknown method 'kad'"),
        (f"{LONG} --batch 3", 2, "the batch is 3 samples, and each of 2 processes needs 2"),
        ("distill --method kda --layer before_fc --run first --epochs 3 --batch 8", 4, "another configuration"),
        (f"{DISTILL} --run first", 0, "nothing to do"),
    ],
)
def test_all_processes_end_alike_and_one_says_why(line: str, code: int, text: str, work: Path) -> None:
    first, second = ranks_ended(2, "-m", "kdtool", *line.split(), "--folder", work)
    assert (first[0], second[0]) == (code, code), first[2] + second[2]
    assert second[1:] == ("", "")
    assert first[2].count("\n") == 1, first[2]
    assert text in first[2]


def test_a_process_that_dies_ends_the_others_with_a_line(work: Path) -> None:
    with ranks_started(2, "-m", "kdtool", *LONG.split(), "--folder", work) as (first, second):
        assert first.stderr
        for line in first.stderr:
            if "epoch 2/15" in line:
                second.kill()
                break
        _, err = first.communicate(timeout=900)
    assert first.returncode == 5
    assert said(err) == ["kdtool: another process of this torchrun has ended; its own message says why"]
    assert "Traceback" not in err
