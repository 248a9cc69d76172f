"""Features of two sides with their means taken away, in two streaming passes, exact where the mean is large.

Gives `centres`, the means (first pass), and `moments`, what the blocks without them sum to (second pass): every block
first loses the first sample, which is exact for features that are close to one another, then the mean of what is left.
A feature that is the same in all samples becomes exactly 0. Also rows with mean 0 and length 1, and Pearson's
correlation.

Left out: what is computed from the moments.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from kdtool.analysis.features import (
    NO_SAMPLES,
    NOTHING,
    Features,
    Matrix,
    blocks,
    exponent,
    refuse_lengths,
    samples,
    scaled,
    side_by_side,
)
from kdtool.analysis.moments import own_part
from kdtool.engine.ranks import Ranks
from kdtool.errors import UsageError

Read = Callable[[], Iterator[tuple[Matrix, ...]]]
Values = Callable[[Matrix, Matrix], tuple[Matrix, ...]]

SIDES = ("student", "teacher")
EQUAL = 1e-13  # of the largest magnitude: a spread below this is rounding error, so the values count as equal


@dataclass(frozen=True)
class Centre:
    """The mean (d,) of a side, as its first sample and the mean distance from it divided by 2^exponent."""

    first: Matrix
    distance: Matrix
    exponent: int

    def of(self, block: Matrix) -> Matrix:
        """(block - mean) / 2^exponent, a new (rows, d) array."""
        found = scaled(block, self.exponent) - scaled(self.first, self.exponent)
        found -= self.distance
        return found

    def moved(self, block: Matrix, count: int) -> "Centre":
        """The centre with the samples of a further block, the last of `count`."""
        found = self.under(max(self.exponent, exponent(block)))
        return replace(found, distance=found.distance + found.of(block).sum(0) / count)

    def under(self, power: int) -> "Centre":
        """The same centre for a larger exponent."""
        return replace(self, distance=np.ldexp(self.distance, self.exponent - power), exponent=power)

    def seen_from(self, other: "Centre") -> Matrix:
        """The mean distance (d,) from the first sample of another centre of the same exponent."""
        return self.distance + (scaled(self.first, self.exponent) - scaled(other.first, self.exponent))


@dataclass(frozen=True)
class Centres:
    """The centres of both sides over all samples. own: how many of these this rank reads."""

    student: Centre
    teacher: Centre
    samples: int
    own: int


@dataclass(frozen=True)
class CentredMoments:
    """Sums over n centred samples s, t, each divided by 2^exponent of its side's centre.

    student: S'S (d_S, d_S); teacher: T'T (d_T, d_T); cross: S'T (d_S, d_T). totals (k,) and products (k, k): of k
    values of every sample, and of every two of them.
    """

    student: Matrix
    teacher: Matrix
    cross: Matrix
    totals: Matrix
    products: Matrix

    def summed(self, ranks: Ranks) -> "CentredMoments":
        """The moments over the samples of all ranks."""
        return CentredMoments(*(ranks.summed(getattr(self, field.name)) for field in fields(self)))


def pairs(student: Features, teacher: Features, widths: tuple[int, int], ranks: Ranks) -> Read:
    """What reads both sides block by block; under several ranks each reads its part of the samples."""
    if ranks.size == 1:
        return lambda: blocks(student, teacher, widths)
    counts = {samples(student, "student"), samples(teacher, "teacher")}
    if len(counts) > 1:
        refuse_lengths((student, teacher), SIDES)
    if counts == {0}:
        raise UsageError(NO_SAMPLES)
    sides = (own_part(student, ranks, "student"), own_part(teacher, ranks, "teacher"))
    return lambda: side_by_side(sides, SIDES, widths)


def centres(read: Read, widths: tuple[int, int], ranks: Ranks) -> Centres:
    """The means of both sides, from one pass."""
    found = [Centre(np.zeros(d), np.zeros(d), NOTHING) for d in widths]
    own = 0
    for pair in read():
        if not own:
            found = [replace(centre, first=block[0].copy()) for centre, block in zip(found, pair, strict=True)]
        own += len(pair[0])
        found = [centre.moved(block, own) for centre, block in zip(found, pair, strict=True)]
    everyone = ranks.gathered((own, *found))
    counts = [part[0] for part in everyone]
    student, teacher = (merged(counts, [part[side] for part in everyone]) for side in (1, 2))
    return Centres(student, teacher, sum(counts), own)


def merged(counts: list[int], parts: list[Centre]) -> Centre:
    """The centre of all samples from those of parts with so many samples."""
    held = [(count, part) for count, part in zip(counts, parts, strict=True) if count]
    if not held:
        return parts[0]
    power = max(part.exponent for _, part in held)
    held = [(count, part.under(power)) for count, part in held]
    first = held[0][1]
    distances = [count / sum(counts) * part.seen_from(first) for count, part in held]
    return replace(first, distance=np.sum(distances, axis=0))


def centred(read: Read, found: Centres) -> Iterator[tuple[Matrix, Matrix]]:
    """The blocks without their means, divided by 2^exponent of each side's centre, from a further pass."""
    count = 0
    for s, t in read():
        count += len(s)
        yield found.student.of(s), found.teacher.of(t)
    if count != found.own:
        raise UsageError(
            f"the features gave {found.own} samples when read first and {count} when read again; expected "
            "sequences of chunks that give the same values every time they are iterated"
        )


