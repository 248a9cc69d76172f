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

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.maps import MapPair, Paired, Size, every_stage, map_pairs, pooled_to, same_size, size_suffix
from kdtool.methods.protocol import FittedResults, Method, need
from kdtool.methods.vectors import VALUES
from kdtool.targets import Batch, Cached, Facts, Shapes, Stage, Target, Weight

if TYPE_CHECKING:
    from kdtool.targets import Fitted, Taps


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


def attention_target(pair: MapPair) -> Target:
    """Key `stageN.attention`, or `stageN.attention.8x8` where the teacher's map is the larger one."""
    size = pair.teacher_size
    return Target(f"{pair.teacher}.attention{size_suffix(size)}", (pair.teacher,), Attention(pair.teacher, size))


@dataclass(frozen=True)
class AT(Method):
    """Attention transfer.

    layers: pairs of taps, STUDENT:TEACHER, whose losses are summed; none for all stages.
    """

    name: ClassVar[str] = "at"
    paper: ClassVar[str] = "Zagoruyko & Komodakis 2017, arXiv 1612.03928"

    weight: float = 1000.0
    layers: tuple[str, ...] = ()

    def _pairs(self, student: Shapes, teacher: Shapes) -> tuple[MapPair, ...]:
        return map_pairs(self.name, self.layers, student, teacher, every_stage)

    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        """The maps of the pairs."""
        return tuple(dict.fromkeys(pair.student for pair in self._pairs(student, teacher)))

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """The attention of the teacher's maps."""
        return tuple(dict.fromkeys(attention_target(pair) for pair in self._pairs(student, teacher)))

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        """The pairs; nothing is learned."""
        return Paired(self._pairs(student, teacher))

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """One."""
        return (Stage(weights={"at": Weight(self.weight)}),)

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`at`."""
        losses = []
        for pair in cast(Paired, adapters).pairs:
            ours = attention(pooled_to(student[pair.student], pair.size))
            losses.append(functional.mse_loss(ours, cached[attention_target(pair).key][VALUES]))
        return {"at": torch.stack(losses).sum()}
