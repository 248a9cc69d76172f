"""Reading an HDF5 file that may be damaged or hostile: its structure is compared with what its manifest implies.

HDF5 parses the structure; values are read at the places that it tells, once these are known to lie in the file and not
in one another. Left out: what is done with them (kdtool.cache.convert).
"""

import contextlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kdtool import files
from kdtool.cache import journal
from kdtool.cache.arrays import Grid
from kdtool.cache.chunks import encode, record_of
from kdtool.cache.hdf5 import (
    MANIFEST,
    PROVENANCE,
    TEXT_BYTES,
    arrays_of,
    bytes_at,
    groups_of,
    limit_of,
    places,
    rows_of,
    shape_of,
    span_of,
    stored_bytes,
    type_of,
)
from kdtool.cache.identity import FORMAT
from kdtool.cache.lines import seal
from kdtool.cache.manifest import Manifest
from kdtool.cache.verify import Problem
from kdtool.errors import DamageError, IdentityError, UsageError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# What h5py raises for damaged files. Our own checks of them raise ValueError.
FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Content:
    """What a file holds: its texts, and where in it each dataset begins that is as it should be."""

    file: Path
    manifest: Manifest
    provenance: bytes
    offsets: Mapping[str, int]
    problems: list[Problem]


def inspect(file: Path) -> Content:
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
            arrays = arrays_of(manifest, texts)
            _check_sizes(arrays, size)
        with _named(file, f"/{PROVENANCE}"):
            _check_lines(texts[PROVENANCE])
        offsets, problems = _places_in(file, group, arrays, size)
        return Content(file, manifest, texts[PROVENANCE], offsets, problems)


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
    return bytes_at(handle, offset, length)


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
    if {grid.file(chunk, view) for grid, view, chunk in places(manifest)} != manifest.files.keys():
        raise ValueError("records chunks of views that are not complete")
    return manifest


def _check_sizes(arrays: Mapping[str, Grid], size: int) -> None:
    """Refuses what would take more room, in memory or in the cache, than a file of this size can need."""
    claimed = sum(map(stored_bytes, arrays.values()))
    if claimed > size:
        raise ValueError(f"speaks of {claimed:,} bytes, the file has {size:,}")
    for grid in arrays.values():
        if grid.body_bytes > limit_of(grid):
            raise ValueError(f"{grid.path} has chunks of {grid.body_bytes:,} bytes, more than {limit_of(grid):,}")


def _check_lines(text: bytes) -> None:
    for line in text.splitlines(keepends=True):
        record = json.loads(line)
        if f"{seal({key: record[key] for key in record if key != 'checksum'})}\n".encode() != line:
            raise ValueError("a line is damaged (its checksum does not fit its content)")


def _places_in(file: Path, group: Any, arrays: Mapping[str, Grid], size: int) -> tuple[dict[str, int], list[Problem]]:
    """Path -> first byte of every dataset that is as it should be, and what is wrong with groups and datasets."""
    offsets, problems, known = {}, [], {*groups_of(arrays), *arrays}
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
    if not dataset.get_type().equal(type_of(grid)) or h5a.get_num_attrs(dataset):
        raise ValueError(f"is not {grid.dtype} without attributes")
    space, shape = dataset.get_space(), shape_of(grid)
    kind = h5s.SIMPLE if shape else h5s.SCALAR
    if space.get_simple_extent_type() != kind or space.get_simple_extent_dims() != shape:
        raise ValueError(f"is not of shape {shape}")
    offset = dataset.get_offset()
    if offset is None or not 0 < offset <= size - stored_bytes(grid):
        raise ValueError("lies outside of the file")
    return int(offset)


def _chunk(handle: BinaryIO, content: Content, grid: Grid, view: int, chunk: int) -> bytes:
    """The content of a chunk's file; DamageError where it is not what was recorded."""
    name, (start, size) = grid.file(chunk, view), span_of(grid, view, chunk)
    with _named(content.file, f"/{grid.path}"):
        rebuilt = encode(rows_of(bytes_at(handle, content.offsets[grid.path] + start, size), grid), grid)
        if record_of(rebuilt) != content.manifest.files[name]:
            raise ValueError(f"the values of chunk {name} are not those that were recorded")
    return rebuilt


def chunk_files(content: Content, progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Path and content of every chunk file that the cache has; the first that is damaged is a DamageError."""
    with content.file.open("rb") as handle:
        for grid, view, chunk in places(content.manifest):
            yield grid.file(chunk, view), _chunk(handle, content, grid, view, chunk)
            progress(span_of(grid, view, chunk)[1])


def chunk_problems(content: Content, progress: Progress) -> Iterator[Problem]:
    """Every chunk whose values are not those that are recorded."""
    with content.file.open("rb") as handle:
        for grid, view, chunk in places(content.manifest):
            if grid.path in content.offsets:
                try:
                    _chunk(handle, content, grid, view, chunk)
                except DamageError as error:
                    yield Problem(f"/{grid.path}", str(error))
            progress(span_of(grid, view, chunk)[1])


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
