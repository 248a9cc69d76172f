"""One HDF5 file as the form in which a cache is passed on: written from a cache, checked, and made a cache again.

HDF5 says where in the file every array lies, and no more: values are written and read at those places by ordinary
means, so no conversion, filter or link of HDF5 ever touches them. The manifest travels along and decides here as it
does in a cache. Left out: views and samples that are not complete.
"""

import contextlib
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kdtool import files
from kdtool.cache import journal, tree
from kdtool.cache.arrays import Grid
from kdtool.cache.chunks import Array, check_file, encode, record_of, repair, write_files
from kdtool.cache.identity import FORMAT
from kdtool.cache.lines import read_lines, seal
from kdtool.cache.manifest import Manifest
from kdtool.cache.opening import require_space
from kdtool.cache.verify import Problem
from kdtool.errors import DamageError, IdentityError, UsageError

MANIFEST, PROVENANCE = "manifest", "provenance"  # datasets of bytes: the texts of the files that have these names
TEXT_BYTES = 2**28  # the longest text; the manifest of two million chunks
CHUNK_LIMIT = 2**30  # bytes of a chunk, which is held in memory; only an odd number of rows makes one above 16 MiB
OBJECT_BYTES = 4096  # more than HDF5 takes for a group or dataset, or a file system for the last part of a file
SIGNATURE = b"\x89HDF\r\n\x1a\n"
# What h5py raises for damaged files. Our own checks of them raise ValueError.
FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)

Progress = Callable[[int], None]


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
    manifest = _finished(journal.load(root))
    texts = {MANIFEST: files.checked_json(manifest.to_json()), PROVENANCE: _provenance(root)}
    arrays = _arrays(manifest, texts)
    for array in arrays.values():
        if array.body_bytes > _limit(array):
            raise UsageError(
                f"{array.path} has pieces of {array.body_bytes:,} bytes; one file can have up to {_limit(array):,}; "
                f"pass the folder {root} on instead"
            )
    objects = 1 + len(arrays) + len(_groups(arrays))
    require_space(target, sum(map(_stored_bytes, arrays.values())) + OBJECT_BYTES * objects)
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
    content = _inspect(Path(file))
    if content.problems:
        raise DamageError(content.problems[0].what)
    manifest = content.manifest
    require_space(root, sum(manifest.grid_of(name).file_bytes + OBJECT_BYTES for name in manifest.files))
    with _building(root.with_name(root.name + files.PARTIAL), manifest) as partial:
        _refuse_folder(root)
        write_files(partial, _chunk_files(content, progress))
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
        content = _inspect(path)
    except DamageError as error:
        return [Problem(path.name, str(error))]
    return [*content.problems, *_chunk_problems(content, progress)]


@dataclass(frozen=True)
class _Content:
    """What a file holds: its texts, and where in it each dataset begins that is as it should be."""

    file: Path
    manifest: Manifest
    provenance: bytes
    offsets: Mapping[str, int]
    problems: list[Problem]


# What belongs into a file follows from the manifest.


def _finished(manifest: Manifest) -> Manifest:
    """The manifest without the chunks of what is not complete."""
    kept = {grid.file(chunk, view) for grid, view, chunk in _places(manifest)}
    return manifest.without(manifest.files.keys() - kept)


def _places(manifest: Manifest) -> Iterator[tuple[Grid, int, int]]:
    """(array, view, chunk) of every chunk of complete views and arrays, in the order of their values in the file."""
    for grid in sorted(tree.all_grids(manifest), key=lambda grid: grid.path):
        for view in range(1 if grid.views is None else grid.views):
            yield from ((grid, view, chunk) for chunk in range(grid.chunks))


def _arrays(manifest: Manifest, texts: Mapping[str, bytes]) -> dict[str, Grid]:
    """Path -> array of every dataset; there is none for an empty text, nor for an array without a complete view."""
    grids = [Grid(name, "uint8", (len(text),), len(text)) for name, text in texts.items() if text]
    grids += [grid for grid in tree.all_grids(manifest) if grid.views != 0]
    return {grid.path: grid for grid in sorted(grids, key=lambda grid: grid.path)}


def _groups(paths: Iterable[str]) -> list[str]:
    """The groups that hold the datasets of these paths, without the root, outer ones first."""
    return sorted({str(parent) for path in paths for parent in Path(path).parents} - {"."})


def _shape(grid: Grid) -> tuple[int, ...]:
    return grid.shape if grid.views is None else (grid.views, *grid.shape)


def _stored_bytes(grid: Grid) -> int:
    return math.prod(_shape(grid)) * grid.storage.itemsize


