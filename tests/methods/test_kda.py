"""KDA's loss and whitening against independent forms, and the life of its landmarks against naive means."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from kdtool import philox
from kdtool.errors import UsageError
from kdtool.methods import method
from kdtool.methods.kda import KDA, Landmarks, kda_loss, whitened
from kdtool.methods.vectors import ClassCentres, ClassClusters
from kdtool.targets import canonical_tap

# The official code's loss, float64, on the closed-form inputs of `closed_form`: f_S (6, 9) of phase 0.3, f_T (6, 12) of
# phase 1.1, D_S (5, 9) of phase 0.2, D_T (5, 12) of phase 0.8.
GOLDEN = 5.543223672833584

STUDENT = {"stage3": (4, 5, 5), "stage4": (3, 2, 2), "before_fc": (3,), "after_fc": (4,)}
TEACHER = {"stage3": (6, 5, 5), "stage4": (5, 2, 2), "before_fc": (5,), "after_fc": (4,)}

floats = st.floats(-4, 4, width=32).map(float)


def asked(**options: str) -> KDA:
    found = method("kda").with_options(options)
    assert isinstance(found, KDA)
    return found


def golden_inputs(closed_form) -> tuple[torch.Tensor, ...]:
    shapes = (((6, 9), 0.3), ((6, 12), 1.1), ((5, 9), 0.2), ((5, 12), 0.8))
    return tuple(closed_form(shape, phase) for shape, phase in shapes)


def naive(student, teacher, student_landmarks, teacher_landmarks) -> float:
    """Eq. 4 with the official code's normaliser, one number at a time."""
    total = squares = 0.0
    for x_s, x_t in zip(student.tolist(), teacher.tolist(), strict=True):
        for d_s, d_t in zip(student_landmarks.tolist(), teacher_landmarks.tolist(), strict=True):
            ours = sum(a * b for a, b in zip(x_s, d_s, strict=True))
            theirs = sum(a * b for a, b in zip(x_t, d_t, strict=True))
            apart = abs(ours - theirs)
            total += 0.5 * apart**2 if apart < 1 else apart - 0.5
            squares += theirs**2
    return total / max(math.sqrt(squares), 1e-12)


@st.composite
def sides(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    rows, count = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ours, theirs = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shapes = ((rows, ours), (rows, theirs), (count, ours), (count, theirs))
    return tuple(draw(arrays(np.float64, shape, elements=floats)) for shape in shapes)


# The loss


def test_the_value_of_the_reference(closed_form) -> None:
    assert float(kda_loss(*golden_inputs(closed_form))) == pytest.approx(GOLDEN, rel=1e-9)


def test_the_value_in_the_shared_file(closed_form, golden) -> None:
    assert golden["KDA"] == GOLDEN
    assert float(kda_loss(*golden_inputs(closed_form))) == pytest.approx(golden["KDA"], rel=1e-9)


@given(given_sides=sides())
def test_a_naive_loop_gives_the_same(given_sides: tuple[np.ndarray, ...]) -> None:
    wanted = naive(*given_sides)
    assert float(kda_loss(*map(torch.from_numpy, given_sides))) == pytest.approx(wanted, rel=1e-9, abs=1e-11)


@given(given_sides=sides())
def test_equal_sides_lose_nothing(given_sides: tuple[np.ndarray, ...]) -> None:
    rows, _, landmarks, _ = map(torch.from_numpy, given_sides)
    assert float(kda_loss(rows, rows, landmarks, landmarks)) == 0


def test_a_rotation_of_the_students_space_changes_nothing(closed_form) -> None:
    student, teacher, ours, theirs = golden_inputs(closed_form)
    rotation, _ = torch.linalg.qr(closed_form((9, 9), 2.0))
    found = kda_loss(student @ rotation, teacher, ours @ rotation, theirs)
    assert float(found) == pytest.approx(GOLDEN, rel=1e-9)


def test_the_gradient_is_that_of_differences_and_reaches_the_students_features_alone(closed_form) -> None:
    leaves = [value.requires_grad_() for value in golden_inputs(closed_form)]
    assert torch.autograd.gradcheck(lambda student: kda_loss(student, *leaves[1:]), (leaves[0],))
    kda_loss(*leaves).backward()
    assert leaves[0].grad is not None
    assert [leaf.grad for leaf in leaves[1:]] == [None, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1e6, 1e-6), (1e-6, 1e6), (1e4, -1e4)],
)
def test_odd_features_stay_finite(student: float, teacher: float, dtype: torch.dtype) -> None:
    """Zero features, identical samples (all rows are equal here), and features of very different sizes."""
    ours = torch.full((4, 3), student, dtype=dtype).requires_grad_()
    theirs = torch.full((4, 5), teacher, dtype=dtype)
    loss = kda_loss(ours, theirs, ours.detach()[:2], theirs[:2])
    loss.backward()
    assert loss.dtype == dtype
    assert torch.isfinite(loss)
    assert torch.isfinite(ours.grad).all()


