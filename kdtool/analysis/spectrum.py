"""Eigenvalues of the kernels of student and teacher and of their landmarks' W, and what landmarks can reach.

K = X X' has at most min(n, d) eigenvalues that are not 0: the squared singular values of a (d, d) factor of X. The
Nystrom error of m landmarks stands beside the best error of any matrix of rank m (Eckart & Young 1936), which it cannot
fall below. Left out: plots, and the training of landmarks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdtool.analysis.centred import pairs
from kdtool.analysis.clusters import Integers, gathered
from kdtool.analysis.features import Features, Matrix, widths
from kdtool.analysis.nystrom import LandmarkSet, class_centres, draw_images, for_student, k_means, refuse_other_widths
from kdtool.analysis.projector import ROUNDING, factors, nystrom_error, subspace
from kdtool.engine.ranks import Alone, Ranks
from kdtool.errors import UsageError

STRATEGIES = ("random", "kmeans", "class")
DRAWS = 5  # of random landmarks


@dataclass(frozen=True)
class SideSpectrum:
    """The kernel K (n, n) of one side.

    eigenvalues: the min(n, d) largest, in falling order; the others are 0. effective_rank: exp of the entropy of the
    eigenvalues over their sum (Roy & Vetterli 2007). participation_ratio: (sum)^2 / (sum of squares). norm: ||K||_F.
    The two ranks are None for a kernel of zeros.
    """

    width: int
    eigenvalues: tuple[float, ...]
    effective_rank: float | None
    participation_ratio: float | None
    norm: float


@dataclass(frozen=True)
class SideLandmarks:
    """W (m, m) of one side, and the relative error ||K - K~||_F / ||K||_F of its landmarks (None for K = 0).

    eigenvalues: all m in falling order; smallest: the last of them, 0 where W is singular. rank: the numerical one. The
    other two ranks are those of `SideSpectrum`.
    """

    eigenvalues: tuple[float, ...]
    smallest: float
    rank: int
    effective_rank: float | None
    participation_ratio: float | None
    nystrom_error: float | None


@dataclass(frozen=True)
class LandmarkSpectrum:
    """W of both sides for one set of landmarks. smallest: eigenvalue of either side (KDA's figure 5)."""

    landmarks: str
    count: int
    smallest: float
    student: SideLandmarks
    teacher: SideLandmarks
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Spread:
    """Relative errors over several draws; all three are one number where there is one draw."""

    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Growth:
    """Relative errors ||K - K~||_F / ||K||_F of one strategy at one number of landmarks.

    strategy: "best" (of any matrix of rank `count`), "random", "kmeans" or "class". None for a student of zeros.
    """

    strategy: str
    count: int
    draws: int
    student: Spread | None
    teacher: Spread | None


@dataclass(frozen=True)
class Spectrum:
    """Kernels, landmark sets and errors as landmarks grow, over the same samples of both sides."""

    samples: int
    student: SideSpectrum
    teacher: SideSpectrum
    landmarks: tuple[LandmarkSpectrum, ...]
    growth: tuple[Growth, ...]


def spectrum(
    student: Features,
    teacher: Features,
    landmark_sets: Sequence[LandmarkSet] = (),
    labels: Integers | None = None,
    *,
    counts: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    rounds: int = 10,
    strategies: Sequence[str] = STRATEGIES,
    clusters: dict[int, LandmarkSet] | None = None,
    ranks: Ranks | None = None,
) -> Spectrum:
    """Spectra for features (n, d_S) and (n, d_T); labels (n,) add class centres at their own number of landmarks.

    counts: numbers of landmarks for the growing sets (default `default_counts`). draws: of random landmarks, which are
    nested as the count grows. rounds: of k-means, each a reading of the teacher's features for every count. strategies:
    which of random, kmeans and class to try. clusters: those of this teacher by their number, of calls for other
    students; what is not there is looked for and added. ranks: the processes that share the two readings for the
    kernels; each makes the landmarks for itself.

    Raises UsageError for counts that are not between 1 and n, a teacher's kernel of zeros, features far from ordinary
    magnitudes, and what `features.blocks` refuses.
    """
    both = widths(student, teacher)
    for landmarks in landmark_sets:
        refuse_other_widths(landmarks, both)
    together = ranks or Alone()
    found, n = factors(pairs(student, teacher, both, together), both, together)
    if not found[1].any():
        raise UsageError("the teacher's kernel is zero; expected features of weight")
    grid = default_counts(n, max(both)) if counts is None else tuple(sorted({int(m) for m in counts}))
    check(grid, n, draws, strategies)
    ours, theirs = (side_spectrum(factor, n) for factor in found)
    growth = [best(m, ours, theirs) for m in grid]
    if "random" in strategies:
        growth += random_growth(student, teacher, found, n, grid, draws, seed)
    if "kmeans" in strategies:
        known = {} if clusters is None else clusters
        for m in grid:
            if m in known:
                known[m] = for_student(known[m], student, teacher)
            else:
                known[m] = k_means(student, teacher, m, seed=seed, rounds=rounds)
            growth.append(grown(known[m], found))
    if "class" in strategies and labels is not None:
        growth.append(grown(class_centres(student, teacher, labels), found))
    sets = tuple(landmark_spectrum(landmarks, found) for landmarks in landmark_sets)
    return Spectrum(n, ours, theirs, sets, tuple(growth))


def default_counts(n: int, d: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... and min(n, d), well above the last of them: so many independent ones leave nothing."""
    end = min(n, d)
    steps = (base * 10**power for power in range(len(str(end))) for base in (1, 2, 5))
    return (*(m for m in steps if 5 * m <= 4 * end), end)


def check(grid: Sequence[int], n: int, draws: int, strategies: Sequence[str]) -> None:
    """Refuses what `spectrum` cannot do."""
    if not grid or not 1 <= grid[0] <= grid[-1] <= n:
        raise UsageError(f"numbers of landmarks {list(grid)} for {n} samples; expected some between 1 and {n}")
    if draws < 1:
        raise UsageError(f"{draws} draws of random landmarks; expected at least 1")
    if not set(strategies) <= set(STRATEGIES):
        raise UsageError(f"strategies {', '.join(strategies)}; expected some of {', '.join(STRATEGIES)}")


def side_spectrum(factor: Matrix, n: int) -> SideSpectrum:
    """The eigenvalues of K over n samples from X's factor, 0 where they are rounding."""
    roots = np.asarray(np.linalg.svd(factor, compute_uv=False), dtype=np.float64)[:n]
    values = np.where(roots > ROUNDING * roots[0], roots, 0) ** 2
    return SideSpectrum(factor.shape[1], tuple(values.tolist()), *ranks(values), float(np.linalg.norm(values)))


def ranks(values: Matrix) -> tuple[float | None, float | None]:
    """Effective rank and participation ratio of eigenvalues of at least 0."""
    total = float(values.sum())
    if total == 0:
        return None, None
    share = values / total
    above = share[share > 0]
    return math.exp(-float((above * np.log(above)).sum())), float(1 / (share**2).sum())


def best(m: int, ours: SideSpectrum, theirs: SideSpectrum) -> Growth:
    """The best errors of rank m: the norm of the eigenvalues that are left."""
    found = [
        spread([float(np.linalg.norm(np.array(side.eigenvalues[m:]))) / side.norm]) if side.norm else None
        for side in (ours, theirs)
    ]
    return Growth("best", m, 1, *found)


def random_growth(
    student: Features,
    teacher: Features,
    both: tuple[Matrix, Matrix],
    n: int,
    grid: Sequence[int],
    draws: int,
    seed: int,
) -> list[Growth]:
    """Errors of the first m images of every draw; one reading of both sides a draw."""
    errors: list[list[list[float | None]]] = [[[], []] for _ in grid]
    for draw in range(draws):
        picked = draw_images(n, grid[-1], seed, draw)
        rows = gathered(student, picked, "student"), gathered(teacher, picked, "teacher")
        for found, m in zip(errors, grid, strict=True):
            for side in (0, 1):
                found[side].append(relative_error(both[side], rows[side][:m]))
    return [
        Growth("random", m, draws, spread(found[0]), spread(found[1])) for found, m in zip(errors, grid, strict=True)
    ]


def grown(landmarks: LandmarkSet, both: tuple[Matrix, Matrix]) -> Growth:
    """The errors of one set of landmarks."""
    ours, theirs = relative_error(both[0], landmarks.student), relative_error(both[1], landmarks.teacher)
    return Growth(landmarks.name, len(landmarks), 1, spread([ours]), spread([theirs]))


def relative_error(factor: Matrix, landmarks: Matrix) -> float | None:
    """||K - K~||_F / ||K||_F; None for a kernel of zeros."""
    norm = float(np.linalg.norm(factor.T @ factor))
    return nystrom_error(factor, subspace(landmarks)) / norm if norm else None


def spread(errors: Sequence[float | None]) -> Spread | None:
    """Mean, lowest and highest."""
    known = [error for error in errors if error is not None]
    return Spread(math.fsum(known) / len(known), min(known), max(known)) if known else None


def landmark_spectrum(landmarks: LandmarkSet, both: tuple[Matrix, Matrix]) -> LandmarkSpectrum:
    """W of both sides."""
    ours, theirs = side_landmarks(landmarks.student, both[0]), side_landmarks(landmarks.teacher, both[1])
    smallest = min(ours.smallest, theirs.smallest)
    return LandmarkSpectrum(landmarks.name, len(landmarks), smallest, ours, theirs, landmarks.notes)


def side_landmarks(landmarks: Matrix, factor: Matrix) -> SideLandmarks:
    """W of one side and the error of its landmarks."""
    kept = subspace(landmarks)
    values = tuple(kept.eigenvalues())
    error = relative_error(factor, landmarks)
    return SideLandmarks(values, values[-1], kept.rank, *ranks(np.array(values)), error)
