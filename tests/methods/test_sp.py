"""SP's loss against the reference's value and a naive loop; what it stores, what it refuses."""

from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from kdtool.errors import UsageError
from kdtool.methods.maps import whole_map
from kdtool.methods.sp import SP, similarities, sp_loss
from kdtool.models import create, tap_shapes
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_keys, check_method
from kdtool.workflows.trial import PAIRS

# RepDistiller's Similarity, float64, on the closed-form inputs: maps of phases 0.2 and 0.9 after a ReLU.
GOLDEN = 0.05684040347828082

seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


def test_the_value_of_the_reference(closed_form) -> None:
    student, teacher = closed_form((4, 5, 8, 8), 0.2).relu(), closed_form((4, 7, 8, 8), 0.9).relu()
    assert float(sp_loss(student, teacher)) == pytest.approx(GOLDEN, rel=1e-9)


def test_the_value_in_the_shared_file(golden) -> None:
    assert golden["SP"] == GOLDEN


def naive_rows(maps: np.ndarray) -> list[list[float]]:
    """Inner products of all samples (B, C, H, W), each row over its norm."""
    rows = []
    for first in maps:
        products = [sum(a * b for a, b in zip(first.flat, second.flat, strict=True)) for second in maps]
        norm = sum(p**2 for p in products) ** 0.5
        rows.append([p / norm if norm else 0.0 for p in products])
    return rows


def naive(student: np.ndarray, teacher: np.ndarray) -> float:
    ours, theirs = naive_rows(student), naive_rows(teacher)
    count = len(student)
    return sum((ours[i][j] - theirs[i][j]) ** 2 for i in range(count) for j in range(count)) / count**2


@given(batch=st.integers(1, 5), ours=shapes, theirs=shapes, seed=seeds)
def test_a_naive_loop_gives_the_same(batch: int, ours, theirs, seed: int) -> None:
    random = np.random.default_rng(seed)
    student, teacher = (random.normal(size=(batch, *shape)) for shape in (ours, theirs))
    found = float(sp_loss(torch.from_numpy(student), torch.from_numpy(teacher)))
    assert found == pytest.approx(naive(student, teacher), rel=1e-10, abs=1e-15)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_a_student_that_is_the_teacher_at_any_scale_loses_nothing(seed: int, scale: float) -> None:
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(5, 3, 2, 2)))
    assert float(sp_loss(maps, maps)) == 0
    assert float(sp_loss(scale * maps, maps)) == pytest.approx(0, abs=1e-28)


def test_similarities_by_hand() -> None:
    maps = torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 0.0]]).reshape(3, 1, 1, 2)
    assert torch.allclose(similarities(maps), torch.tensor([[0.6, 0.8, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 0.0]]))


def test_the_gradient_is_that_of_differences_and_spares_the_teacher(closed_form) -> None:
    student = closed_form((3, 2, 2, 2), 0.1).requires_grad_()
    teacher = closed_form((3, 2, 3, 3), 0.7).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: sp_loss(s, teacher), (student,))
    sp_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_maps_stay_finite_and_keep_their_type(scale: float, dtype: torch.dtype, closed_form) -> None:
    student = (scale * closed_form((3, 3, 4, 4), 0.1)).to(dtype).requires_grad_()
    for teacher in (torch.ones(3, 3, 4, 4, dtype=dtype), torch.zeros(3, 3, 4, 4, dtype=dtype)):
        student.grad = None
        loss = sp_loss(student, teacher)
        loss.backward()
        assert loss.dtype == dtype
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()


def test_a_dead_student_among_living_samples_has_no_gradient(closed_form) -> None:
    student = closed_form((3, 2, 2, 2), 0.1)
    student[1] = 0
    student.requires_grad_()
    sp_loss(student, closed_form((3, 2, 2, 2), 0.7)).backward()
    assert torch.isfinite(student.grad).all()


def test_maps_of_other_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="the same samples, not 2 of the student with 1") as error:
        sp_loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    assert "\n" not in str(error.value)


# The method

METHODS = [SP(), SP(weight=2.0, layers=("stage1", "stage2:stage3"))]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_conforms(method: SP) -> None:
    check_method(method)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_stored_map_gives_the_loss_of_the_whole_one(pair) -> None:
    def full(student, teacher):
        value = naive(student["stage3"].numpy(), teacher["stage3"].numpy())
        return {"sp": torch.tensor(value, dtype=torch.float64)}

    check_compact(SP(), full, pair)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_maps_stored_in_half_precision(seed: int) -> None:
    """Stays within 5e-4 relative for normal values after a ReLU (1.3e-4 measured in 100 draws)."""
    random = np.random.default_rng(seed)
    ours, theirs = (torch.from_numpy(random.normal(size=(16, 16, 4, 4))).relu() for _ in range(2))
    exact, stored = (float(sp_loss(ours, rows)) for rows in (theirs, theirs.half().double()))
    assert abs(stored / exact - 1) <= 5e-4


def test_its_keys_are_those_of_whole_maps() -> None:
    check_keys(METHODS)
    for pair in PAIRS:
        assert SP().targets(pair.student, pair.teacher) == (whole_map("stage3"),)
    found = SP(layers=("stage1:stage2", "stage2")).targets(PAIRS[0].student, PAIRS[0].teacher)
    assert found == (whole_map("stage2"),)


BYTES = [("resnet8x4", "resnet32x4", 16_384), ("wrn_16_2", "wrn_40_2", 8192), ("resnet20", "resnet56", 4096)]


@pytest.mark.parametrize(("student", "teacher", "values"), BYTES)
def test_the_bytes_of_the_usual_pairs(student: str, teacher: str, values: int, make_facts) -> None:
    both = shapes_of(student), shapes_of(teacher)
    (target,) = SP().targets(*both)
    assert target.encode({"stage3": torch.zeros(1, *both[1]["stage3"])}, {})["values"].numel() == values
    assert target.dtype == "float16"  # twice as many bytes
    assert not SP().adapters(*both, make_facts([0], 1), {}).state_dict()


def test_its_stage(make_facts) -> None:
    facts = make_facts([0], 1)
    assert SP().stages({}, {}, facts) == (Stage(weights={"sp": Weight(3000.0)}),)
    assert METHODS[1].stages({}, {}, facts) == (Stage(weights={"sp": Weight(2.0)}),)


@pytest.mark.parametrize(
    ("layers", "message"),
    [(("stage4",), "unknown layer of the student 'stage4'"), (("before_fc",), "sp works on maps")],
)
def test_what_is_refused(layers, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        SP(layers=layers).targets(PAIRS[0].student, PAIRS[0].teacher)
    assert "\n" not in str(error.value)