# Whitening


def orthogonal_factor(landmarks: np.ndarray, rank: int) -> np.ndarray:
    """W^(-1/2) D = U V^T of the singular value decomposition of D, over its `rank` largest singular values."""
    left, values, right = np.linalg.svd(landmarks, full_matrices=False)
    kept = values > values[0] * 1e-6
    kept[rank or len(values) :] = False
    return left[:, kept] @ right[kept]


SHAPES = [(3, 7), (7, 7), (9, 4), (1, 5), (5, 1)]


def random_landmarks(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 2, 5, 100])
def test_whitened_is_the_inverse_root_times_the_landmarks(shape: tuple[int, int], rank: int) -> None:
    landmarks = random_landmarks(shape)
    np.testing.assert_allclose(whitened(landmarks, rank), orthogonal_factor(landmarks.numpy(), rank), atol=1e-10)


@pytest.mark.parametrize("shape", [(3, 7), (4, 4)])
def test_whitened_equals_the_dense_eigen_decomposition(shape: tuple[int, int]) -> None:
    landmarks = random_landmarks(shape).numpy()
    values, vectors = np.linalg.eig(landmarks @ landmarks.T)
    dense = vectors @ np.diag(values**-0.5) @ np.linalg.inv(vectors) @ landmarks
    np.testing.assert_allclose(whitened(torch.from_numpy(landmarks), 0), dense, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 2])
def test_the_whitened_w_is_a_projector(shape: tuple[int, int], rank: int) -> None:
    """W^(-1/2) W W^(-1/2) is symmetric, idempotent, and of the rank that was asked for; W is singular for m > d."""
    result = whitened(random_landmarks(shape), rank)
    projector = result @ result.T
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-10)
    wanted = min(*shape, rank) if rank else min(shape)
    assert float(projector.trace()) == pytest.approx(wanted, abs=1e-10)


def test_whitened_partial_kernels_do_not_see_a_rotation_of_the_space() -> None:
    landmarks, rows = random_landmarks((5, 8)), random_landmarks((6, 8), seed=1)
    rotation, _ = torch.linalg.qr(random_landmarks((8, 8), seed=2))
    turned = rows @ rotation @ whitened(landmarks @ rotation, 3).T
    np.testing.assert_allclose(turned, rows @ whitened(landmarks, 3).T, atol=1e-10)


