"""KDA's bounds: every inequality on random and real features, every term against dense kernels."""

import dataclasses
import json
import math
import tracemalloc
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many_ranks import on_ranks

import kdtool.analysis.features as features
import kdtool.analysis.measures as measures
from kdtool.analysis.bounds import bounds, scale_free
from kdtool.analysis.gram import gram_gap
from kdtool.analysis.nystrom import LandmarkSet, class_centres, k_means, random_images
from kdtool.data.digits import digits
from kdtool.errors import UsageError

ALWAYS = ("Corollary 1, unscaled", "Theorem 2", "Theorem 2, tighter")


def by_name(found):
    return {bound.name: bound for bound in found.bounds}


def root_and_inverse(w, rank):
    """(W_k)^(-1/2) with the pseudo-inverse, by the eigenvalues of W."""
    values, vectors = np.linalg.eigh(w)
    keep = values > 1e-13 * max(values[-1], 1e-300)
    if rank is not None:
        keep[: max(0, len(values) - rank)] = False
    return vectors[:, keep] @ np.diag(values[keep] ** -0.5) @ vectors[:, keep].T


def dense(student, teacher, landmarks, rank=None):
    """Every term with all matrices written out; a sample without a landmark has the landmark 0."""
    found, parts = {}, []
    for x, d in ((student, landmarks.student), (teacher, landmarks.teacher)):
        w, c = d @ d.T, x @ d.T
        a = c @ root_and_inverse(w, rank)
        own = np.vstack([d, np.zeros(d.shape[1])])[landmarks.assignment]
        parts.append((x @ x.T, c, a, x, own, np.linalg.eigvalsh(w)))
    (k_s, c_s, a_s, x_s, own_s, w_s), (k_t, c_t, a_t, x_t, own_t, w_t) = parts
    norm = np.linalg.norm
    found["gap"] = norm(k_s - k_t)
    found["errors"] = norm(k_s - a_s @ a_s.T), norm(k_t - a_t @ a_t.T)
    found["c"] = max(norm(c_s), norm(c_t))
    found["r"] = max(norm(side, axis=1).max() for side in (x_s, x_t, landmarks.student, landmarks.teacher))
    found["averaging"] = landmarks.averaging
    found["column_difference"], found["factor_difference"] = norm(c_s - c_t), norm(a_s - a_t)
    found["factor_norms"] = norm(a_s, 2), norm(a_t, 2)
    found["eigenvalues"] = w_s, w_t
    found["distances"] = norm(x_s - own_s), norm(x_t - own_t)
    found["weighted"] = norm(x_s @ (x_s - own_s).T), norm(x_t @ (x_t - own_t).T)
    found["term_b"] = norm(x_s @ own_s.T - x_t @ own_t.T)  # sample by sample: the sum over landmarks, weighted
    found["term_a"] = found["r"] * math.sqrt(len(x_s)) * sum(found["distances"])
    return found


def check_against_dense(student, teacher, landmarks, rank=None):
    found, expected = bounds(student, teacher, landmarks, rank), dense(student, teacher, landmarks, rank)

    def same(value, wanted, absolute=0.0):
        assert value == pytest.approx(wanted, rel=1e-9, abs=absolute)

    for name in ("gap", "c", "r", "averaging", "column_difference", "factor_difference", "term_a", "term_b"):
        same(getattr(found, name), expected[name])
    same(found.term_a_tighter, sum(expected["weighted"]))
    for number, side in enumerate((found.student, found.teacher)):
        values = expected["eigenvalues"][number]
        same(side.nystrom_error, expected["errors"][number], 1e-13 * found.c)
        same(side.factor_norm, expected["factor_norms"][number])
        same(side.distance, expected["distances"][number])
        same(side.weighted_distance, expected["weighted"][number])
        same(side.largest, values[-1])
        same(side.smallest, values[0], 1e-12 * values[-1])
    errors, c = sum(expected["errors"]), expected["c"]
    wanted = {
        "Corollary 1": errors + 2 * c * expected["factor_difference"],
        "Corollary 1, unscaled": errors + sum(expected["factor_norms"]) * expected["factor_difference"],
        "Corollary 2": errors + 2 * c * (1 + c * landmarks.averaging / 2) * expected["column_difference"],
        "Theorem 2": expected["term_a"] + expected["term_b"],
        "Theorem 2, tighter": sum(expected["weighted"]) + expected["term_b"],
    }
    for name, value in wanted.items():
        same(by_name(found)[name].value, value)
        same(by_name(found)[name].ratio, value / expected["gap"])
    return found


