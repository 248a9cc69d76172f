"""What of a network stays as it is while it is trained: layers by name, or all but the classifier."""

from collections.abc import Sequence

from torch import nn

from kdtool.errors import UsageError
from kdtool.models.heads import head
from kdtool.models.taps import declared, parameters_behind, resolve

BODY = "body"  # everything but the classifier


def fixed_parameters(model: nn.Module, names: Sequence[str], image_shape: tuple[int, int, int]) -> frozenset[str]:
    """The parameters that `names` keep: a tap those that it is computed from, a module path its own, body all but the
    classifier's.

    UsageError for an unknown name, and where nothing would be left to train.
    """
    every = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for name in names:
        if name == BODY:
            within = f"{head(model)}."
            found |= {parameter for parameter in every if not parameter.startswith(within)}
        elif name in declared(model):
            found |= parameters_behind(model, (name,), image_shape)
        else:
            within = f"{resolve(model, (name,))[name]}."
            found |= {parameter for parameter in every if parameter.startswith(within)}
    if found.issuperset(every):
        raise UsageError(f"--freeze {' '.join(names)} leaves nothing to train; --freeze {BODY} leaves the classifier")
    return frozenset(found)
