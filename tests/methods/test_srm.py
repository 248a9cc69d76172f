"""SRM against the reference's values, naive loops and differences; its dictionaries, pairs, stages and labels."""

import math
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from kdtool.errors import UsageError
from kdtool.methods import dictionaries
from kdtool.methods.dictionaries import active_count, atom_count, highest
from kdtool.methods.kd import kd_loss
from kdtool.methods.protocol import Method
from kdtool.methods.srm import (
    SRM,
    Dictionary,
    image_loss,
    labels,
    pixel_loss,
    reconstruct,
    similarity,
    sparse_code,
)
from kdtool.methods.vectors import VALUES, vector
from kdtool.models import create, tap_shapes
from kdtool.targets import Batch, FitBatch, Stage, Weight
from kdtool.workflows.testing import check_keys, check_method
from kdtool.workflows.trial import FACTS, PAIRS, SAMPLES, fitted_of, teacher_taps, trial

# The reference code, float64, on the closed-form inputs of `closed_form`.
RECONSTRUCTION, PIXEL, IMAGE = 0.4642277189799146, 2.389206350353574, 0.8061196400199014
PIXEL_LABELS = [[2, 3, 3, 4], [5, 5, 7, 9], [11, 11, 11, 11]]
IMAGE_LABEL = [
    0.0, 0.0757652522, 0.2331558458, 0.3123507127, 0.3778688283, 0.2220118676,
    0.2054633614, 0.0633717954, 0.1216173382, 0.2590734227, 0.2982459824, 0.2619344603,
]  # fmt: skip

KERNELS = ("sigmoid", "linear", "rbf")
CIFAR_TEACHER = {"stage1": (128, 16, 16), "stage2": (256, 8, 8), "stage3": (1024, 4, 4), "after_fc": (100,)}
CIFAR_STUDENT = {"stage1": (63, 16, 16), "stage2": (126, 8, 8), "stage3": (253, 4, 4), "after_fc": (100,)}

# Naive forms: one number at a time, in float64


def naive_score(pixel: list[float], atom: list[float], bias: float, kernel: str) -> float:
    if kernel == "rbf":
        return -sum((t - d) ** 2 for t, d in zip(pixel, atom, strict=True))
    return sum(t * d for t, d in zip(pixel, atom, strict=True)) + bias


def naive_similar(score: float, bias: float, kernel: str) -> float:
    if kernel == "rbf":
        return math.exp(math.exp(bias) * score)
    return 1 / (1 + math.exp(-score)) if kernel == "sigmoid" else score


def naive_code(pixel: list[float], atoms: list[list[float]], bias: float, active: int, kernel: str) -> list[float]:
    scores = [naive_score(pixel, atom, bias, kernel) for atom in atoms]
    best = sorted(range(len(atoms)), key=lambda m: (-scores[m], m))[:active]
    return [naive_similar(scores[m], bias, kernel) if m in best else 0.0 for m in range(len(atoms))]


def each_pixel(features: np.ndarray):
    """((n, h, w), the pixel as a list)."""
    for place in np.ndindex(features.shape[0], *features.shape[2:]):
        yield place, features[place[0], :, place[1], place[2]].tolist()


def naive_codes(features: np.ndarray, dictionary: np.ndarray, bias: float, active: int, kernel: str) -> np.ndarray:
    n, _, h, w = features.shape
    codes = np.zeros((n, dictionary.shape[1], h, w))
    for (i, y, x), pixel in each_pixel(features):
        codes[i, :, y, x] = naive_code(pixel, dictionary.T.tolist(), bias, active, kernel)
    return codes


def naive_pixel_loss(similar: np.ndarray, wanted: np.ndarray) -> float:
    losses = []
    for place, values in each_pixel(similar):
        losses.append(math.log(sum(math.exp(value) for value in values)) - values[int(wanted[place])])
    return sum(losses) / len(losses)


def naive_image_loss(similar: np.ndarray, wanted: np.ndarray) -> float:
    losses = []
    for i, m in np.ndindex(similar.shape[:2]):
        p, y = float(similar[i, m].sum()) / similar[i, m].size, float(wanted[i, m])
        low, high = (max(math.log(q), -100.0) if q > 0 else -100.0 for q in (1 - p, p))
        losses.append(-(y * high + (1 - y) * low))
    return sum(losses) / len(losses)


