"""Kernels of features that are not the linear one, and how their matrices are compared without holding them.

    cosine      <x, y> / (||x|| ||y||), a linear kernel of unit rows; a row of zeros has cosine 0 with everything
    rbf         exp(-gamma ||x - y||^2); gamma defaults to 1 / the mean squared distance of all pairs of that side
    polynomial  (gamma <x, y> + constant)^degree; gamma defaults to 1 / the mean squared norm of that side

The defaults make a kernel blind to the scale of the features, so that a student of 64 features and a teacher of 2,048
are seen alike. `sums` gives squared norms entry by entry in O(n^2 d); `nystrom_map` gives m features whose linear
kernel is the Nystrom approximation; `interval` says from subsamples where the loss lies with a confidence of 95 %.

Left out: what is done with the numbers (gram).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kdtool import philox
from kdtool.analysis.features import (
    ORDINARY,
    Features,
    Mapped,
    Matrix,
    blocks,
    chunks,
    exponent,
    float64,
    largest,
    scaled,
)
from kdtool.analysis.moments import Squares
from kdtool.engine.ranks import Ranks
from kdtool.errors import UsageError, unknown
from kdtool.progress import Progress, Silent

NAMES = ("linear", "cosine", "rbf", "polynomial")
SUBSETS = 20  # disjoint subsets of samples behind an interval
SUBSET_ROWS = 500  # samples in one of them, at most
STUDENT_T = 2.093  # 97.5 % quantile of Student's t with SUBSETS - 1 degrees of freedom
NEGLIGIBLE = 1e-12  # of the largest eigenvalue of W: what the pseudo-inverse leaves out


@dataclass(frozen=True)
class Kernel:
    """A kernel by name; gamma None takes the default of each side. degree and constant belong to `polynomial`."""

    name: str = "linear"
    gamma: float | None = None
    degree: int = 3
    constant: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise unknown("kernel", self.name, NAMES)
        if self.gamma is not None and (self.is_linear or not 0 < self.gamma < math.inf):
            raise UsageError(f"gamma is {self.gamma}; expected a number above 0, for the kernels rbf and polynomial")
        if self.name != "polynomial" and (self.degree, self.constant) != (Kernel.degree, Kernel.constant):
            raise UsageError(
                f"degree {self.degree} and constant {self.constant} belong to the kernel polynomial; {self.name} is "
                "asked for"
            )
        if self.degree < 1 or not 0 <= self.constant < math.inf:
            raise UsageError(
                f"degree {self.degree} and constant {self.constant}: a degree of at least 1 and a constant of at least "
                "0 are expected, which make a kernel of the polynomial"
            )

    @property
    def is_linear(self) -> bool:
        """Whether the kernel is an inner product of rows, or of unit rows."""
        return self.name in ("linear", "cosine")

    def fitted(self, features: Features, side: str) -> "Kernel":
        """The kernel with the gamma of a side, from one pass over its features."""
        if self.is_linear or self.gamma is not None:
            return self
        squared_norm, mean_norm = spread(features, side)
        scale = 2 * (squared_norm - mean_norm) if self.name == "rbf" else squared_norm
        return replace(self, gamma=1 / scale if scale > 1e-14 * squared_norm else 1.0)

    def __call__(self, a: Matrix, b: Matrix) -> Matrix:
        """The entries (rows of a, rows of b); a gamma must be there."""
        if self.name == "cosine":
            a, b = unit_rows(a), unit_rows(b)
        inner: Matrix = a @ b.T
        if self.is_linear:
            return inner
        assert self.gamma is not None
        if self.name == "polynomial":
            inner *= self.gamma
            inner += self.constant
            return power_of(inner, self.degree)
        inner *= -2
        inner += np.einsum("ij,ij->i", a, a)[:, None]
        inner += np.einsum("ij,ij->i", b, b)
        np.maximum(inner, 0, out=inner)
        inner *= -self.gamma
        found: Matrix = np.exp(inner, out=inner)
        return found

    def diagonal(self, a: Matrix) -> Matrix:
        """The entries k(x, x) of the rows of a, (rows,)."""
        if self.name == "rbf":
            return np.ones(len(a))
        rows = unit_rows(a) if self.name == "cosine" else a
        squares: Matrix = np.einsum("ij,ij->i", rows, rows)
        if self.name != "polynomial":
            return squares
        assert self.gamma is not None
        return power_of(self.gamma * squares + self.constant, self.degree)


def power_of(values: Matrix, degree: int) -> Matrix:
    """The values to a power. Raises UsageError for what is beyond float64."""
    with np.errstate(over="ignore"):
        found = np.asarray(values**degree)
    if not np.isfinite(found).all():
        raise UsageError("the kernel's entries are beyond float64; expected a smaller gamma or degree")
    return found


def unit_rows(rows: Matrix) -> Matrix:
    """Rows of length 1; a row of zeros stays as it is. The largest entry is divided out first: squares may overflow."""
    largest = np.abs(rows).max(1, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1)
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    found: Matrix = rows / np.where(length > 0, length, 1)
    return found


def spread(features: Features, side: str) -> tuple[float, float]:
    """Mean of ||x||^2 and ||mean of x||^2: twice their difference is the mean squared distance of two samples."""
    count, square, total, top = 0, 0.0, np.zeros(1), 0.0
    for chunk in chunks(Mapped(features, lambda rows: rows), side):
        rows = float64(chunk)
        count, square, total = count + len(rows), square + float(np.vdot(rows, rows)), total + rows.sum(0)
        top = max(top, largest(rows))
    if not math.isfinite(square) or 0 < top < 2.0**-ORDINARY:
        raise UsageError(
            f"the {side}'s features go up to {top:.3g}; expected finite ones between 2^-{ORDINARY} and 2^{ORDINARY}: "
            "multiply them by a constant"
        )
    return square / max(count, 1), float(total @ total) / max(count, 1) ** 2


# Entry by entry


@dataclass(frozen=True)
class Sides:
    """Both sides in memory, in float64 and divided by 2^exponent, with their fitted kernels."""

    student: Matrix
    teacher: Matrix
    student_kernel: Kernel
    teacher_kernel: Kernel
    exponent: int = 0

    def of(self, rows: npt.NDArray[np.int64]) -> "Sides":
        """Some samples."""
        return replace(self, student=self.student[rows], teacher=self.teacher[rows])


def in_memory(student: Features, teacher: Features, both: tuple[int, int], kernels: Sequence[Kernel]) -> Sides:
    """Both sides as they are read, (n, d) each; those of a linear kernel so that their fourth powers are in float64."""
    pairs = [(s.copy(), t.copy()) for s, t in blocks(student, teacher, both)]
    s, t = (np.concatenate(side) for side in zip(*pairs, strict=True))
    power = max(exponent(s), exponent(t)) if kernels[0].name == "linear" else 0
    return Sides(scaled(s, power), scaled(t, power), kernels[0], kernels[1], power)


def entries(
    sides: Sides,
    block: int,
    ranks: Ranks,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
) -> Squares:
    """The squared norms from the entries of both kernels; a block beside the diagonal stands for two.

    Each rank takes its part of the rows of blocks.
    """
    s, t = sides.student, sides.teacher
    total = np.zeros(3)
    starts = range(0, len(s), block)
    mine = range(ranks.rank, len(starts), ranks.size)
    progress.begin("kernel blocks", sum(len(starts) - number for number in mine))
    for i in starts[ranks.rank :: ranks.size]:
        for j in range(i, len(s), block):
            progress.advance(1)
            own = sides.student_kernel(s[i : i + block], s[j : j + block])
            other = sides.teacher_kernel(t[i : i + block], t[j : j + block])
            weight = 1 if i == j else 2
            total[1:] += weight * np.array([np.vdot(other, other), np.vdot(own, own)])
            own -= other
            total[0] += weight * float(np.vdot(own, own))
    difference, other_square, own_square = ranks.summed(total).tolist()
    return Squares(difference, other_square, own_square, len(s), sides.exponent)


def class_entries(
    sides: Sides,
    starts: npt.NDArray[np.int64],
    block: int,
    ranks: Ranks,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
) -> Matrix:
    """Sums over pairs of classes of (K_S - K_T)^2, K_T^2 and K_S^2, (3, classes, classes), entry by entry.

    The samples are sorted by class; starts: where every class begins, and the end.
    """
    total = np.zeros((3, len(starts) - 1, len(starts) - 1))
    places = range(0, len(sides.student), block)
    mine = places[ranks.rank :: ranks.size]
    progress.begin("blocks by class", len(mine) * len(places))
    for i in mine:
        for j in places:
            progress.advance(1)
            rows, columns = (np.arange(k, min(k + block, len(sides.student))) for k in (i, j))
            own = sides.student_kernel(sides.student[rows], sides.student[columns])
            other = sides.teacher_kernel(sides.teacher[rows], sides.teacher[columns])
            a, b = (np.searchsorted(starts, k, side="right") - 1 for k in (rows, columns))
            for turn, values in enumerate(((own - other) ** 2, other**2, own**2)):
                down = np.add.reduceat(values, borders(a), axis=0)
                total[turn][np.ix_(np.unique(a), np.unique(b))] += np.add.reduceat(down, borders(b), axis=1)
    return ranks.summed(total)


def borders(classes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each class begins in a sorted row of classes."""
    return np.flatnonzero(np.diff(classes, prepend=-1))


