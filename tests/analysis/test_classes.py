"""The transfer loss by class against blocks of dense kernels."""

import numpy as np
import pytest

import kdtool.analysis.classes as classes
import kdtool.analysis.features as features
from kdtool.analysis.gram import gram_gap
from kdtool.errors import UsageError


def sample(seed, n, d):
    return np.maximum(np.random.default_rng(seed).standard_normal((n, d)), 0)


def expected(student, teacher, labels):
    """(difference^2, teacher^2) of every pair of classes, from the matrices."""
    student, teacher = np.float64(student), np.float64(teacher)
    return of_kernels(student @ student.T, teacher @ teacher.T, labels)


def of_kernels(k_student, k_teacher, labels):
    difference, count = k_student - k_teacher, labels.max() + 1
    found = np.zeros((2, count, count))
    for a in range(count):
        for b in range(count):
            block = np.ix_(labels == a, labels == b)
            found[:, a, b] = (difference[block] ** 2).sum(), (k_teacher[block] ** 2).sum()
    return found


def check(gaps, squares, labels, rel):
    difference, teacher = squares
    total = difference.sum()
    for gap in gaps.classes:
        c = gap.label
        assert gap.samples == (labels == c).sum()
        assert gap.within == pytest.approx(np.sqrt(difference[c, c] / teacher[c, c]), rel=rel, abs=0)
        others = np.arange(len(difference)) != c
        assert gap.between == pytest.approx(
            np.sqrt(difference[c, others].sum() / teacher[c, others].sum()), rel=rel, abs=0
        )
        assert gap.share == pytest.approx(difference[c].sum() / total, rel=rel, abs=0)
    assert gaps.within_share == pytest.approx(np.trace(difference) / total, rel=rel, abs=0)
    assert gaps.teacher_within_share == pytest.approx(np.trace(teacher) / teacher.sum(), rel=rel, abs=0)
    assert sum(gap.share for gap in gaps.classes) == pytest.approx(1)
    first = gaps.largest[0]
    shares = difference * np.where(np.eye(len(difference)), 1, 2) / total
    assert first.share == pytest.approx(shares.max(), rel=rel)
    assert shares[first.first, first.second] == pytest.approx(first.share, rel=rel)


