"""The folder that commands work in: the teacher, its record and split, the defaults in kdtool.toml, cache and runs.

kdtool.toml            defaults for extract, distill and analyze, with the teacher's SHA-256 and the split's digest
teacher.safetensors    weights; teacher.json says of what network, on which data; teacher.split.json the index lists
cache.zarr             what extract wrote
runs/<name>            one folder a run
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdtool import data, files
from kdtool.cache import Cache, open_cache
from kdtool.data import splits
from kdtool.data.augment import Augmentation
from kdtool.data.batches import Images
from kdtool.data.dataset import Rows
from kdtool.engine import checkpoint
from kdtool.engine.job import Labelled
from kdtool.engine.runs import read_toml, toml
from kdtool.errors import DamageError, IdentityError, UsageError, unknown
from kdtool.models import create

DEFAULT_STUDENT = "resnet18"
DEFAULT_VIEWS = 8


@dataclass(frozen=True)
class Workspace:
    """Paths and defaults of a working folder; `settings` are those of kdtool.toml."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Workspace":
        """The workspace of a folder; without a kdtool.toml it has no settings yet."""
        path = folder / "kdtool.toml"
        settings = read_toml(path) if path.exists() else {}
        for key in settings:
            if key not in _SETTINGS:
                raise unknown(f"setting of {path}", key, _SETTINGS)
            if type(settings[key]) is not _SETTINGS[key]:
                wanted = "a whole number" if _SETTINGS[key] is int else "a text"
                raise UsageError(f"{path}: {key} is {settings[key]!r}; {wanted} is expected")
        return cls(folder, settings)

    @property
    def teacher(self) -> Path:
        """The teacher's weights."""
        return self.folder / str(self.settings.get("teacher", "teacher.safetensors"))

    @property
    def cache(self) -> Path:
        """The cache."""
        return self.folder / str(self.settings.get("cache", "cache.zarr"))

    @property
    def words(self) -> list[str]:
        """The options that lead a command to this folder and cache, for messages that tell what to type."""
        folder = [] if self.folder == Path() else ["--folder", str(self.folder)]
        named = Path(str(self.settings.get("cache", ""))).is_absolute()
        return [*folder, *(["--cache", str(self.cache)] if named else [])]

    @property
    def runs(self) -> Path:
        """The folder of runs."""
        return self.folder / "runs"

    def need(self, key: str, option: str) -> Any:
        """A setting that a command cannot do without."""
        if key not in self.settings:
            raise UsageError(
                f"{self.folder / 'kdtool.toml'} does not say {key}; run `kdtool teach` in this folder first, "
                f"or give {option}"
            )
        return self.settings[key]

    def write(self, settings: dict[str, Any]) -> None:
        """Writes kdtool.toml."""
        header = "# Defaults of the kdtool commands in this folder, written by `kdtool teach`.\n"
        files.write(self.folder / "kdtool.toml", (header + toml(settings)).encode())


_SETTINGS: dict[str, type] = {
    "data": str,
    "data_folder": str,
    "teacher": str,
    "teacher_sha256": str,
    "split_digest": str,
    "student": str,
    "cache": str,
    "views": int,
}


@dataclass(frozen=True)
class TeacherRecord:
    """What is known of a teacher beside its weights: the content of teacher.json."""

    network: str
    classes: int
    sha256: str
    data: str
    data_digest: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    split_digest: str
    test_accuracy: float


_RECORD: dict[str, type] = {
    **dict.fromkeys(("network", "sha256", "data", "data_digest", "split_digest"), str),
    **dict.fromkeys(("image_shape", "mean", "std"), list),
    "classes": int,
    "flip": bool,
    "test_accuracy": float,
}

# What is read of the identity of a cache, which holds more.
_IDENTITY: dict[str, Any] = {
    "teacher": {"network": str, "sha256": str, "split_digest": str},
    "data": {"name": str, "digest": str, "image_shape": list},
    "split": {"rule": {"validation": int}, "digest": str},
    "augmentation": {"pad": int, "flip": bool, "seed": int},
    "numeric": {"precision": str},
}


