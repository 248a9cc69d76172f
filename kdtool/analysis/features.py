"""Features of a student and a teacher, read side by side in float64 blocks of the same samples.

A side is an (n, d) array or tensor, or anything that can be iterated again and again over (rows, d) chunks; chunk
borders do not matter. Also the powers of two that keep squares and fourth powers of features inside of float64.

Left out: where features come from, and everything that is computed from them.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from kdtool.errors import UsageError

Chunk = np.ndarray[Any, Any] | torch.Tensor
Features = Chunk | Iterable[Chunk]
Matrix = np.ndarray[Any, np.dtype[np.float64]]

VALUES = 2**20  # that a pair of blocks holds: 8 MiB, more where d x d matrices are larger than that
ORDINARY = 128  # magnitudes from 2^-128 to 2^128 need no scaling: their fourth powers are far inside of float64
NOTHING = -(10**4)  # the exponent of values that are all zero, below that of any float64


def widths(student: Features, teacher: Features) -> tuple[int, int]:
    """The numbers of features (d_S, d_T), from a look at the first chunks.

    An iterator that can be read only once is refused before anything of either side is read.
    """
    sides = (student, "student"), (teacher, "teacher")
    for features, side in sides:
        refuse_unreadable(features, side)
    found = [next((int(chunk.shape[1]) for chunk in chunks(features, side)), 0) for features, side in sides]
    for d, (_, side) in zip(found, sides, strict=True):
        if not d:
            raise UsageError(f"the {side}'s features have no samples; expected at least one")
    return found[0], found[1]


def blocks(student: Features, teacher: Features, widths: tuple[int, int]) -> Iterator[tuple[Matrix, Matrix]]:
    """The two sides as blocks (rows, d_S) and (rows, d_T) of the same samples, valid until the next pair is asked for.

    Raises UsageError for sides of different lengths, for no samples at all and for
    values that are not finite.
    """
    rows = max(VALUES // sum(widths), *widths)
    none = True
    for s, t in itertools.zip_longest(regrouped(student, rows, "student"), regrouped(teacher, rows, "teacher")):
        if s is None or t is None or len(s) != len(t):
            raise UsageError(
                f"the student has {samples(student, 'student')} samples and the teacher {samples(teacher, 'teacher')}; "
                "expected features of the same samples in the same order"
            )
        none = False
        yield s, t
    if none:
        raise UsageError("the features have no samples; expected at least one")


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
