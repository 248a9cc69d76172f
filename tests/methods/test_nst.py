"""NST's loss against the reference's values and a naive loop, in both of its forms; what it stores, what it refuses."""

from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from kdtool.errors import UsageError
from kdtool.methods.maps import MapPair, whole_map
from kdtool.methods.nst import NST, distance, mean_kernel, moments, nst_loss, packs, unit_channels
from kdtool.models import create, tap_shapes
from kdtool.targets import Stage, Weight
from kdtool.workflows.testing import check_compact, check_keys, check_method
from kdtool.workflows.trial import PAIRS, Pair, three_stages

# RepDistiller's NSTLoss, float64, on the closed-form inputs: maps of phases 0.2 and 0.9 after a ReLU.
GOLDEN = {(8, 8): 0.10995336546799078, (16, 16): 0.39290454870900277}

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))
WIDE = Pair("wide", three_stages((4, 4, 6, 8), 8), three_stages((40, 40, 40, 40), 16))  # two stages by moments


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


def by_channels(student: Tensor, teacher: Tensor) -> Tensor:
    """The form of large maps."""
    ours, theirs = unit_channels(student), unit_channels(teacher)
    return mean_kernel(theirs, theirs) + mean_kernel(ours, ours) - 2 * mean_kernel(ours, theirs)


def by_places(student: Tensor, teacher: Tensor) -> Tensor:
    """The form of small maps."""
    return distance(moments(student), moments(teacher))


@pytest.mark.parametrize(("size", "value"), GOLDEN.items())
def test_the_values_of_the_reference(size, value: float, closed_form) -> None:
    student, teacher = closed_form((4, 5, 8, 8), 0.2).relu(), closed_form((4, 7, *size), 0.9).relu()
    assert float(nst_loss(student, teacher)) == pytest.approx(value, rel=1e-9)
    teacher = torch.nn.functional.adaptive_avg_pool2d(teacher, 8)
    for form in (by_channels, by_places):
        assert float(form(student, teacher)) == pytest.approx(value, rel=1e-9)


def test_the_values_in_the_shared_file(golden) -> None:
    assert {(8, 8): golden["NST_same"], (16, 16): golden["NST_teacher16"]} == GOLDEN


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


def naive_channels(sample: np.ndarray) -> list[np.ndarray]:
    """The channels of a sample (C, H, W), each over its norm."""
    norms = [float(np.sqrt((channel**2).sum())) for channel in sample]
    return [
        channel.flatten() / norm if norm else channel.flatten() for channel, norm in zip(sample, norms, strict=True)
    ]


def naive_kernel(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    total = sum(float((a * b).sum()) ** 2 for a in first for b in second)
    return total / (len(first) * len(second))


def naive(student: np.ndarray, teacher: np.ndarray) -> float:
    high, wide = (min(student.shape[axis], teacher.shape[axis]) for axis in (2, 3))
    total = 0.0
    for ours, theirs in zip(naive_pool(student, high, wide), naive_pool(teacher, high, wide), strict=True):
        s, t = naive_channels(ours), naive_channels(theirs)
        total += naive_kernel(t, t) + naive_kernel(s, s) - 2 * naive_kernel(s, t)
    return total / len(student)


@given(batch=st.integers(1, 2), widths=st.tuples(*2 * [st.integers(1, 6)]), ours=sizes, theirs=sizes, seed=seeds)
def test_a_naive_loop_gives_the_same(batch: int, widths, ours, theirs, seed: int) -> None:
    random = np.random.default_rng(seed)
    student, teacher = (random.normal(size=(batch, w, *size)) for w, size in zip(widths, (ours, theirs), strict=True))
    found = float(nst_loss(torch.from_numpy(student), torch.from_numpy(teacher)))
    assert found == pytest.approx(naive(student, teacher), rel=1e-10, abs=1e-14)


@given(batch=st.integers(1, 3), widths=st.tuples(*2 * [st.integers(1, 20)]), size=sizes, seed=seeds)
def test_both_forms_give_the_same(batch: int, widths, size, seed: int) -> None:
    random = np.random.default_rng(seed)
    student, teacher = (torch.from_numpy(random.normal(size=(batch, width, *size))) for width in widths)
    wanted = float(by_channels(student, teacher))
    assert float(by_places(student, teacher)) == pytest.approx(wanted, rel=1e-12, abs=1e-14)
    assert float(nst_loss(student, teacher)) == pytest.approx(wanted, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(("shape", "small"), [((2, 64, 8, 8), True), ((2, 63, 8, 8), False), ((2, 3, 32, 32), False)])
def test_a_large_map_is_never_multiplied_place_by_place(shape, small: bool, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("kdtool.methods.nst.moments", lambda rows: asked.append(rows.shape) or moments(rows))
    nst_loss(torch.ones(2, 5, 8, 8), torch.ones(shape))
    assert bool(asked) == small


def test_moments_by_hand() -> None:
    """Two channels over two places; what is off the diagonal counts twice in the square of the whole matrix."""
    maps = torch.tensor([[[[3.0, 4.0]], [[0.0, -2.0]]]], dtype=torch.float64)
    wanted = torch.tensor([[0.36, 0.48 * 2**0.5, 0.64 + 1.0]], dtype=torch.float64) / 2
    assert torch.allclose(moments(maps), wanted, rtol=1e-14)
    assert float(moments(maps).square().sum()) == pytest.approx(float(mean_kernel(*2 * [unit_channels(maps)])))


# Near zero


@given(seed=seeds, width=st.sampled_from([3, 20]), scale=st.floats(1e-3, 1e3))
def test_a_student_that_is_the_teacher_at_any_scale_loses_nothing(seed: int, width: int, scale: float) -> None:
    """In both forms: 16 places, 3 or 20 channels."""
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, width, 4, 4)))
    student = (scale * maps.flip(1)).requires_grad_()
    loss = nst_loss(student, maps)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert float(student.grad.abs().max()) * scale <= 1e-14