# Nystrom approximation


def draw(samples: int, count: int, seed: int, turn: int) -> npt.NDArray[np.int64]:
    """`count` different positions below `samples`, sorted; `turn` tells purposes and repetitions apart."""
    return np.sort(philox.permutation(seed, philox.LANDMARKS, turn, samples)[:count]).astype(np.int64)


def rows_at(features: Features, positions: npt.NDArray[np.int64], side: str) -> Matrix:
    """The rows at sorted positions, (len(positions), d), in float64."""
    found, first = [], 0
    for chunk in chunks(features, side):
        low, high = np.searchsorted(positions, (first, first + len(chunk)))
        if high > low:
            found.append(float64(chunk[positions[low:high] - first]))
        first += len(chunk)
    rows = np.concatenate(found)
    if not np.isfinite(rows).all():
        raise UsageError(f"the {side}'s features are not all finite; expected no NaN and no infinity")
    return rows


def nystrom_map(features: Features, kernel: Kernel, landmarks: Matrix) -> Mapped:
    """Features C W^(-1/2) (n, m), whose linear kernel is the Nystrom approximation C W^+ C' from those landmarks."""
    values, vectors = np.linalg.eigh(kernel(landmarks, landmarks))
    keep = values > NEGLIGIBLE * values[-1]
    root: Matrix = vectors[:, keep] / np.sqrt(values[keep])
    return Mapped(features, lambda rows: np.asarray(kernel(rows, landmarks) @ root))


