"""KDA's bounds on ||K_S - K_T||_F from landmarks, measured next to the true gap (arXiv 2009.14416, section 3).

With X (n, d) the features of a side, D (m, d) its landmarks, C = X D', W = D D', A = C (W_k)^(-1/2) with the
pseudo-inverse, eps = ||K - A A'||_F the measured Nystrom error, c the larger of ||C_S||_F and ||C_T||_F, r the largest
norm of a sample or landmark of either side, and y the landmark of every sample:

    Corollary 1               eps_S + eps_T + 2c ||A_S - A_T||_F
    Corollary 1, unscaled     eps_S + eps_T + (||A_S||_2 + ||A_T||_2) ||A_S - A_T||_F
    Corollary 2               eps_S + eps_T + 2c (1 + c a/2) ||C_S - C_T||_F
    Corollary 2, scale-free   eps_S + eps_T + 2c/l (1 + c a/(2l)) ||C_S - C_T||_F
    Theorem 2                 r sqrt(n) (||X_S - D_S[y]||_F + ||X_T - D_T[y]||_F) + b
    Theorem 2, tighter        ||X_S (X_S - D_S[y])'||_F + ||X_T (X_T - D_T[y])'||_F + b

with a the averaging norm of the landmarks, l the smallest eigenvalue of W_S and W_T, and b^2 = sum over landmarks of
(number of samples) x (squared norm of the landmark's column of C_S - C_T). A sample without a landmark counts as one
whose landmark is 0.

Departures from the paper. Corollary 1 is printed with 2c^2 and the exponent +1/2; its derivation, A A' - B B' =
A (A - B)' + (A - B) B', gives 2c and -1/2. Measured errors stand in for the probabilistic eps of Theorem 1. Corollary 2
is printed as O(||C_S - C_T||_F); the constants are ours, derived in `scale_free`. Left out: Theorem 1's own constant.
"""

import math
from dataclasses import dataclass

from kdtool.analysis.features import Features
from kdtool.analysis.gram import GramGap, gram_gap
from kdtool.analysis.lemma import Lemma, lemma
from kdtool.analysis.measures import Measures, measure
from kdtool.analysis.nystrom import LandmarkSet
from kdtool.analysis.projector import Subspace, subspace
from kdtool.engine.ranks import Alone, Ranks
from kdtool.errors import UsageError

EQUAL = 1e-14  # of the teacher's norm: a gap below this is rounding


@dataclass(frozen=True)
class Bound:
    """One bound. ratio = value / true gap, None where there is no gap.

    guaranteed: whether its assumptions hold; failing: those that do not, in words. A bound that is not guaranteed is
    still computed where it can be; value is None where it cannot, and failing says why.
    """

    name: str
    value: float | None
    ratio: float | None
    guaranteed: bool
    failing: tuple[str, ...]


@dataclass(frozen=True)
class SideBounds:
    """What was measured of one side.

    rank: numerical rank of W (m, m); kept: k, the eigenvalues that (W_k)^+ keeps. smallest, largest: eigenvalues of W,
    the former 0 where W is singular; smallest_kept: of W_k, None where W is zero. column_norm: ||C||_F;
    factor_norm: ||A||_2. nystrom_error: ||K - A A'||_F; relative_nystrom_error: over ||K||_F, None where K is zero.
    distance: ||X - D[y]||_F. weighted_distance: ||X (X - D[y])'||_F.
    """

    width: int
    rank: int
    kept: int
    smallest: float
    smallest_kept: float | None
    largest: float
    column_norm: float
    factor_norm: float
    nystrom_error: float
    relative_nystrom_error: float | None
    distance: float
    weighted_distance: float


