"""A training state is whole or that of before, wherever its writing ends."""

import shutil
from pathlib import Path

import pytest
import torch
from disk import Disk, Killed

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
