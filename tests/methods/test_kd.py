"""KD's loss against the reference's value, a naive loop and finite differences; what the method declares."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from kdtool.errors import UsageError
from kdtool.methods import method
from kdtool.methods.kd import KD, kd_loss
from kdtool.targets import Stage, Weight

# RepDistiller's DistillKL, T = 4, float64, on the closed-form inputs of `closed_form`: phases 0.1 and 0.7, scale 3.
GOLDEN = 0.6313197334845855

floats = st.floats(-30, 30, width=32).map(float)


def naive(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 / B * sum_i sum_c p_ic log(p_ic / q_ic), one number at a time."""
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        highest_s, highest_t = max(z_s), max(z_t)
        norm_s = math.log(sum(math.exp((z - highest_s) / temperature) for z in z_s)) + highest_s / temperature
        norm_t = math.log(sum(math.exp((z - highest_t) / temperature) for z in z_t)) + highest_t / temperature
        for s, t in zip(z_s, z_t, strict=True):
            log_q, log_p = s / temperature - norm_s, t / temperature - norm_t
            total += math.exp(log_p) * (log_p - log_q)
    return total * temperature**2 / len(student)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 6)))
    return draw(arrays(np.float64, shape, elements=floats)), draw(arrays(np.float64, shape, elements=floats))


def test_the_value_of_the_reference(closed_form) -> None:
    student, teacher = closed_form((6, 10), 0.1, 3), closed_form((6, 10), 0.7, 3)
    assert float(kd_loss(student, teacher)) == pytest.approx(GOLDEN, rel=1e-9)


def test_the_value_in_the_shared_file(closed_form, golden) -> None:
    student, teacher = closed_form((6, 10), 0.1, 3), closed_form((6, 10), 0.7, 3)
    assert golden["KD_T4"] == GOLDEN
    assert float(kd_loss(student, teacher)) == pytest.approx(golden["KD_T4"], rel=1e-9)


@given(pair=pairs(), temperature=st.floats(0.5, 20))
def test_a_naive_loop_gives_the_same(pair: tuple[np.ndarray, np.ndarray], temperature: float) -> None:
    found = float(kd_loss(torch.from_numpy(pair[0]), torch.from_numpy(pair[1]), temperature))
    assert found == pytest.approx(naive(*pair, temperature), rel=1e-9, abs=1e-11)
    assert found >= -1e-11


@given(pair=pairs(), temperature=st.floats(0.5, 20))
def test_a_student_that_is_the_teacher_loses_nothing(pair: tuple[np.ndarray, np.ndarray], temperature: float) -> None:
    logits = torch.from_numpy(pair[0])
    shifted = logits + torch.from_numpy(pair[1][:, :1])  # softmax does not see a constant
    assert float(kd_loss(logits, logits, temperature)) == 0
    assert float(kd_loss(shifted, logits, temperature)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("temperature", [0.7, 4.0])
def test_the_gradient_is_that_of_differences_and_spares_the_teacher(closed_form, temperature: float) -> None:
    student = closed_form((3, 4), 0.1, 3).requires_grad_()
    teacher = closed_form((3, 4), 0.7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: kd_loss(s, teacher, temperature), (student,))
    kd_loss(student, teacher, temperature).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(size: float, dtype: torch.dtype) -> None:
    student = (size * torch.tensor([[1, -1, 0], [0, 1, -1.0]], dtype=dtype)).requires_grad_()
    teacher = size * torch.tensor([[-1, 1, 0], [0, 1, -1.0]], dtype=dtype)
    loss = kd_loss(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_of_the_input_is_kept(dtype: torch.dtype) -> None:
    logits = torch.ones(2, 3, dtype=dtype)
    assert kd_loss(logits, 2 * logits).dtype == dtype


def test_the_high_temperature_limit_is_the_distance_of_the_centred_logits() -> None:
    """T^2 KL -> 1 / (2 L) ||z_S - z_T||^2 over logits without their mean (Hinton et al., section 2.1)."""
    random = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(random.normal(size=(4, 7))) for _ in range(2))
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert float(kd_loss(student, teacher, 1e4)) == pytest.approx(float((difference**2).sum() / (2 * 7 * 4)), rel=1e-3)


def test_what_the_method_declares(make_facts, make_batch) -> None:
    shapes = {"after_fc": (3,)}
    kd = KD()
    (target,) = kd.targets(shapes, shapes)
    assert (target.key, target.taps, target.fit) == ("logits", ("after_fc",), None)
    assert kd.student_taps(shapes, shapes) == ("after_fc",)
    assert kd.fits(shapes, shapes) == ()
    facts = make_facts([0, 1, 2], 3)
    assert kd.stages({}, {}, facts) == (Stage(weights={"kd": Weight(0.9)}, task=0.1),)
    assert not list(kd.adapters(shapes, shapes, facts, {}).state_dict())
    student, teacher = torch.randn(2, 3), torch.randn(2, 3)
    for asked in (kd, method("kd").with_options({"temperature": "2.5"})):
        terms = asked.terms(
            {"after_fc": student}, {"logits": {"values": teacher}}, make_batch([0, 1]), torch.nn.Module()
        )
        assert set(terms) == {"kd"}
        assert torch.equal(terms["kd"], kd_loss(student, teacher, asked.temperature))


@pytest.mark.parametrize("temperature", ["0", "-4", "nan", "inf"])
def test_a_temperature_that_is_none_is_refused(temperature: str) -> None:
    with pytest.raises(UsageError, match=r"kd\.temperature"):
        method("kd").with_options({"temperature": temperature})
