"""What of a network stays as it is while it is trained: layers by name, or all but the classifier."""

from collections.abc import Sequence

from torch import nn

from kdtool.errors import UsageError
from kdtool.models.heads import head
from kdtool.models.taps import declared, parameters_behind, resolve, tap_shapes

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
            within = f"{classifier(model, image_shape)}."
            kept = {parameter for parameter in every if not parameter.startswith(within)}
        elif name in declared(model):
            kept = parameters_behind(model, (name,), image_shape)
        else:
            within = f"{resolve(model, (name,))[name]}."
            kept = {parameter for parameter in every if parameter.startswith(within)}
        if not kept:
            raise UsageError(f"--freeze {name} keeps nothing: no parameter lies there; name a layer that has some")
        found |= kept
    if found.issuperset(every):
        raise UsageError(f"--freeze {' '.join(names)} leaves nothing to train; --freeze {BODY} leaves the classifier")
    return frozenset(found)


def classifier(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """The path of the layer that gives the logits; UsageError where what is found gives another number of them."""
    path = head(model)
    layer = model.get_submodule(path)
    given = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    wanted = tap_shapes(model, image_shape, ())["after_fc"]
    if (given,) != wanted:
        raise UsageError(
            f"the classifier was looked for and {path} found, which gives {given} numbers where the network gives "
            f"{wanted[0]}; name the layer by --tap before_fc=PATH:input"
        )
    return path


def head_rate(
    model: nn.Module, image_shape: tuple[int, int, int], own: float | None, common: float
) -> tuple[str, float]:
    """(path of the classifier, its own learning rate by the common one); ("", 1.0) where it has none of its own."""
    return (classifier(model, image_shape), own / common) if own is not None else ("", 1.0)


def idle_modules(model: nn.Module, image_shape: tuple[int, int, int]) -> list[nn.Module]:
    """Layers without parameters, such as dropout or a plain BatchNorm, that run before the first one that trains."""
    order: list[nn.Module] = []
    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_pre_hook(lambda module, _: order.append(module)) for module in leaves]
    try:
        tap_shapes(model, image_shape, ())
    finally:
        for handle in handles:
            handle.remove()
    trains = [any(parameter.requires_grad for parameter in module.parameters()) for module in order]
    first = trains.index(True) if True in trains else len(order)
    return [module for module in order[:first] if not list(module.parameters())]