def test_equal_and_zero_landmarks_can_be_whitened() -> None:
    row = random_landmarks((1, 6)).float()
    equal = whitened(row.repeat(4, 1), 0)
    np.testing.assert_allclose(equal, (row / row.norm()).repeat(4, 1) / 2, atol=1e-6)
    assert torch.equal(whitened(torch.zeros(4, 6), 0), torch.zeros(4, 6))
    assert torch.equal(whitened(torch.zeros(4, 6), 2), torch.zeros(4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whitened_keeps_the_type(dtype: torch.dtype) -> None:
    assert whitened(random_landmarks((3, 4)).to(dtype), 0).dtype == dtype


# The landmarks


def naive_means(
    last: np.ndarray, bins: np.ndarray, used: list[int], rows: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means (m, d) of the rows used, by bin; the last value and False where a bin has none."""
    means, filled = last.astype(np.float64), np.zeros(count, dtype=bool)
    for number in range(count):
        members = [index for index in used if bins[index] == number]
        if members:
            filled[number] = True
            means[number] = [sum(float(rows[i, k]) for i in members) / len(members) for k in range(rows.shape[1])]
    return means, filled


@given(data=st.data(), seed=st.integers(0, 2**20))
def test_landmarks_are_the_means_of_the_rows_that_the_epoch_used(data: st.DataObject, seed: int) -> None:
    """Whatever the bins, the order, the batches, and the rows that a subset or an incomplete batch leaves out."""
    samples, count = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 5))
    bins = data.draw(arrays(np.int64, samples, elements=st.integers(-1, count - 1)))
    momentum = data.draw(st.sampled_from([0.0, 0.3, 0.5]))
    state = Landmarks(torch.from_numpy(bins), count, 2, 3)
    random = np.random.default_rng(seed)
    ours, theirs = np.zeros((count, 2)), np.zeros((count, 3))
    made = np.zeros(count, dtype=bool)
    for _ in range(4):
        used = data.draw(st.permutations(range(samples)))[: data.draw(st.integers(0, samples))]
        student = random.normal(size=(samples, 2)).astype(np.float32)
        teacher = random.normal(size=(samples, 3)).astype(np.float32)
        size = data.draw(st.integers(1, 7))
        for start in range(0, len(used), size):
            chosen = torch.tensor(used[start : start + size])
            state.accumulate(chosen, torch.from_numpy(student)[chosen], torch.from_numpy(teacher)[chosen])
        before = state.student.clone()
        state.renew(teacher_fixed=False, rank=None, momentum=momentum)
        last = ours, theirs
        ours, filled = naive_means(ours, bins, used, student, count)
        theirs, _ = naive_means(theirs, bins, used, teacher, count)
        for means, held in zip((ours, theirs), last, strict=True):
            again = filled & made
            means[again] = momentum * held[again] + (1 - momentum) * means[again]
        made |= filled
        np.testing.assert_allclose(state.student, ours, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(state.teacher, theirs, rtol=1e-6, atol=1e-7)
        assert torch.equal(state.student[~torch.from_numpy(filled)], before[~torch.from_numpy(filled)])
        assert torch.equal(state.student_used, state.student)
        assert torch.equal(state.teacher_used, state.teacher)
        for sums in (state.student_sums, state.teacher_sums, state.counts):
            assert sums.dtype == torch.float64
            assert not sums.any()


@pytest.mark.parametrize(("momentum", "sizes"), [(0.0, [2, 0.5, 2, 0.5, 2]), (0.5, [2, 0.5, 0.8, 40 / 41])])
def test_a_student_that_follows_within_an_epoch_settles_with_momentum_alone(momentum: float, sizes: list) -> None:
    """Features that make their products with the landmarks the teacher's, whose features have the size 1."""
    state, own = Landmarks(torch.zeros(1, dtype=torch.int64), 1, 1, 1), 2.0
    for size in sizes:
        assert own == pytest.approx(size, rel=1e-6)
        state.accumulate(torch.tensor([0]), torch.tensor([[own]]), torch.ones(1, 1))
        state.renew(teacher_fixed=False, rank=None, momentum=momentum)
        assert float(state.teacher) == 1
        own = 1 / float(state.student)
    assert (abs(own - 1) < 0.02) == (momentum > 0)


def test_landmarks_move_with_the_momentum_that_is_asked_for(make_facts, make_batch) -> None:
    kda = asked(landmark_momentum="0.25")
    module, facts = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), {}), []
    for seed in (0, 1):
        rows = random_rows(kda, 11, seed)
        epoch(kda, module, rows, make_batch)
        facts.append(naive_means(np.zeros((4, 3)), LABELS, list(range(11)), rows["before_fc"], 4)[0])
    np.testing.assert_allclose(module["before_fc"].student, 0.25 * facts[0] + 0.75 * facts[1], rtol=1e-5, atol=1e-6)


def test_sums_hold_what_float32_would_lose() -> None:
    state = Landmarks(torch.zeros(4, dtype=torch.int64), 1, 1, 1)
    for rows in ([2.0**24], [1.0], [1.0], [-(2.0**24)]):
        state.accumulate(torch.tensor([0]), torch.tensor([rows]), torch.tensor([rows]))
    state.renew(teacher_fixed=False, rank=None)
    assert float(state.student) == float(state.teacher) == 0.5


def epoch(kda: KDA, module, rows: dict[str, np.ndarray], make_batch, size: int = 4) -> None:
    """An epoch of hooks over all samples in a shuffled order; rows: tap, and 'teacher ' + tap -> (n, ...)."""
    order = np.random.default_rng(len(rows)).permutation(len(next(iter(rows.values()))))
    for start in range(0, len(order), size):
        indices = torch.from_numpy(order[start : start + size])
        student, cached = taps_of(kda, rows, indices)
        kda.after_step(student, cached, make_batch(indices), module)
    kda.after_epoch(module)


def taps_of(kda: KDA, rows: dict[str, np.ndarray], indices: torch.Tensor):
    taps = kda.student_taps(STUDENT, TEACHER)
    student = {tap: torch.from_numpy(rows[tap])[indices] for tap in taps}
    teacher = {tap: torch.from_numpy(rows[f"teacher {tap}"])[indices] for tap in taps}
    cached = {target.key: target.encode(teacher, {}) for target in kda.targets(STUDENT, TEACHER)}
    return student, cached


def random_rows(kda: KDA, samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    random, rows = np.random.default_rng(seed), {}
    for tap in kda.student_taps(STUDENT, TEACHER):
        rows[tap] = random.normal(size=(samples, *STUDENT[tap])).astype(np.float32)
        rows[f"teacher {tap}"] = random.normal(size=(samples, *TEACHER[tap])).astype(np.float32)
    return rows


def vectors(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(*rows.shape[:2], -1).mean(2)


LABELS = np.arange(11) % 4


def test_an_epoch_of_hooks_gives_class_means_of_every_layer(make_facts, make_batch) -> None:
    kda = asked(layers="conv4_x,before_fc,after_fc")
    module = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), {})
    rows = random_rows(kda, 11)
    epoch(kda, module, rows, make_batch)
    state = dict(module.named_children())
    assert set(state) == {"stage3", "before_fc", "after_fc"}
    for tap in state:
        for side, name in (("student", tap), ("teacher", f"teacher {tap}")):
            wanted = [vectors(rows[name])[label == LABELS].mean(0) for label in range(4)]
            np.testing.assert_allclose(getattr(state[tap], side), wanted, rtol=1e-5, atol=1e-6)


def test_the_terms_are_the_loss_on_the_landmarks_of_the_epoch_before(make_facts, make_batch) -> None:
    kda = asked(layers="conv4_x,after_fc")
    module = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), {})
    rows = random_rows(kda, 11)
    epoch(kda, module, rows, make_batch)
    indices = torch.tensor([7, 0, 3])
    terms = kda.terms(*taps_of(kda, rows, indices), make_batch(indices), module)
    assert set(terms) == {"kda_stage3", "kda_after_fc"}
    for tap in ("stage3", "after_fc"):
        ours, theirs = vectors(rows[tap]).astype(float), vectors(rows[f"teacher {tap}"]).astype(float)
        centres = [[side[label == LABELS].mean(0) for label in range(4)] for side in (ours, theirs)]
        chosen = (ours[indices], theirs[indices], np.array(centres[0]), np.array(centres[1]))
        assert float(terms[f"kda_{tap}"]) == pytest.approx(naive(*chosen), rel=1e-4)