def _limit(grid: Grid) -> int:
    return TEXT_BYTES if grid.path in (MANIFEST, PROVENANCE) else CHUNK_LIMIT


def _span(grid: Grid, view: int, chunk: int) -> tuple[int, int]:
    """First byte and number of bytes of a chunk's values in its dataset, which has no rows past the last sample."""
    row_bytes, length = grid.body_bytes // grid.rows, grid.shape[0] if grid.shape else 1
    first = chunk * grid.rows
    return (view * length + first) * row_bytes, min(grid.rows, length - first) * row_bytes


def _rows(values: bytes, grid: Grid) -> Array:
    return np.frombuffer(values, grid.storage).reshape((-1, *grid.shape[1:]) if grid.shape else ())


# Writing.


def _lay_out(arrays: Mapping[str, Grid]) -> tuple[dict[str, int], list[tuple[int, bytes]]]:
    """Path -> first byte of every array in the file, and (first byte, content) of everything that is no array.

    HDF5 writes into a file in memory that has holes for the values: a program in which it meets a full disk crashes.
    """
    with os.fdopen(os.memfd_create("kdtool"), "r+b") as sparse:
        offsets = _create(sparse, arrays)
        ends = [0, *(offset + _stored_bytes(arrays[name]) for name, offset in offsets.items())]
        starts = [*offsets.values(), sparse.seek(0, os.SEEK_END)]
        between = zip(sorted(ends), sorted(starts), strict=True)
        return offsets, [(end, _bytes(sparse, end, start - end)) for end, start in between]


def _create(place: BinaryIO, arrays: Mapping[str, Grid]) -> dict[str, int]:
    """Makes an HDF5 file with room for the values of all arrays, and none of them; gives path -> first byte.

    It holds no times, nor anything else that another export would not have. The form is that of HDF5 1.8, which
    every later one reads, and the oldest with checksums on all that is not values.
    """
    from h5py import h5a, h5d, h5f, h5fd, h5g, h5p, h5s, h5t

    access, creation, of_group, of_dataset = (
        h5p.create(kind) for kind in (h5p.FILE_ACCESS, h5p.FILE_CREATE, h5p.GROUP_CREATE, h5p.DATASET_CREATE)
    )
    access.set_fileobj_driver(h5fd.fileobj_driver, place)
    access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V18)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    for settings in (creation, of_group, of_dataset):
        settings.set_obj_track_times(False)
    of_dataset.set_layout(h5d.CONTIGUOUS)
    of_dataset.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    of_dataset.set_fill_time(h5d.FILL_TIME_NEVER)
    with contextlib.closing(h5f.create(b"in memory", h5f.ACC_TRUNC, creation, access)) as file:
        attribute = h5a.create(file, journal.ATTRIBUTE.encode(), h5t.STD_I64LE, h5s.create(h5s.SCALAR))
        attribute.write(np.array(FORMAT, "<i8"))
        for group in _groups(arrays):
            h5g.create(file, group.encode(), gcpl=of_group)
        offsets = {}
        for name, grid in arrays.items():
            space = h5s.create_simple(_shape(grid)) if _shape(grid) else h5s.create(h5s.SCALAR)
            offsets[name] = h5d.create(file, name.encode(), _type(grid), space, of_dataset).get_offset()
        return offsets


def _type(grid: Grid) -> Any:
    """The type of a dataset: little endian; a boolean is the enumeration that h5py reads as one."""
    from h5py import h5t

    return h5t.py_create(grid.storage, logical=True)


def _contents(
    root: Path, manifest: Manifest, texts: Mapping[str, bytes], arrays: Mapping[str, Grid], progress: Progress
) -> Iterator[tuple[int, bytes]]:
    """(first byte, content) of everything in the file, every chunk checked."""
    offsets, others = _lay_out(arrays)
    yield from others
    yield from ((offsets[name], text) for name, text in texts.items() if text)
    for grid, view, chunk in _places(manifest):
        name, (start, size) = grid.file(chunk, view), _span(grid, view, chunk)
        content = check_file(root, name, grid, manifest.files[name])
        if encode(_rows(content[:size], grid), grid) != content:
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


# Reading.


