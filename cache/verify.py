"""Verifying a cache: every byte of every file against the manifest, and that plain zarr opens every array.

Nothing is changed, and nothing that a hostile cache holds is trusted: paths come from the manifest's own arithmetic,
links are refused, and a file is read only where it has the size that the manifest implies.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdtool import files
from kdtool.cache import journal, tree
from kdtool.cache.chunks import check_file, repair
from kdtool.cache.lines import read_lines
from kdtool.cache.manifest import Manifest
from kdtool.errors import DamageError


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of a cache; `file` is its path below the cache."""

    file: str
    what: str


def verify(path: Path | str, progress: Callable[[int], None] = lambda _: None) -> list[Problem]:
    """All problems of the cache at `path`, none for a sound one; `progress` is told the bytes of every file read.

    UsageError where there is no cache, IdentityError for another format. Run it when nobody writes: files of a running
    writer that are not recorded yet look like those of a killed one.
    """
    root = Path(path)
    try:
        manifest = journal.load(root)
    except DamageError as error:
        return list(_texts(root)) or [Problem(journal.MANIFEST, str(error))]
    found = tree.walk(root)
    problems = [
        *_texts(root),
        *(Problem(name, "is a link: a cache holds none") for name in found if (root / name).is_symlink()),
        *(Problem(name, _stray(name)) for name in tree.strays(manifest, found)),
        *_chunks(root, manifest, progress),
        *_metadata(root, manifest),
    ]
    return problems or list(_plain_zarr(root, manifest))


def _texts(root: Path) -> Iterator[Problem]:
    """Manifest, journal and provenance, byte for byte: two texts can have the same meaning and the same checksum."""
    checks = {journal.MANIFEST: _manifest, journal.COPY: _copy, journal.JOURNAL: _lines, journal.PROVENANCE: _lines}
    for name, check in checks.items():
        try:
            check(root / name)
        except DamageError as error:
            yield _problem(root, name, error)


def _problem(root: Path, name: str, error: DamageError) -> Problem:
    """What an error says of a file, without the file's path and the advice to verify."""
    return Problem(name, str(error).removeprefix(f"{root / name} ").removesuffix(f"; {repair(root)}"))


def _manifest(path: Path) -> None:
    body = journal.read(path)
    if path.read_bytes() != files.checked_json(body):
        raise DamageError(f"{path} is not written as kdtool writes it; {repair(path.parent)}")


def _copy(path: Path) -> None:
    """The copy may be of an earlier moment, where a writer was killed between the two, but of the same cache."""
    _manifest(path)
    try:
        manifest = journal.load(path.parent)
    except DamageError:
        return  # which is told of the manifest or the journal
    journal.check_copy(path, manifest)


def _lines(path: Path) -> None:
    _, torn = read_lines(path, repair(path.parent))
    if torn:
        raise DamageError(
            f"the last line of {path} is torn; a killed writer left it, the next `kdtool extract` removes it"
        )


def _stray(name: str) -> str:
    if tree.CHUNK.fullmatch(name) or tree.METADATA.fullmatch(name) or name.endswith(files.PARTIAL):
        return "is not recorded: a killed writer left it; the next `kdtool extract` removes it"
    return "does not belong to a cache; remove it"


def _chunks(root: Path, manifest: Manifest, progress: Callable[[int], None]) -> Iterator[Problem]:
    for name, recorded in sorted(manifest.files.items()):
        grid = manifest.grid_of(name)
        try:
            check_file(root, name, grid, recorded)
        except DamageError as error:
            yield _problem(root, name, error)
        progress(grid.file_bytes)


def _metadata(root: Path, manifest: Manifest) -> Iterator[Problem]:
    """Every zarr.json; one that a killed writer did not come to write is no damage while its work is unfinished."""
    begun = (root / journal.JOURNAL).exists() or not (manifest.contents or manifest.files)
    for name, state in tree.states(root, manifest).items():
        if state == "other" or (state == "stale" and not begun):
            yield Problem(name, "is missing or does not describe what the manifest has there")


def _plain_zarr(root: Path, manifest: Manifest) -> Iterator[Problem]:
    """Whether zarr-python opens every array with the right shape and dtype; it sees right metadata only."""
    import zarr  # takes most of a second, and nothing else needs it

    states = tree.states(root, manifest)
    for grid in tree.all_grids(manifest):
        name = f"{grid.path}/zarr.json"
        if states[name] == "right":
            array = zarr.open_array(root / grid.path, mode="r")
            shape = grid.shape if grid.views is None else (grid.views, *grid.shape)
            if array.shape != shape or array.dtype != np.dtype(grid.dtype):
                yield Problem(name, f"zarr opens it as {array.dtype} of shape {array.shape}")
