"""FitNet's hint loss and regressor against naive loops; its stages, what it stores, what it refuses."""

from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from kdtool.errors import UsageError
from kdtool.methods.fitnet import FitNet, hint_loss
from kdtool.methods.maps import MapPair, whole_map
from kdtool.methods.regressor import check_regressor, regressor
from kdtool.models import create, tap_shapes
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_keys, check_method
from kdtool.workflows.trial import PAIRS, trial

shape = st.tuples(*[st.integers(1, 4)] * 4)
seeds = st.integers(0, 2**32 - 1)


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


def pair_of(student: tuple[int, ...], teacher: tuple[int, ...]) -> MapPair:
    return MapPair("stage2", "stage2", student, teacher)


def two_maps(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    student, teacher = (torch.from_numpy(random.normal(size=shape)) for _ in range(2))
    return student, teacher


# The loss


@given(shape=shape, seed=seeds)
def test_a_naive_loop_gives_the_same(shape: tuple[int, ...], seed: int) -> None:
    student, teacher = two_maps(shape, seed)
    total, count = 0.0, 0
    for ours, theirs in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        total, count = total + (ours - theirs) ** 2, count + 1
    assert float(hint_loss(student, teacher)) == pytest.approx(total / count, rel=1e-12)
    assert float(hint_loss(teacher, teacher)) == 0


def test_a_value_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), torch.tensor([[[[0.0, 4.0]], [[3.0, 1.0]]]])
    assert float(hint_loss(student, teacher)) == (1 + 4 + 0 + 9) / 4


def test_the_gradient_is_that_of_differences_and_spares_the_teacher() -> None:
    student, teacher = (rows.requires_grad_() for rows in two_maps((2, 3, 2, 2), 0))
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher), (student,))
    hint_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_maps_of_unequal_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"not \(2, 1, 4, 4\) and \(2, 3, 4, 4\)") as error:
        hint_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))
    assert "\n" not in str(error.value)


# The regressor


