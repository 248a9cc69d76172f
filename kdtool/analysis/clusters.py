"""Lloyd's k-means over features that are read block by block, from k-means++ seeds, within groups of samples.

Memory: (n,) integers, the centres, and a subsample that does not grow with n. Left out: which side is clustered, and
the landmarks that are made of the clusters.
"""

import itertools

import numpy as np
import numpy.typing as npt

from kdtool import philox
from kdtool.analysis.features import VALUES, Features, Matrix, chunks, regrouped
from kdtool.analysis.kernels import rows_at

Integers = npt.NDArray[np.int64]

SEEDING = 2**21  # values of the subsample from which seeds are drawn: 16 MiB
SUBSAMPLE = 2**32 - 1  # the turn of its draw, which no group reaches


def cluster(features: Features, d: int, groups: Integers, count: int, seed: int, rounds: int) -> Integers:
    """Cluster numbers (n,) of the samples: at most `count` clusters within every group 0, 1, ..., -1 outside of them.

    Seeds and, where a group fits into the subsample, clusters are those of `kdtool.methods.vectors.k_means`, group by
    group. A group with fewer distinct samples than `count` has as many clusters as those. Numbers ascend with the
    group; a number may be left without samples.
    """
    centres, first = seeds(features, groups, count, seed)
    assignment = np.full(len(groups), -1, dtype=np.int64)
    for _ in range(rounds):
        found, shift, counts = assigned(features, d, groups, centres, first)
        if np.array_equal(found, assignment):
            break
        assignment = found
        centres += shift / np.maximum(counts, 1)[:, None]
    return assignment


def assigned(
    features: Features, d: int, groups: Integers, centres: Matrix, first: Integers
) -> tuple[Integers, Matrix, Integers]:
    """One reading: nearest centres (n,) of the own group, summed distances from them (m, d), samples of each (m,)."""
    found = np.full(len(groups), -1, dtype=np.int64)
    shift, start = np.zeros_like(centres), 0
    for block in regrouped(features, max(VALUES // d, d), "teacher"):
        own = groups[start : start + len(block)]
        for group in np.unique(own[own >= 0]):
            members = np.flatnonzero(own == group)
            below, above = first[group], first[group + 1]
            rows = block[members]
            chosen = below + nearest(rows, centres[below:above])
            found[start + members] = chosen
            add_rows(shift, rows - centres[chosen], chosen)
        start += len(block)
    return found, shift, np.bincount(found[found >= 0], minlength=len(centres))


def nearest(rows: Matrix, centres: Matrix) -> Integers:
    """The nearest of the centres (m, d) for rows (b, d); the first of equal ones."""
    middle = centres.mean(0)  # a common offset would cost digits
    moved = centres - middle
    squares = (moved**2).sum(1)
    step = max(1, VALUES // len(centres))
    parts = [(squares - 2 * ((rows[i : i + step] - middle) @ moved.T)).argmin(1) for i in range(0, len(rows), step)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def add_rows(sums: Matrix, rows: Matrix, bins: Integers) -> None:
    """Adds every row (b, d) to the sum (m, d) of its bin."""
    order = np.argsort(bins, kind="stable")
    present, starts = np.unique(bins[order], return_index=True)
    if len(present):
        sums[present] += np.add.reduceat(rows[order], starts, axis=0)


def seeds(features: Features, groups: Integers, count: int, seed: int) -> tuple[Matrix, Integers]:
    """Seeds (m, d) of all groups, and where each group's begin (groups + 1,)."""
    number = int(groups.max()) + 1
    rows, owners = subsample(features, groups, number, count, seed)
    parts, first = [], [0]
    for group in range(number):
        parts.append(plus_plus(rows[owners == group], count, seed, group))
        first.append(first[-1] + len(parts[-1]))
    return np.concatenate(parts), np.array(first)


def plus_plus(rows: Matrix, count: int, seed: int, turn: int) -> Matrix:
    """k-means++ (Arthur & Vassilvitskii 2007) over rows (b, d): up to `count` rows that all differ.

    Every next seed comes with a probability proportional to the squared distance from those before it.
    """
    if not len(rows):
        return rows
    draws = philox.words(seed, philox.FIT, turn, [0], count)[0] / 2.0**32
    chosen = [int(draws[0] * len(rows))]
    distance = ((rows - rows[chosen[0]]) ** 2).sum(1)
    for draw in draws[1:]:
        mass = distance.cumsum()
        if mass[-1] == 0:
            break
        index = int(np.searchsorted(mass, draw * mass[-1], side="right"))
        chosen.append(min(index, int(np.flatnonzero(distance)[-1])))
        distance = np.minimum(distance, ((rows - rows[chosen[-1]]) ** 2).sum(1))
    return rows[chosen]


def subsample(features: Features, groups: Integers, number: int, count: int, seed: int) -> tuple[Matrix, Integers]:
    """Rows (b, d) in the order of the samples and their groups (b,): all of a small group, a philox draw of others."""
    d = next(int(chunk.shape[1]) for chunk in chunks(features, "teacher"))
    share = max(4 * count, SEEDING // (d * number))
    order = philox.permutation(seed, philox.FIT, SUBSAMPLE, len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.searchsorted(groups[order], np.arange(number + 1))
    parts = [order[begin : min(begin + share, end)] for begin, end in itertools.pairwise(starts)]
    picked = np.sort(np.concatenate(parts))
    return gathered(features, picked, "teacher"), groups[picked]


def gathered(features: Features, picked: Integers, side: str) -> Matrix:
    """The rows (len(picked), d) of the samples `picked`, in its order, from one reading."""
    order = np.argsort(picked, kind="stable")
    found = rows_at(features, picked[order], side)
    rows = np.empty_like(found)
    rows[order] = found
    return rows