def open_teacher_cache(path: Path) -> Cache:
    """The cache at `path`, whose identity is one that `kdtool extract` wrote; errors as for `open_cache`."""
    cache = open_cache(path)
    check_identity(path, cache.identity)
    return cache


def check_identity(path: Path, identity: dict[str, Any]) -> None:
    """DamageError where the identity of a cache lacks what every command reads of it."""
    files.check_fields(identity, _IDENTITY, f"the identity of {path}", "extract into another --cache")


def record_path(teacher: Path) -> Path:
    """teacher.safetensors -> teacher.json."""
    return teacher.with_suffix(".json")


def split_path(teacher: Path) -> Path:
    """teacher.safetensors -> teacher.split.json."""
    return teacher.with_suffix(".split.json")


def write_teacher(path: Path, model: nn.Module, split: splits.Split, about: dict[str, Any]) -> TeacherRecord:
    """Writes weights, split and, last, the record."""
    digest = checkpoint.save_weights(path, model)
    files.write(split_path(path), files.canonical(splits.to_plain(split)).encode())
    record = TeacherRecord(**about, sha256=digest, split_digest=split.digest)
    files.write_json(record_path(path), vars(record).copy())
    return record


def read_record(path: Path) -> TeacherRecord:
    """The record of a teacher."""
    place = record_path(path)
    if not place.exists():
        raise UsageError(f"there is no teacher: {place} does not exist; run `kdtool teach` first")
    plain = files.read_json(place, "train the teacher again with `kdtool teach`", _RECORD)
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in plain.items()}
    threes = (values["image_shape"], values["mean"], values["std"])
    numbers = all(type(item) in (int, float) for three in threes for item in three)
    if values.keys() != _RECORD.keys() or not numbers or any(len(three) != 3 for three in threes):
        raise DamageError(
            f"{place} is the record of another version of kdtool; train the teacher again with `kdtool teach`"
        )
    return TeacherRecord(**values)


def read_teacher(path: Path, record: TeacherRecord, device: torch.device) -> nn.Module:
    """The teacher's network with its weights, in eval mode."""
    model = create(record.network, record.classes)
    checkpoint.load_weights(path, model, record.sha256)
    return model.to(device).eval()


def read_split(path: Path, record: TeacherRecord) -> splits.Split:
    """The split that the teacher was trained on."""
    place = split_path(path)
    try:
        split = splits.from_plain(json.loads(place.read_bytes()))
    except (OSError, ValueError, RecursionError, DamageError) as error:
        raise DamageError(f"{place} cannot be read ({error}); train the teacher again with `kdtool teach`") from None
    if split.digest != record.split_digest:
        raise DamageError(f"{place} is not the split of this teacher; train it again with `kdtool teach`")
    return split


def load_data(name: str, folder: str | None, digest: str, classes: int) -> data.Dataset:
    """The data set that a teacher was trained on; another number of classes or another content is refused."""
    found = data.load(name, Path(folder) if folder else None)
    if found.classes != classes:
        raise UsageError(
            f"the data set {name} has {found.classes} classes and the teacher tells {classes} apart; take the data "
            "set that it was trained on, or train another teacher with `kdtool teach`"
        )
    if found.digest != digest:
        raise IdentityError(
            f"the data set {name} has other content than the one the teacher was trained on: digest "
            f"{found.digest[:12]} found, {digest[:12]} expected; name the right folder with --data-folder"
        )
    return found


def labelled(
    part: data.Part, rows: Rows, augmentation: Augmentation, of: data.Dataset, device: torch.device
) -> Labelled:
    """Some images of a part, with their labels, on the device."""
    images = Images(part.images, rows, augmentation, of.mean, of.std, device)
    return Labelled(images, torch.from_numpy(part.labels[rows]).to(device))
