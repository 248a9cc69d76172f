"""KDA's kernel transfer loss over all samples, without ever building an n x n matrix.

Gives ||K_T - K_S||_F / ||K_T||_F of the kernels of one layer (Full Kernel Matrix Transfer, arXiv 2009.14416, figure 3),
for the features X of shape (n, d) of both networks. The paper's kernel is linear, K = X X^T; nothing is centred or
sampled.

Four ways to the number, all in float64:

    moments   d x d moments from one pass, for linear and cosine kernels
    aligned   where the difference of moments cancels, a second pass; taken by itself
    blocked   the kernels' entries, block by block, in O(n^2 d): any kernel, and the independent check
    nystrom   any kernel from landmarks in O(n m (d + m)), with an interval for the exact loss from subsamples

Left out: centred kernels (similarity), and bounds from landmarks (bounds).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy.typing as npt

from kdtool.analysis import classes
from kdtool.analysis.classes import ClassGaps
from kdtool.analysis.features import Features, Mapped, all_widths, chunks, float64, samples
from kdtool.analysis.kernels import (
    Kernel,
    class_entries,
    draw,
    entries,
    in_memory,
    interval,
    nystrom_map,
    rows_at,
    unit_rows,
)
from kdtool.analysis.moments import (
    CANCELLED,
    VANISHED,
    Moments,
    Squares,
    aligned,
    from_moments,
    moments,
    norm,
)
from kdtool.engine.ranks import Alone, Ranks
from kdtool.errors import UsageError, unknown
from kdtool.progress import Progress, Silent

ALGORITHMS = ("auto", "moments", "aligned", "blocked", "nystrom")
ENTRIES = 50_000  # samples up to which kernels that are not linear are summed entry by entry
LANDMARKS = 1000  # of the Nystrom approximation


@dataclass(frozen=True)
class GramGap:
    """How far a student's kernel matrix is from the teacher's over the same samples.

    loss = difference_norm / teacher_norm. The norms are Frobenius norms of K_S - K_T, K_T and K_S, all (n, n).
    algorithm: the one that gave the numbers. student_gamma, teacher_gamma, degree, constant: of kernels that have them.
    Of "nystrom" only: nystrom_landmarks, their number, drawn under `seed`; interval, where the exact loss lies with a
    confidence of 95 % (None for few samples). The loss itself may lie beside it: then the landmarks are too few.

    A loss has two parts, which `scale` and `alignment` tell apart: loss^2 = scale^2 + 1 - 2 scale alignment.
    """

    loss: float
    difference_norm: float
    teacher_norm: float
    student_norm: float
    samples: int
    student_width: int
    teacher_width: int
    algorithm: str
    kernel: str = "linear"
    student_gamma: float | None = None
    teacher_gamma: float | None = None
    degree: int | None = None
    constant: float | None = None
    nystrom_landmarks: int | None = None
    seed: int | None = None
    interval: tuple[float, float] | None = None
    by_class: ClassGaps | None = None

    @property
    def scale(self) -> float:
        """||K_S||_F / ||K_T||_F, how large the student's kernel is: 1 is the teacher's size."""
        return self.student_norm / self.teacher_norm

    @property
    def alignment(self) -> float:
        """<K_S, K_T>_F / (||K_S||_F ||K_T||_F), from 0 to 1: how alike the kernels are in direction, at any scale.

        Kernel alignment (Cristianini et al. 2001, definition 1); nothing is centred, as in the loss. sqrt(1 -
        alignment^2) is the smallest loss that the student could have by a rescaling of its features. The error is
        about 1e-16 / scale; 0 for a student's kernel of zeros.
        """
        return cosine(self.loss, self.scale)

    def plain(self) -> dict[str, Any]:
        """As JSON: the fields, and both parts of the loss."""
        return asdict(self) | {"scale": self.scale, "alignment": self.alignment}


def alignment(gap: Mapping[str, Any]) -> float:
    """The alignment of a `GramGap` as it lies in a file, also one in which it is not written."""
    return cosine(gap["loss"], gap["student_norm"] / gap["teacher_norm"])


def cosine(loss: float, scale: float) -> float:
    """The alignment that belongs to a loss and a scale, by the law of cosines."""
    return min(1.0, max(0.0, (scale**2 + 1 - loss**2) / (2 * scale))) if scale else 0.0


@dataclass(frozen=True)
class Ask:
    """What is asked of a pair: how the numbers are found. Fields as the arguments of `gram_gaps`."""

    kernel: Kernel
    algorithm: str
    block: int
    landmarks: int
    seed: int
    ranks: Ranks
    progress: Progress


def transfer_loss(student: Features, teacher: Features, *, algorithm: str = "auto") -> float:
    """KDA's kernel transfer loss ||K_T - K_S||_F / ||K_T||_F over all n samples, exact, for linear kernels.

    student (n, d_S), teacher (n, d_T): features of the same samples in one order, as arrays, tensors, or anything that
    can be iterated again and again over chunks of rows. Algorithms and errors are those of
    `kdtool.analysis.gram.gram_gap`.
    """
    return gram_gap(student, teacher, algorithm=algorithm).loss


def gram_gap(
    student: Features,
    teacher: Features,
    *,
    kernel: Kernel | str = "linear",
    algorithm: str = "auto",
    labels: npt.ArrayLike | None = None,
    block: int = 1024,
    landmarks: int = LANDMARKS,
    seed: int = 0,
    ranks: Ranks | None = None,
) -> GramGap:
    """KDA's kernel transfer loss with its parts, for features (n, d_S) and (n, d_T) of the same samples in one order.

    Each side is an (n, d) array or tensor, or anything that can be iterated again and again over (rows, d) chunks of
    the same values; the chunk borders of the two sides need not agree. labels (n,) ask for the loss by class as well.

    "moments" takes O(n d^2) time, and 64 MiB or a few d x d matrices of memory beside the input. Where the loss comes
    out below 1e-2 it reads the input once more and ends as "aligned": 1e-9 relative for losses down to 1e-6, and equal
    kernels give 0 within 1e-14. "blocked" takes O(n^2 d) time, in blocks of `block` samples, and holds both sides in
    float64. "nystrom" takes so many `landmarks`, drawn under `seed`. "auto" is "moments" for linear and cosine kernels,
    else "blocked" up to 50,000 samples and "nystrom" beyond. ranks: the processes that share the work.

    Raises UsageError for an iterator that can be read only once (before it reads anything), different numbers of
    samples, no samples, values that are not finite, a teacher's kernel of zeros, and norms beyond float64.
    """
    options = {"kernel": kernel, "algorithm": algorithm, "block": block, "landmarks": landmarks, "seed": seed}
    return gram_gaps({"student": student}, teacher, labels=labels, ranks=ranks, **options)["student"]  # type: ignore[arg-type]


def gram_gaps(
    students: Mapping[str, Features],
    teacher: Features,
    *,
    kernel: Kernel | str = "linear",
    algorithm: str = "auto",
    labels: npt.ArrayLike | None = None,
    block: int = 1024,
    landmarks: int = LANDMARKS,
    seed: int = 0,
    ranks: Ranks | None = None,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
) -> dict[str, GramGap]:
    """`gram_gap` of several students of one teacher, whose features are read once for all of them by "moments"."""
    ask = Ask(
        kernel if isinstance(kernel, Kernel) else Kernel(kernel),
        algorithm,
        block,
        landmarks,
        seed,
        ranks or Alone(),
        progress,
    )
    check(ask.kernel, ask.algorithm, ask.landmarks, ask.block)
    sides = all_widths([*students.values(), teacher], [*students, "teacher"])
    if ask.kernel.name == "cosine" and algorithm != "blocked":
        mapped = {name: Mapped(features, unit_rows) for name, features in students.items()}
        found = linear(mapped, Mapped(teacher, unit_rows), sides, ask, labels)
        return {name: replace(gap, kernel="cosine") for name, gap in found.items()}
    if ask.kernel.is_linear and algorithm != "blocked":
        return linear(students, teacher, sides, ask, labels)
    chosen = algorithm
    if algorithm == "auto":
        chosen = "blocked" if samples(teacher, "teacher") <= ENTRIES else "nystrom"
    of = blocked if chosen == "blocked" else nystrom
    if ask.kernel.name == "rbf":  # distances do not know the origin, and lose digits where it is far
        students, teacher = {name: moved(side, name) for name, side in students.items()}, moved(teacher, "teacher")
    return {
        name: of(features, teacher, (width, sides[-1]), ask, labels)
        for (name, features), width in zip(students.items(), sides[:-1], strict=True)
    }


def moved(features: Features, side: str) -> Features:
    """The features beside those of the first sample."""
    first = float64(next(chunk for chunk in chunks(features, side) if len(chunk))[:1])
    return Mapped(features, lambda rows: rows - first)


def check(kernel: Kernel, algorithm: str, landmarks: int = LANDMARKS, block: int = 1) -> None:
    """Refuses what cannot be done; arguments as for `gram_gap`."""
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    if not kernel.is_linear and algorithm in ("moments", "aligned"):
        raise UsageError(f"the kernel {kernel.name} has no {algorithm}; expected auto, blocked or nystrom")
    if kernel.is_linear and algorithm == "nystrom":
        raise UsageError(f"the kernel {kernel.name} is summed exactly; expected auto, moments or blocked")
    if landmarks != LANDMARKS and (kernel.is_linear or algorithm == "blocked"):
        raise UsageError(f"{landmarks} landmarks belong to nystrom; {kernel.name} by {algorithm} is exact without any")
    if block < 1 or landmarks < 1:
        raise UsageError(f"block is {block} and landmarks {landmarks}; expected at least 1 sample")


def linear(
    students: Mapping[str, Features],
    teacher: Features,
    sides: tuple[int, ...],
    ask: Ask,
    labels: npt.ArrayLike | None,
) -> dict[str, GramGap]:
    """The gaps of linear kernels, by moments and, where these cancel, aligned."""
    found = {}
    for (name, sums), features in zip(
        moments(students, teacher, sides, ask.ranks).items(), students.values(), strict=True
    ):
        both = sums.cross.shape
        squares, algorithm = from_moments(sums), "moments"
        if ask.algorithm == "aligned" or squares.difference < CANCELLED**2 * squares.teacher:
            squares, algorithm = aligned(features, teacher, both, sums, ask.ranks), "aligned"
        gap = finished(squares, both, algorithm)
        found[name] = replace(gap, by_class=linear_classes(features, teacher, sums, ask.ranks, labels))
    return found


def linear_classes(
    student: Features, teacher: Features, sums: Moments, ranks: Ranks, labels: npt.ArrayLike | None
) -> ClassGaps | None:
    """The gaps by class, where labels are given."""
    if labels is None:
        return None
    known, _ = classes.check_labels(labels, sums.samples)
    return classes.class_gaps(classes.block_squares(student, teacher, sums.cross.shape, known, sums, ranks), known)


def blocked(
    student: Features, teacher: Features, both: tuple[int, int], ask: Ask, labels: npt.ArrayLike | None
) -> GramGap:
    """The gap of any kernel, entry by entry."""
    kernels = [ask.kernel.fitted(student, "student"), ask.kernel.fitted(teacher, "teacher")]
    sides = in_memory(student, teacher, both, kernels)
    gap = described(finished(entries(sides, ask.block, ask.ranks, ask.progress), both, "blocked"), kernels)
    if labels is None:
        return gap
    known, _ = classes.check_labels(labels, gap.samples)
    order, starts = classes.sorted_by_class(known)
    squares = class_entries(sides.of(order), starts, ask.block, ask.ranks, ask.progress)
    return replace(gap, by_class=classes.class_gaps(squares, known))


def nystrom(
    student: Features, teacher: Features, both: tuple[int, int], ask: Ask, labels: npt.ArrayLike | None
) -> GramGap:
    """The gap of any kernel from landmarks, the same images on both sides."""
    kernels = [ask.kernel.fitted(student, "student"), ask.kernel.fitted(teacher, "teacher")]
    n = samples(teacher, "teacher")
    chosen = draw(n, min(ask.landmarks, n), ask.seed, 0)
    own = nystrom_map(student, kernels[0], rows_at(student, chosen, "student"))
    other = nystrom_map(teacher, kernels[1], rows_at(teacher, chosen, "teacher"))
    gap = linear({"student": own}, other, all_widths((own, other), ("student", "teacher")), ask, labels)["student"]
    known = replace(gap, algorithm="nystrom", student_width=both[0], teacher_width=both[1], seed=ask.seed)
    sure = interval(student, teacher, kernels, n, ask.seed)
    return described(replace(known, nystrom_landmarks=len(chosen), interval=sure), kernels)


def described(gap: GramGap, kernels: list[Kernel]) -> GramGap:
    """The gap with the kernels that it is of."""
    own, other = kernels
    gap = replace(gap, kernel=own.name, student_gamma=own.gamma, teacher_gamma=other.gamma)
    return replace(gap, degree=own.degree, constant=own.constant) if own.name == "polynomial" else gap


def finished(found: Squares, both: tuple[int, ...], algorithm: str) -> GramGap:
    """The gap from squared norms."""
    if not all(map(math.isfinite, (found.difference, found.teacher, found.student))):
        raise UsageError("the norms of the kernels are beyond float64; expected smaller features, gamma or degree")
    if found.teacher < VANISHED:
        raise UsageError("the teacher's kernel is zero, or vanishes beside the student's; expected features of weight")
    teacher_norm = norm(found.teacher, found.exponent)
    if not teacher_norm:
        raise UsageError("the norm of the teacher's kernel is below float64; expected larger features")
    return GramGap(
        loss=math.sqrt(found.difference / found.teacher),
        difference_norm=norm(found.difference, found.exponent),
        teacher_norm=teacher_norm,
        student_norm=norm(found.student, found.exponent),
        samples=found.samples,
        student_width=both[0],
        teacher_width=both[1],
        algorithm=algorithm,
    )
