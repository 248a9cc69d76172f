"""Augmentation as data: zero-pad, crop, mirror, with parameters that are a pure function of (seed, view, image).

`extract` and `distill` call the same two functions, `Augmentation.parameters` and `apply`, so that the student sees
the pixels of which the teacher spoke. Whole pixels move, so uint8 results are the same on every device. Left out:
resizing crops and mixing of images, which are not finite policies of whole pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdtool import philox
from kdtool.errors import UsageError
from kdtool.targets import CLEAN, describe

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 512  # images whose placements are drawn together: the working memory stays in the processor's cache


@dataclass(frozen=True)
class Augmentation:
    """Zero padding of `pad` pixels on all sides, a crop of the original size, and mirroring where `flip` is set.

    A view gives every image one of its placements, drawn under `seed`; no placement comes twice in the views of an
    image.
    """

    pad: int = 4
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise UsageError(f"the padding is {self.pad} pixels; 0 or more are expected")

    @property
    def placements(self) -> int:
        """Number of different placements, and so of views: 162 for pad 4 with mirroring."""
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    def table(self, indices: npt.ArrayLike) -> npt.NDArray[Any]:
        """The placement of every image in every view: (b, placements), each row a permutation keyed by (seed, image).

        In the smallest unsigned type that holds a placement: for pad 4, 162 bytes an image.
        """
        images = np.asarray(indices, dtype=np.int64)
        table = np.empty((len(images), self.placements), dtype=np.min_scalar_type(self.placements - 1))
        for start in range(0, len(images), CHUNK):
            part = slice(start, start + CHUNK)
            table[part] = philox.permutations(self.seed, philox.AUGMENT, 0, images[part], self.placements)
        return table

    def decode(self, placement: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Placements (b,) as rows (b, 3) of top, left, mirrored: the crop's corner in the padded image, then 0 or 1."""
        offset, mirrored = np.divmod(placement.astype(np.int64), 2 if self.flip else 1)
        top, left = np.divmod(offset, 2 * self.pad + 1)
        return np.stack([top, left, mirrored], axis=1)

    def check(self, view: int) -> None:
        """Raises UsageError for a view that does not exist."""
        if not CLEAN <= view < self.placements:
            raise UsageError(
                f"there is no view {view}: padding {self.pad} {'with' if self.flip else 'without'} mirroring has "
                f"{self.placements} placements, so views are 0 to {self.placements - 1}; ask for fewer views"
            )

    def parameters(self, indices: npt.ArrayLike, view: int) -> npt.NDArray[np.int64]:
        """Rows (b, 3) of top, left, mirrored for the images with these rows of the data set in one view.

        They depend on seed, view and image alone. The view CLEAN (-1) gives the image as it is.
        """
        self.check(view)
        if view == CLEAN:
            return np.tile(np.array([self.pad, self.pad, 0]), (len(np.asarray(indices)), 1))
        return self.decode(self.table(indices)[:, view])

    def apply(self, images: Tensor, parameters: Tensor | npt.NDArray[np.int64]) -> Tensor:
        """Images (b, C, H, W) of uint8, padded, cropped and mirrored as `parameters` (b, 3) say; same shape."""
        import torch

        height, width = images.shape[2:]
        top, left, mirrored = torch.as_tensor(parameters, device=images.device).unbind(1)
        padded = torch.nn.functional.pad(images, (self.pad,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (b, C, 2 pad + 1, 2 pad + 1, H, W), no copy
        crops = windows[torch.arange(len(images), device=images.device), :, top, left]
        return torch.where(mirrored.bool()[:, None, None, None], crops.flip(-1), crops) if self.flip else crops

    def rule(self) -> dict[str, Any]:
        """What decides the pixels of every view, as plain values for the identity of a cache."""
        return {**describe(self), "scheme": philox.SCHEME}


def normalise(pixels: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """(pixel / 255 - mean) / std of each channel, (b, C, H, W) in float32.

    Three separate operations on tensors of the pixels' device, each rounded correctly: division by a Python number
    would become a multiplication on GPUs and differ. Padding has the value (0 - mean) / std.
    """
    import torch

    scale = torch.full((1, 1, 1), 255.0, device=pixels.device)  # made there: to copy it would wait for a CUDA device
    shift, spread = (
        torch.as_tensor(value, dtype=torch.float32, device=pixels.device).view(-1, 1, 1) for value in (mean, std)
    )
    return pixels.to(torch.float32).div_(scale).sub_(shift).div_(spread)
