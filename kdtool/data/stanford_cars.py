"""Stanford Cars (Krause et al. 2013) from a local folder: 196 classes, 8,144 pictures to train and 8,041 to test.

Both published forms are read: `cars_train/` and `cars_test/` with a development kit and the labels of the test part,
which the authors gave later, and the older `car_ims/` with `cars_annos.mat`. They order the pictures in two ways, so
their digests differ; where both are there, the first is taken. Left out: boxes.
"""

from pathlib import Path
from typing import Any

import numpy as np

from kdtool.data import published
from kdtool.data.listing import AS_PUBLISHED, Files, Listing
from kdtool.data.published import damaged

TRAIN = "devkit/cars_train_annos.mat"
TEST = "cars_test_annos_withlabels.mat"
META = "devkit/cars_meta.mat"
TWO_FOLDERS = ("cars_train/", "cars_test/", TRAIN, META, TEST)
ONE_FOLDER = ("car_ims/", "cars_annos.mat")


def stanford_cars(folder: Path) -> Listing:
    """Stanford Cars from `folder`, which is `stanford_cars` or holds it. Raises UsageError, DamageError."""
    own = ("stanford_cars",)
    if root := published.find(folder, own, TWO_FOLDERS):
        names = _classes(root / META, published.matlab(root / META, "class_names")[0])
        train = _annotated(root, TRAIN, "cars_train", len(names))
        test = _annotated(root, TEST, "cars_test", len(names))
    elif root := published.find(folder, own, ONE_FOLDER):
        train, test, names = _one_folder(root)
    else:
        raise published.lacking("stanford_cars", folder, own[0], TWO_FOLDERS, ONE_FOLDER)
    return Listing("stanford_cars", root, train, test, names, accepted=AS_PUBLISHED)


def _classes(path: Path, values: Any) -> tuple[str, ...]:
    names = tuple(published.texts(path, "class_names", values))
    if not names:
        raise damaged(path, "it names no class")
    return names


def _annotated(root: Path, file: str, folder: str, classes: int) -> Files:
    """The pictures of one of the two folders."""
    path = root / file
    table = published.matlab(path, "annotations")[0]
    names, labels = published.columns(path, "annotations", table, "fname", "class")
    paths = [f"{folder}/{name}" for name in published.texts(path, "fname", names)]
    if not paths:
        raise damaged(path, "it names no picture")
    return Files(published.below(root, paths, path), published.numbers(path, "class", labels, 1, classes) - 1)


def _one_folder(root: Path) -> tuple[Files, Files, tuple[str, ...]]:
    """Train part, test part and class names of the older form."""
    path = root / "cars_annos.mat"
    table, values = published.matlab(path, "annotations", "class_names")
    classes = _classes(path, values)
    columns = published.columns(path, "annotations", table, "relative_im_path", "class", "test")
    names = published.below(root, published.texts(path, "relative_im_path", columns[0]), path)
    labels = published.numbers(path, "class", columns[1], 1, len(classes)) - 1
    tests = published.numbers(path, "test", columns[2], 0, 1) == 1
    if tests.all() or not tests.any():
        raise damaged(path, "one of the two parts is empty")
    train, test = (Files([names[row] for row in np.flatnonzero(chosen)], labels[chosen]) for chosen in (~tests, tests))
    return train, test, classes
