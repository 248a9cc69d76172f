"""Configurations made in Python: what their fields do not stand for is refused where it is written, by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdtool
from kdtool.errors import UsageError
from kdtool.methods import KD, KDA, RKD
from kdtool.typed import check_types, fits

PLAN = kdtool.Recipe(epochs=1)

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a name for a method": (
        lambda: kdtool.DistillConfig("resnet8", "kd", PLAN),
        r"DistillConfig: methods is of type tuple\[Method, ...\], and 'kd' is not",
    ),
    "names of methods": (lambda: kdtool.DistillConfig("resnet8", ("kd",), PLAN), "methods is of type"),
    "a layer for layers": (
        lambda: kdtool.DistillConfig("resnet8", (KDA(layers="before_fc"),), PLAN),
        r"KDA: layers is of type tuple\[str, ...\], and 'before_fc' is not",
    ),
    "a pair that no command line has": (
        lambda: kdtool.DistillConfig("resnet8", (RKD(), KDA()), PLAN),
        "--with kda: only kd can be added to another method",
    ),
    "a method twice": (lambda: kdtool.DistillConfig("resnet8", (KDA(), KD(), KD()), PLAN), "--with kd is named twice"),
    "a recipe's name": (lambda: kdtool.DistillConfig("resnet8", (), "kda"), "recipe is of type Recipe, and 'kda'"),
    "a path": (
        lambda: kdtool.TeachConfig("digits", "resnet8", PLAN, data_folder=Path("x")),
        r"TeachConfig: data_folder is of type str \| None",
    ),
    "numpy's integers": (
        lambda: kdtool.TeachConfig("digits", "resnet8", PLAN, seed=np.int64(1)),
        "seed is of type int",
    ),
    "two channels": (
        lambda: kdtool.TeachConfig("digits", "resnet8", PLAN, mean=(1, 2)),
        "mean is of type",
    ),
    "a precision": (lambda: kdtool.ExtractConfig(precision="auto"), "float32 or bfloat16, not 'auto'"),
    "a student": (lambda: kdtool.ExtractConfig((KD(),), students="resnet8"), "students is of type"),
    "half an epoch": (lambda: kdtool.Recipe(epochs=1.5), "Recipe: epochs is of type int, and 1.5"),
    "a folder for folders": (lambda: kdtool.Asked(Path("runs")), r"Asked: students is of type tuple\[Path, ...\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_field_of_another_type_is_refused_by_its_name(what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(UsageError, match=message):
        make()


def test_lists_numbers_and_nothing_pass_where_they_mean_the_same() -> None:
    asked = kdtool.DistillConfig("resnet8", [KDA(layers=["before_fc"], weight=1)], PLAN, head_learning_rate=1)
    assert asked.plain()["set"]["kda.layers"] == ["before_fc"]
    kdtool.Recipe(learning_rate=1, weight_decay=np.float64(0.1))


def test_annotations_that_only_type_checkers_read_are_left_to_them() -> None:
    @dataclass(frozen=True)
    class Mine(KD):
        how: "Unseen" = 1  # noqa: F821

    check_types(Mine())


def test_annotations_of_other_kinds_are_not_looked_at() -> None:
    @dataclass(frozen=True)
    class Mine(KD):
        extra: Any = None
        table: dict[str, float] = field(default_factory=dict)
        names: set[str] = field(default_factory=set)
        either: dict[str, Any] | None = None

    for extra in (None, 1, "x"):
        check_types(Mine(extra=extra, table={"a": 1.0}, names={"a"}, either={"a": extra}))
    with pytest.raises(UsageError, match=r"Mine: table is of type dict\[str, float\]"):
        check_types(Mine(table={"a": "x"}))  # type: ignore[dict-item]


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(PLAIN, st.sampled_from([bool, int, float, str]))
def test_a_plain_value_is_of_its_own_type_and_a_whole_number_a_float(value: Any, kind: type) -> None:
    own = type(value) is kind or (kind is float and type(value) is int)
    assert fits(value, kind) == own
    assert fits(value, kind | None) == (own or value is None)
    assert fits((value, value), tuple[kind, ...]) == own
    assert fits((value, value), tuple[kind, kind]) == own
    assert not fits((value,), tuple[kind, kind])
    assert not fits(value, tuple[kind, ...])


def test_a_report_takes_one_folder_as_it_takes_several(tmp_path: Path) -> None:
    for folders in (str(tmp_path), tmp_path, [str(tmp_path)]):
        with pytest.raises(UsageError, match=f"no finished run in {tmp_path};"):
            kdtool.read_runs(folders)