@st.composite
def coded(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Maps and dictionaries of halves: their scores are exact, and often equal."""
    sizes = st.integers(1, 3)
    n, c, h, w, m = draw(sizes), draw(sizes), draw(sizes), draw(sizes), draw(st.integers(1, 7))
    halves = st.integers(-4, 4).map(lambda number: number / 2)
    features, dictionary = draw(arrays(np.float64, (n, c, h, w), elements=halves)), None
    dictionary = draw(arrays(np.float64, (c, m), elements=halves))
    return features, dictionary, draw(halves), draw(st.integers(1, m))


def random_case(seed: int = 0, n: int = 3, c: int = 5, side: int = 4, m: int = 9) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, c, side, side, generator=generator, dtype=torch.float64)
    dictionary = torch.randn(c, m, generator=generator, dtype=torch.float64)
    return features, dictionary, torch.tensor(0.3, dtype=torch.float64)


# The pure functions


def test_the_numbers_below_are_the_references(golden) -> None:
    assert golden["SRM_recon_mse"] == RECONSTRUCTION
    assert golden["SRM_local_labels_first_image"] == PIXEL_LABELS
    assert golden["SRM_global_label_first_image"] == IMAGE_LABEL
    assert (golden["SRM_pixel_ce"], golden["SRM_image_bce"]) == (PIXEL, IMAGE)


@pytest.mark.parametrize("bias", [0.2, torch.tensor(0.2, dtype=torch.float64)], ids=["number", "tensor"])
def test_the_reference_values(closed_form, bias) -> None:
    features, dictionary = closed_form((2, 6, 3, 4), 0.9), closed_form((6, 12), 0.25, 0.5)
    code = sparse_code(features, dictionary, bias, 3)
    assert (reconstruct(code, dictionary) - features).square().mean().item() == pytest.approx(RECONSTRUCTION, rel=1e-9)
    pixel, image = labels(features, dictionary, bias, 3)
    assert pixel[0].tolist() == PIXEL_LABELS
    assert image[0].tolist() == pytest.approx(IMAGE_LABEL, rel=1e-9, abs=5.1e-11)
    student = similarity(closed_form((2, 5, 3, 4), 0.15), closed_form((5, 12), 0.35, 0.5), -0.1)
    assert pixel_loss(student, pixel).item() == pytest.approx(PIXEL, rel=1e-9)
    assert image_loss(student, image).item() == pytest.approx(IMAGE, rel=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
@given(case=coded())
def test_codes_and_labels_are_those_of_naive_loops(kernel: str, case) -> None:
    features, dictionary, bias, active = case
    tensors = torch.from_numpy(features), torch.from_numpy(dictionary), torch.tensor(bias, dtype=torch.float64)
    wanted = naive_codes(features, dictionary, bias, active, kernel)
    code = sparse_code(*tensors, active, kernel)
    assert np.allclose(code, wanted, rtol=1e-12, atol=1e-14)
    dense = naive_codes(features, dictionary, bias, dictionary.shape[1], kernel)
    assert np.allclose(similarity(*tensors, kernel), dense, rtol=1e-12, atol=1e-14)
    assert np.allclose(reconstruct(code, tensors[1]), np.einsum("cm,nmhw->nchw", dictionary, wanted), atol=1e-12)
    pixel, image = labels(*tensors, active, kernel)
    assert pixel.dtype == torch.int64
    assert np.allclose(image, wanted.mean((2, 3)), rtol=1e-12, atol=1e-14)
    for place, row in each_pixel(features):
        scores = [naive_score(row, atom, bias, kernel) for atom in dictionary.T.tolist()]
        assert pixel[place] == scores.index(max(scores))


@given(
    arrays(np.float64, (2, 5, 2, 3), elements=st.floats(0, 1)),
    arrays(np.int64, (2, 2, 3), elements=st.integers(0, 4)),
    arrays(np.float64, (2, 5), elements=st.floats(0, 1)),
)
def test_the_losses_are_those_of_naive_loops_and_never_below_their_floors(similar, pixel, image) -> None:
    student = torch.from_numpy(similar)
    found = pixel_loss(student, torch.from_numpy(pixel)).item()
    assert found == pytest.approx(naive_pixel_loss(similar, pixel), rel=1e-12)
    assert found >= math.log(math.e + 5 - 1) - 1 - 1e-12
    for kind in (torch.uint16, torch.uint8):
        assert pixel_loss(student, torch.from_numpy(pixel).to(kind)).item() == found
    found = image_loss(student, torch.from_numpy(image)).item()
    assert found == pytest.approx(naive_image_loss(similar, image), rel=1e-9, abs=1e-12)
    assert found >= naive_image_loss(np.broadcast_to(image[:, :, None, None], similar.shape), image) - 1e-9


def test_a_student_that_is_the_teacher_reaches_the_floors() -> None:
    """Saturated sigmoids, so that the nearest atom has similarity 1 and all others 0; all atoms active."""
    atoms = 6
    features = 200 * torch.eye(atoms, dtype=torch.float64)[torch.tensor([[0, 3, 3, 5], [1, 1, 1, 2]])]
    features, dictionary, bias = features.reshape(2, 2, 2, atoms).movedim(3, 1), torch.eye(atoms).double(), -100.0
    pixel, image = labels(features, dictionary, bias, atoms)
    student = similarity(features, dictionary, bias)
    assert pixel_loss(student, pixel).item() == pytest.approx(math.log(math.e + atoms - 1) - 1, rel=1e-12)
    shares = [0.25, 0, 0, 0.5, 0, 0.25], [0, 0.75, 0.25, 0, 0, 0]
    entropy = -sum(y * math.log(y) + (1 - y) * math.log(1 - y) for row in shares for y in row if 0 < y < 1)
    assert image_loss(student, image).item() == pytest.approx(entropy / (2 * atoms), rel=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_agree_with_differences(kernel: str) -> None:
    features, dictionary, bias = (value.requires_grad_() for value in random_case(n=2, side=2))
    target, image = labels(features, dictionary, bias, 2, kernel)

    def losses(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        similar = similarity(*given, kernel)
        error = (reconstruct(sparse_code(*given, 2, kernel), given[1]) - given[0]).square().mean()
        of_images = () if kernel == "linear" else (image_loss(similar, image),)
        return pixel_loss(similar, target), error, *of_images

    assert torch.autograd.gradcheck(losses, (features, dictionary, bias))


# Ties, saturation, precision


@pytest.mark.parametrize("active", [1, 3, 7])
def test_exactly_k_atoms_are_active_where_all_scores_are_equal(active: int) -> None:
    code = sparse_code(torch.zeros(2, 4, 3, 3), torch.randn(4, 7), torch.tensor(0.1), active)
    assert torch.equal(code != 0, (torch.arange(7) < active)[None, :, None, None].expand(2, 7, 3, 3))
    pixel, image = labels(torch.zeros(2, 4, 3, 3), torch.randn(4, 7), torch.tensor(0.1), active)
    assert not pixel.any()
    assert int((image > 0).sum()) == 2 * active


@given(arrays(np.int64, (5, 70), elements=st.integers(0, 3)), st.integers(1, 70))
@settings(max_examples=25)
def test_the_highest_scores_are_chosen_and_of_equal_ones_the_first(scores, active: int) -> None:
    found = highest(torch.from_numpy(scores.astype(np.float32)), active)
    for row, chosen in zip(scores.tolist(), found.tolist(), strict=True):
        assert sorted(chosen) == sorted(sorted(range(70), key=lambda m: (-row[m], m))[:active])


def test_atoms_that_the_sigmoid_makes_equal_are_told_apart_by_their_scores() -> None:
    features, dictionary = torch.ones(1, 1, 1, 1), torch.tensor([[30.0, 40.0, 20.0, 35.0]])
    assert similarity(features, dictionary, 0.0).unique().tolist() == [1.0]
    assert sparse_code(features, dictionary, 0.0, 2).flatten().tolist() == [0, 1, 0, 1]
    assert labels(features, dictionary, 0.0, 2)[0].item() == 1


def test_near_an_atom_the_rbf_kernel_does_not_cancel() -> None:
    """|t|^2 is a million and |t - d|^2 is 1e-2 or 4e-2: float32 would not see it in the difference of the squares."""
    pixel = torch.full((1, 100, 1, 1), 100.0)
    atoms = torch.stack([pixel.flatten() + 0.02, pixel.flatten() - 0.01], dim=1)
    wanted = [math.exp(-float((atoms[:, m].double() - 100).square().sum())) for m in range(2)]
    assert similarity(pixel, atoms, 0.0, "rbf").flatten().tolist() == pytest.approx(wanted, rel=1e-6)
    assert labels(pixel, atoms, 0.0, 1, "rbf")[0].item() == 1
    assert similarity(atoms[None, :, :1, None], atoms, 5.0, "rbf").flatten()[0] == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_and_short_numbers_change_nothing_but_the_inputs(kernel: str) -> None:
    features, dictionary, bias = (value.float() for value in random_case(2))
    short = features.half()
    wanted = labels(short.float(), dictionary, bias, 3, kernel)
    student = similarity(short.float(), dictionary, bias, kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = labels(short, dictionary, bias, 3, kernel)
        assert all(torch.equal(*sides) for sides in zip(found, wanted, strict=True))
        assert torch.equal(similarity(short, dictionary, bias, kernel), student)
        assert reconstruct(student, dictionary).dtype == torch.float32
        assert pixel_loss(student.half(), found[0]).dtype == torch.float32
        if kernel != "linear":
            assert image_loss(student.half(), found[1]).dtype == torch.float32


def test_stored_image_labels_stay_probabilities() -> None:
    features, dictionary = torch.full((1, 1, 7, 7), 50.0), torch.tensor([[1.0, 0.5, -1.0]])
    _, image = labels(features, dictionary, 0.0, 2)
    assert image.half().flatten().tolist() == [1, 1, 0]
    student = similarity(features, dictionary, 0.0).requires_grad_()
    loss = image_loss(student, image.half())
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() < 1e-6
    assert bool(torch.isfinite(gradient).all())
    assert image_loss(torch.full((1, 3, 7, 7), 1 + 2e-7), torch.ones(1, 3)).item() == 0  # a mean that was rounded up


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e2, 1e4])
def test_degenerate_maps_give_finite_losses_and_gradients(kernel: str, scale: float) -> None:
    features, dictionary, bias = (value.float() for value in random_case(1))
    inputs = [(scale * features).requires_grad_(), dictionary.requires_grad_(), bias.requires_grad_()]
    pixel, image = labels(*inputs, 2, kernel)
    similar = similarity(*inputs, kernel)
    loss = pixel_loss(similar, pixel.roll(1, 0)) + (image_loss(similar, image.roll(1, 0)) if kernel != "linear" else 0)
    error = (reconstruct(sparse_code(*inputs, 2, kernel), inputs[1]) - inputs[0]).square().mean()
    for value in (loss, error, *torch.autograd.grad(loss + error, inputs)):
        assert bool(torch.isfinite(value).all())


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown kernel 'rfb'; did you mean 'rbf'"):
        similarity(*random_case(), "rfb")


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_size_of_the_pieces_changes_no_label(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    case = random_case(4, n=7)
    wanted = labels(*case, 3, kernel)
    for size in (1, 400):
        monkeypatch.setattr(dictionaries, "PIECE", size)
        found = labels(*case, 3, kernel)
        assert torch.equal(found[0], wanted[0])
        assert torch.allclose(found[1], wanted[1], rtol=1e-13)


# Dictionaries

SIZES = {  # C 128, 256, 1024: atoms, and active ones for lambda 0.01, 0.02, 0.03
    1.5: ((192, 384, 1536), (1, 3, 15), (3, 7, 30), (5, 11, 46)),
    2.0: ((256, 512, 2048), (2, 5, 20), (5, 10, 40), (7, 15, 61)),
    3.0: ((384, 768, 3072), (3, 7, 30), (7, 15, 61), (11, 23, 92)),
}


@pytest.mark.parametrize("mu", SIZES)
def test_numbers_of_atoms(mu: float) -> None:
    atoms, *active = SIZES[mu]
    assert tuple(atom_count(channels, mu) for channels in (128, 256, 1024)) == atoms
    for sparsity, wanted in zip((0.01, 0.02, 0.03), active, strict=True):
        assert tuple(active_count(channels, mu, sparsity) for channels in (128, 256, 1024)) == wanted
    transfer = [(atom_count(c, 2.0), active_count(c, 2.0, 0.02)) for c in (64, 512, 1024, 2048)]
    assert transfer == [(128, 2), (1024, 20), (2048, 40), (4096, 81)]


def test_numbers_of_atoms_do_not_depend_on_binary_fractions() -> None:
    assert int(100 * 0.29) == 28
    assert atom_count(100, 0.29) == 29
    assert active_count(100, 1.0, 0.29) == 29
    assert (atom_count(1, 0.5), active_count(3, 2.0, 0.02)) == (1, 1)


def test_the_key_of_a_dictionary_carries_every_parameter() -> None:
    fit = Dictionary("stage2", 2.0, 0.02, "sigmoid", 10)
    assert fit.key == "srm.stage2.sigmoid.mu2.lambda0.02.passes10"
    assert replace(fit, mu=1.5, kernel="rbf").key == "srm.stage2.rbf.mu1.5.lambda0.02.passes10"
    assert fit.passes(4) == (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)
    assert [target.key for target in fit.reads] == ["stage2.map"]


@pytest.mark.parametrize(
    ("turns", "ends"),
    [(1, (1, 1, 1)), (3, (1, 2, 3)), (5, (1, 4, 5)), (10, (1, 7, 10)), (15, (2, 11, 15)), (100, (10, 70, 100))],
)
def test_the_phases_of_the_passes(turns: int, ends: tuple[int, int, int]) -> None:
    assert Dictionary("stage1", 2.0, 0.02, "sigmoid", turns).phase_ends() == ends


SHAPES = {"stage1.map": {VALUES: (6, 3, 3)}}


def fit_batches(maps: list[torch.Tensor], turn: int, key: str = "stage1.map") -> list[FitBatch]:
    """A pass over maps, one batch each."""
    batches = []
    for number, rows in enumerate(maps):
        positions = torch.arange(len(rows)) + number * len(rows)
        last = number + 1 == len(maps)
        batches.append(FitBatch({key: {VALUES: rows}}, torch.zeros_like(positions), positions, turn, turn, last))
    return batches


@torch.no_grad()
def learned(fit: Dictionary, maps: list[torch.Tensor], shapes=SHAPES):
    state = fit.begin(FACTS, shapes, 1)
    for turn in range(fit.turns):
        for batch in fit_batches(maps, turn):
            state = fit.step(state, batch)
    return state, fit.result(state, FACTS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_fit_is_adam_on_the_dense_codes(kernel: str) -> None:
    """Four passes in three phases, against torch's own loop over naive choices; float16 maps, as a cache gives them."""
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(4, 6, 3, 3, generator=generator).half().float() for _ in range(5)]
    fit = Dictionary("stage1", 1.5, 0.25, kernel, 4)
    start = fit.begin(FACTS, SHAPES, 1)
    leaves = [start[name].clone().requires_grad_() for name in ("dictionary", "bias")]
    errors, unused = [], []
    for turn, rate in enumerate((1e-3, 1e-4, 1e-4, 1e-5)):
        if turn != 2:
            optimizer = torch.optim.Adam(leaves, lr=rate)
        losses, used = [], torch.zeros(9, dtype=torch.bool)
        for rows in maps:
            dictionary, bias = (leaf.detach().double().numpy() for leaf in leaves)
            mask = torch.from_numpy(naive_codes(rows.double().numpy(), dictionary, float(bias), 2, kernel) != 0)
            error = (reconstruct(similarity(rows, *leaves, kernel) * mask, leaves[0]) - rows).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            losses.append(error.item())
            used |= mask.sum((0, 2, 3)) > 0
        errors.append(np.mean(losses))
        unused.append(int((~used).sum()))
    state, result = learned(fit, maps)
    assert np.allclose(result["errors"], errors, rtol=1e-5)
    assert result["unused"].tolist() == unused
    assert torch.allclose(state["dictionary"], leaves[0], rtol=1e-4, atol=1e-6)
    assert torch.allclose(state["bias"], leaves[1], rtol=1e-4, atol=1e-6)
    assert {name: (value.dtype, value.shape) for name, value in result.items()} == {
        "dictionary": (np.float32, (6, 9)),
        "bias": (np.float32, ()),
        "errors": (np.float64, (4,)),
        "unused": (np.int64, (4,)),
    }


