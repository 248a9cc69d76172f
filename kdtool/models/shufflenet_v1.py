"""ShuffleNetV1 (Zhang et al. 2018, arXiv 1707.01083) of three groups for small images: `shufflev1`.

As in RepDistiller (Tian et al. 2020, arXiv 1910.10699): a 1x1 stem without pooling, and a ReLU behind the depthwise
convolution, where the paper has none; PyTorch's default initialisation. Left out: other widths and groups.
"""

from collections.abc import Callable

import torch
from torch import nn

from kdtool.models.network import Network, convolution, global_pool

STEM = 24
WIDTHS = (240, 480, 960)
UNITS = (4, 8, 4)
GROUPS = 3


class Unit(nn.Module):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolutions, the first one's channels shuffled.

    The result is added to the input or, at stride 2, put ahead of the averaged input, so that this adds channels; then
    ReLU. The narrow width is a quarter of what the convolutions give.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        new = outputs - inputs if stride == 2 else outputs
        narrow = new // 4
        self.conv1 = nn.Conv2d(inputs, narrow, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.relu1 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, padding=1, groups=narrow, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(narrow, new, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(new)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        mixed = self.shuffle(self.relu1(self.bn1(self.conv1(images))))
        new = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(mixed)))))
        joined = images + new if self.shortcut is None else torch.cat([new, self.shortcut(images)], dim=1)
        activated: torch.Tensor = self.relu3(joined)
        return activated


def _shufflev1(classes: int) -> Network:
    """Taps: stem and stageN after their ReLU, stageN.preact before the stage's last one.

    Every stage halves the size. The first convolution behind the stem is not grouped: the stem is too narrow.
    """
    modules: dict[str, nn.Module] = {"stem": nn.Sequential(convolution(3, STEM, 1), nn.BatchNorm2d(STEM), nn.ReLU())}
    taps = {"stem": "stem"}
    inputs = STEM
    for number, (width, count) in enumerate(zip(WIDTHS, UNITS, strict=True), start=1):
        first = Unit(inputs, width, stride=2, groups=1 if number == 1 else GROUPS)
        modules[f"stage{number}"] = nn.Sequential(first, *(Unit(width, width, 1, GROUPS) for _ in range(count - 1)))
        taps |= {f"stage{number}": f"stage{number}", f"stage{number}.preact": f"stage{number}.{count - 1}.relu3:input"}
        inputs = width
    modules |= {"pool": global_pool(), "fc": nn.Linear(inputs, classes)}
    return Network(modules, {**taps, "before_fc": "pool", "after_fc": ""})


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"shufflev1": _shufflev1}
