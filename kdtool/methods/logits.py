"""Regression of the teacher's logits (Ba & Caruana 2014, "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184).

The student learns the teacher's values before the softmax (Eq. 1). It is also what two other methods come to at their
ends: KD for a high temperature, for logits whose mean is 0 (Hinton et al. 2015, section 2.1), and the transfer of the
kernel matrix with one-hot landmarks, ||Z_S I - Z_T I||_F^2 (Qian et al. 2022, arXiv 2009.14416).

Left out: the paper's normalisation of the logits over the training images, and its bottleneck layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import Method, need
from kdtool.methods.vectors import VALUES, vector
from kdtool.targets import Batch, Cached, Facts, Shapes, Stage, Target, Weight

if TYPE_CHECKING:
    from kdtool.targets import Taps


@at_least_float32
def logit_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """(1 / 2B) sum_i ||z_S - z_T||^2 (Eq. 1).

    student_logits, teacher_logits: (B, L). No gradient reaches the teacher's logits. 0 where they are equal.
    """
    need(
        student_logits.shape == teacher_logits.shape,
        f"logits of one size are compared, not {tuple(student_logits.shape)} of the student with "
        f"{tuple(teacher_logits.shape)} of the teacher",
    )
    difference = student_logits - teacher_logits.detach()
    return 0.5 * difference.square().sum(1).mean()


@dataclass(frozen=True)
class Logits(Method):
    """Plain logits beside the cross-entropy, as the other methods; task=0 is the paper's form, the regression alone.

    weight: of the loss over the number of classes, where it is KD's limit; without that a step of the usual learning
    rates is too long for 100 classes.
    """

    name: ClassVar[str] = "logits"
    paper: ClassVar[str] = "Ba & Caruana 2014, arXiv 1312.6184"

    weight: float = 1.0
    task: float = 1.0

    def __post_init__(self) -> None:
        need(self.task >= 0, f"option logits.task is not negative, as {self.task}")

    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        """Logits."""
        return ("after_fc",)

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """Logits."""
        return (vector("after_fc"),)

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """One."""
        return (Stage(weights={"logits": Weight(self.weight / facts.classes)}, task=self.task),)

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`logits`."""
        return {"logits": logit_loss(student["after_fc"], cached["logits"][VALUES])}
