"""RKD: the distances and angles between samples are as in the teacher's space (Park et al. 2019, arXiv 1904.05068).

Distances between all pairs of a batch, in units of their mean (section 3.2.1), and cosines of the angles at all triples
(section 3.2.2), each drawn to the teacher's by the Huber loss; with weights of 25 and 50. As RepDistiller has it:

* means over all B^2 pairs and B^3 triples, those that name a sample twice included; the paper sums over distinct
  samples.
* a distance counts as at least 1e-6, so that equal samples have no infinite gradient.

Departures from RepDistiller:

* distances come from the differences of the vectors, which the angles need anyway. It expands them as |x|^2 + |y|^2 -
  2 <x, y>, which cancels in float32 where samples lie closer together than they are long.
* two equal samples have no direction to each other and no gradient from it; there it divides gradients by 1e-12.
* a batch of one sample gives 0, and there the mean of nothing.

The differences take B^2 d numbers and the angles B^3, for a batch of 256 and d = 512 134 and 67 MB in float32, some of
it several times for the gradient. Cosines from inner products would need no differences and less time, but lose four
digits of the gradient where the samples of a class lie a hundred times closer than the classes. Left out: other layers
than the vector before the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.vectors import VectorMethod, both_vectors
from kdtool.targets import Batch, Cached

if TYPE_CHECKING:
    from kdtool.targets import Taps


@at_least_float32
def rkd_loss(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """distance_weight * mean huber(D_S - D_T) + angle_weight * mean huber(A_S - A_T) (sections 3.2.1 and 3.2.2).

    student (B, d_S), teacher (B, d_T). D (B, B): distances over their mean; A (B, B, B): A_iab the cosine of the angle
    at sample i between a and b; huber is quadratic below 1. A part of weight 0 is not computed. No gradient reaches
    the teacher's vectors. Moving, turning or scaling either side changes nothing.
    """
    need(
        len(student) == len(teacher),
        f"RKD compares vectors of the same samples, not {len(student)} of the student with {len(teacher)}",
    )
    ours, theirs = differences(student), differences(teacher.detach())
    loss = student.new_zeros(())
    for weight, relation in ((distance_weight, relative_distances), (angle_weight, cosines)):
        if weight:
            loss = loss + weight * functional.smooth_l1_loss(relation(ours), relation(theirs))
    return loss


def differences(rows: Tensor) -> Tensor:
    """(B, d) -> (B, B, d): at [i, a] the way from sample i to sample a."""
    return rows[None] - rows[:, None]


def relative_distances(ways: Tensor) -> Tensor:
    """(B, B, d) -> (B, B): lengths, those of different samples at least 1e-6, over their mean; 0 on the diagonal."""
    itself = torch.eye(len(ways), dtype=torch.bool, device=ways.device)
    lengths = ways.square().sum(2).clamp(min=1e-12).sqrt().masked_fill(itself, 0.0)
    mean = lengths.sum() / max(len(ways) * (len(ways) - 1), 1)
    return lengths / mean.clamp(min=1e-12)


def cosines(ways: Tensor) -> Tensor:
    """(B, B, d) -> (B, B, B): of the angle at i between the ways to a and b; 0 where one of them has no length."""
    squares = ways.square().sum(2)
    apart = squares > 1e-24
    inverse = torch.where(apart, squares, 1.0).rsqrt() * apart
    directions = ways * inverse[:, :, None]
    return torch.bmm(directions, directions.transpose(1, 2))


@dataclass(frozen=True)
class RKD(VectorMethod):
    """Relational knowledge distillation on the vectors before the classifiers.

    distance_weight, angle_weight: the parts of the two relations in the term, which itself has `weight`.
    """

    name: ClassVar[str] = "rkd"
    paper: ClassVar[str] = "Park et al. 2019, arXiv 1904.05068"

    weight: float = 1.0
    distance_weight: float = 25.0
    angle_weight: float = 50.0

    def __post_init__(self) -> None:
        parts = (self.distance_weight, self.angle_weight)
        need(
            min(parts) >= 0 < max(parts),
            f"options rkd.distance_weight and rkd.angle_weight are not negative and not both 0, not {parts}",
        )

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`rkd`."""
        return {"rkd": rkd_loss(*both_vectors(student, cached), self.distance_weight, self.angle_weight)}
