"""Data sets by name."""

import subprocess
import sys
from pathlib import Path

import pytest

from kdtool import data
from kdtool.errors import UsageError


def test_an_unknown_name_gets_the_nearest_right_one() -> None:
    with pytest.raises(UsageError, match=r"unknown data set 'cifar-100'; did you mean 'cifar100'\?"):
        data.load("cifar-100")


def test_a_file_that_cannot_be_read_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(folder: Path) -> data.Dataset:
        raise PermissionError(13, "Permission denied", str(folder / "train.bin"))

    monkeypatch.setitem(data.DATASETS, "cifar100", unreadable)
    with pytest.raises(UsageError, match=r"cannot read.*Permission denied: somewhere/train\.bin"):
        data.load("cifar100", Path("somewhere"))


def test_reading_data_sets_needs_no_torch() -> None:
    code = "import sys, kdtool.data, kdtool.data.splits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
