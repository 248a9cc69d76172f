"""How alike the representations of a student and a teacher are: linear centred kernel alignment, CKA.

Exact in O(n d^2) without an n x n matrix. Like the kernel transfer loss (gram) it is blind to rotations of the
features; unlike that also to their mean and their scale.

Left out: kernels that are not linear, correlations of dissimilarities (rsa), agreement of predictions (predictions).
"""

from dataclasses import dataclass

import numpy as np

from kdtool.analysis.centred import SIDES, CentredMoments, centres, moments, pairs, ratio
from kdtool.analysis.features import Features, Matrix, widths
from kdtool.engine.ranks import Alone, Ranks
from kdtool.errors import UsageError

VANISHED = 1e-12  # of the biased HSIC: an unbiased one below this is rounding error


@dataclass(frozen=True)
class LinearCKA:
    """Linear CKA of n samples, 0 to 1; `debiased` may be below 0, and is None below 4 samples or where undefined."""

    cka: float
    debiased: float | None
    samples: int
    student_width: int
    teacher_width: int


def linear_cka(student: Features, teacher: Features, *, ranks: Ranks | None = None) -> LinearCKA:
    """Linear centred kernel alignment (Kornblith et al. 2019, equation 4), exact over all samples from two passes.

    With S (n, d_S) and T (n, d_T) centred by feature, CKA = ||S'T||_F^2 / (||S'S||_F ||T'T||_F). The debiased version
    puts the unbiased HSIC (Song et al. 2012, equation 5) in the place of all three norms. That estimator does not see
    means, and of centred features, whose kernels have rows that sum to 0, it needs only the diagonals k_i = |s_i|^2 and
    l_i = |t_i|^2 beside the moments:

        n (n-3) HSIC = ||S'T||_F^2 - n/(n-2) sum_i k_i l_i + sum_i k_i sum_i l_i / ((n-1)(n-2))

    Inputs as for `gram.gram_gap`. Raises UsageError where it does, and for features that are the same in all samples.
    """
    ranks = ranks or Alone()
    both = widths(student, teacher)
    read = pairs(student, teacher, both, ranks)
    found = centres(read, both, ranks)
    sums = moments(read, found, ranks)
    own, other, cross = (float(np.vdot(m, m)) for m in (sums.student, sums.teacher, sums.cross))
    for square, side in zip((own, other), SIDES, strict=True):
        if square == 0:
            raise UsageError(
                f"the {side}'s features are the same in all samples, of which there are {found.samples}; "
                "expected features that vary, for CKA is not defined without"
            )
    return LinearCKA(ratio((own, other), cross), debiased(sums, found.samples), found.samples, *both)


def debiased(sums: CentredMoments, n: int) -> float | None:
    """The debiased CKA; formula in `linear_cka`."""
    if n < 4:
        return None

    def hsic(moment: Matrix, x: int, y: int) -> float:
        """n (n-3) times the unbiased HSIC, 0 for rounding error; x, y: 0 for the student and 1 for the teacher."""
        square = float(np.vdot(moment, moment))
        rest = float(sums.totals[x] * sums.totals[y]) / ((n - 1) * (n - 2)) - n / (n - 2) * float(sums.products[x, y])
        return square + rest if abs(square + rest) > VANISHED * square else 0.0

    own, other = hsic(sums.student, 0, 0), hsic(sums.teacher, 1, 1)
    return ratio((own, other), hsic(sums.cross, 0, 1)) if min(own, other) > 0 else None
