"""The folder of a cache: the zarr metadata that follow from its manifest, and the files that do not belong to it.

The metadata hold nothing that the manifest does not: they let any zarr reader open the arrays, and they count complete
views only. They are written after the record that they follow from, so a killed writer leaves them behind, never ahead.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

from kdtool.cache.arrays import Grid, group_metadata, whole
from kdtool.cache.chunks import repair
from kdtool.cache.identity import FORMAT
from kdtool.cache.journal import ATTRIBUTE, COPY, JOURNAL, LOCK, MANIFEST, PROVENANCE, SCRATCH
from kdtool.cache.manifest import Manifest
from kdtool.errors import DamageError

METADATA_BYTES = 10_000  # no zarr.json is as large as this

# Where a writer puts chunks and metadata: what lies there without a record was left by one that was killed.
CHUNK = re.compile(r"(train|train_clean|validation|test|fitted)/.+/c(/[0-9]+)*")
METADATA = re.compile(r"(train|train_clean|validation|test|fitted)/([^/]+/){0,2}zarr\.json")


def all_grids(manifest: Manifest) -> list[Grid]:
    """Every array of a cache, with the number of its complete views."""
    keys = [(part, key) for key in sorted(manifest.contents) for part in manifest.parts(key)]
    return [*manifest.whole_grids(), *(grid for part, key in keys for grid in manifest.grids(part, key))]


def metadata(manifest: Manifest) -> dict[str, bytes]:
    """Path below the cache -> content of every zarr.json, groups before what they hold."""
    grids = all_grids(manifest)
    groups = {str(parent) for grid in grids for parent in Path(grid.path).parents}
    contents = {_metadata_file("."): group_metadata({ATTRIBUTE: FORMAT})}
    contents |= {_metadata_file(group): group_metadata({}) for group in sorted(groups - {"."})}
    return contents | {_metadata_file(grid.path): grid.metadata() for grid in grids}


def shown_views(content: bytes, grid: Grid) -> int | None:
    """The number of views that an array's zarr.json shows; None where it is not what kdtool writes for that array."""
    if grid.views is None or len(content) > len(grid.metadata()) + 20:
        return None
    try:
        views = json.loads(content)["shape"][0]
        same = whole(views, 0) and dataclasses.replace(grid, views=views).metadata() == content
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return int(views) if same else None


def check_metadata(root: Path, grid: Grid) -> None:
    """Refuses an array whose zarr.json says anything else than the manifest: another dtype, codec or shape.

    It may be absent or show other views, since a writer writes it after the record that it follows from.
    """
    content = _content(root / _metadata_file(grid.path))
    if content not in (None, grid.metadata()) and shown_views(content or b"", grid) is None:
        path = root / _metadata_file(grid.path)
        raise DamageError(f"{path} does not describe the array that the manifest has there; {repair(root)}")


def states(root: Path, manifest: Manifest) -> dict[str, str]:
    """Path -> state of every zarr.json: "right", "stale" (absent, or of other views: a killed writer's), or "other"."""
    grids = {_metadata_file(grid.path): grid for grid in all_grids(manifest)}
    found: dict[str, str] = {}
    for name, wanted in metadata(manifest).items():
        content = _content(root / name)
        stale = content is None or (name in grids and shown_views(content, grids[name]) is not None)
        found[name] = "right" if content == wanted else "stale" if stale else "other"
    return found


def stale_metadata(root: Path, manifest: Manifest) -> list[tuple[str, bytes]]:
    """The metadata that a killed writer did not come to write; any other difference is a DamageError."""
    wanted, found = metadata(manifest), states(root, manifest)
    for name, state in found.items():
        if state == "other":
            raise DamageError(f"{root / name} does not describe what the manifest has there; {repair(root)}")
    return [(name, wanted[name]) for name, state in found.items() if state == "stale"]


def walk(root: Path) -> list[str]:
    """The files of a cache as paths below it, sorted; links count as files. Of the scratch folder it has links only."""
    found = []
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names + links]
    return sorted(name for name in found if not name.startswith(f"{SCRATCH}/") or (root / name).is_symlink())


def strays(manifest: Manifest, names: list[str]) -> list[str]:
    """Those of the files below a cache that neither its manifest nor the format knows."""
    known = {MANIFEST, COPY, JOURNAL, PROVENANCE, LOCK, *manifest.files, *metadata(manifest)}
    return [name for name in names if name not in known]


def _content(path: Path) -> bytes | None:
    """A small file's content, None where there is none; one that is too large for metadata reads as empty."""
    if not path.is_file():
        return None
    return path.read_bytes() if path.stat().st_size <= METADATA_BYTES else b""


def _metadata_file(path: str) -> str:
    return "zarr.json" if path == "." else f"{path}/zarr.json"
