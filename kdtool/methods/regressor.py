"""The convolution that brings a student's map to the shape of the teacher's, for FitNet's hints and AB's connectors.

RepDistiller's ConvReg (Tian et al. 2020, arXiv 1910.10699), which refines FitNet's convolutional regressor (Romero et
al. 2015, section 2.2: a kernel of 1 + s - t without padding):

    equal sizes     1x1              s = 2t   3x3, stride 2, padding 1
    s > t else      (1 + s - t)      2s = t   transposed 4x4, stride 2, padding 1

with a bias, then BatchNorm, then ReLU, by PyTorch's default initialisation. The rule is applied to both axes at once,
where the reference looks at the height alone; for square maps that is the same. Under BatchNorm the bias has no
gradient but rounding; it is kept as the reference has it. Left out: all other sizes, which are refused.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from kdtool.methods.maps import MapPair
from kdtool.methods.protocol import need


@dataclass(frozen=True)
class Geometry:
    """A convolution, or a transposed one, as sizes: of its kernel (height, width), its stride and its padding."""

    kernel: tuple[int, int]
    stride: int = 1
    padding: int = 0
    transposed: bool = False


def geometry(pair: MapPair) -> Geometry | None:
    """The convolution for the sizes of a pair; None for sizes that there is none for."""
    (_, high, wide), (_, teacher_high, teacher_wide) = pair.student_shape, pair.teacher_shape
    if (high, wide) == (2 * teacher_high, 2 * teacher_wide):
        return Geometry((3, 3), stride=2, padding=1)
    if (2 * high, 2 * wide) == (teacher_high, teacher_wide):
        return Geometry((4, 4), stride=2, padding=1, transposed=True)
    if high >= teacher_high and wide >= teacher_wide:
        return Geometry((1 + high - teacher_high, 1 + wide - teacher_wide))
    return None


def check_regressor(method: str, pair: MapPair) -> None:
    """Refuses a pair whose sizes there is no regressor for."""
    (_, high, wide), (_, teacher_high, teacher_wide) = pair.student_shape, pair.teacher_shape
    need(
        geometry(pair) is not None,
        f"method {method} brings a student's map to the size of the teacher's where it is half as large, as large or "
        f"larger, and {pair.student} of the student is {high}x{wide}, {pair.teacher} of the teacher "
        f"{teacher_high}x{teacher_wide}; name another pair with --layer STUDENT:TEACHER",
    )


def regressor(pair: MapPair, norm: bool = True, relu: bool = True) -> nn.Sequential:
    """(B, C_S, h, w) -> (B, C_T, H, W), for a pair that `check_regressor` lets pass; BatchNorm and ReLU on demand."""
    shape = geometry(pair)
    assert shape is not None, f"no regressor for {pair}"
    channels = (pair.student_shape[0], pair.teacher_shape[0])
    kind = nn.ConvTranspose2d if shape.transposed else nn.Conv2d
    parts = OrderedDict[str, nn.Module](convolution=kind(*channels, shape.kernel, shape.stride, shape.padding))
    if norm:
        parts["norm"] = nn.BatchNorm2d(channels[1])
    if relu:
        parts["relu"] = nn.ReLU()
    return nn.Sequential(parts)
