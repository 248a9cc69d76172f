"""A training state is whole or that of before, wherever its writing ends."""

import shutil
from pathlib import Path

import pytest
import torch
from disk import Disk, Killed
from torch import nn

from kdtool.engine import checkpoint


def state(number: int) -> tuple[checkpoint.Tensors, dict[str, int]]:
    return {"weights": torch.full((1000,), float(number))}, {"epoch": number}


def found(folder: Path) -> int:
    """The number of the state in a folder, which is whole."""
    held = checkpoint.load_state(folder)
    assert held is not None
    tensors, plain = held
    assert torch.equal(tensors["weights"], state(plain["epoch"])[0]["weights"])
    return int(plain["epoch"])


def test_a_state_whose_writing_ends_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "before").mkdir()
    checkpoint.save_state(tmp_path / "before", *state(1))
    seen, calls = [], 0
    for fail_at in range(1, 100):
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(fail_at))
        with monkeypatch.context() as patch:
            disk = Disk(patch, fail_at)
            try:
                checkpoint.save_state(folder, *state(2))
                break
            except Killed:
                calls = disk.calls
            finally:
                disk.close()
        seen.append(found(folder))
        checkpoint.save_state(folder, *state(3))
        assert found(folder) == 3
        assert len(list(folder.iterdir())) == 2, "what no state names goes"
    assert calls > 5
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}
    assert found(folder) == 2


def test_a_state_outlives_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        checkpoint.save_state(tmp_path / "run", *state(2))
        disk.close()
    disk.after_power_loss((tmp_path / "run").stat().st_ino, tmp_path / "left")
    assert found(tmp_path / "left") == 2


def test_tensors_of_two_names_are_written_and_read(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.chain = nn.Sequential(self.first, nn.BatchNorm1d(3))
            self.tied = nn.Linear(3, 3)
            self.tied.weight = self.first.weight

    one, other = Tied(), Tied()
    digest = checkpoint.save_weights(tmp_path / "w.safetensors", one)
    checkpoint.load_weights(tmp_path / "w.safetensors", other, digest)
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    checkpoint.save_state(tmp_path, checkpoint.prefixed("student", one.state_dict()), {})
    held = checkpoint.load_state(tmp_path)
    assert held is not None
    assert set(checkpoint.selected("student", held[0])) == set(one.state_dict())
