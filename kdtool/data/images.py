"""The images of one index list, given out as normalised batches of any view: from memory, or decoded ahead of use.

`Resident` holds uint8 pixels of one size on the device. `Streamed` decodes, crops and resizes pictures in threads while
the network works on the batch before. Which pixels a view has does not depend on which of them gives it, on the number
of threads or on the order of requests.
"""

from collections.abc import Generator, Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdtool.data.augment import Augmentation, normalise
from kdtool.data.dataset import Channels, Part, Pixels, Rows
from kdtool.data.pictures import Pictures, picture
from kdtool.data.resized_crop import ResizedCrop
from kdtool.data.workers import in_order, workers
from kdtool.targets import CLEAN

TOGETHER = 8  # pictures that a thread decodes at a time
AHEAD_BYTES = 2**27  # of pixels that wait to be asked for

Rule = Augmentation | ResizedCrop
Request = tuple[Rows, int]  # positions of the index list, view
Group = tuple[Rows, Rows, bool]  # rows of the part, parameters, whether they end a batch


class Images(Protocol):
    """The images of one index list."""

    device: torch.device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    def view(self, positions: Rows | Tensor, view: int) -> Tensor:
        """The images at `positions` (b,) of the index list in one view: (b, C, H, W), float32, on the device.

        The augmentation knows an image by its row in the data set, so its pixels are the same in every subset.
        """

    def views(self, requests: Iterable[Request]) -> Generator[Tensor]:
        """What `view` gives for each of the requests, which may be worked on before they are asked for."""


def images_of(
    part: Part, rows: Rows, rule: Rule, mean: Channels, std: Channels, device: torch.device
) -> "Resident | Streamed":
    """The images `rows` (n,) of a part under an augmentation. Pictures need one that resizes, `ResizedCrop`."""
    if isinstance(rule, ResizedCrop):
        return Streamed(part.images, rows, rule, mean, std, device)
    assert not isinstance(part.images, Pictures)
    return Resident(part.images, rows, rule, mean, std, device)


class Resident:
    """Pixels on the device.

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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def view(self, positions: Rows | Tensor, view: int) -> Tensor:
        """As `Images.view`."""
        if not isinstance(positions, Tensor):
            positions = torch.from_numpy(np.array(positions, dtype=np.int64))
        positions = positions.to(self.device)
        pixels = self.pixels[positions]
        if view != CLEAN:
            pixels = self.augmentation.apply(pixels, self._parameters(view)[positions])
        return normalise(pixels, self.mean, self.std)

    def views(self, requests: Iterable[Request]) -> Generator[Tensor]:
        """As `Images.views`; each is made when it is asked for, and all positions go to the device before the first."""
        asked = list(requests)
        places = np.concatenate([positions for positions, _ in asked]) if asked else np.zeros(0, dtype=np.int64)
        there, start = torch.from_numpy(places).to(self.device), 0
        for positions, view in asked:
            yield self.view(there[start : start + len(positions)], view)
            start += len(positions)

    def _parameters(self, view: int) -> Tensor:
        """The parameters (n, 3) of one view, on the device."""
        self.augmentation.check(view)
        if self._table is None:
            self._table = self.augmentation.table(self.rows)
        if self._latest is None or self._latest[0] != view:
            parameters = torch.from_numpy(self.augmentation.decode(self._table[:, view]))
            self._latest = view, parameters.to(self.device)
        return self._latest[1]


class Streamed:
    """Pictures that are decoded, cropped and resized by threads, ahead of the batch that is asked for.

    images: pictures or pixels of a whole part; rows (n,): those that are given out. What waits takes `AHEAD_BYTES`.
    """

    def __init__(
        self,
        images: Pixels | Pictures,
        rows: Rows,
        crop: ResizedCrop,
        mean: Channels,
        std: Channels,
        device: torch.device,
    ) -> None:
        self.images, self.rows, self.crop, self.device = images, rows, crop, device
        self.mean, self.std = (torch.tensor(value, dtype=torch.float32, device=device) for value in (mean, std))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.crop.size, self.crop.size

    def view(self, positions: Rows | Tensor, view: int) -> Tensor:
        """As `Images.view`."""
        return next(self.views([(positions.cpu().numpy() if isinstance(positions, Tensor) else positions, view)]))

    def views(self, requests: Iterable[Request]) -> Generator[Tensor]:
        """As `Images.views`; pictures of the requests that follow are decoded while a batch is used."""
        threads = workers()
        ahead = max(2 * threads, AHEAD_BYTES // (TOGETHER * 3 * self.crop.size**2))
        batch: list[Pixels] = []
        for pixels, last in in_order(self._decoded, self._groups(requests), threads, ahead):
            batch.append(pixels)
            if last:
                whole = torch.from_numpy(np.concatenate(batch))
                whole = whole.pin_memory() if self.device.type == "cuda" else whole
                yield normalise(whole.to(self.device, non_blocking=True), self.mean, self.std)
                batch = []

    def _groups(self, requests: Iterable[Request]) -> Iterator[Group]:
        for positions, view in requests:
            rows = self.rows[positions]
            parameters = self.crop.parameters(rows, view, self._sizes(rows))
            for start in range(0, len(rows), TOGETHER):
                part = slice(start, start + TOGETHER)
                yield rows[part], parameters[part], start + TOGETHER >= len(rows)

    def _sizes(self, rows: Rows) -> Rows:
        if isinstance(self.images, Pictures):
            return self.images.sizes[rows]
        return np.tile(np.array(self.images.shape[2:], dtype=np.int64), (len(rows), 1))

    def _decoded(self, group: Group) -> tuple[Pixels, bool]:
        rows, parameters, last = group
        pairs = zip(rows.tolist(), parameters, strict=True)
        return np.stack([self.crop.apply(picture(self.images, row), one) for row, one in pairs]), last
