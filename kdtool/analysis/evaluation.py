"""How good a trained network is on labelled, un-augmented images: accuracy, by class too, cross-entropy, calibration.

The images are those of the data set that it learned, or others with the same classes, which are brought to the size and
normalised as it learned it. Left out: what a student has of its teacher (predictions, similarity), and files of runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtool import data
from kdtool.analysis.predictions import Labels, Quality, Tally
from kdtool.data.dataset import NO_LABEL, Dataset, Part
from kdtool.data.images import images_of
from kdtool.data.preparation import at_size
from kdtool.engine.device import choose_device, exact, placed
from kdtool.engine.evaluate import BATCH, clean_batches
from kdtool.engine.trained import TrainedNetwork, load_network
from kdtool.engine.workspace import Seen, load_data
from kdtool.errors import UsageError, unknown
from kdtool.progress import Progress, Silent

PARTS = {"test": ("test",), "train": ("train",), "all": ("train", "test")}  # -> parts of a data set


@dataclass(frozen=True)
class Images:
    """Which images a network is asked for.

    part: "test", "train", or "all" for both, as the data set is published or a folder of classes is divided. data: the
    name of another data set with the same classes, None for the one that the network learned, whose content is then
    compared. folder: where its files lie.
    """

    part: str = "test"
    data: str | None = None
    folder: str | None = None


@dataclass(frozen=True)
class ClassAccuracy:
    """One class: its name, its labelled images, and accuracy, the share of them told right in percent; None of none."""

    name: str
    images: int
    accuracy: float | None


@dataclass(frozen=True)
class Evaluation:
    """weights: the file. images: how many have a label; only they count. top1, top5: in percent, top5 None for fewer
    than 6 classes. quality: cross-entropy, Brier score, calibration, as shares from 0 to 1.
    """

    weights: str
    data: str
    part: str
    images: int
    top1: float
    top5: float | None
    quality: Quality
    classes: tuple[ClassAccuracy, ...]


def evaluate(
    weights: Path | str,
    asked: Images = Images(),
    device: str = "auto",
    progress: Progress = Silent(),  # noqa: B008
) -> Evaluation:
    """Evaluates the network of a file of weights, see `load_network`, in float32.

    UsageError for an unknown part, one without labels, and another number of classes; IdentityError where the data set
    that it learned has other content now.
    """
    (found,) = evaluate_all([weights], asked, device, progress)
    return found


def evaluate_all(
    weights: Sequence[Path | str],
    asked: Images = Images(),
    device: str = "auto",
    progress: Progress = Silent(),  # noqa: B008
) -> list[Evaluation]:
    """Evaluates each of several files of weights; networks in a row that saw their data alike share its reading."""
    if asked.part not in PARTS:
        raise unknown("part", asked.part, PARTS)
    found: list[Evaluation] = []
    read: tuple[Seen, Dataset] | None = None
    for path in weights:
        network = load_network(path)
        if read is None or read[0] != network.seen:
            read = None  # before the next one is there
            read = network.seen, images_for(network.seen, asked, progress)
        found.append(_evaluated(str(path), network, read[1], asked.part, choose_device(device), progress))
    return found


def images_for(seen: Seen, asked: Images, progress: Progress) -> Dataset:
    """The images that are asked for, as the network saw its own."""
    if asked.data is None:
        return load_data(seen, asked.folder, progress)
    found = data.load(asked.data, Path(asked.folder) if asked.folder else None, progress)
    if found.classes != seen.classes:
        raise UsageError(
            f"the data set {asked.data} has {found.classes} classes and the network tells {seen.classes} apart; the "
            "same classes in the same order are expected"
        )
    check_names(asked.data, seen.class_names, found.class_names, progress)
    return at_size(found, seen.rule(), seen.image_shape, progress)


def check_names(name: str, seen: tuple[str, ...], found: tuple[str, ...], progress: Progress) -> None:
    """Refuses a data set that has a class of the network's at another place.

    Names that only one of the two has may be other words for the same classes; they are told of.
    """
    odd = [(number, pair) for number, pair in enumerate(zip(seen, found, strict=False)) if pair[0] != pair[1]]
    for number, (ours, _) in odd:
        if ours in found:
            raise UsageError(
                f"{ours} is class {number} of the network and class {found.index(ours)} of {name}; the same classes in "
                "the same order are expected"
            )
    if odd:
        ours, theirs = odd[0][1]
        progress.note(f"{len(odd)} classes have other names in {name}: {theirs} is taken for {ours}")


def labelled_batches(part: Part, seen: Seen, device: torch.device) -> Iterator[tuple[Tensor, Labels]]:
    """(images, labels) of the labelled images of a part, un-augmented, as the network saw its own."""
    rows = np.flatnonzero(part.labels != NO_LABEL)
    images = images_of(part, rows, seen.rule(), seen.mean, seen.std, device)
    for bounds, pixels in clean_batches(images, len(rows), BATCH):
        yield pixels, part.labels[rows[slice(*bounds)]]


@torch.no_grad()
def _evaluated(
    weights: str, trained: TrainedNetwork, found: Dataset, name: str, device: torch.device, progress: Progress
) -> Evaluation:
    seen, parts = trained.seen, [getattr(found, part) for part in PARTS[name]]
    labels = np.concatenate([part.labels for part in parts])
    counts = np.bincount(labels[labels != NO_LABEL], minlength=seen.classes)
    images = int(counts.sum())
    if not images:
        raise UsageError(f"no image of the {name} part of {found.name} has a label; take another --part")
    network = placed(trained.network, device, "float32").eval()
    tally, right, near = Tally(), np.zeros(seen.classes, np.int64), 0
    progress.begin("evaluate", images)
    for pixels, known in chain.from_iterable(labelled_batches(part, seen, device) for part in parts):
        with exact():
            logits = network(pixels).double().cpu().numpy()
        tally.add(logits, known)
        right += np.bincount(known[logits.argmax(1) == known], minlength=seen.classes)
        if seen.classes > 5:
            near += int((np.argpartition(-logits, 4, axis=1)[:, :5] == known[:, None]).sum())
        progress.advance(len(known))
    quality = tally.quality()
    assert quality is not None
    return Evaluation(
        weights=weights,
        data=found.name,
        part=name,
        images=images,
        top1=100 * quality.accuracy,
        top5=100 * near / images if seen.classes > 5 else None,
        quality=quality,
        classes=tuple(
            ClassAccuracy(of, int(count), 100 * int(good) / int(count) if count else None)
            for of, count, good in zip(found.class_names, counts, right, strict=True)
        ),
    )
