"""The benchmark: its arithmetic, its parts at tiny sizes, the command. No figure is compared with a time."""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kdtool.cli import bench as command
from kdtool.data import DATASETS, load
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.errors import UsageError
from kdtool.methods import method
from kdtool.workflows.bench import (
    PARTS,
    chosen,
    extract,
    jobs,
    kernels,
    layout,
    live,
    made_up,
    measure,
    memory,
    reading,
    start,
    steps,
)
from kdtool.workflows.bench.measured import Figure, Setting, alternating, medians, ratio

CPU = torch.device("cpu")
Typed = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that take a second or two."""
    monkeypatch.setattr(kernels, "SHORT", (60, 4, 2))
    for name in ("IMAGES", "ROWS"):
        monkeypatch.setattr(reading, name, (300, 400))
    for name, pair in {"ROUNDS": (1, 2), "PICTURES": (8, 12)}.items():
        monkeypatch.setattr(reading, name, pair)
    for name, number in {"BATCH": 8, "GATHERED": 4, "SLICE": 100}.items():
        monkeypatch.setattr(reading, name, number)
    monkeypatch.setattr(reading, "cores", lambda: 0)  # no worker processes
    monkeypatch.setattr(start, "ROUNDS", (1, 1))
    monkeypatch.setattr(start, "COMMANDS", ("data list", "cache info"))
    monkeypatch.setattr(memory, "IMAGES", (256, 256))
    for module in (jobs, steps, live):
        monkeypatch.setattr(module, "CLASSES", 4)
    for name, number in {"IMAGES": 64, "SAMPLES": 64, "STEPS": 4, "BATCH": 16}.items():
        monkeypatch.setattr(jobs, name, number)
    monkeypatch.setattr(live, "BATCH", 16)
    monkeypatch.setattr(steps, "TEACHER", "resnet8")
    monkeypatch.setattr(steps, "SHORT", ("kda", "fitnet"))
    monkeypatch.setattr(layout, "SHORT", ("resnet8",))
    monkeypatch.setattr(layout, "TEACHER", "resnet8")
    monkeypatch.setattr(live, "SHORT", (("resnet14", "resnet8"),))
    monkeypatch.setattr(extract, "SHORT", {"resnet8": ["vectors", "maps"]})
    monkeypatch.setattr(extract, "IMAGES", (1024, 1024))
    monkeypatch.setattr(steps, "ROUNDS", {True: (2, 2), False: (1, 1)})
    for module in (live, layout, extract):
        monkeypatch.setattr(module, "ROUNDS", (2, 2))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a part that is not run by `measure` leaves in this process is gone after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    with made_up.registry_kept():
        yield


def checked(figures: list[Figure], part: str) -> dict[str, Figure]:
    """Figures by what they measure, each with a finite value and plain details."""
    assert all(figure.part == part for figure in figures)
    assert all(math.isfinite(figure.value) for figure in figures)
    assert all(json.loads(json.dumps(figure.plain()))["value"] == figure.value for figure in figures)
    found = {figure.what: figure for figure in figures}
    assert len(found) == len(figures)
    assert max(map(len, found)) <= 42  # so that a line of the table fits 80 columns
    return found


@pytest.mark.parametrize(
    ("value", "goal", "at_least", "met"),
    [
        (1.0, None, False, None),
        (1.0, 1.0, False, True),
        (1.1, 1.0, False, False),
        (1.0, 1.0, True, True),
        (0.9, 1.0, True, False),
        (-3.0, 10.0, False, True),
    ],
)
def test_whether_a_goal_is_met(value: float, goal: float | None, at_least: bool, met: bool | None) -> None:
    figure = Figure("start", "something", value, "s", goal, at_least)
    assert figure.met is met
    assert figure.plain()["met"] is met


def test_a_ratio_is_that_of_neighbours() -> None:
    times = {"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}
    assert ratio(times, "a", "b") == 2.0  # of the medians it would be 3
    assert medians(times) == {"a": 3.0, "b": 1.0}


def test_what_is_compared_takes_turns() -> None:
    calls: list[str] = []
    work = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = alternating(work, 3, CPU, warm=2)
    assert [len(taken) for taken in times.values()] == [3, 3]
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b", "b", "a"]


def test_parts_by_name() -> None:
    assert chosen(()) == tuple(PARTS)
    assert chosen(("start", "kernels", "start")) == ("kernels", "start")
    with pytest.raises(UsageError, match="did you mean 'kernels'"):
        list(measure(["kernls"], CPU, "float32"))


def test_kernels(tiny: None) -> None:
    found = checked(list(measure(["kernels"], CPU, "float32")), "kernels")
    assert len(found) == 4
    speed = found["speed-up over entries, n 60, d 4"]
    assert speed.at_least
    assert speed.goal == pytest.approx(0.8 * 60 / 12)
    assert all(figure.value > 0 for figure in found.values())


@pytest.mark.parametrize("full", [False, True])
def test_reading(full: bool, tiny: None, tmp_path: Path) -> None:
    if full:
        pytest.importorskip("torchvision")
    found = checked(list(measure(["reading"], CPU, "float32", full, tmp_path)), "reading")
    assert len(found) == (11 if full else 7)
    assert all(figure.value > 0 for figure in found.values())
    assert list(tmp_path.iterdir()) == []
    assert made_up.NAME not in DATASETS


def test_steps(tiny: None, tmp_path: Path) -> None:
    found = checked(list(measure(["steps"], CPU, "float32", work=tmp_path)), "steps")
    assert list(found) == ["resnet8, kda: step / plain", "resnet8, fitnet: waiting / plain"]
    for figure in found.values():
        about = figure.details
        shares = 1 + about["reading_over_plain"] + about["arithmetic_over_plain"]
        assert shares == pytest.approx(about["step_over_plain"])
        assert about["reading_over_plain"] > 0
    assert {figure.goal for figure in found.values()} == {steps.STEP_GOAL, steps.READING_GOAL}


def test_live(tiny: None, tmp_path: Path) -> None:
    found = checked(list(measure(["live"], CPU, "float32", work=tmp_path)), "live")
    assert list(found) == ["resnet14 to resnet8: live / cached", "resnet14 to resnet8: over the ideal"]
    whole, share = found.values()
    assert share.value == pytest.approx(whole.value / whole.details["forward_and_plain_over_plain"])
    assert 1 < whole.details["multiply_adds_live_over_cached"] < 3
    assert set(whole.details["seconds"]) == {"plain", "cached", "live", "forward"}


def test_layout(tiny: None, tmp_path: Path) -> None:
    found = checked(list(measure(["layout"], CPU, "float32", work=tmp_path)), "layout")
    assert list(found) == ["resnet8, float32: step", "resnet8, bfloat16: step"]
    assert all(figure.value > 0 for figure in found.values())


def test_extract(tiny: None, tmp_path: Path) -> None:
    found = checked(list(measure(["extract"], CPU, "float32", work=tmp_path)), "extract")
    assert list(found) == ["resnet8, vectors: bare / extract", "resnet8, maps: bare / extract"]
    assert all(0 < figure.details["share_of_fsync_and_rename"] < 1 for figure in found.values())


def test_a_step_of_the_benchmark_is_one_of_the_training(tiny: None, registry: None, tmp_path: Path) -> None:
    """What is timed learns: the weights move, the source is asked once a step, and the next epoch follows."""
    made = jobs.filled(tmp_path / "work", "resnet8", "resnet8", (method("kd"),))
    taking = jobs.Steps(jobs.make_job(made, "resnet8", (method("kd"),), CPU, "float32"), count=3)
    before = [value.clone() for value in taking.job.student.parameters()]
    taking()
    taking()
    assert taking.source is not None
    assert taking.source.batches == 6
    assert taking.length == 2
    assert not any(torch.equal(a, b) for a, b in zip(before, taking.job.student.parameters(), strict=True))


def test_start(tiny: None, registry: None, tmp_path: Path) -> None:
    found = checked(list(start.figures(Setting(CPU, "float32", tmp_path))), "start")
    assert list(found) == ["kdtool --help", "python -c pass", "kdtool data list", "kdtool cache info"]
    assert all(figure.value > 0 for figure in found.values())
    assert found["kdtool data list"].details == {"exit code": 0, "imports": ["numpy"]}
    assert found["kdtool cache info"].details["exit code"] == 0
    assert "numpy" in found["kdtool cache info"].details["imports"]


def test_memory(tiny: None, registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages run in this process, whose memory says nothing; one process of its own is in the test below."""

    def here(stage: str, images: int, views: int, folder: Path, device: torch.device) -> dict[str, int]:
        return memory.run(stage, images, views, folder, str(device))

    monkeypatch.setattr(memory, "peak", here)
    found = checked(list(memory.figures(Setting(CPU, "float32", tmp_path))), "memory")
    stages = ("teach", "extract", "distill", "analyze")
    assert list(found) == [f"{stage}, 4 times the {more}" for stage in stages for more in ("images", "views")]
    for name in ("base", "images", "views"):
        assert len(list((tmp_path / name).glob("*/runs/*/result.json"))) == 2
        assert list((tmp_path / name).glob("work/runs/*/analysis/gram-gap.json"))


