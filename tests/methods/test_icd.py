"""ICD against the golden numbers, naive loops and differences; its scale, bias and heads."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.nn import functional

from kdtool.errors import UsageError
from kdtool.methods.icd import ICD, icd_loss
from kdtool.methods.vectors import vector
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_method
from kdtool.workflows.trial import FACTS, PAIRS, Pair

GOLDEN = {
    "ICD_default": (1.0, 0.5, 1.9891316096187543),
    "ICD_contrastive_only": (1.0, 0.0, 1.849052149677991),
    "ICD_tau5_clamped10": (5.0, 0.5, 4.025835760288796),
}


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def naive(student, teacher, log_scale: float, bias: float, alpha: float, max_scale: float = 10.0) -> float:
    """The sums as they are written, sample by sample."""
    count, scale = len(student), min(math.exp(log_scale), max_scale)
    ours = [row / math.sqrt(sum(v * v for v in row)) for row in student]
    theirs = [row / math.sqrt(sum(v * v for v in row)) for row in teacher]
    z = [[scale * sum(a * b for a, b in zip(x, y, strict=True)) + bias for y in theirs] for x in ours]
    row = [math.log(sum(math.exp(z[i][j]) for j in range(count))) for i in range(count)]
    column = [math.log(sum(math.exp(z[i][j]) for i in range(count))) for j in range(count)]
    contrast = sum(row[i] - z[i][i] for i in range(count)) / count
    invariance = 0.0
    for i in range(count):
        for j in range(count):
            log_q, log_p = z[j][i] - column[i], z[i][j] - row[i]
            invariance += math.exp(log_q) * (log_q - log_p)
    return contrast + alpha * invariance / count


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str, closed_form) -> None:
    log_scale, alpha, value = GOLDEN[name]
    student = closed_form((6, 9), 0.3) @ closed_form((8, 9), 0.4).T + closed_form((8,), 0.45)
    teacher = closed_form((6, 12), 1.1) @ closed_form((8, 12), 0.6).T + closed_form((8,), 0.65)
    found = icd_loss(student, teacher, scalar(log_scale), scalar(0.0), alpha)
    assert found.item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers_are_those_of_the_reference(name: str, golden) -> None:
    assert golden[name] == GOLDEN[name][2]


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 6)),
    seed=st.integers(0, 1000),
    log_scale=st.floats(-3, 4),
    bias=st.floats(-5, 5),
    alpha=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_naive_loops(shape: tuple[int, int], seed: int, log_scale: float, bias: float, alpha: float) -> None:
    student, teacher = np.random.default_rng(seed).normal(size=(2, *shape))
    found = icd_loss(*map(torch.from_numpy, (student, teacher)), scalar(log_scale), scalar(bias), alpha)
    assert found.item() == pytest.approx(naive(student, teacher, log_scale, bias, alpha), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("log_scale", [1.0, 2.5])
def test_gradients_are_those_of_differences(log_scale: float) -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = [value.requires_grad_() for value in (student.clone(), teacher.clone(), scalar(log_scale), scalar(0.3))]
    assert torch.autograd.gradcheck(icd_loss, inputs)


def test_the_scale_has_a_gradient_below_its_highest_value_alone() -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for log_scale, trains in ((1.0, True), (math.log(10) - 1e-6, True), (math.log(10) + 1e-6, False), (1e4, False)):
        leaf = scalar(log_scale).requires_grad_()
        loss = icd_loss(student, teacher, leaf, scalar(0.0))
        loss.backward()
        assert math.isfinite(loss.item())
        assert bool(leaf.grad != 0) == trains


def test_the_bias_changes_nothing() -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = scalar(0.0).requires_grad_()
    icd_loss(student, teacher, scalar(1.0), bias).backward()
    assert abs(bias.grad.item()) < 1e-15
    values = [icd_loss(student, teacher, scalar(1.0), scalar(b)).item() for b in (0.0, 7.0)]
    assert values[0] == pytest.approx(values[1], rel=1e-13)


def test_the_heads_are_linear_and_both_train() -> None:
    pair = Pair("", {"before_fc": (256,)}, {"before_fc": (64,)})
    method = ICD()
    heads = method.adapters(pair.student, pair.teacher, FACTS, {})
    sizes = {name: parameter.numel() for name, parameter in heads.named_parameters()}
    assert sizes["student.weight"] + sizes["student.bias"] == 32_896
    assert sizes["teacher.weight"] + sizes["teacher.bias"] == 128 * 64 + 128
    assert (heads.log_scale.item(), heads.similarity_bias.item()) == (1.0, 0.0)
    assert method.targets(pair.student, pair.teacher) == (vector("before_fc"),)
    assert method.stages({}, {}, FACTS) == (Stage(weights={"icd": Weight(1.0)}),)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_stored_vectors_give_the_loss_of_the_taps(pair: Pair) -> None:
    class Fixed(ICD):
        def adapters(self, student, teacher, facts, fitted):
            torch.manual_seed(0)
            return super().adapters(student, teacher, facts, fitted)

    heads = Fixed().adapters(pair.student, pair.teacher, FACTS, {}).double()

    def full(student, teacher):
        ours = functional.linear(student["before_fc"], heads.student.weight, heads.student.bias)
        theirs = functional.linear(teacher["before_fc"], heads.teacher.weight, heads.teacher.bias)
        return {"icd": torch.tensor(naive(ours.detach().numpy(), theirs.detach().numpy(), 1.0, 0.0, 0.5))}

    check_compact(Fixed(), full, pair)


def test_float16_storage() -> None:
    """The loss differs by less than 1e-3 of its value, measured at 8e-5."""
    random = np.random.default_rng(0)
    worst = 0.0
    for _ in range(20):
        student, teacher = torch.from_numpy(random.normal(size=(2, 32, 64)))
        head = torch.from_numpy(random.normal(size=(16, 64)) / 8)
        exact = icd_loss(student @ head.T, teacher @ head.T, scalar(1.0), scalar(0.0))
        stored = icd_loss(student @ head.T, teacher.half().double() @ head.T, scalar(1.0), scalar(0.0))
        worst = max(worst, abs(stored.item() / exact.item() - 1))
    assert 0 < worst < 1e-3


@pytest.mark.parametrize("options", [{}, {"alpha": "0"}, {"width": "3", "max_scale": "5"}], ids=str)
def test_it_conforms(options: dict[str, str]) -> None:
    check_method(ICD().with_options(options))


@pytest.mark.parametrize("options", [{"alpha": "-1"}, {"width": "0"}, {"max_scale": "0"}], ids=str)
def test_options_that_make_no_sense(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        ICD().with_options(options)


def test_identical_and_zero_embeddings() -> None:
    for rows in (torch.ones(4, 3), torch.zeros(4, 3)):
        leaf = rows.clone().requires_grad_()
        loss = icd_loss(leaf, rows, torch.ones(()), torch.zeros(()))
        loss.backward()
        assert loss.item() == pytest.approx(math.log(4), rel=1e-6)
        assert bool(leaf.grad.isfinite().all())


def test_the_invariance_is_zero_where_both_sides_are_equal() -> None:
    rows = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values = [icd_loss(rows, 3 * rows, scalar(1.0), scalar(0.0), alpha).item() for alpha in (0.0, 0.5)]
    assert values[0] == pytest.approx(values[1], rel=1e-14)


def test_the_bytes_of_resnet32x4_to_resnet8x4() -> None:
    shapes = {"before_fc": (256,)}
    (target,) = ICD().targets(shapes, shapes)
    rows = target.encode({"before_fc": torch.zeros(1, 256)}, {})["values"]
    assert (rows.numel(), target.dtype) == (256, "float16")  # 512 bytes a sample


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown layer of the teacher 'before_fc'") as error:
        ICD().targets({"before_fc": (4,)}, {"after_fc": (3,)})
    assert "\n" not in str(error.value)
    for other in (torch.ones(5, 4), torch.ones(3, 6)):
        with pytest.raises(UsageError, match=r"not \(3, 4\) of the student with"):
            icd_loss(torch.ones(3, 4), other, torch.ones(()), torch.zeros(()), alpha=0.0)
