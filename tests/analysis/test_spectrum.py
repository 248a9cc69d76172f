"""Spectra and Nystrom errors of growing sets of landmarks against dense kernels."""

import dataclasses
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many_ranks import on_ranks

import kdtool.analysis.features as features
from kdtool import philox
from kdtool.analysis.nystrom import class_centres, k_means, random_images
from kdtool.analysis.spectrum import default_counts, spectrum
from kdtool.data.digits import digits
from kdtool.errors import UsageError


def sides(n=60, d_student=5, d_teacher=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d_student)), np.maximum(rng.standard_normal((n, d_teacher)), 0) + 0.01


def dense_error(x, d):
    """||K - C W^+ C'||_F / ||K||_F with the kernels written out; D' W^+ D is D^+ D."""
    kernel = x @ x.T
    return np.linalg.norm(kernel - x @ np.linalg.pinv(d, rcond=1e-12) @ d @ x.T) / np.linalg.norm(kernel)


def of(found, strategy):
    return {point.count: point for point in found.growth if point.strategy == strategy}


@pytest.mark.parametrize("values", [None, 500])
def test_eigenvalues_and_ranks_agree_with_the_dense_kernels(values, monkeypatch):
    if values:
        monkeypatch.setattr(features, "VALUES", values)
    student, teacher = sides(1000, 12, 20)
    found = spectrum([student[:9], student[9:]], teacher, counts=(1,), draws=1, strategies=())
    for x, side in ((student, found.student), (teacher, found.teacher)):
        expected = np.linalg.eigvalsh(x @ x.T)[::-1]
        assert len(side.eigenvalues) == side.width == x.shape[1]
        assert side.eigenvalues == pytest.approx(expected[: x.shape[1]].tolist(), rel=1e-9)
        assert expected[x.shape[1] :].max() < 1e-12 * expected[0]
        share = expected[: x.shape[1]] / expected[: x.shape[1]].sum()
        entropy = -sum(p * math.log(p) for p in share)
        assert side.effective_rank == pytest.approx(math.exp(entropy), rel=1e-9)
        assert side.participation_ratio == pytest.approx(1 / sum(p * p for p in share), rel=1e-9)
        assert side.norm == pytest.approx(np.linalg.norm(x @ x.T), rel=1e-12)
    assert found.samples == 1000


def test_ranks_of_known_spectra():
    found = spectrum(np.eye(6), np.diag([1.0, 1, 1, 0, 0, 0]), counts=(1,), strategies=())
    assert found.student.effective_rank == pytest.approx(6)
    assert found.student.participation_ratio == pytest.approx(6)
    assert found.teacher.effective_rank == pytest.approx(3)
    assert found.teacher.participation_ratio == pytest.approx(3)
    assert found.teacher.eigenvalues == pytest.approx((1, 1, 1, 0, 0, 0))


def test_small_eigenvalues_keep_their_digits():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    base = np.linalg.qr(rng.standard_normal((300, 6)))[0]
    size = 10.0 ** -np.arange(6)
    found = spectrum(base * size @ turn, base, counts=(1, 5), strategies=())
    assert found.student.eigenvalues == pytest.approx((size**2).tolist(), rel=1e-9)
    assert of(found, "best")[5].student.mean == pytest.approx(1e-10, rel=1e-4)


def test_w_of_every_set_of_landmarks():
    student, teacher = sides(200)
    labels = np.arange(200) % 4
    labels[labels == 3] = 5
    given = (
        class_centres(student, teacher, labels),
        random_images(student, teacher, 7),
        k_means(student, teacher, 10),
    )
    found = spectrum(student, teacher, given, counts=(2,), strategies=())
    for landmarks, w in zip(given, found.landmarks, strict=True):
        assert (w.landmarks, w.count, w.notes) == (landmarks.name, len(landmarks), landmarks.notes)
        for x, d, side in ((student, landmarks.student, w.student), (teacher, landmarks.teacher, w.teacher)):
            expected = np.linalg.eigvalsh(d @ d.T)[::-1]
            assert len(side.eigenvalues) == len(d)
            assert side.eigenvalues == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)
            assert side.rank == np.linalg.matrix_rank(d)
            assert (side.smallest == 0) == (side.rank < len(d))
            assert side.nystrom_error == pytest.approx(dense_error(x, d), rel=1e-9, abs=1e-14)
        assert w.smallest == min(w.student.smallest, w.teacher.smallest)
    assert found.landmarks[0].notes == ("no landmark for classes 3, 4: no samples",)


