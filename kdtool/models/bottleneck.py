"""ResNet50 (He et al. 2016, arXiv 1512.03385) for small images: bottleneck blocks behind a 3x3 stem without pooling.

Shortcuts and initialisation as in RepDistiller (Tian et al. 2020, arXiv 1910.10699); a block's stride is that of its
3x3 convolution. Left out: the 7x7 stem (torchvision's `tv:resnet50`), the layouts of 101 and 152 layers.
"""

from collections.abc import Callable

import torch
from torch import nn

from kdtool.models.network import Network, convolution, initialise_fan_out
from kdtool.models.resnet import residual_network

STEM = 64
WIDTHS = (64, 128, 256, 512)
BLOCKS = (3, 4, 6, 3)
EXPANSION = 4  # output channels for each inner one


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, which is a projection where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = convolution(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = convolution(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.relu3 = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, EXPANSION * width, H / stride, W / stride)."""
        inner = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(images))))))
        activated: torch.Tensor = self.relu3(self.bn3(self.conv3(inner)) + self.shortcut(images))
        return activated


def _resnet50(classes: int) -> Network:
    network = residual_network(STEM, WIDTHS, BLOCKS, classes, Bottleneck, EXPANSION, "relu3")
    initialise_fan_out(network)
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"resnet50": _resnet50}
