"""CC: neighbours in the batch may not err in the same direction (after Peng et al. 2019, arXiv 1904.01802).

The paper compares the correlations of all samples of a batch, by a kernel, between the networks. What RepDistiller has
under its name, and what its tables show, is another loss, and this is that one:

* both networks' vectors are embedded, each by a linear layer, and both layers train. The absolute differences of the
  two embeddings are multiplied for consecutive samples, which makes the loss depend on the order of the batch.
* the weight is 0.02.

A batch of one sample has no neighbours and gives 0, where RepDistiller takes the mean of nothing. Left out: the paper's
kernels and its samplers, which fill batches with several images of a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from torch import Tensor, nn

from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import FittedResults, need
from kdtool.methods.vectors import LAYER, VectorMethod, both_vectors, flat
from kdtool.targets import Batch, Cached, Facts, Shapes

if TYPE_CHECKING:
    from kdtool.targets import Taps


@at_least_float32
def cc_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over i = 1 .. B-1 of sum_k d_ik d_(i+1)k, d = |e_S - e_T| (RepDistiller; no equation of the paper).

    student, teacher: embeddings (B, w). The gradient reaches both, as both are trained. 0 where they are equal and for
    B = 1.
    """
    need(
        student.shape == teacher.shape,
        f"CC compares embeddings of one size, not {tuple(student.shape)} of the student with {tuple(teacher.shape)}",
    )
    apart = (student - teacher).abs()
    return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)


@dataclass(frozen=True)
class CC(VectorMethod):
    """Products of the errors of consecutive samples, between trained embeddings of both networks.

    width: numbers in an embedding.
    """

    name: ClassVar[str] = "cc"
    paper: ClassVar[str] = "Peng et al. 2019, arXiv 1904.01802"

    weight: float = 0.02
    width: int = 128

    def __post_init__(self) -> None:
        need(self.width >= 1, f"option cc.width is at least 1, not {self.width}")

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        """`student` and `teacher`: linear layers to the embeddings."""
        sides = {"student": student, "teacher": teacher}
        return nn.ModuleDict({side: nn.Linear(flat(shapes[LAYER]), self.width) for side, shapes in sides.items()})

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`cc`."""
        heads = cast(nn.ModuleDict, adapters)
        ours, theirs = both_vectors(student, cached)
        return {"cc": cc_loss(heads["student"](ours), heads["teacher"](theirs))}
