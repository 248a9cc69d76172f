"""PKT's loss against the reference's value and a naive loop; vectors of zeros and opposite ones; what it refuses."""

import math
from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from kdtool.errors import UsageError
from kdtool.methods.kda import KDA
from kdtool.methods.pkt import PKT, neighbours, pkt_loss
from kdtool.methods.vectors import vector
from kdtool.models import create, tap_shapes
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_keys, check_method
from kdtool.workflows.trial import PAIRS

# RepDistiller's PKT, float64, on the closed-form inputs: vectors of phases 0.3 and 1.1.
GOLDEN = 0.19941578450972522

seeds = st.integers(0, 2**32 - 1)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


def naive_neighbours(rows: np.ndarray) -> np.ndarray:
    directions = [row / (math.sqrt(sum(value**2 for value in row)) + 1e-7) for row in rows]
    found = np.zeros((len(rows), len(rows)))
    for i, first in enumerate(directions):
        for j, second in enumerate(directions):
            found[i, j] = (sum(a * b for a, b in zip(first, second, strict=True)) + 1) / 2
        found[i] /= sum(found[i])
    return found


def naive(student: np.ndarray, teacher: np.ndarray) -> float:
    ours, theirs = naive_neighbours(student), naive_neighbours(teacher)
    total = 0.0
    for place in np.ndindex(ours.shape):
        total += theirs[place] * math.log((theirs[place] + 1e-7) / (ours[place] + 1e-7))
    return total / ours.size


def random_rows(seed: int, batch: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, width)))


# The loss


def test_the_value_of_the_reference(closed_form) -> None:
    assert float(pkt_loss(closed_form((6, 9), 0.3), closed_form((6, 12), 1.1))) == pytest.approx(GOLDEN, rel=1e-9)


def test_the_value_in_the_shared_file(closed_form, golden) -> None:
    assert golden["PKT"] == GOLDEN
    found = float(pkt_loss(closed_form((6, 9), 0.3), closed_form((6, 12), 1.1)))
    assert found == pytest.approx(golden["PKT"], rel=1e-9)


@given(
    batch=st.integers(1, 6),
    widths=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 1e3]),
    dead=st.tuples(st.booleans(), st.booleans()),
    seed=seeds,
)
def test_a_naive_loop_gives_the_same(batch: int, widths, scale: float, dead, seed: int) -> None:
    student, teacher = scale * random_rows(seed, batch, widths[0]), random_rows(seed + 1, batch, widths[1])
    for rows, zero in zip((student, teacher), dead, strict=True):
        if zero:
            rows[-1] = 0
    wanted = naive(student.numpy(), teacher.numpy())
    assert float(pkt_loss(student, teacher)) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


@given(seed=seeds)
def test_turning_and_scaling_the_samples_changes_nothing_but_by_the_added_constant(seed: int) -> None:
    random = np.random.default_rng(seed)
    student, teacher = (torch.from_numpy(rows) for rows in random.normal(size=(2, 5, 4)))
    turn = torch.from_numpy(np.linalg.qr(random.normal(size=(4, 4)))[0])
    turned = torch.from_numpy(random.uniform(0.5, 10, size=(5, 1))) * student @ turn
    assert torch.allclose(neighbours(turned), neighbours(student), rtol=0, atol=1e-6)
    assert float(pkt_loss(turned, teacher)) == pytest.approx(float(pkt_loss(student, teacher)), abs=1e-5)


@dtypes
def test_a_student_that_is_the_teacher_loses_nothing(closed_form, dtype: torch.dtype) -> None:
    student = closed_form((6, 9), 0.3).to(dtype).requires_grad_()
    loss = pkt_loss(student, student)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-6  # of a sum that is constant but for the 1e-7


