"""KDA's kernel transfer loss over all samples, without ever building an n x n matrix.

Gives ||K_T - K_S||_F / ||K_T||_F of the linear kernels K = X X^T of one layer (Full Kernel Matrix Transfer, arXiv
2009.14416, figure 3), for the features X of shape (n, d) of both networks. Nothing is centred, normalised or sampled.

Three ways to the same number, all in float64:

    moments   d x d moments from one pass: ||K_S - K_T||^2 = ||S'S||^2 + ||T'T||^2 - 2 ||S'T||^2
    aligned   where that difference cancels, a second pass over what is left of S - T after a rotation
    blocked   the kernels' entries, block by block, in O(n^2 d): the independent check

Left out: kernels that are not linear, centred kernels, and kernels of landmarks.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from kdtool.analysis.features import NOTHING, Features, Matrix, blocks, exponent, scaled, widths
from kdtool.errors import UsageError, unknown

ALGORITHMS = ("moments", "aligned", "blocked")
CANCELLED = 1e-2  # of a loss below this, the moments have lost more than 4 of float64's 16 digits

VANISHED = 1e-200  # of a scaled ||K_T||^2 below this, the summands have left float64's range


@dataclass(frozen=True)
class GramGap:
    """How far a student's kernel matrix is from the teacher's over the same samples.

    loss = difference_norm / teacher_norm. The norms are Frobenius norms of K_S - K_T, K_T and K_S, all (n, n).
    algorithm: the one that gave the numbers, "moments", "aligned" or "blocked".
    """

    loss: float
    difference_norm: float
    teacher_norm: float
    student_norm: float
    samples: int
    student_width: int
    teacher_width: int
    algorithm: str


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
    """S'S (d_S, d_S), T'T (d_T, d_T) and S'T (d_S, d_T), summed over n samples and divided by 4^exponent."""

    student: Matrix
    teacher: Matrix
    cross: Matrix
    samples: int
    exponent: int


def transfer_loss(student: Features, teacher: Features, *, algorithm: str = "moments") -> float:
    """KDA's kernel transfer loss ||K_T - K_S||_F / ||K_T||_F over all samples; inputs and errors as for `gram_gap`."""
    return gram_gap(student, teacher, algorithm=algorithm).loss


def gram_gap(student: Features, teacher: Features, *, algorithm: str = "moments", block: int = 1024) -> GramGap:
    """KDA's kernel transfer loss with its parts, for features (n, d_S) and (n, d_T) of the same samples in one order.

    Each side is an (n, d) array or tensor, or anything that can be iterated again and again over (rows, d) chunks of
    the same values; the chunk borders of the two sides need not agree.

    "moments" takes O(n d^2) time, and 64 MiB or a few d x d matrices of memory beside the input. Where the loss comes
    out below 1e-2 it reads the input once more and ends as "aligned": 1e-9 relative for losses down to 1e-6, and equal
    kernels give 0 within 1e-14. "blocked" takes O(n^2 d) time, in blocks of `block` samples, and holds both sides in
    float64.

    Raises UsageError for an iterator that can be read only once (before it reads anything), different numbers of
    samples, no samples, values that are not finite, a teacher's kernel of zeros, and norms beyond float64.
    """
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    if block < 1:
        raise UsageError(f"block is {block}; expected at least 1 sample")
    both = widths(student, teacher)
    if algorithm == "blocked":
        found = blocked(student, teacher, both, block)
    else:
        sums = moments(student, teacher, both)
        found = from_moments(sums)
        if algorithm == "aligned" or found.difference < CANCELLED**2 * found.teacher:
            algorithm, found = "aligned", aligned(student, teacher, both, sums)
    if found.teacher < VANISHED:
        raise UsageError("the teacher's kernel is zero, or vanishes beside the student's; expected features of weight")
    return GramGap(
        loss=math.sqrt(found.difference / found.teacher),
        difference_norm=norm(found.difference, found.exponent),
        teacher_norm=norm(found.teacher, found.exponent),
        student_norm=norm(found.student, found.exponent),
        samples=found.samples,
        student_width=both[0],
        teacher_width=both[1],
        algorithm=algorithm,
    )


