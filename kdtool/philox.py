"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011), the same on every machine, in any order.

A draw is a pure function of (seed, stream, round, item): no state, so the numbers of one sample do not depend on batch
size, order, number of workers or ranks, or the point where a run was resumed. Left out: distributions other than
uniform integers, which are all that crops, flips and orders need.
"""

import numpy as np
import numpy.typing as npt

SCHEME = "philox4x32-10/1"

# One tag for each purpose, so that no two purposes ever read the same numbers.
ORDER, AUGMENT, VIEWS, SPLIT, LANDMARKS, FIT, SUBSETS, LAYERS, ADAPTERS, DRAWS, SELECTION = range(11)

Words = npt.NDArray[np.uint32]


def philox(counter: npt.NDArray[np.uint32], key: tuple[int, int]) -> Words:
    """Ten rounds of Philox4x32 over counters of shape (..., 4); gives words of the same shape."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        first = c0 * np.uint64(0xD2511F53)
        second = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (second >> shift) ^ c1 ^ k0, second & low, (first >> shift) ^ c3 ^ k1, first & low
        k0 = (k0 + np.uint64(0x9E3779B9)) & low
        k1 = (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(seed: int, stream: int, turn: int, items: npt.ArrayLike, count: int) -> Words:
    """`count` random words for each item: shape (len(items), count).

    The counter is (item, number of the block of four words, turn, stream); `turn` is a view, an epoch or a round.
    """
    index = np.asarray(items, dtype=np.uint32)
    blocks = -(-count // 4)
    counter = np.empty((len(index), blocks, 4), dtype=np.uint32)
    counter[..., 0] = index[:, None]
    counter[..., 1] = np.arange(blocks, dtype=np.uint32)
    counter[..., 2] = turn
    counter[..., 3] = stream
    drawn = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return drawn.reshape(len(index), 4 * blocks)[:, :count]


def permutations(seed: int, stream: int, turn: int, items: npt.ArrayLike, size: int) -> npt.NDArray[np.int64]:
    """One permutation of 0..size-1 for each item: shape (len(items), size). Equal words fall back on the index."""
    keys = words(seed, stream, turn, items, size).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort(axis=1)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def permutation(seed: int, stream: int, turn: int, size: int) -> npt.NDArray[np.int64]:
    """One permutation of 0..size-1, one random word an element, so that it is fast for long ones too."""
    keys = words(seed, stream, turn, np.arange(size), 1)[:, 0].astype(np.uint64) << np.uint64(32)
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