@pytest.mark.parametrize("shape", [(8, 16, 16, 16), (8, 64, 8, 8)], ids=["by channels", "by places"])
@pytest.mark.parametrize("apart", [0.0, 1e-3, 1.0])
def test_what_rounding_does_in_single_precision(shape, apart: float) -> None:
    """Value and gradient err by at most 1e-6 of the mean kernel and of its gradient (3e-7 measured)."""
    random = np.random.default_rng(0)
    teacher = torch.from_numpy(random.normal(size=shape)).relu().float()
    student = (teacher + apart * torch.from_numpy(random.normal(size=shape)).float()).flip(1)
    found, wanted = [], []
    for dtype, kept in ((torch.float32, found), (torch.float64, wanted)):
        leaf = student.to(dtype).requires_grad_()
        loss = nst_loss(leaf, teacher.to(dtype))
        kept += [loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()]
    leaf = student.double().requires_grad_()
    kernel = mean_kernel(*2 * [unit_channels(leaf)])
    (slope,) = torch.autograd.grad(kernel, leaf)
    assert float((found[0] - wanted[0]).abs()) <= 1e-6 * kernel.item()
    assert float((found[1] - wanted[1]).norm()) <= 1e-6 * float(slope.norm())


@pytest.mark.parametrize("width", [2, 20])
def test_the_gradient_is_that_of_differences_and_spares_the_teacher(width: int, closed_form) -> None:
    student = closed_form((2, 3, 4, 4), 0.1).requires_grad_()
    teacher = closed_form((2, width, 3, 3), 0.7).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: nst_loss(s, teacher), (student,))
    nst_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("width", [3, 20])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_maps_stay_finite_and_keep_their_type(width, scale: float, dtype: torch.dtype, closed_form) -> None:
    student = (scale * closed_form((2, width, 4, 4), 0.1)).to(dtype)
    student[:, 1] = 0  # a dead channel
    student.requires_grad_()
    for teacher in (torch.ones(2, 3, 4, 4, dtype=dtype), torch.zeros(2, 3, 4, 4, dtype=dtype)):
        student.grad = None
        loss = nst_loss(student, teacher)
        loss.backward()
        assert loss.dtype == dtype
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()
        assert not student.grad[:, 1].any()


def test_maps_of_other_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="the same samples, not 2 of the student with 1") as error:
        nst_loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    assert "\n" not in str(error.value)


# The method

METHODS = [NST(), NST(weight=2.0, layers=("stage1", "stage2:stage3", "stem"))]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_conforms(method: NST) -> None:
    check_method(method, pairs=[*PAIRS, WIDE])


