"""What every family of networks is made of: a chain of named modules that knows its taps, pooling, initialisation."""

from collections.abc import Mapping

import torch
from torch import nn


class Network(nn.Module):
    """Modules that run one after the other, each with a name: stem, stage1.., pool, fc.

    taps: tap name -> path of the module whose output it is, or whose input where the path ends in ":input"; the empty
    path is the network itself, so that its output, the logits, is the tap after_fc. The activations are never in place:
    a tap before one would see what it wrote.
    """

    def __init__(self, modules: Mapping[str, nn.Module], taps: Mapping[str, str]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.taps = dict(taps)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to logits (B, classes)."""
        value = images
        for module in self.children():
            value = module(value)
        return value


def global_pool() -> nn.Module:
    """The mean over all positions: (B, C, H, W) -> (B, C), for every H and W."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution whose padding keeps the size, save for the stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)


@torch.no_grad()
def initialise_fan_out(network: nn.Module) -> None:
    """Kaiming-normal weights for all convolutions: N(0, 2 / (k^2 C_out)), k the kernel's width; the rest is untouched.

    RepDistiller's initialisation of its resnets and wide resnets (Tian et al. 2020, arXiv 1910.10699).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@torch.no_grad()
def initialise_fan_in(network: nn.Module) -> None:
    """Kaiming-normal weights for convolutions (fan-in k^2 C_in) and linear layers (C_in): N(0, 2 / fan-in).

    Their biases are drawn from N(0, 1), as in the code of SRM's authors (arXiv 2103.17012); the rest is untouched.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias)
