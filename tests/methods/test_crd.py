"""CRD against the golden number and naive loops over several steps: negatives, memory banks, constants, both sides."""

import math
from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from kdtool.errors import UsageError
from kdtool.methods.crd import CRD, Memory, Others, contrast_loss, contrast_of_logarithms
from kdtool.methods.vectors import VALUES, vector
from kdtool.targets import Batch
from kdtool.workflows.testing import check_method
from kdtool.workflows.trial import FACTS

SHAPES = ({"before_fc": (4,)}, {"before_fc": (6,)})
LABELS = np.repeat(np.arange(3), (10, 6, 4))
SMALL = replace(FACTS, samples=20, labels=LABELS, batch=5)


def naive(scores: np.ndarray, samples: int) -> float:
    noise, total = (scores.shape[1] - 1) / samples, 0.0
    for positive, *negatives in scores:
        total += math.log(positive / (positive + noise + 1e-7))
        for negative in negatives:
            total += math.log(noise / (negative + noise + 1e-7))
    return -total / len(scores)


def test_golden(closed_form) -> None:
    scores = closed_form((4, 9), 0.6).exp() / (50 * math.e)
    assert contrast_loss(scores, 50).item() == pytest.approx(3.7947193740592136, abs=1e-9)


def test_the_golden_number_is_that_of_the_reference(golden) -> None:
    assert golden["CRD_contrast_n50"] == 3.7947193740592136


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(2, 9)),
    samples=st.integers(1, 10**6),
    seed=st.integers(0, 1000),
    size=st.floats(-8, 2),
)
def test_naive_loops(shape: tuple[int, int], samples: int, seed: int, size: float) -> None:
    scores = np.exp(np.random.default_rng(seed).normal(size=shape) + size)
    assert contrast_loss(torch.from_numpy(scores), samples).item() == pytest.approx(naive(scores, samples), rel=1e-9)


def test_gradient_and_scores_of_zero() -> None:
    scores = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.01
    assert torch.autograd.gradcheck(lambda rows: contrast_loss(rows, 40), scores.requires_grad_())
    leaf = torch.zeros(2, 4).requires_grad_()
    loss = contrast_loss(leaf, 40)
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("temperature", [0.07, 0.005, 1e-4])
def test_no_temperature_overflows(temperature: float) -> None:
    """The positives of rows that the banks know well are e^(1 / temperature) above those that fixed Z."""
    method = CRD(negatives=7, width=16, temperature=temperature)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        memory = method.adapters(*SHAPES, SMALL, {})
        rows = torch.randn(20, 4), torch.randn(20, 6)
    for step in range(12):
        indices = torch.arange(5) + 5 * (step % 4)
        batch = Batch(indices, torch.from_numpy(LABELS)[indices], 0, "distill", 0, step, generator(step))
        student = {"before_fc": rows[0][indices].requires_grad_()}
        cached = {"before_fc": {VALUES: rows[1][indices]}}
        loss = method.terms(student, cached, batch, memory)["crd"]
        loss.backward()
        assert math.isfinite(loss.item())
        assert bool(student["before_fc"].grad.isfinite().all())
        method.after_step(student, cached, batch, memory)
        memory.teacher_bank[indices] = memory.student_bank[indices]  # as when both sides have come to agree


def test_logarithms_beyond_the_exponential() -> None:
    """By hand: o_+ far above c costs nothing, o_- far above c costs ln(o_- / c); the rest is ln 1."""
    logarithms = torch.tensor([[1000.0, 500.0, -1000.0]], dtype=torch.float64)
    assert contrast_of_logarithms(logarithms, 10).item() == pytest.approx(500 - math.log(0.2) + 1e-7 / 0.2, rel=1e-9)


def test_scores_without_negatives_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 negative"):
        contrast_loss(torch.ones(3, 1), 50)


# Negatives


def drawn(count: int, own: list[int], seed: int = 0, labels: np.ndarray = LABELS) -> torch.Tensor:
    others = Others(torch.from_numpy(labels), 3, count)
    return others.draw(torch.tensor(own), torch.Generator().manual_seed(seed))


