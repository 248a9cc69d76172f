"""Random boxes of a picture, resized to one size and mirrored: the augmentation of large pictures of any size.

Boxes are drawn as torchvision's RandomResizedCrop draws them (after Szegedy et al. 2015, arXiv 1409.4842), from numbers
that are a pure function of (seed, view, picture); cropping and resizing are Pillow's, as there, so equal boxes give
equal pixels. Resizing happens on the CPU only. Left out: other filters than the bilinear one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdtool import philox
from kdtool.data.dataset import Pixels, Rows
from kdtool.errors import UsageError
from kdtool.targets import CLEAN, describe

if TYPE_CHECKING:
    from PIL.Image import Image

ATTEMPTS = 10  # boxes that are tried; where none lies inside the picture, the largest central one is taken
MARGIN = 8 / 7  # a picture without augmentation is resized to 256 for a central crop of 224


@dataclass(frozen=True)
class ResizedCrop:
    """A box of a share of the picture's area in `scale` and of a ratio of width to height in `ratio`, as size x size.

    Every view of a picture has a box of its own; there is no end of views.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"pictures of {self.size} pixels; at least 1 is expected")
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high < np.inf or (name == "scale" and high > 1):
                raise UsageError(f"the {name} of crops is from {low} to {high}; it must rise and lie above 0")

    @property
    def placements(self) -> None:
        """Boxes are not counted."""
        return None

    def check(self, view: int) -> None:
        """Raises UsageError for a view that does not exist."""
        if not CLEAN <= view < 2**32:
            raise UsageError(f"there is no view {view}")

    def parameters(self, indices: npt.ArrayLike, view: int, sizes: Rows) -> Rows:
        """Rows (b, 5) of top, left, height, width, mirrored, for the pictures with these rows of the data set.

        sizes (b, 2): their height and width. The view CLEAN (-1) gives rows of zeros: the picture without a box.
        """
        self.check(view)
        if view == CLEAN:
            return np.zeros((len(sizes), 5), np.int64)
        drawn = philox.words(self.seed, philox.AUGMENT, view, indices, 2 * ATTEMPTS + 3)
        box, found = self._boxes(drawn[:, : 2 * ATTEMPTS], sizes)
        box = np.where(found[:, None], box, self._central(sizes))
        room = (sizes - box + 1).astype(np.uint64)
        corner = ((drawn[:, 2 * ATTEMPTS : -1] * room) >> np.uint64(32)).astype(np.int64)
        corner = np.where(found[:, None], corner, (sizes - box) // 2)
        mirrored = (drawn[:, -1:] >> np.uint32(31)).astype(np.int64) * self.flip
        return np.concatenate([corner, box, mirrored], axis=1)

    def _boxes(self, drawn: npt.NDArray[np.uint32], sizes: Rows) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """(height and width (b, 2) of the first attempt that lies inside the picture, whether there was one)."""
        share, form = np.moveaxis(((drawn + 0.5) / 2.0**32).reshape(len(drawn), ATTEMPTS, 2), 2, 0)
        area = sizes.prod(1)[:, None] * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
        low, high = np.log(self.ratio)
        ratio = np.exp(low + form * (high - low))
        boxes = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], axis=2))).astype(np.int64)
        inside = ((boxes > 0) & (boxes <= sizes[:, None])).all(2)
        return boxes[np.arange(len(boxes)), inside.argmax(1)], inside.any(1)

    def _central(self, sizes: Rows) -> Rows:
        """The largest box (b, 2) of an admissible ratio."""
        height, width = sizes[:, 0], sizes[:, 1]
        low = np.where(width < self.ratio[0] * height, np.rint(width / self.ratio[0]), height)
        narrow = np.where(width > self.ratio[1] * height, np.rint(height * self.ratio[1]), width)
        return np.stack([low, narrow], axis=1).astype(np.int64)

    def apply(self, picture: "Image", parameters: Rows) -> Pixels:
        """(3, size, size) of uint8: the box of a picture that `parameters` (5,) say, resized, mirrored."""
        from PIL import Image

        top, left, height, width, mirrored = (int(value) for value in parameters)
        if height == 0:
            return pixels(self._without_box(picture))
        box = picture.crop((left, top, left + width, top + height))
        found = pixels(box.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return np.ascontiguousarray(found[:, :, ::-1]) if mirrored else found

    def _without_box(self, picture: "Image") -> "Image":
        """The shorter side resized to 8/7 of the size, then the middle."""
        from PIL import Image

        short = round(self.size * MARGIN)
        width, height = picture.size
        scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        whole = picture.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (round((side - self.size) / 2) for side in scaled)
        return whole.crop((left, top, left + self.size, top + self.size))

    def rule(self) -> dict[str, Any]:
        """What decides the pixels of every view, as plain values for the identity of a cache."""
        return {**describe(self), "scheme": philox.SCHEME}


def pixels(picture: "Image") -> Pixels:
    """An RGB picture as (3, H, W) of uint8."""
    return np.ascontiguousarray(np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1))