def test_memory_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = memory.peak("teach", 256, 1, tmp_path, CPU)
    assert found["resident"] >= found["anonymous"] > 0


def test_growth_is_what_is_beyond_the_declared() -> None:
    peaks = {
        "base": {"anonymous": 100_000_000, "device": 5_000_000},
        "images": {"anonymous": 131_000_000, "device": 26_000_000},
    }
    host, device = memory.grown("teach", "images", peaks, 30_000_000, 10_000)
    assert (host.value, host.met) == (1.0, True)
    assert (device.value, device.what) == (-9.0, "teach on the device")
    plain = {"base": {"anonymous": 100_000_000}, "images": {"anonymous": 150_000_000}}
    (leak,) = memory.grown("teach", "images", plain, 30_000_000, 10_000)
    assert leak.met is False


def test_a_made_up_workspace_is_ready_for_an_extract(tmp_path: Path) -> None:
    with made_up.registry_kept():
        data = made_up.dataset(20, 5, 10)
        made = made_up.workspace(tmp_path / "new", data, "resnet8", "resnet14", 3)
        assert load(made_up.NAME) is data
        job = prepare(made, ExtractConfig(without=("srm",)))
        assert (job.views, job.layout.samples["train"], job.layout.classes) == (3, 20, 5)
        assert made.settings["student"] == "resnet14"
    assert made_up.NAME not in DATASETS
    assert made_up.dataset(20, 5, 10).digest == data.digest
    assert made_up.dataset(21, 5, 10).digest != data.digest