def _inspect(file: Path) -> _Content:
    """What a file holds, its values not looked at; errors as for `verify_hdf5`, DamageError without a manifest."""
    _refuse_foreign(file)
    with _named(file, "its structure"), _opened(file) as group, file.open("rb") as handle:
        _check_format(file, group)
        size = file.stat().st_size
        texts = {}
        for name in (MANIFEST, PROVENANCE):
            with _named(file, f"/{name}"):
                texts[name] = _text(handle, group, name, size)
        with _named(file, f"/{MANIFEST}"):
            manifest = _manifest(file, texts[MANIFEST])
            arrays = _arrays(manifest, texts)
            _check_sizes(arrays, size)
        with _named(file, f"/{PROVENANCE}"):
            _check_lines(texts[PROVENANCE])
        offsets, problems = _places_in(file, group, arrays, size)
        return _Content(file, manifest, texts[PROVENANCE], offsets, problems)


def _refuse_foreign(file: Path) -> None:
    begins = b""
    try:
        if stat.S_ISREG(file.stat().st_mode):  # to open a pipe is to wait for somebody who writes into it
            with file.open("rb") as handle:
                begins = handle.read(len(SIGNATURE))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    if begins != SIGNATURE:
        raise UsageError(f"{file} is no HDF5 file; name one that `kdtool cache export` wrote")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from h5py import h5f, h5g, h5p

    access = h5p.create(h5p.FILE_ACCESS)
    access.set_file_locking(False, True)  # some file systems have no locks, and a file that is read needs none
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    with contextlib.closing(h5f.open(os.fsencode(file), h5f.ACC_RDONLY, access)) as opened:
        yield h5g.open(opened, b"/")


def _check_format(file: Path, group: Any) -> None:
    from h5py import h5a, h5t

    if not h5a.exists(group, journal.ATTRIBUTE.encode()):
        raise UsageError(
            f"{file} is no cache (it has no {journal.ATTRIBUTE}); name one that `kdtool cache export` wrote"
        )
    attribute = h5a.open(group, journal.ATTRIBUTE.encode())
    if not attribute.get_type().equal(h5t.STD_I64LE) or attribute.shape != ():
        raise ValueError(f"{journal.ATTRIBUTE} is no number")
    value = np.zeros((), "<i8")
    attribute.read(value)
    _refuse_format(file, value.item())


def _refuse_format(file: Path, found: object) -> None:
    if found != FORMAT:
        raise IdentityError(
            f"{file} is a cache of format {found!r}; this kdtool reads format {FORMAT}: use the kdtool that wrote it"
        )


def _text(handle: BinaryIO, group: Any, name: str, size: int) -> bytes:
    """The bytes of a text; none where a file has no provenance."""
    if name == PROVENANCE and not group.links.exists(name.encode()):
        return b""
    length = math.prod(_dataset(group, name).shape)
    if not 0 < length <= TEXT_BYTES:
        raise ValueError(f"has {length:,} bytes, expected at most {TEXT_BYTES:,}")
    offset = _offset(group, Grid(name, "uint8", (length,), length), size)
    return _bytes(handle, offset, length)


def _manifest(file: Path, text: bytes) -> Manifest:
    try:
        body = json.loads(text)
        intact = files.checked_json(body) == text
    except FAULTS:
        intact = False
    if not intact:
        raise ValueError("its checksum does not fit its content")
    _refuse_format(file, body["format"])
    try:
        manifest = journal.parse(file, body, [])
    except DamageError as error:
        raise ValueError(f"describes no cache ({error.__cause__})") from error
    if {grid.file(chunk, view) for grid, view, chunk in _places(manifest)} != manifest.files.keys():
        raise ValueError("records chunks of views that are not complete")
    return manifest


def _check_sizes(arrays: Mapping[str, Grid], size: int) -> None:
    """Refuses what would take more room, in memory or in the cache, than a file of this size can need."""
    claimed = sum(map(_stored_bytes, arrays.values()))
    if claimed > size:
        raise ValueError(f"speaks of {claimed:,} bytes, the file has {size:,}")
    for grid in arrays.values():
        if grid.body_bytes > _limit(grid):
            raise ValueError(f"{grid.path} has chunks of {grid.body_bytes:,} bytes, more than {_limit(grid):,}")


def _check_lines(text: bytes) -> None:
    for line in text.splitlines(keepends=True):
        record = json.loads(line)
        if f"{seal({key: record[key] for key in record if key != 'checksum'})}\n".encode() != line:
            raise ValueError("a line is damaged (its checksum does not fit its content)")


def _places_in(file: Path, group: Any, arrays: Mapping[str, Grid], size: int) -> tuple[dict[str, int], list[Problem]]:
    """Path -> first byte of every dataset that is as it should be, and what is wrong with groups and datasets."""
    offsets, problems, known = {}, [], {*_groups(arrays), *arrays}
    for path in ("", *sorted(known)):
        try:
            with _named(file, f"/{path}"):
                if path in arrays:
                    offsets[path] = _offset(group, arrays[path], size)
                else:
                    _check_group(_member(group, path), path, known)
        except DamageError as error:
            problems.append(Problem(f"/{path}", str(error)))
    return offsets, problems


