"""FT's loss against the reference's value and a naive loop; the paraphraser against torch's own layers and loop."""

from functools import cache
from itertools import islice

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from kdtool.errors import UsageError
from kdtool.methods import ft
from kdtool.methods.at import attention
from kdtool.methods.ft import FT, Paraphraser, factor_loss, factor_map, reconstruction, translator
from kdtool.methods.maps import whole_map
from kdtool.models import create, tap_shapes
from kdtool.targets import FitBatch, Stage, Weight
from kdtool.workflows.testing import check_differences, check_fit, check_keys, check_method
from kdtool.workflows.trial import FACTS, PAIRS, learn, some_positions, teacher_taps, trial

# RepDistiller's FactorTransfer, float64, on the closed-form inputs as factors: phases 0.2 and 0.9 after a ReLU.
GOLDEN = 0.06256733036607434

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


@cache
def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return tap_shapes(create(network), (3, 32, 32))


def test_the_value_of_the_reference(closed_form) -> None:
    student, teacher = closed_form((4, 5, 8, 8), 0.2).relu(), closed_form((4, 7, 8, 8), 0.9).relu()
    assert float(factor_loss(student, teacher)) == pytest.approx(GOLDEN, rel=1e-9)


def test_the_value_in_the_shared_file(golden) -> None:
    assert golden["FT_factor"] == GOLDEN


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


def naive_attention(sample: np.ndarray) -> list[float]:
    """Of a sample (C, H, W), one place after another."""
    squares = [sum(v**2 for v in sample[:, i, j].tolist()) / len(sample) for i, j in np.ndindex(sample.shape[1:])]
    norm = sum(s**2 for s in squares) ** 0.5
    return [s / norm if norm else 0.0 for s in squares]


def naive(student: np.ndarray, teacher: np.ndarray) -> float:
    high, wide = (min(student.shape[axis], teacher.shape[axis]) for axis in (2, 3))
    total = 0.0
    for ours, theirs in zip(naive_pool(student, high, wide), naive_pool(teacher, high, wide), strict=True):
        total += sum(abs(a - b) for a, b in zip(naive_attention(ours), naive_attention(theirs), strict=True))
    return total / (len(student) * high * wide)


@given(batch=st.integers(1, 3), widths=st.tuples(*2 * [st.integers(1, 4)]), ours=sizes, theirs=sizes, seed=seeds)
def test_a_naive_loop_gives_the_same(batch: int, widths, ours, theirs, seed: int) -> None:
    random = np.random.default_rng(seed)
    student, teacher = (random.normal(size=(batch, w, *size)) for w, size in zip(widths, (ours, theirs), strict=True))
    found = float(factor_loss(torch.from_numpy(student), torch.from_numpy(teacher)))
    assert found == pytest.approx(naive(student, teacher), rel=1e-10, abs=1e-14)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_a_student_that_is_the_teacher_at_any_scale_loses_nothing(seed: int, scale: float) -> None:
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, 4, 4)))
    assert float(factor_loss(maps, maps)) == 0
    assert float(factor_loss(scale * maps.flip(1), maps)) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("size", [(2, 2), (4, 4)])
def test_the_gradient_is_that_of_differences_and_spares_the_teacher(size, closed_form) -> None:
    """No place of these factors is as large on both sides, which is where the slope jumps."""
    student = closed_form((2, 3, 4, 4), 0.1).requires_grad_()
    teacher = closed_form((2, 2, *size), 0.7).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: factor_loss(s, teacher), (student,))
    factor_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_factors_stay_finite_and_keep_their_type(scale: float, dtype: torch.dtype, closed_form) -> None:
    student = (scale * closed_form((2, 3, 4, 4), 0.1)).to(dtype).requires_grad_()
    for teacher in (torch.ones(2, 3, 4, 4, dtype=dtype), student.detach(), torch.zeros(2, 3, 4, 4, dtype=dtype)):
        student.grad = None
        loss = factor_loss(student, teacher)
        loss.backward()
        assert loss.dtype == dtype
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()


def test_factors_of_other_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="the same samples, not 2 of the student with 1") as error:
        factor_loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    assert "\n" not in str(error.value)


# The paraphraser

SMALL = Paraphraser("stage3", 0.5, 3, 0.01)


