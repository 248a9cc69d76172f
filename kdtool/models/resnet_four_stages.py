"""KDA's residual networks: the ImageNet layouts of 18 and 34 layers behind a 3x3 stem without pooling.

Qian et al., arXiv 2009.14416: four stages of 64 to 512 channels (resnet18x0.5: half of them), 32, 16, 8 and 4 pixels
wide for images of 32, PyTorch's default initialisation. Left out: the 7x7 stem and the bottleneck layouts.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from kdtool.models.resnet import residual_network

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": partial(residual_network, 64, (64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet34": partial(residual_network, 64, (64, 128, 256, 512), (3, 4, 6, 3)),
    "resnet18x0.5": partial(residual_network, 32, (32, 64, 128, 256), (2, 2, 2, 2)),
}