def test_hooks_hold_no_graph_of_the_student(make_facts, make_batch) -> None:
    kda = asked()
    module = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), {})
    student, cached = taps_of(kda, random_rows(kda, 11), torch.arange(4))
    kda.after_step({"before_fc": student["before_fc"].requires_grad_()}, cached, make_batch(torch.arange(4)), module)
    kda.after_epoch(module)
    assert not any(value.requires_grad for value in module.buffers())
    assert not list(module.parameters())


def test_whitened_landmarks_are_used_and_the_means_are_kept(make_facts, make_batch) -> None:
    kda = asked(whiten="true", rank="2")
    module = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), {})
    epoch(kda, module, random_rows(kda, 11), make_batch)
    (state,) = module.children()
    for side in ("student", "teacher"):
        means, used = getattr(state, side), getattr(state, f"{side}_used")
        np.testing.assert_allclose(used, orthogonal_factor(means.double().numpy(), 2), atol=1e-6)
        assert not torch.equal(means, used)


def test_the_terms_are_taken_on_whitened_landmarks(make_facts, make_batch) -> None:
    kda = asked(whiten="true", rank="2")
    module = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), {})
    rows = random_rows(kda, 11)
    epoch(kda, module, rows, make_batch)
    indices = torch.tensor([7, 0, 3])
    found = kda.terms(*taps_of(kda, rows, indices), make_batch(indices), module)["kda_before_fc"]
    sides = [rows[name].astype(float) for name in ("before_fc", "teacher before_fc")]
    centres = [np.array([side[label == LABELS].mean(0) for label in range(4)]) for side in sides]
    wanted = naive(*(side[indices] for side in sides), *(orthogonal_factor(side, 2) for side in centres))
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_random_landmarks_are_the_same_images_on_both_sides(make_facts, make_batch) -> None:
    kda = asked(landmarks="random", count="5")
    facts = make_facts(LABELS, 4, seed=3)
    module = kda.adapters(STUDENT, TEACHER, facts, {})
    rows = random_rows(kda, 11)
    epoch(kda, module, rows, make_batch)
    (state,) = module.children()
    drawn = [int(np.flatnonzero(state.bins == number).item()) for number in range(5)]
    assert sorted(set(drawn)) == sorted(drawn)
    assert int((state.bins == -1).sum()) == 11 - 5
    assert torch.equal(state.student, torch.from_numpy(rows["before_fc"][drawn]))
    assert torch.equal(state.teacher, torch.from_numpy(rows["teacher before_fc"][drawn]))
    assert drawn == philox.permutation(3, philox.LANDMARKS, 0, 11)[:5].tolist()
    again = next(kda.adapters(STUDENT, TEACHER, facts, {}).children())
    other = next(kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4, seed=4), {}).children())
    assert torch.equal(again.bins, state.bins)
    assert not torch.equal(other.bins, state.bins)


