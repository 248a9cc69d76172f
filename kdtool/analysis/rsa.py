"""How alike a student and a teacher find the same samples: representational similarity analysis, RSA.

Exact in O(n d^2) where it is Pearson's correlation, from random subsets where it is Spearman's. Blind to the mean and
the scale of every sample's features, and to the order of features.

Left out: dissimilarities other than 1 - Pearson correlation, and CKA (similarity).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdtool import philox
from kdtool.analysis.centred import (
    EQUAL,
    SIDES,
    Centres,
    Read,
    centres,
    is_varied,
    moments,
    pairs,
    pearson,
    ratio,
    squares,
    unit_rows,
    within,
)
from kdtool.analysis.features import Features, Matrix, samples, widths
from kdtool.engine.ranks import Alone, Ranks
from kdtool.errors import UsageError

EXACT_SAMPLES = 1024  # up to which Spearman's correlation takes all pairs
SUBSETS = 10  # disjoint subsets behind Spearman's correlation of more samples
STUDENT_T = 2.262157162740992  # 97.5 % quantile of Student's t with SUBSETS - 1 degrees of freedom
SAME_DECIMALS = 12  # correlations that agree to these are ties: float64 gives equal samples no better
TURN = 1  # of the draws of subsets; the interval of kernels has 0, the pairs of Lemma 1 have 2 and 3

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RSA:
    """Correlations of the dissimilarities of all pairs of samples, as the student and as the teacher sees them.

    pearson: exact, over `pairs` pairs of `samples` samples; left_out: further samples, whose features are all equal on
    one of the sides, so that they correlate with nothing. spearman: over all pairs where `subsets` is 1 (up to 1,024
    samples), else the mean of so many disjoint random subsets of `subset_samples` samples, with a 95 % interval
    (spearman_interval); None
    where all dissimilarities of a subset are equal.
    """

    pearson: float
    spearman: float | None
    spearman_interval: tuple[float, float] | None
    subsets: int
    subset_samples: int
    pairs: int
    samples: int
    left_out: int
    student_width: int
    teacher_width: int


def rsa(
    student: Features, teacher: Features, *, subset_samples: int = 256, seed: int = 0, ranks: Ranks | None = None
) -> RSA:
    """Representational similarity analysis (Kriegeskorte et al. 2008) of n samples.

    The dissimilarity of two samples is 1 - the Pearson correlation r of their features. With every sample's features
    made mean 0 and length 1, r_ij = z_i . z_j, and its correlation over all pairs i < j follows from moments, exactly:

    Write z_i = m + w_i with m the mean of all z, and a_i = m . w_i. Then r_ij = |m|^2 + a_i + a_j + w_i . w_j, where
    |m|^2 is the same for all pairs and drops out before it can cancel digits. Call the rest e_ij, and the teacher's
    f_ij, with b_i for a_i and v_i for w_i. Because the sums over i of a_i, b_i, w_i and v_i are 0, over all i != j

        sum e_ij                 = - sum_i |w_i|^2
        sum (a_i+a_j) (b_i+b_j)  = 2 (n-2) sum_i a_i b_i
        sum (a_i+a_j) (v_i.v_j)  = - 2 sum_i a_i |v_i|^2
        sum (w_i.w_j) (v_i.v_j)  = ||W'V||_F^2 - sum_i |w_i|^2 |v_i|^2

    so that covariance and variances need the d x d moments W'V, W'W and V'V, and sums over single samples. Ordered
    pairs count each twice, which does not change a correlation.

    Spearman's correlation has no such form: it takes ranks within random subsets (`RSA`), drawn under `seed`, 10 of
    them with up to `subset_samples` samples each, which are held in memory. The interval is that of the mean of the
    subsets with Student's t, and a little too wide where they hold most of the samples. Correlations that agree to 12
    decimals share a rank.

    Inputs as for `gram.gram_gap`. Raises UsageError where it does, for sides of one feature, for fewer than 3 samples
    whose features vary on both sides, and for dissimilarities that are all equal.
    """
    if subset_samples < 3:
        raise UsageError(f"subset_samples is {subset_samples}; expected at least 3")
    ranks = ranks or Alone()
    both = widths(student, teacher)
    for width, side in zip(both, SIDES, strict=True):
        if width < 2:
            raise UsageError(f"the {side} has 1 feature; expected at least 2, for a correlation between samples")
    n = samples(student, "student")
    read = standardised(pairs(student, teacher, both, ranks))
    found = centres(read, both, ranks)
    if found.samples < 3:
        raise UsageError(
            f"{found.samples} of {n} samples have features that are not all equal on both sides; expected at least 3"
        )
    correlation = exact(read, found, ranks)
    parts = subsets(found.samples, subset_samples, seed)
    everything = standardised(pairs(student, teacher, both, Alone()))
    spearman, interval = estimate([rank_correlation(s, t) for s, t in drawn(everything, parts, both)])
    return RSA(
        pearson=correlation,
        spearman=spearman,
        spearman_interval=interval,
        subsets=parts.shape[0],
        subset_samples=parts.shape[1],
        pairs=found.samples * (found.samples - 1) // 2,
        samples=found.samples,
        left_out=n - found.samples,
        student_width=both[0],
        teacher_width=both[1],
    )


def standardised(read: Read) -> Read:
    """The same blocks with rows of mean 0 and length 1, without samples that have no such row on both sides."""

    def rows() -> Iterator[tuple[Matrix, ...]]:
        for s, t in read():
            kept = is_varied(s) & is_varied(t)
            if kept.any():
                yield unit_rows(s[kept]), unit_rows(t[kept])

    return rows


def exact(read: Read, found: Centres, ranks: Ranks) -> float:
    """Pearson's correlation over all pairs; derivation and names in `rsa`."""
    n = found.samples
    mean, other = (np.ldexp(c.distance, c.exponent) + c.first for c in (found.student, found.teacher))
    sums = moments(read, found, ranks, lambda w, v: (w @ mean, v @ other, squares(w), squares(v)))
    totals, products = sums.totals, sums.products

    def covariance(x: int, y: int, moment: Matrix) -> float:
        """n (n-1) times the covariance; x and y are 0 for the student and 1 for the teacher."""
        pairwise = float(np.vdot(moment, moment) - products[2 + x, 2 + y])
        singles = float((n - 2) * products[x, y] - products[x, 2 + y] - products[2 + x, y])
        return pairwise + 2 * singles - float(totals[2 + x] * totals[2 + y]) / (n * (n - 1))

    variances = covariance(0, 0, sums.student), covariance(1, 1, sums.teacher)
    for variance, moment, side in zip(variances, (sums.student, sums.teacher), SIDES, strict=True):
        if variance <= EQUAL * max(EQUAL * n * (n - 1), float(np.vdot(moment, moment))):
            raise UsageError(
                f"the {side}'s dissimilarities of all pairs of {n} samples are equal; expected features that tell "
                "samples apart, for RSA is not defined without"
            )
    return ratio(variances, covariance(0, 1, sums.cross))


