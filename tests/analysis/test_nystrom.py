"""Landmarks of both sides, and Nystrom errors by projectors, against dense kernels and plain loops."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdtool.analysis.clusters as clusters
import kdtool.analysis.features as features
from kdtool import philox
from kdtool.analysis.clusters import gathered, nearest
from kdtool.analysis.nystrom import class_centres, k_means, random_images
from kdtool.analysis.projector import factors, nystrom_error, subspace
from kdtool.engine.ranks import Alone
from kdtool.errors import UsageError
from kdtool.methods.vectors import k_means as k_means_of_the_method


def sides(n=60, d_student=5, d_teacher=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d_student)), np.maximum(rng.standard_normal((n, d_teacher)), 0)


def dense_error(x, d, rank=None):
    """||K - C W_k^+ C'||_F with the kernels written out; the pseudo-inverse cuts at 1e-13 of the largest eigenvalue."""
    values, vectors = np.linalg.eigh(d @ d.T)
    keep = values > 1e-13 * values[-1]
    if rank is not None:
        keep[: max(0, len(values) - rank)] = False
    root = x @ d.T @ (vectors[:, keep] / np.sqrt(values[keep]))
    return np.linalg.norm(x @ x.T - root @ root.T)


def factor_of(x, rows=7):
    parts = np.split(x, range(rows, len(x), rows))
    (factor, same), n = factors(lambda: zip(parts, parts, strict=True), (x.shape[1],) * 2, Alone())
    assert n == len(x)
    assert np.array_equal(factor, same)
    return factor


def kernel_norm(x):
    return np.linalg.norm(x.T @ x)


@pytest.fixture(params=[None, 60], ids=["one block", "many blocks"])
def block_values(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(features, "VALUES", request.param)
        monkeypatch.setattr(clusters, "VALUES", request.param)


# Errors


@pytest.mark.parametrize("m", [1, 3, 12, 40])
@pytest.mark.parametrize("rank", [None, 1, 2])
def test_errors_agree_with_dense_kernels(m, rank):
    rng = np.random.default_rng(m)
    x = rng.standard_normal((2000, 12)) * np.linspace(1, 0.01, 12)
    landmarks = x[:m]
    found = nystrom_error(factor_of(x, 300), subspace(landmarks, rank))
    norm = np.linalg.norm(x @ x.T)
    expected = dense_error(x, landmarks, rank)
    if m >= 12 and rank is None:
        assert found <= 1e-14 * norm
    else:
        assert found == pytest.approx(expected, rel=1e-9, abs=0)
    assert kernel_norm(factor_of(x, 300)) == pytest.approx(norm, rel=1e-12, abs=0)


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-6])
def test_tiny_errors_keep_their_digits(size):
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    inside, outside = rng.standard_normal((500, 4)), rng.standard_normal((500, 6)) * size
    outside[:20] = 0
    x = np.hstack([inside, outside]) @ turn
    found = nystrom_error(factor_of(x, 100), subspace(x[:20]))
    assert found == pytest.approx(np.linalg.norm(outside.T @ outside), rel=1e-9, abs=0)
    assert nystrom_error(factor_of(x), subspace(x[:200])) <= 1e-14 * kernel_norm(x)


def test_zero_and_dependent_landmarks():
    x, _ = sides()
    zero = subspace(np.zeros((3, 5)))
    assert (zero.rank, zero.kept, zero.eigenvalues()) == (0, 0, [0.0, 0.0, 0.0])
    assert nystrom_error(x, zero) == pytest.approx(kernel_norm(x), rel=1e-15)
    twice = subspace(np.vstack([x[:3], x[:3], x[:1] + x[1:2]]))
    assert (twice.rank, twice.kept) == (3, 3)
    assert nystrom_error(x, twice) == pytest.approx(dense_error(x, x[:3]), rel=1e-9)
    assert subspace(x[:3], rank=5).kept == 3
    values = np.linalg.eigvalsh(np.vstack([x[:3], x[:3]]) @ np.vstack([x[:3], x[:3]]).T)[::-1]
    assert subspace(np.vstack([x[:3], x[:3]])).eigenvalues() == pytest.approx(values.tolist(), rel=1e-12, abs=1e-12)


