"""Caltech-UCSD Birds-200-2011 (Wah et al. 2011) from a local folder: 200 classes, 5,994 to train and 5,794 to test.

Left out: boxes, parts and attributes.
"""

from pathlib import Path

import numpy as np

from kdtool.data import published
from kdtool.data.dataset import Rows
from kdtool.data.listing import AS_PUBLISHED, Files, Listing
from kdtool.data.published import CUT, damaged

NEEDED = ("images/", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def cub200(folder: Path) -> Listing:
    """CUB-200-2011 from `folder`, which is `CUB_200_2011` or holds it. Raises UsageError, DamageError."""
    root = published.find(folder, ("CUB_200_2011",), NEEDED)
    if not root:
        raise published.lacking("cub200", folder, "CUB_200_2011", NEEDED)
    images = _table(root / "images.txt", "surrogateescape")
    classes = _table(root / "classes.txt")
    if list(classes) != list(range(1, len(classes) + 1)):
        raise damaged(root / "classes.txt", f"its numbers are not 1 to {len(classes)}")
    labels = _column(root / "image_class_labels.txt", images, 1, len(classes)) - 1
    trains = _column(root / "train_test_split.txt", images, 0, 1) == 1
    names = published.below(root, [f"images/{path}" for path in images.values()], root / "images.txt")
    if trains.all() or not trains.any():
        raise damaged(root / "train_test_split.txt", "one of the two parts is empty")
    train, test = (
        Files([names[row] for row in np.flatnonzero(chosen)], labels[chosen]) for chosen in (trains, ~trains)
    )
    return Listing("cub200", root, train, test, tuple(classes.values()), accepted=AS_PUBLISHED)


def _table(path: Path, errors: str = "replace") -> dict[int, str]:
    """A file with a number and a text in every line, sorted by the number."""
    rows = [line.split(maxsplit=1) for line in published.lines(path, errors)]
    short = next((row for row in rows if len(row) < 2), None)
    if short or not rows:
        raise damaged(path, f"the line {short[0][:CUT]!r} has no second word" if short else "it is empty")
    ids = published.numbers(path, "the first column", [row[0] for row in rows], 1, 2**20).tolist()
    if len(set(ids)) < len(ids):
        raise damaged(path, "a number is in it twice")
    return dict(sorted(zip(ids, [row[1] for row in rows], strict=True)))


def _column(path: Path, images: dict[int, str], low: int, high: int) -> Rows:
    """The numbers of a file that has a line for each of the images, in their order."""
    table = _table(path)
    if table.keys() != images.keys():
        odd = min(table.keys() ^ images.keys())
        raise damaged(path, f"the picture {odd} is either in it or in images.txt, and not in both")
    return published.numbers(path, "the second column", table.values(), low, high)
