"""One HDF5 file as the form in which a cache is passed on: written from a cache, checked, and made a cache again.

HDF5 says where in the file every array lies, and no more: values are written and read at those places by ordinary
means, so no conversion, filter or link of HDF5 ever touches them. The manifest travels along and decides here as it
does in a cache. Left out: views and samples that are not complete.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdtool import files
from kdtool.cache import journal, tree
from kdtool.cache.arrays import Grid
from kdtool.cache.chunks import check_file, encode, repair, write_files
from kdtool.cache.hdf5 import (
    MANIFEST,
    OBJECT_BYTES,
    PROVENANCE,
    arrays_of,
    finished,
    groups_of,
    lay_out,
    limit_of,
    places,
    rows_of,
    span_of,
    stored_bytes,
)
from kdtool.cache.hdf5_reading import Progress, chunk_files, chunk_problems, inspect
from kdtool.cache.lines import read_lines, seal
from kdtool.cache.manifest import Manifest
from kdtool.cache.opening import require_space
from kdtool.cache.verify import Problem
from kdtool.errors import DamageError, UsageError


def export_hdf5(
    cache_path: Path | str, file: Path | str, progress: Progress = lambda _: None, *, overwrite: bool = False
) -> None:
    """Writes a cache into one HDF5 file, whole or not at all; equal caches give equal files.

    progress: is told the bytes of every chunk file. UsageError where there is no cache, or `file` is there and
    `overwrite` is not given; DamageError for the first chunk that is damaged; ResourceError where the disk has too
    little room or another process exports to the same place.
    """
    root, target = Path(cache_path), Path(file)
    _refuse_file(target, overwrite)
    manifest = finished(journal.load(root))
    texts = {MANIFEST: files.checked_json(manifest.to_json()), PROVENANCE: _provenance(root)}
    arrays = arrays_of(manifest, texts)
    for array in arrays.values():
        if array.body_bytes > limit_of(array):
            raise UsageError(
                f"{array.path} has pieces of {array.body_bytes:,} bytes; one file can have up to {limit_of(array):,}; "
                f"pass the folder {root} on instead"
            )
    objects = 1 + len(arrays) + len(groups_of(arrays))
    require_space(target, sum(map(stored_bytes, arrays.values())) + OBJECT_BYTES * objects)
    partial = target.with_name(target.name + files.PARTIAL)
    with files.lock(partial, "exporting into"), _removed_on_failure(partial), files.explained(target):
        _refuse_file(target, overwrite)
        with partial.open("wb") as handle:
            for offset, content in _contents(root, manifest, texts, arrays, progress):
                handle.seek(offset)
                handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(target)
        files.sync_folder(target.parent)


def import_hdf5(file: Path | str, cache_path: Path | str, progress: Progress = lambda _: None) -> None:
    """Makes a cache of a file that `export_hdf5` wrote, whole or not at all: every file as in the cache it came from.

    progress: is told the bytes of every chunk in the file. UsageError where `file` is none of ours, or there is
    something at `cache_path` already; DamageError for the first thing that is damaged; IdentityError for another
    format; ResourceError where the disk has too little room or another process imports to the same place.
    """
    root = Path(cache_path).resolve()
    _refuse_folder(root)
    content = inspect(Path(file))
    if content.problems:
        raise DamageError(content.problems[0].what)
    manifest = content.manifest
    require_space(root, sum(manifest.grid_of(name).file_bytes + OBJECT_BYTES for name in manifest.files))
    with _building(root.with_name(root.name + files.PARTIAL), manifest) as partial:
        _refuse_folder(root)
        write_files(partial, chunk_files(content, progress))
        if content.provenance:
            files.write(partial / journal.PROVENANCE, content.provenance)
        write_files(partial, tree.metadata(manifest).items())
        journal.create(partial, manifest)  # last: what a killed import leaves is no cache
        with files.explained(root):
            partial.rename(root)
            files.sync_folder(root.parent)


def verify_hdf5(file: Path | str, progress: Progress = lambda _: None) -> list[Problem]:
    """All problems of a file that `export_hdf5` wrote, none for a sound one; changes nothing.

    `file` of a problem is the path of a dataset or group, or the file's own name where its manifest cannot be read.
    progress: is told the bytes of every chunk. UsageError where the file is none of ours, IdentityError for another
    format.
    """
    path = Path(file)
    try:
        content = inspect(path)
    except DamageError as error:
        return [Problem(path.name, str(error))]
    return [*content.problems, *chunk_problems(content, progress)]


def _contents(
    root: Path, manifest: Manifest, texts: Mapping[str, bytes], arrays: Mapping[str, Grid], progress: Progress
) -> Iterator[tuple[int, bytes]]:
    """(first byte, content) of everything in the file, every chunk checked."""
    offsets, others = lay_out(arrays)
    yield from others
    yield from ((offsets[name], text) for name, text in texts.items() if text)
    for grid, view, chunk in places(manifest):
        name, (start, size) = grid.file(chunk, view), span_of(grid, view, chunk)
        content = check_file(root, name, grid, manifest.files[name])
        if encode(rows_of(content[:size], grid), grid) != content:
            raise DamageError(f"{root / name} is not its values and zeros after them; {repair(root)}")
        yield offsets[grid.path] + start, content[:size]
        progress(grid.file_bytes)


def _provenance(root: Path) -> bytes:
    records, _ = read_lines(root / journal.PROVENANCE, repair(root))
    return "".join(f"{seal(record)}\n" for record in records).encode()


def _refuse_file(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name the file that `kdtool cache export` is to write")
    if os.path.lexists(target) and not overwrite:
        raise UsageError(f"{target} is there already; `kdtool cache export --overwrite` replaces it")


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _building(partial: Path, manifest: Manifest) -> Iterator[Path]:
    """A folder to build in, locked and empty but for the lock; removed where the block fails."""
    if os.path.lexists(partial) and not _is_leftover(partial, manifest):
        raise UsageError(f"{partial} is in the way of `kdtool cache import` and is none of its leftovers; move it away")
    with files.lock(partial / journal.LOCK, "importing into"):
        try:
            for entry in partial.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != journal.LOCK:
                    entry.unlink()
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _is_leftover(partial: Path, manifest: Manifest) -> bool:
    """Whether a folder is what a killed import leaves, and not another cache that has such a name."""
    if partial.is_symlink() or not partial.is_dir():
        return False
    names = {entry.name for entry in partial.iterdir()}
    held = {(partial / name).read_bytes() for name in {journal.MANIFEST, journal.COPY} & names}
    return not names or (journal.LOCK in names and held <= {files.checked_json(manifest.to_json())})


def _refuse_folder(root: Path) -> None:
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UsageError(
            f"{root} is there already; `kdtool cache import` makes a new cache: name another folder with --cache"
        )
