"""VGG with BatchNorm for small images (Simonyan and Zisserman 2015, arXiv 1409.1556): vgg8 to vgg19.

Widths, pooling and initialisation as in RepDistiller (Tian et al. 2020, arXiv 1910.10699): five blocks, global pooling
instead of the last ones, one linear layer instead of three. Each convolution has a bias, though a BatchNorm follows it
and takes the bias out again. Left out: the forms without BatchNorm, dropout.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from kdtool.models.network import Network, convolution, global_pool, initialise_fan_out

WIDTHS = (64, 128, 256, 512, 512)


class PoolOfEight(nn.Module):
    """Halves a map of 8 rows, which an image of 64 has become here, and leaves every other map as it is.

    As the reference does, so that the last block sees 4x4 positions of images of 32 as of 64; larger images are not
    pooled here either.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, 4, W / 2) where H is 8, else the same."""
        pooled: torch.Tensor = self.pool(images) if images.shape[2] == 8 else images
        return pooled


def _block(inputs: int, outputs: int, layers: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for layer in range(layers):
        reads = outputs if layer else inputs
        modules += [convolution(reads, outputs, 3, bias=True), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*modules)


def _vgg(layers: Sequence[int], classes: int) -> Network:
    """For images of at least 8x8, which the poolings halve three times.

    layers: convolutions of each block. Taps: stem, the first block, and stage1 to stage4, the others, after their last
    ReLU and ahead of the pooling; stageN.preact before that ReLU. The biases of convolutions start at 0, the classifier
    at N(0, 0.01^2) and a bias of 0.
    """
    modules: dict[str, nn.Module] = {}
    taps = {}
    inputs = 3
    for number, (width, count) in enumerate(zip(WIDTHS, layers, strict=True)):
        name = f"stage{number}" if number else "stem"
        modules[name] = block = _block(inputs, width, count)
        taps[name] = name
        if number:
            taps[f"{name}.preact"] = f"{name}.{len(block) - 1}:input"
        if number < len(WIDTHS) - 1:
            modules[f"pool{number}"] = nn.MaxPool2d(2) if number < 3 else PoolOfEight()
        inputs = width
    classifier = nn.Linear(inputs, classes)
    modules |= {"pool": global_pool(), "fc": classifier}
    network = Network(modules, {**taps, "before_fc": "pool", "after_fc": ""})
    initialise_fan_out(network)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    nn.init.normal_(classifier.weight, 0, 0.01)
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "vgg8": partial(_vgg, (1, 1, 1, 1, 1)),
    "vgg11": partial(_vgg, (1, 1, 2, 2, 2)),
    "vgg13": partial(_vgg, (2, 2, 2, 2, 2)),
    "vgg16": partial(_vgg, (2, 2, 3, 3, 3)),
    "vgg19": partial(_vgg, (2, 2, 4, 4, 4)),
}
