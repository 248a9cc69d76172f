"""What a network costs: parameters and multiply-adds. Left out: time and memory, which are measured."""

from typing import Any

from torch import nn

from kdtool.models.taps import tap_shapes


def parameters(model: nn.Module) -> int:
    """The number of trainable and frozen parameters, each shared one counted once; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of one image (C, H, W) in convolutions and linear layers, without biases and norms.

    What a module computes by functions, as an attention does, is not counted.
    """
    found = [0]

    def count(module: nn.Module, _: Any, output: Any) -> None:
        found[0] += module.get_parameter("weight")[0].numel() * output.numel()

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(count) for module in layers]
    try:
        tap_shapes(model, image_shape)
    finally:
        for handle in handles:
            handle.remove()
    return found[0]