@torch.no_grad()
def test_unused_atoms_are_counted_in_each_pass_anew() -> None:
    fit, generator = Dictionary("stage1", 2.0, 0.1, "sigmoid", 2), torch.Generator().manual_seed(0)
    state = fit.begin(FACTS, SHAPES, 1)
    for turn, scale in enumerate((9, 0)):
        for batch in fit_batches([scale * torch.randn(4, 6, 3, 3, generator=generator) for _ in range(3)], turn):
            state = fit.step(state, batch)
    usual, of_zeros = fit.result(state, FACTS)["unused"].tolist()
    assert (usual < 3, of_zeros) == (True, 11)


@torch.no_grad()
def test_the_phase_end_of_the_lowest_error_is_kept() -> None:
    fit, generator = Dictionary("stage1", 2.0, 0.1, "sigmoid", 3), torch.Generator().manual_seed(0)
    for scales, kept in (((1, 9, 9), 1), ((9, 1, 9), 2), ((9, 9, 1), 3)):
        state, ends = fit.begin(FACTS, SHAPES, 1), []
        for turn, scale in enumerate(scales):
            maps = [scale * torch.randn(4, 6, 3, 3, generator=generator) for _ in range(3)]
            for batch in fit_batches(maps, turn):
                state = fit.step(state, batch)
            assert not any(name.endswith(".step") for name in state)  # the next phase has an optimiser of its own
            ends.append((state["dictionary"].clone(), state["bias"].clone()))
        result = fit.result(state, FACTS)
        assert np.array_equal(result["dictionary"], ends[kept - 1][0].numpy())
        assert np.array_equal(result["bias"], ends[kept - 1][1].numpy())