@given(count=st.integers(1, 30), seed=st.integers(0, 1000), own=st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_negatives_are_of_other_classes_and_different_where_there_are_enough(
    count: int, seed: int, own: list[int]
) -> None:
    found = drawn(count, own, seed)
    assert found.shape == (len(own), count)
    for row, label in zip(found.tolist(), own, strict=True):
        assert all(LABELS[place] != label for place in row)
        if count <= int((label != LABELS).sum()):
            assert len(set(row)) == count


@pytest.mark.parametrize(("count", "label"), [(1, 0), (3, 0), (3, 2), (10, 0), (12, 0), (12, 1), (30, 0), (30, 2)])
def test_every_other_image_is_as_likely(count: int, label: int) -> None:
    """Chi-square over 4,000 draws with a fixed generator, at the 1e-4 point by Wilson and Hilferty."""
    found = np.bincount(drawn(count, [label] * 4000).flatten().numpy(), minlength=len(LABELS))[label != LABELS]
    others = len(found)
    if count == others:
        assert (found == 4000).all()
        return
    expected = 4000 * count / others
    statistic = float(((found - expected) ** 2 / expected).sum())
    degrees = others - 1
    assert statistic < degrees * (1 - 2 / (9 * degrees) + 3.72 * (2 / (9 * degrees)) ** 0.5) ** 3


def test_every_subset_is_as_likely() -> None:
    """Without replacement: the 6 pairs of 4 others, 6,000 draws, chi-square below its 1e-4 point at 5 degrees."""
    labels = np.array([1, 0, 1, 0, 2, 0, 1])
    pairs = drawn(2, [0] * 6000, labels=labels).sort(1).values.tolist()
    counts = Counter(tuple(pair) for pair in pairs)
    assert set(counts) == {(0, 2), (0, 4), (0, 6), (2, 4), (2, 6), (4, 6)}
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 25.75


def test_draws_come_from_the_generator_alone() -> None:
    for count in (3, 12, 30):
        first, second, third = drawn(count, [0, 1, 2], 4), drawn(count, [0, 1, 2], 4), drawn(count, [0, 1, 2], 5)
        assert torch.equal(first, second)
        assert not torch.equal(first, third)


def test_a_class_without_images_is_no_harm() -> None:
    labels = np.array([0, 0, 2, 2, 2])
    found = drawn(7, [0, 2], labels=labels)
    assert set(labels[found[0].numpy()]) == {2}
    assert set(labels[found[1].numpy()]) == {0}


# Memory


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.sqrt((rows**2).sum(1, keepdims=True)), 1e-12)


def test_banks_constants_and_loss_over_several_steps() -> None:
    """A naive loop in numpy beside the method; the heads move between the steps, as an optimiser would move them."""
    method = CRD(negatives=7, width=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        memory = method.adapters(*SHAPES, SMALL, {}).double()
    assert isinstance(memory, Memory)
    banks = {side: getattr(memory, f"{side}_bank").numpy().copy() for side in ("student", "teacher")}
    assert all(np.abs(bank).max() <= 1.0 for bank in banks.values())
    random, constants = np.random.default_rng(0), None
    for step in range(3):
        indices = torch.from_numpy(random.permutation(20)[:5])
        batch = Batch(indices, torch.from_numpy(LABELS)[indices], 0, "distill", 0, step, generator(step))
        rows = {side: random.normal(size=(5, SHAPES[number]["before_fc"][0])) for number, side in enumerate(banks)}
        heads = {side: getattr(memory, side) for side in banks}
        embedded = {
            side: unit(rows[side] @ head.weight.detach().numpy().T + head.bias.detach().numpy())
            for side, head in heads.items()
        }
        places = memory.others.draw(batch.labels, generator(step)).numpy()
        places = np.concatenate([indices.numpy()[:, None], places], axis=1)
        exponentials = {
            "student": np.exp(np.einsum("bw,bkw->bk", embedded["student"], banks["teacher"][places]) / 0.07),
            "teacher": np.exp(np.einsum("bw,bkw->bk", embedded["teacher"], banks["student"][places]) / 0.07),
        }
        if constants is None:
            constants = {side: 20 * values.mean() for side, values in exponentials.items()}
        wanted = sum(naive(values / constants[side], 20) for side, values in exponentials.items())

        student = {"before_fc": torch.from_numpy(rows["student"])}
        cached = {"before_fc": {VALUES: torch.from_numpy(rows["teacher"])}}
        found = method.terms(student, cached, batch, memory)["crd"]
        assert found.item() == pytest.approx(wanted, rel=1e-9)
        with torch.no_grad():
            for head in heads.values():
                head.weight.mul_(1.5).add_(0.1)
            method.after_step(student, cached, batch, memory)
        for side, bank in banks.items():
            bank[indices] = unit(0.5 * bank[indices] + 0.5 * embedded[side])
            np.testing.assert_allclose(getattr(memory, f"{side}_bank").numpy(), bank, rtol=1e-12)
        for place, side in enumerate(("student", "teacher")):
            assert math.exp(memory.log_constants[place]) == pytest.approx(constants[side], rel=1e-12)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_banks_begin_uniform() -> None:
    memory = CRD().adapters(*SHAPES, replace(FACTS, samples=500, labels=np.arange(500) % 3), {})
    for bank in (memory.student_bank, memory.teacher_bank):
        assert bank.shape == (500, 128)
        assert 0.152 < float(bank.abs().max()) < 0.15310
        assert float(bank.std()) == pytest.approx((3 / 128) ** 0.5 / 3**0.5, rel=0.01)
    assert not torch.equal(memory.student_bank, memory.teacher_bank)


def test_the_state_is_all_in_the_buffers() -> None:
    memory = CRD(negatives=4, width=3).adapters(*SHAPES, SMALL, {})
    parameters = {f"{side}.{part}" for side in ("student", "teacher") for part in ("weight", "bias")}
    assert memory.state_dict().keys() == parameters | {"student_bank", "teacher_bank", "log_constants", "fixed"}


def test_a_run_that_is_resumed_within_an_epoch_gives_the_same_bits() -> None:
    """The state after two steps, the generator's too, in a fresh module; then a third step in both."""
    method, random = CRD(negatives=7, width=3), torch.Generator().manual_seed(0)
    rows = torch.randn(20, 4, generator=random), torch.randn(20, 6, generator=random)

    def step(memory: Memory, number: int, draws: torch.Generator) -> torch.Tensor:
        indices = torch.arange(5) + 5 * number
        batch = Batch(indices, torch.from_numpy(LABELS)[indices], 0, "distill", 0, number, draws)
        student, cached = {"before_fc": rows[0][indices]}, {"before_fc": {VALUES: rows[1][indices]}}
        loss = method.terms(student, cached, batch, memory)["crd"]
        method.after_step(student, cached, batch, memory)
        return loss

    undisturbed, fresh = (method.adapters(*SHAPES, SMALL, {}) for _ in range(2))
    draws, again = generator(0), generator(1)
    for number in range(2):
        step(undisturbed, number, draws)
    assert undisturbed.used is None
    fresh.load_state_dict({name: value.clone() for name, value in undisturbed.state_dict().items()})
    again.set_state(draws.get_state())
    assert torch.equal(step(undisturbed, 2, draws), step(fresh, 2, again))
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])


