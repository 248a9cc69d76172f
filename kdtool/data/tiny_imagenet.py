"""Tiny-ImageNet-200 (CS231n, 2015) from a local folder: 64x64, 200 classes, 500 pictures of each to train.

The test part is the published validation part, 50 pictures a class: nobody has labels for what is published as test.
Classes are numbered in the order of their sorted WordNet ids, as by everybody who reads them as folders of classes; the
order of `wnids.txt` is another one. Left out: the boxes.
"""

from pathlib import Path

import numpy as np

from kdtool.data import published
from kdtool.data.listing import AS_PUBLISHED, Files, Listing, classes_below, files_below
from kdtool.data.published import CUT, damaged
from kdtool.errors import DamageError

NEEDED = ("wnids.txt", "words.txt", "train/", "val/images/", "val/val_annotations.txt")
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)


def tiny_imagenet(folder: Path) -> Listing:
    """Tiny-ImageNet from `folder`, which is `tiny-imagenet-200` or holds it. Raises UsageError, DamageError."""
    root = published.find(folder, ("tiny-imagenet-200",), NEEDED)
    if not root:
        raise published.lacking("tiny_imagenet", folder, "tiny-imagenet-200", NEEDED)
    wnids = _wnids(root)
    return Listing(
        name="tiny_imagenet",
        root=root,
        train=_train(root, wnids),
        test=_validation(root, wnids),
        class_names=_words(root / "words.txt", wnids),
        mean=MEAN,
        std=STD,
        width=64,
        accepted=AS_PUBLISHED,
    )


def _wnids(root: Path) -> list[str]:
    """The WordNet ids, sorted: those of the list, which have to be those of the folders."""
    listed, folders = set(published.lines(root / "wnids.txt")), set(classes_below(root / "train"))
    if not listed:
        raise damaged(root / "wnids.txt", "it names no class")
    if listed != folders:
        odd = min(listed ^ folders)
        where = "wnids.txt names it, and train/ has no such folder" if odd in listed else "wnids.txt does not name it"
        raise DamageError(f"{root / 'train' / odd[:CUT]}: {where}; unpack the published archive again")
    return sorted(listed)


def _words(path: Path, wnids: list[str]) -> tuple[str, ...]:
    """What the classes are called; the file has a line for each of WordNet's 82,115 nouns."""
    words = dict(line.split("\t", 1) for line in published.lines(path) if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)


def _train(root: Path, wnids: list[str]) -> Files:
    names: list[str] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        place = f"train/{wnid}/images"
        inside = files_below(root, place) if (root / place).is_dir() else []
        if not inside:
            raise DamageError(f"{root / place} has no picture; unpack the published archive again")
        names += inside
        labels += [label] * len(inside)
    return Files(names, np.array(labels, dtype=np.int64))


def _validation(root: Path, wnids: list[str]) -> Files:
    """The pictures of `val/val_annotations.txt`, in its order; it has to name all that are there."""
    path = root / "val" / "val_annotations.txt"
    rows = [line.split("\t") for line in published.lines(path, errors="surrogateescape")]
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for row in rows:
        if len(row) < 2 or row[1] not in label_of:
            raise damaged(path, f"the line {' '.join(row)[:CUT]!r} does not name a picture and its class")
    names = published.below(root, [f"val/images/{row[0]}" for row in rows], path)
    unnamed = sorted(set(files_below(root, "val/images")) - set(names))
    if unnamed:
        raise damaged(path, f"it does not name {unnamed[0]}, which is there")
    return Files(names, np.array([label_of[row[1]] for row in rows], dtype=np.int64))
