"""Progress: a bar that fits the terminal and leaves nothing behind, or lines; rates that outlive a pause; silence."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kdtool.cli import console
from kdtool.cli.console import Shown

Typed = Callable[..., Any]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    return clock


def lines(shown: Shown) -> io.StringIO:
    shown.console = Console(file=io.StringIO(), width=80)
    assert isinstance(shown.console.file, io.StringIO)
    return shown.console.file


def test_lines_tell_count_rate_and_time_left(clock: Clock) -> None:
    shown = Shown()
    out = lines(shown)
    with shown:
        shown.begin("teach", 1200, 200)
        for _ in range(6):
            clock.now += 5
            shown.advance(10)
    assert out.getvalue().splitlines() == [
        "teach 220/1,200, 2.00/s, 0:08:10 left",
        "teach 240/1,200, 2.00/s, 0:08:00 left",
        "teach 260/1,200, 2.00/s, 0:07:50 left",
    ]


def test_bytes_are_told_in_their_units(clock: Clock) -> None:
    shown = Shown()
    out = lines(shown)
    shown.begin("verify", 3_000_000, unit="B")
    clock.now += 10
    shown.advance(1_500_000)
    assert out.getvalue() == "verify 1.5/3.0 MB, 150.0 kB/s, 0:00:10 left\n"


def test_a_task_that_is_taken_up_again_keeps_its_rate(clock: Clock) -> None:
    """As that of a training is, after each evaluation: the time in between counts for neither."""
    shown = Shown()
    out = lines(shown)
    shown.begin("teach", 100)
    clock.now += 9
    shown.advance(9)
    shown.begin("evaluate", 10)
    clock.now += 50
    shown.advance(10)
    shown.begin("teach", 100, 9)
    clock.now += 11
    shown.advance(11)
    assert out.getvalue().splitlines() == [
        "evaluate 10/10, 0.200/s, 0:00:00 left",
        "teach 20/100, 1.00/s, 0:01:20 left",
    ]


def test_quiet_says_nothing(clock: Clock) -> None:
    shown = Shown(quiet=True)
    out = lines(shown)
    with shown:
        shown.begin("teach", 10)
        clock.now += 60
        shown.advance(5)
        shown.note("something")
    assert out.getvalue() == ""


def test_what_works_on_after_a_signal_says_so(clock: Clock) -> None:
    shown = Shown()
    out = lines(shown)
    with shown, shown.stoppable() as stop, stop.deferring():
        shown.begin("evaluate", 100)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested()
        shown.advance(1)
        assert out.getvalue() == ""
        clock.now += 2
        shown.advance(1)
        shown.advance(1)
    assert out.getvalue() == "stopping at the next safe point; Ctrl-C again stops at once\n"


def on_terminal(columns: int, words: list[str], folder: Path, **variables: str) -> str:
    """What a command writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "kdtool", *words], cwd=folder, env=environment, stderr=slave, stdout=subprocess.PIPE
    )
    os.close(slave)
    found = b""
    while True:
        ready, _, _ = select.select([master], [], [], 60)
        try:
            piece = os.read(master, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        found += piece
    os.close(master)
    assert process.wait() == 0
    if process.stdout:
        process.stdout.close()
    return found.decode()


def left_on(text: str) -> str:
    """What stays on a terminal: lines that were erased and sequences of control are gone."""
    shown: list[str] = []
    for part in re.split(r"(\r|\n|\x1b\[2K|\x1b\[1A)", text):
        if part == "\n":
            shown.append("")
        elif part == "\x1b[2K" and shown:
            shown[-1] = ""
        elif part == "\x1b[1A" and len(shown) > 1:
            shown.pop()
        elif part != "\r":
            plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part)
            shown[-1:] = [(shown[-1] if shown else "") + plain]
    return "\n".join(shown).strip()


@pytest.mark.parametrize("columns", [80, 120])
def test_a_bar_fits_the_terminal_and_leaves_nothing(columns: int, work: Path) -> None:
    line = "distill --method kda --layer before_fc --epochs 3 --batch 8 --precision float32 --run bars"
    text = on_terminal(columns, line.split(), work)
    plain = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part) for part in re.split(r"[\r\n]", text)]
    bars = [part for part in plain if "\u2501" in part]
    assert any(part.startswith("distill") and "left" in part for part in bars)
    assert max(map(len, bars)) <= min(columns, console.WIDEST)
    kept = left_on(text)
    told = [row.split(":")[0] for row in kept.splitlines() if row.startswith("distill")]
    assert told == ["distill", *(f"distill epoch {number}/3" for number in (1, 2, 3))]
    assert "\u2501" not in kept


def test_a_dumb_terminal_gets_lines(work: Path) -> None:
    text = on_terminal(80, ["cache", "verify"], work, TERM="dumb")
    assert "\x1b" not in text
    assert "\u2501" not in text


LONG = {
    "verify": "cache verify",
    "export": "cache export x.h5",
    "features": "analyze gram-gap --layer stage1 --fresh",
    "gram-gap": "analyze gram-gap --layer stage1 --fresh",
    "kernel blocks": "analyze gram-gap --kernel rbf",
    "replay": "cache verify --replay 5",
    "look": "cache repair",
    "report": "report",
    "evaluate": "distill --method kda --layer before_fc --epochs 2 --batch 16 --run evaluated",
    "fit": "extract --for srm --views 1 --cache fits",
    "extract": "extract --for srm --views 1 --cache fits",
}


@pytest.mark.parametrize("task", LONG)
def test_every_long_stage_tells_how_far_it_is(
    task: str, work: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for every step where no time may pass between two; none with -q, and one document with --json."""
    monkeypatch.setattr(console, "PLAIN_SECONDS", -1.0)
    monkeypatch.chdir(work)
    found = typed(LONG[task])
    assert found.code == 0, found.err
    told = [line for line in found.err.splitlines() if line.startswith(f"{task} ")]
    assert told
    assert all(re.search(r"\d/[\d,.]+", line) for line in told)
    assert any(line.endswith(" left") and "/s, " in line for line in told)
    quiet = LONG[task].replace("x.h5", "y.h5").replace("evaluated", "again")
    if task not in ("export",):
        said = typed(f"{quiet} --json")
        assert json.loads(said.out) is not None
    assert typed(f"{quiet} --quiet").err == ""