def test_the_command_prints_a_table(tiny: None, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    code, out, err = typed("bench kernels --device cpu --precision float32")
    assert code == 0
    assert err == f"measuring {PARTS['kernels']}\n"
    lines = out.splitlines()
    assert re.search(r"\d+ cores?, \d+ threads?, float32, torch ", lines[0])
    assert lines[2] == f"kernels: {PARTS['kernels']}"
    assert lines[3].split() == ["what", "value", "goal", "met"]
    assert len(lines) == 9
    assert re.search(r"at least 4\.00 +(yes|no)", lines[5])
    assert max(map(len, lines[1:])) <= 80


def test_a_busy_machine_is_told_of(tiny: None, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (64.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    _, _, err = typed("bench kernels --device cpu --precision float32")
    assert err.splitlines()[0] == "this machine is busy (load 64.0 on 64 cores): figures will tell of it"


def test_the_command_as_json(tiny: None, typed: Typed) -> None:
    code, out, err = typed("bench kernels --device cpu --json --quiet")
    found = json.loads(out)
    assert (code, err, found["full"]) == (0, "", False)
    assert found["machine"]["device_type"] == "cpu"
    assert [figure["part"] for figure in found["figures"]] == ["kernels"] * 4
    assert all({"value", "unit", "goal", "met", "details"} <= figure.keys() for figure in found["figures"])


def test_an_unknown_part(typed: Typed) -> None:
    code, out, err = typed("bench start kernls")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "did you mean 'kernels'?" in err


def test_an_interrupt(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(setting: Setting) -> Iterator[Figure]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(kernels, "figures", interrupted)
    code, _, err = typed("bench kernels --quiet")
    assert (code, err) == (130, "kdtool: interrupted; run the same command again: it starts anew\n")


def test_the_help_names_all_parts() -> None:
    (argument,) = (item for item in command.Parts.__metadata__ if getattr(item, "help", None))
    assert argument.help.startswith(f"{', '.join(PARTS)}.")


@pytest.mark.parametrize(
    ("value", "shown"), [(1.0, "1.00"), (0.1234, "0.123"), (99.94, "99.9"), (152_345.6, "152,346"), (-3.21, "-3.21")]
)
def test_numbers_of_the_table(value: float, shown: str) -> None:
    assert command.number(value) == shown
