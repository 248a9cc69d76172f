"""VID's loss against the reference's value and a naive loop; its variances, what it stores, what it refuses."""

import math
from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from kdtool.errors import UsageError
from kdtool.methods.maps import whole_map
from kdtool.methods.vid import LOG_SCALE_INIT, VID, vid_loss
from kdtool.models import create, tap_shapes
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_differences, check_keys, check_method
from kdtool.workflows.trial import PAIRS, trial

# RepDistiller's VIDLoss, float64, on the closed-form inputs: maps of phases 0.2 and 0.9 after a ReLU, variance 5.
GOLDEN = 0.8369486714651099
GOLDEN_LOG_SCALE = 4.9932291827136215

seeds = st.integers(0, 2**32 - 1)


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


def reference_inputs(closed_form) -> tuple[Tensor, Tensor, Tensor]:
    student = closed_form((4, 5, 8, 8), 0.2).relu()
    weights = [closed_form(shape, phase, 0.3) for shape, phase in (((7, 5), 0.4), ((7, 7), 1.4), ((7, 7), 2.4))]
    found = torch.einsum("dc,bchw->bdhw", weights[0], student)
    for weight in weights[1:]:
        found = torch.einsum("dc,bchw->bdhw", weight, found.relu())
    return found, closed_form((4, 7, 8, 8), 0.9).relu(), torch.full((7,), LOG_SCALE_INIT, dtype=torch.float64)


def test_the_value_of_the_reference(closed_form) -> None:
    assert float(vid_loss(*reference_inputs(closed_form))) == pytest.approx(GOLDEN, rel=1e-9)
    assert pytest.approx(GOLDEN_LOG_SCALE, rel=1e-14) == LOG_SCALE_INIT


def test_the_values_in_the_shared_file(closed_form, golden) -> None:
    assert (golden["VID"], golden["VID_log_scale_init"]) == (GOLDEN, GOLDEN_LOG_SCALE)
    assert float(vid_loss(*reference_inputs(closed_form))) == pytest.approx(golden["VID"], rel=1e-9)


def test_the_networks_of_the_method_give_the_value_of_the_reference(closed_form, make_facts, make_batch) -> None:
    both = {"stage1": (5, 8, 8)}, {"stage1": (7, 8, 8)}
    adapters = VID().adapters(*both, make_facts([0], 1), {}).double()
    given = adapters.of(adapters.pairs[0])
    with torch.no_grad():
        for place, (inputs, phase) in {0: (5, 0.4), 2: (7, 1.4), 4: (7, 2.4)}.items():
            given.mean[place].weight.copy_(closed_form((7, inputs), phase, 0.3)[..., None, None])
        given.log_scale.fill_(LOG_SCALE_INIT)
    maps = {"stage1": closed_form((4, 5, 8, 8), 0.2).relu()}
    cached = {"stage1.map": {"values": closed_form((4, 7, 8, 8), 0.9).relu()}}
    (found,) = VID().terms(maps, cached, make_batch([0, 1, 2, 3]), adapters).values()
    assert found.item() == pytest.approx(GOLDEN, rel=1e-9)


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


def naive(mean: np.ndarray, teacher: np.ndarray, log_scale: np.ndarray) -> float:
    wanted = naive_pool(teacher, *mean.shape[2:])
    total = 0.0
    for place in np.ndindex(mean.shape):
        scale = log_scale[place[1]]
        variance = max(scale, 0) + math.log1p(math.exp(-abs(scale))) + 1e-5
        total += 0.5 * ((mean[place] - wanted[place]) ** 2 / variance + math.log(variance))
    return total / mean.size


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    small=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    more=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    seed=seeds,
)
def test_a_naive_loop_gives_the_same(batch: int, channels: int, small, more, seed: int) -> None:
    random = np.random.default_rng(seed)
    mean = random.normal(size=(batch, channels, *small))
    teacher = random.normal(size=(batch, channels, small[0] + more[0], small[1] + more[1]))
    log_scale = random.normal(scale=8, size=channels)
    found = float(vid_loss(*map(torch.from_numpy, (mean, teacher, log_scale))))
    assert found == pytest.approx(naive(mean, teacher, log_scale), rel=1e-9, abs=1e-9)


@given(seed=seeds)
def test_the_least_value_is_where_the_prediction_is_the_map(seed: int) -> None:
    random = np.random.default_rng(seed)
    mean, log_scale = torch.from_numpy(random.normal(size=(2, 3, 4, 4))), torch.from_numpy(random.normal(size=3))
    variance = log_scale.exp().add(1).log() + 1e-5
    least = float(variance.log().mean() / 2)
    assert float(vid_loss(mean, mean, log_scale)) == pytest.approx(least, rel=1e-12)
    assert float(vid_loss(mean, mean + 0.1, log_scale)) > least


def test_the_gradient_is_that_of_differences_and_spares_the_teacher(closed_form) -> None:
    mean = closed_form((2, 3, 2, 2), 0.1).requires_grad_()
    teacher = closed_form((2, 3, 4, 4), 0.7).requires_grad_()
    log_scale = closed_form((3,), 0.3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: vid_loss(m, teacher, s), (mean, log_scale))
    vid_loss(mean, teacher, log_scale).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scales_stay_finite(scale: float, dtype: torch.dtype) -> None:
    log_scale = torch.full((3,), scale, dtype=dtype, requires_grad=True)
    mean = torch.ones(2, 3, 2, 2, dtype=dtype, requires_grad=True)
    loss = vid_loss(mean, torch.zeros(2, 3, 2, 2, dtype=dtype), log_scale)
    loss.backward()
    assert loss.dtype == dtype
    for value in (loss, mean.grad, log_scale.grad):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (2, 3, 1, 4), (1, 3, 4, 4)])
