"""Linear CKA against dense kernels in float64."""

import json
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from many_ranks import on_ranks

import kdtool.analysis.features as features
from kdtool.analysis.rsa import rsa
from kdtool.analysis.similarity import linear_cka
from kdtool.errors import UsageError


def dense_cka(student, teacher):
    """Centred kernels, all entries."""
    n = len(student)
    h = np.eye(n) - 1 / n
    k, m = (h @ (x @ x.T) @ h for x in (np.float64(student), np.float64(teacher)))
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def dense_debiased(student, teacher):
    """The unbiased HSIC as Song et al. write it, of kernels that are not centred, with zeros on the diagonal."""

    def hsic(k, m):
        n = len(k)
        ones = np.ones(n)
        inner = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (inner - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    k, m = (x @ x.T for x in (np.float64(student), np.float64(teacher)))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def sides(seed, n, d_student, d_teacher, mean=0.0):
    """Features that share something, with a large mean where asked for."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, 3))
    both = [
        common @ rng.standard_normal((3, d)) + rng.standard_normal((n, d)) + mean * rng.standard_normal(d)
        for d in (d_student, d_teacher)
    ]
    return both[0], both[1]


class Chunks:
    """Re-iterable (rows, d) chunks with borders of its own."""

    def __init__(self, x, *borders):
        self.x, self.borders = x, borders

    def __iter__(self):
        yield from np.split(self.x, self.borders)


@pytest.fixture(params=[None, 50], ids=["one block", "many blocks"])
def block_values(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(features, "VALUES", request.param)


@pytest.mark.usefixtures("block_values")
@pytest.mark.parametrize(("n", "d_student", "d_teacher"), [(2000, 8, 13), (300, 24, 5), (12, 30, 20), (4, 2, 2)])
def test_agrees_with_dense_kernels(n, d_student, d_teacher):
    student, teacher = sides(1, n, d_student, d_teacher)
    found = linear_cka(student, teacher)
    assert found.cka == pytest.approx(dense_cka(student, teacher), rel=1e-11, abs=0)
    assert found.debiased == pytest.approx(dense_debiased(student, teacher), rel=1e-9, abs=0)
    assert (found.samples, found.student_width, found.teacher_width) == (n, d_student, d_teacher)
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_a_large_mean_costs_no_digits_of_the_cka(mean):
    student, teacher = sides(2, 500, 6, 9, mean)
    # The oracle takes exactly representable means away first, so it has all its digits.
    expected = dense_cka(student - np.round(student.mean(0)), teacher - np.round(teacher.mean(0)))
    assert linear_cka(student, teacher).cka == pytest.approx(expected, rel=1e-11, abs=0)


@pytest.mark.parametrize("mean", [0, 1e8])
def test_identical_features_give_one(mean):
    x, _ = sides(3, 700, 20, 1, mean)
    found = linear_cka(x, x)
    assert found.cka == pytest.approx(1, rel=0, abs=1e-14)
    assert found.debiased == pytest.approx(1, rel=0, abs=1e-14)
    assert linear_cka(np.repeat(x, 2, axis=0), np.repeat(x, 2, axis=0)).cka == pytest.approx(1, rel=0, abs=1e-14)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(5, 60),
    st.integers(1, 8),
    st.integers(1, 8),
    st.floats(0.01, 100),
    st.sampled_from([0.0, 10.0]),
)
def test_blind_to_rotation_scale_and_mean(seed, n, d_student, d_teacher, scale, mean):
    student, teacher = sides(seed, n, d_student, d_teacher)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((d_student, d_student)))[0]
    found, turned = linear_cka(student, teacher), linear_cka(scale * student @ rotation + mean, teacher)
    assert 0 <= found.cka <= 1
    assert turned.cka == pytest.approx(found.cka, rel=1e-9, abs=1e-12)
    assert turned.debiased == pytest.approx(found.debiased, rel=1e-6, abs=1e-9)
    swapped = linear_cka(teacher, student)
    assert swapped.cka == pytest.approx(found.cka, rel=1e-12)


def test_scales_far_from_one_are_no_matter():
    student, teacher = sides(4, 50, 4, 5)
    expected = linear_cka(student, teacher)
    for power in (-900, -200, 200, 1000):
        found = linear_cka(np.ldexp(student, power), np.ldexp(teacher, -power // 2))
        assert found.cka == pytest.approx(expected.cka, rel=1e-12)
        assert found.debiased == pytest.approx(expected.debiased, rel=1e-9)


def test_values_that_grow_from_block_to_block(monkeypatch):
    monkeypatch.setattr(features, "VALUES", 20)
    student, teacher = sides(5, 40, 4, 5)
    student = np.ldexp(student, 10 * np.arange(40)[:, None] - 250)
    expected = dense_cka(np.ldexp(student, -140), teacher)
    assert linear_cka(student, teacher).cka == pytest.approx(expected, rel=1e-11)


@pytest.mark.usefixtures("block_values")
def test_chunk_borders_and_types_do_not_matter():
    student, teacher = (np.float32(x) for x in sides(6, 200, 5, 7))
    expected = linear_cka(student, teacher)
    assert linear_cka(Chunks(student, 1, 50, 50), Chunks(teacher, 120)) == expected
    assert linear_cka(torch.from_numpy(student), np.float64(teacher)) == expected


def test_debiased_is_near_zero_where_the_cka_is_not():
    rng = np.random.default_rng(8)
    found = [linear_cka(rng.standard_normal((40, 30)), rng.standard_normal((40, 30))) for _ in range(30)]
    assert min(x.cka for x in found) > 0.3
    assert abs(np.mean([x.debiased for x in found])) < 0.03


def test_debiased_is_none_where_it_is_not_defined():
    x = np.random.default_rng(0).standard_normal((3, 2))
    assert linear_cka(x, x).debiased is None
    equidistant = np.eye(6)  # all kernel entries beside the diagonal are equal
    assert linear_cka(equidistant, np.arange(12.0).reshape(6, 2)).debiased is None


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-300, 12345.678])
def test_constant_features_are_refused_with_the_side_named(value, monkeypatch):
    monkeypatch.setattr(features, "VALUES", 10)
    x, constant = sides(0, 77, 3, 3)[0], np.full((77, 3), value)
    with pytest.raises(UsageError, match="student's features are the same in all samples"):
        linear_cka(constant, x)
    with pytest.raises(UsageError, match="teacher's features are the same in all samples"):
        linear_cka(x, constant)
    with pytest.raises(UsageError, match="of which there are 1;"):
        linear_cka(x[:1], x[:1])


@pytest.mark.parametrize("measure", [linear_cka, rsa])
def test_what_cannot_be_read_is_refused(measure):
    x = np.random.default_rng(0).standard_normal((20, 3))
    bad = x.copy()
    bad[7, 1] = np.nan
    with pytest.raises(UsageError, match="the student's features are not all finite"):
        measure(bad, x)
    with pytest.raises(UsageError, match="the teacher's features are not all finite"):
        measure(x, np.where(np.isnan(bad), np.inf, bad))
    with pytest.raises(UsageError, match="student has 19 samples and the teacher 20"):
        measure(x[1:], x)
    with pytest.raises(UsageError, match="no samples"):
        measure(x[:0], x[:0])
    with pytest.raises(UsageError, match="only once"):
        measure(iter([x]), x)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("n", [3, 83])
def test_ranks_share_the_samples_and_agree(size, n):
    student, teacher = sides(9, n, 4, 6, 1e4)
    student[0], student[n - 1] = 2.0**150, 1.0  # scales that only some ranks see, and a row that is left out of RSA
    for measure, name in ((linear_cka, "cka"), (rsa, "pearson")):
        if n == 3 and measure is rsa:
            continue
        expected = measure(student, teacher)
        found = on_ranks(size, lambda ranks, measure=measure: measure(student, teacher, ranks=ranks))
        assert all(result == found[0] for result in found)
        assert getattr(found[0], name) == pytest.approx(getattr(expected, name), rel=1e-10)
        assert asdict(found[0]).keys() == asdict(expected).keys()
        assert found[0].samples == expected.samples


@pytest.mark.parametrize("measure", [linear_cka, rsa])
def test_memory_does_not_grow_with_the_samples(measure, monkeypatch):
    monkeypatch.setattr(features, "VALUES", 2**14)
    block = np.random.default_rng(1).standard_normal((4000, 32)).astype(np.float32)

    class Repeated:
        def __iter__(self):
            yield from [block] * 40

    both = Repeated()
    tracemalloc.start()
    measure(both, both)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 160,000 samples: one side would be 41 MB in float64. RSA's permutation and rows take 15 MB.
    assert peak < (3e6 if measure is linear_cka else 20e6)
