"""What an epoch is: which view it runs over, in which order, in which batches, and the pixels of a batch.

View and order are pure functions of (seed, epoch), so a resumed run goes on as if it had never stopped. Left out:
worker processes and prefetching, which images that lie on the device do not need.
"""

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdtool import philox
from kdtool.data.augment import Augmentation, normalise
from kdtool.data.dataset import Channels, Pixels, Rows
from kdtool.errors import UsageError
from kdtool.targets import CLEAN


def view_of_epoch(seed: int, epoch: int, views: int) -> int:
    """The view of an epoch (from 0): permutations of 0..views-1 one after another, each keyed by (seed, its number)."""
    turn, place = divmod(epoch, views)
    return int(philox.permutation(seed, philox.VIEWS, turn, views)[place])


def order_of_epoch(seed: int, epoch: int, samples: int, block: int | None = None) -> Rows:
    """The positions 0..samples-1 in the order of an epoch, keyed by (seed, epoch).

    block: shuffle inside blocks of so many consecutive positions and visit the blocks in a shuffled order, so that a
    view which exceeds memory is read block by block. Raises UsageError for a block below 1.
    """
    if block is not None and block < 1:
        raise UsageError(f"a block of {block} samples cannot be shuffled; ask for 1 or more")
    if block is None or block >= samples:
        return philox.permutation(seed, philox.ORDER, epoch, samples)
    words = philox.words(seed, philox.ORDER, epoch, np.arange(samples), 2)
    number = np.arange(samples) // block
    place = np.argsort(np.argsort(words[: number[-1] + 1, 1], kind="stable"))  # of each block
    return np.lexsort((words[:, 0], place[number]))


def batch_slices(samples: int, batch: int, drop_last: bool) -> list[slice]:
    """The batches of an epoch as slices of its order.

    drop_last leaves out a rest that fills no batch. Otherwise the rest is a batch of its own; a rest of one sample
    joins the batch before it, because BatchNorm has no statistics of one sample. Raises UsageError where nothing
    would be left.
    """
    if batch < 1 or samples < (batch if drop_last else 1):
        dropped = " where an incomplete one is dropped" if drop_last else ""
        raise UsageError(f"{samples:,} samples give no batch of {batch:,}{dropped}; ask for 1 to {samples:,}")
    full, rest = divmod(samples, batch)
    bounds = [number * batch for number in range(full + 1)]
    if rest and not drop_last:
        if rest == 1 and full:
            bounds.pop()
        bounds.append(samples)
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


class Images:
    """The uint8 images of one index list, resident on a device, given out as normalised batches of any view.

    images: (N, C, H, W) uint8 of a whole part; rows (n,): those that are held. On the CPU, where all are held, the
    memory is shared with `images`. The placements of all views (162 bytes an image) are drawn at the first augmented
    batch, the parameters of the latest view stay on the device.
    """

    def __init__(
        self,
        images: Pixels,
        rows: Rows,
        augmentation: Augmentation,
        mean: Channels,
        std: Channels,
        device: torch.device,
    ) -> None:
        chosen = images if np.array_equal(rows, np.arange(len(images))) else images[rows]
        self.device = device
        self.pixels = torch.from_numpy(chosen).to(device)
        self.rows = rows
        self.augmentation = augmentation
        self.mean, self.std = (torch.tensor(value, dtype=torch.float32, device=device) for value in (mean, std))
        self._table: npt.NDArray[np.unsignedinteger] | None = None
        self._latest: tuple[int, Tensor] | None = None

    def view(self, positions: Rows | Tensor, view: int) -> Tensor:
        """The images at `positions` (b,) of the index list in one view: (b, C, H, W), float32, on the device.

        The augmentation knows an image by its row in the data set, so its pixels are the same in every subset.
        """
        if not isinstance(positions, Tensor):
            positions = torch.from_numpy(np.array(positions, dtype=np.int64))
        positions = positions.to(self.device)
        pixels = self.pixels[positions]
        if view != CLEAN:
            pixels = self.augmentation.apply(pixels, self._parameters(view)[positions])
        return normalise(pixels, self.mean, self.std)

    def _parameters(self, view: int) -> Tensor:
        """The parameters (n, 3) of one view, on the device."""
        self.augmentation.check(view)
        if self._table is None:
            self._table = self.augmentation.table(self.rows)
        if self._latest is None or self._latest[0] != view:
            parameters = torch.from_numpy(self.augmentation.decode(self._table[:, view]))
            self._latest = view, parameters.to(self.device)
        return self._latest[1]