def test_a_planted_dictionary_makes_the_error_fall() -> None:
    """Maps that are sums of two of eight hidden atoms; measured: from 0.68 to 0.22 of the map's power."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.nn.functional.normalize(torch.randn(8, 8, generator=generator), dim=0)
    maps = []
    for _ in range(100):
        chosen = torch.rand(8, 8, 4, 4, generator=generator).argsort(1) < 2
        maps.append(reconstruct(chosen * torch.rand(8, 8, 4, 4, generator=generator), hidden).half().float())
    fit = Dictionary("stage1", 4.0, 0.1, "sigmoid", 20)
    state, result = learned(fit, maps, {"stage1.map": {VALUES: (8, 4, 4)}})
    first, last, power = result["errors"][0], result["errors"][-1], float(torch.stack(maps).square().mean())
    assert (np.diff(result["errors"]) < 0).all()
    assert last < 0.4 * first
    assert last < 0.25 * power
    wanted = f"error {last:.4g} ({last / power:.3f} of the map's power), {result['unused'][-1]} of 32 atoms unused"
    assert fit.remark(state) == f"reconstruction {wanted}"


def test_before_the_first_batch_there_is_a_result() -> None:
    fit = Dictionary("stage1", 2.0, 0.02, "sigmoid", 10)
    state = fit.begin(FACTS, SHAPES, 4)
    assert fit.remark(state) == ""
    result = fit.result(state, FACTS)
    assert {name: value.shape for name, value in result.items()} == {
        "dictionary": (6, 12),
        "bias": (),
        "errors": (10,),
        "unused": (10,),
    }
    bound = (6 / 12) ** 0.5
    assert 0.8 * bound < np.abs(result["dictionary"]).max() <= bound
    assert abs(result["bias"]) <= 1


def test_a_dictionary_begins_by_seed_and_tap_alone() -> None:
    def first(tap: str, seed: int, **options) -> torch.Tensor:
        fit = Dictionary(tap, 2.0, 0.02, "sigmoid", 10)
        return replace(fit, **options).begin(replace(FACTS, seed=seed), {f"{tap}.map": SHAPES["stage1.map"]}, 4)

    one = first("stage1", 0)
    assert torch.equal(one["dictionary"], first("stage1", 0, turns=5)["dictionary"])
    for other in (first("stage1", 1), first("stage2", 0)):
        assert not torch.equal(one["dictionary"], other["dictionary"])
    rbf = first("stage1", 0, kernel="rbf")
    assert torch.equal(rbf["dictionary"], one["dictionary"])
    assert float(one["bias"] - rbf["bias"]) == pytest.approx(math.log(6))


def test_a_vector_is_a_map_of_one_pixel() -> None:
    rows = [torch.randn(5, 6) for _ in range(3)]
    fit = Dictionary("stage1", 2.0, 0.1, "sigmoid", 3)
    flat = learned(fit, rows, {"stage1.map": {VALUES: (6,)}})[1]
    wide = learned(fit, [row[:, :, None, None] for row in rows], {"stage1.map": {VALUES: (6, 1, 1)}})[1]
    assert all(np.array_equal(flat[name], wide[name]) for name in flat)
    encode, fitted = (
        SRM().target("before_fc").encode,
        {name: torch.from_numpy(np.atleast_1d(flat[name])) for name in flat},
    )
    arrays = encode({"before_fc": rows[0]}, fitted)
    assert {name: tuple(value.shape) for name, value in arrays.items()} == {"pixel": (5, 1, 1), "image": (5, 12)}


@pytest.mark.parametrize("kernel", KERNELS)
def test_zero_maps_give_finite_dictionaries(kernel: str) -> None:
    fit = Dictionary("stage1", 2.0, 0.1, kernel, 3)
    state, result = learned(fit, [torch.zeros(2, 6, 3, 3)] * 2)
    assert all(np.isfinite(value).all() for value in result.values())
    assert result["unused"].tolist() == [11, 11, 11]
    assert "power" not in fit.remark(state)


# What is stored


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_stored_labels_give_the_losses_of_whole_maps(pair, kernel: str) -> None:
    """In float64 to 1e-12, against naive loops; with image labels stored as float16 to 1e-4 (measured: 5.3e-6)."""
    method = SRM(passes=2, sparsity=0.3, kernel=kernel, labels="pixel" if kernel == "linear" else "both")
    of = trial(method, pair)
    adapters, told = of.adapters().double(), {tap: rows.double() for tap, rows in teacher_taps(pair, 0).items()}
    student = {tap: rows.double() for tap, rows in of.student.items()}
    exact, rounded, wanted = {}, {}, {"srm_pixel": 0.0, "srm_image": 0.0}
    for belonging in method.pairs(pair.student, pair.teacher):
        target, ours = method.target(belonging.teacher), adapters.of(belonging)
        fitted = fitted_of(target, of.fitted, double=True)
        exact[target.key] = target.encode(told, fitted)
        rounded[target.key] = {**exact[target.key], "image": exact[target.key]["image"].half().double()}
        known = told[belonging.teacher].numpy(), fitted["dictionary"].numpy(), fitted["bias"].item()
        active = active_count(belonging.teacher_shape[0], 2.0, 0.3)
        mine = student[belonging.student].numpy(), ours.dictionary.detach().numpy(), ours.bias.item()
        similar = naive_codes(*mine, len(mine[1].T), kernel)
        wanted["srm_pixel"] += naive_pixel_loss(similar, (naive_codes(*known, 1, kernel) != 0).argmax(1))
        if kernel != "linear":
            wanted["srm_image"] += naive_image_loss(similar, naive_codes(*known, active, kernel).mean((2, 3)))
    positions = torch.arange(SAMPLES)
    batch = Batch(positions, torch.zeros_like(positions), 0, "pretrain", 0, 0, torch.Generator())
    for cached, bound in ((exact, 1e-12), (rounded, 1e-4)):
        terms = method.terms(student, cached, batch, adapters)
        assert terms.keys() == {name for name, value in wanted.items() if value}
        for name, value in terms.items():
            assert value.item() == pytest.approx(wanted[name], rel=bound)


def test_bytes_of_a_sample_and_parameters_of_the_student() -> None:
    """Table I's networks, mu 2: 336 indices and 2,816 probabilities instead of 65,536 floats of maps."""
    method = SRM()
    assert [pair.name for pair in method.pairs(CIFAR_STUDENT, CIFAR_TEACHER)] == ["stage1", "stage2", "stage3"]
    counts = {"pixel": 0, "image": 0}
    for target in SRM().always(CIFAR_TEACHER):
        shape = CIFAR_TEACHER[target.taps[0]]
        fitted = target.fit.result(target.fit.begin(FACTS, {f"{target.taps[0]}.map": {VALUES: shape}}, 1), FACTS)
        tensors = {name: torch.from_numpy(np.atleast_1d(value)) for name, value in fitted.items()}
        arrays = target.encode({target.taps[0]: torch.randn(2, *shape)}, tensors)
        assert (arrays["pixel"].dtype, target.dtype) == (torch.uint16, "float16")
        for name in counts:
            counts[name] += arrays[name][0].numel()
    assert counts == {"pixel": 336, "image": 2816}
    assert 2 * sum(counts.values()) == 6304
    adapters = method.adapters(CIFAR_STUDENT, CIFAR_TEACHER, FACTS, {})
    shapes = [tuple(parameter.shape) for parameter in adapters.parameters()]
    assert shapes == [(63, 256), (), (126, 512), (), (253, 2048), ()]


