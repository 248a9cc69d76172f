"""Where a training step gets the teacher's answers: from the cache, or from the living teacher, with equal answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from kdtool.engine.device import autocast, exact
from kdtool.models.taps import TapReader
from kdtool.targets import Batch, Cached, Target

if TYPE_CHECKING:
    from kdtool.cache import Cache
    from kdtool.data.images import Images

RESIDENT_BYTES = 2**31  # a view's slice up to this size is held on the device while its epoch runs


Slices = dict[tuple[str, str], torch.Tensor]  # target key and array -> (n, ...)


class CachedTeacher:
    """Reads targets from a cache: a view's slice is held on the device for its epoch, or read by rows if large.

    Only what somebody asks for is read: a stage that uses half of the targets costs no more than these. `ahead` reads
    the slices of the next view in a thread, of those arrays that this epoch has asked for, where all of them together
    are not large either; they wait in memory.
    """

    def __init__(
        self,
        cache: Cache,
        targets: Sequence[Target],
        device: torch.device,
        part: str = "train",
        resident: int = RESIDENT_BYTES,
    ) -> None:
        self.device = device
        self.arrays = {
            target.key: {name: cache.array(part, target.key, name) for name in cache.contents[target.key].arrays}
            for target in targets
        }
        self.resident = resident
        self.held: Slices = {}
        self.current: int | None = None
        self._following: tuple[int, Future[Slices]] | None = None

    def read(self, batch: Batch) -> Cached:
        """The rows of a batch, floating ones as float32."""
        if batch.view != self.current:
            view, waiting = self._following or (None, None)
            found = waiting.result() if waiting is not None and view == batch.view else {}
            self.held = {name: slice_.to(self.device, non_blocking=True) for name, slice_ in found.items()}
            self.current, self._following = batch.view, None
        return _Rows(self, batch)

    def ahead(self, view: int) -> None:
        """Begins to read the slices of a view; what is damaged is told of when the view is asked for."""
        size = sum(rows.nbytes for rows in self.held.values())
        if view == self.current or self._following is not None or size > self.resident:
            return
        thread = ThreadPoolExecutor(1, thread_name_prefix="kdtool-view")
        self._following = view, thread.submit(self._slices, view, tuple(self.held))
        thread.shutdown(wait=False)

    def _slices(self, view: int, names: Sequence[tuple[str, str]]) -> Slices:
        return {name: self._slice(view, *name) for name in names}

    def _slice(self, view: int, key: str, name: str) -> torch.Tensor:
        """All rows of a view, in memory from which a CUDA device can take them by itself."""
        rows = torch.from_numpy(self.arrays[key][name].read(view))
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def rows(self, key: str, name: str, batch: Batch) -> torch.Tensor:
        """The rows of one array, as they are stored."""
        array = self.arrays[key][name]
        if np.prod(array.shape[1:]) * array.dtype.itemsize > self.resident:
            return torch.from_numpy(array.rows(batch.view, batch.indices.cpu().numpy())).to(self.device)
        if (key, name) not in self.held:
            self.held[key, name] = self._slice(batch.view, key, name).to(self.device, non_blocking=True)
        return self.held[key, name][batch.indices]


class _Rows(Mapping[str, Mapping[str, torch.Tensor]]):
    """target key -> array -> rows of a batch; a key is read when it is first asked for, and is in `held` then."""

    def __init__(self, source: CachedTeacher, batch: Batch) -> None:
        self._source, self._batch = source, batch
        self.held: dict[str, dict[str, torch.Tensor]] = {}

    def __getitem__(self, key: str) -> Mapping[str, torch.Tensor]:
        if key not in self.held:
            names = self._source.arrays[key]
            self.held[key] = {name: widened(self._source.rows(key, name, self._batch)) for name in names}
        return self.held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.arrays)

    def __len__(self) -> int:
        return len(self._source.arrays)


def widened(rows: torch.Tensor) -> torch.Tensor:
    """float16 as float32; everything else as it is."""
    return rows.float() if rows.dtype == torch.float16 else rows


@dataclass(frozen=True)
class Teller:
    """A frozen teacher that answers targets for images on the batch grid: eval mode, no gradient, fixed batch size."""

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
            _, outputs = reader(images)
        outputs = {name: value.float() for name, value in outputs.items()}
        answers = {}
        with exact():
            for target in self.targets:
                fitted = self.fitted[target.fit.key] if target.fit else {}
                answers[target.key] = {name: rows[:count] for name, rows in target.encode(outputs, fitted).items()}
        return answers


class LiveTeacher:
    """Runs the teacher for every batch, split into the cache's batches of B; for tests and benchmarks in Python.

    round_to: "float32" gives what an fp32 cache holds, "float16" what the default cache holds.
    """

    def __init__(self, teller: Teller, images: Images, round_to: str = "float32") -> None:
        self.teller = teller
        self.images = images
        self.round_to = getattr(torch, round_to)

    def read(self, batch: Batch) -> Cached:
        """The targets of a batch, computed now."""
        positions = batch.indices.cpu().numpy()
        pieces = [
            self.teller.answer(self.images.view(positions[start : start + self.teller.batch], batch.view))
            for start in range(0, len(positions), self.teller.batch)
        ]
        return {
            key: {name: self._stored(torch.cat([piece[key][name] for piece in pieces])) for name in pieces[0][key]}
            for key in pieces[0]
        }

    def ahead(self, view: int) -> None:
        """Nothing: the teacher says everything when it is asked."""

    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        return widened(rows.to(self.round_to)) if rows.is_floating_point() else rows


def as_tensors(fitted: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> dict[str, torch.Tensor]:
    """What a fit learned, on the device."""
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in fitted.items()}
