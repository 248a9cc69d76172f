"""ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164) of width 1x for small images: `shufflev2`.

As in RepDistiller (Tian et al. 2020, arXiv 1910.10699): a 1x1 stem without pooling, PyTorch's default initialisation.
Left out: other widths, and the variant of KDA's paper (arXiv 2009.14416), which is not published.
"""

from collections.abc import Callable

import torch
from torch import nn

from kdtool.models.network import Network, convolution, global_pool

STEM = 24
WIDTHS = (116, 232, 464)
UNITS = (4, 8, 4)  # the first of them halves the size
LAST = 1024


def _depthwise(channels: int, stride: int) -> nn.Sequential:
    convolves = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(convolves, nn.BatchNorm2d(channels))


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs))


def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """1x1, depthwise 3x3, 1x1; the last ReLU is the unit's."""
    return nn.Sequential(
        _pointwise(inputs, outputs), nn.ReLU(), _depthwise(outputs, stride), _pointwise(outputs, outputs)
    )


class SplitUnit(nn.Module):
    """Convolves the second half of the channels beside the first, which passes; then ReLU and shuffle.

    The ReLU acts on both halves, so that its input is one map, the reference's pre-activation; the half that passes
    comes out of an earlier one, and a second ReLU changes neither it nor its gradient.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, stride=1)
        self.relu = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        passes, enters = images.chunk(2, dim=1)
        shuffled: torch.Tensor = self.shuffle(self.relu(torch.cat([passes, self.branch(enters)], dim=1)))
        return shuffled


class DownUnit(nn.Module):
    """Two branches of stride 2 over all channels, one of them depthwise 3x3 and 1x1 alone; then ReLU and shuffle."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.short = nn.Sequential(_depthwise(inputs, 2), _pointwise(inputs, outputs // 2))
        self.branch = _branch(inputs, outputs // 2, stride=2)
        self.relu = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / 2, W / 2)."""
        joined = torch.cat([self.short(images), self.branch(images)], dim=1)
        shuffled: torch.Tensor = self.shuffle(self.relu(joined))
        return shuffled


def _shufflev2(classes: int) -> Network:
    """Taps: stem after its ReLU, stageN after ReLU and shuffle, stageN.preact before the stage's last ReLU.

    The channels of stageN.preact are therefore in another order than those of stageN.
    """
    modules: dict[str, nn.Module] = {"stem": nn.Sequential(*_pointwise(3, STEM), nn.ReLU())}
    taps = {"stem": "stem"}
    inputs = STEM
    for number, (width, count) in enumerate(zip(WIDTHS, UNITS, strict=True), start=1):
        name = f"stage{number}"
        modules[name] = nn.Sequential(DownUnit(inputs, width), *(SplitUnit(width) for _ in range(count - 1)))
        taps |= {name: name, f"{name}.preact": f"{name}.{count - 1}.relu:input"}
        inputs = width
    modules |= {"last": nn.Sequential(*_pointwise(inputs, LAST), nn.ReLU())}
    modules |= {"pool": global_pool(), "fc": nn.Linear(LAST, classes)}
    return Network(modules, {**taps, "before_fc": "pool", "after_fc": ""})


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"shufflev2": _shufflev2}
