"""Kernels that are not linear, entry by entry and from landmarks, against dense matrices in float64."""

import numpy as np
import pytest
from many_ranks import on_ranks

import kdtool.analysis.features as features
from kdtool.analysis.gram import gram_gap, gram_gaps
from kdtool.analysis.kernels import Kernel, interval
from kdtool.errors import UsageError


def sample(seed, n, d):
    return np.maximum(np.random.default_rng(seed).standard_normal((n, d)), 0)


def dense(x, kernel):
    """The kernel matrix by loops over the definition."""
    n = len(x)
    distances = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    found = np.empty((n, n))
    gamma = kernel.gamma
    if gamma is None:
        gamma = 1 / (distances.mean() if kernel.name == "rbf" else (x**2).sum(1).mean())
    for i in range(n):
        for j in range(n):
            inner = float(x[i] @ x[j])
            if kernel.name == "rbf":
                found[i, j] = np.exp(-gamma * distances[i, j])
            elif kernel.name == "polynomial":
                found[i, j] = (gamma * inner + kernel.constant) ** kernel.degree
            elif kernel.name == "cosine":
                length = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
                found[i, j] = inner / length if length else 0.0
            else:
                found[i, j] = inner
    return found


KERNELS = [
    Kernel("linear"),
    Kernel("cosine"),
    Kernel("rbf"),
    Kernel("rbf", gamma=0.3),
    Kernel("polynomial"),
    Kernel("polynomial", gamma=0.5, degree=2, constant=0.0),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_kernel_agrees_with_the_dense_one(kernel):
    student, teacher = sample(0, 60, 5), 3 * sample(1, 60, 9)
    student[7] = 0
    k_student, k_teacher = dense(student, kernel), dense(teacher, kernel)
    expected = np.linalg.norm(k_student - k_teacher) / np.linalg.norm(k_teacher)
    for algorithm in ("auto", "blocked"):
        found = gram_gap(student, teacher, kernel=kernel, algorithm=algorithm, block=16)
        assert found.loss == pytest.approx(expected, rel=1e-12)
        assert found.teacher_norm == pytest.approx(np.linalg.norm(k_teacher), rel=1e-12)
        assert found.student_norm == pytest.approx(np.linalg.norm(k_student), rel=1e-12)
        assert (found.kernel, found.interval) == (kernel.name, None)


@pytest.mark.parametrize("name", ["cosine", "rbf", "polynomial"])
def test_two_thousand_samples(name):
    student, teacher = sample(0, 2000, 12), sample(1, 2000, 20)

    def matrix(x):
        inner = x @ x.T
        norms = np.diag(inner)
        if name == "cosine":
            return inner / np.sqrt(norms[:, None] * norms)
        if name == "polynomial":
            return (inner / norms.mean() + 1) ** 3
        squares = norms[:, None] + norms - 2 * inner
        return np.exp(-squares / squares.mean())

    expected = np.linalg.norm(matrix(student) - matrix(teacher)) / np.linalg.norm(matrix(teacher))
    assert gram_gap(student, teacher, kernel=name).loss == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("name", ["cosine", "rbf", "polynomial"])
def test_the_scale_of_features_does_not_matter(name):
    student, teacher = sample(0, 50, 5), sample(1, 50, 9)
    expected = gram_gap(student, teacher, kernel=name).loss
    for factor in (1e-3, 1e5):
        assert gram_gap(student * factor, teacher, kernel=name).loss == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_identical_networks_lose_nothing(kernel):
    x = sample(0, 70, 6)
    x[3:6] = x[2]
    x[9] = 0
    assert gram_gap(x, x.copy(), kernel=kernel).loss <= 1e-14
    assert gram_gap(x, x.copy(), kernel=kernel, algorithm="blocked").loss <= 1e-14


def test_samples_that_are_all_alike_have_a_kernel_of_ones():
    x = np.ones((12, 4))
    assert gram_gap(2 * x, x, kernel="rbf").loss == 0
    assert gram_gap(x, x, kernel="rbf").teacher_norm == pytest.approx(12)


@pytest.mark.parametrize("name", ["rbf", "polynomial"])
def test_nystrom_with_all_samples_is_the_kernel_itself(name, monkeypatch):
    monkeypatch.setattr(features, "VALUES", 200)
    student, teacher = sample(0, 120, 5), sample(1, 120, 9)
    exact = gram_gap(student, teacher, kernel=name, algorithm="blocked")
    found = gram_gap(student, teacher, kernel=name, algorithm="nystrom", landmarks=500)
    assert found.loss == pytest.approx(exact.loss, rel=1e-6)
    assert (found.nystrom_landmarks, found.student_width, found.teacher_width) == (120, 5, 9)
    assert found.student_gamma == pytest.approx(exact.student_gamma)


def test_nystrom_comes_closer_with_more_landmarks():
    student, teacher = sample(0, 1500, 5), sample(1, 1500, 9)
    exact = gram_gap(student, teacher, kernel="rbf", algorithm="blocked").loss
    errors = [
        abs(gram_gap(student, teacher, kernel="rbf", algorithm="nystrom", landmarks=m).loss - exact)
        for m in (20, 100, 600)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-2 * exact


def test_the_interval_holds_the_exact_loss_as_often_as_it_says():
    held, width = 0, []
    kernels = [Kernel("rbf", gamma=0.2), Kernel("rbf", gamma=0.1)]
    for seed in range(60):
        student, teacher = sample(seed, 900, 4), sample(100 + seed, 900, 6)
        exact = gram_gap(student, teacher, kernel=Kernel("rbf", gamma=0.2), algorithm="blocked")
        k_student, k_teacher = (
            np.exp(-kernel.gamma * ((x[:, None] - x) ** 2).sum(2))
            for kernel, x in zip(kernels, (student, teacher), strict=True)
        )
        loss = np.linalg.norm(k_student - k_teacher) / np.linalg.norm(k_teacher)
        low, high = interval(student[:], teacher[:], kernels, 900, seed=seed)
        held += low <= loss <= high
        width.append((high - low) / exact.loss)
    assert held >= 52  # 57 of 60 are expected
    assert 0 < max(width) < 0.5


def test_the_interval_of_a_part_of_the_samples(monkeypatch):
    monkeypatch.setattr("kdtool.analysis.kernels.SUBSET_ROWS", 20)
    held = 0
    for seed in range(40):
        student, teacher = sample(seed, 1500, 4), sample(100 + seed, 1500, 6)
        exact = gram_gap(student, teacher, kernel="polynomial", algorithm="blocked").loss
        kernels = [Kernel("polynomial").fitted(x, "x") for x in (student, teacher)]
        low, high = interval(student, teacher, kernels, 1500, seed=seed)
        held += low <= exact <= high
    assert held >= 34


def test_few_samples_have_no_interval():
    x = sample(0, 30, 4)
    assert gram_gap(x, 2 * x, kernel="rbf", algorithm="nystrom").interval is None


def test_several_students_are_as_each_alone():
    teacher = sample(1, 90, 7)
    students = {"a": sample(2, 90, 3), "b": teacher * (1 + 1e-4 * np.arange(7)), "c": sample(4, 90, 7)}
    for kernel in ("linear", "cosine", "rbf"):
        found = gram_gaps(students, teacher, kernel=kernel)
        assert list(found) == list(students)
        for name, student in students.items():
            alone = gram_gap(student, teacher, kernel=kernel)
            assert found[name].loss == pytest.approx(alone.loss, rel=1e-12)
            assert found[name].algorithm == alone.algorithm


def test_a_huge_student_does_not_harm_the_others():
    teacher = sample(1, 90, 7)
    student = sample(2, 90, 3)
    found = gram_gaps({"a": student, "b": 1e40 * student}, teacher)
    assert found["a"] == gram_gap(student, teacher)
    assert found["b"].loss == pytest.approx(1e80 * found["a"].student_norm / found["a"].teacher_norm)


def test_the_teacher_is_read_once_for_all_students():
    class Counted:
        def __init__(self, x):
            self.x, self.begun = x, 0

        def __iter__(self):
            self.begun += 1
            yield self.x

    teacher = Counted(sample(1, 90, 7))
    gram_gaps({str(seed): sample(seed, 90, 3) for seed in range(9)}, teacher)
    assert teacher.begun == 2  # a look at the width, and the pass


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("kernel", ["linear", "cosine", "rbf"])
@pytest.mark.parametrize("algorithm", ["auto", "blocked"])
def test_ranks_give_the_same_numbers(size, kernel, algorithm, monkeypatch):
    monkeypatch.setattr(features, "VALUES", 60)
    teacher = sample(1, 47, 6)
    labels = np.random.default_rng(0).integers(-1, 4, 47)
    near = teacher * (1 + 3e-4 * np.arange(6))
    students = {"far": sample(2, 47, 4), "near": near, "chunks": np.split(sample(3, 47, 5), (9, 10, 30))}
    alone = gram_gaps(students, teacher, kernel=kernel, algorithm=algorithm, labels=labels, block=8)
    together = on_ranks(
        size,
        lambda ranks: gram_gaps(
            students, teacher, kernel=kernel, algorithm=algorithm, labels=labels, block=8, ranks=ranks
        ),
    )
    assert all(found == together[0] for found in together)
    for name, gap in together[0].items():
        assert gap.loss == pytest.approx(alone[name].loss, rel=1e-11)
        assert gap.samples == 47
        for ours, theirs in zip(gap.by_class.classes, alone[name].by_class.classes, strict=True):
            assert ours.within == pytest.approx(theirs.within, rel=1e-9)
            assert ours.between == pytest.approx(theirs.between, rel=1e-9)
            assert ours.share == pytest.approx(theirs.share, rel=1e-9)


def test_more_ranks_than_samples():
    teacher, student = sample(1, 3, 4), sample(2, 3, 4)
    found = on_ranks(5, lambda ranks: gram_gap(student, teacher, ranks=ranks))
    assert found[4].loss == pytest.approx(gram_gap(student, teacher).loss, rel=1e-12)


def test_different_lengths_are_told_of_on_every_rank():
    def run(ranks):
        with pytest.raises(UsageError, match="student has 9 samples and the teacher 10"):
            gram_gap(sample(0, 9, 2), sample(1, 10, 2), ranks=ranks)

    on_ranks(2, run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "gauss"}, "unknown kernel"),
        ({"kernel": "rbf", "algorithm": "moments"}, "has no moments"),
        ({"kernel": "cosine", "algorithm": "nystrom"}, "summed exactly"),
        ({"kernel": "rbf", "algorithm": "nystrom", "landmarks": 0}, "at least 1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UsageError, match=message):
        gram_gap(np.ones((3, 2)), np.ones((3, 2)), **arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": 1.0}, "gamma is 1.0"),
        ({"name": "rbf", "gamma": 0.0}, "gamma is 0.0"),
        ({"name": "polynomial", "degree": 0}, "degree 0"),
        ({"name": "rbf", "degree": 2}, "degree 2 and constant 1.0 belong to the kernel polynomial; rbf"),
        ({"constant": 0.0}, "degree 3 and constant 0.0 belong to the kernel polynomial; linear"),
        ({"name": "polynomial", "constant": -1.0}, "constant -1.0"),
    ],
)
def test_kernels_that_are_none(fields, message):
    with pytest.raises(UsageError, match=message):
        Kernel(**fields)


def test_entries_beyond_float64_are_refused():
    x = np.full((4, 2), 1e100)
    with pytest.raises(UsageError, match="beyond float64"):
        gram_gap(x, x, kernel=Kernel("polynomial", gamma=1.0))


def test_the_distance_from_the_origin_does_not_cost_digits_of_rbf():
    student, teacher = sample(0, 60, 5), sample(1, 60, 9)
    expected = gram_gap(student, teacher, kernel="rbf").loss
    assert gram_gap(student + 2.0**23, teacher - 2.0**20, kernel="rbf").loss == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e-100])
