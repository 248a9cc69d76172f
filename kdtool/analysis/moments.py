"""The squared norms of linear kernels K = X X^T and of their difference, from d x d moments of the features.

    moments   one pass: ||K_S - K_T||^2 = ||S'S||^2 + ||T'T||^2 - 2 ||S'T||^2
    aligned   where that difference cancels, a second pass over what is left of S - T after a rotation

Several students share the pass over the teacher. Under several ranks each reads its part of the samples, and the
moments are summed over the ranks. Left out: checks of what is asked for, and every other kernel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from kdtool.analysis.features import (
    NO_SAMPLES,
    NOTHING,
    Features,
    Matrix,
    exponent,
    refuse_lengths,
    samples,
    scaled,
    side_by_side,
    span,
)
from kdtool.engine.ranks import Ranks
from kdtool.errors import UsageError

CANCELLED = 1e-2  # of a loss below this, the moments have lost more than 4 of float64's 16 digits
VANISHED = 1e-200  # of a scaled ||K_T||^2 below this, the summands have left float64's range


@dataclass(frozen=True)
class Squares:
    """||K_S - K_T||_F^2, ||K_T||_F^2 and ||K_S||_F^2 over n samples, all divided by 16^exponent."""

    difference: float
    teacher: float
    student: float
    samples: int
    exponent: int


@dataclass(frozen=True)
class Moments:
    """S'S (d_S, d_S), T'T (d_T, d_T) and, as `cross`, S'T (d_S, d_T), summed over n samples.

    They are divided by 4^student_exponent, 4^teacher_exponent and 2^(sum of both).
    """

    student: Matrix
    teacher: Matrix
    cross: Matrix
    samples: int
    student_exponent: int
    teacher_exponent: int

    @property
    def exponent(self) -> int:
        """The larger of the two."""
        return max(self.student_exponent, self.teacher_exponent)


class Sum:
    """Sums A'B over blocks, divided by 2^(exponent of A + exponent of B), which grow as larger values are met."""

    def __init__(self, rows: int, columns: int) -> None:
        self.total: Matrix = np.zeros((rows, columns))
        self.power = 2 * NOTHING

    def add(self, left: Matrix, right: Matrix, power: int) -> None:
        """Adds left' right, both divided already; power: the sum of their exponents."""
        if power > self.power:
            self.total *= 2.0 ** max(self.power - power, -2000)
            self.power = power
        self.total += left.T @ right


