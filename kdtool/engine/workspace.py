"""The teacher of a working folder: weights, record and split; its data set as it saw it; the cache of its answers.

Left out: the paths and defaults of the folder (kdtool.engine.folder).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdtool import data, files
from kdtool.cache import Cache, open_cache
from kdtool.data import splits
from kdtool.data.dataset import NO_LABEL, Rows
from kdtool.data.images import Rule, images_of
from kdtool.data.preparation import at_size, rule_from
from kdtool.engine import checkpoint
from kdtool.engine.device import placed
from kdtool.engine.folder import check_identity, check_rule
from kdtool.engine.job import Labelled, seeded, teacher_seed
from kdtool.errors import DamageError, IdentityError, NonFiniteError, UsageError
from kdtool.models import create
from kdtool.progress import Progress

LOGITS = 16  # that a teacher's record keeps
ANSWERED = 1e-2  # of the largest of them: what may lie between two machines


@dataclass(frozen=True)
class TeacherRecord:
    """What is known of a teacher beside its weights: the content of teacher.json.

    taps: those that the user named, beside the network's own. architecture: digest of the layers of a network that is
    not ours, whose code may change under its name; empty for ours. seed: under which the network was made, for what its
    code draws and keeps beside the weights. answer: its first logits for a fixed image.
    """

    network: str
    classes: int
    sha256: str
    data: str
    data_digest: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augmentation: dict[str, Any]
    taps: dict[str, str]
    architecture: str
    seed: int
    answer: tuple[float, ...]
    split_digest: str
    test_accuracy: float
    class_names: tuple[str, ...] = ()  # of a teacher that an earlier kdtool trained there are none

    @property
    def seen(self) -> "Seen":
        """How the teacher saw its data set; the seed of the augmentation is that of its training."""
        shown = (self.image_shape, self.augmentation, self.mean, self.std)
        return Seen(self.data, self.data_digest, self.classes, *shown, self.class_names)


@dataclass(frozen=True)
class Seen:
    """A data set as a network sees it: which one, in which shape (C, H, W), under which augmentation, normalised how.

    augmentation: the record of the rule. mean, std: of each channel, in units of pixel / 255. class_names: in the order
    of the logits, empty where they are not known.
    """

    name: str
    digest: str
    classes: int
    image_shape: tuple[int, int, int]
    augmentation: Mapping[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain values for the result of a run."""
        return {key: list(item) if isinstance(item, tuple) else item for key, item in vars(self).items()}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> "Seen":
        """What `plain` gave. DamageError for something else."""
        try:
            items: dict[str, Any] = {k: tuple(item) if isinstance(item, list) else item for k, item in value.items()}
            found = cls(**items)
            found.rule()
        except (KeyError, TypeError, ValueError, UsageError):
            raise DamageError(
                f"a run's record of how it saw its data is of another version of kdtool ({dict(value)}); train it again"
            ) from None
        return found

    def rule(self, seed: int | None = None) -> Rule:
        """The augmentation, under another seed where one is given."""
        return rule_from(self.augmentation, seed)


_RECORD: dict[str, type] = {
    **dict.fromkeys(("network", "architecture", "sha256", "data", "data_digest", "split_digest"), str),
    **dict.fromkeys(("image_shape", "mean", "std", "answer"), list),
    **dict.fromkeys(("augmentation", "taps"), dict),
    **dict.fromkeys(("classes", "seed"), int),
    "test_accuracy": float,
}


def open_teacher_cache(path: Path) -> Cache:
    """The cache at `path`, whose identity is one that `kdtool extract` wrote; errors as for `open_cache`."""
    cache = open_cache(path)
    check_identity(path, cache.identity)
    return cache


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
        raise UsageError(
            f"there is no teacher: {place} does not exist; name its folder with --folder, or run `kdtool teach` first"
        )
    plain = files.read_json(place, "train the teacher again with `kdtool teach`", _RECORD)
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in plain.items()}
    threes = (values["image_shape"], values["mean"], values["std"])
    check_rule(plain["augmentation"], str(place), "train the teacher again with `kdtool teach`")
    numbers = all(type(item) in (int, float) for row in (*threes, values["answer"]) for item in row)
    names = values.pop("class_names", ())
    named = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    sound = values.keys() == _RECORD.keys() and numbers and named
    if not sound or any(len(three) != 3 for three in threes):
        raise DamageError(
            f"{place} is the record of another version of kdtool; train the teacher again with `kdtool teach`"
        )
    return TeacherRecord(**values, class_names=names)


