"""PKT: each sample has the same neighbours as in the teacher's space (Passalis & Tefas 2018, arXiv 1803.10837).

The cosine similarities of a sample to those of its batch, moved to 0..1 and over their sum, are taken as probabilities;
their divergence from the teacher's is the loss. As RepDistiller has it:

* a sample counts as its own neighbour; the paper leaves it out.
* the mean over all B^2 entries instead of the sum, with the weight 30000.
* 1e-7 is added to the norms and inside the logarithm.

Departures from RepDistiller:

* a vector of zeros has a finite gradient, where the root of 0 gives it NaN.
* a similarity that rounding makes negative counts as 0; with opposite vectors it can give the logarithm of a negative
  number in float32.
* components that are NaN stay so. It replaces them by 0, and with the 1e-7 only a network that has already diverged
  has any.

Left out: the paper's other kernels. Stored is the vector before the classifier, which other methods share; its
direction would be enough, and as large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.vectors import VectorMethod, both_vectors
from kdtool.targets import Batch, Cached

if TYPE_CHECKING:
    from kdtool.targets import Taps

EPSILON = 1e-7


@at_least_float32
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over B^2 of P_T log((P_T + 1e-7) / (P_S + 1e-7)), P = `neighbours`, in nats.

    student (B, d_S), teacher (B, d_T). The 1e-7 and the mean are RepDistiller's. No gradient reaches the teacher's
    vectors.
    """
    need(
        len(student) == len(teacher),
        f"PKT compares vectors of the same samples, not {len(student)} of the student with {len(teacher)}",
    )
    ours, theirs = neighbours(student), neighbours(teacher.detach())
    return (theirs * torch.log((theirs + EPSILON) / (ours + EPSILON))).mean()


def neighbours(rows: Tensor) -> Tensor:
    """(B, d) -> (B, B): (cos + 1) / 2 of all pairs, each row over its sum."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    directions = rows / (norms + EPSILON)
    similarity = ((directions @ directions.T + 1) / 2).clamp(min=0)
    return similarity / similarity.sum(1, keepdim=True)


@dataclass(frozen=True)
class PKT(VectorMethod):
    """Probabilistic knowledge transfer on the vectors before the classifiers."""

    name: ClassVar[str] = "pkt"
    paper: ClassVar[str] = "Passalis & Tefas 2018, arXiv 1803.10837"

    weight: float = 30000.0

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`pkt`."""
        return {"pkt": pkt_loss(*both_vectors(student, cached))}
