"""Sets of landmarks that exist on both sides, number by number: class centres, random images, k-means (KDA, figure 2).

    class    means over the samples of a class (KDA, Eq. 3)
    random   single images
    kmeans   means over clusters of the TEACHER's features, of all samples or within every class (figure 7). The paper
             does not say which side is clustered; both sides are averaged over the one assignment, so that the
             landmarks correspond

Every function reads the features in blocks; memory beside them is (n,) integers and (m, d) landmarks. Left out: the
approximation by landmarks, which is in `kdtool.analysis.projector`.
"""

from dataclasses import dataclass

import numpy as np

from kdtool import philox
from kdtool.analysis.clusters import Integers, add_rows, cluster, gathered, nearest
from kdtool.analysis.features import Features, Matrix, blocks, refuse_lengths, samples, widths
from kdtool.errors import UsageError

MOST = 1_000_000  # classes: each has a bin on both sides


@dataclass(frozen=True, eq=False)
class LandmarkSet:
    """Landmarks of both sides in correspondence. name: "class", "random" or "kmeans".

    student (m, d_S), teacher (m, d_T): float64. assignment (n,): the landmark of every sample, -1 for none. counts
    (m,): samples assigned to each. averaging: the spectral norm of the A (n, m) in D = A'X, 1/sqrt(smallest count) for
    means and 1 for single images. notes: sentences on what differs from what was asked for, such as classes left out.
    """

    name: str
    student: Matrix
    teacher: Matrix
    assignment: Integers
    counts: Integers
    averaging: float
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.counts)


def class_centres(student: Features, teacher: Features, labels: Integers, *, classes: int | None = None) -> LandmarkSet:
    """The means of every class; a class without samples has none, and a sample without a label (-1) belongs to none.

    labels (n,) integers below `classes` (default: the largest label + 1). Raises UsageError for other labels, for
    labels of another length, and where no sample has a label.
    """
    labels = checked(labels, classes)
    number = classes or int(labels.max()) + 1
    counts = np.bincount(labels[labels >= 0], minlength=number)
    empty = np.flatnonzero(counts == 0).tolist()
    notes = (f"no landmark for {named('class', 'classes', empty)}: no samples",) if empty else ()
    return averaged("class", student, teacher, labels, counts, notes)


def random_images(student: Features, teacher: Features, count: int, *, seed: int = 0, draw: int = 0) -> LandmarkSet:
    """`count` single images, drawn without replacement; other samples belong to the nearest one in the teacher's space.

    Draw 0 gives the images that the method kda takes for landmarks=random and the same seed; draws of one number are
    nested, so that the first images of a larger count are those of a smaller one. Raises UsageError for a count that is
    not between 1 and n.
    """
    both = widths(student, teacher)
    n = length(student, teacher)
    picked = draw_images(n, count, seed, draw)
    ours, theirs = gathered(student, picked, "student"), gathered(teacher, picked, "teacher")
    assignment, start = np.empty(n, dtype=np.int64), 0
    for _, block in blocks(student, teacher, both):
        assignment[start : start + len(block)] = nearest(block, theirs)
        start += len(block)
    assignment[picked] = np.arange(count)
    return LandmarkSet("random", ours, theirs, assignment, np.bincount(assignment, minlength=count), 1.0)


def draw_images(n: int, count: int, seed: int, draw: int) -> Integers:
    """The samples (count,) of a draw."""
    if not 1 <= count <= n:
        raise UsageError(f"{count} random landmarks of {n} samples; expected between 1 and {n}")
    return philox.permutation(seed, philox.LANDMARKS, draw, n)[:count]