def subsets(n: int, subset_samples: int, seed: int) -> Positions:
    """Disjoint sets of positions below n, (sets, samples); one set of all of them where they are few."""
    if n <= EXACT_SAMPLES:
        return np.arange(n)[None]
    size = min(subset_samples, n // SUBSETS)
    return philox.permutation(seed, philox.SUBSETS, TURN, n)[: SUBSETS * size].reshape(SUBSETS, size)


def drawn(read: Read, parts: Positions, both: tuple[int, int]) -> Iterator[tuple[Matrix, Matrix]]:
    """The rows of both sides at the positions of every subset, from one pass."""
    flat = parts.ravel()
    held = [np.empty((len(flat), width)) for width in both]
    start = 0
    for pair in read():
        here = np.flatnonzero((flat >= start) & (flat < start + len(pair[0])))
        for rows, block in zip(held, pair, strict=True):
            rows[here] = block[flat[here] - start]
        start += len(pair[0])
    student, teacher = (np.split(rows, len(parts)) for rows in held)
    yield from zip(student, teacher, strict=True)


def rank_correlation(student: Matrix, teacher: Matrix) -> float | None:
    """Spearman's correlation over the pairs of unit rows; None where all dissimilarities of a side are equal."""
    above = np.triu_indices(len(student), 1)
    return spearman(*(np.round(1 - (z @ z.T)[above], SAME_DECIMALS) for z in (student, teacher)))


def spearman(a: Matrix, b: Matrix) -> float | None:
    """Spearman's rank correlation of two sequences of values; None where one of them is constant."""
    return pearson(average_ranks(a), average_ranks(b))


def average_ranks(values: Matrix) -> Matrix:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def estimate(values: list[float | None]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean over subsets and its 95 % interval; no interval for the one set of all samples."""
    known = np.array([value for value in values if value is not None])
    if len(known) < len(values):
        return None, None
    mean = float(known.mean())
    if len(known) == 1:
        return mean, None
    error = STUDENT_T * float(known.std(ddof=1)) / math.sqrt(len(known))
    return mean, (within(mean - error), within(mean + error))
