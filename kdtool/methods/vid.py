"""VID: variational information distillation (Ahn et al. 2019, arXiv 1904.05835).

A lower bound of the mutual information of the teacher's and the student's maps: the teacher's map is Gaussian around
what a small network predicts from the student's, with a variance for each channel (Eq. 5). As RepDistiller has it:

* stage by stage, the larger map averaged down to the smaller size, the student's before it enters the network.
* the network is three 1x1 convolutions without bias and two ReLUs, C_S -> C_T -> C_T -> C_T, without BatchNorm.
* the variance is softplus(l) + 1e-5 with l from ln(exp(5 - 1e-5) - 1), so that it begins at 5. The reference writes
  ln(1 + exp(l)), which overflows; softplus does not.
* `train_scale=false` leaves the variance at 5, as mdistiller does, which does not hand l to its optimiser.

Left out: the paper's term for the logits and its weights per layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.maps import MapPair, Paired, PairwiseMethod, every_stage, pooled_to, whole_map
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.vectors import VALUES
from kdtool.targets import Shapes, Target

if TYPE_CHECKING:
    from kdtool.targets import Arrays

FLOOR = 1e-5  # of the variance
BEGIN = 5.0  # the variance before training
# The l of which softplus(l) + FLOOR is BEGIN: ln(e^y - 1) written as y + ln(1 - e^-y), which cannot overflow.
LOG_SCALE_INIT = (BEGIN - FLOOR) + math.log(-math.expm1(-(BEGIN - FLOOR)))


@at_least_float32
def vid_loss(predicted_mean: Tensor, teacher_map: Tensor, log_scale: Tensor) -> Tensor:
    """The mean over all elements of ((mu - t)^2 / var_c + ln var_c) / 2, var_c = softplus(l_c) + 1e-5 (Eq. 5).

    predicted_mean: mu (B, C, h, w). teacher_map: t (B, C, H, W), averaged down to (h, w) where it is larger; no
    gradient reaches it. log_scale: l (C,). In nats an element, without the constant ln(2 pi) / 2; the least value for
    given variances is at mu = t, the mean of ln(var_c) / 2, and may be negative.
    """
    size = (predicted_mean.shape[2], predicted_mean.shape[3])
    need(
        predicted_mean.shape[:2] == teacher_map.shape[:2]
        and teacher_map.shape[2] >= size[0]
        and teacher_map.shape[3] >= size[1],
        f"VID compares a prediction with a map of as many samples and channels that is not smaller, not "
        f"{tuple(predicted_mean.shape)} with {tuple(teacher_map.shape)}; average the student's map down before",
    )
    wanted = pooled_to(teacher_map.detach(), size)
    variance = functional.softplus(log_scale)[:, None, None] + FLOOR
    return 0.5 * ((predicted_mean - wanted).square() / variance + variance.log()).mean()


class Gaussian(nn.Module):
    """The distribution of a teacher's map given a student's: `mean`, a network, and `log_scale` (C_T,)."""

    log_scale: Tensor

    def __init__(self, pair: MapPair, train_scale: bool) -> None:
        super().__init__()
        inputs, outputs = pair.student_shape[0], pair.teacher_shape[0]
        self.mean = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
        )
        scale = torch.full((outputs,), LOG_SCALE_INIT)
        if train_scale:
            self.log_scale = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale)


@dataclass(frozen=True)
class VID(PairwiseMethod):
    """Variational information distillation.

    layers: pairs of taps, STUDENT:TEACHER, whose losses are summed; none for all stages. train_scale: whether the
    variances train.
    """

    name: ClassVar[str] = "vid"
    paper: ClassVar[str] = "Ahn et al. 2019, arXiv 1904.05835"

    train_scale: bool = True

    def default(self, student: Shapes, teacher: Shapes) -> Sequence[tuple[str, str]]:
        """All stages."""
        return every_stage(student, teacher)

    def target(self, pair: MapPair) -> Target:
        """The map, at the student's size where that is smaller."""
        return whole_map(pair.teacher, pair.teacher_size)

    def module(self, pair: MapPair) -> nn.Module:
        """The distribution."""
        return Gaussian(pair, self.train_scale)

    def loss(self, student_map: Tensor, stored: Arrays, pair: MapPair, adapters: Paired) -> Tensor:
        """`vid_loss`."""
        given = cast(Gaussian, adapters.of(pair))
        return vid_loss(given.mean(pooled_to(student_map, pair.size)), stored[VALUES], given.log_scale)
