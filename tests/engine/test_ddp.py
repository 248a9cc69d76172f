"""teach and distill by several processes: the training of one, with other last bits."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trained_together
from made_up import PLAN
from many_ranks import Rank
from safetensors.numpy import load_file
from trained_together import cases, everything, ranks_ended

from kdtool.engine.device import choose_device
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.folder import Workspace
from kdtool.engine.ranks import Alone, check_own
from kdtool.engine.runs import read_toml
from kdtool.engine.together import check_shares, check_sync_bn, shares, synchronised
from kdtool.errors import ResourceError, UsageError
from kdtool.files import read_json
from kdtool.models import create
from kdtool.progress import Silent, StopRequest
from kdtool.targets import Stage

BOUND = 1e-9  # of the largest number of a tensor


def check_near(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        exact, given = value.astype(np.float64), other[name].astype(np.float64)
        scale = max(1e-3, np.abs(exact).max(initial=0))
        assert np.abs(exact - given).max(initial=0) < BOUND * scale, name


@pytest.fixture(scope="module")
def both(complete: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders in which one process and two have trained with every method, and a teacher."""
    place = tmp_path_factory.mktemp("both")
    alone, together = (Path(shutil.copytree(complete, place / name)) for name in ("alone", "together"))
    everything(alone)
    for code, _, err in ranks_ended(2, trained_together.__file__, together):
        assert code == 0, err
    return alone, together


@pytest.mark.parametrize("name", cases())
def test_two_ranks_train_as_one(both: tuple[Path, Path], name: str) -> None:
    """Losses and accuracies of every stage, weights, heads, memory banks and landmarks; the two have the same bits."""
    alone, first, second = (
        dict(np.load(folder / f"{name}.{rank}.npz")) for folder, rank in zip((*both, both[1]), (0, 0, 1), strict=True)
    )
    check_near(alone, first)
    assert all(np.array_equal(value, second[key]) for key, value in first.items())


def test_a_teacher(both: tuple[Path, Path]) -> None:
    alone, together = (folder / "taught" for folder in both)
    check_near(load_file(alone / "teacher.safetensors"), load_file(together / "teacher.safetensors"))
    assert read_toml(alone / "runs/teacher/config.toml") == read_toml(together / "runs/teacher/config.toml")
    counts = [read_json(folder / "runs/teacher/environment.json", "")["ranks"] for folder in (alone, together)]
    assert counts == [1, 2]


@pytest.mark.parametrize(("count", "size"), [(17, 2), (16, 4), (3, 2), (7, 3), (2, 5)])
def test_shares(count: int, size: int) -> None:
    found = [np.arange(count)[part] for part in shares(count, size)]
    for part, wanted in zip(found, np.array_split(np.arange(count), size), strict=True):
        assert np.array_equal(part, wanted)


def test_shares_that_are_too_small() -> None:
    several = Rank(0, 4, [], None)
    stage, plan = Stage(), replace(PLAN, batch=16)
    check_shares((stage,), plan, 40, several)
    check_shares((stage,), plan, 36, Alone())
    with pytest.raises(UsageError, match=r"what is left of 36 for the last batch is 4 samples, and each of 4 "):
        check_shares((stage,), plan, 36, several)
    check_shares((stage,), replace(plan, drop_last=True), 36, several)
    with pytest.raises(UsageError, match="the batch is 6 samples"):
        check_shares((stage, Stage(recipe={"batch": 6})), plan, 48, several)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu:0").type == "cpu"
    assert not current
    assert choose_device("cuda:1") == torch.device("cuda:1") == current.pop()  # where events and draws then are
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda"):
        assert choose_device(name) == torch.device("cuda:1") == current.pop()
    assert choose_device("cpu") == torch.device("cpu")
    check_own(torch.device("cuda:1"))
    with pytest.raises(ResourceError, match="process 1 of this machine would train on cuda:0"):
        check_own(choose_device("cuda:0"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ResourceError, match="--nproc-per-node 2, with --device cuda"):
        check_own(choose_device("cuda"))


def test_batchnorm_over_all_ranks(complete: Path) -> None:
    check_sync_bn(None, torch.device("cpu"))
    with pytest.raises(UsageError, match="--sync-bn needs GPUs"):
        distill(Workspace.open(complete), DistillConfig("resnet8", (), PLAN, sync_bn=True), Silent(), StopRequest())
    model = create("resnet8", 4)
    names = list(model.state_dict())
    converted = synchronised(model)
    assert list(converted.state_dict()) == names
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())
