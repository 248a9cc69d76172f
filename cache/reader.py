"""Reading a cache: what it is of, what it holds, and rows of its arrays straight from memory-mapped chunk files.

The zarr library is not needed here: a chunk file is an array and four bytes. A chunk's CRC is compared with the stored
one and the manifest's when the chunk is first touched. Left out: a full check (kdtool.cache.verify).
"""

import functools
import resource
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtool.cache import journal
from kdtool.cache.chunks import Array, map_chunk, read_whole, repair
from kdtool.cache.layout import Contents, FitContents, Layout
from kdtool.cache.lines import read_lines
from kdtool.cache.manifest import Manifest
from kdtool.cache.rows import CachedArray
from kdtool.cache.tree import check_metadata
from kdtool.errors import DamageError

FEWEST_MAPS, MOST_FILES = 256, 16384


def open_maps() -> int:
    """How many memory maps a cache keeps: each holds a file descriptor, of which a process gets as many as it may have.

    A quarter of them: a training may have several caches open. With fewer maps than an epoch's slices have chunks, each
    batch would open them anew.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(FEWEST_MAPS, wanted // 4)


def open_cache(path: Path | str) -> "Cache":
    """The cache at `path`, read-only, as it is now; works beside a writer, whose later commits it does not see.

    UsageError where there is no cache, DamageError where it is damaged, IdentityError where it has another format.
    """
    return Cache(Path(path), journal.load(Path(path)))


class Cache:
    """A cache that is open for reading; made by `open_cache`.

    path: its folder. manifest: what is recorded of it. Every method that reads values raises DamageError for what is
    missing or damaged.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._checked: set[str] = set()
        self._map = functools.lru_cache(maxsize=open_maps())(self._open_map)

    @property
    def identity(self) -> dict[str, Any]:
        """What the cache depends on, as plain values."""
        return self.manifest.identity

    @property
    def identity_digest(self) -> str:
        """SHA-256 of format, identity and layout."""
        return self.manifest.digest

    @property
    def unfinished(self) -> bool:
        """Whether an extract was stopped there, or is under way: in its blocks, or in what it learns before them."""
        scratch = self.path / journal.SCRATCH
        learning = scratch.is_dir() and any(entry.name != journal.REPAIR for entry in scratch.iterdir())
        return learning or (self.path / journal.JOURNAL).exists()

    @property
    def layout(self) -> Layout:
        """Samples, batch grid and blocks."""
        return self.manifest.layout

    @property
    def contents(self) -> dict[str, Contents]:
        """The definition of every key."""
        return dict(self.manifest.contents)

    @property
    def fits(self) -> dict[str, FitContents]:
        """The definition of every fit that is there."""
        return dict(self.manifest.fits)

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """The records of who wrote into the cache and how, oldest first."""
        return read_lines(self.path / journal.PROVENANCE, repair(self.path))[0]

    def views(self, key: str, part: str = "train") -> int:
        """The number of complete views of a key, counted from view 0; 0 where there is none."""
        return self.manifest.views(part, key) if key in self.manifest.contents else 0

    def missing(self, part: str, key: str, view: int) -> list[int]:
        """The blocks of a view that are not committed; all of them for a key that the cache does not know."""
        known = key in self.manifest.contents
        return self.manifest.missing(part, key, view) if known else list(range(self.layout.blocks(part)))

    def labels(self, part: str) -> npt.NDArray[np.int64]:
        """The classes of a part's samples, (n,)."""
        return self._whole(f"{part}/labels")

    def index(self, part: str) -> npt.NDArray[np.int64]:
        """The data set's rows of a part's samples, (n,)."""
        return self._whole(f"{part}/index")

    def fitted(self, key: str) -> dict[str, Array]:
        """The arrays of a fit."""
        fit = self.manifest.fits.get(key)
        if fit is None:
            raise DamageError(
                f"{self.path} holds no fit {key!r}; `kdtool extract` with the method that needs it adds it"
            )
        return {name: self._whole(f"fitted/{key}/{name}") for name in sorted(fit.arrays)}

    def array(self, part: str, key: str, name: str) -> CachedArray:
        """An array of a key, with the views that are complete now."""
        found = {} if key not in self.manifest.contents else {g.path: g for g in self.manifest.grids(part, key)}
        grid = found.get(f"{part}/{key}/{name}")
        if grid is None or not grid.views:
            raise DamageError(
                f"{self.path} holds no view of {part}/{key}/{name}; `kdtool extract` with that key adds it"
            )
        check_metadata(self.path, grid)
        return CachedArray(self.path, grid, functools.partial(self._map, grid.path))

    def _open_map(self, path: str, view: int, chunk: int) -> Array:
        grid = self.manifest.grid(path)
        name = grid.file(chunk, view)
        mapped = map_chunk(self.path, name, grid, None if name in self._checked else self.manifest.files[name])
        self._checked.add(name)
        return mapped

    def _whole(self, path: str) -> Array:
        grid = {grid.path: grid for grid in self.manifest.whole_grids()}.get(path)
        if grid is None:
            raise DamageError(f"{self.path} holds no {path}; `kdtool extract` adds it")
        check_metadata(self.path, grid)
        return read_whole(self.path, grid, self.manifest.files)
