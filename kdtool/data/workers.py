"""Work that several threads do ahead of the one who needs it, in order and within a bounded amount of memory.

Decoding and resizing of pictures, reading of files and hashing leave Python's lock alone, so threads are enough.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

MOST = 32  # threads


def workers(processes: int | None = None) -> int:
    """As many as this process may use cores; those of a `torchrun` on one machine share them, unless told otherwise."""
    sharing = processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST, len(os.sched_getaffinity(0)) // sharing))


def in_order(function: Callable[[In], Out], items: Iterable[In], threads: int, ahead: int) -> Iterator[Out]:
    """`function` of every item, in their order; at most `ahead` results wait. An error of one comes at its place."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="kdtool-pictures")
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
