"""A teacher of the epoch that is best on validation: whose weights it has, what is said of it, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import made_up
from safetensors.torch import load_file
from stopping import StopAfter

from kdtool import data, files
from kdtool.cli.main import run as command
from kdtool.engine import train as loop
from kdtool.engine.folder import Workspace
from kdtool.engine.job import Job
from kdtool.engine.keeping import kept
from kdtool.engine.optim import recipe
from kdtool.engine.state import Running
from kdtool.engine.teach import TeachConfig, teach
from kdtool.errors import Stopped, UsageError
from kdtool.progress import Silent, StopRequest
from kdtool.targets import Stage

PLAN = replace(recipe("kda"), epochs=6, batch=32, learning_rate=0.2, schedule="constant")
CONFIG = TeachConfig(
    "made_up", "resnet8", PLAN, student="resnet8", precision="float32", validation=16, keep_weights=1, selected=True
)


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATASETS, "made_up", made_up)


@pytest.mark.parametrize("stops", [(), (7, 11)], ids=["undisturbed", "stopped"])
def test_it_has_the_weights_of_that_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    select = loop._select

    def the_fourth_is_best(job: Job, stage: Stage, running: Running, validation: float) -> None:
        select(job, stage, running, 100.0 if running.epoch == 3 else validation / 2)

    monkeypatch.setattr(loop, "_select", the_fourth_is_best)
    workspace = Workspace(tmp_path)
    for steps in stops:
        with pytest.raises(Stopped):
            teach(workspace, CONFIG, Silent(), StopAfter(steps))
    result = teach(workspace, CONFIG, Silent(), StopRequest())
    rows = [json.loads(line) for line in (tmp_path / "runs/teacher/metrics.jsonl").read_text().splitlines()]
    best = 4
    (wanted,) = (one for one in kept(tmp_path / "runs/teacher") if one.epoch == best)
    found = load_file(tmp_path / "teacher.safetensors")
    for name, value in load_file(tmp_path / "runs/teacher" / wanted.file).items():
        assert torch.equal(found[name], value), name
    record = files.read_json(tmp_path / "teacher.json", "")
    assert record["test_accuracy"] == rows[best - 1]["test_accuracy"] == result["teacher"]["test_accuracy"]
    assert result["test_accuracy"]["selected"] == record["test_accuracy"]
    assert result["test_accuracy"]["last"] == rows[-1]["test_accuracy"]


def test_it_needs_images_that_are_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="and none are: --validation N"):
        teach(Workspace(tmp_path), replace(CONFIG, validation=None), Silent(), StopRequest())
    with pytest.raises(UsageError, match="--as-is trains nothing"):
        replace(CONFIG, initial="x.safetensors", as_is=True, keep_weights=None)
    line = f"teach --data made_up --network resnet8 --epochs 1 --selected --folder {tmp_path} --dry-run"
    assert command(line.split()) == 2
    assert "--validation N" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
