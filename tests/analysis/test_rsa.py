"""RSA against dense dissimilarities in float64."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdtool.analysis.features as features
from kdtool.analysis.rsa import average_ranks, rsa
from kdtool.errors import UsageError


def dissimilarities(x):
    """1 - correlation of every pair of samples, (n (n-1) / 2,)."""
    found = 1 - np.corrcoef(np.float64(x))
    return found[np.triu_indices(len(x), 1)]


def dense(student, teacher):
    return np.corrcoef(dissimilarities(student), dissimilarities(teacher))[0, 1]


def naive_ranks(values):
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def sides(seed, n, d_student, d_teacher, kind="normal"):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, 3))
    both = [common @ rng.standard_normal((3, d)) + rng.standard_normal((n, d)) for d in (d_student, d_teacher)]
    if kind == "positive":
        both = [np.maximum(x, 0) + 0.01 * rng.random(x.shape) for x in both]
    if kind == "alike":  # all correlations are near 1
        both = [1e-3 * x + 5 * rng.standard_normal(x.shape[1]) for x in both]
    if kind == "mean":
        both = [x + 1e5 for x in both]
    return both


@pytest.fixture(params=[None, 50], ids=["one block", "many blocks"])
def block_values(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(features, "VALUES", request.param)


@pytest.mark.usefixtures("block_values")
@pytest.mark.parametrize("kind", ["normal", "positive", "mean", "alike"])
@pytest.mark.parametrize(("n", "d_student", "d_teacher"), [(1500, 8, 13), (300, 24, 5), (12, 30, 20), (3, 4, 4)])
def test_pearson_agrees_with_all_pairs(kind, n, d_student, d_teacher):
    student, teacher = sides(1, n, d_student, d_teacher, kind)
    found = rsa(student, teacher)
    # Where correlations differ by 1e-7 or features by 1e-5 of their mean, the inputs of both ways have lost digits.
    assert found.pearson == pytest.approx(dense(student, teacher), rel=1e-9 if kind != "alike" else 1e-7, abs=0)
    assert (found.samples, found.left_out, found.pairs) == (n, 0, n * (n - 1) // 2)
    assert (found.student_width, found.teacher_width) == (d_student, d_teacher)
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("kind", ["normal", "positive"])
def test_spearman_over_all_pairs_agrees_with_scipy(kind):
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
    student, teacher = sides(2, 200, 6, 9, kind)
    student[5], teacher[5] = student[6], teacher[6]
    found = rsa(student, teacher)
    expected = stats.spearmanr(np.round(dissimilarities(student), 12), np.round(dissimilarities(teacher), 12)).statistic
    assert found.spearman == pytest.approx(expected, rel=1e-9)
    assert (found.subsets, found.subset_samples, found.spearman_interval) == (1, 200, None)


def test_the_interval_of_subsets_holds_the_spearman_of_all_pairs():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
    student, teacher = sides(3, 1300, 6, 9)
    expected = stats.spearmanr(dissimilarities(student), dissimilarities(teacher)).statistic
    held, widths = 0, []
    for seed in range(20):
        found = rsa(student, teacher, subset_samples=60, seed=seed)
        assert (found.subsets, found.subset_samples) == (10, 60)
        low, high = found.spearman_interval
        assert low < found.spearman < high
        held += low < expected < high
        widths.append(high - low)
    assert held >= 17
    assert np.mean(widths) < 0.1
    assert rsa(student, teacher).subset_samples == 130


def test_draws_depend_on_the_seed_alone(monkeypatch):
    student, teacher = sides(4, 1100, 4, 4)
    expected = rsa(student, teacher, subset_samples=20, seed=5)
    assert expected != rsa(student, teacher, subset_samples=20, seed=6)
    assert rsa(np.array_split(student, 7), np.array_split(teacher, 3), subset_samples=20, seed=5) == expected
    monkeypatch.setattr(features, "VALUES", 100)
    found = rsa(student, teacher, subset_samples=20, seed=5)
    assert found.spearman == pytest.approx(expected.spearman, rel=1e-9)
    assert found.pearson == pytest.approx(expected.pearson, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(3, 9), st.floats(1e-3, 1e3), st.floats(-5, 5))
def test_blind_to_scale_and_shift_of_every_sample(seed, n, d, scale, shift):
    student, teacher = sides(seed, n, d, 5)
    found = rsa(student, teacher)
    assert found.pearson == pytest.approx(dense(student, teacher), rel=1e-9, abs=1e-12)
    rng = np.random.default_rng(seed)
    moved = student * rng.uniform(0.5, 2, (n, 1)) * scale + shift * scale
    assert rsa(moved, teacher).pearson == pytest.approx(found.pearson, rel=1e-8, abs=1e-10)
    assert rsa(student[:, rng.permutation(d)], teacher).pearson == pytest.approx(found.pearson, rel=1e-9, abs=1e-11)


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40))
def test_equal_values_share_the_mean_of_their_ranks(values):
    assert average_ranks(np.array(values, dtype=float)).tolist() == naive_ranks(values)


@pytest.mark.parametrize("kind", ["normal", "positive", "alike"])
def test_identical_and_repeated_samples(kind):
    x, other = sides(6, 90, 7, 5, kind)
    same = rsa(x, x)
    assert same.pearson == pytest.approx(1, rel=0, abs=1e-13)
    assert same.spearman == pytest.approx(1, rel=0, abs=1e-13)
    x, other = np.repeat(x[:30], 3, axis=0), np.repeat(other[:30], 3, axis=0)
    assert rsa(x, other).pearson == pytest.approx(dense(x, other), rel=1e-9 if kind != "alike" else 1e-6)


def test_samples_without_variance_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(features, "VALUES", 30)
    student, teacher = sides(7, 60, 4, 5)
    student[[0, 1, 2, 3, 4, 5, 6, 7, 20]] = 0.1
    teacher[[20, 30]] = 0
    kept = np.setdiff1d(np.arange(60), [0, 1, 2, 3, 4, 5, 6, 7, 20, 30])
    found = rsa(student, teacher)
    assert (found.samples, found.left_out) == (50, 10)
    assert found.pearson == pytest.approx(dense(student[kept], teacher[kept]), rel=1e-9)
    assert found.spearman == pytest.approx(rsa(student[kept], teacher[kept]).spearman, rel=1e-12)


def test_scales_far_from_one_are_no_matter():
    student, teacher = sides(8, 40, 5, 6)
    expected = rsa(student, teacher).pearson
    powers = np.arange(-1000, 1000, 50)[:, None]
    assert rsa(np.ldexp(student, powers), teacher).pearson == pytest.approx(expected, rel=1e-10)


def test_what_has_no_dissimilarities_is_refused():
    x = sides(9, 30, 4, 4)[0]
    with pytest.raises(UsageError, match="the student has 1 feature"):
        rsa(x[:, :1], x)
    with pytest.raises(UsageError, match="the teacher has 1 feature"):
        rsa(x, x[:, :1])
    with pytest.raises(UsageError, match="2 of 2 samples"):
        rsa(x[:2], x[:2])
    with pytest.raises(UsageError, match="0 of 30 samples"):
        rsa(np.zeros((30, 3)), x)
    with pytest.raises(UsageError, match="subset_samples is 2"):
        rsa(x, x, subset_samples=2)


@pytest.mark.parametrize(
    "equal",
    [np.ones((30, 1)) * [1, 2, 3.7], np.arange(1, 31)[:, None] * [0.1, 0.2, 0.7], np.eye(30)],
    ids=["repeated", "scaled", "all orthogonal"],
)
def test_equal_dissimilarities_are_refused_with_the_side_named(equal):
    x = sides(9, 30, 4, 4)[0]
    with pytest.raises(UsageError, match="teacher's dissimilarities of all pairs of 30 samples are equal"):
        rsa(x, equal)
    with pytest.raises(UsageError, match="student's dissimilarities of all pairs of 30 samples are equal"):
        rsa(equal, x)


def test_spearman_is_none_where_a_subset_has_one_dissimilarity_only():
    student, teacher = sides(10, 1100, 4, 4)
    student[5:] = [1, 2, 3, 5]
    found = rsa(student, teacher, subset_samples=3)
    assert found.spearman is None
    assert found.spearman_interval is None
    assert found.pearson == pytest.approx(dense(student, teacher), rel=1e-8)