@dataclass(frozen=True)
class Bounds:
    """All bounds for one set of landmarks, and their terms under the names that the module's docstring gives them.

    gap: ||K_S - K_T||_F; loss: over ||K_T||_F. rank: the k that was asked for, None for no limit. unassigned: samples
    without a landmark. c, r, averaging; column_difference: ||C_S - C_T||_F; factor_difference: ||A_S - A_T||_F.
    term_a, term_a_tighter, term_b: of Theorem 2.
    """

    landmarks: str
    samples: int
    count: int
    unassigned: int
    rank: int | None
    gap: float
    loss: float
    c: float
    r: float
    averaging: float
    column_difference: float
    factor_difference: float
    term_a: float
    term_a_tighter: float
    term_b: float
    student: SideBounds
    teacher: SideBounds
    lemma_1: Lemma
    bounds: tuple[Bound, ...]
    notes: tuple[str, ...]


def bounds(
    student: Features,
    teacher: Features,
    landmarks: LandmarkSet,
    rank: int | None = None,
    *,
    gap: GramGap | None = None,
    pairs: int = 1000,
    seed: int = 0,
    ranks: Ranks | None = None,
) -> Bounds:
    """Every bound for features (n, d_S) and (n, d_T) of the same samples, beside the true gap.

    rank: k of W_k, None for all of W. gap: what `gram_gap` gave for the same features, where it is known already.
    Lemma 1 is tried on up to `pairs` x `pairs` pairs drawn with `seed`. ranks: the processes that share the reading.
    O(n d (d + m)) time; memory beside the input does not grow with n.

    Raises UsageError for landmarks of other features, a rank below 1 or above m, features far from ordinary magnitudes,
    and as `gram_gap` does.
    """
    count = len(landmarks)
    if rank is not None and not 1 <= rank <= count:
        raise UsageError(f"rank {rank} of {count} landmarks; expected between 1 and {count}")
    together = ranks or Alone()
    true = gap or gram_gap(student, teacher, ranks=together)
    both = subspace(landmarks.student, rank), subspace(landmarks.teacher, rank)
    found = measure(student, teacher, landmarks, both, together)
    if (true.samples, true.kernel) != (found.samples, "linear"):
        raise UsageError(
            f"a gap of the {true.kernel} kernel over {true.samples} samples for features of {found.samples}; expected "
            "one of the linear kernel over the same"
        )
    ours, theirs = (side_bounds(found, side, both[side]) for side in (0, 1))
    n, distances = found.samples, ours.distance + theirs.distance
    terms = found.r * math.sqrt(n) * distances, ours.weighted_distance + theirs.weighted_distance
    values = {
        "Theorem 2": (terms[0] + found.term_b, ()),
        "Theorem 2, tighter": (terms[1] + found.term_b, ()),
    }
    return Bounds(
        landmarks=landmarks.name,
        samples=n,
        count=count,
        unassigned=n - int(landmarks.counts.sum()),
        rank=rank,
        gap=true.difference_norm,
        loss=true.loss,
        c=max(ours.column_norm, theirs.column_norm),
        r=found.r,
        averaging=landmarks.averaging,
        column_difference=found.column_difference,
        factor_difference=found.factor_difference,
        term_a=terms[0],
        term_a_tighter=terms[1],
        term_b=found.term_b,
        student=ours,
        teacher=theirs,
        lemma_1=lemma(student, teacher, landmarks, found.r, pairs=pairs, seed=seed),
        bounds=tuple(
            bound(name, value, failing, true)
            for name, (value, failing) in {**corollaries(ours, theirs, found, landmarks, rank), **values}.items()
        ),
        notes=landmarks.notes,
    )


def bound(name: str, value: float | None, failing: tuple[str, ...], true: GramGap) -> Bound:
    """A bound beside the true gap."""
    if value is not None and not math.isfinite(value):
        value, failing = None, (*failing, "its value is beyond float64")
    ratio = value / true.difference_norm if value is not None and true.loss > EQUAL else None
    return Bound(name, value, ratio, not failing, failing)


def side_bounds(found: Measures, side: int, kept: Subspace) -> SideBounds:
    """The measures of the student (0) or the teacher (1)."""
    measured, eigenvalues = found.sides[side], kept.eigenvalues()
    return SideBounds(
        width=kept.right.shape[1],
        rank=kept.rank,
        kept=kept.kept,
        smallest=eigenvalues[-1],
        smallest_kept=eigenvalues[kept.kept - 1] if kept.kept else None,
        largest=eigenvalues[0],
        column_norm=measured.column_norm,
        factor_norm=measured.factor_norm,
        nystrom_error=measured.nystrom_error,
        relative_nystrom_error=measured.nystrom_error / measured.kernel_norm if measured.kernel_norm else None,
        distance=measured.distance,
        weighted_distance=measured.weighted_distance,
    )


