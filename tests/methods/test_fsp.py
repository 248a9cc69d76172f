"""FSP's loss against the reference's values and a naive loop; its matrices, stages and refusals."""

from functools import cache
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from kdtool.errors import UsageError
from kdtool.methods.fsp import FSP, fsp_loss, fsp_matrix
from kdtool.models import create, tap_shapes
from kdtool.models.taps import parameters_behind
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_keys, check_method
from kdtool.workflows.trial import PAIRS

# RepDistiller's FSP, float64, on the closed-form inputs: one value for each pair of neighbours.
GOLDEN = [0.022438890793296567, 0.10825187861265739]

seeds = st.integers(0, 2**32 - 1)
EQUAL_WIDTHS = [PAIRS[0], PAIRS[2]]


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


def reference_inputs(closed_form) -> tuple[list[Tensor], list[Tensor]]:
    sizes = ((4, 3, 8, 8), (4, 4, 4, 4), (4, 6, 2, 2))
    student = [closed_form(size, phase) for size, phase in zip(sizes, (0.1, 0.5, 0.8), strict=True)]
    return student, [closed_form(size, phase) for size, phase in zip(sizes, (1.1, 1.5, 1.8), strict=True)]


def test_the_value_of_the_reference(closed_form) -> None:
    student, teacher = reference_inputs(closed_form)
    assert float(fsp_loss(student, teacher)) == pytest.approx(sum(GOLDEN), rel=1e-9)
    assert float(fsp_loss(student[:2], teacher[:2])) == pytest.approx(GOLDEN[0], rel=1e-9)
    assert float(fsp_loss(student[1:], teacher[1:])) == pytest.approx(GOLDEN[1], rel=1e-9)


def test_the_values_in_the_shared_file(closed_form, golden) -> None:
    assert golden["FSP_levels"] == GOLDEN
    assert float(fsp_loss(*reference_inputs(closed_form))) == pytest.approx(sum(golden["FSP_levels"]), rel=1e-9)


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


def naive_matrix(bottom: np.ndarray, top: np.ndarray) -> np.ndarray:
    high, wide = (min(bottom.shape[axis], top.shape[axis]) for axis in (2, 3))
    below, above = naive_pool(bottom, high, wide), naive_pool(top, high, wide)
    found = np.zeros((len(bottom), above.shape[1], below.shape[1]))
    for sample, upper, lower in np.ndindex(found.shape):
        for place in np.ndindex(high, wide):
            found[sample, upper, lower] += above[sample, upper][place] * below[sample, lower][place] / (high * wide)
    return found


def naive(student: list[np.ndarray], teacher: list[np.ndarray]) -> float:
    total = 0.0
    for ours, theirs in zip(pairwise(student), pairwise(teacher), strict=True):
        difference = naive_matrix(*ours) - naive_matrix(*theirs)
        total += sum(d**2 for d in difference.flatten().tolist()) / difference.size
    return total


sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(
    batch=st.integers(1, 2),
    levels=st.lists(st.tuples(st.integers(1, 3), sizes, sizes), min_size=2, max_size=4),
    seed=seeds,
)
def test_a_naive_loop_gives_the_same(batch: int, levels, seed: int) -> None:
    """Maps grow and shrink from one level to the next, and the teacher's have sizes of their own."""
    random = np.random.default_rng(seed)
    student = [random.normal(size=(batch, width, *size)) for width, size, _ in levels]
    teacher = [random.normal(size=(batch, width, *size)) for width, _, size in levels]
    ours, theirs = ([torch.from_numpy(rows) for rows in side] for side in (student, teacher))
    assert float(fsp_loss(ours, theirs)) == pytest.approx(naive(student, teacher), rel=1e-10)
    assert float(fsp_loss(theirs, theirs)) == 0


def test_a_matrix_by_hand() -> None:
    bottom = torch.tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]])
    top = torch.tensor([[[[3.0, 1.0]], [[1.0, 1.0]], [[0.0, -1.0]]]])
    assert torch.equal(fsp_matrix(bottom, top), torch.tensor([[[5.0, 4.0], [3.0, 4.0], [-2.0, -4.0]]]) / 2)


def test_the_gradient_is_that_of_differences_and_spares_the_teacher(closed_form) -> None:
    student = [closed_form(size, 0.1).requires_grad_() for size in ((2, 2, 4, 4), (2, 3, 2, 2), (2, 2, 2, 2))]
    teacher = [closed_form(size, 0.7).requires_grad_() for size in ((2, 2, 4, 4), (2, 3, 2, 2), (2, 2, 2, 2))]
    assert torch.autograd.gradcheck(lambda *maps: fsp_loss(maps, teacher), student)
    fsp_loss(student, teacher).backward()
    assert all(rows.grad is None for rows in teacher)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_odd_maps_stay_finite_and_keep_their_type(scale: float, dtype: torch.dtype) -> None:
    student = [torch.full(size, scale, dtype=dtype, requires_grad=True) for size in ((2, 2, 4, 4), (2, 3, 2, 2))]
    loss = fsp_loss(student, [-rows.detach() / 2 for rows in student])
    loss.backward()
    assert loss.dtype == dtype
    for value in (loss, *(rows.grad for rows in student)):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("widths", "message"),
    [((2, 4), "the student's maps have 2, 3, the teacher's 2, 4"), ((2,), "have 2, 3, the teacher's 2;")],
)
def test_lists_that_do_not_fit_are_refused(widths, message: str) -> None:
    student = [torch.zeros(1, width, 2, 2) for width in (2, 3)]
    with pytest.raises(UsageError, match=message) as error:
        fsp_loss(student, [torch.zeros(1, width, 2, 2) for width in widths])
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="two maps or more, not on 1"):
        fsp_loss(student[:1], student[:1])


