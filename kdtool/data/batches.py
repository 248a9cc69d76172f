"""What an epoch is: which view it runs over, in which order, in which batches.

View and order are pure functions of (seed, epoch), so a resumed run goes on as if it had never stopped. Left out: the
pixels of a batch (`kdtool.data.images`).
"""

import itertools

import numpy as np

from kdtool import philox
from kdtool.data.dataset import Rows
from kdtool.errors import UsageError


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
