"""Plain logits against naive loops, and the two methods whose ends they are."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from kdtool.errors import UsageError
from kdtool.methods.kd import kd_loss
from kdtool.methods.logits import Logits, logit_loss
from kdtool.methods.vectors import vector
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_method
from kdtool.workflows.trial import FACTS, PAIRS


@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 1000))
def test_naive_loops(shape: tuple[int, int], seed: int) -> None:
    student, teacher = np.random.default_rng(seed).normal(size=(2, *shape))
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            total += (a - b) ** 2
    found = logit_loss(torch.from_numpy(student), torch.from_numpy(teacher))
    assert found.item() == pytest.approx(total / (2 * len(student)), rel=1e-12)


def test_gradient_and_zero() -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda rows: logit_loss(rows, teacher), student.requires_grad_())
    assert logit_loss(teacher, teacher).item() == 0


@pytest.mark.parametrize("size", [1e2, 1e4, 1e15])
def test_extreme_logits_are_finite(size: float) -> None:
    student = (size * torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]])).requires_grad_()
    loss = logit_loss(student, -student.detach())
    loss.backward()
    assert loss.item() == pytest.approx(4 * size**2, rel=1e-6)
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (4,), (2, 4)], ids=str)
def test_logits_of_other_shapes_are_refused_and_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"not \(3, 4\) of the student with") as error:
        logit_loss(torch.zeros(3, 4), torch.ones(shape))
    assert "\n" not in str(error.value)


def test_the_bytes_of_a_hundred_classes() -> None:
    (target,) = Logits().targets({}, {})
    rows = target.encode({"after_fc": torch.zeros(1, 100)}, {})["values"]
    assert (rows.numel(), target.dtype) == (100, "float16")  # 200 bytes a sample


def test_it_is_the_transfer_of_the_kernel_with_one_hot_landmarks() -> None:
    """||Z_S I - Z_T I||_F^2, the partial kernel of KDA's Eq. 4 without huber and normaliser."""
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    landmarks = torch.eye(4, dtype=torch.float64)
    partial = (student @ landmarks.T - teacher @ landmarks.T).square().sum()
    assert logit_loss(student, teacher).item() == pytest.approx(partial.item() / 12, rel=1e-14)


@pytest.mark.parametrize("temperature", [1e3, 1e4])
def test_it_is_kd_at_a_high_temperature(temperature: float) -> None:
    """For logits whose mean is 0: T^2 KL approaches the squared distance over 2 L (Hinton et al., section 2.1)."""
    pair = torch.randn(2, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student, teacher = pair - pair.mean(2, keepdim=True)
    found = kd_loss(student, teacher, temperature).item()
    assert found == pytest.approx(logit_loss(student, teacher).item() / 10, rel=10 / temperature)


def test_what_it_asks_for() -> None:
    assert Logits().targets({}, {}) == (vector("after_fc"),)
    assert Logits().stages({}, {}, FACTS) == (Stage(weights={"logits": Weight(1.0 / FACTS.classes)}, task=1.0),)
    with pytest.raises(UsageError, match=r"logits\.task"):
        Logits(task=-1)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_stored_logits_give_the_loss_of_the_taps(pair) -> None:
    check_compact(Logits(), lambda ours, theirs: {"logits": logit_loss(ours["after_fc"], theirs["after_fc"])}, pair)


def test_float16_storage() -> None:
    """The loss differs by less than 1e-3 of its value, measured at 6e-5."""
    random, worst = np.random.default_rng(0), 0.0
    for _ in range(20):
        student, teacher = torch.from_numpy(4 * random.normal(size=(2, 32, 100)))
        exact, stored = logit_loss(student, teacher), logit_loss(student, teacher.half().double())
        worst = max(worst, abs(stored.item() / exact.item() - 1))
    assert 0 < worst < 1e-3


@pytest.mark.parametrize("options", [{}, {"task": "0", "weight": "2"}], ids=str)
def test_it_conforms(options: dict[str, str]) -> None:
    check_method(Logits().with_options(options))