def test_targets_are_those_of_every_stage_of_the_teacher() -> None:
    method = SRM(mu=1.5)
    every = {target.key: target for target in method.always(CIFAR_TEACHER)}
    assert list(every) == [f"stage{number}.srm.sigmoid.mu1.5.lambda0.02.passes10" for number in (1, 2, 3)]
    assert all(target.fit.key == f"srm.{target.taps[0]}.sigmoid.mu1.5.lambda0.02.passes10" for target in every.values())
    small = {"stage1": (8, 8, 8), "after_fc": (100,)}
    for student, taps in ((CIFAR_STUDENT, ("stage1", "stage2", "stage3")), (small, ("stage2",))):
        *found, logits = method.targets(student, CIFAR_TEACHER)
        assert tuple(target.taps[0] for target in found) == taps
        assert all(every[target.key] == target for target in found)
        assert logits == vector("after_fc")
    assert method.targets(small, CIFAR_TEACHER) == replace(method, labels="pixel").targets(small, CIFAR_TEACHER)


def test_the_networks_of_the_paper() -> None:
    """DenseNet121 to AllCNN on CIFAR: its three layers have the sizes of methods.md 2.2 to 2.6."""
    student, teacher = (tap_shapes(create(name, 100), (3, 32, 32)) for name in ("allcnn", "densenet121"))
    assert [pair.name for pair in SRM().pairs(student, teacher)] == ["stage1", "stage2", "stage3", "stage4"]
    method = SRM(layers=("stage1", "stage2", "stage4"))
    *labels, _ = method.targets(student, teacher)
    assert [target.taps for target in labels] == [("stage1",), ("stage2",), ("stage4",)]
    fits = [
        target.fit.begin(FACTS, {f"{target.taps[0]}.map": {VALUES: teacher[target.taps[0]]}}, 1) for target in labels
    ]
    assert [tuple(state["dictionary"].shape) for state in fits] == [(128, 256), (256, 512), (1024, 2048)]
    assert [active_count(channels, 2.0, 0.02) for channels in (128, 256, 1024)] == [5, 10, 40]
    shapes = [tuple(parameter.shape) for parameter in method.adapters(student, teacher, FACTS, {}).parameters()]
    assert shapes == [(63, 256), (), (126, 512), (), (253, 2048), ()]