def check_inequalities(found, teacher_norm):
    """What is guaranteed holds, to within the rounding of the true gap; what is not says why."""
    for bound in found.bounds:
        assert bound.guaranteed == (not bound.failing), bound
        if bound.guaranteed:
            assert bound.value is not None, bound
            assert bound.value >= found.gap * (1 - 1e-9) - 1e-12 * teacher_norm, bound
    assert all(by_name(found)[name].guaranteed for name in ALWAYS)
    assert found.lemma_1.share == 1.0
    tighter, norms = by_name(found)["Theorem 2, tighter"].value, by_name(found)["Theorem 2"].value
    assert tighter <= norms * (1 + 1e-9)
    unscaled, printed = by_name(found)["Corollary 1, unscaled"].value, by_name(found)["Corollary 1"]
    if printed.guaranteed:
        assert unscaled <= printed.value * (1 + 1e-9)


def sample(rng, n, d, kind):
    x = rng.standard_normal((n, d))
    if kind == "positive":
        return np.maximum(x, 0) + 0.01
    if kind == "low rank":
        return x[:, :2] @ rng.standard_normal((2, d)) if d > 2 else x
    if kind == "repeated":
        return x[rng.integers(0, min(3, n), n)]
    if kind == "offset":
        return x * 0.1 + 3
    return x


def sets(student, teacher, labels, m, seed=0):
    return (
        class_centres(student, teacher, labels),
        random_images(student, teacher, m, seed=seed),
        k_means(student, teacher, m, seed=seed),
        k_means(student, teacher, 2, seed=seed, labels=labels),
    )


def to_eigenvalues_of_one(student, teacher, landmarks):
    """A factor that lifts the smallest eigenvalue of both W to 1.1, where they are not singular."""
    smallest = min(np.linalg.eigvalsh(d @ d.T)[0] for d in (landmarks.student, landmarks.teacher))
    return math.sqrt(1.1 / smallest) if smallest > 1e-9 else 1.0


