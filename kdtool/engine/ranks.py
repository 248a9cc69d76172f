"""Several processes of one `torchrun` that work together: which of them this is, and what they tell one another.

Rank 0 alone holds the writer of a cache; the others hand it what they wrote, as plain values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from kdtool.errors import ResourceError

Array = npt.NDArray[np.float64]

PATIENCE = timedelta(days=30)  # the other ranks wait while rank 0 learns fits


class Ranks(Protocol):
    """The processes that take part; `rank` of this one, from 0, and how many there are."""

    rank: int
    size: int

    def shared(self, value: Any) -> Any:
        """Rank 0's value, in every rank; the others pass anything."""

    def gathered(self, value: Any) -> Sequence[Any]:
        """The values of all ranks in order, in every rank."""

    def summed(self, values: Array) -> Array:
        """The sum over all ranks, the same bits in every rank."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def shared(self, value: Any) -> Any:
        """The value."""
        return value

    def gathered(self, value: Any) -> Sequence[Any]:
        """The value."""
        return [value]

    def summed(self, values: Array) -> Array:
        """The values."""
        return values


class Together:
    """The processes of the default group of torch.distributed, by gloo: what they exchange is small and on the CPU."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def shared(self, value: Any) -> Any:
        """Rank 0's value."""
        values = [value]
        with _others():
            distributed.broadcast_object_list(values)
        return values[0]

    def gathered(self, value: Any) -> Sequence[Any]:
        """The values of all ranks."""
        values: list[Any] = [None] * self.size
        with _others():
            distributed.all_gather_object(values, value)
        return values

    def summed(self, values: Array) -> Array:
        """The sum over all ranks."""
        total = torch.from_numpy(np.ascontiguousarray(values)).clone()
        with _others():
            distributed.all_reduce(total)
        return total.numpy()


@contextmanager
def _others() -> Iterator[None]:
    """Tells in one line that another process has ended while this one waited for it."""
    try:
        yield
    except RuntimeError as error:
        raise ResourceError("another process of this torchrun has ended; its own message says why") from error


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes that `torchrun` started, joined while the block runs, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Alone()
        return
    joined = distributed.is_initialized()
    if not joined:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Together()
    finally:
        if not joined:
            distributed.destroy_process_group()


def own_rank() -> int:
    """The number of this process among those that `torchrun` started."""
    return int(os.environ.get("RANK", "0"))
