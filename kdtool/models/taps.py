"""Named layers of any `nn.Module`, read by forward hooks: names to module paths, a reader, the shapes.

A tap is the output of a module, or its first input where the path ends in ":input". The empty path is the model
itself: its output, the logits, is the tap after_fc. A module that runs several times in one pass is read at its last
run. Left out: layers that are no modules (functional calls), outputs that are not one tensor.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from kdtool.errors import UsageError
from kdtool.targets import Shape, canonical_tap

INPUT = ":input"
LISTED = 30  # names in an error message


def declared(model: nn.Module) -> dict[str, str]:
    """The taps that a model names itself (attribute `taps`), and after_fc, its output, which every model has."""
    taps = getattr(model, "taps", None)
    found = dict(taps) if isinstance(taps, Mapping) else {}
    return found | {"after_fc": found.get("after_fc", "")}


def resolve(model: nn.Module, names: Sequence[str], extra: Mapping[str, str] = {}) -> dict[str, str]:
    """Tap -> module path for each name: that of `extra`, else of the model's own taps, else the name is a path itself.

    KDA's conv2_x to conv5_x stand for stage1 to stage4 where they are not taps themselves. UsageError for a name that
    the model does not have, or a path in `extra` that it does not have; it lists what there is.
    """
    known = {**declared(model), **extra}
    modules = {path for path, _ in model.named_modules(remove_duplicate=False)}
    paths = {name: known.get(name, known.get(canonical_tap(name), name)) for name in names}
    for name, path in paths.items():
        if not name or path.removesuffix(INPUT) not in modules:
            raise _missing(model, name, path, known)
    return paths


def _missing(model: nn.Module, name: str, path: str, known: Mapping[str, str]) -> UsageError:
    modules = sorted((module for module, _ in model.named_modules() if module), key=lambda module: module.count("."))
    if path == name:
        found, possible = f"unknown tap {name!r}", [*known, *modules]
    else:
        found, possible = f"the tap {name!r} was given as {path!r}, which is no module of the network", modules
    near = difflib.get_close_matches(path.removesuffix(INPUT), possible, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    has_taps = path == name and len(declared(model)) > 1
    listed = list(known) if has_taps else modules
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    kind = "taps" if has_taps else "modules"
    return UsageError(f"{found}; {hint}{kind} of the network: {', '.join(listed[:LISTED])}{more}")


class TapReader:
    """Runs a model once and gives its logits and the named taps; usable as a context manager.

    `model` is hooked and `call` (default: the model) is called: a model that is wrapped, as by
    DistributedDataParallel, is given as TapReader(inner, names, call=wrapped). The hooks stay until `close`; a tap that
    is the model's own output needs none. Taps keep the autograd graph and the network's memory format. Nothing is kept
    between calls.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        extra: Mapping[str, str] = {},
        call: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._call = model if call is None else call
        self._paths = resolve(model, names, extra)
        self._handles = [self._hook(model, path) for path in sorted(set(self._paths.values())) if path]
        self._seen: dict[str, tuple[Any, int]] | None = None  # path -> value and its version; None between calls

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits (B, classes) and tap -> (B, ...), keys as they were asked for.

        UsageError where a tap did not run, is not one tensor, or was overwritten by a later in-place layer.
        """
        self._seen = {}
        try:
            self._keep("", self._call(images))
            taps = {name: self._value(name, path) for name, path in self._paths.items()}
            return self._value("after_fc", ""), taps
        finally:
            self._seen = None

    def close(self) -> None:
        """Removes the hooks; the reader cannot be called any more."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hook(self, model: nn.Module, path: str) -> torch.utils.hooks.RemovableHandle:
        module = model.get_submodule(path.removesuffix(INPUT))
        if path.endswith(INPUT):
            return module.register_forward_pre_hook(lambda _, inputs: self._keep(path, inputs[0] if inputs else None))
        return module.register_forward_hook(lambda _, __, output: self._keep(path, output))

    def _keep(self, path: str, value: Any) -> None:
        if self._seen is None:  # somebody else runs the model
            return
        if isinstance(value, torch.Tensor) and value.is_inference():
            value = value.clone()  # inference tensors have no version that would show a later change
        self._seen[path] = (value, _version(value))

    def _value(self, name: str, path: str) -> torch.Tensor:
        assert self._seen is not None
        if path not in self._seen:
            raise UsageError(f"the tap {name!r} ({path}) did not run in the forward pass; name a module that does")
        value, version = self._seen[path]
        if not isinstance(value, torch.Tensor):
            raise UsageError(
                f"the tap {name!r} ({path or 'the output of the network'}) is not one tensor but a value of type "
                f"{type(value).__name__}; name one that gives a tensor, or one that takes it, with {INPUT} behind"
            )
        if _version(value) != version:
            raise UsageError(
                f"the tap {name!r} ({path}) was overwritten by a later layer that works in place; set inplace=False "
                "on that layer, or name the output of that layer"
            )
        return value


def _version(value: Any) -> int:
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0


def tap_shapes(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    names: Sequence[str] | None = None,
    extra: Mapping[str, str] = {},
) -> dict[str, Shape]:
    """The shape of one sample of every tap: the model's own, those of `extra` and `names`, for images (C, H, W).

    Runs one zero image in eval mode on a copy of the buffers; modes, buffers and random generators stay as they were.
    """
    wanted = list(dict.fromkeys([*declared(model), *extra, *(names or ())]))
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    run = partial(torch.func.functional_call, model, buffers)
    with TapReader(model, wanted, extra, call=run) as read, _undisturbed(model, weight.device), torch.no_grad():
        _, taps = read(image)
    return {name: tuple(value.shape[1:]) for name, value in taps.items()}


def repeats(model: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Whether a network gives an image (C, H, W) the same logits again, in eval mode; it is left as it was."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    pixels = torch.linspace(-1, 1, math.prod(image_shape), dtype=weight.dtype, device=weight.device)
    image = pixels.view(1, *image_shape)
    held = [{name: buffer.clone() for name, buffer in model.named_buffers()} for _ in range(2)]
    with _undisturbed(model, weight.device), torch.no_grad():
        first, second = (torch.func.functional_call(model, buffers, (image,)) for buffers in held)
    return torch.allclose(first, second, rtol=1e-3, atol=1e-5)


def parameters_behind(model: nn.Module, names: Sequence[str], image_shape: tuple[int, ...]) -> set[str]:
    """The names of the parameters that taps are computed from, by the gradient of one zero image in eval mode.

    Modes, buffers and random generators stay as they were, and so do gradients.
    """
    parameters = dict(model.named_parameters())
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    weight = next(iter(leaves.values()))
    image = torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    run = partial(torch.func.functional_call, model, {**leaves, **buffers})
    with TapReader(model, names, call=run) as read, _undisturbed(model, weight.device), torch.enable_grad():
        _, taps = read(image)
        total = torch.stack([tap.sum() for tap in taps.values()]).sum()
    if not total.requires_grad:  # nothing trains that they are computed from
        return set()
    found: Sequence[torch.Tensor | None] = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {name for name, gradient in zip(leaves, found, strict=True) if gradient is not None}


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode for the block; afterwards every module's mode and the random generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode
