"""How alike the predictions of a student and a teacher are, and how good and how well calibrated those of each.

Gives agreement and KL divergence of logits (n, L) of the same samples; from labels also accuracy, cross-entropy, Brier
score and expected calibration error with the bins of a reliability diagram. Everything in float64, block by block.

Left out: calibration by another temperature, and what is not about logits (similarity, correlation).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdtool.analysis.features import Features, Matrix, blocks, largest, widths
from kdtool.data.dataset import NO_LABEL
from kdtool.errors import NonFiniteError, UsageError

BINS = 15  # of equal width, as in Guo et al. 2017
EDGES = np.arange(BINS + 1) / BINS
BEYOND = 1e300  # magnitudes of logits above this have differences that are infinite in float64
NEAR = 0.1  # of log-probabilities closer than this, the summand of KL is taken in its other form

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """Labelled samples whose confidence, the largest probability, is above `lower` and at most `upper`.

    confidence and accuracy: means over them, from 0 to 1; None where there are none.
    """

    lower: float
    upper: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Quality:
    """One network's predictions against the labels.

    accuracy and confidence: shares from 0 to 1. cross_entropy: nats. brier: the mean of sum_k (p_k - [k = label])^2,
    from 0 to 2 (Brier 1950). calibration_error: sum over bins of count / labelled * |accuracy - confidence| (expected
    calibration error; Guo et al. 2017, equation 3).
    """

    accuracy: float
    cross_entropy: float
    brier: float
    confidence: float
    calibration_error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Predictions:
    """Predictions of both sides for n samples.

    agreement: the share with the same most probable class. kl: the mean of KL(teacher || student) at `temperature`, in
    nats, without the factor T^2 of the distillation loss. student and teacher: over the `labelled` samples and at
    temperature 1; None where there are none.
    """

    agreement: float
    kl: float
    temperature: float
    samples: int
    labelled: int
    classes: int
    student: Quality | None
    teacher: Quality | None


class Tally:
    """Sums over labelled samples of one side, from which its `Quality` follows."""

    def __init__(self) -> None:
        self.cross_entropy = self.brier = 0.0
        self.count = np.zeros(BINS, dtype=np.int64)
        self.correct = np.zeros(BINS, dtype=np.int64)
        self.confidence = np.zeros(BINS)

    def add(self, logits: Matrix, labels: Labels) -> None:
        """Adds samples that all have a label."""
        if not np.isfinite(logits).all():
            raise NonFiniteError("a network answers with infinite or NaN logits: its training has diverged")
        logs = log_softmax(logits)
        probabilities = np.exp(logs)
        rows = np.arange(len(logs))
        confidence = probabilities.max(1)
        places = np.maximum(np.searchsorted(EDGES, confidence, side="left") - 1, 0)
        self.count += np.bincount(places, minlength=BINS)
        self.correct += np.bincount(places[logits.argmax(1) == labels], minlength=BINS)
        self.confidence += np.bincount(places, weights=confidence, minlength=BINS)
        self.cross_entropy -= float(logs[rows, labels].sum())
        probabilities[rows, labels] -= 1
        self.brier += float(np.vdot(probabilities, probabilities))

    def quality(self) -> Quality | None:
        """What the sums come to."""
        n = int(self.count.sum())
        if not n:
            return None
        return Quality(
            accuracy=int(self.correct.sum()) / n,
            cross_entropy=self.cross_entropy / n,
            brier=self.brier / n,
            confidence=float(self.confidence.sum()) / n,
            calibration_error=float(np.abs(self.correct - self.confidence).sum()) / n,
            bins=tuple(self.bin(number) for number in range(BINS)),
        )

    def bin(self, number: int) -> Bin:
        """One bar of the reliability diagram."""
        lower, upper, count = float(EDGES[number]), float(EDGES[number + 1]), int(self.count[number])
        if not count:
            return Bin(lower, upper, 0, None, None)
        return Bin(lower, upper, count, float(self.confidence[number]) / count, int(self.correct[number]) / count)


def check_temperature(temperature: float) -> None:
    """Refuses what is no temperature."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"the temperature is {temperature}; expected a number above 0")


