"""CC's loss against the reference's value and a naive loop; its embeddings, the order of the batch, what it refuses."""

from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from kdtool.errors import UsageError
from kdtool.methods.cc import CC, cc_loss
from kdtool.methods.kda import KDA
from kdtool.methods.vectors import VALUES, vector
from kdtool.models import create, tap_shapes
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_keys, check_method
from kdtool.workflows.trial import PAIRS, trial

# RepDistiller's Correlation, float64, on the closed-form inputs: embeddings of phases 0.3 and 1.1.
GOLDEN = 2.417030892920789

seeds = st.integers(0, 2**32 - 1)


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


def naive(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for i in range(len(student) - 1):
        for k in range(student.shape[1]):
            total += abs(student[i, k] - teacher[i, k]) * abs(student[i + 1, k] - teacher[i + 1, k])
    return total / max(len(student) - 1, 1)


def random_embeddings(seed: int, batch: int = 6, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    student, teacher = random.normal(size=(2, batch, width))
    return torch.from_numpy(student), torch.from_numpy(teacher)


def test_the_value_of_the_reference(closed_form) -> None:
    assert float(cc_loss(closed_form((6, 9), 0.3), closed_form((6, 9), 1.1))) == pytest.approx(GOLDEN, rel=1e-9)


def test_the_value_in_the_shared_file(closed_form, golden) -> None:
    assert golden["CC"] == GOLDEN
    assert float(cc_loss(closed_form((6, 9), 0.3), closed_form((6, 9), 1.1))) == pytest.approx(golden["CC"], rel=1e-9)


@given(batch=st.integers(1, 7), width=st.integers(1, 9), scale=st.sampled_from([1e-3, 1.0, 1e3]), seed=seeds)
def test_a_naive_loop_gives_the_same(batch: int, width: int, scale: float, seed: int) -> None:
    student, teacher = (scale * side for side in random_embeddings(seed, batch, width))
    wanted = naive(student.numpy(), teacher.numpy())
    assert float(cc_loss(student, teacher)) == pytest.approx(wanted, rel=1e-9)


@given(seed=seeds)
def test_the_order_of_the_batch_counts_up_to_its_direction(seed: int) -> None:
    student, teacher = random_embeddings(seed)
    found = float(cc_loss(student, teacher))
    assert float(cc_loss(student.flip(0), teacher.flip(0))) == pytest.approx(found, rel=1e-12)
    swapped = torch.tensor([1, 0, 2, 3, 4, 5])
    assert float(cc_loss(student[swapped], teacher[swapped])) != pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_embeddings_lose_nothing(closed_form, dtype: torch.dtype) -> None:
    embeddings = closed_form((6, 9), 0.3).to(dtype).requires_grad_()
    loss = cc_loss(embeddings, embeddings.detach())
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_one_sample_has_no_neighbours_and_a_gradient_of_zero(closed_form) -> None:
    student = closed_form((1, 9), 0.3).requires_grad_()
    loss = cc_loss(student, closed_form((1, 9), 1.1))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_the_gradient_is_that_of_differences_and_reaches_both_sides(closed_form) -> None:
    student, teacher = closed_form((4, 3), 0.3).requires_grad_(), closed_form((4, 3), 1.1).requires_grad_()
    assert torch.autograd.gradcheck(cc_loss, (student, teacher))
    cc_loss(student, teacher).backward()
    assert torch.equal(student.grad, -teacher.grad)
    assert student.grad.any()


@pytest.mark.parametrize("shape", [(6, 8), (5, 9)])
def test_embeddings_of_other_sizes_are_refused(shape) -> None:
    with pytest.raises(UsageError, match=r"not \(6, 9\) of the student with") as error:
        cc_loss(torch.zeros(6, 9), torch.zeros(shape))
    assert "\n" not in str(error.value)


# The method

METHODS = [CC(), CC(width=5, weight=1.0)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_conforms(method: CC) -> None:
    check_method(method, permutable=False)


def test_what_it_stores_is_what_others_store() -> None:
    check_keys([*METHODS, KDA()])
    both = shapes_of("resnet8x4"), shapes_of("resnet32x4")
    (target,) = CC().targets(*both)
    assert target == vector("before_fc")
    (rows,) = target.encode({"before_fc": torch.zeros(1, *both[1]["before_fc"])}, {}).values()
    assert (rows.numel(), target.dtype) == (256, "float16")  # 512 bytes a sample


def embedded_loss(method: CC, pair):
    """The term of the whole vectors, by the weights that a fresh trial gives the two layers."""
    state = trial(method, pair).adapters().double().state_dict()

    def full(student, teacher):
        taps = {"student": student["before_fc"].numpy(), "teacher": teacher["before_fc"].numpy()}
        embeddings = [
            rows @ state[f"{side}.weight"].numpy().T + state[f"{side}.bias"].numpy() for side, rows in taps.items()
        ]
        return {"cc": torch.tensor(naive(*embeddings), dtype=torch.float64)}

    return full


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_stored_vectors_give_the_loss_of_whole_taps(pair) -> None:
    for method in METHODS:
        check_compact(method, embedded_loss(method, pair), pair)


def test_half_precision_changes_the_loss_by_less_than_a_thousandth(make_batch) -> None:
    """Measured up to 3e-4 over random vectors; the term of float16 vectors against the same ones in float64."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        student, teacher = (torch.from_numpy(random.normal(size=(8, width))).relu() for width in (8, 12))
        shapes = {"before_fc": (8,)}, {"before_fc": (12,)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapters = CC(width=16).adapters(*shapes, None, {}).double()
        batch = make_batch(range(8))
        exact, rounded = (
            CC().terms({"before_fc": student}, {"before_fc": {VALUES: rows}}, batch, adapters)["cc"].item()
            for rows in (teacher, teacher.half().double())
        )
        assert rounded == pytest.approx(exact, rel=1e-3)
        assert rounded != exact


@pytest.mark.parametrize(
    ("student", "teacher", "parameters"),
    [("resnet8x4", "resnet32x4", 2 * 32_896), ("wrn_40_1", "wrn_40_2", 64 * 128 + 128 + 128 * 128 + 128)],
)
def test_the_parameters_of_both_embeddings(make_facts, student: str, teacher: str, parameters: int) -> None:
    adapters = CC().adapters(shapes_of(student), shapes_of(teacher), make_facts([0], 1), {})
    assert sum(parameter.numel() for parameter in adapters.parameters()) == parameters
    assert set(adapters.state_dict()) == {
        f"{side}.{name}" for side in ("student", "teacher") for name in ("weight", "bias")
    }


def test_what_the_method_declares(make_facts) -> None:
    both = PAIRS[1].student, PAIRS[1].teacher
    assert CC().student_taps(*both) == ("before_fc",)
    assert CC().fits(*both) == ()
    assert CC().stages(*both, make_facts([0], 1)) == (Stage(weights={"cc": Weight(0.02)}),)


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cc\.width is at least 1, not 0"):
        CC().with_options({"width": "0"})
    with pytest.raises(UsageError, match="unknown layer of the teacher 'before_fc'") as error:
        CC().targets(PAIRS[0].student, {"stage1": (4, 8, 8)})
    assert "\n" not in str(error.value)
