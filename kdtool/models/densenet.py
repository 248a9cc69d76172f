"""DenseNet121 (Huang et al. 2017, arXiv 1608.06993) for small images, as the teacher of SRM (arXiv 2103.17012).

Definition and initialisation as in the SRM authors' code. It departs from Huang's network: a 3x3 stem of stride 1
without BatchNorm, a bias in every convolution, and a layer's new channels ahead of those that it read. Left out: other
depths, dropout, the form for large images (torchvision's).
"""

from collections.abc import Callable

import torch
from torch import nn

from kdtool.models.network import Network, convolution, global_pool, initialise_fan_in

LAYERS = (6, 12, 24, 16)  # of each dense block
GROWTH = 32  # channels that a layer adds
BOTTLENECK = 4 * GROWTH
STEM = 64


class DenseLayer(nn.Module):
    """BN-ReLU-conv 1x1, then BN-ReLU-conv 3x3; gives the new channels followed by those that it read."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = convolution(inputs, BOTTLENECK, 1, bias=True)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK)
        self.relu2 = nn.ReLU()
        self.conv2 = convolution(BOTTLENECK, GROWTH, 3, bias=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, GROWTH + C, H, W)."""
        new = self.conv2(self.relu2(self.bn2(self.conv1(self.relu1(self.bn1(images))))))
        return torch.cat([new, images], dim=1)


def _transition(inputs: int) -> nn.Sequential:
    """Halves the channels and the size."""
    reduce = convolution(inputs, inputs // 2, 1, bias=True)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), reduce, nn.AvgPool2d(2))


def _densenet121(classes: int) -> Network:
    """For images of at least 8x8, which the transitions halve three times.

    Taps: stem, raw; stage1 to stage3, the outputs of the transitions; stage4, that of the last dense block, ahead of
    BatchNorm and ReLU. No stage ends in an activation, so that there is no stageN.preact.
    """
    modules: dict[str, nn.Module] = {"stem": convolution(3, STEM, 3, bias=True)}
    channels = STEM
    for number, layers in enumerate(LAYERS, start=1):
        block = nn.Sequential(*(DenseLayer(channels + GROWTH * layer) for layer in range(layers)))
        channels += GROWTH * layers
        if number < len(LAYERS):
            block = nn.Sequential(block, _transition(channels))
            channels //= 2
        modules[f"stage{number}"] = block
    taps = {name: name for name in modules}
    modules |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU(), "pool": global_pool()}
    modules["fc"] = nn.Linear(channels, classes)
    network = Network(modules, {**taps, "before_fc": "pool", "after_fc": ""})
    initialise_fan_in(network)
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"densenet121": _densenet121}
