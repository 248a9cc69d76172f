"""Class matrices of logits against numpy's correlations and loops over images."""

import json
import math
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdtool.analysis.features as features
from kdtool.analysis.correlation import PUBLISHED_IMAGES, class_means, standardised
from kdtool.errors import UsageError


def logits(seed, n, classes, mean=0.0):
    rng = np.random.default_rng(seed)
    teacher = rng.standard_normal((n, classes)) @ rng.standard_normal((classes, classes)) + mean
    student = 0.6 * teacher + rng.standard_normal((n, classes)) + mean
    return student, teacher, rng.integers(0, classes, n)


def published(x):
    """R as the released code of July 2024 states it."""
    z = torch.from_numpy(np.float64(x))
    z = (z - z.mean(0)) / z.std(0)
    return (z.T @ z / len(z)).numpy()


def naive_means(x, labels, classes):
    """M from loops over images."""
    rows = [[] for _ in range(classes)]
    for row, label in zip(np.float64(x), labels, strict=True):
        if label >= 0:
            rows[label].append((row - row.mean()) / row.std(ddof=1))
    return np.array([np.mean(part, axis=0) if part else np.full(classes, np.nan) for part in rows])


def beside(matrix):
    return np.array([matrix[i][j] for i in range(len(matrix)) for j in range(len(matrix)) if i != j])


@pytest.fixture(params=[None, 50], ids=["one block", "many blocks"])
def block_values(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(features, "VALUES", request.param)


def test_the_published_number_of_images():
    assert PUBLISHED_IMAGES == 256


@pytest.mark.usefixtures("block_values")
@pytest.mark.parametrize(("n", "images"), [(2000, None), (2000, 256), (300, 300), (40, 2), (2, None)])
@pytest.mark.parametrize("mean", [0, 1e3])
def test_standardised_agrees_with_the_published_code(n, images, mean):
    student, teacher, _ = logits(1, n, 10, mean)
    found = standardised(student, teacher, images=images)
    used = images or n
    r_student, r_teacher = published(student[:used]), published(teacher[:used])
    np.testing.assert_allclose(found.student, r_student, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.teacher, r_teacher, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.difference, r_teacher - r_student, rtol=0, atol=2e-11)
    assert (found.form, found.samples, found.classes, found.left_out, found.empty) == ("standardised", used, 10, 0, ())
    assert found.limits == (-0.3, 0.3)
    assert np.diag(found.student).tolist() == [(used - 1) / used] * 10
    assert np.diag(found.difference).tolist() == [0] * 10
    np.testing.assert_allclose(
        np.array(found.teacher) * used / (used - 1), np.corrcoef(teacher[:used].T), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("form", ["standardised", "class means"])
def test_the_summaries(form):
    student, teacher, labels = logits(2, 400, 7)
    found = standardised(student, teacher) if form == "standardised" else class_means(student, teacher, labels)
    difference = np.array(found.difference)
    assert found.form == form
    assert found.difference_norm == pytest.approx(math.sqrt((difference**2).sum()), rel=1e-12)
    assert found.mean_difference == pytest.approx(np.abs(beside(found.difference)).mean(), rel=1e-12)
    assert found.largest_difference == np.abs(beside(found.difference)).max()
    expected = np.corrcoef(beside(found.student), beside(found.teacher))[0, 1]
    assert found.correlation == pytest.approx(expected, rel=1e-12)
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["difference"] == found.difference


@pytest.mark.usefixtures("block_values")
def test_class_means_agree_with_loops():
    student, teacher, labels = logits(3, 2000, 10)
    labels[::7] = -1
    found = class_means(student, teacher, labels)
    m_student, m_teacher = (naive_means(x, labels, 10) for x in (student, teacher))
    np.testing.assert_allclose(found.student, m_student, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(found.teacher, m_teacher, rtol=1e-9, atol=1e-13)
    expected = np.abs(m_student - m_teacher)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found.difference, expected, rtol=1e-9, atol=1e-13)
    assert (found.samples, found.limits) == ((labels >= 0).sum(), (0, 3))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 6), st.floats(0.01, 100), st.floats(-10, 10))
def test_blind_to_scale_and_shift(seed, n, classes, scale, shift):
    student, teacher, labels = logits(seed, n, classes)
    by_class = np.random.default_rng(seed).uniform(0.5, 2, classes)
    a, b = standardised(student, teacher), standardised(student * by_class + shift, teacher * scale)
    np.testing.assert_allclose(a.difference, b.difference, rtol=0, atol=1e-9)
    a, b = class_means(student, teacher, labels), class_means(student * scale + shift, teacher, labels)
    np.testing.assert_allclose(np.array(a.difference, float), np.array(b.difference, float), rtol=0, atol=1e-9)
    swapped = class_means(teacher, student, labels)
    assert swapped.difference == a.difference
    assert standardised(teacher, student).difference_norm == pytest.approx(
        standardised(student, teacher).difference_norm
    )