def times(landmarks, factor):
    return dataclasses.replace(landmarks, student=landmarks.student * factor, teacher=landmarks.teacher * factor)


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 40),
    d_student=st.integers(1, 10),
    d_teacher=st.integers(1, 10),
    m=st.integers(1, 12),
    rank=st.none() | st.integers(1, 4),
    kind=st.sampled_from(["normal", "positive", "low rank", "repeated", "offset"]),
    close=st.sampled_from([0.0, 1e-6, 1e-2, None]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 10**6),
)
def test_every_inequality_holds_on_random_features(n, d_student, d_teacher, m, rank, kind, close, scale, seed):
    rng = np.random.default_rng(seed)
    teacher = sample(rng, n, d_teacher, kind) * scale
    if close is None:
        student = sample(rng, n, d_student, kind) * scale
    else:
        student = teacher + close * scale * rng.standard_normal(teacher.shape)
    labels = rng.integers(-1, 4, n)
    labels[0] = 1
    gap, norm = gram_gap(student, teacher), np.linalg.norm(teacher @ teacher.T)
    for landmarks in sets(student, teacher, labels, min(m, n), seed):
        k = rank and min(rank, len(landmarks))
        check_inequalities(bounds(student, teacher, landmarks, k, gap=gap, pairs=20), norm)
        factor = to_eigenvalues_of_one(student, teacher, landmarks)
        found = bounds(student * factor, teacher * factor, times(landmarks, factor), k)
        check_inequalities(found, norm * factor**2)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(4, 40), d=st.integers(4, 10), m=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_the_printed_forms_are_reached_and_hold(n, d, m, seed):
    rng = np.random.default_rng(seed)
    teacher = rng.standard_normal((n, d))
    student = teacher + 0.1 * rng.standard_normal((n, d))
    labels = np.arange(n) % m
    for landmarks in (class_centres(student, teacher, labels), random_images(student, teacher, m, seed=seed)):
        factor = to_eigenvalues_of_one(student, teacher, landmarks)
        found = bounds(student * factor, teacher * factor, times(landmarks, factor))
        if factor != 1.0:
            assert all(bound.guaranteed for bound in found.bounds)
            assert by_name(found)["Corollary 2, scale-free"].value <= by_name(found)["Corollary 2"].value * (1 + 1e-9)
        check_inequalities(found, np.linalg.norm(teacher @ teacher.T) * factor**2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_the_inequality_behind_the_scale_free_form(m, seed, smallest):
    rng = np.random.default_rng(seed)
    n = 3 * m
    averaging = np.repeat(np.eye(m), 3, axis=0) / 3
    pair = []
    for _ in range(2):
        x = averaging * 3 @ np.linalg.qr(rng.standard_normal((m, m)))[0] * math.sqrt(smallest) * rng.uniform(1, 2)
        x += rng.standard_normal((n, m)) * 0.01 * math.sqrt(smallest)
        d = averaging.T @ x
        pair.append((x @ d.T, d @ d.T))
    (c_s, w_s), (c_t, w_t) = pair
    least = min(np.linalg.eigvalsh(w)[0] for w in (w_s, w_t))
    c = max(np.linalg.norm(c_s), np.linalg.norm(c_t))
    a_s, a_t = c_s @ root_and_inverse(w_s, None), c_t @ root_and_inverse(w_t, None)
    left = (np.linalg.norm(a_s, 2) + np.linalg.norm(a_t, 2)) * np.linalg.norm(a_s - a_t)
    assert left <= scale_free(c, least, 1 / math.sqrt(3), np.linalg.norm(c_s - c_t)) * (1 + 1e-9)


# Values


@pytest.mark.parametrize("many_blocks", [False, True])
@pytest.mark.parametrize("rank", [None, 3])
def test_every_term_agrees_with_dense_kernels(rank, many_blocks, monkeypatch):
    if many_blocks:
        monkeypatch.setattr(features, "VALUES", 2000)
        monkeypatch.setattr(measures, "VALUES", 100)
    rng = np.random.default_rng(0)
    teacher = sample(rng, 2000, 24, "positive")
    student = teacher[:, :16] @ rng.standard_normal((16, 12)) * 0.5
    labels = rng.integers(-1, 10, 2000)
    for landmarks in (class_centres(student, teacher, labels), random_images(student, teacher, 40)):
        check_against_dense(student, teacher, landmarks, rank)


def test_close_sides_keep_their_digits():
    rng = np.random.default_rng(1)
    teacher = sample(rng, 500, 12, "positive")
    student = teacher + 1e-7 * rng.standard_normal(teacher.shape)
    landmarks = class_centres(student, teacher, np.arange(500) % 5)
    found = bounds(student, teacher, landmarks)
    difference = (student - teacher) @ landmarks.student.T + teacher @ (landmarks.student - landmarks.teacher).T
    assert found.column_difference == pytest.approx(np.linalg.norm(difference), rel=1e-7)
    assert by_name(found)["Corollary 2, scale-free"].ratio > 1


def test_features_times_a_constant_leave_the_ratios_of_scale_free_bounds():
    rng = np.random.default_rng(2)
    teacher, student = sample(rng, 200, 8, "positive"), sample(rng, 200, 6, "positive")
    landmarks = class_centres(student, teacher, np.arange(200) % 4)
    found = by_name(bounds(student, teacher, landmarks))
    for factor in (1e-30, 1e-5, 300.0, 1e30):
        again = by_name(bounds(student * factor, teacher * factor, times(landmarks, factor)))
        for name in (*ALWAYS, "Corollary 2, scale-free"):
            assert again[name].ratio == pytest.approx(found[name].ratio, rel=1e-9)


def test_lemma_1_agrees_with_loops_over_all_pairs():
    rng = np.random.default_rng(3)
    student, teacher = rng.standard_normal((30, 4)), rng.standard_normal((30, 6))
    labels = rng.integers(-1, 3, 30)
    landmarks = class_centres(student, teacher, labels)
    left, right = [], []
    r = max(np.linalg.norm(row) for side in (student, teacher) for row in side)
    for i in range(30):
        for j in range(30):
            known = landmarks.assignment[j] >= 0
            d_s = landmarks.student[landmarks.assignment[j]] if known else np.zeros(4)
            d_t = landmarks.teacher[landmarks.assignment[j]] if known else np.zeros(6)
            left.append(abs(student[i] @ student[j] - teacher[i] @ teacher[j]))
            right.append(
                r * (np.linalg.norm(student[j] - d_s) + np.linalg.norm(teacher[j] - d_t))
                + abs(student[i] @ d_s - teacher[i] @ d_t)
            )
    found = bounds(student, teacher, landmarks).lemma_1
    assert (found.pairs, found.share, found.r) == (900, 1.0, pytest.approx(r))
    assert found.mean_left == pytest.approx(np.mean(left), rel=1e-12)
    assert found.largest_left == pytest.approx(max(left), rel=1e-12)
    assert found.mean_right == pytest.approx(np.mean(right), rel=1e-12)
    assert bounds(student, teacher, landmarks, pairs=7).lemma_1.pairs == 49


# Assumptions


def given_landmarks(d_student, d_teacher):
    """Landmarks that are the samples themselves."""
    n = len(d_student)
    return LandmarkSet("random", d_student, d_teacher, np.arange(n), np.ones(n, dtype=np.int64), 1.0)


def test_corollary_2_is_not_guaranteed_below_full_rank():
    # W = diag(2, 1+e, 1) and diag(2, 1, 1+e): for k = 2 the kept eigenvectors change places.
    e = 1e-3
    student, teacher = np.diag(np.sqrt([2, 1 + e, 1])), np.diag(np.sqrt([2, 1, 1 + e]))
    found = bounds(student, teacher, given_landmarks(student, teacher), 2)
    printed, free = by_name(found)["Corollary 2"], by_name(found)["Corollary 2, scale-free"]
    assert (printed.guaranteed, free.guaranteed, free.value) == (False, False, None)
    assert "rank 2" in printed.failing[0]
    errors = found.student.nystrom_error + found.teacher.nystrom_error
    assert found.factor_difference == pytest.approx(1.42, abs=0.01)
    assert printed.value - errors == pytest.approx(0.015, abs=0.001)  # below the left side: the inequality fails
    assert by_name(found)["Corollary 1"].guaranteed
    whole = by_name(bounds(student, teacher, given_landmarks(student, teacher)))
    assert whole["Corollary 2"].guaranteed
    assert whole["Corollary 2"].value >= found.gap


def test_more_landmarks_than_features_make_w_singular():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((50, 3)) * 9, rng.standard_normal((50, 8)) * 9
    found = bounds(student, teacher, random_images(student, teacher, 5))
    assert (found.student.rank, found.student.kept, found.student.smallest) == (3, 3, 0.0)
    assert (found.teacher.rank, found.teacher.smallest > 0) == (5, True)
    printed, free = by_name(found)["Corollary 2"], by_name(found)["Corollary 2, scale-free"]
    why = "the student's W is singular, of rank 3 for 5 landmarks: only 3 features"
    assert printed.value is not None
    assert (why in printed.failing, free.failing, free.value, free.ratio) == (True, (why,), None, None)
    assert found.student.nystrom_error <= 1e-14 * found.c


def test_small_eigenvalues_are_named():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 8)) * 0.01
    found = by_name(bounds(x * 2, x, random_images(x * 2, x, 4)))
    for name in ("Corollary 1", "Corollary 2"):
        assert not found[name].guaranteed
        assert "the teacher's smallest eigenvalue of W_k" in found[name].failing[-1]
        assert found[name].value is not None
    assert found["Corollary 2, scale-free"].guaranteed