def test_errors_as_landmarks_grow():
    student, teacher = sides(2000, 9, 14)
    labels = np.arange(2000) % 6
    grid = (1, 4, 9, 12, 30)
    found = spectrum(student, teacher, (), labels, counts=grid, draws=3, seed=2)
    for side, x in (("student", student), ("teacher", teacher)):
        values = np.linalg.eigvalsh(x @ x.T)[::-1]
        for m in grid:
            best = getattr(of(found, "best")[m], side).mean
            expected = np.linalg.norm(values[m:]) / np.linalg.norm(values)
            assert best == pytest.approx(expected, rel=1e-9, abs=1e-14)
            errors = [dense_error(x, x[philox.permutation(2, philox.LANDMARKS, t, 2000)[:m]]) for t in range(3)]
            spread = getattr(of(found, "random")[m], side)
            for value, wanted in zip(
                dataclasses.astuple(spread), (np.mean(errors), min(errors), max(errors)), strict=True
            ):
                assert value == pytest.approx(wanted, rel=1e-9, abs=1e-13)
            clusters = getattr(k_means(student, teacher, m, seed=2, rounds=10), side)
            kmeans = getattr(of(found, "kmeans")[m], side)
            assert kmeans.mean == pytest.approx(dense_error(x, clusters), rel=1e-9, abs=1e-13)
        centres = getattr(class_centres(student, teacher, labels), side)
        (point,) = of(found, "class").values()
        assert (point.count, getattr(point, side).mean) == (6, pytest.approx(dense_error(x, centres), rel=1e-9))
    assert {point.draws for point in found.growth if point.strategy == "random"} == {3}


def check_order(found):
    """No landmarks beat the best matrix of their rank, and nested draws never get worse."""
    best = of(found, "best")
    for side in ("student", "teacher"):
        last = math.inf
        for point in found.growth:
            error = getattr(point, side)
            if error is None:
                continue
            assert error.lowest <= error.mean * (1 + 1e-12) <= error.highest * (1 + 1e-9)
            assert error.highest <= 1 + 1e-12
            if point.count in best:
                assert error.lowest >= getattr(best[point.count], side).mean - 1e-13
            if point.strategy == "random":
                assert error.highest <= last + 1e-12
                last = error.highest


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 30),
    d_student=st.integers(1, 8),
    d_teacher=st.integers(1, 8),
    repeated=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_properties(n, d_student, d_teacher, repeated, seed):
    student, teacher = sides(n, d_student, d_teacher, seed)
    if repeated:
        rows = np.random.default_rng(seed).integers(0, min(3, n), n)
        student, teacher = student[rows], teacher[rows]
    found = spectrum(student, teacher, (), np.zeros(n, dtype=np.int64), draws=1, seed=seed)
    check_order(found)
    for side, x in ((found.student, student), (found.teacher, teacher)):
        assert len(side.eigenvalues) == min(n, x.shape[1])
        assert list(side.eigenvalues) == sorted(side.eigenvalues, reverse=True)
        assert sum(side.eigenvalues) == pytest.approx((x**2).sum(), rel=1e-12)
        assert 1 - 1e-9 <= side.participation_ratio <= side.effective_rank * (1 + 1e-9)
        assert side.effective_rank <= min(n, x.shape[1]) * (1 + 1e-9)


def test_real_features():
    data = digits().train
    pixels = np.asarray(data.images[:, 0, ::4, ::4], dtype=np.float32).reshape(len(data.labels), -1) / 255
    student = np.maximum(pixels @ np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32), 0)
    labels = np.asarray(data.labels)
    found = spectrum(student, pixels, (class_centres(student, pixels, labels),), labels, draws=2)
    check_order(found)
    assert of(found, "class")[10].teacher.mean == found.landmarks[0].teacher.nystrom_error
    assert found.landmarks[0].teacher.nystrom_error == pytest.approx(
        dense_error(np.float64(pixels), class_centres(student, pixels, labels).teacher), rel=1e-9
    )