# Pairs


def paired(layers: tuple[str, ...], student=CIFAR_STUDENT, teacher=CIFAR_TEACHER) -> list[tuple[str, str]]:
    return [(pair.student, pair.teacher) for pair in SRM(layers=layers).pairs(student, teacher)]


def test_the_pairs_of_a_student() -> None:
    vgg = {"stage1": (128, 16, 16), "stage2": (256, 8, 8), "stage3": (512, 4, 4), "stage4": (512, 4, 4)}
    shifted = {"stem": (8, 16, 16), "stage1": (8, 32, 32), "stage2": (8, 16, 16), "stage3": (8, 4, 4)}
    assert paired((), vgg, vgg) == [(f"stage{number}", f"stage{number}") for number in (1, 2, 3, 4)]
    assert paired((), shifted, vgg) == [("stage2", "stage1"), ("stage3", "stage3"), ("stage3", "stage4")]
    assert paired((), vgg, shifted) == [("stage1", "stage2"), ("stage3", "stage3")]
    assert paired((), {**vgg, "stage3": (9, 2, 2), "stage5": (9, 4, 4)}, shifted)[1] == ("stage5", "stage3")
    assert paired(("stage2", "conv4_x:stage3")) == [("stage2", "stage2"), ("stage3", "stage3")]
    vectors = {**CIFAR_STUDENT, "before_fc": (253,)}, {**CIFAR_TEACHER, "before_fc": (1024,)}
    assert paired(("before_fc",), *vectors) == [("before_fc", "before_fc")]
    two = SRM(layers=("stage1:stage2", "stage2")).targets({**CIFAR_STUDENT, "stage1": (4, 8, 8)}, CIFAR_TEACHER)
    assert [target.taps[0] for target in two] == ["stage2", "after_fc"]


