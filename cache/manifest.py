"""What is known of a cache: what it is of, what its keys mean, and which chunk files are there, with their digests.

manifest.json is one such record; a line of the journal is an addition to it of the same form, and adding it twice
changes nothing. A chunk is there if and only if it is recorded here. Left out: the two files (kdtool.cache.journal),
writing chunks (kdtool.cache.writer) and the zarr metadata that follow from the manifest (kdtool.cache.tree).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdtool.cache.arrays import ArraySpec, Grid, check_name, whole_grid
from kdtool.cache.chunks import RECORD
from kdtool.cache.identity import FORMAT, identity_digest
from kdtool.cache.layout import PARTS, Contents, FitContents, Layout


@dataclass
class Manifest:
    """What is known of a cache; grows by `add`.

    identity: plain values. contents, fits: by key. files: path of a chunk below the cache -> its CRC-32C and SHA-256.
    """

    identity: dict[str, Any]
    layout: Layout
    contents: dict[str, Contents] = field(default_factory=dict)
    fits: dict[str, FitContents] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    _grids: dict[str, Grid] = field(default_factory=dict)  # by path, every array that there can be
    _chunks: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)  # (part, key) -> view -> chunks recorded

    def __post_init__(self) -> None:
        for part, samples in self.layout.samples.items():
            self._keep(whole_grid(f"{part}/{name}", ArraySpec("int64", (samples,))) for name in ("labels", "index"))

    @property
    def digest(self) -> str:
        """SHA-256 of the identity, the layout and the format."""
        return identity_digest(self.identity, self.layout.to_json())

    def grid(self, path: str) -> Grid:
        """The array at a path below the cache, without a count of views; KeyError where there can be none."""
        return self._grids[path]

    def grid_of(self, file: str) -> Grid:
        """The array that a chunk's file belongs to; KeyError where there can be none."""
        return self._grids[f"{file}/".rpartition("/c/")[0]]

    def grids(self, part: str, key: str) -> list[Grid]:
        """The arrays of a key in a part, with the number of complete views."""
        views, arrays = self.views(part, key), self.contents[key].arrays
        return [self.layout.grid(part, key, name, spec, views) for name, spec in sorted(arrays.items())]

    def whole_grids(self) -> list[Grid]:
        """The arrays without views that are there, whole: labels, indices and the results of fits."""
        grids = (grid for grid in self._grids.values() if grid.views is None)
        return [grid for grid in grids if all(grid.file(chunk) in self.files for chunk in range(grid.chunks))]

    def parts(self, key: str) -> list[str]:
        """The parts in which a key has arrays: train, and every other in which a block was committed."""
        return [part for part in PARTS if part == "train" or (part, key) in self._chunks]

    def views(self, part: str, key: str) -> int:
        """The number of complete views of a key, counted from view 0 without a gap."""
        recorded = self._chunks.get((part, key), Counter())
        needed = sum(grid.chunks for grid in self._key_grids(part, key).values()) if recorded else -1
        views = 0
        while recorded[views] == needed:
            views += 1
        return views

    def block_files(self, part: str, key: str, view: int, block: int) -> dict[str, tuple[str, int]]:
        """The chunk files of a block: path -> (name of the array, number of the chunk)."""
        grids = sorted(self._key_grids(part, key).items())
        chunks = ((name, grid, chunk) for name, grid in grids for chunk in self.layout.chunks(grid, part, block))
        return {grid.file(chunk, view): (name, chunk) for name, grid, chunk in chunks}

    def missing(self, part: str, key: str, view: int) -> list[int]:
        """The blocks of a view that are not committed."""
        blocks = range(self.layout.blocks(part))
        return [b for b in blocks if not self.files.keys() >= self.block_files(part, key, view, b).keys()]

    def add(self, addition: Mapping[str, Any]) -> None:
        """Takes in a line of the journal, or a whole manifest, which has the same fields.

        ValueError, TypeError, AttributeError or KeyError where it does not fit what is known.
        """
        for key, value in addition.get("contents", {}).items():
            self._add_contents(key, Contents.from_json(value))
        for key, value in addition.get("fits", {}).items():
            self._add_fit(key, FitContents.from_json(value))
        for name, recorded in addition.get("files", {}).items():
            self._add_file(name, recorded)

    def without(
        self, names: Collection[str] = (), keys: Collection[str] = (), fits: Collection[str] = ()
    ) -> "Manifest":
        """The manifest without some files, and without some keys and fits and all their files."""

        def stays(name: str) -> bool:
            part, owner = name.split("/")[:2]
            return name not in names and owner not in (fits if part == "fitted" else keys)

        record = self.to_json()
        kept = Manifest(self.identity, self.layout)
        kept.add(
            {
                "contents": {key: value for key, value in record["contents"].items() if key not in keys},
                "fits": {key: value for key, value in record["fits"].items() if key not in fits},
                "files": {name: value for name, value in self.files.items() if stays(name)},
            }
        )
        return kept

    def to_json(self) -> dict[str, Any]:
        """The fields of manifest.json, without its checksum."""
        return {
            "format": FORMAT,
            "identity": self.identity,
            "identity_digest": self.digest,
            "layout": self.layout.to_json(),
            "contents": {key: contents.to_json() for key, contents in self.contents.items()},
            "fits": {key: fit.to_json() for key, fit in self.fits.items()},
            "files": self.files,
        }

    def _key_grids(self, part: str, key: str) -> dict[str, Grid]:
        return {name: self._grids[f"{part}/{key}/{name}"] for name in self.contents[key].arrays}

    def _add_contents(self, key: str, contents: Contents) -> None:
        check_name("key", key)
        if self.contents.setdefault(key, contents).to_json() != contents.to_json():
            raise ValueError(f"key {key} has two definitions")
        for part in self.layout.samples:
            self._keep(self.layout.grid(part, key, name, spec) for name, spec in contents.arrays.items())

    def _add_fit(self, key: str, fit: FitContents) -> None:
        check_name("fit", key)
        if self.fits.setdefault(key, fit).to_json() != fit.to_json():
            raise ValueError(f"fit {key} has two definitions")
        self._keep(whole_grid(f"fitted/{key}/{name}", spec) for name, spec in fit.arrays.items())

    def _add_file(self, name: str, recorded: str) -> None:
        grid = self.grid_of(name)
        view, _ = grid.locate(name)
        if not RECORD.fullmatch(recorded) or self.files.get(name, recorded) != recorded:
            raise ValueError(f"{name} has two records, or one that is none: {recorded}")
        if name not in self.files and grid.views is not None:
            part, key, _ = grid.path.split("/")
            self._chunks.setdefault((part, key), Counter())[view] += 1
        self.files[name] = recorded

    def _keep(self, grids: Iterable[Grid]) -> None:
        self._grids.update({grid.path: grid for grid in grids})
