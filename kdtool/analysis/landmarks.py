"""What landmarks say of the transfer loss while a student learns, next to the true loss (KDA, figures 2, 4, 5, 6, 7).

The estimate of figure 4 is ||C_T - C_S||_F / ||C_T||_F with C = X D' the kernel's columns at the landmarks D, here of
class centres, random images and k-means clusters; `whitened` is the same of A = C W^(-1/2), the form of figure 6, with
the pseudo-inverse. The smallest eigenvalues of W_S and W_T are those of figure 5.

Left out: where the weights of the epochs come from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtool.analysis.centred import pearson
from kdtool.analysis.features import Features, Matrix, blocks, widths
from kdtool.analysis.gram import transfer_loss
from kdtool.analysis.measures import squared_columns
from kdtool.analysis.nystrom import LandmarkSet, class_centres, for_student, k_means, random_images
from kdtool.analysis.pairs import Labels
from kdtool.analysis.projector import subspace
from kdtool.engine.job import check_seed
from kdtool.errors import UsageError, unknown

STRATEGIES = ("class", "random", "kmeans")


@dataclass(frozen=True)
class Plan:
    """Which landmarks are taken. strategies: some of class, random and kmeans.

    count: of random images and of k-means clusters, None for one a class. seed: of both.
    per_class: k-means within every class, so many clusters in each, as figure 7; `count` is of random images then.
    """

    strategies: tuple[str, ...] = STRATEGIES
    count: int | None = None
    per_class: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategies", tuple(dict.fromkeys(self.strategies)))
        for name in self.strategies:
            if name not in STRATEGIES:
                raise unknown("kind of landmarks", name, STRATEGIES)
        check_seed(self.seed)
        for number in (self.count, self.per_class):
            if number is not None and number < 1:
                raise UsageError(f"{number} landmarks; expected at least 1")
        kinds = f"asked for: {', '.join(self.strategies)}"
        if self.per_class is not None and "kmeans" not in self.strategies:
            raise UsageError(f"{self.per_class} clusters in every class belong to k-means; {kinds}")
        counted = "random" in self.strategies or ("kmeans" in self.strategies and self.per_class is None)
        if self.count is not None and not counted:
            kinds += "" if self.per_class is None else f", {self.per_class} in every class"
            raise UsageError(f"a count of {self.count} belongs to random and k-means landmarks; {kinds}")

    @property
    def options(self) -> dict[str, Any]:
        """All of it, by the names of the command line's options."""
        return {"kind": list(self.strategies), "count": self.count, "per-class": self.per_class, "seed": self.seed}

    def number(self, labels: Labels | None) -> int:
        """The landmarks that are not class centres."""
        if self.count is not None:
            return self.count
        return int(np.count_nonzero(np.bincount(need_labels(labels)[need_labels(labels) >= 0])))


def need_labels(labels: Labels | None) -> Labels:
    """The labels, refused where there are none."""
    if labels is None:
        raise UsageError("class centres, and one landmark a class, need labels: --labels, or else --kind and --count")
    return labels


def landmark_sets(
    student: Features,
    teacher: Features,
    labels: Labels | None,
    plan: Plan,
    known: Mapping[str, LandmarkSet] | None = None,
) -> dict[str, LandmarkSet]:
    """The landmarks of a plan for one student; `known` are those of another student of this teacher.

    Clusters are the teacher's, so those of `known` are taken over and not looked for again.
    """
    found: dict[str, LandmarkSet] = {}
    for name in plan.strategies:
        if name == "class":
            found[name] = class_centres(student, teacher, need_labels(labels))
        elif name == "random":
            found[name] = random_images(student, teacher, plan.number(labels), seed=plan.seed)
        elif known and name in known:
            found[name] = for_student(known[name], student, teacher)
        elif plan.per_class:
            found[name] = k_means(student, teacher, plan.per_class, seed=plan.seed, labels=need_labels(labels))
        else:
            found[name] = k_means(student, teacher, plan.number(labels), seed=plan.seed)
    return found


