"""What a data set is: two parts of images with labels, the facts about them, and the digest of their content.

The images of a part are an array of uint8, all of one size, or `Pictures`: files of any size that are decoded when they
are asked for. Left out: where images come from (one module for each source), which of them train
(`kdtool.data.splits`) and in which size a network sees them (`kdtool.data.preparation`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtool import files
from kdtool.data.pictures import Pictures

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Channels = tuple[float, float, float]

NO_LABEL = -1  # the label of an image of which nobody says what it shows
IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's mean and std


@dataclass(frozen=True, eq=False)
class Part:
    """images: (n, 3, H, W) uint8 in RGB order, or n pictures; labels (n,) int64, NO_LABEL where there is none.

    Arrays are contiguous and may be written to.
    """

    images: Pixels | Pictures
    labels: Rows


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set.

    mean, std: of each channel, in units of pixel / 255. flip: whether a mirrored image keeps its label. digest: the
    `content_digest` of the two parts as they are published, whatever size they are brought to. validation: rows of the
    train part that the publication itself holds out. prepared: what the pixels depend on beside the content, where they
    were decoded or resized.
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
    validation: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    prepared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of all images, None where they differ."""
        shapes = {shape for part in (self.train, self.test) for shape in _shapes(part.images)}
        return shapes.pop() if len(shapes) == 1 else None


def _shapes(images: Pixels | Pictures) -> set[tuple[int, int, int]]:
    if isinstance(images, Pictures):
        return {(3, int(height), int(width)) for height, width in np.unique(images.sizes, axis=0)}
    channels, height, width = images.shape[1:]
    return {(channels, height, width)}


def content_digest(train: Part, test: Part) -> str:
    """SHA-256 of the content: shapes, types, pixels and labels of both parts, or for pictures those of their files.

    Neither the name of the data set nor the form of its files enters, so that two forms of one set are the same;
    neither do the names of pictures.
    """
    total = hashlib.sha256()
    for part in (train, test):
        for array in (_content(part.images), np.ascontiguousarray(part.labels, dtype="<i8")):
            total.update(files.canonical({"dtype": array.dtype.str, "shape": list(array.shape)}).encode())
            total.update(array.data)
    return total.hexdigest()


def _content(images: Pixels | Pictures) -> npt.NDArray[Any]:
    return images.digests if isinstance(images, Pictures) else np.ascontiguousarray(images, dtype="|u1")