def _member(group: Any, path: str) -> Any:
    """The group or dataset at a path, reached through no link that could lead out of the file or into a circle."""
    from h5py import h5g, h5l, h5o

    found = group
    for name in Path(path).parts:
        if not isinstance(found, h5g.GroupID):
            raise ValueError("lies in something that is no group")
        if not found.links.exists(name.encode()):
            raise ValueError("is missing")
        if found.links.get_info(name.encode()).type != h5l.TYPE_HARD:
            raise ValueError("is a link, or lies behind one: a cache holds none")
        found = h5o.open(found, name.encode())
    return found


def _check_group(group: Any, path: str, known: set[str]) -> None:
    from h5py import h5a, h5g

    if not isinstance(group, h5g.GroupID):
        raise ValueError("is no group")
    if h5a.get_num_attrs(group) != (0 if path else 1):
        raise ValueError("has attributes that do not belong to a cache")
    for name in group:
        if (Path(path) / name.decode(errors="replace")).as_posix() not in known:
            raise ValueError(f"holds {ascii(name)[1:]}, which does not belong to a cache")


def _dataset(group: Any, path: str) -> Any:
    """A dataset that lies in this file as it is; to ask others for their shape can be to open other files."""
    from h5py import h5d

    dataset = _member(group, path)
    if not isinstance(dataset, h5d.DatasetID):
        raise ValueError("is no dataset")
    stored = dataset.get_create_plist()
    if stored.get_layout() != h5d.CONTIGUOUS or stored.get_nfilters() or stored.get_external_count():
        raise ValueError("is not stored in one piece, in this file and without filters")
    return dataset


def _offset(group: Any, grid: Grid, size: int) -> int:
    """First byte of a dataset in the file; ValueError where it is not the array that belongs there."""
    from h5py import h5a, h5s

    dataset = _dataset(group, grid.path)
    if not dataset.get_type().equal(_type(grid)) or h5a.get_num_attrs(dataset):
        raise ValueError(f"is not {grid.dtype} without attributes")
    space, shape = dataset.get_space(), _shape(grid)
    kind = h5s.SIMPLE if shape else h5s.SCALAR
    if space.get_simple_extent_type() != kind or space.get_simple_extent_dims() != shape:
        raise ValueError(f"is not of shape {shape}")
    offset = dataset.get_offset()
    if offset is None or not 0 < offset <= size - _stored_bytes(grid):
        raise ValueError("lies outside of the file")
    return int(offset)


def _bytes(handle: BinaryIO, offset: int, size: int) -> bytes:
    handle.seek(offset)
    return handle.read(size)


def _chunk(handle: BinaryIO, content: _Content, grid: Grid, view: int, chunk: int) -> bytes:
    """The content of a chunk's file; DamageError where it is not what was recorded."""
    name, (start, size) = grid.file(chunk, view), _span(grid, view, chunk)
    with _named(content.file, f"/{grid.path}"):
        rebuilt = encode(_rows(_bytes(handle, content.offsets[grid.path] + start, size), grid), grid)
        if record_of(rebuilt) != content.manifest.files[name]:
            raise ValueError(f"the values of chunk {name} are not those that were recorded")
    return rebuilt


def _chunk_files(content: _Content, progress: Progress) -> Iterator[tuple[str, bytes]]:
    with content.file.open("rb") as handle:
        for grid, view, chunk in _places(content.manifest):
            yield grid.file(chunk, view), _chunk(handle, content, grid, view, chunk)
            progress(_span(grid, view, chunk)[1])


def _chunk_problems(content: _Content, progress: Progress) -> Iterator[Problem]:
    with content.file.open("rb") as handle:
        for grid, view, chunk in _places(content.manifest):
            if grid.path in content.offsets:
                try:
                    _chunk(handle, content, grid, view, chunk)
                except DamageError as error:
                    yield Problem(f"/{grid.path}", str(error))
            progress(_span(grid, view, chunk)[1])


@contextlib.contextmanager
def _named(file: Path, place: str) -> Iterator[None]:
    """Turns what goes wrong while a place in a file is read into a DamageError that names both."""
    try:
        yield
    except FAULTS as error:
        what = error.args[0] if isinstance(error, KeyError) else error
        raise DamageError(
            f"{file} is damaged: {place}: {what}; copy it again, or write it again with `kdtool cache export`"
        ) from error


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
