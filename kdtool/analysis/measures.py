"""The norms that KDA's bounds are made of, for one set of landmarks, from one reading of the features.

What would come out as a difference of large numbers is computed from the differences themselves, sample by sample, so
that equal sides give exactly 0 and close ones keep their digits. Under several ranks each reads its part of the
samples, and the sums go over the ranks. Left out: the bounds.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from kdtool.analysis.centred import pairs
from kdtool.analysis.clusters import Integers
from kdtool.analysis.features import VALUES, Features, Matrix, largest, samples, widths
from kdtool.analysis.nystrom import LandmarkSet, other_length, refuse_other_widths
from kdtool.analysis.projector import SIDES, Subspace, error_norm, refuse_large, refuse_small
from kdtool.engine.ranks import Ranks


@dataclass(frozen=True)
class SideMeasures:
    """||K||_F, ||C||_F, ||A||_2, ||K - A A'||_F, ||X - D[y]||_F and ||X (X - D[y])'||_F of one side.

    distance is the fifth and weighted_distance the sixth.
    """

    kernel_norm: float
    column_norm: float
    factor_norm: float
    nystrom_error: float
    distance: float
    weighted_distance: float


@dataclass(frozen=True)
class Measures:
    """Both sides, student first, with what compares them; r, term_b and the others as in `kdtool.analysis.bounds`."""

    sides: tuple[SideMeasures, SideMeasures]
    samples: int
    r: float
    column_difference: float
    factor_difference: float
    term_b: float


@dataclass(eq=False)
class SideSums:
    """Sums over samples: X'X, E'E for E = X - D[y] and R'R for R = X (I - P), all (d, d); the largest norm of a row.

    landmarks: D; kept: what P projects onto. features, offsets and rest are the three sums.
    """

    landmarks: Matrix
    kept: Subspace
    features: Matrix = field(init=False)
    offsets: Matrix = field(init=False)
    rest: Matrix = field(init=False)
    largest: float = field(init=False)

    def __post_init__(self) -> None:
        d = self.landmarks.shape[1]
        self.features, self.offsets, self.rest = np.zeros((3, d, d))
        self.largest = float(np.linalg.norm(self.landmarks, axis=1).max())

    def add(self, rows: Matrix, own: Integers) -> None:
        """Adds samples (b, d) and the numbers of their landmarks."""
        # The largest entry counts where squares vanish.
        self.largest = max(self.largest, float(np.linalg.norm(rows, axis=1).max()), largest(rows))
        offsets, rest = offsets_from(self.landmarks, rows, own), self.kept.rest(rows)
        for total, part in ((self.features, rows), (self.offsets, offsets), (self.rest, rest)):
            total += part.T @ part

    def measures(self, ranks: Ranks) -> SideMeasures:
        """The norms over the samples of all ranks."""
        features, offsets, rest = ranks.summed(np.stack([self.features, self.offsets, self.rest]))
        self.largest = max(ranks.gathered(self.largest))
        kept = self.kept.right
        return SideMeasures(
            kernel_norm=float(np.linalg.norm(features)),
            column_norm=math.sqrt(max(0.0, float(np.vdot(self.landmarks @ features, self.landmarks)))),
            factor_norm=math.sqrt(float(np.linalg.norm(kept @ features @ kept.T, 2))) if len(kept) else 0.0,
            nystrom_error=error_norm(rest, features),
            distance=root_of_trace(offsets),
            weighted_distance=math.sqrt(max(0.0, float(np.vdot(features, offsets)))),
        )


def root_of_trace(moments: Matrix) -> float:
    """The Frobenius norm of a matrix from its moments."""
    return math.sqrt(max(0.0, float(np.trace(moments))))


def measure(
    student: Features, teacher: Features, landmarks: LandmarkSet, kept: tuple[Subspace, Subspace], ranks: Ranks
) -> Measures:
    """All measures; kept: the subspaces of the student's and the teacher's landmarks."""
    both = widths(student, teacher)
    refuse_other_widths(landmarks, both)
    n = len(landmarks.assignment)
    if samples(student, "student") != n:
        raise other_length(n, samples(student, "student"))
    sums = SideSums(landmarks.student, kept[0]), SideSums(landmarks.teacher, kept[1])
    columns, whitened = np.zeros((2, len(landmarks)))
    start = n * ranks.rank // ranks.size
    for pair in pairs(student, teacher, both, ranks)():
        own = landmarks.assignment[start : start + len(pair[0])]
        for side, block, name in zip(sums, pair, SIDES, strict=True):
            refuse_large(block, name)
            side.add(block, own)
        columns += squared_columns(pair, (landmarks.student.T, landmarks.teacher.T))
        whitened += squared_columns(pair, (kept[0].whitening, kept[1].whitening))
        start += len(own)
    ours, theirs = (side.measures(ranks) for side in sums)
    for side, name in zip(sums, SIDES, strict=True):
        refuse_small(side.largest, name)
    columns, whitened = ranks.summed(np.stack([columns, whitened]))
    return Measures(
        sides=(ours, theirs),
        samples=n,
        r=max(side.largest for side in sums),
        column_difference=math.sqrt(columns.sum()),
        factor_difference=math.sqrt(whitened.sum()),
        term_b=math.sqrt(landmarks.counts @ columns),
    )


def offsets_from(landmarks: Matrix, rows: Matrix, own: Integers) -> Matrix:
    """X - D[y] for rows (b, d) and the numbers of their landmarks; a row without one (-1) stays as it is."""
    found: Matrix = rows - np.where(own[:, None] >= 0, landmarks[own], 0)
    return found


def squared_columns(pair: tuple[Matrix, ...], right: tuple[Matrix, Matrix]) -> Matrix:
    """Squared norms (m,) of the columns of X_S R_S - X_T R_T, in pieces of bounded size."""
    m = right[0].shape[1]
    step, found = max(1, VALUES // m), np.zeros(m)
    for i in range(0, len(pair[0]), step):
        difference = pair[0][i : i + step] @ right[0] - pair[1][i : i + step] @ right[1]
        found += np.einsum("ij,ij->j", difference, difference)
    return found