@dataclass(frozen=True)
class Estimate:
    """What one set of landmarks says. plain, whitened: estimates of the transfer loss, None where C_T or A_T is zero.

    student_smallest, teacher_smallest: eigenvalues of W_S and W_T, 0 where they are singular.
    """

    landmarks: str
    count: int
    plain: float | None
    whitened: float | None
    student_smallest: float
    teacher_smallest: float


@dataclass(frozen=True)
class Snapshot:
    """The student after `epoch` epochs of a stage: the true loss, and what every set of landmarks says."""

    stage: str
    epoch: int
    loss: float
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class Agreement:
    """How estimates follow the true loss over the epochs: Pearson's correlation (None for fewer than three epochs, or
    for values that do not change), and `mean_ratio`, of estimate and truth. whitened: of the W variant.
    """

    landmarks: str
    whitened: bool
    correlation: float | None
    mean_ratio: float | None


@dataclass(frozen=True)
class Training:
    """A student at some epochs of its training, in order, and how well the estimates follow."""

    snapshots: tuple[Snapshot, ...]
    agreements: tuple[Agreement, ...]


def estimate(student: Features, teacher: Features, landmarks: LandmarkSet) -> Estimate:
    """The estimates of one set of landmarks, from one pass."""
    spans = subspace(landmarks.student), subspace(landmarks.teacher)
    plain, whitened = np.zeros(2), np.zeros(2)
    columns = landmarks.student.T, landmarks.teacher.T
    roots = spans[0].whitening, spans[1].whitening
    for pair in blocks(student, teacher, widths(student, teacher)):
        for total, (own, other) in ((plain, columns), (whitened, roots)):
            nothing = np.zeros_like(own)
            total += squared_columns(pair, (own, other)).sum(), squared_columns(pair, (nothing, other)).sum()
    smallest = [span.eigenvalues()[-1] for span in spans]
    return Estimate(landmarks.name, len(landmarks), ratio(plain), ratio(whitened), smallest[0], smallest[1])


def ratio(squares: Matrix) -> float | None:
    """The root of difference over teacher; None where the teacher's is zero."""
    return math.sqrt(float(squares[0]) / float(squares[1])) if squares[1] > 0 else None


class Followed:
    """A student that is followed over its training; memory for one epoch's landmarks and for what was found."""

    def __init__(self, teacher: Features, labels: Labels | None, plan: Plan) -> None:
        self.teacher, self.labels, self.plan = teacher, labels, plan
        self.sets: dict[str, LandmarkSet] = {}
        self.snapshots: list[Snapshot] = []

    def add(self, stage: str, epoch: int, student: Features) -> None:
        """The true loss and its estimates for the student's features after an epoch of a stage."""
        self.sets = landmark_sets(student, self.teacher, self.labels, self.plan, self.sets)
        estimates = tuple(estimate(student, self.teacher, landmarks) for landmarks in self.sets.values())
        self.snapshots.append(Snapshot(stage, epoch, transfer_loss(student, self.teacher), estimates))

    def result(self) -> Training:
        """All that was added."""
        return Training(tuple(self.snapshots), agreements(self.snapshots))


def agreements(snapshots: Sequence[Snapshot]) -> tuple[Agreement, ...]:
    """How every kind of estimate follows the true loss."""
    found = []
    for number, first in enumerate(snapshots[0].estimates if snapshots else ()):
        for whitened in (False, True):
            said = [s.estimates[number].whitened if whitened else s.estimates[number].plain for s in snapshots]
            pairs = [(value, s.loss) for value, s in zip(said, snapshots, strict=True) if value is not None]
            ratios = [value / loss for value, loss in pairs if loss > 0]
            mean = float(np.mean(ratios)) if ratios else None
            found.append(Agreement(first.landmarks, whitened, correlation(pairs), mean))
    return tuple(found)


def correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's correlation of two columns; None where they have less than three rows, or one of them is constant."""
    if len(pairs) < 3:
        return None
    return pearson(*np.array(pairs).T)
