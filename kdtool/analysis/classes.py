"""Where a kernel's knowledge is lost: the transfer loss within every class and between every two.

K_S - K_T falls into blocks (a, b) of the samples of two classes. Of a linear kernel the squared norm of a block needs
only the d x d moments of the two classes: with S_a = X_Sa' X_Sa and C_a = X_Sa' X_Ta, both over the samples of a,
||K_S - K_T||_ab^2 = <S_a, S_b> + <T_a, T_b> - 2 <C_a, C_b>. Where that difference cancels, D and P of `moments.aligned`
take the place of S and T. Moments of all classes are too large where classes and features are many, so they are made
and used in slices of columns, as many in one pass over the features as memory allows.

Left out: kernels that are not linear, whose blocks are summed entry by entry (kernels).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdtool.analysis.features import Features, Matrix, scaled, side_by_side
from kdtool.analysis.moments import CANCELLED, VANISHED, Alignment, Moments, own_part
from kdtool.engine.ranks import Ranks
from kdtool.errors import UsageError

PASS_BYTES = 2**30  # of class moments that are held at a time: 1,000 classes of 512 features take six passes
EQUAL = 1e-14  # a loss below this is rounding, and where it lies says nothing
MOST = 20_000  # classes, whose pairs are held in a matrix
LARGEST = 20  # pairs of classes that are listed

Labels = npt.NDArray[np.int64]
Turn = Callable[[Matrix, Matrix], tuple[Matrix, Matrix]]
Products = tuple[tuple[int, int], ...]  # pairs of sides whose class moments are made


@dataclass(frozen=True)
class ClassGap:
    """The loss of one class: `within` of the block of its own samples, `between` of those with all other classes.

    Both are ||K_S - K_T|| / ||K_T|| over those blocks, None where the teacher's kernel is zero there. share: of the
    squared difference that lies in the rows of this class; the shares of all classes sum to 1, or are 0 where nothing
    is lost.
    """

    label: int
    samples: int
    within: float | None
    between: float | None
    share: float


@dataclass(frozen=True)
class PairGap:
    """The loss and the share of the blocks (first, second) and (second, first) together, as in `ClassGap`."""

    first: int
    second: int
    loss: float | None
    share: float


@dataclass(frozen=True)
class ClassGaps:
    """The transfer loss by class. Classes without samples are left out of `classes` and named in `empty`.

    within_share: of the squared difference that lies within classes; teacher_within_share: of ||K_T||^2, beside it.
    largest: the pairs of classes, and classes with themselves, with the largest shares. unlabelled: samples without
    a label, which take no part. class_names: by label; empty where they are not known.
    """

    classes: tuple[ClassGap, ...]
    empty: tuple[int, ...]
    within_share: float
    teacher_within_share: float
    largest: tuple[PairGap, ...]
    unlabelled: int
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slice:
    """Class moments A_a' B_a for some pairs of sides (A, B), in these columns of B."""

    products: Products
    columns: slice


def check_labels(labels: npt.ArrayLike, count: int) -> tuple[Labels, int]:
    """The labels (n,) and the number of classes; UsageError for labels that do not fit n samples."""
    found = np.asarray(labels)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise UsageError(
            f"the labels have the shape {found.shape} and the type {found.dtype}; expected ({count},) whole numbers"
        )
    if not len(found) or found.max() < 0 or found.min() < -1:
        raise UsageError("the labels name no class; expected numbers from 0, or -1 for a sample without one")
    if found.max() >= MOST:
        raise UsageError(f"the labels reach {found.max()}; expected numbers of classes from 0, below {MOST:,}")
    return found.astype(np.int64), int(found.max()) + 1


def block_squares(
    student: Features, teacher: Features, both: tuple[int, int], labels: Labels, sums: Moments, ranks: Ranks
) -> Matrix:
    """Squared norms of the blocks of K_S - K_T, K_T and K_S, (3, classes, classes), divided by 16^(sums.exponent)."""
    classes = int(labels.max()) + 1

    def common(s: Matrix, t: Matrix) -> tuple[Matrix, Matrix]:
        return scaled(s, sums.exponent), scaled(t, sums.exponent)

    total = np.zeros((3, classes, classes))
    kinds: dict[Products, int] = {((1, 1),): 1, ((0, 0),): 2, ((0, 1),): 0}
    slices = [part for products in kinds for part in sliced(products, both, classes)]
    for part, (moments,) in class_moments(student, teacher, both, labels, common, slices, ranks):
        total[kinds[part.products]] += moments @ moments.T
    total[0] = total[1] + total[2] - 2 * total[0]
    if (total[0] < CANCELLED**2 * (total[1] + total[2])).any():
        total[0] = aligned_squares(student, teacher, both, labels, sums, ranks)
    return np.maximum(total, 0)


def aligned_squares(
    student: Features, teacher: Features, both: tuple[int, int], labels: Labels, sums: Moments, ranks: Ranks
) -> Matrix:
    """Squared norms of the blocks of K_S - K_T, (classes, classes), from the difference and sum of aligned sides.

    2 (K_N - K_W) = D P' + P D', so 4 ||.||_ab^2 = <DD_a, PP_b> + <PP_a, DD_b> + 2 <PD_a, DP_b>, where DP_b = D_b' P_b.
    """
    classes, wide = int(labels.max()) + 1, max(both)
    total = np.zeros((classes, classes))
    slices = sliced(((0, 0), (1, 1), (1, 0), (0, 1)), (wide, wide), classes)
    turn = Alignment.of(sums).apart
    for _, (dd, pp, pd, dp) in class_moments(student, teacher, both, labels, turn, slices, ranks):
        squares = dd @ pp.T
        total += squares + squares.T + 2 * (pd @ dp.T)
    return total / 4