def corollaries(
    ours: SideBounds, theirs: SideBounds, found: Measures, landmarks: LandmarkSet, rank: int | None
) -> dict[str, tuple[float | None, tuple[str, ...]]]:
    """Corollaries 1 and 2 in both forms: value, and the assumptions that fail."""
    errors = ours.nystrom_error + theirs.nystrom_error
    c, columns = max(ours.column_norm, theirs.column_norm), found.column_difference
    singular = full_rank_failures(ours, theirs, len(landmarks), rank)
    small = eigenvalue_failures(ours, theirs)
    smallest = min(ours.smallest, theirs.smallest)
    averaging = landmarks.averaging
    free = None if singular else errors + scale_free(c, smallest, averaging, columns)
    return {
        "Corollary 1": (errors + 2 * c * found.factor_difference, small),
        "Corollary 1, unscaled": (errors + (ours.factor_norm + theirs.factor_norm) * found.factor_difference, ()),
        "Corollary 2": (errors + scale_free(c, 1.0, averaging, columns), (*singular, *small)),
        "Corollary 2, scale-free": (free, singular),
    }


def scale_free(c: float, smallest: float, averaging: float, columns: float) -> float:
    """2c/l (1 + c a/(2l)) ||C_S - C_T||_F, which bounds (||A_S||_2 + ||A_T||_2) ||A_S - A_T||_F where k = m.

    For eigenvalues of W_S and W_T of at least l > 0:
    * ||A||_2 <= ||C||_F ||W^(-1/2)||_2 <= c l^(-1/2);
    * A_S - A_T = (C_S - C_T) W_S^(-1/2) + C_T (W_S^(-1/2) - W_T^(-1/2));
    * the derivative of x^(-1/2) is at most 1/2 l^(-3/2) from l on, so that, in the eigenvectors of both,
      ||W_S^(-1/2) - W_T^(-1/2)||_F <= 1/2 l^(-3/2) ||W_S - W_T||_F;
    * D = B'X with the same averaging matrix B on both sides, so W = B'C and ||W_S - W_T||_F <= a ||C_S - C_T||_F with
      a = ||B||_2.
    Together ||A_S - A_T||_F <= l^(-1/2) (1 + c a/(2l)) ||C_S - C_T||_F. At l = 1 this is Corollary 2. Features times a
    constant s change c, l, C and the gap by s^2 each, so the bound keeps its ratio to the gap.
    """
    relative = c / smallest
    return 2 * relative * (1 + relative * averaging / 2) * columns


def full_rank_failures(ours: SideBounds, theirs: SideBounds, count: int, rank: int | None) -> tuple[str, ...]:
    """Why W_k is not of full rank on both sides."""
    failing = []
    if rank is not None and rank < count:
        failing.append(f"W_k of rank {rank} is not all of W ({count} landmarks): eigenvectors may change places")
    for side, measured in (("student", ours), ("teacher", theirs)):
        if measured.rank < count:
            why = f"only {measured.width} features" if count > measured.width else "they depend on one another"
            failing.append(f"the {side}'s W is singular, of rank {measured.rank} for {count} landmarks: {why}")
    return tuple(failing)


def eigenvalue_failures(ours: SideBounds, theirs: SideBounds) -> tuple[str, ...]:
    """Where the smallest eigenvalue that is kept is below 1."""
    failing = []
    for side, measured in (("student", ours), ("teacher", theirs)):
        if measured.smallest_kept is None:
            failing.append(f"the {side}'s W is zero; expected eigenvalues of at least 1")
        elif measured.smallest_kept < 1:
            failing.append(f"the {side}'s smallest eigenvalue of W_k is {measured.smallest_kept:.3g}, below 1")
    return tuple(failing)
