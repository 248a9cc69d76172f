"""AT: the student attends to the places that the teacher attends to (Zagoruyko & Komodakis 2017, arXiv 1612.03928).

Where a map is large, whatever its channels mean: the mean square over the channels, over its norm (section 3.1, the sum
of squares). As RepDistiller has it:

* stage by stage, the larger map averaged down to the smaller size before it is squared. Averaging the squares would
  give other values.
* the mean of the squared differences, summed over the stages and times 1000. Eq. 2 of the paper has a norm of the
  difference and half of beta before it.

Of the teacher its attention is stored, H W numbers a stage, at the student's size where that is smaller. Left out:
other powers, the maximum over the channels, and section 3.2, attention by gradients, for which the teacher would have
to run backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from kdtool.methods.maps import MapPair, Paired, PairwiseMethod, Size, every_stage, pooled_to, same_size, size_suffix
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.vectors import VALUES
from kdtool.targets import Shapes, Target

if TYPE_CHECKING:
    from kdtool.targets import Arrays, Fitted, Taps


@at_least_float32
def attention_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The mean over B HW of (a_S - a_T)^2, a = `attention` of a map (Eq. 2 with p = 2; the mean: RepDistiller).

    student_map (B, C_S, h, w), teacher_map (B, C_T, H, W): the larger one is averaged down to the size of the smaller
    one first. No gradient reaches the teacher's.
    """
    need(
        len(student_map) == len(teacher_map),
        f"AT compares maps of the same samples, not {len(student_map)} of the student with {len(teacher_map)}",
    )
    student, teacher = same_size(student_map, teacher_map.detach())
    return functional.mse_loss(attention(student), attention(teacher))


def attention(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W): the mean square over the channels, over its norm; 0 for a map of zeros."""
    return functional.normalize(feature_map.square().mean(1).flatten(1))


@dataclass(frozen=True)
class Attention:
    """The attention of a tap, averaged down to (H, W) before it is squared where a size is given; `values` (B, H W)."""

    tap: str
    size: Size | None = None

    def __call__(self, taps: Taps, fitted: Fitted) -> dict[str, torch.Tensor]:
        """The stored array."""
        return {VALUES: attention(pooled_to(taps[self.tap], self.size))}


@dataclass(frozen=True)
class AT(PairwiseMethod):
    """Attention transfer.

    layers: pairs of taps, STUDENT:TEACHER, whose losses are summed; none for all stages.
    """

    name: ClassVar[str] = "at"
    paper: ClassVar[str] = "Zagoruyko & Komodakis 2017, arXiv 1612.03928"

    weight: float = 1000.0

    def default(self, student: Shapes, teacher: Shapes) -> Sequence[tuple[str, str]]:
        """All stages."""
        return every_stage(student, teacher)

    def target(self, pair: MapPair) -> Target:
        """Key `stageN.attention`, or `stageN.attention.8x8` where the teacher's map is the larger one."""
        size = pair.teacher_size
        return Target(f"{pair.teacher}.attention{size_suffix(size)}", (pair.teacher,), Attention(pair.teacher, size))

    def loss(self, student_map: Tensor, stored: Arrays, pair: MapPair, adapters: Paired) -> Tensor:
        """`attention_loss`, the teacher's attention being there."""
        return functional.mse_loss(attention(pooled_to(student_map, pair.size)), stored[VALUES])