def naive_convolution(rows: Tensor, layer: nn.Module) -> Tensor:
    """What a convolution, transposed or not, gives: one product after the other."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    weight, bias, stride, pad = layer.weight, layer.bias, layer.stride[0], layer.padding[0]
    transposed = isinstance(layer, nn.ConvTranspose2d)
    high, wide, tall, broad = *rows.shape[2:], *weight.shape[2:]
    size = [
        (side - 1) * stride - 2 * pad + kernel if transposed else (side + 2 * pad - kernel) // stride + 1
        for side, kernel in ((high, tall), (wide, broad))
    ]
    outputs = weight.shape[1] if transposed else weight.shape[0]
    found = bias[None, :, None, None].expand(len(rows), outputs, *size).clone()
    for y in range(high):
        for x in range(wide):
            for i in range(tall):
                for j in range(broad):
                    if transposed:
                        to = (y * stride - pad + i, x * stride - pad + j)
                        part = rows[:, :, y, x] @ weight[:, :, i, j]
                    else:
                        up, left = y + pad - i, x + pad - j
                        to = (up // stride if up % stride == 0 else -1, left // stride if left % stride == 0 else -1)
                        part = rows[:, :, y, x] @ weight[:, :, i, j].T
                    if 0 <= to[0] < size[0] and 0 <= to[1] < size[1]:
                        found[:, :, to[0], to[1]] += part
    return found


SIZES = [
    ((4, 4), (4, 4), (1, 1)),
    ((8, 8), (4, 4), (3, 3)),
    ((4, 4), (8, 8), (4, 4)),
    ((7, 7), (4, 4), (4, 4)),
    ((9, 5), (3, 4), (7, 2)),
    ((2, 2), (1, 1), (3, 3)),
]


@pytest.mark.parametrize(("size", "teacher_size", "kernel"), SIZES)
@torch.no_grad()
def test_the_regressor_for_every_relation_of_sizes(size, teacher_size, kernel) -> None:
    student, teacher = (3, *size), (5, *teacher_size)
    layers = regressor(pair_of(student, teacher)).double()
    rows, _ = two_maps((2, *student), 0)
    assert tuple(layers.convolution.weight.shape[2:]) == kernel
    flat = naive_convolution(rows, layers.convolution)
    assert flat.shape == (2, *teacher)
    mean, variance = flat.mean((0, 2, 3), keepdim=True), flat.var((0, 2, 3), keepdim=True, correction=0)
    wanted = ((flat - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
    assert torch.allclose(layers(rows), wanted, rtol=1e-10, atol=1e-12)
    plain = regressor(pair_of(student, teacher), norm=False, relu=False).double()
    plain.load_state_dict({key: value for key, value in layers.state_dict().items() if "convolution" in key})
    assert torch.allclose(plain(rows), flat, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [((4, 4), (7, 7)), ((4, 4), (16, 16)), ((4, 8), (8, 4)), ((4, 4), (5, 3))])
def test_sizes_that_no_regressor_fits_are_refused(sizes) -> None:
    with pytest.raises(UsageError, match=r"stage2 of the student is 4x[48], stage2 of the teacher .*--layer") as error:
        check_regressor("fitnet", pair_of((3, *sizes[0]), (5, *sizes[1])))
    assert "\n" not in str(error.value)


PARAMETERS = [
    ("resnet8x4", "resnet32x4", 16_768),
    ("wrn_16_2", "wrn_40_2", 4_288),
    ("wrn_40_1", "wrn_40_2", 2_240),
    ("resnet20", "resnet56", 1_120),
]


@pytest.mark.parametrize(("student", "teacher", "count"), PARAMETERS)
def test_the_parameters_and_bytes_of_the_usual_pairs(student, teacher, count, make_facts) -> None:
    both = shapes_of(student), shapes_of(teacher)
    adapters = FitNet().adapters(*both, make_facts([0], 1), {})
    assert sum(parameter.numel() for parameter in adapters.parameters()) == count
    (target,) = FitNet().targets(*both)
    assert target == whole_map("stage2")
    rows = target.encode({"stage2": torch.zeros(1, *both[1]["stage2"])}, {})["values"]
    values = {"resnet32x4": 32_768, "wrn_40_2": 16_384, "resnet56": 8_192}[teacher]
    assert (rows.numel(), target.dtype) == (values, "float16")  # twice as many bytes


# The method


@pytest.mark.parametrize(
    "method",
    [
        FitNet(),
        FitNet(plain=True, weight=1.0),
        FitNet(layers=("stage1", "stage2", "stage3"), plain=True),
        FitNet(layers=("stage2:stage3", "stem")),
        FitNet(two_stage=True),
        FitNet(two_stage=True, init_epochs=2, init_learning_rate=0.01, plain=True),
        FitNet(two_stage=True, init_recipe="srm", init_batch=16, plain=True),
    ],
    ids=str,
)
def test_it_conforms(method: FitNet) -> None:
    check_method(method)


def test_its_key_is_that_of_the_map() -> None:
    check_keys([FitNet(), FitNet(plain=True), FitNet(layers=("stage1:stage2", "stage2"))])
    assert FitNet(layers=("stage1:stage2", "stage2")).targets(PAIRS[0].student, PAIRS[0].teacher) == (
        whole_map("stage2"),
    )


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@pytest.mark.parametrize("plain", [False, True])
def test_the_stored_map_gives_the_loss_of_the_whole_one(pair, plain: bool) -> None:
    method = FitNet(layers=("stage1", "stage2"), plain=plain)
    adapters = trial(method, pair).adapters().double()

    def full(student, teacher):
        parts = [hint_loss(adapters.of(p)(student[p.student]), teacher[p.teacher]) for p in adapters.pairs]
        return {"fitnet": parts[0] + parts[1]}

    check_compact(method, full, pair)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_maps_stored_in_half_precision(seed: int) -> None:
    """Stays within 2 e sqrt(L) rms(t) + e^2 rms(t)^2, e = 2^-11; 3e-5 relative for normal values (1e-5 measured)."""
    student, teacher = two_maps((8, 16, 8, 8), seed)
    loss, rms = float(hint_loss(student, teacher)), float(teacher.square().mean().sqrt())
    error = abs(float(hint_loss(student, teacher.half().double())) - loss)
    assert error <= 2 * 2**-11 * loss**0.5 * rms + (2**-11 * rms) ** 2
    assert error <= 3e-5 * loss


def test_the_plain_regressor_is_the_convolution_alone(make_facts) -> None:
    both, facts = ({"stage2": (63, 16, 16)}, {"stage2": (128, 16, 16)}), make_facts([0], 1)
    usual, plain = (method.adapters(*both, facts, {}).state_dict() for method in (FitNet(), FitNet(plain=True)))
    assert list(plain) == [f"by_pair.stage2.convolution.{name}" for name in ("weight", "bias")]
    assert sum(value.numel() for value in plain.values()) == 63 * 128 + 128
    assert plain.keys() < usual.keys()


def test_one_stage_by_default(make_facts, make_batch) -> None:
    facts = make_facts([0, 1], 2, epochs=240)
    both = PAIRS[0].student, PAIRS[0].teacher
    assert FitNet().stages(*both, facts) == (Stage(weights={"fitnet": Weight(100.0)}),)
    assert FitNet(weight=3).stages(*both, facts) == (Stage(weights={"fitnet": Weight(3)}),)
    assert FitNet().student_taps(*both) == ("stage2",)


@pytest.mark.parametrize(("epochs", "wanted"), [(240, 30), (120, 15), (8, 1), (1, 1)])
def test_two_stages_on_demand(epochs: int, wanted: int, make_facts) -> None:
    facts = make_facts([0, 1], 2, epochs=epochs)
    method = FitNet(two_stage=True, layers=("stage1", "stage2"))
    hint, last = method.stages(PAIRS[0].student, PAIRS[0].teacher, facts)
    assert (hint.name, hint.epochs, hint.task, hint.discard, hint.select) == ("hint", wanted, 0.0, True, "last")
    assert hint.weights == {"fitnet": Weight(1.0)}
    assert hint.trains == ("stage1", "stage2")
    assert hint.recipe == {
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "schedule": "constant",
        "warmup": 0.0,
        "resets": False,
    }
    assert last == Stage(weights={}, task=1.0)
    changed = method.with_options({"init_epochs": "7", "init_learning_rate": "0.01"})
    hint, _ = changed.stages(PAIRS[0].student, PAIRS[0].teacher, facts)
    assert (hint.epochs, hint.recipe["learning_rate"]) == (7, 0.01)


@pytest.mark.parametrize(("batch", "wanted"), [("none", 512), ("384", 384)])
def test_the_first_stage_as_in_srms_comparison(batch: str, wanted: int, make_facts) -> None:
    facts = make_facts([0] * 1000, 2, epochs=200, batch=128)
    method = FitNet(two_stage=True).with_options({"init_recipe": "srm", "init_batch": batch})
    hint, last = method.stages(PAIRS[0].student, PAIRS[0].teacher, facts)
    assert (hint.name, hint.epochs, hint.recipe["batch"], hint.recipe["optimizer"]) == ("hint", 160, wanted, "adam")
    assert (hint.weights, hint.trains, hint.task, hint.discard) == ({"fitnet": Weight(1.0)}, ("stage2",), 0.0, True)
    assert (hint.recipe["learning_rate"], hint.recipe["weight_decay"], hint.recipe["resets"]) == (1e-3, 1e-4, True)
    assert hint.recipe["milestones"] == (30 / 160, 130 / 160)
    assert last == Stage(weights={}, task=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ("stage4",)}, "unknown layer of the student 'stage4'"),
        ({"layers": ("before_fc",)}, "fitnet works on maps"),
        ({"layers": ("stage3:stage1",)}, "stage3 of the student is 2x2, stage1 of the teacher 8x8"),
        ({"init_epochs": 3}, "fitnet.init_epochs needs fitnet.two_stage=true"),
        ({"init_learning_rate": 0.01}, "fitnet.init_learning_rate needs fitnet.two_stage=true"),
        ({"init_recipe": "srm", "init_batch": 2}, "fitnet.init_recipe and fitnet.init_batch needs"),
        ({"two_stage": True, "init_recipe": "adam"}, "unknown fitnet.init_recipe 'adam'"),
        ({"two_stage": True, "init_batch": 8}, "fitnet.init_batch needs fitnet.init_recipe=srm"),
        ({"two_stage": True, "init_recipe": "srm", "init_batch": 0}, "fitnet.init_batch is at least 1"),
        (
            {"two_stage": True, "init_recipe": "srm", "init_learning_rate": 0.1},
            "fitnet.init_learning_rate is of a constant rate",
        ),
        ({"two_stage": True, "weight": 2.0}, "fitnet.weight weighs hints against the task"),
        ({"two_stage": True, "init_epochs": 0}, "fitnet.init_epochs is at least 1, not 0"),
        ({"two_stage": True, "init_learning_rate": 0.0}, "fitnet.init_learning_rate is above 0"),
    ],
)
def test_what_is_refused(options, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        FitNet(**options).targets(PAIRS[0].student, PAIRS[0].teacher)
    assert "\n" not in str(error.value)
