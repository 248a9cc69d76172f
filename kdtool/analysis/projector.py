"""Nystrom's approximation of a linear kernel as a projector: n x n errors from d x d matrices.

With the landmarks' rows D (m, d), C = X D' and W = D D', the approximation of K = X X' is C W^+ C' = X P X' with P the
orthogonal projector onto the span of D's rows, so K - C W^+ C' = R R' with R = X (I - P), and its norm is that of the
(d, d) matrix R'R. In the rank-k form (Kumar et al. 2012) W is replaced by its best approximation of rank k, and P
projects onto the k leading right singular vectors of D.

D is taken by its singular values and not by the eigenvalues of W, and X by a factor that is as exact as X itself and
not by X'X: nothing is squared, so that errors of 1e-12 of ||K|| still have digits. Left out: where landmarks come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdtool.analysis.centred import Read
from kdtool.analysis.features import ORDINARY, Matrix, largest
from kdtool.analysis.moments import check_again
from kdtool.engine.ranks import Ranks
from kdtool.errors import UsageError

SINGULAR = 1e-12  # of the largest singular value of D: what is below it is rounding
ROUNDING = 1e-14  # of features: what is left of them below this is 0, and of kernels the square of it
SIDES = ("student", "teacher")


@dataclass(frozen=True, eq=False)
class Subspace:
    """The singular values and vectors of D (m, d) that are kept: D is close to left @ diag(kept) @ right.

    left (m, k) and right (k, d) have orthonormal columns and rows. values (min(m, d),): all singular values, largest
    first, zero past the rank. rank: the numerical one of D, at least k.
    """

    left: Matrix
    right: Matrix
    values: Matrix
    rank: int

    @property
    def kept(self) -> int:
        """k."""
        return len(self.right)

    @property
    def whitening(self) -> Matrix:
        """D' (W_k)^(-1/2), (d, m), with the pseudo-inverse: X times it is the A for which A A' is the approximation."""
        found: Matrix = self.right.T @ self.left.T
        return found

    def eigenvalues(self) -> list[float]:
        """The m eigenvalues of W, largest first."""
        squares: list[float] = (self.values**2).tolist()
        return squares + [0.0] * (len(self.left) - len(squares))

    def rest(self, rows: Matrix) -> Matrix:
        """X (I - P) for rows X (n, d)."""
        found: Matrix = rows - rows @ self.right.T @ self.right
        return found


def subspace(landmarks: Matrix, rank: int | None = None) -> Subspace:
    """The span of landmarks (m, d), or of the `rank` leading right singular vectors; a lower rank keeps fewer."""
    left, values, right = np.linalg.svd(landmarks, full_matrices=False)
    found = int(np.count_nonzero(values > SINGULAR * values[0]))
    kept = found if rank is None else min(rank, found)
    values[found:] = 0
    return Subspace(left[:, :kept], right[:kept], values, found)


def nystrom_error(factor: Matrix, landmarks: Subspace) -> float:
    """||K - K~||_F, for a factor of X (any rows with the same X'X) and the span that is kept; 0 within rounding."""
    rest = landmarks.rest(factor)
    return error_norm(rest.T @ rest, factor.T @ factor)


def error_norm(rest: Matrix, whole: Matrix) -> float:
    """||R R'||_F from R'R and X'X (d, d), 0 where R is what rounding leaves of X."""
    return float(np.linalg.norm(rest)) if np.trace(rest) > ROUNDING**2 * np.trace(whole) else 0.0


def factors(read: Read, widths: tuple[int, int], ranks: Ranks) -> tuple[tuple[Matrix, Matrix], int]:
    """F (d, d) of both sides with F'F = X'X, and n, from two readings.

    The second one sums the moments of X in the coordinates that the first one's made nearly orthonormal, so that the
    error of F is within a few roundings of the largest values of X. So is that of a streaming QR factor, which takes
    several times the time and is no sum over ranks.
    """
    first, n = own_moments(read, [np.eye(d) for d in widths], ranks)
    for moments, side in zip(first, SIDES, strict=True):
        refuse_small(float(np.sqrt(np.trace(moments))), side)
    back, forth = zip(*(coordinates(moments) for moments in first), strict=True)
    second, again = own_moments(read, forth, ranks)
    check_again(n, again)
    ours, theirs = (root(moments) @ turned for moments, turned in zip(second, back, strict=True))
    return (ours, theirs), n


def coordinates(moments: Matrix) -> tuple[Matrix, Matrix]:
    """S Q' and its inverse Q S^-1 for X'X = Q S^2 Q' as far as its digits go: S is at least 1e-8 of the largest."""
    values, vectors = np.linalg.eigh(moments)
    lowest = np.finfo(np.float64).eps * values[-1]
    scale = np.sqrt(np.maximum(values, lowest)) if values[-1] > 0 else np.ones(len(values))
    return scale[:, None] * vectors.T, vectors / scale


def root(moments: Matrix) -> Matrix:
    """An F with F'F = moments."""
    values, vectors = np.linalg.eigh(moments)
    return np.asarray(np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)


def own_moments(read: Read, maps: Sequence[Matrix], ranks: Ranks) -> tuple[list[Matrix], int]:
    """(X B)'(X B) of both sides for their maps B (d, d), over the samples of all ranks, and n."""
    sums, n = [np.zeros((len(side), len(side))) for side in maps], 0
    for pair in read():
        for total, block, side, name in zip(sums, pair, maps, SIDES, strict=True):
            refuse_large(block, name)
            rows = block @ side
            total += rows.T @ rows
        n += len(pair[0])
    return [ranks.summed(total) for total in sums], sum(ranks.gathered(n))


def refuse_large(rows: Matrix, side: str) -> None:
    """Refuses magnitudes whose powers, which bounds take up to the sixth, come near the end of float64."""
    if largest(rows) > 2.0**ORDINARY:
        raise out_of_range(largest(rows), side)


def refuse_small(largest_norm: float, side: str) -> None:
    """Refuses features whose powers vanish in float64, but not features of zeros."""
    if 0 < largest_norm < 2.0**-ORDINARY:
        raise out_of_range(largest_norm, side)


def out_of_range(magnitude: float, side: str) -> UsageError:
    """The error for features that are too large or too small."""
    return UsageError(
        f"the {side}'s features go up to {magnitude:.3g}; expected between 2^-{ORDINARY} and 2^{ORDINARY}: "
        "multiply the features of both sides by one constant"
    )
