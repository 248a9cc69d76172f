"""What every network that is not ours goes through: names for its taps, no layer in place, a check of what it gives."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from kdtool.errors import UsageError
from kdtool.imports import LIBRARIES
from kdtool.models.heads import head
from kdtool.models.taps import INPUT, declared, repeats, resolve, tap_shapes

TAP = re.compile(r"[a-z][a-z0-9_.]*")  # taps become names of folders in a cache, some of which tell no capitals apart


def out_of_place(model: nn.Module) -> None:
    """Switches off every layer's in-place form, which gives the same bits but would overwrite the tap before it."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


def with_taps(model: nn.Module, taps: Mapping[str, str]) -> nn.Module:
    """Adds taps, as tap -> module path, to those that the model declares; the new ones win.

    UsageError for a path that the model does not have, which lists those that it has, and for a tap's name that is not
    made of small letters, digits, _ and dots.
    """
    for name in taps:
        if not TAP.fullmatch(name):
            raise UsageError(f"the tap {name!r}: a name of small letters, digits, _ and dots is expected, as in stage2")
    resolve(model, list(taps), taps)
    if taps:
        try:
            model.taps = {**declared(model), **taps}  # type: ignore[assignment]
        except (TypeError, AttributeError):  # a layer or a property of this name
            raise UsageError(
                f"{type(model).__name__} has something else in its attribute `taps`, where kdtool keeps the names of "
                "layers; give that another name"
            ) from None
    return model


def before_head(model: nn.Module) -> dict[str, str]:
    """The tap before_fc: the vector that a linear classifier reads, ahead of dropout that stands directly before it.

    Nothing where the last layer is none. Dropout counts where it is the part of a chain (nn.Sequential) just before.
    """
    try:
        path = head(model)
    except UsageError:
        return {}
    if not isinstance(model.get_submodule(path), nn.Linear):
        return {}
    parent, _, name = path.rpartition(".")
    chain = model.get_submodule(parent)
    if isinstance(chain, nn.Sequential):
        names = [child for child, _ in chain.named_children()]
        place = names.index(name)
        while place > 0 and isinstance(chain.get_submodule(names[place - 1]), nn.Dropout):
            place -= 1
        name = names[place]
    return {"before_fc": f"{parent}.{name}{INPUT}" if parent else f"{name}{INPUT}"}


def check_output(name: str, model: nn.Module, classes: int, image_shape: tuple[int, int, int]) -> None:
    """UsageError where a network cannot read images (C, H, W) or gives other than logits for the classes, or where one
    of the user's gives an image other logits each time: nobody could tell a later answer from that of other code.
    """
    with explained(name, image_shape):
        found = tap_shapes(model, image_shape, [])["after_fc"]
    if found != (classes,):
        raise UsageError(
            f"{name} gives {' x '.join(map(str, found))} numbers for an image of {classes} classes; "
            f"{classes} logits are expected: let it take the number of classes that it is called with"
        )
    if is_own(name) and not repeats(model, image_shape):
        raise UsageError(
            f"{name} gives the same image other logits each time in eval mode; let what it draws, as dropout does, "
            "depend on self.training"
        )


def is_own(name: str) -> bool:
    """Whether a network is the user's, path.to:factory, and none of kdtool's or of a library's."""
    return ":" in name and name.partition(":")[0] not in LIBRARIES


def check_known(library: str, name: str, known: Sequence[str]) -> None:
    """UsageError, with the nearest right name, for a network that a library does not have: too many to list."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {len(known):,}, as {', '.join(known[:3])}"
        raise UsageError(f"unknown network of {library} {name!r}; {hint}")


@contextmanager
def explained(name: str, image_shape: tuple[int, int, int]) -> Iterator[None]:
    """Turns the failure of one of kdtool's or a library's networks on images of a size that it cannot take into one
    that says so. A user's own network is left alone, so that the line of its file is told.
    """
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        if not is_own(name):
            size = "x".join(map(str, image_shape))
            raise UsageError(f"{name} cannot read images of {size}: {error}; name another --image-size") from error
        raise