def test_random_landmarks_are_one_a_class_by_default_and_never_more_than_images(make_facts) -> None:
    kda, facts = asked(landmarks="random"), make_facts(LABELS, 4)
    assert kda.landmark_count(facts) == 4
    with pytest.raises(UsageError, match=r"kda\.count asks for 12 landmarks of 11 images"):
        asked(landmarks="random", count="12").adapters(STUDENT, TEACHER, facts, {})


@pytest.mark.parametrize("landmarks", ["class", "kmeans"])
def test_classes_may_have_fewer_images_than_landmarks(landmarks: str, make_facts, make_batch) -> None:
    """Few images of few classes: the landmarks that no image counts for stay zero."""
    kda, facts = asked(landmarks=landmarks), make_facts([2, 0, 2], 4)
    key, assignment = ClassClusters("before_fc", 2).key, np.array([4, 0, 5])
    module = kda.adapters(STUDENT, TEACHER, facts, {key: {"assignment": assignment}})
    epoch(kda, module, random_rows(kda, 3), make_batch)
    (state,) = module.children()
    empty = [1, 3] if landmarks == "class" else [1, 2, 3, 6, 7]
    assert not state.student[empty].any()
    assert state.student.any(1).sum() == len(state.student) - len(empty)


CENTRES = ClassCentres("before_fc").key
CLUSTERS = ClassClusters("before_fc", 3).key