def sliced(products: Products, both: tuple[int, int], classes: int) -> list[Slice]:
    """Slices of columns whose moments fit into PASS_BYTES."""
    height, width = max(both[left] for left, _ in products), both[products[0][1]]
    columns = max(1, PASS_BYTES // (8 * classes * height * len(products)))
    return [Slice(products, slice(start, min(start + columns, width))) for start in range(0, width, columns)]


def class_moments(
    student: Features,
    teacher: Features,
    both: tuple[int, int],
    labels: Labels,
    turn: Turn,
    slices: Sequence[Slice],
    ranks: Ranks,
) -> Iterator[tuple[Slice, list[Matrix]]]:
    """Every slice with its moments, (classes, entries) for each of its products; turn: a block before its use."""
    left = list(slices)
    while left:
        taken: list[Slice] = []
        held = 0
        while left and (not taken or held < PASS_BYTES // 2):
            taken.append(left.pop(0))
            held += 8 * (int(labels.max()) + 1) * max(both) * len(taken[-1].products) * width_of(taken[-1])
        for part, found in zip(taken, one_pass(student, teacher, both, labels, turn, taken, ranks), strict=True):
            yield part, [ranks.summed(moments).reshape(len(moments), -1) for moments in found]


def width_of(part: Slice) -> int:
    """The columns of a slice."""
    return int(part.columns.stop - part.columns.start)


def one_pass(
    student: Features,
    teacher: Features,
    both: tuple[int, int],
    labels: Labels,
    turn: Turn,
    slices: Sequence[Slice],
    ranks: Ranks,
) -> list[list[Matrix]]:
    """The moments (classes, rows, columns) of some slices over this rank's samples."""
    classes = int(labels.max()) + 1
    widths = [side.shape[1] for side in turn(*(np.empty((0, width)) for width in both))]
    found = [[np.zeros((classes, widths[a], width_of(part))) for a, _ in part.products] for part in slices]
    start = len(labels) * ranks.rank // ranks.size
    sides = own_part(student, ranks, "student"), own_part(teacher, ranks, "teacher")
    for s, t in side_by_side(sides, ("student", "teacher"), both):
        block = turn(s, t)
        for label, rows in by_class(labels[start : start + len(s)]):
            of_class = [side[rows] for side in block]
            for part, totals in zip(slices, found, strict=True):
                for (a, b), total in zip(part.products, totals, strict=True):
                    total[label] += of_class[a].T @ of_class[b][:, part.columns]
        start += len(s)
    return found


def by_class(labels: Labels) -> Iterator[tuple[int, Labels]]:
    """(class, positions) of every class that some samples have."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    for label, positions in zip(found.tolist(), np.split(order, starts)[1:], strict=True):
        if label >= 0:
            yield label, positions


def class_gaps(squares: Matrix, labels: Labels) -> ClassGaps:
    """The losses by class from the squared norms of all blocks, (at least 2, classes, classes): difference, teacher."""
    difference, teacher = squares[0], squares[1]
    counts = np.bincount(labels[labels >= 0], minlength=len(difference))
    held = np.flatnonzero(counts)
    lost, rows = float(difference.sum()), difference.sum(1)
    if lost < EQUAL**2 * float(teacher.sum()):
        lost = 0.0
    own, own_teacher = np.diag(difference), np.diag(teacher)
    found = [
        ClassGap(
            int(c),
            int(counts[c]),
            ratio(own[c], own_teacher[c]),
            ratio(rows[c] - own[c], teacher[c].sum() - own_teacher[c]),
            part_of(rows[c], lost),
        )
        for c in held
    ]
    return ClassGaps(
        tuple(found),
        tuple(int(c) for c in np.flatnonzero(counts == 0)),
        part_of(own.sum(), lost),
        part_of(own_teacher.sum(), float(teacher.sum())),
        largest_pairs(difference, teacher, lost),
        int((labels < 0).sum()),
    )


def largest_pairs(difference: Matrix, teacher: Matrix, lost: float) -> tuple[PairGap, ...]:
    """The pairs with the largest shares, largest first."""
    a, b = np.triu_indices(len(difference))
    shares = np.where(a == b, 1, 2) * difference[a, b]
    order = np.argsort(-shares, kind="stable")[:LARGEST]
    return tuple(
        PairGap(int(a[k]), int(b[k]), ratio(difference[a[k], b[k]], teacher[a[k], b[k]]), part_of(shares[k], lost))
        for k in order
        if lost and shares[k] > 0
    )


def ratio(difference: float, teacher: float) -> float | None:
    """The loss of a block from its squared norms; None where the teacher's kernel is zero in it."""
    return math.sqrt(max(0.0, float(difference)) / float(teacher)) if teacher > VANISHED else None


def part_of(part: float, whole: float) -> float:
    """A share of the squared difference; 0 where there is none."""
    return float(part) / whole if whole > 0 else 0.0


def sorted_by_class(labels: Labels) -> tuple[Labels, Labels]:
    """Positions of the labelled samples, class by class, and where every class begins among them, with the end."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    counts = np.bincount(labels[order])
    return order, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
