"""Residual networks with three stages for small images (He et al. 2016, section 4.2): resnet8 to resnet110, and x4.

Widths, shortcuts and initialisation as in RepDistiller (Tian et al. 2020, arXiv 1910.10699): a 1x1 convolution with
BatchNorm where the shape changes, not He's padding by zeros. Bottleneck blocks are in `kdtool.models.bottleneck`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from kdtool.models.network import Network, convolution, global_pool, initialise_fan_out


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(images)))))
        activated: torch.Tensor = self.relu2(residual + self.shortcut(images))
        return activated


def residual_network(
    stem: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    classes: int,
    block: Callable[[int, int, int], nn.Module] = BasicBlock,
    expansion: int = 1,
    last: str = "relu2",
) -> Network:
    """A 3x3 stem of `stem` channels and one stage for each width; every stage but the first halves the size.

    block: made of channels that enter, width and stride; expansion: channels that leave it, over its width; last: name
    of its last activation. PyTorch's default initialisation. Taps: stem and stageN after their ReLU, stageN.preact
    before the stage's last one, the residual sum.
    """
    modules: dict[str, nn.Module] = {
        "stem": nn.Sequential(convolution(3, stem, 3), nn.BatchNorm2d(stem), nn.ReLU()),
    }
    taps = {"stem": "stem"}
    inputs = stem
    for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        first = block(inputs, width, 1 if number == 1 else 2)
        inputs = expansion * width
        stage = f"stage{number}"
        modules[stage] = nn.Sequential(first, *(block(inputs, width, 1) for _ in range(count - 1)))
        taps |= {stage: stage, f"{stage}.preact": f"{stage}.{count - 1}.{last}:input"}
    modules |= {"pool": global_pool(), "fc": nn.Linear(inputs, classes)}
    return Network(modules, {**taps, "before_fc": "pool", "after_fc": ""})


def _resnet(depth: int, stem: int, widths: Sequence[int], classes: int) -> Network:
    network = residual_network(stem, widths, [(depth - 2) // 6] * 3, classes)
    initialise_fan_out(network)
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{depth}": partial(_resnet, depth, 16, (16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(_resnet, depth, 32, (64, 128, 256)) for depth in (8, 32)},
}