def k_means(
    student: Features,
    teacher: Features,
    count: int,
    *,
    seed: int = 0,
    rounds: int = 100,
    labels: Integers | None = None,
    classes: int | None = None,
) -> LandmarkSet:
    """Means over `count` clusters of the teacher's features; with labels, over `count` clusters within every class.

    Fewer distinct samples than clusters give fewer landmarks, and a note. One reading of the teacher's features a
    round, `rounds` at most. Raises UsageError for a count below 1 or above n, and as `class_centres`.
    """
    d = widths(student, teacher)[1]
    n = length(student, teacher)
    if count < 1 or rounds < 1 or (labels is None and count > n):
        raise UsageError(f"{count} clusters of {n} samples in {rounds} rounds; expected 1 to {n}, and a round or more")
    if labels is not None and len(labels) != n:
        raise other_length(len(labels), n)
    groups = np.zeros(n, dtype=np.int64) if labels is None else checked(labels, classes)
    assignment = cluster(teacher, d, groups, count, seed, rounds)
    counts = np.bincount(assignment[assignment >= 0])
    found, expected = np.count_nonzero(counts), count * len(np.unique(groups[groups >= 0]))
    notes = () if found == expected else (f"{found} landmarks and not {expected}: too few distinct samples",)
    return averaged("kmeans", student, teacher, assignment, counts, notes)


def for_student(known: LandmarkSet, student: Features, teacher: Features) -> LandmarkSet:
    """The clusters of a teacher that were found beside another student, for this one."""
    return averaged(known.name, student, teacher, known.assignment, known.counts, known.notes)


def averaged(
    name: str, student: Features, teacher: Features, bins: Integers, counts: Integers, notes: tuple[str, ...]
) -> LandmarkSet:
    """The means of both sides over the bins that are not empty, which are numbered anew."""
    both = widths(student, teacher)
    origins, sums = ([np.zeros((len(counts), d)) for d in both] for _ in range(2))
    begun = np.zeros(len(counts), dtype=bool)
    start = 0
    for pair in blocks(student, teacher, both):
        own = bins[start : start + len(pair[0])]
        if len(own) < len(pair[0]):
            raise other_length(len(bins), samples(teacher, "teacher"))
        rows = np.flatnonzero(own >= 0)
        fresh, at = np.unique(own[rows], return_index=True)
        fresh, at = fresh[~begun[fresh]], rows[at][~begun[fresh]]
        begun[fresh] = True
        for block, origin, total in zip(pair, origins, sums, strict=True):
            origin[fresh] = block[at]  # so that the mean of equal samples is that sample, to the last bit
            add_rows(total, block[rows] - origin[own[rows]], own[rows])
        start += len(own)
    if start != len(bins):
        raise other_length(len(bins), start)
    filled = counts > 0
    ours, theirs = (o[filled] + t[filled] / counts[filled, None] for o, t in zip(origins, sums, strict=True))
    numbers = np.append(np.cumsum(filled) - 1, -1)  # the last one is what -1 stands for
    kept = counts[filled]
    return LandmarkSet(name, ours, theirs, numbers[bins], kept, float(1 / np.sqrt(kept.min())), notes)


def length(student: Features, teacher: Features) -> int:
    """n of both sides, refused where they differ."""
    n = samples(teacher, "teacher")
    if samples(student, "student") != n:
        refuse_lengths((student, teacher), ("student", "teacher"))
    return n


def checked(labels: Integers, classes: int | None) -> Integers:
    """Labels as int64, refused where they are not what `class_centres` says."""
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UsageError(f"labels of type {found.dtype} and shape {found.shape}; expected integers (n,)")
    if not (found >= 0).any():
        raise UsageError("no sample has a label; expected labels from 0 on (-1: none)")
    low, high = int(found.min()), int(found.max())
    if high >= MOST:
        raise UsageError(f"labels reach {high}; expected numbers of classes from 0, below {MOST:,}")
    if low < -1 or (classes is not None and high >= classes):
        raise UsageError(f"labels from {low} to {high}; expected -1 to {'any' if classes is None else classes - 1}")
    return found.astype(np.int64, copy=False)


def refuse_other_widths(landmarks: LandmarkSet, both: tuple[int, int]) -> None:
    """Refuses landmarks that are not of features of the widths (d_S, d_T)."""
    found = landmarks.student.shape[1], landmarks.teacher.shape[1]
    if found != both:
        raise UsageError(f"landmarks of widths {found} for features of widths {both}; expected the same")


def other_length(labels: int, n: int) -> UsageError:
    """The error for labels or assignments of other samples."""
    return UsageError(f"labels of {labels} samples for features of {n}; expected one for every sample")


def named(one: str, many: str, numbers: list[int]) -> str:
    """Numbers in words, the first ten of them."""
    shown = ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
    return f"{one if len(numbers) == 1 else many} {shown}"