@pytest.mark.parametrize(
    ("layers", "student", "message"),
    [
        (
            ("stage1:stage2",),
            CIFAR_STUDENT,
            "stage1 of the student is 16x16, stage2 of the teacher 8x8; stages of the student: .* stage3 4x4; of the t",
        ),
        (
            (),
            {"stage1": (4, 5, 5)},
            "stages of equal size .*; stages of the student: stage1 5x5; of the teacher: stage1 1",
        ),
        ((), {"after_fc": (4,)}, "stages of the student: none; of the teacher: stage1 16x16"),
        (("stage7",), CIFAR_STUDENT, "unknown layer of the student 'stage7'"),
        (("stage1:stage7",), CIFAR_STUDENT, "unknown layer of the teacher 'stage7'"),
        (("stage1", "stage1"), CIFAR_STUDENT, "named twice"),
    ],
)
def test_what_cannot_be_paired_is_refused(layers, student, message: str) -> None:
    for asked in (SRM.student_taps, SRM.targets):
        with pytest.raises(UsageError, match=message) as error:
            asked(SRM(layers=layers), student, CIFAR_TEACHER)
        assert "\n" not in str(error.value)


def test_more_atoms_than_a_label_can_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"mu=65 gives 66,560 atoms for stage3; at most 65,536"):
        SRM(mu=65.0).targets(CIFAR_STUDENT, CIFAR_TEACHER)


