"""Agreement, divergence and calibration against loops over samples."""

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
from kdtool.analysis.predictions import kl, log_softmax, predictions
from kdtool.errors import UsageError


def softmax(row, temperature=1.0):
    """Probabilities by the definition."""
    top = max(row)
    exponentials = [math.exp((z - top) / temperature) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def naive_divergence(student, teacher, temperature):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    return total / len(student)


def naive_quality(logits, labels):
    """Accuracy, cross-entropy, Brier score, calibration error and bins of one side."""
    held = [[] for _ in range(15)]
    entropy = brier = 0.0
    for row, label in zip(logits, labels, strict=True):
        if label < 0:
            continue
        p = softmax(row)
        confidence = max(p)
        number = next(m for m in range(15) if confidence <= (m + 1) / 15)
        held[number].append((confidence, p.index(confidence) == label))
        entropy -= math.log(p[label])
        brier += sum((value - (k == label)) ** 2 for k, value in enumerate(p))
    n = sum(map(len, held))
    error = sum(abs(sum(c for c, _ in part) - sum(right for _, right in part)) for part in held) / n
    correct = sum(right for part in held for _, right in part)
    return correct / n, entropy / n, brier / n, error, held


def sides(seed, n, classes, scale=3.0):
    rng = np.random.default_rng(seed)
    teacher = scale * rng.standard_normal((n, classes))
    student = 0.7 * teacher + scale * 0.5 * rng.standard_normal((n, classes))
    return student, teacher, rng.integers(-1, classes, n)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 7), st.sampled_from([0.5, 1.0, 4.0]), st.floats(0.1, 20)
)
def test_agrees_with_loops(seed, n, classes, temperature, scale):
    student, teacher, labels = sides(seed, n, classes, scale)
    labels[0] = 0
    found = predictions(student, teacher, labels, temperature=temperature)
    assert found.agreement == np.mean([s.argmax() == t.argmax() for s, t in zip(student, teacher, strict=True)])
    assert found.kl == pytest.approx(naive_divergence(student, teacher, temperature), rel=1e-9, abs=1e-14)
    assert (found.samples, found.labelled, found.classes) == (n, (labels >= 0).sum(), classes)
    for side, logits in ((found.student, student), (found.teacher, teacher)):
        accuracy, entropy, brier, error, held = naive_quality(logits.tolist(), labels.tolist())
        assert side.accuracy == pytest.approx(accuracy, rel=1e-12)
        assert side.cross_entropy == pytest.approx(entropy, rel=1e-9)
        assert side.brier == pytest.approx(brier, rel=1e-9, abs=1e-15)
        assert side.calibration_error == pytest.approx(error, rel=1e-9, abs=1e-15)
        assert [b.count for b in side.bins] == [len(part) for part in held]
        for b, part in zip(side.bins, held, strict=True):
            assert b.confidence == (pytest.approx(np.mean([c for c, _ in part])) if part else None)
            assert b.accuracy == (pytest.approx(np.mean([right for _, right in part])) if part else None)
        total = sum(b.count * abs(b.accuracy - b.confidence) for b in side.bins if b.count) / found.labelled
        assert side.calibration_error == pytest.approx(total, rel=1e-9, abs=1e-15)
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["student"]["bins"][14]["upper"] == 1


def test_two_thousand_samples_of_a_hundred_classes():
    student, teacher, labels = sides(3, 2000, 100)
    found = predictions(student, teacher, labels)
    assert found.kl == pytest.approx(naive_divergence(student, teacher, 1.0), rel=1e-10)
    assert found.student.calibration_error == pytest.approx(naive_quality(student, labels.tolist())[3], rel=1e-10)


def test_the_bins_of_confidences_at_their_borders():
    # softmax gives 1/2 and 1/3 exactly or to the last digit; a bin holds its upper border, not its lower one.
    logits = np.array([[1.0, 1.0, -800.0], [0.0, 0.0, 0.0], [800.0, 0.0, 0.0]])
    bins = predictions(logits, logits, [0, 1, 0]).student.bins
    assert [number for number, b in enumerate(bins) if b.count] == [4, 7, 14]
    assert (bins[14].confidence, bins[14].accuracy, bins[4].accuracy) == (1, 1, 0)
    assert (bins[4].lower, bins[4].upper) == (4 / 15, 5 / 15)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=8), st.sampled_from([0.3, 1, 4])
)
def test_divergence_is_never_negative_and_zero_for_equal(pairs, temperature):
    student, teacher = (np.array([column]) for column in zip(*pairs, strict=True))
    found = predictions(student, teacher, temperature=temperature).kl
    assert found >= 0
    p, q = (np.array(softmax(x[0], temperature)) for x in (student, teacher))
    # Pinsker's inequality: nothing but equal distributions gives 0.
    assert found >= np.abs(p - q).sum() ** 2 / 2 * (1 - 1e-9) - 1e-30
    assert predictions(teacher, teacher, temperature=temperature).kl == 0


