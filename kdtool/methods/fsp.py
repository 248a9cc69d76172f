"""FSP: the flow between two layers, as a matrix of channels by channels (Yim et al. 2017, "A Gift from Knowledge
Distillation", CVPR).

Before its training the student learns the teacher's matrices of every two consecutive maps (Eq. 1 and 2). As
RepDistiller runs it: a stage "init" on this loss alone, then "distill" on labels alone; the weight acts in the first
only. The larger map of two neighbours is averaged down to the smaller size; the squares of a matrix are averaged, where
Eq. 2 sums them; all pairs weigh the same.

The teacher's matrices do not depend on the student and are stored in place of its maps. Left out: networks of unequal
widths, whose matrices cannot be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.initialisation import LEARNING_RATE, check_init, init_stage
from kdtool.methods.maps import MapMethod, MapPair, Paired, every_stage, same_size
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.vectors import VALUES
from kdtool.targets import Batch, Cached, Facts, Shape, Shapes, Stage, Target

if TYPE_CHECKING:
    from kdtool.targets import Fitted, Taps


def fsp_matrix(bottom: Tensor, top: Tensor) -> Tensor:
    """G = (1 / (H W)) sum_p top(p) bottom(p)^T over the positions of the smaller map (Eq. 1, transposed).

    bottom (B, C, H, W), top (B, D, H', W') -> (B, D, C).
    """
    below, above = same_size(bottom, top)
    return torch.einsum("bdhw,bchw->bdc", above, below) / (above.shape[2] * above.shape[3])


@at_least_float32
def fsp_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """The sum over consecutive maps of the mean over batch and matrix of (G_S - G_T)^2 (Eq. 2; mean: RepDistiller).

    student_maps, teacher_maps: lists, from the lowest map to the highest, of (B, C_i, H, W) with the same channels in
    both; sizes may differ. No gradient reaches the teacher's.
    """
    _check_widths([tuple(ours.shape[1:]) for ours in student_maps], [tuple(t.shape[1:]) for t in teacher_maps])
    losses = [
        functional.mse_loss(fsp_matrix(*ours), fsp_matrix(*theirs).detach())
        for ours, theirs in zip(pairwise(student_maps), pairwise(teacher_maps), strict=True)
    ]
    return torch.stack(losses).sum()


def _check_widths(student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
    """Refuses lists of unequal channels, or of fewer than two maps."""
    ours, theirs = [shape[0] for shape in student], [shape[0] for shape in teacher]
    need(
        ours == theirs,
        f"method fsp compares matrices of channels, so both networks must have the same, and the student's maps have "
        f"{_listed(ours)}, the teacher's {_listed(theirs)}; take networks of equal widths, or name layers of equal "
        "widths with --layer",
    )
    need(len(ours) >= 2, f"method fsp works on two maps or more, not on {len(ours)}; name more with --layer")


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths)) or "none"


@dataclass(frozen=True)
class Flow:
    """The matrix of two maps, of the taps lower and upper: `values` (B, C_upper, C_lower)."""

    lower: str
    upper: str

    def __call__(self, taps: Taps, fitted: Fitted) -> dict[str, torch.Tensor]:
        """The stored array."""
        return {VALUES: fsp_matrix(taps[self.lower], taps[self.upper])}


def flow(lower: str, upper: str) -> Target:
    """The target of two taps: key `fsp.stem.stage1`."""
    return Target(f"fsp.{lower}.{upper}", (lower, upper), Flow(lower, upper))


def stem_and_stages(student: Shapes, teacher: Shapes) -> list[tuple[str, str]]:
    """All stages one by one (f_1 to f_(K-1) of RepDistiller), after the stem (f_0) where both networks name it."""
    stem = [("stem", "stem")] if "stem" in student and "stem" in teacher else []
    return [*stem, *every_stage(student, teacher)]


@dataclass(frozen=True)
class FSP(MapMethod):
    """Flow of the solution procedure.

    weight: of the loss in the stage "init". layers: taps from the lowest to the highest, of both networks or
    STUDENT:TEACHER, of which neighbours make a matrix; none for stem and all stages. init_epochs (none: 30 of 240) and
    init_learning_rate belong to "init".
    """

    name: ClassVar[str] = "fsp"
    paper: ClassVar[str] = "Yim et al. 2017, CVPR"

    init_epochs: int | None = None
    init_learning_rate: float = LEARNING_RATE

    def __post_init__(self) -> None:
        check_init(self.name, self.init_epochs, self.init_learning_rate)

    def default(self, student: Shapes, teacher: Shapes) -> Sequence[tuple[str, str]]:
        """The stem and all stages."""
        return stem_and_stages(student, teacher)

    def pairs(self, student: Shapes, teacher: Shapes) -> tuple[MapPair, ...]:
        """The consecutive maps, of equal widths."""
        pairs = super().pairs(student, teacher)
        _check_widths([pair.student_shape for pair in pairs], [pair.teacher_shape for pair in pairs])
        return pairs

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """The matrices of neighbours."""
        pairs = pairwise(self.pairs(student, teacher))
        return tuple(dict.fromkeys(flow(lower.teacher, upper.teacher) for lower, upper in pairs))

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """The matrices, then a training without them."""
        taps = self.student_taps(student, teacher)
        init = init_stage("init", "fsp", self.weight, taps, facts, self.init_epochs, self.init_learning_rate)
        return init, Stage(weights={})

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`fsp`."""
        losses = [
            functional.mse_loss(
                fsp_matrix(student[lower.student], student[upper.student]),
                cached[flow(lower.teacher, upper.teacher).key][VALUES],
            )
            for lower, upper in pairwise(cast(Paired, adapters).pairs)
        ]
        return {"fsp": torch.stack(losses).sum()}
