"""AB's loss against the reference's levels and a naive loop; its bits, connectors, stages and refusals."""

from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from kdtool.errors import UsageError
from kdtool.methods.ab import AB, ab_loss, pack_bits, signs, unpack_bits
from kdtool.models import create, tap_shapes
from kdtool.models.taps import parameters_behind
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_keys, check_method
from kdtool.workflows.trial import PAIRS, trial

# RepDistiller's ABLoss, float64, on the closed-form inputs; the levels hold the weights 1/4, 1/2, 1 and 3 / (1000 B).
GOLDEN = [0.15217645283751113, 0.10035022736184333, 0.07849804267191517]

seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(*[st.integers(1, 5)] * 4)


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


def reference_inputs(closed_form) -> tuple[list[Tensor], list[Tensor]]:
    sizes = ((4, 3, 8, 8), (4, 4, 4, 4), (4, 6, 2, 2))
    student = [closed_form(size, phase) for size, phase in zip(sizes, (0.1, 0.5, 0.8), strict=True)]
    return student, [closed_form(size, phase) for size, phase in zip(sizes, (1.1, 1.5, 1.8), strict=True)]


def test_the_value_of_the_reference(closed_form) -> None:
    student, teacher = reference_inputs(closed_form)
    assert float(ab_loss(student, teacher)) == pytest.approx(sum(GOLDEN), rel=1e-9)
    assert float(ab_loss(student[2:], teacher[2:])) == pytest.approx(GOLDEN[2], rel=1e-9)
    assert float(ab_loss(student[:1], teacher[:1])) == pytest.approx(4 * GOLDEN[0], rel=1e-9)


def test_the_values_in_the_shared_file(closed_form, golden) -> None:
    assert golden["AB_levels"] == GOLDEN
    assert float(ab_loss(*reference_inputs(closed_form))) == pytest.approx(sum(golden["AB_levels"]), rel=1e-9)


def naive(student: list[np.ndarray], teacher: list[np.ndarray]) -> float:
    total = 0.0
    for number, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        level = 0.0
        for s, t in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True):
            if t > 0 and s < 1:
                level += (1 - s) ** 2
            if t <= 0 and s > -1:
                level += (1 + s) ** 2
        total += level / 2 ** (len(student) - 1 - number)
    return total * 3 / 1000 / len(student[0])


@given(batch=st.integers(1, 3), sizes=st.lists(st.tuples(*[st.integers(1, 3)] * 3), min_size=1, max_size=4), seed=seeds)
def test_a_naive_loop_gives_the_same(batch: int, sizes, seed: int) -> None:
    random = np.random.default_rng(seed)
    student, teacher = ([random.normal(scale=2, size=(batch, *size)) for size in sizes] for _ in range(2))
    teacher[0][0, 0, 0, 0] = 0.0  # a neuron at the boundary counts as inactive
    ours, theirs = ([torch.from_numpy(rows) for rows in side] for side in (student, teacher))
    found = ab_loss(ours, theirs)
    assert float(found) == pytest.approx(naive(student, teacher), rel=1e-12)
    assert torch.equal(ab_loss(ours, [rows > 0 for rows in theirs]), found)


def test_neurons_beyond_the_margin_lose_nothing() -> None:
    teacher = torch.tensor([[-2.0, 0.3], [5.0, -0.1]])[:, :, None, None]
    assert float(ab_loss([torch.tensor([[-1.0, 1.0], [7.0, -3.0]])[:, :, None, None]], [teacher])) == 0
    assert float(ab_loss([teacher], [teacher])) == pytest.approx((0.7**2 + 0.9**2) * 3 / 2000, rel=1e-6)


def test_the_gradient_is_that_of_differences(closed_form) -> None:
    student = [closed_form((2, 3, 2, 2), 0.1).requires_grad_(), closed_form((2, 2, 2, 1), 0.4).requires_grad_()]
    teacher = [closed_form((2, 3, 2, 2), 0.7).requires_grad_(), closed_form((2, 2, 2, 1), 0.9).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *maps: ab_loss(maps, teacher), student)
    ab_loss(student, teacher).backward()
    assert all(rows.grad is None for rows in teacher)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_maps_stay_finite_and_keep_their_type(dtype: torch.dtype) -> None:
    student = (1e6 * torch.tensor([[1, -1, 0.0]], dtype=dtype))[:, :, None, None].requires_grad_()
    loss = ab_loss([student], [torch.tensor([[-1, 1, 0.0]])[:, :, None, None]])
    loss.backward()
    assert loss.dtype == dtype
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("sizes", [[(2, 3, 4, 4)], [(2, 3, 4, 4), (2, 1, 4, 4)], [(2, 3, 4, 4), (2, 3, 2, 2)]])
def test_lists_that_do_not_fit_are_refused(sizes) -> None:
    student = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)]
    with pytest.raises(UsageError, match="equal shapes level by level") as error:
        ab_loss(student, [torch.zeros(size) for size in sizes])
    assert "\n" not in str(error.value)


# Bits


@given(shape=shapes, seed=seeds)
def test_bits_are_packed_as_numpy_does_and_come_back(shape: tuple[int, ...], seed: int) -> None:
    bits = np.random.default_rng(seed).random(shape) < 0.5
    packed = pack_bits(torch.from_numpy(bits))
    assert packed.dtype == torch.uint8
    assert np.array_equal(packed.numpy(), np.packbits(bits.reshape(len(bits), -1), axis=1, bitorder="big"))
    assert np.array_equal(unpack_bits(packed, shape[1:]).numpy(), bits)


