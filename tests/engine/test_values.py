"""A value that the stored type cannot hold stops extract, with the key and the option that helps."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import run_extract

from kdtool.cache import open_cache
from kdtool.engine import extraction
from kdtool.engine.sources import Teller
from kdtool.errors import UsageError

Answers = dict[str, dict[str, torch.Tensor]]


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts a value into the teacher's logits of every batch."""
    answer = Teller.answer

    def change(value: float) -> None:
        def other(teller: Teller, images: torch.Tensor) -> Answers:
            found = answer(teller, images)
            if "logits" in found:
                found["logits"]["values"][-1, 0] = value
            return found

        monkeypatch.setattr(Teller, "answer", other)

    return change


def copy(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "work"))


def test_what_float16_cannot_hold_is_refused_and_float32_holds_it(
    taught: Path, tmp_path: Path, changed: Callable[[float], None]
) -> None:
    folder = copy(taught, tmp_path)
    changed(-70_000.0)
    with pytest.raises(UsageError, match=r"logits/values reaches 7e\+04, which float16 cannot hold; .*--dtype logits="):
        run_extract(folder, views=1)
    shutil.rmtree(folder / "cache.zarr")
    run_extract(folder, views=1, dtypes={"logits": "float32"})
    assert open_cache(folder / "cache.zarr").array("train", "logits", "values").read(0).min() == -70_000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused(
    value: float, taught: Path, tmp_path: Path, changed: Callable[[float], None]
) -> None:
    folder = copy(taught, tmp_path)
    changed(value)
    with pytest.raises(UsageError, match="gives infinite or NaN values for logits/values"):
        run_extract(folder, views=1, dtypes={"": "float32"})


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.5, -65504.0, 6e-8, np.inf, -np.inf, np.nan]), min_size=1, max_size=9),
    st.sampled_from([torch.float16, torch.float32]),
)
def test_the_smallest_and_the_largest_tell_of_all(values: list[float], dtype: torch.dtype) -> None:
    rows = torch.tensor(values, dtype=dtype)
    assert bool(extraction._finite(rows)) == bool(np.isfinite(values).all())


def test_the_dtype_that_a_fit_needs_of_what_it_reads_can_be_said(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(taught, tmp_path)
    answer = Teller.answer

    def large(teller: Teller, images: torch.Tensor) -> Answers:
        found = answer(teller, images)
        if "stage1.map" in found:
            found["stage1.map"]["values"][-1, 0, 0, 0] = 70_000.0
        return found

    monkeypatch.setattr(Teller, "answer", large)
    with pytest.raises(UsageError, match=r"float16 cannot hold; .*--dtype stage1\.map=float32"):
        run_extract(folder, views=1)
    run_extract(folder, views=1, dtypes={"stage1.map": "float32"})
    held = open_cache(folder / "cache.zarr")
    assert "stage1.map" not in held.contents  # it is read by SRM's dictionaries alone
    assert any(key.startswith("srm.stage1.") for key in held.fits)
