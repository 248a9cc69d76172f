"""A user's own network: `path.to:factory`, which is called as factory(classes) and gives an nn.Module.

The module's attribute `taps` (tap -> module path) names its layers. Without it the tap before_fc is the input of the
linear layer that `heads.head` finds; every other layer is named by its module path or by a tap of the user's. Layers
work out of place, as in every network that is not ours.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from kdtool.errors import UsageError
from kdtool.imports import load
from kdtool.models.foreign import before_head, out_of_place, with_taps
from kdtool.models.taps import declared

Factory = Callable[[int], Any]


def check(reference: str) -> Factory:
    """The factory that `path.to:factory` names; UsageError where it is none that takes the number of classes."""
    found = load(reference, "network", "network", "function factory", callable)
    if not callable(found):
        raise UsageError(
            f"network {reference}: this is {_a(found)}; a function that is called with the number of "
            "classes and gives an nn.Module is expected"
        )
    try:
        inspect.signature(found).bind(10)
    except TypeError as error:
        raise UsageError(f"network {reference} is called with the number of classes alone: {error}") from None
    except ValueError:  # what is written in C may have no signature
        pass
    return found


def create(reference: str, classes: int) -> nn.Module:
    """The network that the user's factory gives for so many classes, with its taps checked."""
    model = check(reference)(classes)
    if not isinstance(model, nn.Module):
        raise UsageError(f"network {reference}: it gave {_a(model)}; an nn.Module is expected")
    out_of_place(model)
    lazy = [name for name, value in model.named_parameters() if isinstance(value, nn.parameter.UninitializedParameter)]
    if lazy:
        raise UsageError(f"network {reference}: {lazy[0]} has no size before the first image; give the layer its sizes")
    taps = getattr(model, "taps", None)
    if not isinstance(taps, Mapping):
        return with_taps(model, before_head(model))
    odd = [name for name, path in taps.items() if not (isinstance(name, str) and isinstance(path, str))]
    if odd:
        raise UsageError(f"network {reference}: in its `taps` {odd[0]!r} is no name with the path of a module")
    return with_taps(model, declared(model))


def _a(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"