def test_identical_networks():
    rng = np.random.default_rng(0)
    x = sample(rng, 60, 5, "positive")
    found = bounds(x, x.copy(), random_images(x, x, 20))
    assert found.loss <= 1e-14
    assert (found.column_difference, found.factor_difference, found.term_b, found.lemma_1.mean_left) == (0, 0, 0, 0)
    for bound in found.bounds:
        assert bound.ratio is None
    assert by_name(found)["Corollary 1, unscaled"].value <= 1e-14 * found.c
    check_inequalities(found, np.linalg.norm(x @ x.T))
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_a_student_of_zeros():
    teacher = sample(np.random.default_rng(0), 40, 5, "positive")
    student = np.zeros((40, 3))
    for landmarks in sets(student, teacher, np.arange(40) % 4, 6):
        found = bounds(student, teacher, landmarks)
        assert found.loss == pytest.approx(1.0)
        assert (found.student.rank, found.student.smallest_kept, found.student.relative_nystrom_error) == (
            0,
            None,
            None,
        )
        assert "the student's W is zero; expected eigenvalues of at least 1" in by_name(found)["Corollary 1"].failing
        check_inequalities(found, found.gap)
        json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_duplicates_an_empty_class_and_one_sample():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((3, 4)), rng.standard_normal((3, 6))
    rows = np.arange(30) % 3
    labels = np.array([0, 2, 3])[rows]
    found = bounds(student[rows], teacher[rows], class_centres(student[rows], teacher[rows], labels, classes=5))
    assert (found.count, found.notes) == (3, ("no landmark for classes 1, 4: no samples",))
    assert by_name(found)["Theorem 2, tighter"].ratio == pytest.approx(1.0)
    assert found.teacher.nystrom_error <= 1e-14 * found.c
    doubled = bounds(student[rows], teacher[rows], random_images(student[rows], teacher[rows], 6))
    assert (doubled.student.rank, "depend on one another" in doubled.bounds[2].failing[1]) == (3, True)
    for landmarks in (class_centres(student[:1], teacher[:1], rows[:1]), random_images(student[:1], teacher[:1], 1)):
        one = bounds(student[:1], teacher[:1], landmarks)
        check_inequalities(one, one.gap)
        assert (one.samples, one.term_a) == (1, 0.0)