@pytest.mark.parametrize("name", ["rbf", "polynomial"])
def test_features_whose_squares_vanish_are_refused(name, scale):
    student, teacher = sample(0, 20, 3), sample(1, 20, 4)
    with pytest.raises(UsageError, match="features go up to"):
        gram_gap(scale * student, teacher, kernel=name)


def test_norms_of_a_kernel_beyond_float64_are_refused():
    x = sample(0, 20, 3)
    with pytest.raises(UsageError, match="beyond float64"):
        gram_gap(x, 2 * x, kernel=Kernel("polynomial", degree=300))


def test_fewer_samples_than_ranks_by_class():
    student, teacher = sample(0, 2, 3), sample(1, 2, 4)
    found = on_ranks(3, lambda ranks: gram_gap(student, teacher, labels=np.array([0, 1]), ranks=ranks))
    assert found[2] == found[0]
    assert found[0].by_class.classes[1].samples == 1


def test_a_result_says_which_kernel_it_is_of():
    x = sample(0, 60, 3)
    found = gram_gap(x, 2 * x + 1, kernel=Kernel("polynomial", degree=2, constant=0.5), algorithm="nystrom", seed=7)
    assert (found.kernel, found.degree, found.constant, found.seed) == ("polynomial", 2, 0.5, 7)
    plain = gram_gap(x, 2 * x)
    assert (plain.degree, plain.constant, plain.seed, plain.nystrom_landmarks) == (None, None, None, None)