def test_a_student_of_zeros_has_no_ranks_and_no_errors():
    _, teacher = sides()
    landmarks = random_images(np.zeros((60, 3)), teacher, 4)
    found = spectrum(np.zeros((60, 3)), teacher, (landmarks,), np.arange(60) % 3)
    assert (found.student.effective_rank, found.student.participation_ratio, found.student.norm) == (None, None, 0)
    assert found.student.eigenvalues == (0, 0, 0)
    assert all(point.student is None and point.teacher is not None for point in found.growth)
    w = found.landmarks[0].student
    assert (w.rank, w.smallest, w.effective_rank, w.nystrom_error) == (0, 0, None, None)
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_the_default_grid():
    assert default_counts(50_000, 64) == (1, 2, 5, 10, 20, 50, 64)
    assert default_counts(20, 64) == (1, 2, 5, 10, 20)
    assert default_counts(1, 64) == default_counts(3, 1) == (1,)
    assert default_counts(50_000, 512)[-3:] == (100, 200, 512)


def refusals():
    x, y = sides(10)
    return {
        r"numbers of landmarks \[11\] for 10 samples": lambda: spectrum(x, y, counts=(11,)),
        r"numbers of landmarks \[0, 2\]": lambda: spectrum(x, y, counts=(2, 0)),
        r"numbers of landmarks \[\]": lambda: spectrum(x, y, counts=()),
        "0 draws": lambda: spectrum(x, y, draws=0),
        "strategies grid": lambda: spectrum(x, y, strategies=("grid",)),
        "teacher's kernel is zero": lambda: spectrum(x, 0 * y),
        "student has 9 samples and the teacher 10": lambda: spectrum(x[:9], y),
        "multiply the features": lambda: spectrum(x, y * 1e50),
        "teacher's features go up to": lambda: spectrum(x, y * 1e-50),
        "labels of 9 samples": lambda: spectrum(x, y, (), np.zeros(9, dtype=np.int64)),
        "widths": lambda: spectrum(x, y, (random_images(y, x, 3),)),
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
    student, teacher = sides()
    labels = np.arange(60) % 3
    found = dataclasses.asdict(spectrum(student, teacher, (class_centres(student, teacher, labels),), labels))
    assert plain(found)
    json.dumps(found, allow_nan=False)


def test_the_teachers_clusters_are_looked_for_once_for_all_students(monkeypatch):
    student, teacher = sides()
    other, looked = np.random.default_rng(5).standard_normal((60, 7)), []

    def counted(*given, **options):
        looked.append(given[2])
        return k_means(*given, **options)

    alone = [spectrum(each, teacher, counts=(2, 5), strategies=("kmeans",)) for each in (student, other)]
    monkeypatch.setattr("kdtool.analysis.spectrum.k_means", counted)
    known = {}
    shared = [
        spectrum(each, teacher, counts=(2, 5), strategies=("kmeans",), clusters=known) for each in (student, other)
    ]
    assert looked == [2, 5]
    assert shared == alone


def test_several_ranks_find_the_same():
    student, teacher = sides(31)
    alone = spectrum(student, teacher, draws=1)
    for found in on_ranks(3, lambda rank: spectrum(student, [teacher[:9], teacher[9:]], draws=1, ranks=rank)):
        assert found.samples == 31
        assert found.student.eigenvalues == pytest.approx(alone.student.eigenvalues, rel=1e-12)
        for one, other in zip(found.growth, alone.growth, strict=True):
            assert one.teacher.mean == pytest.approx(other.teacher.mean, rel=1e-9, abs=1e-14)


def test_memory_does_not_grow_with_the_samples():
    n = 400_000
    x = np.random.default_rng(0).standard_normal((n, 16)).astype(np.float32)
    landmarks = class_centres(x, x, np.arange(n) % 20)
    tracemalloc.start()
    try:
        spectrum([x], [x], (landmarks,), counts=(10, 40), draws=1, rounds=1)
        assert tracemalloc.get_traced_memory()[1] < 90e6  # both sides in float64 would be 102 MB
    finally:
        tracemalloc.stop()
