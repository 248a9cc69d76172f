"""RKD's loss against the reference's value and naive loops; what does not change it; equal samples; what it refuses."""

import math
from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from kdtool.errors import UsageError
from kdtool.methods.kda import KDA
from kdtool.methods.rkd import RKD, rkd_loss
from kdtool.methods.vectors import vector
from kdtool.models import create, tap_shapes
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_keys, check_method
from kdtool.workflows.trial import PAIRS

# RepDistiller's RKDLoss with 25 and 50, float64, on the closed-form inputs: vectors of phases 0.3 and 1.1.
GOLDEN = 10.559535222882525

seeds = st.integers(0, 2**32 - 1)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


# Naive loops


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def naive_distances(rows: np.ndarray) -> np.ndarray:
    found = np.zeros((len(rows), len(rows)))
    for i, j in np.ndindex(found.shape):
        if i != j:
            found[i, j] = math.sqrt(max(sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)), 1e-12))
    positive = [distance for distance in found.ravel() if distance > 0]
    return found / (sum(positive) / len(positive)) if positive else found


def naive_cosine(start: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    ways = [(end - start) / max(math.dist(end, start), 1e-12) for end in (first, second)]
    return float(sum(a * b for a, b in zip(*ways, strict=True)))


def naive(student: np.ndarray, teacher: np.ndarray, distance_weight: float = 25.0, angle_weight: float = 50.0) -> float:
    size = len(student)
    ours, theirs = naive_distances(student), naive_distances(teacher)
    distance = sum(huber(ours[place] - theirs[place]) for place in np.ndindex(size, size)) / size**2
    angle = 0.0
    for i, a, b in np.ndindex(size, size, size):
        angle += huber(
            naive_cosine(student[i], student[a], student[b]) - naive_cosine(teacher[i], teacher[a], teacher[b])
        )
    return distance_weight * distance + angle_weight * angle / size**3


# The loss


def test_the_value_of_the_reference(closed_form) -> None:
    assert float(rkd_loss(closed_form((6, 9), 0.3), closed_form((6, 12), 1.1))) == pytest.approx(GOLDEN, rel=1e-9)


def test_the_value_in_the_shared_file(closed_form, golden) -> None:
    assert golden["RKD"] == GOLDEN
    found = float(rkd_loss(closed_form((6, 9), 0.3), closed_form((6, 12), 1.1)))
    assert found == pytest.approx(golden["RKD"], rel=1e-9)


def random_rows(seed: int, batch: int, width: int, repeated: bool = False) -> torch.Tensor:
    rows = np.random.default_rng(seed).normal(size=(batch, width))
    if repeated and batch > 1:
        rows[-1] = rows[0]
    return torch.from_numpy(rows)


@given(
    batch=st.integers(1, 5),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    weights=st.sampled_from([(25.0, 50.0), (1.0, 0.0), (0.0, 1.0), (0.3, 7.0)]),
    scale=st.sampled_from([1e-2, 1.0, 1e3]),
    repeated=st.tuples(st.booleans(), st.booleans()),
    seed=seeds,
)
def test_a_naive_loop_gives_the_same(batch: int, widths, weights, scale: float, repeated, seed: int) -> None:
    student = scale * random_rows(seed, batch, widths[0], repeated[0])
    teacher = random_rows(seed + 1, batch, widths[1], repeated[1])
    wanted = naive(student.numpy(), teacher.numpy(), *weights)
    assert float(rkd_loss(student, teacher, *weights)) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@given(seed=seeds)
def test_moving_turning_and_scaling_changes_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    student, teacher = (torch.from_numpy(rows) for rows in random.normal(size=(2, 5, 4)))
    turn = torch.from_numpy(np.linalg.qr(random.normal(size=(4, 4)))[0])
    moved = random.uniform(0.1, 10) * student @ turn + torch.from_numpy(random.normal(size=4))
    assert float(rkd_loss(moved, teacher)) == pytest.approx(float(rkd_loss(student, teacher)), rel=1e-9)
    assert float(rkd_loss(teacher, moved)) == pytest.approx(float(rkd_loss(teacher, student)), rel=1e-9)
    assert float(rkd_loss(moved, student)) == pytest.approx(0, abs=1e-20)


@dtypes
def test_a_student_that_is_the_teacher_loses_nothing(closed_form, dtype: torch.dtype) -> None:
    student = closed_form((6, 9), 0.3).to(dtype).requires_grad_()
    loss = rkd_loss(student, student)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_gradient_is_that_of_differences_and_spares_the_teacher(closed_form, weights) -> None:
    student, teacher = closed_form((5, 3), 0.3).requires_grad_(), closed_form((5, 4), 1.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: rkd_loss(rows, teacher, *weights), (student,))
    rkd_loss(student, teacher, *weights).backward()
    assert student.grad.any()
    assert teacher.grad is None


# Equal and extreme samples


@dtypes
@pytest.mark.parametrize("value", [0.0, 3.7])
def test_samples_that_are_all_equal_have_a_finite_loss_and_no_gradient(closed_form, value: float, dtype) -> None:
    student = torch.full((6, 9), value, dtype=dtype, requires_grad=True)
    teacher = closed_form((6, 12), 1.1).to(dtype)
    loss = rkd_loss(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert not student.grad.any()
    other = teacher.clone().requires_grad_()
    rkd_loss(other, student.detach()).backward()
    assert torch.isfinite(other.grad).all()


@dtypes
def test_two_equal_samples_have_no_gradient_from_their_direction(closed_form, dtype) -> None:
    """Divided by 1e-12, as the reference does, it would be of the order of 1e10."""
    student = closed_form((6, 9), 0.3).to(dtype)
    student[4] = student[1]
    student.requires_grad_()
    rkd_loss(student, closed_form((6, 12), 1.1).to(dtype)).backward()
    assert student.grad.abs().max() < 100


@dtypes
def test_one_sample_gives_zero_and_a_gradient_of_zero(dtype) -> None:
    student = torch.ones(1, 4, dtype=dtype, requires_grad=True)
    loss = rkd_loss(student, torch.zeros(1, 3, dtype=dtype))
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


@dtypes
@pytest.mark.parametrize("scale", [1e-4, 1e4, 1e8])
def test_extreme_vectors_stay_finite(closed_form, scale: float, dtype) -> None:
    student = (scale * closed_form((6, 9), 0.3)).to(dtype).requires_grad_()
    loss = rkd_loss(student, (closed_form((6, 12), 1.1) / scale).to(dtype))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_float32_keeps_the_gradient_of_samples_that_lie_close_together() -> None:
    """Classes a hundred times wider apart than their samples, far from the origin; inner products keep one digit."""
    random = np.random.default_rng(0)
    centres, noise = random.normal(size=(2, 4, 64)), random.normal(size=(2, 16, 64))
    student, teacher = torch.from_numpy(np.tile(centres, (1, 4, 1)) + 1e-2 * noise + 10).float()
    exact = student.double().requires_grad_()
    rkd_loss(exact, teacher.double()).backward()
    student.requires_grad_()
    rkd_loss(student, teacher).backward()
    assert torch.linalg.vector_norm(student.grad - exact.grad) < 1e-6 * torch.linalg.vector_norm(exact.grad)


def test_batches_of_other_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="not 6 of the student with 5") as error:
        rkd_loss(torch.zeros(6, 9), torch.zeros(5, 9))
    assert "\n" not in str(error.value)


# The method

METHODS = [RKD(), RKD(angle_weight=0.0, weight=2.0), RKD(distance_weight=0.0)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_conforms(method: RKD) -> None:
    check_method(method)


def test_what_it_stores_is_what_others_store() -> None:
    check_keys([*METHODS, KDA()])
    both = shapes_of("resnet8x4"), shapes_of("resnet32x4")
    (target,) = RKD().targets(*both)
    assert target == vector("before_fc")
    (rows,) = target.encode({"before_fc": torch.zeros(1, *both[1]["before_fc"])}, {}).values()
    assert (rows.numel(), target.dtype) == (256, "float16")  # 512 bytes a sample


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_stored_vectors_give_the_loss_of_whole_taps(pair) -> None:
    for method in METHODS:
        weights = method.distance_weight, method.angle_weight

        def full(student, teacher, weights=weights):
            rows = student["before_fc"].numpy(), teacher["before_fc"].numpy()
            return {"rkd": torch.tensor(naive(*rows, *weights), dtype=torch.float64)}

        check_compact(method, full, pair)


def test_half_precision_changes_the_loss_by_less_than_three_thousandths() -> None:
    """Measured up to 1.1e-3 over batches of 4 to 32 random vectors after a ReLU, of 8 to 256 numbers."""
    for seed in range(30):
        batch, width = (4, 8, 32)[seed % 3], (8, 64)[seed % 2]
        student, teacher = (random_rows(seed + side, batch, width).relu() for side in (0, 1000))
        exact, rounded = (rkd_loss(student, rows).item() for rows in (teacher, teacher.half().double()))
        assert rounded == pytest.approx(exact, rel=3e-3)
        assert rounded != exact


def test_what_the_method_declares(make_facts) -> None:
    both, facts = (PAIRS[1].student, PAIRS[1].teacher), make_facts([0], 1)
    assert RKD().student_taps(*both) == ("before_fc",)
    assert RKD().fits(*both) == ()
    assert RKD().stages(*both, facts) == (Stage(weights={"rkd": Weight(1.0)}),)
    assert not list(RKD().adapters(*both, facts, {}).state_dict())


@pytest.mark.parametrize("options", [{"angle_weight": "-1"}, {"distance_weight": "0", "angle_weight": "0"}])
def test_weights_that_leave_nothing_to_learn_are_refused(options) -> None:
    with pytest.raises(UsageError, match=r"rkd\.angle_weight are not negative and not both 0, not \(") as error:
        RKD().with_options(options)
    assert "\n" not in str(error.value)


def test_a_network_without_the_vector_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown layer of the student 'before_fc'") as error:
        RKD().targets({"stage1": (4, 8, 8)}, PAIRS[0].teacher)
    assert "\n" not in str(error.value)
