"""The networks by name, and the named layers (taps) of any network. Left out: pretrained weights."""

from collections.abc import Callable

from torch import nn

from kdtool.errors import UsageError, unknown
from kdtool.models import allcnn, densenet, resnet, resnet_four_stages, wide_resnet
from kdtool.models.taps import TapReader, resolve, tap_shapes

__all__ = ["MODELS", "TapReader", "create", "parameters", "resolve", "tap_shapes"]

MODELS: dict[str, Callable[[int], nn.Module]] = {
    **resnet.NETWORKS,
    **resnet_four_stages.NETWORKS,
    **wide_resnet.NETWORKS,
    **allcnn.NETWORKS,
    **densenet.NETWORKS,
}


MOST_CLASSES = 1_000_000


def create(name: str, classes: int = 100) -> nn.Module:
    """A freshly initialised network for images (B, 3, H, W) that gives logits (B, classes).

    The weights are drawn from torch's global generator. UsageError for a name that is not in MODELS or fewer than two
    classes.
    """
    if name not in MODELS:
        raise unknown("network", name, MODELS)
    if not 2 <= classes <= MOST_CLASSES:
        raise UsageError(f"{name} for {classes} classes; a classifier tells 2 to {MOST_CLASSES:,} apart")
    return MODELS[name](classes)


def parameters(model: nn.Module) -> int:
    """The number of trainable and frozen parameters, each shared one counted once; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())
