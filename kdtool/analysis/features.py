"""Features of students and a teacher, read side by side in float64 blocks of the same samples.

A side is an (n, d) array or tensor, or anything that can be iterated again and again over (rows, d) chunks; chunk
borders do not matter. A side can be seen through a function of its rows (`Mapped`) and in a part of its samples
(`span`). Also the powers of two that keep squares and fourth powers of features inside of float64.

Left out: where features come from, and everything that is computed from them.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdtool.errors import UsageError
from kdtool.progress import Progress

Chunk = np.ndarray[Any, Any] | torch.Tensor
Features = Chunk | Iterable[Chunk]
Matrix = np.ndarray[Any, np.dtype[np.float64]]

VALUES = 2**20  # that a pair of blocks holds: 8 MiB, more where d x d matrices are larger than that
ORDINARY = 128  # magnitudes from 2^-128 to 2^128 need no scaling: their fourth powers are far inside of float64
NO_SAMPLES = "the features have no samples; expected at least one"
NOTHING = -(10**4)  # the exponent of values that are all zero, below that of any float64


@dataclass(frozen=True)
class Mapped:
    """A side whose rows are a function of another side's: `of` takes (rows, d) in float64 and gives (rows, width)."""

    features: Features
    of: Callable[[Matrix], Matrix]

    def __iter__(self) -> Iterator[Matrix]:
        for chunk in chunks(self.features, "mapped side"):
            rows = max(1, VALUES // chunk.shape[1])
            for start in range(0, len(chunk), rows):
                yield self.of(float64(chunk[start : start + rows]))

    def __len__(self) -> int:
        return samples(self.features, "mapped side")

    def span(self, start: int, stop: int) -> "Mapped":
        """The same of a part of the samples."""
        return Mapped(span(self.features, start, stop), self.of)


@dataclass(frozen=True)
class Watched:
    """A side that tells how far its readings have come: a task of as many steps as it has samples, each time."""

    features: Features
    progress: Progress
    task: str

    def __iter__(self) -> Iterator[Chunk]:
        self.progress.begin(self.task, len(self))
        for chunk in chunks(self.features, "side"):
            rows = max(1, VALUES // chunk.shape[1])
            for start in range(0, len(chunk), rows):
                piece = chunk[start : start + rows]
                yield piece
                self.progress.advance(len(piece))

    def __len__(self) -> int:
        return samples(self.features, "side")

    def span(self, start: int, stop: int) -> "Watched":
        """The same of a part of the samples."""
        return Watched(span(self.features, start, stop), self.progress, self.task)


@dataclass(frozen=True)
class Span:
    """Samples start..stop-1 of chunks that can only be read from their beginning."""

    features: Iterable[Chunk]
    start: int
    stop: int

    def __iter__(self) -> Iterator[Chunk]:
        first = 0
        for chunk in self.features:
            last = first + len(chunk)
            if first < self.stop and last > self.start:
                yield chunk[max(0, self.start - first) : self.stop - first]
            first = last


def span(features: Features, start: int, stop: int) -> Features:
    """Samples start..stop-1 of a side, read without the others where the side can do that."""
    if hasattr(features, "ndim"):
        return features[start:stop]  # type: ignore[index]
    part = getattr(features, "span", None)
    return part(start, stop) if part else Span(features, start, stop)


def widths(student: Features, teacher: Features) -> tuple[int, int]:
    """The numbers of features (d_S, d_T), from a look at the first chunks.

    An iterator that can be read only once is refused before anything of either side is read.
    """
    found = all_widths((student, teacher), ("student", "teacher"))
    return found[0], found[1]


def all_widths(sides: Sequence[Features], names: Sequence[str]) -> tuple[int, ...]:
    """The number of features of every side; errors as for `widths`, about the sides under these names."""
    for features, name in zip(sides, names, strict=True):
        refuse_unreadable(features, name)
    found = [next((int(c.shape[1]) for c in chunks(f, name)), 0) for f, name in zip(sides, names, strict=True)]
    for d, name in zip(found, names, strict=True):
        if not d:
            raise UsageError(f"the {name}'s features have no samples; expected at least one")
    return tuple(found)


def blocks(student: Features, teacher: Features, widths: tuple[int, int]) -> Iterator[tuple[Matrix, Matrix]]:
    """The two sides as blocks (rows, d_S) and (rows, d_T) of the same samples, valid until the next pair is asked for.

    Raises UsageError for sides of different lengths, for no samples at all and for
    values that are not finite.
    """
    none = True
    for s, t in side_by_side((student, teacher), ("student", "teacher"), widths):
        none = False
        yield s, t
    if none:
        raise UsageError(NO_SAMPLES)


def side_by_side(
    sides: Sequence[Features], names: Sequence[str], widths: Sequence[int]
) -> Iterator[tuple[Matrix, ...]]:
    """All sides as blocks (rows, d) of the same samples, like `blocks`; errors call the sides by their names.

    Sides without samples give no blocks.
    """
    rows = max(VALUES // sum(widths), *widths)
    streams = (regrouped(features, rows, name) for features, name in zip(sides, names, strict=True))
    for found in itertools.zip_longest(*streams):
        if len({None if block is None else len(block) for block in found}) > 1:
            refuse_lengths(sides, names)
        yield found


def refuse_lengths(sides: Sequence[Features], names: Sequence[str]) -> None:
    """UsageError for sides of different lengths, of which the last is the teacher's."""
    counts = [samples(features, name) for features, name in zip(sides, names, strict=True)]
    other = next((number for number, count in enumerate(counts) if count != counts[-1]), 0)
    raise UsageError(
        f"the {names[other]} has {counts[other]} samples and the {names[-1]} {counts[-1]}; "
        "expected features of the same samples in the same order"
    )


def regrouped(features: Features, rows: int, side: str) -> Iterator[Matrix]:
    """A side in blocks of `rows` samples whatever its chunks; the last may have fewer. One buffer serves them all."""
    buffer = np.empty((0, 0))
    filled = 0
    for chunk in chunks(features, side):
        if not len(buffer):
            buffer = np.empty((rows, chunk.shape[1]))
        start = 0
        while start < len(chunk):
            part = float64(chunk[start : start + rows - filled])
            if not np.isfinite(largest(part)):
                raise UsageError(f"the {side}'s features are not all finite; expected no NaN and no infinity")
            buffer[filled : filled + len(part)] = part
            start, filled = start + len(part), filled + len(part)
            if filled == rows:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def chunks(features: Features, side: str) -> Iterator[Chunk]:
    """The (rows, d) chunks of a side, each checked for its shape and type; a whole array or tensor is one chunk."""
    refuse_unreadable(features, side)
    parts: Iterable[Any] = [features] if hasattr(features, "ndim") else features
    d = 0
    for chunk in parts:
        shape = tuple(getattr(chunk, "shape", ()))
        if len(shape) != 2 or shape[1] == 0 or d not in (0, shape[1]):
            expected = f"(rows, {d})" if d else "(n, d), or chunks of (rows, d)"
            raise UsageError(f"the {side}'s features have the shape {shape}; expected {expected}")
        if getattr(chunk.dtype, "kind", "f") not in "fiub" or getattr(chunk.dtype, "is_complex", False):
            raise UsageError(f"the {side}'s features are of type {chunk.dtype}; expected real numbers")
        d = shape[1]
        yield chunk


def refuse_unreadable(features: Features, side: str) -> None:
    """Refuses what cannot be read or only once, without asking it for anything."""
    once = isinstance(features, Iterator)
    if once or not (hasattr(features, "__iter__") or hasattr(features, "__getitem__")):
        raise UsageError(
            f"the {side}'s features are of type {type(features).__name__}, which "
            f"{'can be read only once' if once else 'cannot be iterated'}; expected an (n, d) array or tensor, or a "
            "sequence of (rows, d) chunks such as list(chunks)"
        )


def samples(features: Features, side: str) -> int:
    """The number of samples of a side."""
    if isinstance(features, Sized) and hasattr(features, "span"):
        return len(features)
    return sum(len(chunk) for chunk in chunks(features, side))


def float64(chunk: Chunk) -> Matrix:
    """A chunk as a float64 array on the CPU."""
    if isinstance(chunk, torch.Tensor):
        return chunk.detach().to("cpu", torch.float64).numpy()
    return np.asarray(chunk, dtype=np.float64)


def largest(values: Matrix) -> float:
    """The largest magnitude; NaN where there is one."""
    return max(float(values.max()), -float(values.min()))


def exponent(values: Matrix) -> int:
    """The e for which `scaled(values, e)` can be raised to the fourth power; 0 for ordinary values."""
    found = math.frexp(largest(values))
    if found[0] == 0:
        return NOTHING
    return 0 if abs(found[1]) <= ORDINARY else found[1]


def scaled(values: Matrix, exponent: int) -> Matrix:
    """values / 2^exponent, which is exact save for what vanishes beside the largest."""
    return np.ldexp(values, -exponent) if exponent else values