# The method

METHODS = [
    FSP(),
    FSP(weight=2.0, init_epochs=3, init_learning_rate=0.01),
    FSP(layers=("stage1", "stage3")),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_conforms(method: FSP) -> None:
    check_method(method)


def test_its_keys_do_not_depend_on_the_student() -> None:
    check_keys(METHODS)
    larger = PAIRS[2].teacher
    keys = [target.key for target in FSP().targets(PAIRS[0].student, larger)]
    assert keys == ["fsp.stem.stage1", "fsp.stage1.stage2", "fsp.stage2.stage3"]
    assert FSP().targets(PAIRS[0].student, larger) == FSP().targets(larger, larger)
    without = {tap: shape for tap, shape in larger.items() if tap != "stem"}
    assert [target.key for target in FSP().targets(without, larger)] == keys[1:]
    assert [target.key for target in METHODS[2].targets(larger, larger)] == ["fsp.stage1.stage3"]


@pytest.mark.parametrize("pair", EQUAL_WIDTHS, ids=lambda pair: pair.name)
def test_stored_matrices_give_the_loss_of_whole_maps(pair) -> None:
    def full(student, teacher):
        taps = ("stem", "stage1", "stage2", "stage3")
        wanted = naive(*([side[tap].numpy() for tap in taps] for side in (student, teacher)))
        return {"fsp": torch.tensor(wanted, dtype=torch.float64)}

    check_compact(FSP(), full, pair)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_matrices_stored_in_half_precision(seed: int) -> None:
    """Stays within 1e-4 relative for normal values after a ReLU (3e-5 measured)."""
    random = np.random.default_rng(seed)
    sizes = ((8, 16, 8, 8), (8, 32, 4, 4))
    ours, theirs = (
        fsp_matrix(*(torch.from_numpy(random.normal(size=size)).relu() for size in sizes)) for _ in range(2)
    )
    exact, stored = ((ours - rows).square().mean() for rows in (theirs, theirs.half().double()))
    assert abs(float(stored / exact) - 1) <= 1e-4


BYTES = [("resnet8x4", "resnet32x4", 43_008), ("wrn_16_2", "wrn_40_2", 10_752), ("resnet20", "resnet56", 2_816)]


@pytest.mark.parametrize(("student", "teacher", "values"), BYTES)
def test_the_bytes_of_the_usual_pairs(student, teacher, values: int, make_facts) -> None:
    both = shapes_of(student), shapes_of(teacher)
    rows = [
        t.encode({tap: torch.zeros(1, *both[1][tap]) for tap in t.taps}, {})["values"] for t in FSP().targets(*both)
    ]
    assert sum(row.numel() for row in rows) == values
    assert {target.dtype for target in FSP().targets(*both)} == {"float16"}  # twice as many bytes
    widths = [both[1][tap][0] for tap in ("stem", "stage1", "stage2", "stage3")]
    assert [tuple(row.shape[1:]) for row in rows] == [(upper, lower) for lower, upper in pairwise(widths)]
    assert not FSP().adapters(*both, make_facts([0], 1), {}).state_dict()


def test_its_stages(make_facts) -> None:
    facts, both = make_facts([0, 1], 2, epochs=240), (PAIRS[0].student, PAIRS[0].teacher)
    init, last = FSP(weight=2.0).stages(*both, facts)
    assert (init.name, init.epochs, init.task, init.discard) == ("init", 30, 0.0, True)
    assert init.weights == {"fsp": Weight(2.0)}
    assert init.trains == FSP().student_taps(*both) == ("stem", "stage1", "stage2", "stage3")
    assert (init.recipe["schedule"], init.recipe["learning_rate"]) == ("constant", 0.05)
    assert last == Stage(weights={})
    init, _ = METHODS[1].stages(*both, facts)
    assert (init.epochs, init.recipe["learning_rate"]) == (3, 0.01)


@pytest.mark.parametrize(("network", "frozen"), [("wrn_16_1", {"bn", "fc"}), ("resnet8", {"fc"})])
def test_the_classifier_does_not_train_at_first(network: str, frozen: set[str], make_facts) -> None:
    shapes, model = shapes_of(network), create(network)
    init, _ = FSP().stages(shapes, shapes, make_facts([0], 1))
    behind = parameters_behind(model, init.trains, (3, 32, 32))
    assert {name.split(".")[0] for name, _ in model.named_parameters() if name not in behind} == frozen


@pytest.mark.parametrize(
    ("method", "pair", "message"),
    [
        (FSP(), PAIRS[1], "the student's maps have 4, 4, 6, 8, the teacher's 6, 6, 9, 12; take networks of equal"),
        (FSP(layers=("stage2",)), PAIRS[0], "two maps or more, not on 1; name more with --layer"),
        (FSP(layers=("stage2", "stage4")), PAIRS[0], "unknown layer of the student 'stage4'"),
        (FSP(layers=("stage3", "before_fc")), PAIRS[0], "fsp works on maps"),
    ],
)
def test_what_is_refused(method: FSP, pair, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        method.targets(pair.student, pair.teacher)
    assert "\n" not in str(error.value)


def test_options_without_sense_are_refused() -> None:
    with pytest.raises(UsageError, match=r"fsp\.init_epochs is at least 1"):
        FSP(init_epochs=0)
    with pytest.raises(UsageError, match=r"fsp\.init_learning_rate is above 0"):
        FSP(init_learning_rate=0.0)