@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7])
def test_divergence_of_close_logits_keeps_its_digits(step):
    mpmath = pytest.importorskip("mpmath", reason="mpmath is the oracle")
    rng = np.random.default_rng(1)
    teacher = 2 * rng.standard_normal((1, 10))
    student = teacher + step * rng.standard_normal((1, 10))
    with mpmath.workdps(60):
        p, q = ([mpmath.exp(mpmath.mpf(float(z))) for z in x[0]] for x in (teacher, student))
        p, q = ([value / sum(x) for value in x] for x in (p, q))
        expected = float(sum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True)))
    assert predictions(student, teacher).kl == pytest.approx(expected, rel=1e-7 if step < 1e-6 else 1e-9, abs=0)


def test_extreme_logits():
    student, teacher = np.array([[0.0, 1e4], [1e300, -1e300]]), np.array([[1e4, 0.0], [1e300, -1e300]])
    found = predictions(student, teacher, [0, 0])
    assert found.kl == 5e3
    assert found.student.cross_entropy == 5e3
    assert found.student.brier == 1
    assert found.teacher.calibration_error == 0
    with pytest.raises(UsageError, match=r"1e\+300 at temperature 0.1"):
        predictions(student, teacher, temperature=0.1)


def test_equal_networks_and_constant_logits():
    x = np.random.default_rng(0).standard_normal((50, 5))
    same = predictions(x, x)
    assert (same.agreement, same.kl, same.student, same.teacher, same.labelled) == (1, 0, None, None, 0)
    zero = predictions(np.zeros((4, 5)), x[:4], [0, 0, 1, -1])
    assert zero.student.accuracy == pytest.approx(2 / 3)
    assert zero.student.confidence == pytest.approx(0.2)
    assert zero.student.cross_entropy == pytest.approx(math.log(5))
    assert predictions(x[:, :1], x[:, 1:2], np.zeros(50, int)).student.calibration_error == 0


def test_chunks_and_types_do_not_matter(monkeypatch):
    student, teacher, labels = sides(5, 300, 6)
    student, teacher = np.float32(student), np.float32(teacher)
    expected = predictions(student, teacher, labels, temperature=4)
    found = predictions(np.array_split(student, 5), torch.from_numpy(teacher), torch.from_numpy(labels), temperature=4)
    assert found == expected
    monkeypatch.setattr(features, "VALUES", 100)
    small = predictions(student, teacher, labels, temperature=4)
    assert small.kl == pytest.approx(expected.kl, rel=1e-12)
    assert small.teacher.calibration_error == pytest.approx(expected.teacher.calibration_error, rel=1e-12)
    assert [b.count for b in small.teacher.bins] == [b.count for b in expected.teacher.bins]


def test_unlabelled_samples_and_an_empty_class_take_no_part():
    student, teacher, labels = sides(6, 100, 6)
    labels[labels == 2] = -1
    kept = labels >= 0
    found, fewer = predictions(student, teacher, labels), predictions(student[kept], teacher[kept], labels[kept])
    assert found.student.bins == fewer.student.bins
    assert found.labelled == fewer.samples == kept.sum()
    assert found.kl != fewer.kl
    assert predictions(student, teacher, np.full(100, -1)).student is None


def test_what_does_not_fit_is_refused():
    x = np.random.default_rng(0).standard_normal((10, 3))
    labels = np.zeros(10, dtype=int)
    bad = x.copy()
    bad[3, 0] = np.nan
    with pytest.raises(UsageError, match="student's logits have 3 classes and the teacher's 2"):
        predictions(x, x[:, :2])
    with pytest.raises(UsageError, match="the student's features are not all finite"):
        predictions(bad, x)
    with pytest.raises(UsageError, match="temperature is 0"):
        predictions(x, x, temperature=0)
    with pytest.raises(UsageError, match="temperature is nan"):
        predictions(x, x, temperature=math.nan)
    for wrong in (labels[:9], np.append(labels, [0, 0])):
        with pytest.raises(UsageError, match=f"there are {len(wrong)} labels and 10 samples"):
            predictions(x, x, wrong)
    with pytest.raises(UsageError, match="the label 3 is no class"):
        predictions(x, x, labels + 3)
    with pytest.raises(UsageError, match="the label -2 is no class"):
        predictions(x, x, labels - 2)
    with pytest.raises(UsageError, match="type float64"):
        predictions(x, x, labels / 2)
    with pytest.raises(UsageError, match="student has 9 samples and the teacher 10"):
        predictions(x[1:], x)


def test_terms_of_divergence_on_both_forms():
    teacher, student = log_softmax(np.array([[0.0, 5, -900]])), log_softmax(np.array([[0.05, 0.0, 900]]))
    p, d = np.exp(teacher), teacher - student
    assert kl(teacher, student) == pytest.approx((p * d).sum(1))


def test_memory_does_not_grow_with_the_samples(monkeypatch):
    monkeypatch.setattr(features, "VALUES", 2**14)
    block = np.random.default_rng(1).standard_normal((4000, 32)).astype(np.float32)

    class Repeated:
        def __iter__(self):
            yield from [block] * 20

    tracemalloc.start()
    predictions(Repeated(), Repeated(), np.zeros(80_000, dtype=np.int8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6  # one side would be 20 MB in float64
