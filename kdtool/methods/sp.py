"""SP: samples that are alike to the teacher are alike to the student (Tung & Mori 2019, arXiv 1907.09682).

The inner products of all samples of a batch, row by row over their norms, on the last map of each network (Eq. 1 to 3),
with the weight 3000 as in RepDistiller and without a departure from it. `layers` names other pairs, whose losses are
summed as in Eq. 3.

Of the teacher the whole map is stored: inner products with samples that are not known beforehand need all of it. Left
out: B numbers a sample for batches that are fixed in advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.nn import functional

from kdtool.methods.maps import MapPair, Paired, PairwiseMethod, last_stage, whole_map
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.vectors import VALUES
from kdtool.targets import Shapes, Target

if TYPE_CHECKING:
    from kdtool.targets import Arrays


@at_least_float32
def sp_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """||G_T - G_S||_F^2 / B^2, G = F F^T (B, B) with rows over their norms, F (B, C H W) (Eq. 1 to 3).

    student_map and teacher_map: (B, C, H, W), each side of any channels and size; nothing is averaged. No gradient
    reaches the teacher's map.
    """
    need(
        len(student_map) == len(teacher_map),
        f"SP compares maps of the same samples, not {len(student_map)} of the student with {len(teacher_map)}",
    )
    difference = similarities(teacher_map.detach()) - similarities(student_map)
    return difference.square().sum() / len(student_map) ** 2


def similarities(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, B): inner products of the samples, each row over its norm; rows of zero maps are 0."""
    rows = feature_map.flatten(1)
    return functional.normalize(rows @ rows.T)


@dataclass(frozen=True)
class SP(PairwiseMethod):
    """Similarity preservation.

    layers: pairs of taps, STUDENT:TEACHER, whose losses are summed; none for the last stages.
    """

    name: ClassVar[str] = "sp"
    paper: ClassVar[str] = "Tung & Mori 2019, arXiv 1907.09682"

    weight: float = 3000.0

    def default(self, student: Shapes, teacher: Shapes) -> Sequence[tuple[str, str]]:
        """The last stages."""
        return last_stage(student, teacher)

    def target(self, pair: MapPair) -> Target:
        """The map, whole."""
        return whole_map(pair.teacher)

    def loss(self, student_map: Tensor, stored: Arrays, pair: MapPair, adapters: Paired) -> Tensor:
        """`sp_loss`."""
        return sp_loss(student_map, stored[VALUES])