def test_the_gradient_is_that_of_differences_and_spares_the_teacher(closed_form) -> None:
    student, teacher = closed_form((5, 3), 0.3).requires_grad_(), closed_form((5, 4), 1.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: pkt_loss(rows, teacher), (student,))
    pkt_loss(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


# Odd vectors


@dtypes
@pytest.mark.parametrize("dead", [[2], [0, 1, 2, 3, 4, 5]], ids=["one", "all"])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_vectors_of_zeros_have_a_finite_gradient(closed_form, side: str, dead, dtype) -> None:
    student, teacher = closed_form((6, 9), 0.3).to(dtype), closed_form((6, 12), 1.1).to(dtype)
    if side != "teacher":
        student[dead] = 0
    if side != "student":
        teacher[dead] = 0
    student.requires_grad_()
    loss = pkt_loss(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_opposite_vectors_stay_finite_in_float32() -> None:
    """Where the cosine is rounded to below -1 a similarity is negative; the 1e-7 does not always cover it."""
    rounded = 0
    for seed in range(100):
        rows = random_rows(seed, 1, 512).float()
        student = torch.cat([rows, -rows])
        directions = student / torch.linalg.vector_norm(student, dim=1, keepdim=True)
        rounded += bool((directions @ directions.T).min() < -1)
        student.requires_grad_()
        loss = pkt_loss(student, torch.eye(2))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()
    assert rounded


@dtypes
@pytest.mark.parametrize("scale", [1e-6, 1e4, 1e8])
def test_extreme_vectors_stay_finite(closed_form, scale: float, dtype) -> None:
    student = (scale * closed_form((6, 9), 0.3)).to(dtype).requires_grad_()
    loss = pkt_loss(student, (closed_form((6, 12), 1.1) / scale).to(dtype))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_a_network_that_has_diverged_is_not_hidden(closed_form) -> None:
    student = closed_form((6, 9), 0.3)
    student[2, 3] = math.nan
    assert math.isnan(pkt_loss(student, closed_form((6, 12), 1.1)))


def test_batches_of_other_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="not 6 of the student with 5") as error:
        pkt_loss(torch.zeros(6, 9), torch.zeros(5, 9))
    assert "\n" not in str(error.value)


# The method

METHODS = [PKT(), PKT(weight=1.0)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_conforms(method: PKT) -> None:
    check_method(method)


def test_what_it_stores_is_what_others_store() -> None:
    check_keys([*METHODS, KDA()])
    both = shapes_of("resnet8x4"), shapes_of("resnet32x4")
    (target,) = PKT().targets(*both)
    assert target == vector("before_fc")
    (rows,) = target.encode({"before_fc": torch.zeros(1, *both[1]["before_fc"])}, {}).values()
    assert (rows.numel(), target.dtype) == (256, "float16")  # 512 bytes a sample


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_stored_vectors_give_the_loss_of_whole_taps(pair) -> None:
    def full(student, teacher):
        rows = student["before_fc"].numpy(), teacher["before_fc"].numpy()
        return {"pkt": torch.tensor(naive(*rows), dtype=torch.float64)}

    check_compact(PKT(), full, pair)


def test_half_precision_changes_the_loss_by_less_than_three_thousandths() -> None:
    """Measured up to 1.2e-3 over batches of 4 to 32 random vectors after a ReLU, of 8 to 256 numbers."""
    for seed in range(30):
        batch, width = (4, 8, 32)[seed % 3], (8, 64)[seed % 2]
        student, teacher = (random_rows(seed + side, batch, width).relu() for side in (0, 1000))
        exact, rounded = (pkt_loss(student, rows).item() for rows in (teacher, teacher.half().double()))
        assert rounded == pytest.approx(exact, rel=3e-3)
        assert rounded != exact


def test_what_the_method_declares(make_facts) -> None:
    both, facts = (PAIRS[1].student, PAIRS[1].teacher), make_facts([0], 1)
    assert PKT().student_taps(*both) == ("before_fc",)
    assert PKT().fits(*both) == ()
    assert PKT().stages(*both, facts) == (Stage(weights={"pkt": Weight(30000.0)}),)
    assert not list(PKT().adapters(*both, facts, {}).state_dict())


def test_a_network_without_the_vector_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown layer of the teacher 'before_fc'") as error:
        PKT().targets(PAIRS[0].student, {"stage1": (4, 8, 8)})
    assert "\n" not in str(error.value)
