"""The kernel transfer loss against exact rational arithmetic and against dense kernels."""

import math
import tracemalloc
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdtool.analysis.features as features
from kdtool.analysis.gram import alignment, gram_gap, transfer_loss
from kdtool.errors import UsageError

ALGORITHMS = ("moments", "aligned", "blocked")


def exact(student, teacher):
    """The loss in integer arithmetic: no rounding before the last square root."""

    def integer_kernel(x):
        # Every float64 of these magnitudes is an integer over 2^200.
        whole = np.array([[int(Fraction(float(v)) * 2**200) for v in row] for row in x], dtype=object)
        return whole @ whole.T

    k_student, k_teacher = integer_kernel(student), integer_kernel(teacher)
    return math.sqrt(Fraction(((k_student - k_teacher) ** 2).sum(), (k_teacher**2).sum()))


def kernel(x):
    return np.float64(x) @ np.float64(x).T


def dense(student, teacher):
    return np.linalg.norm(kernel(student) - kernel(teacher)) / np.linalg.norm(kernel(teacher))


def orthogonal(rng, rows, columns):
    """(rows, columns) with orthonormal rows, rows <= columns."""
    return np.linalg.qr(rng.standard_normal((columns, rows)))[0].T


def sample(rng, n, d, kind="positive"):
    x = rng.standard_normal((n, d))
    if kind == "positive":
        return np.maximum(x, 0)
    if kind == "decaying":
        return x * 10.0 ** -np.linspace(0, 8, d)
    if kind == "low rank":
        return x[:, :2] @ rng.standard_normal((2, d))
    if kind == "repeated":
        return x[rng.integers(0, 3, n)]
    return x


class Chunks:
    """Re-iterable (rows, d) chunks with borders of its own; counts how often it was begun."""

    def __init__(self, x, *borders):
        self.x, self.borders, self.begun = x, borders, 0

    def __iter__(self):
        self.begun += 1
        yield from np.split(self.x, self.borders)