def test_signs_are_those_above_zero() -> None:
    rows = torch.tensor([[[[0.0, -0.0, 1e-30, -1e-30, 5.0, -5.0, 65520.0, 1e38, 2.0]]]])  # more than float16 can hold
    found = signs("stage1.preact").encode({"stage1.preact": rows}, {})
    assert {name: value.tolist() for name, value in found.items()} == {"signs": [[0b00101011, 0b10000000]]}
    assert signs("stage1.preact").key == "stage1.preact.signs"


# The method

METHODS = [
    AB(),
    AB(weight=2.0, init_epochs=3, init_learning_rate=0.01),
    AB(layers=("stage1.preact:stage2.preact", "stage3.preact")),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_conforms(method: AB) -> None:
    check_method(method)


def test_equal_keys_mean_equal_content() -> None:
    check_keys(METHODS)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_stored_bits_give_the_loss_of_whole_maps(pair) -> None:
    """Bits are exact in every dtype of the cache, so there is no rounding to bound."""
    adapters = trial(AB(), pair).adapters().double()

    def full(student, teacher):
        with torch.no_grad():
            ours = [adapters.of(p)(student[p.student]).numpy() for p in adapters.pairs]
        wanted = naive(ours, [teacher[p.teacher].numpy() for p in adapters.pairs])
        return {"ab": torch.tensor(wanted, dtype=torch.float64)}

    check_compact(AB(), full, pair)
    (target, *_) = AB().targets(pair.student, pair.teacher)
    rows = torch.randn(3, *pair.teacher["stage1.preact"])
    exact, rounded = (target.encode({"stage1.preact": kept}, {})["signs"] for kept in (rows, rows.half().float()))
    assert torch.equal(exact, rounded)


PARAMETERS = [
    ("resnet8x4", "resnet32x4", 0, 14_336),
    ("wrn_16_2", "wrn_40_2", 0, 7_168),
    ("wrn_40_1", "wrn_40_2", 11_424, 7_168),
    ("resnet20", "resnet56", 0, 3_584),
]


@pytest.mark.parametrize(("student", "teacher", "count", "size"), PARAMETERS)
def test_the_connectors_and_bytes_of_the_usual_pairs(student, teacher, count, size, make_facts) -> None:
    both = shapes_of(student), shapes_of(teacher)
    adapters = AB().adapters(*both, make_facts([0], 1), {})
    assert sum(parameter.numel() for parameter in adapters.parameters()) == count
    assert not any(isinstance(module, nn.ReLU) for module in adapters.modules())
    stored = [t.encode({t.taps[0]: torch.zeros(1, *both[1][t.taps[0]])}, {})["signs"] for t in AB().targets(*both)]
    assert {rows.dtype for rows in stored} == {torch.uint8}
    assert sum(rows.numel() for rows in stored) == size


def test_its_stages(make_facts) -> None:
    facts, both = make_facts([0, 1], 2, epochs=240), (PAIRS[0].student, PAIRS[0].teacher)
    init, last = AB(weight=2.0).stages(*both, facts)
    assert (init.name, init.epochs, init.task, init.discard) == ("init", 30, 0.0, True)
    assert init.weights == {"ab": Weight(2.0)}
    assert init.trains == ("stage1", "stage2", "stage3")
    assert (init.recipe["schedule"], init.recipe["learning_rate"]) == ("constant", 0.05)
    assert last == Stage(weights={})
    init, _ = METHODS[1].stages(*both, facts)
    assert (init.epochs, init.recipe["learning_rate"]) == (3, 0.01)
    assert METHODS[2].stages(*both, facts)[0].trains == ("stage1", "stage3")


@pytest.mark.parametrize(("network", "frozen"), [("wrn_16_1", {"bn", "fc"}), ("resnet8", {"fc"})])
def test_the_classifier_and_the_last_norm_do_not_train_at_first(network: str, frozen: set[str], make_facts) -> None:
    shapes, model = shapes_of(network), create(network)
    init, _ = AB().stages(shapes, shapes, make_facts([0], 1))
    behind = parameters_behind(model, init.trains, (3, 32, 32))
    assert {name.split(".")[0] for name, _ in model.named_parameters() if name not in behind} == frozen


WITHOUT = {name: shape for name, shape in PAIRS[0].student.items() if name != "stage2.preact"}


@pytest.mark.parametrize(
    ("method", "student", "message"),
    [
        (AB(), WITHOUT, r"the student does not name stage2\.preact; take another network"),
        (AB(layers=("stage2",)), PAIRS[0].student, r"name stage2\.preact, not stage2"),
        (AB(layers=("stage4.preact",)), PAIRS[0].student, "unknown layer of the student"),
        (AB(layers=("stage3.preact:stage1.preact",)), PAIRS[0].student, "is 2x2, stage1.preact of the teacher 8x8"),
    ],
)
def test_what_is_refused(method: AB, student, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        method.targets(student, PAIRS[0].teacher)
    assert "\n" not in str(error.value)


def test_a_teacher_without_such_maps_and_options_without_sense_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the teacher does not name stage2\.preact"):
        AB().targets(PAIRS[0].student, WITHOUT)
    with pytest.raises(UsageError, match=r"ab\.init_epochs is at least 1"):
        AB(init_epochs=0)
    with pytest.raises(UsageError, match=r"ab\.init_learning_rate is above 0"):
        AB(init_learning_rate=-1.0)


def test_what_trains_first_ends_where_the_network_has_a_name(make_facts) -> None:
    student = {"hidden.preact": (4, 8, 8), "stage2.preact": (4, 4, 4), "stage2": (4, 4, 4), "after_fc": (10,)}
    chosen = AB(layers=("hidden.preact:stage1.preact", "stage2.preact"))
    first, _ = chosen.stages(student, {**student, "stage1.preact": (4, 8, 8)}, make_facts([0, 1], 2))
    assert first.trains == ("hidden.preact", "stage2")
