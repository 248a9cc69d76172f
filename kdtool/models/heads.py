"""Where a network's classifier is. Left out: putting another one in its place; `create` takes the number of classes."""

from torch import nn

from kdtool.errors import UsageError
from kdtool.models.taps import INPUT, declared

NAMES = ("fc", "classifier", "head", "heads")  # what classifiers are called, in our networks and in libraries


def head(model: nn.Module) -> str:
    """The path of the layer that gives the logits: a linear one, or a 1x1 convolution.

    The first of these that holds such a layer, and in it the one that was defined last: the module whose input is the
    tap before_fc; what timm's `get_classifier` gives; the last child named fc, classifier, head or heads; the whole
    network. Where this finds the wrong layer, a tap before_fc corrects it. UsageError where there is none.
    """
    paths: dict[nn.Module, str] = {module: path for path, module in model.named_modules()}
    for place in _places(model):
        if place in paths:
            found: list[str] = [
                path for path, module in place.named_modules(prefix=paths[place]) if _classifies(module)
            ]
            if found:
                return found[-1]
    raise UsageError(
        f"{type(model).__name__} has no linear layer and no 1x1 convolution, so that no classifier is found in it; "
        "end the network with one"
    )


def _places(model: nn.Module) -> list[nn.Module]:
    """The modules in which the classifier is looked for, the likeliest first."""
    modules = dict(model.named_modules())
    tapped = declared(model).get("before_fc", "")
    places = [modules.get(tapped.removesuffix(INPUT))] if tapped.endswith(INPUT) else []
    ask = getattr(model, "get_classifier", None)
    if callable(ask):
        places.append(ask())
    places += [child for name, child in model.named_children() if name in NAMES][-1:]
    return [place for place in [*places, model] if isinstance(place, nn.Module)]


def _classifies(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1)
    return isinstance(module, nn.Linear)
