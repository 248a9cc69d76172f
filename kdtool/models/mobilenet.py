"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) of half width for small images.

As in RepDistiller (Tian et al. 2020, arXiv 1910.10699), which departs from the paper: ReLU in place of ReLU6, no
halving in the second group of blocks, in the first block too a convolution ahead of the depthwise one though it widens
nothing, a last convolution that is not halved, no dropout. Left out: other widths and expansions.
"""

from collections.abc import Callable

import torch
from torch import nn

from kdtool.models.network import Network, convolution, global_pool, initialise_fan_out

STEM = 32
GROUPS = (  # expansion, channels, blocks and the first block's stride
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
WIDTH = 0.5  # a factor of all channels but the last convolution's
LAST = 1280
STAGES = ((0, 1), (2,), (3, 4), (5, 6))  # the groups of each stage


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolves = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolves, nn.BatchNorm2d(outputs), nn.ReLU())


class InvertedResidual(nn.Module):
    """Widens, convolves each channel by itself, narrows without activation; adds its input where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _layer(inputs, inner, 1)
        self.depthwise = _layer(inner, inner, 3, stride, groups=inner)
        self.narrow = nn.Sequential(convolution(inner, outputs, 1), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        residual: torch.Tensor = self.narrow(self.depthwise(self.expand(images)))
        return images + residual if self.adds else residual


def _groups() -> list[nn.Sequential]:
    """All blocks, in groups of one width."""
    groups = []
    inputs = int(STEM * WIDTH)
    for expansion, channels, count, stride in GROUPS:
        outputs = int(channels * WIDTH)
        first = InvertedResidual(inputs, outputs, stride, expansion)
        rest = (InvertedResidual(outputs, outputs, 1, expansion) for _ in range(count - 1))
        groups.append(nn.Sequential(first, *rest))
        inputs = outputs
    return groups


def _mobilenetv2(classes: int) -> Network:
    """Taps: stem after its ReLU, at half the image's size; stage1 to stage4, which end without activation.

    stageN.preact, what stands before the stage's last activation, is therefore stageN itself, as in the reference.
    Initialisation of the reference: convolutions by fan-out, the classifier N(0, 0.01^2) with a bias of 0.
    """
    groups = _groups()
    modules: dict[str, nn.Module] = {"stem": _layer(3, int(STEM * WIDTH), 3, stride=2)}
    taps = {"stem": "stem"}
    for number, members in enumerate(STAGES, start=1):
        name = f"stage{number}"
        modules[name] = nn.Sequential(*(groups[member] for member in members))
        taps |= {name: name, f"{name}.preact": name}
    classifier = nn.Linear(LAST, classes)
    nn.init.zeros_(classifier.bias)
    nn.init.normal_(classifier.weight, 0, 0.01)
    modules |= {"last": _layer(int(GROUPS[-1][1] * WIDTH), LAST, 1), "pool": global_pool(), "fc": classifier}
    network = Network(modules, {**taps, "before_fc": "pool", "after_fc": ""})
    initialise_fan_out(network)
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"mobilenetv2": _mobilenetv2}
