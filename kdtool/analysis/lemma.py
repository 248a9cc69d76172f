"""Lemma 1 of KDA (arXiv 2009.14416), tried on pairs of samples.

    |K_S(i,j) - K_T(i,j)| <= r (||x_S^j - d_S^j|| + ||x_T^j - d_T^j||) + |<x_S^i, d_S^j> - <x_T^i, d_T^j>|

with d^j the landmark of sample j (0 for none) and r the largest norm of a sample or landmark of either side.
"""

from dataclasses import dataclass

import numpy as np

from kdtool import philox
from kdtool.analysis.clusters import Integers, gathered
from kdtool.analysis.features import Features, Matrix
from kdtool.analysis.nystrom import LandmarkSet
from kdtool.errors import UsageError

ROWS, COLUMNS = 2, 3  # turns of the draws of i and of j; other subsets have 0 and 1
ROUNDING = 1e-12  # of r^2: equal sides of the inequality may differ by so much


@dataclass(frozen=True)
class Lemma:
    """How Lemma 1 stands. share: of the pairs for which it holds, to within 1e-12 r^2.

    mean_left, largest_left, mean_right: of its two sides.
    """

    pairs: int
    share: float
    r: float
    mean_left: float
    largest_left: float
    mean_right: float


def lemma(
    student: Features, teacher: Features, landmarks: LandmarkSet, r: float, *, pairs: int = 1000, seed: int = 0
) -> Lemma:
    """Both sides for all (i, j) of up to `pairs` samples i and as many j, drawn apart from one another."""
    if pairs < 1:
        raise UsageError(f"Lemma 1 on {pairs} x {pairs} pairs; expected at least 1")
    i, j = (philox.permutation(seed, philox.SUBSETS, t, len(landmarks.assignment))[:pairs] for t in (ROWS, COLUMNS))
    ours = one_side(student, "student", landmarks.student, landmarks.assignment, i, j)
    theirs = one_side(teacher, "teacher", landmarks.teacher, landmarks.assignment, i, j)
    left = np.abs(ours[0] - theirs[0])
    right = r * (ours[1] + theirs[1]) + np.abs(ours[2] - theirs[2])
    return Lemma(
        pairs=left.size,
        share=float((left <= right + ROUNDING * r**2).mean()),
        r=r,
        mean_left=float(left.mean()),
        largest_left=float(left.max()),
        mean_right=float(right.mean()),
    )


def one_side(
    features: Features, side: str, centres: Matrix, assignment: Integers, i: Integers, j: Integers
) -> tuple[Matrix, Matrix, Matrix]:
    """K(i, j) (I, J), ||x^j - d^j|| (J,) and <x^i, d^j> (I, J)."""
    rows = gathered(features, np.concatenate([i, j]), side)
    first, second = rows[: len(i)], rows[len(i) :]
    own = np.where(assignment[j, None] >= 0, centres[assignment[j]], 0)
    return first @ second.T, np.linalg.norm(second - own, axis=1), first @ own.T