def test_fixed_landmarks_are_the_mean_of_the_fits_views(make_facts, make_batch) -> None:
    kda = asked(teacher_landmarks="fixed")
    assert [fit.key for fit in kda.fits(STUDENT, TEACHER)] == [CENTRES]
    views = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    module = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), {CENTRES: {"views": views, "clean": views[0] + 9}})
    wanted = torch.from_numpy(views.astype(np.float64).mean(0).astype(np.float32))
    (state,) = module.children()
    assert torch.equal(state.teacher, wanted)
    for seed in range(2):
        epoch(kda, module, random_rows(kda, 11, seed), make_batch)
        assert torch.equal(state.teacher, wanted)
        assert torch.equal(state.teacher_used, wanted)
        assert state.student.any()


def test_fixed_landmarks_of_clusters_are_their_centres(make_facts, make_batch) -> None:
    kda = asked(landmarks="kmeans", centres="3", teacher_landmarks="fixed")
    assert [fit.key for fit in kda.fits(STUDENT, TEACHER)] == [CLUSTERS]
    centres = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    assignment = 3 * LABELS + np.array([0, 1, 2, 0, 2, 1, 0, 0, 2, 1, 1])
    fitted = {CLUSTERS: {"assignment": assignment, "centres": centres}}
    module = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), fitted)
    rows = random_rows(kda, 11)
    epoch(kda, module, rows, make_batch)
    (state,) = module.children()
    assert torch.equal(state.teacher_used, torch.from_numpy(centres))
    assert torch.equal(state.bins, torch.from_numpy(assignment))
    for number in set(assignment.tolist()):
        np.testing.assert_allclose(state.student[number], rows["before_fc"][assignment == number].mean(0), rtol=1e-5)


def test_clusters_of_the_teacher_bin_both_sides(make_facts, make_batch) -> None:
    kda = asked(landmarks="kmeans", centres="3")
    assignment = 3 * LABELS + np.array([0, 1, 2, 0, 2, 1, 0, 0, 2, 1, 1])
    fitted = {CLUSTERS: {"assignment": assignment, "centres": np.zeros((12, 5), np.float32)}}
    module = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), fitted)
    rows = random_rows(kda, 11)
    epoch(kda, module, rows, make_batch)
    (state,) = module.children()
    for number in set(assignment.tolist()):
        members = assignment == number
        np.testing.assert_allclose(state.student[number], rows["before_fc"][members].mean(0), rtol=1e-5)
        np.testing.assert_allclose(state.teacher[number], rows["teacher before_fc"][members].mean(0), rtol=1e-5)


# What the method declares


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 10),
        ({"landmarks": "kmeans"}, 20),
        ({"landmarks": "kmeans", "centres": "3"}, 30),
        ({"landmarks": "random"}, 10),
        ({"landmarks": "random", "count": "25"}, 25),
    ],
)
@pytest.mark.parametrize("batch", [64, 256])
def test_the_weight_is_scaled_to_batch_and_landmarks(options: dict, count: int, batch: int, make_facts) -> None:
    facts = make_facts(np.arange(300) % 10, 10, batch=batch)
    (stage,) = asked(**options).stages({}, {}, facts)
    assert stage.task == 1
    assert stage.weights["kda_before_fc"].value == pytest.approx(0.04 * math.sqrt(256 * 100 / (batch * count)))


def test_a_batch_has_no_more_images_than_there_are(make_facts) -> None:
    (stage,) = asked().stages({}, {}, make_facts(np.arange(50) % 10, 10, batch=256))
    assert stage.weights["kda_before_fc"].value == pytest.approx(0.04 * math.sqrt(256 * 100 / (50 * 10)))


def test_the_weight_is_the_official_codes_for_its_batch_and_classes(make_facts) -> None:
    (stage,) = asked(layers="before_fc,after_fc").stages(
        {}, {}, make_facts(np.arange(300) % 100, 100, batch=256, epochs=120)
    )
    assert {name: (weight.value, weight.start) for name, weight in stage.weights.items()} == {
        "kda_before_fc": (0.04, 5),
        "kda_after_fc": (0.04, 5),
    }


