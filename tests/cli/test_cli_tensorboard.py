"""`--tensorboard`: the event file says what the metrics say, once for each epoch, whatever stopped the run."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorboard")

DISTILL = "distill --method kda --layer before_fc --epochs 3 --batch 16 --precision float32 --tensorboard --quiet"


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value) of all event files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check(run: Path) -> None:
    found, told = events(run), rows(run)
    names = {"loss", "learning_rate", "accuracy/train", "accuracy/test", "terms/task", "terms/kda_before_fc"}
    assert set(found) == names
    for name in names - {"terms/kda_before_fc"}:
        key, _, part = name.partition("/")
        wanted = [
            row["terms"][part] if key == "terms" else row[f"{part}_accuracy"] if part else row[name] for row in told
        ]
        assert found[name] == [(number + 1, pytest.approx(value)) for number, value in enumerate(wanted)]
    assert [step for step, _ in found["terms/kda_before_fc"]] == [2, 3]


def test_events_are_the_metrics(work: Path, typed: Any) -> None:
    assert typed(f"{DISTILL} --run shown --folder", work).code == 0
    check(work / "runs/shown")


def test_a_run_that_goes_on_tells_each_epoch_once(work: Path, typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([False] * 7 + [True])
    with monkeypatch.context() as patch:
        patch.setattr("kdtool.progress.StopRequest.requested", lambda self: next(asked))
        assert typed(f"{DISTILL} --run shown --folder", work).code == 143
    assert len(events(work / "runs/shown")["loss"]) == 2
    assert typed(f"{DISTILL} --run shown --folder", work).code == 0
    check(work / "runs/shown")


def test_without_the_package(work: Path, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "tensorboard" else find(name, *a))
    refused(2, 'pip install "kdtool[tensorboard]"', f"{DISTILL} --run shown --folder", work)
    assert not (work / "runs/shown/config.toml").exists()