def moments(student: Features, teacher: Features, both: tuple[int, int]) -> Moments:
    """The moments of both sides from one pass over blocks of samples; both: (d_S, d_T)."""
    d_student, d_teacher = both
    own, other, cross = (np.zeros(shape) for shape in ((d_student, d_student), (d_teacher, d_teacher), both))
    samples, power = 0, NOTHING
    for s, t in blocks(student, teacher, both):
        larger = max(power, exponent(s), exponent(t))
        if larger > power:
            for matrix in (own, other, cross):
                matrix *= 4.0 ** (power - larger)
            power = larger
        s, t = scaled(s, power), scaled(t, power)
        own += s.T @ s
        other += t.T @ t
        cross += s.T @ t
        samples += len(s)
    return Moments(own, other, cross, samples, power)


def from_moments(sums: Moments) -> Squares:
    """The squared norms from the moments; where the kernels are close, their difference has lost digits."""
    student, teacher, cross = (float(np.vdot(m, m)) for m in (sums.student, sums.teacher, sums.cross))
    return Squares(max(0.0, student + teacher - 2 * cross), teacher, student, sums.samples, sums.exponent)


def aligned(student: Features, teacher: Features, both: tuple[int, int], sums: Moments) -> Squares:
    """The squared norms without cancellation, from a second pass.

    The narrower side N is rotated onto the wider one W by the orthogonal Q that makes Q'N'W symmetric (orthogonal
    Procrustes problem), which leaves K_N as it is. With D = NQ - W and P = NQ + W, 2 (K_N - K_W) = D P' + P D', so
    ||K_N - K_W||^2 = (<D'D, P'P> + tr(P'D P'D)) / 2. P'D is symmetric like Q'N'W, so the trace is a sum of squares too.

    A streaming QR factor of [S T] is the other known way. Its rounding errors grow with the number of blocks: 5e-15 of
    ||K_T|| was seen where this stays below 1e-15, and a loss of 1e-6 needs 1e-15.
    """
    narrow_student = sums.cross.shape[0] <= sums.cross.shape[1]
    rotation = procrustes(sums.cross if narrow_student else sums.cross.T)
    dd, pp, pd = np.zeros((3, max(both), max(both)))
    samples = 0
    for s, t in blocks(student, teacher, both):
        narrow, wide = (scaled(side, sums.exponent) for side in ((s, t) if narrow_student else (t, s)))
        turned = narrow @ rotation
        d, p = turned - wide, turned + wide
        dd += d.T @ d
        pp += p.T @ p
        pd += p.T @ d
        samples += len(s)
    if samples != sums.samples:
        raise UsageError(
            f"the features gave {sums.samples} samples when read first and {samples} when read again; expected "
            "sequences of chunks that give the same values every time they are iterated"
        )
    difference = float(np.vdot(dd, pp) + np.vdot(pd, pd.T)) / 2
    return replace(from_moments(sums), difference=max(0.0, difference))


def procrustes(cross: Matrix) -> Matrix:
    """The Q (narrow, wide) with orthonormal rows for which Q' cross is symmetric and has the largest trace."""
    left, _, right = np.linalg.svd(cross, full_matrices=False)
    q: Matrix = left @ right
    # One Newton step, because the SVD's own error of orthogonality would be the largest error of all.
    return q - (q @ q.T - np.eye(len(q))) @ q / 2


def blocked(student: Features, teacher: Features, both: tuple[int, int], block: int) -> Squares:
    """The squared norms from the entries of both kernels; a block beside the diagonal stands for two."""
    pairs = [(s.copy(), t.copy()) for s, t in blocks(student, teacher, both)]
    s, t = (np.concatenate(side) for side in zip(*pairs, strict=True))
    power = max(exponent(s), exponent(t))
    s, t = scaled(s, power), scaled(t, power)
    difference = teacher_square = student_square = 0.0
    for i in range(0, len(s), block):
        for j in range(i, len(s), block):
            own = s[i : i + block] @ s[j : j + block].T
            other = t[i : i + block] @ t[j : j + block].T
            weight = 1 if i == j else 2
            student_square += weight * float(np.vdot(own, own))
            teacher_square += weight * float(np.vdot(other, other))
            own -= other
            difference += weight * float(np.vdot(own, own))
    return Squares(difference, teacher_square, student_square, len(s), power)


def norm(square: float, power: int) -> float:
    """The norm from its square over 16^power."""
    try:
        return math.ldexp(math.sqrt(square), 2 * power)
    except OverflowError:
        raise UsageError("the norm of a kernel is beyond float64; divide the features by a constant") from None
