"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146), as RepDistiller has them: no dropout.

BatchNorm and ReLU come before each convolution, so that the stages give raw residual sums.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from kdtool.models.network import Network, convolution, global_pool, initialise_fan_out


class PreactivationBlock(nn.Module):
    """BN-ReLU-conv twice beside a shortcut: the raw input or, where the width changes, the activated one projected."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = convolution(outputs, outputs, 3)
        self.shortcut = convolution(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(images))
        residual: torch.Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return residual + (images if self.shortcut is None else self.shortcut(activated))


def _wide_resnet(depth: int, factor: int, classes: int) -> Network:
    """Taps: stem and stageN raw; stageN.preact after the BatchNorm that reads the stage, before its ReLU.

    Initialisation of the reference code: convolutions by fan-out, the classifier's bias 0.
    """
    widths = (16, 16 * factor, 32 * factor, 64 * factor)
    modules: dict[str, nn.Module] = {"stem": convolution(3, 16, 3)}
    for number in (1, 2, 3):
        first = PreactivationBlock(widths[number - 1], widths[number], stride=1 if number == 1 else 2)
        rest = (PreactivationBlock(widths[number], widths[number], 1) for _ in range((depth - 4) // 6 - 1))
        modules[f"stage{number}"] = nn.Sequential(first, *rest)
    classifier = nn.Linear(widths[3], classes)
    nn.init.zeros_(classifier.bias)
    modules |= {"bn": nn.BatchNorm2d(widths[3]), "relu": nn.ReLU(), "pool": global_pool(), "fc": classifier}
    network = Network(modules, TAPS)
    initialise_fan_out(network)
    return network


TAPS = {
    **{name: name for name in ("stem", "stage1", "stage2", "stage3")},
    "stage1.preact": "stage2.0.bn1",
    "stage2.preact": "stage3.0.bn1",
    "stage3.preact": "bn",
    "before_fc": "pool",
    "after_fc": "",
}

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    f"wrn_{depth}_{factor}": partial(_wide_resnet, depth, factor) for depth in (16, 40) for factor in (1, 2)
}
