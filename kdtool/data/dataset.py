"""What a data set is: two parts of uint8 images with labels, the facts about them, and the digest of their content.

Left out: where images come from (one module for each source) and which of them train (`kdtool.data.splits`).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdtool import files

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Channels = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Part:
    """images (n, 3, H, W) uint8, in RGB order; labels (n,) int64. Both are contiguous and may be written to."""

    images: Pixels
    labels: Rows


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set in memory.

    mean, std: of each channel, in units of pixel / 255. flip: whether a mirrored image keeps its label. digest: the
    `content_digest` of the two parts.
    """

    name: str
    train: Part
    test: Part
    classes: int
    class_names: tuple[str, ...]
    mean: Channels
    std: Channels
    flip: bool
    digest: str


def content_digest(train: Part, test: Part) -> str:
    """SHA-256 of the decoded content: shapes, types, pixels and labels of both parts.

    Neither the name of the data set nor the form of its files enters, so that two forms of one set are the same.
    """
    total = hashlib.sha256()
    for part in (train, test):
        for array, kind in ((part.images, "|u1"), (part.labels, "<i8")):
            total.update(files.canonical({"dtype": kind, "shape": list(array.shape)}).encode())
            total.update(np.ascontiguousarray(array, dtype=kind).data)
    return total.hexdigest()