def squares(rows: Matrix) -> Matrix:
    """The squared lengths of rows, (rows,)."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def moments(
    read: Read, found: Centres, ranks: Ranks, of: Values = lambda s, t: (squares(s), squares(t))
) -> CentredMoments:
    """The moments of all ranks, from one pass; of: gives k arrays (rows,) of values of the samples of a block."""
    own, other, cross = (
        np.zeros((len(a.first), len(b.first)))
        for a, b in ((found.student, found.student), (found.teacher, found.teacher), (found.student, found.teacher))
    )
    values = np.stack(of(np.empty((0, len(own))), np.empty((0, len(other)))))
    totals, products = values.sum(1), values @ values.T
    for s, t in centred(read, found):
        own += s.T @ s
        other += t.T @ t
        cross += s.T @ t
        values = np.stack(of(s, t))
        totals, products = totals + values.sum(1), products + values @ values.T
    return CentredMoments(own, other, cross, totals, products).summed(ranks)


def is_varied(rows: Matrix) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows (rows, d) hold values that are not all equal."""
    varied: np.ndarray[tuple[int], np.dtype[np.bool_]] = rows.max(1) > rows.min(1)
    return varied


def unit_rows(rows: Matrix) -> Matrix:
    """Rows that are varied with mean 0 and length 1: their inner products are Pearson correlations."""
    found = np.ldexp(rows, -np.frexp(np.abs(rows).max(1, keepdims=True))[1])
    found -= found[:, :1].copy()
    found -= found.mean(1, keepdims=True)
    found /= np.sqrt(squares(found))[:, None]
    return np.asarray(found)


def pearson(a: Matrix, b: Matrix) -> float | None:
    """The correlation of two sequences of values; None where one of them is constant, save for rounding errors."""
    if len(a) < 2:
        return None
    sides = []
    for values in (a, b):
        rest = values - values.mean()
        length = float(np.linalg.norm(rest))
        if length <= EQUAL * math.sqrt(len(values)) * float(np.abs(values).max()):
            return None
        sides.append(rest / length)
    return within(float(sides[0] @ sides[1]))


def ratio(variances: tuple[float, float], covariance: float) -> float:
    """covariance / sqrt(the product of the variances), a product that may itself be beyond float64."""
    return within(covariance / math.sqrt(variances[0]) / math.sqrt(variances[1]))


def within(correlation: float) -> float:
    """A correlation without the rounding error beyond -1 and 1."""
    return min(1.0, max(-1.0, correlation))