def predictions(
    student: Features, teacher: Features, labels: npt.ArrayLike | None = None, *, temperature: float = 1.0
) -> Predictions:
    """Compares logits (n, L) of the same samples with each other and, where there are labels (n,), with those.

    Samples with the label -1 take part in agreement and kl only. Of equal logits the class with the lowest number is
    the most probable. Each side is read like the features of `gram.gram_gap`. Raises UsageError where that does, for
    different numbers of classes, a temperature that is not above 0, logits beyond float64, and labels that do not fit.
    """
    check_temperature(temperature)
    classes = same_classes(student, teacher)
    checked = None if labels is None else class_labels(labels, classes)
    tallies = Tally(), Tally()
    same = samples = 0
    divergence = 0.0
    for s, t, known in labelled_blocks(student, teacher, classes, checked):
        samples += len(s)
        same += int((s.argmax(1) == t.argmax(1)).sum())
        divergence += float(kl(log_softmax(t, temperature), log_softmax(s, temperature)).sum())
        kept = known != NO_LABEL
        for tally, logits in zip(tallies, (s, t), strict=True):
            tally.add(logits[kept], known[kept])
    return Predictions(
        agreement=same / samples,
        kl=divergence / samples,
        temperature=float(temperature),
        samples=samples,
        labelled=int(tallies[0].count.sum()),
        classes=classes,
        student=tallies[0].quality(),
        teacher=tallies[1].quality(),
    )


def same_classes(student: Features, teacher: Features) -> int:
    """The number of classes L of both sides' logits."""
    of_student, of_teacher = widths(student, teacher)
    if of_student != of_teacher:
        raise UsageError(
            f"the student's logits have {of_student} classes and the teacher's {of_teacher}; expected the same classes"
        )
    return of_student


def class_labels(labels: npt.ArrayLike, classes: int) -> Labels:
    """Labels as an (n,) int64 array, of which every one is a class or NO_LABEL."""
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UsageError(f"the labels have the shape {found.shape} and type {found.dtype}; expected (n,) whole numbers")
    wrong = found[(found < NO_LABEL) | (found >= classes)]
    if len(wrong):
        raise UsageError(
            f"the label {wrong[0]} is no class; expected 0 to {classes - 1}, or {NO_LABEL} for a sample without a label"
        )
    return found.astype(np.int64)


def labelled_blocks(
    student: Features, teacher: Features, classes: int, labels: Labels | None
) -> Iterator[tuple[Matrix, Matrix, Labels]]:
    """The blocks of both sides with the labels of their samples; without labels all are NO_LABEL."""
    start = 0
    for s, t in blocks(student, teacher, (classes, classes)):
        stop = start + len(s)
        part = np.full(len(s), NO_LABEL, dtype=np.int64) if labels is None else labels[start:stop]
        start = stop
        if len(part) == len(s):
            yield s, t, part
    if labels is not None and len(labels) != start:
        raise UsageError(f"there are {len(labels)} labels and {start} samples; expected one label a sample")


def log_softmax(logits: Matrix, temperature: float = 1.0) -> Matrix:
    """Natural logarithms of the probabilities at a temperature, (rows, L)."""
    if len(logits) and largest(logits) > BEYOND * min(1.0, temperature):
        raise UsageError(
            f"a logit has the magnitude {largest(logits):g} at temperature {temperature:g}; expected logits and their "
            "differences inside of float64"
        )
    logs = logits / temperature
    logs -= logs.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    return logs


def kl(teacher: Matrix, student: Matrix) -> Matrix:
    """KL(teacher || student) of every row of log-probabilities, (rows,), with summands that are never below 0.

    With d = log p_S - log p_T, sum_k p_T d = sum_k (p_T d - p_S + p_T) because both distributions sum to 1. The latter
    is p_T (exp(d) - 1 - d) >= 0 in every summand and keeps its digits where both sides are close.
    """
    p_teacher, p_student, d = np.exp(teacher), np.exp(student), student - teacher
    near = np.clip(d, -NEAR, NEAR)
    close = p_teacher * (np.expm1(near) - near)
    far = p_student - p_teacher - p_teacher * d
    return np.asarray(np.maximum(np.where(np.abs(d) < NEAR, close, far), 0).sum(1))
