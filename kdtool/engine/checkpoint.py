"""Weights and training states on disk: safetensors with a SHA-256 beside them, no pickle, whole or absent."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from kdtool import files
from kdtool.errors import DamageError, UsageError

Tensors = dict[str, torch.Tensor]


def save_weights(path: Path, model: nn.Module) -> str:
    """Writes a network's state; gives the file's SHA-256."""
    content = save(apart(model.state_dict()))
    files.write(path, content)
    return files.sha256(content)


def apart(tensors: Tensors) -> Tensors:
    """The tensors in memory; one that two names share comes twice, since safetensors refuses to write it so."""
    found: Tensors = {}
    places: set[int] = set()
    for name, value in tensors.items():
        own = value.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in places else own
        places.add(place)
    return found


def holds(path: Path, sha256: str) -> bool:
    """Whether a file is there and has this SHA-256."""
    return path.is_file() and files.sha256_file(path) == sha256


def load_tensors(path: Path, sha256: str | None) -> Tensors:
    """Reads a safetensors file; content other than `sha256` says is refused as damaged."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    content = path.read_bytes()
    if sha256 is not None and files.sha256(content) != sha256:
        raise DamageError(
            f"{path} is damaged: its SHA-256 is {files.sha256(content)[:12]}, and {sha256[:12]} was recorded; "
            "write it again or restore it from a copy"
        )
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise DamageError(f"{path} is not a whole safetensors file ({error}); write it again") from error


def load_weights(path: Path, model: nn.Module, sha256: str | None) -> None:
    """Loads what `save_weights` wrote into a network of the same architecture."""
    found, wanted = load_tensors(path, sha256), model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    expected = {name: tuple(value.shape) for name, value in wanted.items()}
    if shapes != expected:
        odd = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))[0]
        raise UsageError(
            f"{path} holds the weights of another network: {odd} is {shapes.get(odd, 'absent')} there and "
            f"{expected.get(odd, 'absent')} in the network asked for"
        )
    model.load_state_dict(found)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """An optimiser's state as flat tensors and plain numbers."""
    tensors: Tensors = {}
    plain: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain[f"{index}.{name}"] = value
    return tensors, plain


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, plain: dict[str, Any]) -> None:
    """Puts back what `optimizer_tensors` took."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *plain.items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, held in optimizer.state.items():  # files know no memory format, and it decides the last bits
        for name, value in held.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                held[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def save_state(folder: Path, tensors: Tensors, plain: dict[str, Any]) -> None:
    """Writes a training state: the tensors first, under a name of their own, then `state.json`, which names them.

    A crash between the two leaves the state before in force; what no state names is removed afterwards.
    """
    content = save(apart(tensors))
    digest = files.sha256(content)
    name = f"state-{digest[:16]}.safetensors"
    files.write(folder / name, content)
    files.write_json(folder / "state.json", {"tensors": name, "sha256": digest, "plain": plain})
    _remove(folder, besides=name)


def load_state(folder: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """The training state in a folder, or None where there is none."""
    if not (folder / "state.json").exists():
        return None
    known = {"tensors": str, "sha256": str, "plain": dict}
    record = files.read_json(folder / "state.json", f"remove {folder} and start again", known)
    return load_tensors(folder / str(record["tensors"]), str(record["sha256"])), dict(record["plain"])


def clear_state(folder: Path) -> None:
    """Removes a training state that is no longer needed."""
    (folder / "state.json").unlink(missing_ok=True)
    _remove(folder)


def _remove(folder: Path, besides: str = "") -> None:
    for old in folder.glob("state-*"):  # what a killed process left half-written, too
        if old.name != besides:
            old.unlink()


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    """Tensors under `prefix.`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def selected(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors under `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