def test_samples_without_a_label_have_no_landmark():
    rng = np.random.default_rng(5)
    student, teacher = rng.standard_normal((40, 4)), rng.standard_normal((40, 6))
    labels = np.where(np.arange(40) < 15, -1, np.arange(40) % 3)
    found = check_against_dense(student, teacher, class_centres(student, teacher, labels))
    assert found.unassigned == 15
    check_inequalities(found, np.linalg.norm(teacher @ teacher.T))


# Real features


@cache
def real_features():
    """A small random network over the digits: features of its two layers, and the raw pixels."""
    data = digits().train
    pixels = np.asarray(data.images[:, 0, ::4, ::4], dtype=np.float64).reshape(len(data.labels), -1) / 255
    rng = np.random.default_rng(0)
    hidden = np.maximum(pixels @ rng.standard_normal((64, 48)) / 8, 0)
    return pixels, hidden, np.maximum(hidden @ rng.standard_normal((48, 16)) / 7, 0), np.asarray(data.labels)


@pytest.mark.parametrize("pair", ["pixels and layer", "two layers", "linear map", "float32"])
def test_every_inequality_holds_on_real_features(pair):
    pixels, hidden, top, labels = real_features()
    linear = pixels @ np.random.default_rng(1).standard_normal((64, 20)) / 8
    student, teacher = {
        "pixels and layer": (top, pixels),
        "two layers": (top, hidden),
        "linear map": (linear, pixels),
        "float32": (np.float32(pixels * 1.001), np.float32(pixels)),
    }[pair]
    gap = gram_gap(student, teacher)
    for landmarks in sets(student, teacher, labels, 30):
        for rank in (None, 5):
            found = bounds(student, teacher, landmarks, rank, gap=gap)
            check_inequalities(found, gap.teacher_norm)
        factor = to_eigenvalues_of_one(student, teacher, landmarks)
        found = bounds(np.float64(student) * factor, np.float64(teacher) * factor, times(landmarks, factor))
        check_inequalities(found, gap.teacher_norm * factor**2)
    if pair == "linear map":
        check_against_dense(student, teacher, class_centres(student, teacher, labels))


# Refusals, form, memory


def refusals():
    x, y = sample(np.random.default_rng(0), 10, 3, "normal"), sample(np.random.default_rng(1), 10, 4, "normal")
    landmarks = class_centres(x, y, np.arange(10) % 2)
    return {
        "rank 3 of 2 landmarks; expected between 1 and 2": lambda: bounds(x, y, landmarks, 3),
        "rank 0 of 2": lambda: bounds(x, y, landmarks, 0),
        "widths": lambda: bounds(y, y, landmarks),
        "labels of 10 samples for features of 9": lambda: bounds(x[:9], y[:9], landmarks),
        "labels of 10 samples for features of 20": lambda: bounds([x, x], [y, y], landmarks),
        "a gap of the linear kernel over 9 samples": lambda: bounds(x, y, landmarks, gap=gram_gap(x[:9], y[:9])),
        "teacher's kernel is zero": lambda: bounds(x, 0 * y, times(landmarks, 0)),
        "multiply the features of both sides": lambda: bounds(x * 1e60, y * 1e60, landmarks),
        "student's features go up to .*e-60": lambda: bounds(x * 1e-60, y, times(landmarks, 1e-60)),
        "0 x 0 pairs": lambda: bounds(x, y, landmarks, pairs=0),
    }


@pytest.mark.parametrize("message", refusals())
def test_refusals_say_what_was_found(message):
    with pytest.raises(UsageError, match=message):
        refusals()[message]()


def plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(plain(item) for item in value)
    return type(value) in (float, int, bool, str, type(None))


def test_results_are_plain_values():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((30, 4)), rng.standard_normal((30, 6))
    for landmarks in sets(student, teacher, np.arange(30) % 3, 5):
        found = dataclasses.asdict(bounds(student, teacher, landmarks))
        assert plain(found)
        json.dumps(found, allow_nan=False)


def test_several_ranks_find_the_same():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((31, 4)), rng.standard_normal((31, 6))
    landmarks = class_centres(student, teacher, rng.integers(-1, 3, 31))
    alone = bounds(student, teacher, landmarks)
    for found in on_ranks(3, lambda rank: bounds(student, [teacher[:9], teacher[9:]], landmarks, ranks=rank)):
        assert (found.samples, found.unassigned) == (31, alone.unassigned)
        assert found.r == alone.r
        for one, other in zip(found.bounds, alone.bounds, strict=True):
            assert one.value == pytest.approx(other.value, rel=1e-12)
            assert one.ratio == pytest.approx(other.ratio, rel=1e-12)


def test_memory_does_not_grow_with_the_samples():
    n = 400_000
    x = np.random.default_rng(0).standard_normal((n, 16)).astype(np.float32)
    landmarks = class_centres(x, x, np.arange(n) % 20)
    gap = gram_gap(x * 2, x)
    tracemalloc.start()
    try:
        bounds([x], [x], landmarks, gap=gap, pairs=300)
        assert tracemalloc.get_traced_memory()[1] < 70e6  # X - D[y] of both sides would be 102 MB
    finally:
        tracemalloc.stop()