# The method


def test_the_stages_and_terms(make_facts, make_batch) -> None:
    method, facts = SRM(alpha=0.25), make_facts([0] * 1000, 100, batch=128, epochs=200)
    pretrain, kd = method.stages(CIFAR_STUDENT, CIFAR_TEACHER, facts)
    assert (pretrain.name, pretrain.epochs, pretrain.task, pretrain.select) == ("pretrain", 160, 0.0, "validation_loss")
    assert pretrain.trains == ("stage1", "stage2", "stage3")
    assert pretrain.discard
    assert pretrain.weights == {"srm_pixel": Weight(1.0), "srm_image": Weight(1.0)}
    assert pretrain.recipe["batch"] == 384
    assert kd == Stage(name="kd", weights={"kd": Weight(0.25)}, task=0.75)
    few = method.stages(CIFAR_STUDENT, CIFAR_TEACHER, make_facts([0] * 300, 100, batch=128, epochs=2))[0]
    assert (few.epochs, few.recipe["batch"]) == (2, 300)
    own = SRM(labels="image", alpha=0.0, pretraining_epochs=7, pretraining_batch=64)
    pretrain, plain = own.stages(CIFAR_STUDENT, CIFAR_TEACHER, facts)
    assert (pretrain.epochs, pretrain.recipe["batch"], list(pretrain.weights)) == (7, 64, ["srm_image"])
    assert plain == Stage(name="kd", weights={}, task=1.0)
    assert own.student_taps(CIFAR_STUDENT, CIFAR_TEACHER) == ("stage1", "stage2", "stage3")
    assert len(own.targets(CIFAR_STUDENT, CIFAR_TEACHER)) == 3
    student, teacher = torch.randn(2, 100), torch.randn(2, 100)
    terms = method.terms(
        {"after_fc": student}, {"logits": {VALUES: teacher}}, make_batch([0, 1], stage="kd"), torch.nn.Module()
    )
    assert terms.keys() == {"kd"}
    assert torch.equal(terms["kd"], kd_loss(student, teacher, 4.0))


CHOSEN = [
    SRM(passes=2),
    SRM(passes=2, kernel="rbf"),
    SRM(passes=2, kernel="linear", labels="pixel"),
    SRM(passes=2, labels="pixel"),
    SRM(passes=2, labels="image", alpha=1.0),
    SRM(passes=2, alpha=0.0),
    SRM(passes=4, mu=1.5, sparsity=0.3, layers=("before_fc", "stage2:stage2"), pretraining_epochs=3),
]


@pytest.mark.parametrize("method", CHOSEN, ids=lambda method: f"{method.kernel} {method.labels} {method.alpha}")
def test_the_method_conforms(method: Method) -> None:
    check_method(method)


def test_equal_keys_mean_equal_definitions() -> None:
    check_keys(CHOSEN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "rfb"}, "unknown srm.kernel 'rfb'; did you mean 'rbf'"),
        ({"labels": "pixels"}, "unknown srm.labels 'pixels'; did you mean 'pixel'"),
        ({"kernel": "linear"}, "gives no probabilities, which srm.labels=both compares; take srm.labels=pixel"),
        ({"mu": "0"}, "srm.mu is above 0"),
        ({"mu": "1.2345678"}, "srm.mu has at most six digits"),
        ({"sparsity": "1.5"}, "srm.sparsity is above 0 and at most 1"),
        ({"passes": "0"}, "srm.passes is at least 1"),
        ({"alpha": "-0.1"}, "srm.alpha is from 0 to 1"),
        ({"temperature": "0"}, "srm.temperature is above 0"),
        ({"pretraining_epochs": "0"}, "srm.pretraining_epochs is at least 1"),
        ({"pretraining_batch": "-1"}, "srm.pretraining_batch is not negative"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SRM().with_options(options)


def test_what_is_no_number_stays_none_without_an_error() -> None:
    similar = torch.full((2, 3, 4, 4), 0.5)
    similar[1, 2, 0, 0] = torch.nan
    leaf = similar.requires_grad_()
    loss = image_loss(leaf, torch.full((2, 3), 0.25))
    loss.backward()
    assert bool(loss.isnan())
    assert bool(leaf.grad.isfinite().all())


def test_stages_of_tokens_are_none_of_its_own() -> None:
    tokens = {"stage1": (197, 768), "stage2": (8, 4, 4), "stage3": (16,), "after_fc": (10,)}
    assert [target.taps for target in SRM().always(tokens)] == [("stage2",), ("stage3",)]
    assert [pair.teacher for pair in SRM().pairs(tokens, tokens)] == ["stage2", "stage3"]
    with pytest.raises(UsageError, match=r"stage1 is of the shape \(197, 768\)"):
        SRM(layers=("stage1",)).pairs(tokens, tokens)
