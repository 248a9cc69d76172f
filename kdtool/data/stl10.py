"""STL-10 (Coates, Ng and Lee 2011) from a local folder, in the published binary form: 96x96 RGB, 10 classes.

`stl10` has the 5,000 labelled images to train and 8,000 to test; `stl10_unlabelled` has the 100,000 others to train as
well, 2.9 GB in memory. Left out: the ten folds of 1,000 images.
"""

from pathlib import Path

import numpy as np

from kdtool.data import published
from kdtool.data.dataset import NO_LABEL, Dataset, Part, Pixels, Rows, content_digest
from kdtool.data.published import damaged

CLASSES = 10
SHAPE = (3, 96, 96)
BYTES = 3 * 96 * 96
TOGETHER = 1_000  # images that are read at a time
LABELLED = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")
UNLABELLED = "unlabeled_X.bin"
MEAN, STD = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2712)


def stl10(folder: Path) -> Dataset:
    """STL-10's labelled images from `folder`, which is `stl10_binary` or holds it. Raises UsageError, DamageError."""
    return _read("stl10", folder, unlabelled=False)


def stl10_unlabelled(folder: Path) -> Dataset:
    """The same with the unlabelled images behind the labelled ones of the train part; they have NO_LABEL."""
    return _read("stl10_unlabelled", folder, unlabelled=True)


def _read(name: str, folder: Path, unlabelled: bool) -> Dataset:
    needed = (*LABELLED, UNLABELLED) if unlabelled else LABELLED
    place = published.find(folder, ("stl10_binary",), needed)
    if not place:
        raise published.lacking(name, folder, "stl10_binary", needed, source="stl10")
    names = published.lines(place / "class_names.txt")
    if len(names) != CLASSES:
        raise damaged(place / "class_names.txt", f"it names {len(names)} classes, {CLASSES} are expected")
    train = _part(place, "train", [UNLABELLED] if unlabelled else [])
    test = _part(place, "test", [])
    digest = content_digest(train, test)
    return Dataset(name, train, test, CLASSES, tuple(names), MEAN, STD, flip=True, digest=digest)


def _part(place: Path, part: str, more: list[str]) -> Part:
    """The labelled images of a part, and behind them those of files without labels."""
    paths = [place / file for file in (f"{part}_X.bin", *more)]
    counts = [_count(path) for path in paths]
    labels = np.full(sum(counts), NO_LABEL, dtype=np.int64)
    labels[: counts[0]] = _labels(place / f"{part}_y.bin", counts[0])
    images = np.empty((sum(counts), *SHAPE), dtype=np.uint8)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        _fill(images[start : start + count], path)
        start += count
    return Part(images, labels)


def _count(path: Path) -> int:
    size = path.stat().st_size
    if not size or size % BYTES:
        raise damaged(path, f"{size:,} bytes are not whole images of {BYTES:,} bytes")
    return size // BYTES


def _labels(path: Path, count: int) -> Rows:
    """Labels from 0; the file has one byte an image, from 1."""
    labels = np.fromfile(path, dtype=np.uint8)
    if len(labels) != count:
        raise damaged(path, f"it has {len(labels):,} labels, and there are {count:,} images")
    return published.numbers(path, "the list of labels", labels, 1, CLASSES) - 1


def _fill(images: Pixels, path: Path) -> None:
    """Reads a file, which holds columns where everybody else has rows, piece by piece into its place."""
    with path.open("rb") as file:
        for start in range(0, len(images), TOGETHER):
            rows = images[start : start + TOGETHER]
            columns = np.fromfile(file, dtype=np.uint8, count=rows.size)
            if columns.size != rows.size:
                raise damaged(path, "it became shorter while it was read")
            rows[:] = columns.reshape(-1, *SHAPE).transpose(0, 1, 3, 2)
