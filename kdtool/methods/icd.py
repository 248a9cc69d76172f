"""ICD: invariant consistency distillation (Giakoumoglou & Stathaki, arXiv 2407.11802v1; later called DCD).

Student's and teacher's vectors go through a trained linear head each, to embeddings of length 1. Every student's
embedding shall be nearest to that of the same image among the teacher's of the batch (contrast, Eq. 3), and the
distributions of these similarities shall be the same seen from the teacher (invariance, Eq. 5). As the author's code
has it where the paper leaves it open or says otherwise:

* similarities are multiplied by a learned scale, exp(t) clamped to [0, 10] with t from 1; the paper divides by a
  temperature. Once exp(t) is above 10 the clamp gives t no gradient.
* a learned bias is added. It falls out of every softmax, so its gradient is 0: it is listed as inert.
* the contrast goes one way, from the student over the teachers. The invariance is KL(Q || P), Q from the teacher over
  the students and P from the student over the teachers, with gradient through both, the teacher's head included.
* t and the bias train, as in the scripts of July and November 2024 (a later script trains the heads alone).

exp(t) is computed of the smaller of t and ln 10, which gives the same value and gradient and cannot overflow. Left out:
the option of that code that does not train the scale, which multiplies by the temperature where it should divide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import FittedResults, need
from kdtool.methods.vectors import LAYER, VectorMethod, both_vectors, flat
from kdtool.targets import Batch, Cached, Facts, Shapes

if TYPE_CHECKING:
    from kdtool.targets import Taps


@at_least_float32
def icd_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    log_scale: Tensor | float,
    bias: Tensor | float,
    alpha: float = 0.5,
    max_scale: float = 10.0,
) -> Tensor:
    """mean_i CE(Z_i, i) + (alpha / B) sum_i KL(Q_i || P_i), in nats (Eq. 2, 3 and 5; Z: the author's code).

    student_embedding, teacher_embedding: (B, w), after the heads; normalised here. Z = min(exp(log_scale), max_scale)
    e_S e_T^T + bias (B, B), log_scale and bias scalars; P = softmax of Z's rows, Q of its columns. Gradient reaches
    both embeddings. The invariance is 0 where the embeddings of both sides are equal.
    """
    need(
        student_embedding.shape == teacher_embedding.shape,
        f"ICD compares embeddings of one size, not {tuple(student_embedding.shape)} of the student with "
        f"{tuple(teacher_embedding.shape)} of the teacher",
    )
    logarithm = torch.as_tensor(log_scale, dtype=student_embedding.dtype, device=student_embedding.device)
    scale = logarithm.clamp(max=math.log(max_scale)).exp()
    ours, theirs = functional.normalize(student_embedding), functional.normalize(teacher_embedding)
    similar = scale * (ours @ theirs.T) + bias
    from_student, from_teacher = functional.log_softmax(similar, 1), functional.log_softmax(similar.T, 1)
    contrast = -from_student.diagonal().mean()
    if not alpha:
        return contrast
    return contrast + alpha * functional.kl_div(from_student, from_teacher, reduction="batchmean", log_target=True)


class Heads(nn.Module):
    """Linear heads of both sides (PyTorch's default initialisation), the scale's logarithm, the similarities' bias."""

    def __init__(self, student: int, teacher: int, width: int) -> None:
        super().__init__()
        self.student = nn.Linear(student, width)
        self.teacher = nn.Linear(teacher, width)
        self.log_scale = nn.Parameter(torch.ones(()))
        self.similarity_bias = nn.Parameter(torch.zeros(()))


@dataclass(frozen=True)
class ICD(VectorMethod):
    """Contrast and invariance of embeddings.

    weight: beta. alpha: of the invariance within the term. width: of the embeddings. max_scale: of the learned scale.
    """

    name: ClassVar[str] = "icd"
    paper: ClassVar[str] = "Giakoumoglou & Stathaki 2024, arXiv 2407.11802"

    weight: float = 1.0
    alpha: float = 0.5
    width: int = 128
    max_scale: float = 10.0

    def __post_init__(self) -> None:
        need(self.alpha >= 0, f"option icd.alpha is not negative, as {self.alpha}")
        need(self.width >= 1, f"option icd.width is at least 1, not {self.width}")
        need(self.max_scale > 0, f"option icd.max_scale is above 0, not {self.max_scale}")

    @property
    def inert(self) -> tuple[str, ...]:
        """The bias of the similarities, which falls out of every softmax."""
        return ("similarity_bias",)

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        """Heads, scale and bias."""
        return Heads(flat(student[LAYER]), flat(teacher[LAYER]), self.width)

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`icd`."""
        heads = cast(Heads, adapters)
        ours, theirs = both_vectors(student, cached)
        embedded = heads.student(ours), heads.teacher(theirs)
        return {"icd": icd_loss(*embedded, heads.log_scale, heads.similarity_bias, self.alpha, self.max_scale)}