def own_part(features: Features, ranks: Ranks, side: str) -> Features:
    """The samples of a side that this rank reads: a contiguous part."""
    if ranks.size == 1:
        return features
    n = samples(features, side)
    return span(features, n * ranks.rank // ranks.size, n * (ranks.rank + 1) // ranks.size)


def moments(
    students: Mapping[str, Features], teacher: Features, widths: tuple[int, ...], ranks: Ranks
) -> dict[str, Moments]:
    """The moments of every student with the teacher from one pass; widths: those of the students, then the teacher's.

    Raises UsageError as `blocks` does.
    """
    names, sides = [*students, "teacher"], [*students.values(), teacher]
    if ranks.size > 1 and len({samples(f, name) for f, name in zip(sides, names, strict=True)}) > 1:
        refuse_lengths(sides, names)
    sides = [own_part(features, ranks, name) for features, name in zip(sides, names, strict=True)]
    powers = [NOTHING] * len(sides)
    own = [Sum(d, d) for d in widths]
    cross = [Sum(d, widths[-1]) for d in widths[:-1]]
    count = 0
    for found in side_by_side(sides, names, widths):
        powers = [max(power, exponent(block)) for power, block in zip(powers, found, strict=True)]
        *s, t = (scaled(block, power) for block, power in zip(found, powers, strict=True))
        for total, block, power in zip(own, (*s, t), powers, strict=True):
            total.add(block, block, 2 * power)
        for total, block, power in zip(cross, s, powers[:-1], strict=True):
            total.add(block, t, power + powers[-1])
        count += len(t)
    return reduced(students, powers, own, cross, count, ranks)


def reduced(
    students: Mapping[str, Features], powers: list[int], own: list[Sum], cross: list[Sum], count: int, ranks: Ranks
) -> dict[str, Moments]:
    """The sums of all ranks, under the largest exponents of any."""
    largest = [max(column) for column in zip(*ranks.gathered(powers), strict=True)]
    n = sum(ranks.gathered(count))
    if not n:
        raise UsageError(NO_SAMPLES)

    def over_ranks(total: Sum, power: int) -> Matrix:
        return ranks.summed(total.total * 2.0 ** max(total.power - power, -2000))

    squares = [over_ranks(total, 2 * power) for total, power in zip(own, largest, strict=True)]
    found = {}
    for number, name in enumerate(students):
        both = over_ranks(cross[number], largest[number] + largest[-1])
        found[name] = Moments(squares[number], squares[-1], both, n, largest[number], largest[-1])
    return found


def from_moments(sums: Moments) -> Squares:
    """The squared norms from the moments; where the kernels are close, their difference has lost digits."""
    student, teacher, cross = (float(np.vdot(m, m)) for m in (sums.student, sums.teacher, sums.cross))
    student *= 16.0 ** max(sums.student_exponent - sums.exponent, -500)
    teacher *= 16.0 ** max(sums.teacher_exponent - sums.exponent, -500)
    cross *= 4.0 ** max(sums.student_exponent + sums.teacher_exponent - 2 * sums.exponent, -500)
    return Squares(max(0.0, student + teacher - 2 * cross), teacher, student, sums.samples, sums.exponent)


def aligned(student: Features, teacher: Features, both: tuple[int, int], sums: Moments, ranks: Ranks) -> Squares:
    """The squared norms without cancellation, from a second pass.

    The narrower side N is rotated onto the wider one W by the orthogonal Q that makes Q'N'W symmetric (orthogonal
    Procrustes problem), which leaves K_N as it is. With D = NQ - W and P = NQ + W, 2 (K_N - K_W) = D P' + P D', so
    ||K_N - K_W||^2 = (<D'D, P'P> + tr(P'D P'D)) / 2. P'D is symmetric like Q'N'W, so the trace is a sum of squares too.

    A streaming QR factor of [S T] is the other known way. Its rounding errors grow with the number of blocks: 5e-15 of
    ||K_T|| was seen where this stays below 1e-15, and a loss of 1e-6 needs 1e-15.
    """
    turn = Alignment.of(sums)
    dd, pp, pd = np.zeros((3, max(both), max(both)))
    count = 0
    sides = own_part(student, ranks, "student"), own_part(teacher, ranks, "teacher")
    for s, t in side_by_side(sides, ("student", "teacher"), both):
        d, p = turn.apart(s, t)
        dd += d.T @ d
        pp += p.T @ p
        pd += p.T @ d
        count += len(s)
    check_again(sums.samples, sum(ranks.gathered(count)))
    dd, pp, pd = ranks.summed(dd), ranks.summed(pp), ranks.summed(pd)
    difference = float(np.vdot(dd, pp) + np.vdot(pd, pd.T)) / 2
    return replace(from_moments(sums), difference=max(0.0, difference))


def check_again(first: int, again: int) -> None:
    """UsageError where a second reading gave another number of samples than the first."""
    if again != first:
        raise UsageError(
            f"the features gave {first} samples when read first and {again} when read again; expected "
            "sequences of chunks that give the same values every time they are iterated"
        )


@dataclass(frozen=True)
class Alignment:
    """The rotation of the narrower side onto the wider one, and the exponent by which both are divided.

    narrow_student: whether the narrower side is the student's.
    """

    rotation: Matrix
    narrow_student: bool
    exponent: int

    @classmethod
    def of(cls, sums: Moments) -> "Alignment":
        """The one that makes the two sides' cross moment symmetric."""
        narrow_student = sums.cross.shape[0] <= sums.cross.shape[1]
        return cls(procrustes(sums.cross if narrow_student else sums.cross.T), narrow_student, sums.exponent)

    def apart(self, s: Matrix, t: Matrix) -> tuple[Matrix, Matrix]:
        """(D, P) of a block: difference and sum of the rotated narrow side and the wide one, (rows, wide) each."""
        narrow, wide = (scaled(side, self.exponent) for side in ((s, t) if self.narrow_student else (t, s)))
        turned = narrow @ self.rotation
        return turned - wide, turned + wide


def procrustes(cross: Matrix) -> Matrix:
    """The Q (narrow, wide) with orthonormal rows for which Q' cross is symmetric and has the largest trace."""
    left, _, right = np.linalg.svd(cross, full_matrices=False)
    q: Matrix = left @ right
    # One Newton step, because the SVD's own error of orthogonality would be the largest error of all.
    return q - (q @ q.T - np.eye(len(q))) @ q / 2


def norm(square: float, power: int) -> float:
    """The norm from its square over 16^power."""
    try:
        return math.ldexp(math.sqrt(square), 2 * power)
    except OverflowError:
        raise UsageError("the norm of a kernel is beyond float64; divide the features by a constant") from None
