"""SP: samples that are alike to the teacher are alike to the student (Tung & Mori 2019, arXiv 1907.09682).

The inner products of all samples of a batch, row by row over their norms, on the last map of each network (Eq. 1 to 3),
with the weight 3000 as in RepDistiller and without a departure from it. `layers` names other pairs, whose losses are
summed as in Eq. 3.

Of the teacher the whole map is stored: inner products with samples that are not known beforehand need all of it. Left
out: B numbers a sample for batches that are fixed in advance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.maps import MapPair, Paired, last_stage, map_pairs, whole_map
from kdtool.methods.protocol import FittedResults, Method, need
from kdtool.methods.vectors import VALUES
from kdtool.targets import Batch, Cached, Facts, Shapes, Stage, Target, Weight

if TYPE_CHECKING:
    from kdtool.targets import Taps


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
class SP(Method):
    """Similarity preservation.

    layers: pairs of taps, STUDENT:TEACHER, whose losses are summed; none for the last stages.
    """

    name: ClassVar[str] = "sp"
    paper: ClassVar[str] = "Tung & Mori 2019, arXiv 1907.09682"

    weight: float = 3000.0
    layers: tuple[str, ...] = ()

    def _pairs(self, student: Shapes, teacher: Shapes) -> tuple[MapPair, ...]:
        return map_pairs(self.name, self.layers, student, teacher, last_stage)

    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        """The maps of the pairs."""
        return tuple(dict.fromkeys(pair.student for pair in self._pairs(student, teacher)))

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """The maps, whole."""
        taps = dict.fromkeys(pair.teacher for pair in self._pairs(student, teacher))
        return tuple(whole_map(tap) for tap in taps)

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        """The pairs; nothing is learned."""
        return Paired(self._pairs(student, teacher))

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """One."""
        return (Stage(weights={"sp": Weight(self.weight)}),)

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`sp`."""
        losses = [
            sp_loss(student[pair.student], cached[whole_map(pair.teacher).key][VALUES])
            for pair in cast(Paired, adapters).pairs
        ]
        return {"sp": torch.stack(losses).sum()}