# Confidence


def interval(
    student: Features,
    teacher: Features,
    kernels: Sequence[Kernel],
    samples: int,
    seed: int,
) -> tuple[float, float] | None:
    """Where the exact loss lies with a confidence of 95 %, from disjoint random subsets; None for few samples.

    Pairs of different samples are averaged within subsets, each of them without bias; the diagonal is summed over all.
    The loss of the means has the standard error of a jackknife over the subsets, and Student's t. No correction for the
    share of the samples that was drawn is made: most of the pairs were not seen even where every sample was.
    """
    size = min(SUBSET_ROWS, samples // SUBSETS)
    if size < 2:
        return None
    chosen = philox.permutation(seed, philox.SUBSETS, 0, samples)[: SUBSETS * size].astype(np.int64)
    order = np.argsort(chosen, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    sides = Sides(
        rows_at(student, chosen[order], "student"), rows_at(teacher, chosen[order], "teacher"), kernels[0], kernels[1]
    )
    means = np.array([pair_means(sides.of(part)) for part in np.split(places, SUBSETS)])
    diagonal = diagonals(student, teacher, kernels)
    every = [loss_of(means, diagonal, samples)]
    every += [loss_of(np.delete(means, left, axis=0), diagonal, samples) for left in range(SUBSETS)]
    loss, others = every[0], np.array(every[1:])
    variance = (SUBSETS - 1) / SUBSETS * float(((others - others.mean()) ** 2).sum())
    error = STUDENT_T * math.sqrt(variance)
    return max(0.0, loss - error), loss + error


def pair_means(sides: Sides) -> tuple[float, float]:
    """Means of (K_S - K_T)^2 and of K_T^2 over the pairs of different samples."""
    own, other = sides.student_kernel(sides.student, sides.student), sides.teacher_kernel(sides.teacher, sides.teacher)
    pairs = len(own) * (len(own) - 1)
    own -= other
    np.fill_diagonal(own, 0)
    np.fill_diagonal(other, 0)
    return float(np.vdot(own, own)) / pairs, float(np.vdot(other, other)) / pairs


def diagonals(student: Features, teacher: Features, kernels: Sequence[Kernel]) -> tuple[float, float]:
    """Sums of (K_S - K_T)^2 and of K_T^2 over the diagonal."""
    difference = square = 0.0
    both = (
        Mapped(student, lambda rows: kernels[0].diagonal(rows)[:, None]),
        Mapped(teacher, lambda rows: kernels[1].diagonal(rows)[:, None]),
    )
    for s, t in blocks(*both, (1, 1)):
        difference += float(((s - t) ** 2).sum())
        square += float((t**2).sum())
    return difference, square


def loss_of(means: Matrix, diagonal: tuple[float, float], samples: int) -> float:
    """The transfer loss from means over pairs and sums over the diagonal."""
    difference, square = means.mean(0) * samples * (samples - 1) + np.array(diagonal)
    return math.sqrt(difference / square) if square > 0 else 0.0