def test_identical_networks_differ_in_nothing():
    x, _, labels = logits(4, 100, 8)
    for found in (standardised(x, x), class_means(x, x, labels), standardised(np.repeat(x, 3, 0), np.repeat(x, 3, 0))):
        assert found.difference_norm == found.largest_difference == found.mean_difference == 0
        assert found.correlation == pytest.approx(1, abs=1e-14)
    two = standardised(x[:, :2], x[:, 1:3])
    assert two.correlation is None


def test_an_empty_class_has_rows_of_none_and_takes_no_part():
    student, teacher, labels = logits(5, 60, 5)
    labels[labels == 3] = 0
    found = class_means(student, teacher, labels)
    assert found.empty == (3,)
    for matrix in (found.student, found.teacher, found.difference):
        assert matrix[3] == [None] * 5
        assert None not in matrix[2]
    kept = [found.difference[i][j] for i in range(5) for j in range(5) if i not in (3, j)]
    assert found.mean_difference == pytest.approx(np.mean(kept), rel=1e-12)
    assert found.largest_difference == max(kept)
    json.dumps(asdict(found), allow_nan=False)
    assert np.isnan(np.array(found.student, dtype=float)[3]).all()  # how a plot reads it


def test_images_with_equal_logits_are_left_out_of_class_means():
    student, teacher, labels = logits(6, 60, 5)
    student[[1, 2]], teacher[[2, 3]] = 0.1, 7
    labels[3] = -1
    found = class_means(student, teacher, labels)
    assert (found.samples, found.left_out) == (57, 2)
    labels[[1, 2]] = -1
    assert found.student == class_means(student, teacher, labels).student
    with pytest.raises(UsageError, match="no image has a label and logits that differ"):
        class_means(np.zeros((60, 5)), teacher, labels)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-300, 1e6 / 3])
def test_a_constant_logit_is_refused_with_its_class(value, monkeypatch):
    monkeypatch.setattr(features, "VALUES", 30)
    student, teacher, _ = logits(7, 77, 5)
    constant = teacher.copy()
    constant[:, 3] = value
    with pytest.raises(UsageError, match="the teacher's logit of class 3 is the same for all 77 images"):
        standardised(student, constant)
    constant[50:, 3] = 9
    assert standardised(student, constant).samples == 77
    with pytest.raises(UsageError, match="the student's logit of class 3 is the same for all 50 images"):
        standardised(constant, student, images=50)


def test_chunks_and_types_do_not_matter():
    student, teacher, labels = logits(8, 300, 6)
    student, teacher = np.float32(student), np.float32(teacher)
    s, t = np.array_split(student, 7), torch.from_numpy(teacher)
    assert standardised(s, t) == standardised(student, teacher)
    assert standardised(s, t, images=101) == standardised(student[:101], teacher[:101])
    assert class_means(s, t, torch.from_numpy(labels)) == class_means(student, teacher, labels)


def test_what_does_not_fit_is_refused():
    x, _, labels = logits(9, 20, 4)
    bad = x.copy()
    bad[3, 0] = np.nan
    for form in (standardised, lambda s, t: class_means(s, t, labels)):
        with pytest.raises(UsageError, match="student's logits have 4 classes and the teacher's 3"):
            form(x, x[:, :3])
        with pytest.raises(UsageError, match="1 class"):
            form(x[:, :1], x[:, :1])
        with pytest.raises(UsageError, match="the teacher's features are not all finite"):
            form(x, bad)
        with pytest.raises(UsageError, match="student has 19 samples and the teacher 20"):
            form(x[1:], x)
        with pytest.raises(UsageError, match="no samples"):
            form(x[:0], x[:0])
    with pytest.raises(UsageError, match="there is 1 image; expected at least 2"):
        standardised(x[:1], x[:1])
    for images in (0, 1, 21):
        with pytest.raises(UsageError, match=f"{images} images were asked for"):
            standardised(x, x, images=images)
    with pytest.raises(UsageError, match="no image has a label"):
        class_means(x, x, np.full(20, -1))
    with pytest.raises(UsageError, match="the label 4 is no class"):
        class_means(x, x, np.full(20, 4))
    with pytest.raises(UsageError, match="there are 19 labels and 20 samples"):
        class_means(x, x, labels[1:])


def test_memory_does_not_grow_with_the_samples(monkeypatch):
    monkeypatch.setattr(features, "VALUES", 2**14)
    block = np.random.default_rng(1).standard_normal((4000, 32)).astype(np.float32)

    class Repeated:
        def __iter__(self):
            yield from [block] * 20

    both = Repeated()
    tracemalloc.start()
    standardised(both, both)
    class_means(both, both, np.zeros(80_000, dtype=np.int8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6  # one side would be 20 MB in float64