@pytest.mark.parametrize(("epochs", "start"), [(1, 1), (2, 1), (12, 1), (35, 1), (37, 2), (60, 2), (120, 5), (240, 10)])
def test_the_first_epoch_with_landmarks_is_the_end_of_the_warm_up(epochs: int, start: int, make_facts) -> None:
    (stage,) = asked().stages({}, {}, make_facts(LABELS, 4, epochs=epochs))
    assert stage.weights["kda_before_fc"].start == start == max(1, round(epochs * 5 / 120))
    (stage,) = asked(start="7").stages({}, {}, make_facts(LABELS, 4, epochs=epochs))
    assert stage.weights["kda_before_fc"].start == 7


def test_names_of_one_layer_are_one_layer(make_facts, make_batch) -> None:
    kda, plain = asked(layers="conv5_x,stage4"), asked(layers="stage4")
    assert kda.student_taps(STUDENT, TEACHER) == ("stage4",)
    assert kda.targets(STUDENT, TEACHER) == plain.targets(STUDENT, TEACHER)
    assert [target.key for target in kda.targets(STUDENT, TEACHER)] == ["stage4.pooled"]
    facts, rows = make_facts(LABELS, 4), random_rows(plain, 11)
    modules = [item.adapters(STUDENT, TEACHER, facts, {}) for item in (kda, plain)]
    assert kda.stages({}, {}, facts) == plain.stages({}, {}, facts)
    for item, module in zip((kda, plain), modules, strict=True):
        epoch(item, module, rows, make_batch)
    found, wanted = (next(module.children()).state_dict() for module in modules)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


@pytest.mark.parametrize("layer", ["stage5", "conv1_x", "befor_fc", ""])
@pytest.mark.parametrize("lacking", ["student", "teacher"])
def test_a_layer_that_a_network_lacks_is_refused_by_name(layer: str, lacking: str) -> None:
    full = {**STUDENT, canonical_tap(layer): (3,)}
    networks = {"student": (STUDENT, full), "teacher": (full, STUDENT)}[lacking]
    kda = asked(layers=f"before_fc,{layer}")
    for ask in (kda.student_taps, kda.targets, kda.fits):
        with pytest.raises(UsageError) as error:
            ask(*networks)
        assert f"of the {lacking}" in str(error.value)
        assert repr(layer) in str(error.value)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_tokens_are_no_vector_and_are_refused(side: str) -> None:
    """(N, D) would be averaged over the wrong axis."""
    shapes = {"student": STUDENT, "teacher": STUDENT, side: {**STUDENT, "tokens": (5, 8)}}
    other = "teacher" if side == "student" else "student"
    shapes[other] = {**STUDENT, "tokens": (8,)}
    with pytest.raises(UsageError, match=rf"layer tokens of the {side} gives \(5, 8\) .* behind the pooling"):
        asked(layers="tokens").targets(shapes["student"], shapes["teacher"])


@pytest.mark.parametrize(
    "options",
    [
        {"layers": ()},
        {"landmarks": "classes"},
        {"teacher_landmarks": "epochs"},
        {"centres": 0},
        {"count": -1},
        {"rank": -1},
        {"start": 0},
        {"landmark_momentum": -0.1},
        {"landmark_momentum": 1.0},
        {"landmarks": "random", "teacher_landmarks": "fixed"},
    ],
)
def test_options_that_do_not_go_are_refused_by_name(options: dict) -> None:
    with pytest.raises(UsageError) as error:
        KDA(**options)
    assert any(f"kda.{name}" in str(error.value) for name in options)


def test_fixed_landmarks_of_the_teacher_are_whitened_too(make_facts) -> None:
    kda = KDA(teacher_landmarks="fixed", whiten=True, rank=2)
    views = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    module = kda.adapters(STUDENT, TEACHER, make_facts(LABELS, 4), {CENTRES: {"views": views, "clean": views[0]}})
    kda.after_epoch(module)
    (state,) = module.children()
    assert isinstance(state, Landmarks)
    assert torch.equal(state.teacher, torch.from_numpy(views.mean(0, dtype=np.float64).astype(np.float32)))
    assert torch.equal(state.teacher_used, whitened(state.teacher, 2))
    assert not torch.equal(state.teacher_used, state.teacher)