def test_whitening_is_the_landmarks_times_the_inverse_root():
    x, _ = sides()
    d = x[:4]
    values, vectors = np.linalg.eigh(d @ d.T)
    expected = d.T @ vectors @ np.diag(values**-0.5) @ vectors.T
    assert np.allclose(subspace(d).whitening, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 30), d=st.integers(1, 8), m=st.integers(1, 12), rank=st.integers(1, 4), seed=st.integers(0, 999)
)
def test_errors_of_every_shape(n, d, m, rank, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    landmarks = x[rng.integers(0, n, m)]  # with repetitions
    norm = np.linalg.norm(x @ x.T)
    for k in (None, rank):
        found = nystrom_error(factor_of(x), subspace(landmarks, k))
        assert found == pytest.approx(dense_error(x, landmarks, k), rel=1e-7, abs=1e-9 * norm)


# Landmarks


@pytest.mark.usefixtures("block_values")
def test_class_centres_are_the_means_of_the_classes():
    student, teacher = sides()
    labels = np.random.default_rng(0).integers(-1, 6, 60)
    labels[labels == 2] = -1
    found = class_centres([student[:7], student[7:]], [teacher[:31], teacher[31:]], labels, classes=8)
    kept = [0, 1, 3, 4, 5]
    for side, centres in ((student, found.student), (teacher, found.teacher)):
        expected = np.array([side[labels == label].mean(0) for label in kept])
        assert np.allclose(centres, expected, rtol=1e-13, atol=1e-15)
    assert found.assignment.tolist() == [kept.index(label) if label in kept else -1 for label in labels]
    assert found.counts.tolist() == [int((labels == label).sum()) for label in kept]
    averaging = np.zeros((60, 5))
    rows = found.assignment >= 0
    averaging[rows, found.assignment[rows]] = 1 / found.counts[found.assignment[rows]]
    assert np.allclose(averaging.T @ student, found.student)
    assert found.averaging == pytest.approx(np.linalg.norm(averaging, 2), rel=1e-13)
    assert found.notes == ("no landmark for classes 2, 6, 7: no samples",)
    assert (found.name, len(found)) == ("class", 5)


@pytest.mark.usefixtures("block_values")
def test_centres_of_equal_samples_are_those_samples_to_the_last_bit():
    x, y = sides(3)
    labels = np.arange(57) % 3
    found = class_centres(x[labels], y[labels], labels)
    assert np.array_equal(found.student, x)
    assert np.array_equal(found.teacher, y)


@pytest.mark.usefixtures("block_values")
def test_random_images_are_samples_and_others_belong_to_the_nearest():
    student, teacher = sides()
    teacher[40:] = teacher[:20]  # duplicates
    found = random_images(student, [teacher[:13], teacher[13:]], 25, seed=3)
    picked = philox.permutation(3, philox.LANDMARKS, 0, 60)[:25]
    assert np.array_equal(found.student, student[picked])
    assert np.array_equal(found.teacher, teacher[picked])
    distance = ((teacher[:, None] - found.teacher) ** 2).sum(2)
    assert np.allclose(distance[np.arange(60), found.assignment], distance.min(1), atol=1e-12)
    assert np.array_equal(found.assignment[picked], np.arange(25))
    assert found.counts.sum() == 60
    assert (found.averaging, found.notes) == (1.0, ())
    whole = random_images(student, teacher, 60)
    assert np.array_equal(np.sort(whole.assignment), np.arange(60))
    other = random_images(student, teacher, 25, seed=3, draw=1)
    assert not np.array_equal(other.student, found.student)
    assert np.array_equal(random_images(student, teacher, 9, seed=3).student, found.student[:9])


@pytest.mark.usefixtures("block_values")
def test_k_means_clusters_the_teacher_like_the_method_and_averages_both_sides():
    student, teacher = sides(80)
    found = k_means(student, [teacher[:13], teacher[13:]], 6, seed=5)
    assignment, centres = k_means_of_the_method(teacher, 6, 5, 0)
    assert np.array_equal(found.assignment, assignment)
    assert np.allclose(found.teacher, centres)
    assert np.allclose(found.student, [student[assignment == c].mean(0) for c in range(6)])
    assert (found.name, found.notes, found.counts.sum()) == ("kmeans", (), 80)
    assert found.averaging == pytest.approx(found.counts.min() ** -0.5)


@pytest.mark.usefixtures("block_values")
def test_k_means_within_classes():
    student, teacher = sides(80)
    labels = np.random.default_rng(0).integers(-1, 4, 80)
    labels[labels == 1] = -1
    found = k_means(student, teacher, 3, seed=5, labels=labels)
    start = 0
    for label in (0, 2, 3):
        members = labels == label
        assignment, _ = k_means_of_the_method(teacher[members], 3, 5, label)
        assert np.array_equal(found.assignment[members], start + assignment)
        start += 3
    assert (found.assignment[labels < 0] == -1).all()
    assert (len(found), found.notes) == (9, ())


@pytest.mark.usefixtures("block_values")
def test_fewer_distinct_samples_than_clusters_give_fewer_landmarks():
    student, teacher = sides(3)
    rows = np.arange(40) % 3
    found = k_means(student[rows], teacher[rows], 10)
    assert len(found) == 3
    assert found.notes == ("3 landmarks and not 10: too few distinct samples",)
    order = [int(np.flatnonzero((teacher == centre).all(1))[0]) for centre in found.teacher]
    assert np.array_equal(found.student, student[order])
    one = k_means(student[:1], teacher[:1], 1)
    assert np.array_equal(one.teacher, teacher[:1])
    zeros = k_means(np.zeros((9, 2)), np.zeros((9, 3)), 4)
    assert len(zeros) == 1
    within = k_means(student[rows], teacher[rows], 2, labels=rows)
    assert len(within) == 3


def test_seeds_are_taken_from_a_bounded_subsample(monkeypatch):
    monkeypatch.setattr(clusters, "SEEDING", 160)
    rng = np.random.default_rng(0)
    middles = np.arange(4)[:, None] * np.array([[10.0, 0.0], [0.0, 0.0], [-7.0, 3.0], [5.0, -20.0]])
    teacher = np.repeat(middles, 500, axis=0) + rng.standard_normal((2000, 2))
    rows, owners = clusters.subsample(teacher, np.zeros(2000, dtype=np.int64), 1, 4, 0)
    assert (len(rows), owners.tolist()) == (80, [0] * 80)
    found = k_means(teacher, teacher, 4)
    again = k_means(teacher, teacher, 4)
    assert np.array_equal(found.assignment, again.assignment)
    shifted = teacher - found.teacher[found.assignment]
    assert (shifted**2).sum() < 2 * 2000 * 2.2
    grouped = np.arange(2000) % 3 - 1
    rows, owners = clusters.subsample(teacher, grouped, 2, 4, 0)
    assert np.bincount(owners).tolist() == [40, 40]


@pytest.mark.usefixtures("block_values")
def test_nearest_with_a_large_common_offset():
    rng = np.random.default_rng(0)
    rows, centres = rng.standard_normal((50, 4)) + 1e7, rng.standard_normal((9, 4)) + 1e7
    expected = ((rows[:, None] - centres) ** 2).sum(2).argmin(1)
    assert np.array_equal(nearest(rows, centres), expected)


def test_gathered_rows_keep_the_order_that_was_asked_for():
    x, _ = sides()
    picked = np.array([30, 2, 59, 2, 0])
    assert np.array_equal(gathered([x[:10], x[10:]], picked, "student"), x[picked])


def refusals():
    x, y = sides(10)
    labels = np.arange(10) % 3
    hole = y.copy()
    hole[4, 2] = np.nan
    return {
        "11 random landmarks of 10 samples; expected between 1 and 10": lambda: random_images(x, y, 11),
        "0 random landmarks": lambda: random_images(x, y, 0),
        "11 clusters of 10 samples": lambda: k_means(x, y, 11),
        "0 clusters": lambda: k_means(x, y, 0),
        "in 0 rounds": lambda: k_means(x, y, 2, rounds=0),
        "labels of 9 samples for features of 10": lambda: class_centres(x, y, labels[:9]),
        "labels of 12 samples for features of 10": lambda: class_centres(x, y, np.zeros(12, dtype=np.int64)),
        "labels of 9 samples for features": lambda: k_means(x, y, 2, labels=labels[:9]),
        "no sample has a label": lambda: class_centres(x, y, np.full(10, -1)),
        "labels from 0 to 2; expected -1 to 1": lambda: class_centres(x, y, labels, classes=2),
        "labels from -2": lambda: class_centres(x, y, labels - 2),
        "labels of type float64": lambda: class_centres(x, y, labels * 1.0),
        "student has 9 samples and the teacher 10": lambda: random_images(x[:9], y, 3),
        "student has 9 samples and the teacher 10; expected": lambda: k_means(x[:9], y, 3),
        "teacher's features are not all finite": lambda: k_means(x, hole, 10),
        "teacher's features are not all finite; expected": lambda: class_centres(x, hole, labels),
        "student's features are not all finite": lambda: random_images(hole, y, 1),
    }


@pytest.mark.parametrize("message", refusals())
def test_refusals_say_what_was_found(message):
    with pytest.raises(UsageError, match=message):
        refusals()[message]()


def test_memory_does_not_grow_with_the_samples():
    n, d = 400_000, 32
    x = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    labels = np.arange(n) % 50
    tracemalloc.start()
    try:
        class_centres([x], [x], labels)
        random_images(x, x, 50)
        k_means(x, x, 50, rounds=1)
        # A float64 copy of one side would be 102 MB, and all distances 160 MB.
        assert tracemalloc.get_traced_memory()[1] < 70e6
    finally:
        tracemalloc.stop()
