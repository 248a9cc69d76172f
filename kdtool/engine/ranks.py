"""Several processes of one `torchrun` that work together: which of them this is, and what they tell one another.

Rank 0 alone writes caches and runs; what the others hand it are plain values. Left out: the tensors of a training step
(kdtool.engine.together).
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

from kdtool.errors import KdtoolError, NonFiniteError, ResourceError, Stopped, UsageError

Array = npt.NDArray[np.float64]

PATIENCE = timedelta(days=30)  # the other ranks wait while rank 0 learns fits
COMMON = (UsageError, NonFiniteError, Stopped)  # what all ranks come upon at the same place


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

    def highest(self, values: Sequence[int]) -> Sequence[int]:
        """The highest of all ranks at each place, in every rank."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def __repr__(self) -> str:
        return "Alone()"

    def shared(self, value: Any) -> Any:
        """The value."""
        return value

    def gathered(self, value: Any) -> Sequence[Any]:
        """The value."""
        return [value]

    def summed(self, values: Array) -> Array:
        """The values."""
        return values

    def highest(self, values: Sequence[int]) -> Sequence[int]:
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

    def highest(self, values: Sequence[int]) -> Sequence[int]:
        """The highest of all ranks."""
        found = torch.tensor(values)
        with _others():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return [int(value) for value in found]


@contextmanager
def _others() -> Iterator[None]:
    """Tells in one line that another process has ended while this one waited for it."""
    try:
        yield
    except RuntimeError as error:
        raise ResourceError("another process of this torchrun has ended; its own message says why") from error


@contextmanager
def working() -> Iterator[None]:
    """A block in which tensors are exchanged: where that fails, another process has ended; the rest stays as it is."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        with _others():
            raise


@contextmanager
def alike(group: Ranks) -> Iterator[None]:
    """A block that ends well in all ranks or in none: what one of them refuses is raised in all, and rank 0 says it."""
    refused: KdtoolError | None = None
    try:
        yield
    except KdtoolError as error:
        if group.size == 1:
            raise
        refused = error
    found: list[KdtoolError] = [error for error in group.gathered(refused) if error is not None]
    if found:
        found[0].apart = False
        raise found[0] from refused


@contextmanager
def ranks(device: torch.device = torch.device("cpu")) -> Iterator[Ranks]:  # noqa: B008 - it has no state
    """The processes that `torchrun` started, joined while the block runs, or this one alone.

    device: where tensors that they exchange lie, beside what is small and on the CPU; for CUDA, that of this rank. They
    find one another once: who calls several stages in one process joins them before, by torch's init_process_group.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Alone()
        return
    joined = distributed.is_initialized()
    if not joined:
        if device.type == "cuda":
            check_own(device)
            torch.cuda.set_device(device)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Together()
    except KdtoolError as error:
        if error.apart is None:
            error.apart = not isinstance(error, COMMON)
        raise
    finally:
        if not joined:
            distributed.destroy_process_group()


def check_own(device: torch.device) -> None:
    """Refuses that two processes of a machine train on one GPU, which NCCL cannot."""
    local, held = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index != local:
        raise ResourceError(
            f"process {local} of this machine would train on {device}, and each needs a GPU of its own; torch finds "
            f"{held}: torchrun --nproc-per-node {held}, with --device cuda"
        )


def own_rank() -> int:
    """The number of this process among those that `torchrun` started."""
    return int(os.environ.get("RANK", "0"))


def leave() -> tuple[int, int] | None:
    """Lets a process of a torchrun work for itself, with a CUDA device of its own where there are as many.

    Gives (its number from 1, how many there are); None outside of a torchrun. To be called before anything else.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return None
    number, local = int(os.environ["RANK"]) + 1, int(os.environ.get("LOCAL_RANK", "0"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    return number, size