@pytest.fixture(params=[None, 3000], ids=["one pass", "many passes"])
def pass_bytes(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(classes, "PASS_BYTES", request.param)
        monkeypatch.setattr(features, "VALUES", 300)


@pytest.mark.usefixtures("pass_bytes")
@pytest.mark.parametrize(("d_student", "d_teacher"), [(5, 9), (9, 5), (1, 4)])
@pytest.mark.parametrize("algorithm", ["moments", "blocked"])
def test_every_class_agrees_with_the_dense_kernels(d_student, d_teacher, algorithm):
    student, teacher = sample(0, 83, d_student), sample(1, 83, d_teacher)
    labels = np.random.default_rng(2).integers(0, 6, 83)
    found = gram_gap(student, teacher, labels=labels, algorithm=algorithm, block=10)
    check(found.by_class, expected(student, teacher, labels), labels, 1e-10)


@pytest.mark.parametrize("gap", [1e-3, 1e-5])
@pytest.mark.usefixtures("pass_bytes")
def test_close_networks(gap):
    rng = np.random.default_rng(0)
    teacher = sample(1, 83, 6)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    student = (teacher + gap * rng.standard_normal(teacher.shape)) @ rotation
    labels = rng.integers(0, 4, 83)
    found = gram_gap(student, teacher, labels=labels)
    # The dense difference itself is known to 1e-16 / gap of its size only.
    check(found.by_class, expected(student, teacher, labels), labels, 1e-9 if gap > 1e-4 else 1e-8)


def test_two_thousand_samples():
    student, teacher = sample(0, 2000, 16), sample(1, 2000, 32)
    labels = np.random.default_rng(2).integers(0, 10, 2000)
    found = gram_gap(student, teacher, labels=labels)
    check(found.by_class, expected(student, teacher, labels), labels, 1e-9)


def test_one_class_alone_is_lost():
    teacher = np.abs(sample(1, 60, 5)) + 0.1
    labels = np.repeat([0, 1, 2], 20)
    student = teacher.copy()
    student[labels == 1] *= 1.5
    found = gram_gap(student, teacher, labels=labels).by_class
    assert [gap.within for gap in found.classes] == [
        pytest.approx(0, abs=1e-7),
        pytest.approx(1.25),
        pytest.approx(0, abs=1e-7),
    ]
    assert found.classes[1].between == pytest.approx(0.5)
    assert all(1 in (pair.first, pair.second) for pair in found.largest[:3])


def test_identical_networks_lose_nothing_anywhere():
    x = sample(0, 50, 5)
    found = gram_gap(x, x.copy(), labels=np.arange(50) % 5).by_class
    assert all(gap.within <= 1e-7 and gap.between <= 1e-7 for gap in found.classes)


def test_empty_classes_and_samples_without_label():
    student, teacher = sample(0, 40, 4), sample(1, 40, 4)
    labels = np.repeat([0, 2, -1, 5], 10)
    found = gram_gap(student, teacher, labels=labels).by_class
    assert [gap.label for gap in found.classes] == [0, 2, 5]
    assert (found.empty, found.unlabelled) == ((1, 3, 4), 10)
    kept = labels >= 0
    check(found, expected(student[kept], teacher[kept], labels[kept]), labels, 1e-10)


def test_one_class_has_nothing_between():
    student, teacher = sample(0, 20, 4), sample(1, 20, 4)
    found = gram_gap(student, teacher, labels=np.zeros(20, dtype=int))
    (only,) = found.by_class.classes
    assert only.within == pytest.approx(found.loss)
    assert (only.between, found.by_class.within_share) == (None, pytest.approx(1))


def test_a_class_of_zeros_has_no_loss_of_its_own():
    student, teacher = sample(0, 20, 4), sample(1, 20, 4)
    labels = np.arange(20) % 2
    teacher[labels == 1] = 0
    found = gram_gap(student, teacher, labels=labels).by_class
    assert (found.classes[1].within, found.classes[1].between) == (None, None)
    assert found.classes[0].within is not None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(5, dtype=int), r"shape \(5,\)"),
        (np.zeros(4), "float64"),
        (np.full(4, -1), "name no class"),
        (np.array([0, 1, -2, 0]), "name no class"),
        (np.array([0, 1, 10**12, 0]), "labels reach 1000000000000"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(UsageError, match=message):
        gram_gap(sample(0, 4, 3), sample(1, 4, 3), labels=labels)


@pytest.mark.parametrize("algorithm", ["moments", "blocked"])
@pytest.mark.parametrize("scale", [1e-100, 1e120])
def test_features_of_any_magnitude(algorithm, scale):
    student, teacher = sample(0, 40, 4), sample(1, 40, 5)
    labels = np.arange(40) % 3
    expected_gaps = gram_gap(student, teacher, labels=labels).by_class
    found = gram_gap(scale * student, scale * teacher, labels=labels, algorithm=algorithm).by_class
    for ours, theirs in zip(found.classes, expected_gaps.classes, strict=True):
        assert (ours.within, ours.between, ours.share) == pytest.approx((theirs.within, theirs.between, theirs.share))


def dense(x, kernel):
    """The matrix of a kernel whose gamma is that of all samples."""
    inner = x @ x.T
    squares = np.diag(inner)
    distances = squares[:, None] + squares - 2 * inner
    if kernel == "rbf":
        return np.exp(-distances / distances.mean())
    if kernel == "cosine":
        lengths = np.sqrt(np.where(squares > 0, squares, 1))
        return inner / np.outer(lengths, lengths)
    return (inner / squares.mean() + 1) ** 3


@pytest.mark.parametrize("kernel", ["cosine", "rbf", "polynomial"])
def test_other_kernels_by_class(kernel):
    student, teacher = sample(0, 60, 4), sample(1, 60, 7)
    labels = np.random.default_rng(2).integers(-1, 4, 60)
    exact = gram_gap(student, teacher, kernel=kernel, labels=labels, algorithm="blocked", block=7).by_class
    labelled = labels >= 0
    kernels = (dense(side, kernel)[np.ix_(labelled, labelled)] for side in (student, teacher))
    check(exact, of_kernels(*kernels, labels[labelled]), labels[labelled], 1e-9)
    other = "auto" if kernel == "cosine" else "nystrom"
    found = gram_gap(student, teacher, kernel=kernel, labels=labels, algorithm=other).by_class
    for ours, theirs in zip(found.classes, exact.classes, strict=True):
        assert ours.within == pytest.approx(theirs.within, rel=1e-5)
        assert ours.between == pytest.approx(theirs.between, rel=1e-5)
