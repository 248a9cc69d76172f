"""Which maps of two networks are paired, what is refused, and maps as targets."""

import pytest
import torch
from torch import nn

from kdtool.errors import UsageError
from kdtool.methods.maps import (
    MapPair,
    Paired,
    every_stage,
    last_stage,
    map_pairs,
    pooled_to,
    same_size,
    second_stage,
    stage_taps,
    whole_map,
)

SMALL = {"stem": (4, 8, 8), "stage1": (4, 8, 8), "stage2": (6, 4, 4), "before_fc": (6,), "after_fc": (3,)}
LARGE = {"stem": (8, 16, 16), "stage1": (8, 16, 16), "stage2": (12, 8, 8), "before_fc": (12,), "after_fc": (3,)}
DEEP = {**LARGE, "stage3": (16, 4, 4)}


def test_the_default_pairs() -> None:
    assert stage_taps(DEEP) == ("stage1", "stage2", "stage3")
    assert map_pairs("at", (), SMALL, LARGE, every_stage) == (
        MapPair("stage1", "stage1", (4, 8, 8), (8, 16, 16)),
        MapPair("stage2", "stage2", (6, 4, 4), (12, 8, 8)),
    )
    assert [(p.student, p.teacher) for p in map_pairs("sp", (), SMALL, DEEP, last_stage)] == [("stage2", "stage3")]
    assert [(p.student, p.teacher) for p in map_pairs("fitnet", (), SMALL, DEEP, second_stage)] == [
        ("stage2", "stage2")
    ]


def test_named_pairs_and_kdas_names() -> None:
    found = map_pairs("at", ("conv2_x", "stage2:stage3", "stem"), SMALL, DEEP, every_stage)
    assert [(p.student, p.teacher, p.name) for p in found] == [
        ("stage1", "stage1", "stage1"),
        ("stage2", "stage3", "stage2_stage3"),
        ("stem", "stem", "stem"),
    ]
    assert found[1] == MapPair("stage2", "stage3", (6, 4, 4), (16, 4, 4))


def test_sizes() -> None:
    larger, smaller, mixed = (MapPair("a.b", "a.b", (1, 4, 4), shape) for shape in ((1, 8, 8), (1, 2, 2), (1, 8, 2)))
    assert larger.name == "a_b"
    assert [(pair.size, pair.teacher_size) for pair in (larger, smaller, mixed)] == [
        ((4, 4), (4, 4)),
        ((2, 2), None),
        ((4, 2), (4, 2)),
    ]
    assert MapPair("a", "a", (1, 4, 4), (9, 4, 4)).teacher_size is None


@pytest.mark.parametrize(
    ("layers", "default", "message"),
    [
        (("stage4",), every_stage, r"unknown layer of the student 'stage4'"),
        (("stage2:stage4",), every_stage, r"unknown layer of the teacher 'stage4'; did you mean"),
        (("before_fc",), every_stage, r"method at works on maps \(C, H, W\), and before_fc is a vector of 6 numbers"),
        (("stage1", "conv2_x"), every_stage, "named twice"),
        ((), every_stage, r"the student has 2 stages and the teacher 3.*--layer stage3:stage4"),
    ],
)
def test_what_cannot_be_paired_is_refused(layers, default, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        map_pairs("at", layers, SMALL, DEEP, default)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("default", [every_stage, last_stage])
def test_networks_without_stages_are_refused(default) -> None:
    none = {"after_fc": (3,)}
    pairs = {"student and the teacher": (none, none), "student": (none, DEEP), "teacher": (DEEP, none)}
    for lacking, (student, teacher) in pairs.items():
        with pytest.raises(UsageError, match=f"^the {lacking} names no stages; .*--layer STUDENT:TEACHER"):
            map_pairs("at", (), student, teacher, default)


def test_a_whole_map_is_the_map_or_its_means() -> None:
    rows = torch.arange(2 * 3 * 4 * 4, dtype=torch.float64).reshape(2, 3, 4, 4)
    plain, small = whole_map("stage2"), whole_map("stage2", (2, 2))
    assert (plain.key, small.key) == ("stage2.map", "stage2.map.2x2")
    assert plain == whole_map("stage2")
    assert torch.equal(plain.encode({"stage2": rows}, {})["values"], rows)
    found = small.encode({"stage2": rows}, {})["values"]
    for i in range(2):
        for j in range(2):
            wanted = rows[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
            assert torch.allclose(found[:, :, i, j], wanted, rtol=1e-14)
    assert pooled_to(rows, (4, 4)) is rows
    assert [tuple(side.shape) for side in same_size(rows, rows[:, :, :2])] == [(2, 3, 2, 4)] * 2


def test_a_module_for_each_pair() -> None:
    pairs = map_pairs("vid", ("stage1", "stage2:stage3"), SMALL, DEEP, every_stage)
    adapters = Paired(pairs, lambda pair: nn.Conv2d(pair.student_shape[0], pair.teacher_shape[0], 1))
    assert adapters.of(pairs[1]).weight.shape == (16, 6, 1, 1)
    assert next(name for name, _ in adapters.named_parameters()) == "by_pair.stage1.weight"
    assert list(Paired(pairs).parameters()) == []