def read_teacher(path: Path, record: TeacherRecord, device: torch.device, precision: str = "float32") -> nn.Module:
    """The teacher's network with its weights, in eval mode.

    IdentityError where its layers are not those of then, or where it says something else of the same image: the code
    of a network that is not ours may have changed.
    """
    with seeded(teacher_seed(record.seed)):
        model = create(record.network, record.classes, record.taps)
    repair = "restore that version of it, or train the teacher again with `kdtool teach`"
    if architecture(record.network, model) != record.architecture:
        raise IdentityError(f"{record.network} has other layers than when the teacher was trained; {repair}")
    checkpoint.load_weights(path, model, record.sha256)
    if not answers_as(model, record.image_shape, record.answer):
        raise IdentityError(f"{record.network} computes something else than when the teacher was trained; {repair}")
    return placed(model, device, precision).eval()


def architecture(network: str, model: nn.Module) -> str:
    """A digest of the layers, in their order and with their sizes, of a network that is not ours; empty for ours."""
    return files.sha256(repr(model).encode()) if ":" in network else ""


@torch.no_grad()
def answer(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[float, ...]:
    """The first logits that a network on the CPU gives, in eval mode, for an image that is the same everywhere."""
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *image_shape)).astype(np.float32))
    training = model.training
    logits = model.eval()(image)
    model.train(training)
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteError("the network answers with infinite or NaN logits: its training has diverged")
    return tuple(float(value) for value in logits.flatten()[:LOGITS])


def answers_as(model: nn.Module, image_shape: tuple[int, int, int], held: Sequence[float]) -> bool:
    """Whether a network gives the logits that `answer` gave, up to what may lie between two machines."""
    found, then = np.array(answer(model, image_shape)), np.array(held)
    return found.shape == then.shape and np.allclose(found, then, rtol=0, atol=ANSWERED * max(1.0, np.abs(then).max()))


def record_for(path: Path, cache: Cache) -> TeacherRecord:
    """The record of the teacher whose weights are in a file; IdentityError where a cache is of another one."""
    record, wanted = read_record(path), cache.identity["teacher"]["sha256"]
    if record.sha256 != wanted:
        raise IdentityError(
            f"{path} is another teacher than that of the cache {cache.path} (SHA-256 {record.sha256[:12]} "
            f"there, {wanted[:12]} in the cache); restore the cache's, or name another cache with --cache"
        )
    return record


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


def load_data(seen: Seen, folder: str | None, progress: Progress) -> data.Dataset:
    """The data set that a teacher was trained on, as it saw it; another number of classes or content is refused."""
    found = data.load(seen.name, Path(folder) if folder else None, progress)
    if found.classes != seen.classes:
        raise UsageError(
            f"the data set {seen.name} has {found.classes} classes and the teacher tells {seen.classes} apart; take "
            "the data set that it was trained on, or train another teacher with `kdtool teach`"
        )
    if found.digest != seen.digest:
        raise IdentityError(
            f"the data set {seen.name} has other content than the one the teacher was trained on: digest "
            f"{found.digest[:12]} found, {seen.digest[:12]} expected; name the right folder with --data-folder"
        )
    return at_size(replace(found, mean=seen.mean, std=seen.std), seen.rule(), seen.image_shape, progress)


def labelled(part: data.Part, rows: Rows, rule: Rule, of: data.Dataset, device: torch.device) -> Labelled:
    """Some images of a part, with their labels, on the device."""
    images, labels = images_of(part, rows, rule, of.mean, of.std, device), part.labels[rows]
    return Labelled(images, torch.from_numpy(labels).to(device), float((labels != NO_LABEL).mean()))
