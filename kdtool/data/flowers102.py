"""Oxford Flowers-102 (Nilsback and Zisserman 2008) from a local folder: 102 classes.

The publication trains on 10 pictures of each class, validates on 10 others and tests on the remaining 6,149. The train
part has the first two, and `validation` says which rows are the second. The files number the classes and do not name
them, so their names are the numbers from 1. Left out: segmentations.
"""

from pathlib import Path

import numpy as np

from kdtool.data import published
from kdtool.data.dataset import Rows
from kdtool.data.listing import AS_PUBLISHED, Files, Listing
from kdtool.data.published import damaged

CLASSES = 102
NEEDED = ("jpg/", "imagelabels.mat", "setid.mat")


def flowers102(folder: Path) -> Listing:
    """Flowers-102 from `folder`, which is `flowers102` or holds it. Raises UsageError, DamageError."""
    root = published.find(folder, ("flowers102", "flowers-102"), NEEDED)  # the second is torchvision's
    if not root:
        raise published.lacking("flowers102", folder, "flowers102", NEEDED)
    values = published.matlab(root / "imagelabels.mat", "labels")[0]
    labels = published.numbers(root / "imagelabels.mat", "labels", values, 1, CLASSES) - 1
    train, validation, test = _parts(root / "setid.mat", len(labels))
    return Listing(
        name="flowers102",
        root=root,
        train=_files(root, np.concatenate([train, validation]), labels),
        test=_files(root, test, labels),
        class_names=tuple(str(number) for number in range(1, CLASSES + 1)),
        validation=np.arange(len(train), len(train) + len(validation)),
        accepted=AS_PUBLISHED,
    )


def _parts(path: Path, count: int) -> list[Rows]:
    """Numbers of pictures, from 1: to train, to validate and to test."""
    keys = ("trnid", "valid", "tstid")
    found = [
        published.numbers(path, key, values, 1, count)
        for key, values in zip(keys, published.matlab(path, *keys), strict=True)
    ]
    if len(np.unique(np.concatenate(found))) < sum(map(len, found)) or not all(map(len, found)):
        raise damaged(path, "a part is empty, or a picture is in it twice")
    return found


def _files(root: Path, numbers: Rows, labels: Rows) -> Files:
    names = [f"jpg/image_{number:05d}.jpg" for number in numbers.tolist()]
    return Files(published.below(root, names, root / "setid.mat"), labels[numbers - 1])
