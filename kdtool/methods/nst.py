"""NST: the student's channels fire where the teacher's do, as distributions (Huang & Wang 2017, arXiv 1707.01219).

The squared maximum mean discrepancy of the channels of two maps, each channel over its norm, with the paper's
polynomial kernel of degree 2 without a constant, k(a, b) = <a, b>^2. As RepDistiller has it: stage by stage, the larger
map averaged down to the smaller size, the sum over the stages times 50. The mean kernel of the teacher with itself, a
constant for the student, is part of the value.

With F (C, H W), the channels of a sample over their norms, and G = F^T F / C, the loss of a sample is
||G_S - G_T||_F^2. It is computed in one of two forms, which agree to 1e-12 in float64:

* by G_S - G_T itself, where it is not larger than the channels' own products (H W <= C): never negative, and exactly 0
  for a student that is the teacher
* by the three means over C x C products elsewhere, so that a large map needs no (H W)^2 numbers a sample. They cancel
  where student and teacher are alike: in float32 the value errs by less than 1e-6 of the mean kernel, and so may be
  negative, and the gradient by less than 1e-6 of that of the student's mean kernel

Of the teacher the smaller one is stored of its map and the upper triangle of G_T, at the student's size where that is
smaller; with the triangle nothing of the teacher is computed again. Left out: the linear and the Gaussian kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from kdtool.methods.maps import (
    MapPair,
    Paired,
    PairwiseMethod,
    Size,
    every_stage,
    pooled_to,
    same_size,
    size_suffix,
    whole_map,
)
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.vectors import VALUES
from kdtool.targets import Shapes, Target

if TYPE_CHECKING:
    from kdtool.targets import Arrays, Fitted, Taps


@at_least_float32
def nst_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """mean k(T, T) + mean k(S, S) - 2 mean k(S, T) over pairs of channels and the batch, k(a, b) = <a, b>^2.

    student_map (B, C_S, h, w), teacher_map (B, C_T, H, W): the larger one is averaged down to the size of the smaller
    one first, then every channel is divided by its norm. No gradient reaches the teacher's map.
    """
    need(
        len(student_map) == len(teacher_map),
        f"NST compares maps of the same samples, not {len(student_map)} of the student with {len(teacher_map)}",
    )
    student, teacher = same_size(student_map, teacher_map.detach())
    if student.shape[2] * student.shape[3] <= max(student.shape[1], teacher.shape[1]):
        return distance(moments(student), moments(teacher))
    ours, theirs = unit_channels(student), unit_channels(teacher)
    return mean_kernel(theirs, theirs) + mean_kernel(ours, ours) - 2 * mean_kernel(ours, theirs)


def unit_channels(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H W), every channel over its norm; 0 for a channel of zeros."""
    return functional.normalize(feature_map.flatten(2), dim=2)


def mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    """The mean of <a, b>^2 over the batch and all a of (B, C, n) and b of (B, D, n)."""
    return (first @ second.transpose(1, 2)).square().mean()


def moments(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, n (n + 1) / 2), n = H W: the upper triangle of G = F^T F / C, row by row.

    F are the channels over their norms. What is off the diagonal is multiplied by sqrt(2), so that the distance of two
    triangles is that of the whole matrices.
    """
    channels = unit_channels(feature_map)
    size = channels.shape[2]
    products = channels.transpose(1, 2) @ channels / channels.shape[1]
    row, column = torch.triu_indices(size, size, device=products.device)
    scale = torch.full(row.shape, math.sqrt(2), dtype=products.dtype, device=products.device)
    scale = scale.masked_fill(row == column, 1.0)
    return products.flatten(1).index_select(1, row * size + column) * scale


def distance(student_moments: Tensor, teacher_moments: Tensor) -> Tensor:
    """The mean over the batch of ||G_S - G_T||_F^2, from triangles (B, P)."""
    return (student_moments - teacher_moments).square().sum(1).mean()


@dataclass(frozen=True)
class Moments:
    """The moments of a tap, averaged down to (H, W) where a size is given; `values` (B, P)."""

    tap: str
    size: Size | None = None

    def __call__(self, taps: Taps, fitted: Fitted) -> dict[str, torch.Tensor]:
        """The stored array."""
        return {VALUES: moments(pooled_to(taps[self.tap], self.size))}


def packs(pair: MapPair) -> bool:
    """Whether the triangle, n (n + 1) / 2 numbers, is smaller than the teacher's map, C n."""
    size = pair.size[0] * pair.size[1]
    return size + 1 < 2 * pair.teacher_shape[0]


@dataclass(frozen=True)
class NST(PairwiseMethod):
    """Neuron selectivity transfer.

    layers: pairs of taps, STUDENT:TEACHER, whose losses are summed; none for all stages.
    """

    name: ClassVar[str] = "nst"
    paper: ClassVar[str] = "Huang & Wang 2017, arXiv 1707.01219"

    weight: float = 50.0

    def default(self, student: Shapes, teacher: Shapes) -> Sequence[tuple[str, str]]:
        """All stages."""
        return every_stage(student, teacher)

    def target(self, pair: MapPair) -> Target:
        """The moments, key `stageN.moments`, with `.8x8` where the teacher's map is the larger one; else the map."""
        tap, size = pair.teacher, pair.teacher_size
        if not packs(pair):
            return whole_map(tap, size)
        return Target(f"{tap}.moments{size_suffix(size)}", (tap,), Moments(tap, size))

    def loss(self, student_map: Tensor, stored: Arrays, pair: MapPair, adapters: Paired) -> Tensor:
        """`nst_loss`, of moments or maps."""
        if packs(pair):
            return distance(moments(pooled_to(student_map, pair.size)), stored[VALUES])
        return nst_loss(student_map, stored[VALUES])