@pytest.mark.parametrize("pair", [*PAIRS, WIDE], ids=lambda pair: pair.name)
def test_what_is_stored_gives_the_loss_of_whole_maps(pair) -> None:
    def full(student, teacher):
        values = [naive(student[f"stage{n}"].numpy(), teacher[f"stage{n}"].numpy()) for n in (1, 2, 3)]
        return {"nst": torch.tensor(sum(values), dtype=torch.float64)}

    check_compact(NST(), full, pair)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_moments_stored_in_half_precision(seed: int) -> None:
    """Stays within 1e-4 relative for normal values after a ReLU (2.7e-5 measured in 30 draws)."""
    random = np.random.default_rng(seed)
    ours, theirs = (moments(torch.from_numpy(random.normal(size=(8, 128, 8, 8))).relu()) for _ in range(2))
    exact, stored = (float(distance(ours, rows)) for rows in (theirs, theirs.half().double()))
    assert abs(stored / exact - 1) <= 1e-4


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_maps_stored_in_half_precision(seed: int) -> None:
    """Stays within 1e-4 relative for normal values after a ReLU (2.5e-5 measured in 100 draws)."""
    random = np.random.default_rng(seed)
    ours, theirs = (torch.from_numpy(random.normal(size=(8, 16, 8, 8))).relu() for _ in range(2))
    exact, stored = (float(nst_loss(ours, rows)) for rows in (theirs, theirs.half().double()))
    assert abs(stored / exact - 1) <= 1e-4


@given(width=st.integers(1, 40), size=sizes)
def test_the_smaller_one_is_stored(width: int, size) -> None:
    pair = MapPair("a", "a", (2, *size), (width, *size))
    rows = torch.zeros(1, width, *size)
    triangle, stored = moments(rows).numel(), NST().target(pair).encode({"a": rows}, {})["values"].numel()
    assert stored == min(rows.numel(), triangle)
    assert packs(pair) == (triangle < rows.numel())


def test_its_keys_are_those_of_maps_or_of_moments() -> None:
    check_keys(METHODS, [*PAIRS, WIDE])
    assert NST().targets(PAIRS[0].student, PAIRS[0].teacher)[:2] == (whole_map("stage1"), whole_map("stage2"))
    assert NST().targets(PAIRS[2].student, PAIRS[2].teacher)[:2] == (
        whole_map("stage1", (8, 8)),
        whole_map("stage2", (4, 4)),
    )
    keys = [target.key for target in NST().targets(WIDE.student, WIDE.teacher)]
    assert keys == ["stage1.moments.8x8", "stage2.moments.4x4", "stage3.moments.2x2"]
    assert [target.key for target in NST().targets(WIDE.teacher, WIDE.teacher)] == [
        "stage1.map",
        "stage2.moments",
        "stage3.moments",
    ]


BYTES = [  # maps of stages 1 and 2, moments of stage 3
    ("resnet8x4", "resnet32x4", 64 * 1024 + 128 * 256 + 2080),
    ("wrn_16_2", "wrn_40_2", 32 * 1024 + 64 * 256 + 2080),
    ("resnet20", "resnet56", 16 * 1024 + 32 * 256 + 2080),
]


@pytest.mark.parametrize(("student", "teacher", "values"), BYTES)
def test_the_bytes_of_the_usual_pairs(student: str, teacher: str, values: int, make_facts) -> None:
    both = shapes_of(student), shapes_of(teacher)
    targets = NST().targets(*both)
    rows = [t.encode({t.taps[0]: torch.zeros(1, *both[1][t.taps[0]])}, {})["values"] for t in targets]
    assert sum(row.numel() for row in rows) == values
    assert {target.dtype for target in targets} == {"float16"}  # twice as many bytes
    assert not NST().adapters(*both, make_facts([0], 1), {}).state_dict()


def test_its_stage(make_facts) -> None:
    facts = make_facts([0], 1)
    assert NST().stages({}, {}, facts) == (Stage(weights={"nst": Weight(50.0)}),)
    assert METHODS[1].stages({}, {}, facts) == (Stage(weights={"nst": Weight(2.0)}),)


@pytest.mark.parametrize(
    ("layers", "message"),
    [(("stage4",), "unknown layer of the student 'stage4'"), (("before_fc",), "nst works on maps")],
)
def test_what_is_refused(layers, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        NST(layers=layers).targets(PAIRS[0].student, PAIRS[0].teacher)
    assert "\n" not in str(error.value)
