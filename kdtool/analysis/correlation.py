"""How the logits of classes go together in a teacher and in a student, in both forms of ICD's figure 1.

The figure (Invariant Consistency Distillation, arXiv 2407.11802) shows by how much the class correlations of a student
differ from its teacher's. The code behind it was published twice, with different mathematics:

    standardised   July 2024: correlations of the logits of every two classes over the images
    class means    2025: the mean logits of the images of every class

Left out: the drawing, and one number for the similarity of features (similarity).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdtool.analysis.centred import centres, is_varied, moments, pairs, pearson, unit_rows
from kdtool.analysis.features import Features, Matrix, samples, span
from kdtool.analysis.predictions import class_labels, labelled_blocks, same_classes
from kdtool.data.dataset import NO_LABEL
from kdtool.engine.ranks import Alone
from kdtool.errors import UsageError

PUBLISHED_IMAGES = 256  # first test images of the figure of July 2024
STANDARDISED_LIMITS = (-0.3, 0.3)  # of its colours
CLASS_MEANS_LIMITS = (0.0, 3.0)  # of the colours of 2025

Rows = list[list[float | None]]


@dataclass(frozen=True)
class ClassCorrelation:
    """Two class matrices (L, L) and their difference, as lists of rows, and what the difference comes to.

    form: "standardised" or "class means", which say what student, teacher and difference hold. limits: of the colours
    in the published figure. samples: that were used; left_out: further samples, whose logits are all equal on one side
    (class means). empty: classes without samples, whose rows are None and take no part in the numbers below.

    difference_norm: Frobenius norm of the difference. mean_difference and largest_difference: of the magnitudes beside
    the diagonal. correlation: of the student's with the teacher's entries beside the diagonal, None where one side's
    are all equal.
    """

    form: str
    student: Rows
    teacher: Rows
    difference: Rows
    limits: tuple[float, float]
    classes: int
    samples: int
    left_out: int
    empty: tuple[int, ...]
    difference_norm: float
    mean_difference: float
    largest_difference: float
    correlation: float | None


def standardised(student: Features, teacher: Features, *, images: int | None = None) -> ClassCorrelation:
    """The form of July 2024: R = Z'Z / B of logits Z (B, L) with mean 0 and unbiased standard deviation 1 by class.

    difference = R_T - R_S. Because the deviation divides by B - 1 and R by B, R is (B-1)/B times the matrix of Pearson
    correlations: its diagonal is (B-1)/B, not 1. images: so many first samples are used (256 in the figure), or all.

    Each side's logits (n, L) are read like the features of `gram.gram_gap`. Raises UsageError where that does, for
    different numbers of classes or fewer than 2, fewer images than asked for or than 2, and a class whose logit is the
    same for all images, because its correlations do not exist.
    """
    classes = several_classes(student, teacher)
    if images is not None:
        student, teacher = first(student, "student", images), first(teacher, "teacher", images)
    both = (classes, classes)
    read = pairs(student, teacher, both, Alone())
    found = centres(read, both, Alone())
    if found.samples < 2:
        raise UsageError(f"there is {found.samples} image; expected at least 2, for a standard deviation")
    sums = moments(read, found, Alone())
    shrunk = (found.samples - 1) / found.samples
    r_student = shrunk * correlations(sums.student, "student", found.samples)
    r_teacher = shrunk * correlations(sums.teacher, "teacher", found.samples)
    return compared("standardised", r_student, r_teacher, r_teacher - r_student, STANDARDISED_LIMITS, found.samples)


def class_means(student: Features, teacher: Features, labels: npt.ArrayLike) -> ClassCorrelation:
    """The form of 2025: M (L, L), in row c the mean over the images of class c of their standardised logits.

    Logits are standardised by image: mean 0 and, as in the other form, unbiased standard deviation 1 over its L
    classes. difference = |M_S - M_T|, with 0 on the diagonal. labels (n,): -1 for images that take no part.

    Inputs and errors as for `standardised`, and UsageError for labels that do not fit and for none at all. Images whose
    logits are all equal cannot be standardised: they are left out on both sides and counted.
    """
    classes = several_classes(student, teacher)
    checked = class_labels(labels, classes)
    sums, counts, left_out = np.zeros((2, classes, classes)), np.zeros(classes, dtype=np.int64), 0
    for s, t, known in labelled_blocks(student, teacher, classes, checked):
        varied, labelled = is_varied(s) & is_varied(t), known != NO_LABEL
        kept = varied & labelled
        left_out += int((labelled & ~varied).sum())
        members = (known[kept] == np.arange(classes)[:, None]).astype(np.float64)
        counts += np.bincount(known[kept], minlength=classes)
        for total, rows in zip(sums, (s, t), strict=True):
            total += members @ unit_rows(rows[kept])
    if not counts.any():
        raise UsageError(
            f"no image has a label and logits that differ ({left_out} have a label); expected at least one"
        )
    held = counts > 0
    sums[:, held] *= math.sqrt(classes - 1) / counts[held, None]
    sums[:, ~held] = np.nan
    difference = np.abs(sums[0] - sums[1])
    np.fill_diagonal(difference, np.where(held, 0, np.nan))
    return compared("class means", sums[0], sums[1], difference, CLASS_MEANS_LIMITS, int(counts.sum()), left_out)


def several_classes(student: Features, teacher: Features) -> int:
    """The number of classes of both sides, at least 2."""
    classes = same_classes(student, teacher)
    if classes < 2:
        raise UsageError("the logits have 1 class; expected at least 2, for correlations between classes")
    return classes


def first(features: Features, side: str, images: int) -> Features:
    """The first images of a side."""
    n = samples(features, side)
    if not 2 <= images <= n:
        raise UsageError(f"{images} images were asked for and the {side} has logits of {n}; expected from 2 to {n}")
    return span(features, 0, images)


def correlations(moment: Matrix, side: str, images: int) -> Matrix:
    """Pearson correlations (L, L) from centred moments."""
    deviations = np.sqrt(np.diag(moment))
    constant = np.flatnonzero(deviations == 0)
    if len(constant):
        raise UsageError(
            f"the {side}'s logit of class {constant[0]} is the same for all {images} images, so that its correlations "
            "do not exist; expected logits that vary, or more images"
        )
    found: Matrix = moment / deviations[:, None] / deviations
    np.fill_diagonal(found, 1)
    return found


def compared(
    form: str,
    student: Matrix,
    teacher: Matrix,
    difference: Matrix,
    limits: tuple[float, float],
    used: int,
    left_out: int = 0,
) -> ClassCorrelation:
    """The result with its summaries; rows of NaN are those of classes without samples."""
    beside = ~np.eye(len(student), dtype=bool) & np.isfinite(student)
    magnitudes = np.abs(difference[beside])
    return ClassCorrelation(
        form=form,
        student=plain(student),
        teacher=plain(teacher),
        difference=plain(difference),
        limits=limits,
        classes=len(student),
        samples=used,
        left_out=left_out,
        empty=tuple(int(c) for c in np.flatnonzero(np.isnan(student[:, 0]))),
        difference_norm=float(np.linalg.norm(difference[np.isfinite(difference)])),
        mean_difference=float(magnitudes.mean()),
        largest_difference=float(magnitudes.max()),
        correlation=pearson(student[beside], teacher[beside]),
    )


def plain(matrix: Matrix) -> Rows:
    """A matrix as lists of rows, None for what does not exist."""
    return [[None if math.isnan(value) else value for value in row] for row in matrix.tolist()]
