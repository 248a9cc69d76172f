"""The blocks of an extract: which are missing, what the teacher says of one, and filling a cache with them.

Every batch lies on the cache's batch grid, so a block has the same bytes whoever computes it, and whenever. Several
ranks take the missing blocks in turns; rank 0 records them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdtool.cache import Cache, write_block
from kdtool.engine.extraction import Extraction, Landing, Stored, answered
from kdtool.engine.ranks import Ranks
from kdtool.engine.sources import Teller
from kdtool.progress import Progress, StopRequest
from kdtool.targets import CLEAN, Target, by_key

if TYPE_CHECKING:
    from kdtool.targets import Fitted

Missing = Callable[[str, str, int], Sequence[int]]  # part, key, view -> blocks that are not there
Place = tuple[str, int, int]  # part, view, block

AHEAD = 2  # batches whose answers a CUDA device may still owe


def missing_blocks(job: Extraction, missing: Missing) -> Iterator[tuple[str, str, int, int]]:
    """(part, key, view, block) of every block of the job that is not there."""
    for part in job.layout.samples:
        for view in range(job.views if part == "train" else 1):
            for key in job.part_keys(part):
                for block in missing(part, key, view):
                    yield part, key, view, block


def work(job: Extraction, missing: Missing) -> list[tuple[Place, list[str]]]:
    """Every block with the keys that it lacks, in the order in which they are written.

    The clean parts come last, so that an augmented view is there as early as possible.
    """
    found: dict[Place, list[str]] = {}
    for part, key, view, block in missing_blocks(job, missing):
        found.setdefault((part, view, block), []).append(key)
    parts = ("train", "train_clean", "validation", "test")
    return sorted(found.items(), key=lambda item: (parts.index(item[0][0]), *item[0][1:]))


def batches(job: Extraction, part: str, block: int) -> list[tuple[int, int]]:
    """(start, stop) of the batches of a block, on the batch grid."""
    size, batch = job.layout.block_rows(part), job.layout.batch
    end = min((block + 1) * size, job.layout.samples[part])
    return [(start, min(start + batch, end)) for start in range(block * size, end, batch)]


@dataclass
class Asked:
    """How many images the teacher was asked for, and the seconds that its answers took, as they are stored."""

    images: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Answers:
    """The teacher of a job with the results of the fits, ready to say what is stored of any block."""

    job: Extraction
    cache: Cache
    fitted: Mapping[str, Fitted]
    progress: Progress
    asked: Asked = field(default_factory=Asked)

    def block(self, place: Place, keys: Sequence[str]) -> Stored:
        """The arrays of some keys, whole for one block."""
        part, view, block = place
        known = by_key(self.job.targets)
        targets = [known[key] for key in keys]
        places = [np.arange(*bounds) for bounds in batches(self.job, part, block)]
        found = Filling(sum(map(len, places)))
        waiting: deque[Landing] = deque()
        for images in self.job.images(part).views((positions, of_part(part, view)) for positions in places):
            waiting.append(self._asked(targets, images))
            while len(waiting) > (AHEAD if images.is_cuda else 0):
                found.add(self._stored(waiting.popleft()))
            self.progress.advance(1)
        for landing in waiting:
            found.add(self._stored(landing))
        return found.arrays

    def rows(self, targets: Sequence[Target], part: str, view: int, positions: np.ndarray[Any, Any]) -> Stored:
        """The rows of some targets as they are stored, for at most a batch of samples."""
        return self.said(targets, self.job.images(part).view(positions, of_part(part, view)))

    def said(self, targets: Sequence[Target], images: torch.Tensor) -> Stored:
        """What the teacher says of at most a batch of images, as it is stored."""
        return self._stored(self._asked(targets, images))

    def _asked(self, targets: Sequence[Target], images: torch.Tensor) -> Landing:
        job = self.job
        teller = Teller(job.model, tuple(targets), self.fitted, job.layout.batch, job.precision)
        begun = time.perf_counter()
        landing = answered(job, self.cache.contents, targets, teller, images)
        self.asked.seconds += time.perf_counter() - begun
        self.asked.images += len(images)
        return landing

    def _stored(self, landing: Landing) -> Stored:
        begun = time.perf_counter()
        found = landing.landed()
        self.asked.seconds += time.perf_counter() - begun
        return found


class Filling:
    """The arrays of a block, which are there once: every batch is copied into its place."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.arrays: Stored = {}
        self._held = 0

    def add(self, piece: Stored) -> None:
        """The rows of the next batch."""
        count = 0
        for key, arrays in piece.items():
            for name, values in arrays.items():
                whole = self.arrays.setdefault(key, {})
                if name not in whole:
                    whole[name] = np.empty((self.rows, *values.shape[1:]), values.dtype)
                count = len(values)
                whole[name][self._held : self._held + count] = values
        self._held += count


def of_part(part: str, view: int) -> int:
    """The view of the images: that without augmentation in all parts but train."""
    return view if part == "train" else CLEAN


class Hand:
    """Writes the blocks of a rank that does not hold the writer."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def write(self, part: str, view: int, block: int, arrays: Stored) -> dict[str, Any]:
        """Writes one block durably; gives its record, for the rank that holds the writer."""
        return write_block(self.cache, part, view, block, arrays)

    def record(self, block: Mapping[str, Any]) -> None:
        """Nothing: rank 0 does."""


def fill_blocks(
    answers: Answers, writer: Any, todo: Sequence[tuple[Place, list[str]]], ranks: Ranks, stop: StopRequest
) -> None:
    """Writes every block of `todo`, all its keys together, each rank every so many; stops between two rounds of them.

    A block is written, hashed and made durable in a thread while the teacher answers for the next one, and recorded
    when that is done. writer: a CacheWriter in rank 0, a Hand in the others.
    """
    mine = todo[ranks.rank :: ranks.size]
    answers.progress.begin("extract", sum(len(batches(answers.job, part, block)) for (part, _, block), _ in mine))
    written: Future[dict[str, Any]] | None = None
    with stop.deferring(), ThreadPoolExecutor(1, thread_name_prefix="kdtool-blocks") as thread:
        for first in range(0, len(todo), ranks.size):
            chosen = todo[first + ranks.rank : first + ranks.rank + 1]  # none is left for some in the last round
            arrays = [answers.block(*one) for one in chosen]
            stopping = _record(writer, written, ranks, stop.requested())
            written = None
            for ((part, view, block), _), values in zip(chosen, arrays, strict=True):
                written = thread.submit(writer.write, part, view, block, values)
            if stopping:
                _record(writer, written, ranks, True)
                part, view, block = todo[min(first + ranks.size, len(todo)) - 1][0]
                raise stop.stopped(f"after block {block} of view {view} of {part}")
        _record(writer, written, ranks, False)


def _record(writer: Any, written: Future[dict[str, Any]] | None, ranks: Ranks, stopping: bool) -> bool:
    """Records the blocks that all ranks have written in a round, once they are durable; whether one wants to stop."""
    told = ranks.gathered((written.result() if written else None, stopping))
    for found, _ in told:
        if found is not None:
            writer.record(found)
    return any(asked for _, asked in told)
