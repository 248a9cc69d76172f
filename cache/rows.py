"""Rows of one cached array: slices of a view in order, and gathers of rows in any order.

Left out: which chunks there are and whether they are sound (kdtool.cache.reader).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtool.cache.arrays import Grid
from kdtool.cache.chunks import Array
from kdtool.errors import DamageError


@dataclass(frozen=True)
class CachedArray:
    """An array of shape (views, n, ...) whose rows are read from memory-mapped chunks; made by `Cache.array`.

    root: the cache's folder. chunk: (view, number of the chunk) -> its rows, checked when they are first touched.
    """

    root: Path
    grid: Grid
    chunk: Callable[[int, int], Array]

    @property
    def shape(self) -> tuple[int, ...]:
        """(views, n, ...)."""
        return (self.grid.views or 0, *self.grid.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored dtype."""
        return np.dtype(self.grid.dtype)

    def read(self, view: int, start: int = 0, stop: int | None = None) -> Array:
        """A copy of rows start..stop-1 of a view, (stop - start, ...), at the speed of memory or disk."""
        stop = self.grid.shape[0] if stop is None else stop
        self._check(view)
        if not 0 <= start <= stop <= self.grid.shape[0]:
            raise IndexError(f"rows {start} to {stop} of {self.grid.shape[0]}")
        out = np.empty((stop - start, *self.grid.shape[1:]), self.dtype)
        for chunk in range(start // self.grid.rows, -(-stop // self.grid.rows)):
            first = chunk * self.grid.rows
            low, high = max(start, first), min(stop, first + self.grid.rows)
            out[low - start : high - start] = self.chunk(view, chunk)[low - first : high - first]
        return out

    def rows(self, view: int, positions: npt.ArrayLike) -> Array:
        """A copy of the rows at `positions` (b,) of a view, in their order, (b, ...)."""
        self._check(view)
        wanted = np.asarray(positions, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.grid.shape[0]:
            raise IndexError(f"positions {wanted.min()} to {wanted.max()} of {self.grid.shape[0]} rows")
        out = np.empty((len(wanted), *self.grid.shape[1:]), self.dtype)
        chunks, inside = np.divmod(wanted, self.grid.rows)
        order = np.argsort(chunks, kind="stable")
        touched, starts = np.unique(chunks[order], return_index=True)
        for chunk, taken in zip(touched.tolist(), np.split(order, starts)[1:], strict=True):
            out[taken] = self.chunk(view, chunk)[inside[taken]]
        return out

    def _check(self, view: int) -> None:
        if not 0 <= view < (self.grid.views or 0):
            raise DamageError(
                f"view {view} of {self.root / self.grid.path} is not there: {self.grid.views} views are complete; "
                f"`kdtool extract --views {view + 1}` adds what is missing"
            )