def test_maps_that_cannot_be_compared_are_refused(shape) -> None:
    with pytest.raises(UsageError, match=r"not \(2, 3, 2, 2\) with") as error:
        vid_loss(torch.zeros(2, 3, 2, 2), torch.zeros(shape), torch.zeros(3))
    assert "\n" not in str(error.value)


# The method

METHODS = [VID(), VID(train_scale=False), VID(layers=("stage2:stage3", "stem"), weight=0.5)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_conforms(method: VID) -> None:
    """Pixels that are 0 in all channels lie on the kink of the first ReLU, where differences see half a slope."""
    check_method(method, exact_gradient=False)
    for pair in PAIRS:
        check_differences(trial(method, pair, lambda taps: {tap: rows + 0.1 for tap, rows in taps.items()}))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_stored_map_gives_the_loss_of_the_whole_one(pair) -> None:
    adapters = trial(VID(), pair).adapters().double()

    def full(student, teacher):
        total = 0.0
        for p in adapters.pairs:
            given, size = adapters.of(p), p.size
            small = torch.from_numpy(naive_pool(student[p.student].numpy(), *size))
            wanted = naive_pool(teacher[p.teacher].numpy(), *size)
            with torch.no_grad():
                total += naive(given.mean(small).numpy(), wanted, given.log_scale.numpy())
        return {"vid": torch.tensor(total, dtype=torch.float64)}

    check_compact(VID(), full, pair)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_maps_stored_in_half_precision(seed: int) -> None:
    """Stays within 5e-6 for normal values at the variance of the beginning (2e-6 measured)."""
    random = np.random.default_rng(seed)
    mean, teacher = (torch.from_numpy(random.normal(size=(8, 16, 8, 8))) for _ in range(2))
    log_scale = torch.full((16,), LOG_SCALE_INIT, dtype=torch.float64)
    exact, stored = (float(vid_loss(mean, rows, log_scale)) for rows in (teacher, teacher.half().double()))
    assert abs(stored - exact) <= 5e-6


def test_its_keys_are_those_of_maps_of_the_smaller_size() -> None:
    check_keys(METHODS)
    larger = PAIRS[2]
    assert VID().targets(larger.student, larger.teacher) == (
        whole_map("stage1", (8, 8)),
        whole_map("stage2", (4, 4)),
        whole_map("stage3", (2, 2)),
    )
    smaller = PAIRS[3]
    assert VID().targets(smaller.student, smaller.teacher) == tuple(whole_map(f"stage{n}") for n in (1, 2, 3))


PARAMETERS = [
    ("resnet8x4", "resnet32x4", 258_496, 114_688),
    ("wrn_16_2", "wrn_40_2", 64_736, 57_344),
    ("wrn_40_1", "wrn_40_2", 53_984, 57_344),
    ("resnet20", "resnet56", 16_240, 28_672),
]


@pytest.mark.parametrize(("student", "teacher", "count", "values"), PARAMETERS)
def test_the_parameters_and_bytes_of_the_usual_pairs(student, teacher, count, values, make_facts) -> None:
    """The counts hold the variances, one for each channel of the teacher."""
    both, facts = (shapes_of(student), shapes_of(teacher)), make_facts([0], 1)
    counts = [
        sum(parameter.numel() for parameter in method.adapters(*both, facts, {}).parameters()) for method in METHODS[:2]
    ]
    assert counts == [count, count - sum(both[1][f"stage{n}"][0] for n in (1, 2, 3))]
    targets = VID().targets(*both)
    rows = [t.encode({t.taps[0]: torch.zeros(1, *both[1][t.taps[0]])}, {})["values"] for t in targets]
    assert sum(row.numel() for row in rows) == values
    assert {target.dtype for target in targets} == {"float16"}  # twice as many bytes


def test_what_trains(make_facts) -> None:
    both, facts = (PAIRS[0].student, PAIRS[0].teacher), make_facts([0], 1)
    assert VID().stages(*both, facts) == (Stage(weights={"vid": Weight(1.0)}),)
    trained, fixed = (method.adapters(*both, facts, {}) for method in METHODS[:2])
    assert trained.state_dict().keys() == fixed.state_dict().keys()
    names = {name for name, _ in trained.named_parameters()} - {name for name, _ in fixed.named_parameters()}
    assert names == {f"by_pair.stage{n}.log_scale" for n in (1, 2, 3)}
    assert not any("bias" in name for name in trained.state_dict())
    for state in (trained.state_dict(), fixed.state_dict()):
        variances = torch.nn.functional.softplus(state["by_pair.stage2.log_scale"].double()) + 1e-5
        assert torch.allclose(variances, torch.tensor(5.0, dtype=torch.float64), rtol=1e-6)


@pytest.mark.parametrize(
    ("layers", "message"),
    [(("stage4",), "unknown layer of the student 'stage4'"), (("after_fc",), "vid works on maps")],
)
def test_what_is_refused(layers, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        VID(layers=layers).targets(PAIRS[0].student, PAIRS[0].teacher)
    assert "\n" not in str(error.value)
