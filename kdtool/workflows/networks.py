"""What the networks are: parameters, multiply-adds, taps and modules with their shapes, for `kdtool models`.

The weights of kdtool's and torchvision's networks take no memory for it; timm's and a user's are built.
"""

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kdtool.errors import ResourceError
from kdtool.models import MODELS, check_name, create, image_width, multiply_adds, parameters, tap_shapes
from kdtool.models.foreign import explained
from kdtool.models.taps import declared, resolve
from kdtool.models.torchvision_networks import PREFIX, library


def listed(text: str, classes: int) -> tuple[list[dict[str, Any]], str]:
    """A row for every network of MODELS whose name holds a text, and a line where torchvision's had to be left out."""
    names, note = [name for name in MODELS if text in name], ""
    if any(name.startswith(PREFIX) for name in names):
        try:
            library()
        except ResourceError as error:
            names, note = [name for name in names if not name.startswith(PREFIX)], str(error)
    return [about_network(name, classes) for name in names], note


def about_network(name: str, classes: int, width: int | None = None) -> dict[str, Any]:
    """A network in numbers, for images of a width; by default of the width that it is made for."""
    width = width or image_width(name)
    model = built(name, classes)
    with explained(name, (3, width, width)):
        return {
            "network": name,
            "classes": classes,
            "image_width": width,
            "parameters": parameters(model),
            "multiply_adds": multiply_adds(model, (3, width, width)),
            "taps": list(tap_shapes(model, (3, width, width))),
        }


def layers(name: str, classes: int, width: int | None = None, modules: bool = False) -> list[dict[str, Any]]:
    """Every tap of a network with the shape of one sample and the path of its module; modules: every module's path too.

    The shape of a module that does not run, or that gives something other than one tensor, is empty.
    """
    width = width or image_width(name)
    model = built(name, classes)
    with explained(name, (3, width, width)):
        shapes = tap_shapes(model, (3, width, width))
        seen = _shapes(model, (3, width, width)) if modules else {}
    paths = resolve(model, list(declared(model)))
    rows = [{"tap": tap, "shape": list(shapes[tap]), "module": path} for tap, path in paths.items()]
    return rows + [{"tap": "", "shape": list(shape), "module": path} for path, shape in seen.items()]


def built(name: str, classes: int) -> nn.Module:
    """The network; one that is listed without memory for its weights."""
    check_name(name)
    with torch.device("meta") if name in MODELS else contextlib.nullcontext():
        return create(name, classes)


def _shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Every module's path and the shape of what it gives for one sample, () where that is no tensor."""
    found: dict[str, tuple[int, ...]] = {path: () for path, _ in model.named_modules() if path}

    def keep(path: str, output: object) -> None:
        if isinstance(output, torch.Tensor):
            found[path] = tuple(output.shape[1:])

    def hook(path: str) -> Any:
        return lambda _, __, output: keep(path, output)

    handles = [module.register_forward_hook(hook(path)) for path, module in model.named_modules() if path]
    try:
        tap_shapes(model, image_shape)
    finally:
        for handle in handles:
            handle.remove()
    return found


def shortened(taps: Iterable[str]) -> str:
    """The names of taps in few words: stage1, stage2, stage3 are stage1-3; before_fc and after_fc are left out."""
    names = [tap for tap in taps if tap not in ("before_fc", "after_fc")]
    stages = [tap for tap in names if tap.startswith("stage") and tap[5:].isdigit()]
    before = {f"{stage}.preact" for stage in stages}
    words = [tap for tap in names if tap not in {*stages, *before}]
    words += [f"{stages[0]}-{stages[-1][5:]}" if len(stages) > 1 else stages[0]] if stages else []
    return " ".join(words + (["preact"] if before & set(names) else []))