class Autoencoder(nn.Module):
    """The paraphraser written down with torch's own layers."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            [
                nn.Conv2d(channels, channels, 3, 1, 1),
                nn.Conv2d(channels, factors, 3, 1, 1),
                nn.Conv2d(factors, factors, 3, 1, 1),
            ]
        )
        self.decoder = nn.ModuleList(
            [
                nn.ConvTranspose2d(factors, factors, 3, 1, 1),
                nn.ConvTranspose2d(factors, channels, 3, 1, 1),
                nn.ConvTranspose2d(channels, channels, 3, 1, 1),
            ]
        )

    def forward(self, maps: Tensor) -> Tensor:
        for layer in (*self.encoder, *self.decoder):
            maps = nn.functional.leaky_relu(layer(maps), 0.1)
        return maps


def begun(fit: Paraphraser, shape: tuple[int, ...], facts=FACTS) -> dict[str, Tensor]:
    return fit.begin(facts, {f"{fit.tap}.map": {"values": shape}}, 2)


def weights_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.endswith((".weight", ".bias"))}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def batches(maps: Tensor, turn: int, view: int = 0, size: int = 8):
    for start in range(0, len(maps), size):
        rows, positions = maps[start : start + size], torch.arange(start, min(start + size, len(maps)))
        arrays = {"stage3.map": {"values": rows}}
        yield FitBatch(arrays, torch.zeros_like(positions), positions, turn, view, start + size >= len(maps))


def test_its_layers_are_those_of_the_reference() -> None:
    network, state = Autoencoder(6, 3), begun(SMALL, (6, 4, 4))
    network.load_state_dict(weights_of(state))
    maps = normal(2, 6, 4, 4)
    factor = factor_map(maps, state)
    assert factor.shape == (2, 3, 4, 4)
    assert torch.equal(reconstruction(factor, state), network(maps))


def test_it_begins_as_torch_draws_and_leaves_the_generator_alone(make_facts) -> None:
    before = torch.get_rng_state()
    state = begun(SMALL, (6, 4, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in weights_of(state).items():
        fan_in = {"encoder.0": 6, "encoder.1": 6, "encoder.2": 3, "decoder.0": 3, "decoder.1": 6, "decoder.2": 6}
        bound = (fan_in[name[:9]] * 9) ** -0.5  # torch counts the channels that a transposed convolution gives
        assert 0.7 * bound < float(value.abs().max()) <= bound or value.dim() == 1
        assert torch.equal(value, begun(SMALL, (6, 4, 4))[name])
    seed, tap = begun(SMALL, (6, 4, 4), make_facts([0], 1, seed=1)), begun(Paraphraser("a", 0.5, 3, 0.01), (6, 4, 4))
    for other in (seed, tap):
        assert not torch.equal(other["encoder.0.weight"], state["encoder.0.weight"])
    assert all(np.isfinite(array).all() for array in SMALL.result(state, FACTS).values())
    assert SMALL.remark(state) == ""


@pytest.mark.parametrize("learning_rate", [0.01, 0.1])
def test_it_learns_as_torchs_own_loop_does(learning_rate: float) -> None:
    """20 samples in batches of 8, so that the last one is smaller: bits of the weights, errors per sample."""
    fit, maps = Paraphraser("stage3", 0.5, 3, learning_rate), normal(20, 6, 4, 4).relu()
    state = begun(fit, (6, 4, 4))
    network = Autoencoder(6, 3)
    network.load_state_dict(weights_of(state))
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    errors = []
    for turn in range(3):
        total = 0.0
        for batch in batches(maps, turn):
            rows = batch.arrays["stage3.map"]["values"]
            loss = (network(rows) - rows).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows) / len(maps)
            with torch.no_grad():  # as in extract
                state = fit.step(state, batch)
        errors.append(total)
        assert fit.remark(state) == f"reconstruction error {float(state['errors'][turn]):.4g}"
    found = fit.result(state, FACTS)
    wanted = {name: value for name, value in network.state_dict().items() if name.startswith("encoder")}
    assert found.keys() == {*wanted, "errors"}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-5, atol=1e-7)
    assert found["errors"].tolist() == pytest.approx(errors, rel=1e-6)


def test_reconstruction_gets_better() -> None:
    """Maps of two numbers a sample, which a factor can hold."""
    maps = 2 * torch.einsum("nk,kchw->nchw", normal(32, 2), normal(2, 6, 4, 4)).relu()
    fit = Paraphraser("stage3", 0.5, 40, 0.02)
    state = begun(fit, (6, 4, 4))
    for turn in range(40):
        for batch in batches(maps, turn):
            state = fit.step(state, batch)
    errors = fit.result(state, FACTS)["errors"]
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("scale", [10.0, 100.0, 6e4])
def test_maps_of_large_values_do_not_make_it_diverge(scale: float) -> None:
    """6e4 is about the largest number that float16 holds; without a clipped gradient all three end in NaN."""
    maps = scale * normal(32, 16, 8, 8).relu().clamp(max=1)
    fit = Paraphraser("stage3", 0.5, 15, 0.01)
    state = begun(fit, (16, 8, 8))
    for turn in range(15):
        for batch in batches(maps, turn):
            state = fit.step(state, batch)
    found = fit.result(state, FACTS)
    assert all(np.isfinite(array).all() for array in found.values())
    assert found["errors"][-1] < float(maps.square().mean())


def test_maps_of_usual_values_are_learned_without_clipping(monkeypatch) -> None:
    plain = learn(SMALL, PAIRS[0])
    monkeypatch.setattr(ft, "_clip", lambda parameters: None)
    for name, value in learn(SMALL, PAIRS[0]).items():
        assert np.array_equal(value, plain[name])


def test_its_passes_and_keys() -> None:
    assert Paraphraser("stage3", 0.5, 5, 0.01).passes(2) == (0, 1, 0, 1, 0)
    assert SMALL.reads == (whole_map("stage3"),)
    assert SMALL.key == "paraphraser.stage3.rate0.5.passes3.lr0.01"
    check_fit(Paraphraser("stage2", 0.25, 2, 1e-5), PAIRS[1])


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_factor_is_pooled_to_the_smaller_size_before_it_is_squared(pair) -> None:
    (target,) = FT(passes=2).targets(pair.student, pair.teacher)
    rows = {"stage3": teacher_taps(pair, 0)["stage3"].double()}
    fitted = {name: torch.from_numpy(array) for name, array in learn(target.fit, pair).items()}
    found = target.encode(rows, fitted)["values"]
    network = Autoencoder(pair.teacher["stage3"][0], pair.teacher["stage3"][0] // 2).double()
    with torch.no_grad():
        for name, value in fitted.items():
            if name != "errors":
                network.get_parameter(name).copy_(value)
        factor = rows["stage3"]
        for layer in network.encoder:
            factor = nn.functional.leaky_relu(layer(factor), 0.1)
    size = [min(pair.student["stage3"][axis], pair.teacher["stage3"][axis]) for axis in (1, 2)]
    wanted = [naive_attention(sample) for sample in naive_pool(factor.numpy(), *size)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-14)


# The method

METHODS = [FT(passes=2), FT(passes=2, weight=2.0, rate=0.25, learning_rate=0.1, layers=("stage1", "stage2:stage3"))]


@pytest.mark.parametrize("method", [FT(), METHODS[1]], ids=str)
def test_it_conforms(method: FT) -> None:
    """Leaky ReLUs and |a_S - a_T| have kinks, so that the differences need a short step."""
    check_method(method, exact_gradient=False)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_its_gradient_is_that_of_differences(method: FT, pair) -> None:
    check_differences(trial(method, pair), step=1e-8)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_what_is_stored_gives_the_loss_of_whole_factors(pair, make_batch) -> None:
    """The term from stored arrays in float64 is `factor_loss` of the translated map and the teacher's whole factor."""
    of, positions = trial(METHODS[0], pair), some_positions()
    adapters, (target,) = of.adapters().double(), of.targets
    student, teacher = (taps["stage3"][positions].double() for taps in (of.student, teacher_taps(pair, 0)))
    fitted = {name: torch.from_numpy(array).double() for name, array in of.fitted[target.fit.key].items()}
    cached = {target.key: target.encode({"stage3": teacher}, fitted)}
    (found,) = METHODS[0].terms({"stage3": student}, cached, make_batch(positions), adapters).values()
    factor = factor_map(teacher, fitted)
    with torch.no_grad():
        ours = adapters.of(adapters.pairs[0])(student)
    assert found.item() == pytest.approx(naive(ours.numpy(), factor.numpy()), rel=1e-12)
    assert found.item() == pytest.approx(float(factor_loss(ours, factor)), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_factors_stored_in_half_precision(seed: int) -> None:
    """Stays within 2e-4 relative for normal values after a ReLU (5.3e-5 measured in 100 draws)."""
    random = np.random.default_rng(seed)
    ours, theirs = (attention(torch.from_numpy(random.normal(size=(8, 16, 8, 8))).relu()) for _ in range(2))
    exact, stored = (float((ours - rows).abs().mean()) for rows in (theirs, theirs.half().double()))
    assert abs(stored / exact - 1) <= 2e-4


def test_its_keys_carry_every_parameter() -> None:
    check_keys([*METHODS, FT()])
    keys = [[target.key for target in FT().targets(pair.student, pair.teacher)] for pair in PAIRS]
    plain = "factor.stage3.rate0.5.passes30.lr0.01"
    assert keys == [[plain], [plain], [f"{plain}.2x2"], [plain]]
    (larger,) = FT().targets(PAIRS[2].student, PAIRS[2].teacher)
    assert larger.fit == Paraphraser("stage3", 0.5, 30, 0.01)
    changed = [FT(rate=0.75), FT(passes=3), FT(learning_rate=1e-5), FT(layers=("stage2",))]
    found = {of.targets(PAIRS[0].student, PAIRS[0].teacher)[0].key for of in (FT(), *changed)}
    assert len(found) == 5


PARAMETERS = [
    ("resnet8x4", "resnet32x4", 1_033_728, 2_065_536),
    ("wrn_16_2", "wrn_40_2", 258_816, 516_672),
    ("wrn_40_1", "wrn_40_2", 111_168, 516_672),
    ("resnet20", "resnet56", 64_896, 129_312),
]


@pytest.mark.parametrize(("student", "teacher", "translated", "paraphrased"), PARAMETERS)
def test_the_parameters_and_bytes_of_the_usual_pairs(student, teacher, translated, paraphrased, make_facts) -> None:
    """The paraphraser's count is that of encoder and decoder, biases included; the translator's holds BatchNorm."""
    both, facts = (shapes_of(student), shapes_of(teacher)), make_facts([0], 1)
    adapters = FT().adapters(*both, facts, {})
    assert sum(parameter.numel() for parameter in adapters.parameters()) == translated
    (target,) = FT().targets(*both)
    state = begun(target.fit, both[1]["stage3"])
    assert sum(value.numel() for value in weights_of(state).values()) == paraphrased
    fitted = {name: torch.from_numpy(array) for name, array in target.fit.result(state, facts).items()}
    assert target.encode({"stage3": torch.zeros(1, *both[1]["stage3"])}, fitted)["values"].shape == (1, 64)
    assert target.dtype == "float16"  # twice as many bytes


def test_the_translator_is_the_encoder_with_norm() -> None:
    kinds = [type(layer) for layer in translator(6, 3)]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 3
    shapes = [tuple(layer.weight.shape) for layer in islice(translator(6, 3), 0, None, 3)]
    assert shapes == [(6, 6, 3, 3), (3, 6, 3, 3), (3, 3, 3, 3)]
    assert {layer.negative_slope for layer in translator(6, 3) if isinstance(layer, nn.LeakyReLU)} == {0.1}
    assert translator(6, 3)(torch.zeros(2, 6, 5, 4)).shape == (2, 3, 5, 4)


def test_its_stage(make_facts) -> None:
    facts = make_facts([0], 1)
    assert FT().stages({}, {}, facts) == (Stage(weights={"ft": Weight(200.0)}),)
    assert METHODS[1].stages({}, {}, facts) == (Stage(weights={"ft": Weight(2.0)}),)


@pytest.mark.parametrize(
    ("layers", "message"),
    [(("stage4",), "unknown layer of the student 'stage4'"), (("before_fc",), "ft works on maps")],
)
def test_what_is_refused(layers, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        FT(layers=layers).targets(PAIRS[0].student, PAIRS[0].teacher)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": "0"}, r"ft\.rate is above 0, not 0"),
        ({"passes": "0"}, r"ft\.passes is at least 1, not 0"),
        ({"learning_rate": "-1"}, r"ft\.learning_rate is above 0, not -1"),
    ],
)
def test_options_without_sense_are_refused(options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FT().with_options(options)
