"""Knowledge distillation of softened logits (Hinton, Vinyals & Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import Method, need
from kdtool.methods.vectors import VALUES, vector
from kdtool.targets import Batch, Cached, Facts, Shapes, Stage, Target, Weight

if TYPE_CHECKING:
    from kdtool.targets import Taps


@at_least_float32
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """(T^2 / B) sum_i KL(softmax(z_T / T) || softmax(z_S / T)), in nats.

    student_logits, teacher_logits: (B, L). The factor T^2 keeps the gradient's size as T grows (section 2.1 of the
    paper); sum over classes and mean over the batch, as in RepDistiller. No gradient reaches the teacher's logits.
    """
    student = functional.log_softmax(student_logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


@dataclass(frozen=True)
class KD(Method):
    """Softened logits. Alone: 0.1 cross-entropy + 0.9 KD at T = 4 (RepDistiller); combined by `--with kd`: weight 1.

    task: weight of the cross-entropy.
    """

    name: ClassVar[str] = "kd"
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"
    added: ClassVar[dict[str, str] | None] = {"weight": "1"}
    combines: ClassVar[bool] = False

    temperature: float = 4.0
    weight: float = 0.9
    task: float = 0.1

    def __post_init__(self) -> None:
        need(self.temperature > 0, f"option kd.temperature is above 0, not {self.temperature}")

    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        """Logits."""
        return ("after_fc",)

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """Logits: exact at any temperature."""
        return (vector("after_fc"),)

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """One."""
        return (Stage(weights={"kd": Weight(self.weight)}, task=self.task),)

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`kd`."""
        return {"kd": kd_loss(student["after_fc"], cached["logits"][VALUES], self.temperature)}
