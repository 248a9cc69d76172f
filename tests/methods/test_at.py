"""AT's loss against the reference's values and a naive loop; what it stores, what it refuses."""

from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from kdtool.errors import UsageError
from kdtool.methods.at import AT, attention, attention_loss
from kdtool.models import create, tap_shapes
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_keys, check_method
from kdtool.workflows.trial import PAIRS

# RepDistiller's Attention, float64, on the closed-form inputs: maps of phases 0.2 and 0.9 after a ReLU.
GOLDEN = {(8, 8): 0.005454572781558413, (16, 16): 0.00870700523666979}

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


@pytest.mark.parametrize(("size", "value"), GOLDEN.items())
def test_the_values_of_the_reference(size, value: float, closed_form) -> None:
    student, teacher = closed_form((4, 5, 8, 8), 0.2).relu(), closed_form((4, 7, *size), 0.9).relu()
    assert float(attention_loss(student, teacher)) == pytest.approx(value, rel=1e-9)


def test_the_values_in_the_shared_file(golden) -> None:
    assert {(8, 8): golden["AT_same"], (16, 16): golden["AT_teacher16"]} == GOLDEN


# Naive loops


def naive_pool(rows: np.ndarray, high: int, wide: int) -> np.ndarray:
    """Adaptive average pooling: bin i of h over H positions is floor(i H / h) to ceil((i + 1) H / h)."""
    found = np.zeros((*rows.shape[:2], high, wide))
    for i in range(high):
        top, bottom = i * rows.shape[2] // high, -(-(i + 1) * rows.shape[2] // high)
        for j in range(wide):
            left, right = j * rows.shape[3] // wide, -(-(j + 1) * rows.shape[3] // wide)
            found[:, :, i, j] = rows[:, :, top:bottom, left:right].sum((2, 3)) / ((bottom - top) * (right - left))
    return found


def naive_attention(sample: np.ndarray) -> list[float]:
    """Of a sample (C, H, W), one place after another."""
    squares = [sum(v**2 for v in sample[:, i, j].tolist()) / len(sample) for i, j in np.ndindex(sample.shape[1:])]
    norm = sum(s**2 for s in squares) ** 0.5
    return [s / norm if norm else 0.0 for s in squares]


def naive(student: np.ndarray, teacher: np.ndarray) -> float:
    high, wide = (min(student.shape[axis], teacher.shape[axis]) for axis in (2, 3))
    total = 0.0
    for ours, theirs in zip(naive_pool(student, high, wide), naive_pool(teacher, high, wide), strict=True):
        total += sum((a - b) ** 2 for a, b in zip(naive_attention(ours), naive_attention(theirs), strict=True))
    return total / (len(student) * high * wide)


@given(batch=st.integers(1, 3), widths=st.tuples(*2 * [st.integers(1, 4)]), ours=sizes, theirs=sizes, seed=seeds)
def test_a_naive_loop_gives_the_same(batch: int, widths, ours, theirs, seed: int) -> None:
    random = np.random.default_rng(seed)
    student, teacher = (random.normal(size=(batch, w, *size)) for w, size in zip(widths, (ours, theirs), strict=True))
    found = float(attention_loss(torch.from_numpy(student), torch.from_numpy(teacher)))
    assert found == pytest.approx(naive(student, teacher), rel=1e-10, abs=1e-15)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_a_student_that_is_the_teacher_at_any_scale_loses_nothing(seed: int, scale: float) -> None:
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, 4, 4)))
    assert float(attention_loss(maps, maps)) == 0
    assert float(attention_loss(scale * maps.flip(1), maps)) == pytest.approx(0, abs=1e-28)