def test_the_hook_without_a_step_before_it_does_nothing() -> None:
    method = CRD(negatives=4, width=3)
    memory = method.adapters(*SHAPES, SMALL, {})
    before = memory.student_bank.clone()
    method.after_step({}, {}, Batch(torch.arange(5), torch.arange(5), 0, "", 0, 0, generator(0)), memory)
    assert torch.equal(memory.student_bank, before)


# The method


@pytest.mark.parametrize(
    "options", [{}, {"negatives": "5", "width": "3"}, {"negatives": "16", "momentum": "0"}], ids=str
)
def test_it_conforms(options: dict[str, str]) -> None:
    check_method(CRD().with_options(options), permutable=False)


def test_what_it_asks_for() -> None:
    assert CRD().targets(*SHAPES) == (vector("before_fc"),)
    assert CRD().weight == 0.8
    heads = CRD().adapters({"before_fc": (256,)}, {"before_fc": (256,)}, SMALL, {})
    assert sum(parameter.numel() for parameter in heads.parameters()) == 2 * 32_896


@pytest.mark.parametrize(
    "options", [{"width": "0"}, {"negatives": "0"}, {"temperature": "0"}, {"momentum": "1"}], ids=str
)
def test_options_that_make_no_sense(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        CRD().with_options(options)


def test_the_bytes_of_resnet32x4_to_resnet8x4() -> None:
    shapes = {"before_fc": (256,)}
    (target,) = CRD().targets(shapes, shapes)
    rows = target.encode({"before_fc": torch.zeros(1, 256)}, {})[VALUES]
    assert (rows.numel(), target.dtype) == (256, "float16")  # 512 bytes a sample


def test_a_network_without_the_vector_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown layer of the student 'before_fc'") as error:
        CRD().targets({"after_fc": (3,)}, {"before_fc": (4,)})
    assert "\n" not in str(error.value)


def test_images_of_one_class_are_refused() -> None:
    with pytest.raises(UsageError, match="of different classes"):
        CRD().adapters(*SHAPES, replace(SMALL, labels=np.ones(20, dtype=np.int64)), {})


def test_float16_storage() -> None:
    """The loss differs by less than 1e-3 of its value, measured at 3e-5."""
    method, random, worst = CRD(negatives=9, width=8), np.random.default_rng(0), 0.0
    memory = method.adapters(*SHAPES, SMALL, {}).double()
    indices = torch.arange(20)
    for step in range(20):
        student = {"before_fc": torch.from_numpy(random.normal(size=(20, 4)))}
        teacher, values = torch.from_numpy(random.normal(size=(20, 6))), []
        for rows in (teacher, teacher.half().double()):
            batch = Batch(indices, torch.from_numpy(LABELS), 0, "distill", 0, step, generator(step))
            values.append(method.terms(student, {"before_fc": {VALUES: rows}}, batch, memory)["crd"].item())
        worst = max(worst, abs(values[1] / values[0] - 1))
    assert 0 < worst < 1e-3
