"""Where a training step gets the teacher's answers from a cache, read ahead of the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from kdtool.engine.sources import widened
from kdtool.targets import CLEAN, Batch, Cached, Expected, Target

if TYPE_CHECKING:
    from kdtool.cache import Cache
    from kdtool.targets import Rows

RESIDENT_BYTES = 2**31  # a view's slice up to this size is held on the device while its epoch runs

Name = tuple[str, str]  # target key and array
Tensors = dict[Name, torch.Tensor]


class CachedTeacher:
    """Reads targets from a cache: a view's slice is held on the device for its epoch, or read by rows if large.

    Only what somebody asks for is read: a stage that uses half of the targets costs no more than these, and what an
    epoch has not asked for is let go of with the next. In an epoch that it was told to `expect`, threads collect the
    rows of the next batch while this one is used, and from the middle on read the slices of the next view, if all
    together are not large either; both wait in memory. Parts other than train have one view, the images as they are:
    CLEAN.
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
        self.held: Tensors = {}
        self.current: int | None = None
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="kdtool-targets")
        self._expected: deque[Expected] = deque()
        self._middle, self._following = 0, 0
        self.latest: _Answers | None = None
        self.asked: set[Name] = set()  # in this epoch
        self._collected: tuple[torch.Tensor, Future[Tensors]] | None = None
        self._slices: tuple[int, Future[Tensors]] | None = None

    def expect(self, batches: Sequence[Expected], following: int) -> None:
        """Told the batches of an epoch in their order, and the view of the epoch after it."""
        self._expected, self._middle, self._following = deque(batches), len(batches) // 2, following
        self.held = {name: rows for name, rows in self.held.items() if name in self.asked}
        if not self.asked:
            self.latest = self._collected = self._slices = None
        self.asked = set()

    def read(self, batch: Batch) -> Cached:
        """The rows of a batch, floating ones as float32."""
        if batch.view != self.current:
            self._turn_to(batch.view)
        indices, waiting = self._collected or (None, None)
        found = waiting.result() if waiting is not None and indices is batch.indices else {}
        self._read_ahead(batch)
        self.latest = _Answers(self, batch, found)
        return self.latest

    def rows(self, name: Name, batch: Batch) -> torch.Tensor:
        """The rows of one array, as they are stored, on the device."""
        if name not in self.held and not self._large(name):
            self.held[name] = self._slice(batch.view, name).to(self.device, non_blocking=True)
        if self._on_device(name):
            return self.held[name].index_select(0, batch.indices)
        return self._collect(batch.view, [name], batch.indices.cpu().numpy())[name].to(self.device)

    def _turn_to(self, view: int) -> None:
        """Lets go of the slices of the view before; takes those that were read ahead."""
        ahead, waiting = self._slices or (None, None)
        found = waiting.result() if waiting is not None and ahead == view else {}
        self.held = {}  # before the next ones are there: a device has room for one view
        self.held = {name: rows.to(self.device, non_blocking=True) for name, rows in found.items()}
        self.current, self._slices, self._collected = view, None, None

    def _read_ahead(self, batch: Batch) -> None:
        """Begins to read what comes after a batch, of the arrays that the batch before it was asked for."""
        self._collected = None
        if not self._expected or self._expected.popleft()[0] is not batch.indices:
            self._expected.clear()
            return
        asked = list(self.latest.asked) if self.latest else []
        by_hand = [name for name in asked if not self._on_device(name) and (name in self.held or self._large(name))]
        if self._expected and by_hand:
            indices, positions = self._expected[0]
            self._collected = indices, self._threads.submit(self._ready, batch.view, by_hand, positions, self.latest)
        small = sum(rows.nbytes for rows in self.held.values()) <= self.resident
        if self._slices is None and len(self._expected) <= self._middle and self._following != batch.view and small:
            names = [name for name in self.held if name in self.asked]
            self._slices = self._following, self._threads.submit(self._all_slices, self._following, names)

    def _large(self, name: Name) -> bool:
        array = self.arrays[name[0]][name[1]]
        return int(np.prod(array.shape[1:])) * array.dtype.itemsize > self.resident

    def _on_device(self, name: Name) -> bool:
        return self.device.type == "cuda" and name in self.held

    def _all_slices(self, view: int, names: Sequence[Name]) -> Tensors:
        return {name: self._slice(view, name) for name in names}

    def _slice(self, view: int, name: Name) -> torch.Tensor:
        return self._leaving(self.arrays[name[0]][name[1]].read(_number(view)))

    def _collect(self, view: int, names: Sequence[Name], positions: Rows) -> Tensors:
        """name -> rows, in memory: of the slice where it is held, else of the cache's files."""
        found = {}
        for name in names:
            if name in self.held:
                rows = np.take(self.held[name].numpy(), positions, axis=0)  # a quarter of the time of torch's
            else:
                rows = self.arrays[name[0]][name[1]].rows(_number(view), positions)
            found[name] = self._leaving(rows)
        return found

    def _ready(self, view: int, names: Sequence[Name], positions: Rows, _: _Answers | None) -> Tensors:
        """The rows as a step takes them; the answers of the step before are let go of here, which takes time, too."""
        return {name: self._widened(rows) for name, rows in self._collect(view, names, positions).items()}

    def _widened(self, rows: torch.Tensor) -> torch.Tensor:
        """On the CPU at once; to a CUDA device half of the bytes travel faster."""
        return rows if self.device.type == "cuda" else widened(rows)

    def _leaving(self, rows: npt.NDArray[Any]) -> torch.Tensor:
        """Rows in memory from which a CUDA device takes them by itself."""
        there = torch.from_numpy(rows)
        return there.pin_memory() if self.device.type == "cuda" else there


def _number(view: int) -> int:
    """The number under which a cache stores a view."""
    return 0 if view == CLEAN else view


class _Answers(Mapping[str, Mapping[str, torch.Tensor]]):
    """target key -> array -> rows of a batch; a key is read when it is first asked for."""

    def __init__(self, source: CachedTeacher, batch: Batch, collected: Tensors) -> None:
        self._source, self._batch, self._collected = source, batch, collected
        self._known: dict[str, dict[str, torch.Tensor]] = {}

    @property
    def asked(self) -> Iterator[Name]:
        """What has been asked for."""
        return ((key, name) for key, arrays in self._known.items() for name in arrays)

    def __getitem__(self, key: str) -> Mapping[str, torch.Tensor]:
        if key not in self._known:
            self._known[key] = {name: widened(self._rows((key, name))) for name in self._source.arrays[key]}
        return self._known[key]

    def _rows(self, name: Name) -> torch.Tensor:
        self._source.asked.add(name)
        if name in self._collected:
            return self._collected[name].to(self._source.device, non_blocking=True)
        return self._source.rows(name, self._batch)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.arrays)

    def __len__(self) -> int:
        return len(self._source.arrays)
