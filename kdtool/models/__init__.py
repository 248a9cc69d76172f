"""The networks by name, and the named layers (taps) of any network. Left out: pretrained weights."""

from collections.abc import Callable, Mapping

from torch import nn

from kdtool.errors import UsageError, unknown
from kdtool.models import (
    allcnn,
    bottleneck,
    densenet,
    mobilenet,
    own,
    resnet,
    resnet_four_stages,
    shufflenet_v1,
    shufflenet_v2,
    timm_networks,
    torchvision_networks,
    vgg,
    wide_resnet,
)
from kdtool.models.cost import multiply_adds, parameters
from kdtool.models.foreign import check_output, with_taps
from kdtool.models.taps import TapReader, resolve, tap_shapes

__all__ = [
    "MODELS",
    "TapReader",
    "check_name",
    "check_output",
    "create",
    "image_width",
    "large_for",
    "multiply_adds",
    "parameters",
    "resolve",
    "tap_shapes",
]

MODELS: dict[str, Callable[[int], nn.Module]] = {
    **resnet.NETWORKS,
    **resnet_four_stages.NETWORKS,
    **bottleneck.NETWORKS,
    **wide_resnet.NETWORKS,
    **vgg.NETWORKS,
    **mobilenet.NETWORKS,
    **shufflenet_v1.NETWORKS,
    **shufflenet_v2.NETWORKS,
    **allcnn.NETWORKS,
    **densenet.NETWORKS,
    **torchvision_networks.NETWORKS,
}

MOST_CLASSES = 1_000_000


def create(name: str, classes: int = 100, taps: Mapping[str, str] = {}) -> nn.Module:
    """A freshly initialised network for images (B, 3, H, W) that gives logits (B, classes).

    name: one of MODELS, `tv:NAME` of torchvision, `timm:NAME` of timm, or `path.to:factory` of the user, which runs the
    user's module. taps: tap -> module path, added to those that the network declares, over equal ones. The weights are
    drawn from torch's global generator. UsageError for a name that `check_name` refuses, a path that the network does
    not have, or fewer than two classes.
    """
    check_name(name)
    if not 2 <= classes <= MOST_CLASSES:
        raise UsageError(f"{name} for {classes} classes; a classifier tells 2 to {MOST_CLASSES:,} apart")
    return with_taps(_built(name, classes), taps)


def check_name(name: str) -> None:
    """UsageError, with the nearest right name, where `create` would refuse a name; nothing is built.

    A library is imported to know its names, and a user's module to find its factory.
    """
    library, mark, rest = name.partition(":")
    if library == "tv" and mark:
        torchvision_networks.check(rest)
    elif library == "timm" and mark:
        timm_networks.check(rest)
    elif mark:
        own.check(name)
    elif name not in MODELS:
        raise unknown("network", name, MODELS)


def _built(name: str, classes: int) -> nn.Module:
    library, mark, rest = name.partition(":")
    if library == "tv" and mark:
        return torchvision_networks.create(rest, classes)
    if library == "timm" and mark:
        return timm_networks.create(rest, classes)
    return own.create(name, classes) if mark else MODELS[name](classes)


def image_width(name: str) -> int:
    """The width of the images that a network is made for: 224 for tv:, timm: and allcnn_transfer, else 32."""
    return 224 if name.startswith(("tv:", "timm:")) or name == "allcnn_transfer" else 32


def large_for(name: str, image_shape: tuple[int, int, int]) -> str:
    """What is to be said of images (channels, height, width) that a network of kdtool's is not made for; else empty."""
    width, (_, high, wide) = image_width(name), image_shape
    if ":" in name or max(high, wide) < 2 * width:
        return ""
    return (
        f"{name} is made for images of {width}x{width}; at {high}x{wide} it takes many times the arithmetic of "
        "networks for that size, as tv:resnet18"
    )
