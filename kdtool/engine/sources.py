"""What the teacher answers for a batch: asked now, and, for tests and benchmarks, as the source of a training.

Left out: the answers that a cache holds (kdtool.engine.cached), which are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from kdtool.engine.device import autocast, exact
from kdtool.methods.precision import wide
from kdtool.models.taps import TapReader
from kdtool.targets import Batch, Cached, Expected, Target

if TYPE_CHECKING:
    from kdtool.data.images import Images


def widened(rows: torch.Tensor) -> torch.Tensor:
    """float16 as float32; everything else as it is."""
    return rows.float() if rows.dtype == torch.float16 else rows


class Plain(Mapping[str, torch.Tensor]):
    """tap -> value as encoders and methods get it: at least float32, in memory in the order of its axes.

    Whatever precision and memory format the network has. A tap that nobody asks for costs nothing. whole: what makes
    the value of a rank's share that of the batch.
    """

    def __init__(
        self, taps: Mapping[str, torch.Tensor], whole: Callable[[torch.Tensor], torch.Tensor] = lambda value: value
    ) -> None:
        self._taps, self._whole = taps, whole
        self._known: dict[str, torch.Tensor] = {}

    def __getitem__(self, tap: str) -> torch.Tensor:
        if tap not in self._known:
            self._known[tap] = wide(self._whole(self._taps[tap])).contiguous()
        return self._known[tap]

    def __iter__(self) -> Iterator[str]:
        return iter(self._taps)

    def __len__(self) -> int:
        return len(self._taps)


@dataclass(frozen=True)
class Teller:
    """A frozen teacher that answers targets for images on the batch grid: eval mode, no gradient, fixed batch size.

    fitted: fit key -> what the fit learned, which encoders read.
    """

    model: nn.Module
    targets: tuple[Target, ...]
    fitted: Mapping[str, Mapping[str, torch.Tensor]]
    batch: int
    precision: str

    @torch.no_grad()
    def answer(self, images: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        """target key -> array -> (b, ...) for at most `batch` images; fewer are padded by the last one."""
        count = len(images)
        if count < self.batch:
            images = torch.cat([images, images[-1:].expand(self.batch - count, *images.shape[1:])])
        taps = tuple(dict.fromkeys(tap for target in self.targets for tap in target.taps))
        self.model.eval()
        with TapReader(self.model, taps) as reader, exact(), autocast(images.device, self.precision):
            _, found = reader(images)
        outputs = Plain(found)
        answers = {}
        with exact():
            for target in self.targets:
                fitted = self.fitted[target.fit.key] if target.fit else {}
                answers[target.key] = {name: rows[:count] for name, rows in target.encode(outputs, fitted).items()}
        return answers


class LiveTeacher:
    """Runs the teacher for every batch, split into the cache's batches of B; for tests and benchmarks in Python.

    dtypes: target key -> dtype that a cache would hold its floating arrays in; float32 where none is given.
    """

    def __init__(self, teller: Teller, images: Images, dtypes: Mapping[str, str] = MappingProxyType({})) -> None:
        self.teller = teller
        self.images = images
        self.dtypes = dtypes

    def read(self, batch: Batch) -> Cached:
        """The targets of a batch, computed now."""
        positions = batch.indices.cpu().numpy()
        pieces = [
            self.teller.answer(self.images.view(positions[start : start + self.teller.batch], batch.view))
            for start in range(0, len(positions), self.teller.batch)
        ]
        return {
            key: {name: self._stored(key, torch.cat([piece[key][name] for piece in pieces])) for name in pieces[0][key]}
            for key in pieces[0]
        }

    def expect(self, batches: Sequence[Expected], following: int) -> None:
        """Nothing: the teacher says everything when it is asked."""

    def _stored(self, key: str, rows: torch.Tensor) -> torch.Tensor:
        dtype = getattr(torch, self.dtypes.get(key, "float32"))
        return widened(rows.to(dtype)) if rows.is_floating_point() else rows


def as_tensors(fitted: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> dict[str, torch.Tensor]:
    """What a fit learned, on the device."""
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in fitted.items()}