def test_the_attention_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0]], [[-1.0, 2.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    assert torch.allclose(attention(maps), torch.tensor([[1.0, 4.0], [0.0, 0.0]]) / 17**0.5, rtol=1e-6)


def test_a_map_is_pooled_before_it_is_squared() -> None:
    """Values that cancel in a pool attend to nothing there."""
    large = torch.tensor([[[[1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0]]]])
    small = torch.tensor([[[[0.0, 3.0]]]])
    assert float(attention_loss(small, large)) == float(attention_loss(large, small)) == 0


@pytest.mark.parametrize("size", [(2, 2), (4, 4)])
def test_the_gradient_is_that_of_differences_and_spares_the_teacher(size, closed_form) -> None:
    student = closed_form((2, 3, 4, 4), 0.1).requires_grad_()
    teacher = closed_form((2, 2, *size), 0.7).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_loss(s, teacher), (student,))
    attention_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_maps_stay_finite_and_keep_their_type(scale: float, dtype: torch.dtype, closed_form) -> None:
    student = (scale * closed_form((2, 3, 4, 4), 0.1)).to(dtype).requires_grad_()
    for teacher in (torch.ones(2, 3, 4, 4, dtype=dtype), torch.zeros(2, 3, 4, 4, dtype=dtype)):
        student.grad = None
        loss = attention_loss(student, teacher)
        loss.backward()
        assert loss.dtype == dtype
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()


def test_maps_of_other_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="the same samples, not 2 of the student with 1") as error:
        attention_loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    assert "\n" not in str(error.value)


# The method

METHODS = [AT(), AT(layers=("stage3",)), AT(weight=2.0, layers=("stage1", "stage2:stage3", "stem"))]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_conforms(method: AT) -> None:
    check_method(method)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_stored_attention_gives_the_loss_of_whole_maps(pair) -> None:
    def full(student, teacher):
        values = [naive(student[f"stage{n}"].numpy(), teacher[f"stage{n}"].numpy()) for n in (1, 2, 3)]
        return {"at": torch.tensor(sum(values), dtype=torch.float64)}

    check_compact(AT(), full, pair)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_attention_stored_in_half_precision(seed: int) -> None:
    """Stays within 3e-4 relative for normal values after a ReLU (1.1e-4 measured in 100 draws)."""
    random = np.random.default_rng(seed)
    ours, theirs = (attention(torch.from_numpy(random.normal(size=(8, 16, 8, 8))).relu()) for _ in range(2))
    exact, stored = (float((ours - rows).square().mean()) for rows in (theirs, theirs.half().double()))
    assert abs(stored / exact - 1) <= 3e-4


def test_its_keys_carry_the_size_where_the_teachers_map_is_larger() -> None:
    check_keys(METHODS)
    keys = [[target.key for target in AT().targets(pair.student, pair.teacher)] for pair in PAIRS]
    plain = [f"stage{n}.attention" for n in (1, 2, 3)]
    assert keys == [plain, plain, [f"stage{n}.attention.{s}x{s}" for n, s in ((1, 8), (2, 4), (3, 2))], plain]
    twice = AT(layers=("stage1:stage2", "stage2")).targets(PAIRS[0].student, PAIRS[0].teacher)
    assert [target.key for target in twice] == ["stage2.attention"]


BYTES = [("resnet8x4", "resnet32x4", 1344), ("wrn_16_2", "wrn_40_2", 1344), ("resnet20", "resnet56", 1344)]


@pytest.mark.parametrize(("student", "teacher", "values"), BYTES)
def test_the_bytes_of_the_usual_pairs(student: str, teacher: str, values: int, make_facts) -> None:
    both = shapes_of(student), shapes_of(teacher)
    targets = AT().targets(*both)
    rows = [t.encode({t.taps[0]: torch.zeros(1, *both[1][t.taps[0]])}, {})["values"] for t in targets]
    assert sum(row.numel() for row in rows) == values
    assert {target.dtype for target in targets} == {"float16"}  # twice as many bytes
    assert not AT().adapters(*both, make_facts([0], 1), {}).state_dict()


def test_its_stage(make_facts) -> None:
    facts = make_facts([0], 1)
    assert AT().stages({}, {}, facts) == (Stage(weights={"at": Weight(1000.0)}),)
    assert METHODS[2].stages({}, {}, facts) == (Stage(weights={"at": Weight(2.0)}),)


@pytest.mark.parametrize(
    ("layers", "message"),
    [(("stage4",), "unknown layer of the student 'stage4'"), (("before_fc",), "at works on maps")],
)
def test_what_is_refused(layers, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        AT(layers=layers).targets(PAIRS[0].student, PAIRS[0].teacher)
    assert "\n" not in str(error.value)
