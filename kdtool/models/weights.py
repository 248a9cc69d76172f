"""Initial weights from a file, for fine-tuning: safetensors, or what torch.save wrote, read without running any code.

Left out: kdtool's own checkpoints, which must fit to the last tensor (engine/checkpoint.py).
"""

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kdtool import files
from kdtool.errors import DamageError, UsageError
from kdtool.models.heads import head
from kdtool.models.renames import ours

SAFETENSORS = (".safetensors",)
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # model_best.pth.tar is what torch.save wrote, no archive
INSIDE = ("state_dict", "model", "model_state_dict", "net", "ema")  # keys under which checkpoints keep the tensors
PREFIXES = ("model.", "module.", "_orig_mod.")  # before the names of tensors
DEPTH = 4  # of such keys in each other
UNWRITTEN = "num_batches_tracked"  # old files do not have it, and nothing but a cumulative average reads it
NAMED = 3  # tensors in a message

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Loaded:
    """What came of a file: its SHA-256, the tensors that were loaded, and (new) those that stay as they were."""

    file: str
    sha256: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def record(self) -> dict[str, Any]:
        """As plain values: file, sha256 and what is new."""
        return {"file": self.file, "sha256": self.sha256, "new": list(self.new)}

    @property
    def remark(self) -> str:
        """All of it in a line."""
        new = f"; new: {_some(self.new)}" if self.new else ""
        return f"{self.file} (SHA-256 {self.sha256[:12]}): {len(self.loaded)} tensors{new}"


def load_initial(path: Path, model: nn.Module) -> Loaded:
    """Loads a file of weights into a network, in the network's own types.

    Every tensor must be there in the network's shape. The classifier (`heads.head`) stays as it is where the file has
    none or one for another number of classes, and so does num_batches_tracked where the file has none. Nothing is
    loaded where anything does not fit: UsageError. DamageError for a file that is damaged or that would run code.
    """
    if not path.is_file():
        raise UsageError(f"there is no file of weights {path}")
    found = read_tensors(path)
    wanted: Tensors = dict(model.state_dict())
    found = {_plain(name, wanted): value for name, value in found.items()}
    if not found.keys() & wanted.keys() - {"fc.weight", "fc.bias"}:
        names = ours([name for name in found if not name.endswith(UNWRITTEN)], wanted)
        found = {names[name]: value for name, value in found.items() if name in names}
    classifier = _classifier(model)
    if _other_classes(found, wanted, classifier):
        found = {name: value for name, value in found.items() if not name.startswith(classifier)}
        optional = {name for name in wanted if name.startswith(classifier)}
    else:
        optional = set()
    _check(path, found, wanted, optional)
    loaded = [name for name in wanted if name in found]
    with torch.no_grad():
        for name in loaded:
            wanted[name].copy_(found[name])
    new = tuple(name for name in wanted if name not in found)
    return Loaded(str(path), files.sha256_file(path), tuple(loaded), new)


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file by name, on the CPU and where possible mapped, not read."""
    if path.suffix in SAFETENSORS:
        try:
            return dict(load_file(path))
        except (SafetensorError, ValueError, KeyError) as error:
            raise DamageError(f"{path} is not a whole safetensors file ({error}); get it again") from error
    if path.suffix not in PICKLED:
        raise UsageError(f"{path}: weights are read from files that end in {', '.join([*SAFETENSORS, *PICKLED])}")
    tensors = _inner(_unpickled(path))
    if not tensors:
        raise UsageError(
            f"{path} holds no tensors by name; save the network's state_dict(), alone or under one of the keys "
            f"{', '.join(INSIDE)}"
        )
    return tensors


FAILURES = (  # of torch's reader; hostile bytes can fail anywhere
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _unpickled(path: Path) -> Any:
    """What torch.save wrote, by torch's reader that admits tensors and plain values alone and calls nothing else."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # about forms that are read all the same, or refused below
            torch.serialization.safe_globals([argparse.Namespace]),  # options that programs save beside; inert
        ):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FAILURES as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise DamageError(
                f"{path} holds more than tensors: it would call {named[1]}, and kdtool runs no code from a file of "
                "weights; nothing of it was run. Save the network's state_dict() as safetensors where you trust it"
            ) from error
        raise DamageError(f"{path} is not a whole file of torch.save ({_reason(error)}); get it again") from error


def _reason(error: Exception) -> str:
    """What a failure of torch's reader says, without its advice to read the file in a way that runs code."""
    if isinstance(error, pickle.UnpicklingError):
        unsupported = re.search(r"Unsupported [a-z]+ \S+", str(error))
        return unsupported[0] if unsupported else "another kind of pickle"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _inner(value: Any) -> Tensors:
    """The tensors of a checkpoint, through the keys under which programs keep them."""
    for _ in range(DEPTH):
        if not isinstance(value, Mapping):
            return {}
        key = next((key for key in INSIDE if isinstance(value.get(key), Mapping)), None)
        if key is None:
            break
        value = value[key]
    return {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, torch.Tensor)}


def _plain(name: str, wanted: Tensors) -> str:
    """A tensor's name without what DataParallel, torch.compile and training programs put before it."""
    for prefix in PREFIXES:
        if name not in wanted:
            name = name.removeprefix(prefix)
    return name


def _classifier(model: nn.Module) -> str:
    """What the names of the classifier's tensors begin with; a text that none begins with where there is none."""
    try:
        return f"{head(model)}."
    except UsageError:
        return "\0"


def _other_classes(found: Tensors, wanted: Tensors, classifier: str) -> bool:
    """Whether the file's classifier is absent, or differs in the number of its classes alone."""
    pairs = [(found[name], value) for name, value in wanted.items() if name.startswith(classifier) and name in found]
    return all(ours.dim() and theirs.shape[1:] == ours.shape[1:] and len(theirs) != len(ours) for theirs, ours in pairs)


def _check(path: Path, found: Tensors, wanted: Tensors, optional: Set[str]) -> None:
    """UsageError for tensors that are lacking, too many or of another shape, DamageError for other than arrays.

    optional: names that may be lacking, beside counts of batches.
    """
    enough = {*found, *optional}
    missing = [name for name in wanted if name not in enough and not name.endswith(UNWRITTEN)]
    unexpected = [name for name in found if name not in wanted and not name.endswith(UNWRITTEN)]
    both = [name for name in wanted if name in found]
    misfits = [f"{n} {_size(found[n])} for {_size(wanted[n])}" for n in both if found[n].shape != wanted[n].shape]
    wrong = (("missing", missing), ("not of this network", unexpected), ("of another shape", misfits))
    if any(names for _, names in wrong):
        told = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in wrong if names)
        raise UsageError(
            f"{path} holds the weights of another network: of {len(wanted)} tensors {told}. Name the network that the "
            "file was made with, or rename its tensors; only the classifier may differ"
        )
    odd = [name for name in both if not _is_array(found[name])]
    if odd:
        raise DamageError(f"{path}: {_some(odd)} is no plain array of real numbers; save it again as safetensors")
    bad = [name for name in both if found[name].is_floating_point() and not bool(torch.isfinite(found[name]).all())]
    if bad:
        raise DamageError(f"{path}: {_some(bad)} holds infinite or NaN values; take the weights of an earlier epoch")


def _is_array(value: torch.Tensor) -> bool:
    return value.layout is torch.strided and not (value.is_quantized or value.is_complex() or value.is_meta)


def _size(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:NAMED], *(["..."] if len(names) > NAMED else [])])