@pytest.fixture(params=[None, 50], ids=["one block", "many blocks"])
def block_values(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(features, "VALUES", request.param)


@pytest.mark.usefixtures("block_values")
@pytest.mark.parametrize("kind", ["normal", "positive", "decaying", "low rank", "repeated"])
@pytest.mark.parametrize("shape", [(40, 6), (5, 9)], ids=["n > d", "n < d"])
@pytest.mark.parametrize("gap", [1.0, 0.3, 2e-2, 5e-3, 1e-4, 1e-6])
def test_agrees_with_exact_arithmetic(kind, shape, gap):
    rng = np.random.default_rng(7)
    n, d = shape
    teacher = sample(rng, n, d, kind)
    near = teacher * (1 + 0.7 * gap) + 0.3 * gap * teacher[:, ::-1]
    students = {
        "close": near,
        "rotated": near @ orthogonal(rng, d, d),
        "wider": near @ orthogonal(rng, d, d + 3),
        "float32": np.float32(near),
    }
    for name, student in students.items():
        expected = exact(student, teacher)
        assert 0.3 * gap < expected < 30 * gap, name
        assert transfer_loss(student, teacher) == pytest.approx(expected, rel=1e-9, abs=0), name
        assert gram_gap(student, teacher, algorithm="aligned").loss == pytest.approx(expected, rel=1e-9, abs=0), name
        assert gram_gap(student, teacher, algorithm="blocked", block=7).loss == pytest.approx(
            expected, rel=1e-9, abs=0
        ), name
        swapped = gram_gap(teacher, student)
        assert swapped.loss == pytest.approx(exact(teacher, student), rel=1e-9, abs=0), name


@pytest.mark.parametrize("kind", ["normal", "positive"])
def test_the_rotation_leaves_room_below_the_promised_error(kind):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        teacher = sample(rng, 60, 12, kind)
        student = teacher * (1 + 5e-7) @ orthogonal(rng, 12, 12 + seed)
        assert transfer_loss(student, teacher) == pytest.approx(exact(student, teacher), rel=4e-10, abs=0), seed


@pytest.mark.parametrize(("d_student", "d_teacher"), [(16, 16), (8, 24), (24, 8), (1, 5)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_algorithms_agree_with_the_dense_kernels(d_student, d_teacher, dtype):
    rng = np.random.default_rng(3)
    student, teacher = (sample(rng, 300, d).astype(dtype) for d in (d_student, d_teacher))
    expected = dense(student, teacher)
    for algorithm in ALGORITHMS:
        found = gram_gap(student, teacher, algorithm=algorithm, block=64)
        assert found.loss == pytest.approx(expected, rel=1e-12, abs=0)
        assert found.difference_norm == pytest.approx(
            np.linalg.norm(kernel(student) - kernel(teacher)), rel=1e-12, abs=0
        )
        assert found.teacher_norm == pytest.approx(np.linalg.norm(kernel(teacher)), rel=1e-12, abs=0)
        assert found.student_norm == pytest.approx(np.linalg.norm(kernel(student)), rel=1e-12, abs=0)
        k_student, k_teacher = kernel(student), kernel(teacher)
        product = np.linalg.norm(k_student) * np.linalg.norm(k_teacher)
        assert found.scale == pytest.approx(np.linalg.norm(k_student) / np.linalg.norm(k_teacher), rel=1e-12, abs=0)
        assert found.alignment == pytest.approx(np.vdot(k_student, k_teacher) / product, rel=1e-12, abs=0)
        sizes = found.samples, found.student_width, found.teacher_width, found.algorithm
        assert sizes == (300, d_student, d_teacher, algorithm)


def test_the_second_pass_is_taken_below_one_percent_only():
    x = sample(np.random.default_rng(0), 30, 4)
    assert gram_gap(x * 1.1, x).algorithm == "moments"
    assert gram_gap(x * 1.001, x).algorithm == "aligned"


@pytest.mark.usefixtures("block_values")
@pytest.mark.parametrize("shape", [(200, 32), (3, 50), (1, 1), (60, 60)])
@pytest.mark.parametrize("kind", ["normal", "positive", "decaying", "low rank", "repeated"])
def test_equal_kernels_have_no_gap(shape, kind):
    rng = np.random.default_rng(1)
    n, d = shape
    x = sample(rng, n, max(d, 2), kind)[:, :d] + 0.01
    assert transfer_loss(x, x.copy()) <= 1e-14
    assert transfer_loss(x @ orthogonal(rng, d, d), x) <= 1e-14
    assert transfer_loss(x, x @ orthogonal(rng, d, d + 5)) <= 1e-14
    assert transfer_loss(np.hstack([x, np.zeros((n, 2))]), x) <= 1e-14


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_student_of_zeros_has_the_loss_one(algorithm):
    teacher = sample(np.random.default_rng(2), 20, 5)
    found = gram_gap(np.zeros((20, 3)), teacher, algorithm=algorithm)
    assert (found.loss, found.student_norm) == (pytest.approx(1.0, rel=1e-15, abs=0), 0.0)
    assert (found.scale, found.alignment) == (0.0, 0.0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("power", [-150, -100, 100, 150])
def test_features_of_any_magnitude(algorithm, power, monkeypatch):
    monkeypatch.setattr(features, "VALUES", 70)
    rng = np.random.default_rng(4)
    teacher = sample(rng, 40, 6, "normal")
    teacher[:10] *= 1e-6  # so that later blocks are larger than earlier ones
    teacher[:7] = 0
    for student in (sample(rng, 40, 8, "normal"), teacher * 1.00001):
        expected = gram_gap(student, teacher, algorithm=algorithm)
        scale = 10.0**power
        found = gram_gap(student * scale, teacher * scale, algorithm=algorithm)
        assert found.loss == pytest.approx(expected.loss, rel=1e-9, abs=0)
        assert found.teacher_norm == pytest.approx(expected.teacher_norm * scale * scale, rel=1e-9, abs=0)
    tiny_student = gram_gap(student * 1e-150, teacher, algorithm=algorithm)
    assert tiny_student.loss == pytest.approx(1.0, rel=1e-15, abs=0)


def test_norms_beyond_float64_are_refused():
    x = np.full((10, 3), 1e200)
    with pytest.raises(UsageError, match="beyond float64"):
        transfer_loss(x, x)
    with pytest.raises(UsageError, match="vanishes beside the student"):
        transfer_loss(np.full((10, 3), 1e150), np.ones((10, 3)))


@pytest.mark.usefixtures("block_values")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("scale", [2.0, 1.00003])
def test_chunk_borders_do_not_matter(algorithm, scale):
    rng = np.random.default_rng(5)
    teacher = sample(rng, 90, 7)
    student = teacher * scale
    whole = gram_gap(student, teacher, algorithm=algorithm)
    pieces = Chunks(student, 1, 40, 40, 41), [torch.from_numpy(part) for part in np.split(teacher, (30, 60))]
    assert gram_gap(*pieces, algorithm=algorithm) == whole


@pytest.mark.parametrize("factor", [2, 1.001], ids=["moments", "aligned"])
def test_memory_does_not_grow_with_the_samples(factor):
    x = sample(np.random.default_rng(5), 400_000, 8).astype(np.float32)  # a kernel of 1.3 TB
    tracemalloc.start()
    try:
        transfer_loss([x * factor], [x])
        assert tracemalloc.get_traced_memory()[1] < x.nbytes + 64 * 2**20
    finally:
        tracemalloc.stop()


def test_tensors_of_every_type_are_read():
    rng = np.random.default_rng(6)
    student, teacher = torch.from_numpy(sample(rng, 50, 4)), torch.from_numpy(sample(rng, 50, 6))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        s, t = student.to(dtype).requires_grad_(), teacher.to(dtype)
        assert transfer_loss(s, t) == pytest.approx(dense(s.detach().double(), t.double()), rel=1e-12, abs=0)
    counts = np.arange(12, dtype=np.uint8).reshape(4, 3)
    assert transfer_loss(counts, counts * 2) == pytest.approx(0.75, rel=1e-15, abs=0)


def test_an_iterator_is_refused_before_it_is_touched():
    x = sample(np.random.default_rng(8), 10, 3)
    touched = []

    def generator():
        touched.append(1)
        yield x

    for once in (generator(), iter([x]), map(np.asarray, [x])):
        with pytest.raises(UsageError, match="read only once"):
            transfer_loss(x, once)
        with pytest.raises(UsageError, match="read only once"):
            transfer_loss(Chunks(x), once, algorithm="blocked")
    assert not touched


def test_an_iterator_behind_an_iterable_is_noticed():
    x = sample(np.random.default_rng(8), 10, 3)

    class Shared:
        def __init__(self):
            self.source = iter([x, x, x])

        def __iter__(self):
            yield from self.source

    with pytest.raises(UsageError, match="samples"):
        transfer_loss(Shared(), x)


def refusals():
    x = np.ones((4, 3))
    hole = x.copy()
    hole[2, 1] = np.nan
    return {
        "student has 4 samples and the teacher 5": (x, np.ones((5, 3))),
        "student has 8 samples and the teacher 4": ([x, x], x),
        "student's features are not all finite": (hole, x),
        "teacher's features are not all finite": (x, np.where(np.isnan(hole), -np.inf, 1.0)),
        "teacher's kernel is zero": (x, 0 * x),
        "norm of the teacher's kernel is below float64": (1e-170 * x, 1e-170 * x),
        r"have the shape \(4,\)": (x, x[:, 0]),
        r"have the shape \(4, 0\)": (x[:, :0], x),
        r"have the shape \(2, 2\); expected \(rows, 3\)": ([x, x[:2, :2]], x),
        r"have the shape \(3,\)": (list(x), x),
        r"have the shape \(\)": ([[1.0, 2.0]], x),
        "student's features have no samples": ([], x),
        "the features have no samples": (x[:0], x[:0]),
        "complex128": (x * 1j, x),
        "torch.complex64": (x, torch.ones(4, 3, dtype=torch.complex64)),
        "cannot be iterated": (7, x),
    }


@pytest.mark.parametrize("message", refusals())
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_refusals_say_what_was_found(message, algorithm):
    with pytest.raises(UsageError, match=message):
        transfer_loss(*refusals()[message], algorithm=algorithm)


def test_unknown_algorithms_and_blocks_are_refused():
    x = np.ones((4, 3))
    with pytest.raises(UsageError, match="did you mean 'moments'"):
        gram_gap(x, x, algorithm="moment")
    with pytest.raises(UsageError, match="block is 0"):
        gram_gap(x, x, algorithm="blocked", block=0)


def test_the_input_is_read_once_or_twice_after_a_look_at_the_first_chunk():
    x = sample(np.random.default_rng(9), 20, 3)
    for factor, readings in ((2, 1), (1.001, 2)):
        student, teacher = Chunks(x * factor, 5), Chunks(x, 10)
        gram_gap(student, teacher)
        assert student.begun == teacher.begun == 1 + readings


def test_sequences_that_change_between_two_readings_are_noticed():
    x = sample(np.random.default_rng(9), 20, 3)

    class Shrinking(Chunks):
        def __iter__(self):
            self.begun += 1
            yield self.x if self.begun < 3 else self.x[:10]

    with pytest.raises(UsageError, match="20 samples when read first and 10"):
        gram_gap(Shrinking(x), Shrinking(x))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    d_student=st.integers(1, 12),
    d_teacher=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    close=st.sampled_from([0.0, 1e-5, 1.0]),
    factor=st.floats(1e-3, 1e3),
)
def test_properties(n, d_student, d_teacher, seed, close, factor):
    rng = np.random.default_rng(seed)
    teacher = rng.standard_normal((n, d_teacher))
    student = rng.standard_normal((n, d_student))
    if close < 1:
        student = teacher @ orthogonal(rng, d_teacher, d_teacher) + close * rng.standard_normal((n, d_teacher))
    loss = transfer_loss(student, teacher)
    order = rng.permutation(n)

    def same(value):
        return value == pytest.approx(loss, rel=1e-8, abs=1e-14)

    assert loss >= 0
    assert same(transfer_loss(student[order], teacher[order]))
    assert same(transfer_loss(student @ orthogonal(rng, student.shape[1], student.shape[1] + 2), teacher))
    assert same(transfer_loss(student, teacher @ orthogonal(rng, d_teacher, d_teacher)))
    assert same(transfer_loss(student * factor, teacher * factor))
    assert same(gram_gap(student, teacher, algorithm="blocked", block=16).loss)
    norms = gram_gap(student, teacher)
    assert abs(norms.student_norm - norms.teacher_norm) <= norms.difference_norm + 1e-12 * norms.teacher_norm
    assert 0 <= norms.alignment <= 1
    scaled = gram_gap(student * factor, teacher)
    assert scaled.scale == pytest.approx(norms.scale * factor**2, rel=1e-12)
    assert scaled.alignment == pytest.approx(norms.alignment, abs=1e-6)
    least = transfer_loss(student * math.sqrt(norms.alignment / norms.scale), teacher)
    assert least == pytest.approx(math.sqrt(1 - norms.alignment**2), abs=1e-6)
    assert least <= loss + 1e-6


def test_the_parts_of_a_gap_are_read_from_files_that_do_not_hold_them():
    rng = np.random.default_rng(5)
    gap = gram_gap(sample(rng, 40, 3), sample(rng, 40, 6))
    assert gap.plain() == {**asdict(gap), "scale": gap.scale, "alignment": gap.alignment}
    assert alignment(asdict(gap)) == gap.alignment
