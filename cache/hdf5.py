"""The HDF5 form of a cache: which datasets a file has, where their values lie, and the parts of it that are no values.

HDF5 says where in a file every array lies, and no more: values are written and read at those places by ordinary means,
so no conversion, filter or link of HDF5 ever touches them. Left out: reading files that may be hostile
(kdtool.cache.hdf5_reading), and what a file is made of and becomes (kdtool.cache.convert).
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kdtool.cache import journal, tree
from kdtool.cache.arrays import Grid
from kdtool.cache.chunks import Array
from kdtool.cache.identity import FORMAT
from kdtool.cache.manifest import Manifest

MANIFEST, PROVENANCE = "manifest", "provenance"  # datasets of bytes: the texts of the files that have these names
TEXT_BYTES = 2**28  # the longest text; the manifest of two million chunks
CHUNK_LIMIT = 2**30  # bytes of a chunk, which is held in memory; only an odd number of rows makes one above 16 MiB
OBJECT_BYTES = 4096  # more than HDF5 takes for a group or dataset, or a file system for the last part of a file


def finished(manifest: Manifest) -> Manifest:
    """The manifest without the chunks of what is not complete."""
    kept = {grid.file(chunk, view) for grid, view, chunk in places(manifest)}
    return manifest.without(manifest.files.keys() - kept)


def places(manifest: Manifest) -> Iterator[tuple[Grid, int, int]]:
    """(array, view, chunk) of every chunk of complete views and arrays, in the order of their values in the file."""
    for grid in sorted(tree.all_grids(manifest), key=lambda grid: grid.path):
        for view in range(1 if grid.views is None else grid.views):
            yield from ((grid, view, chunk) for chunk in range(grid.chunks))


def arrays_of(manifest: Manifest, texts: Mapping[str, bytes]) -> dict[str, Grid]:
    """Path -> array of every dataset; there is none for an empty text, nor for an array without a complete view."""
    grids = [Grid(name, "uint8", (len(text),), len(text)) for name, text in texts.items() if text]
    grids += [grid for grid in tree.all_grids(manifest) if grid.views != 0]
    return {grid.path: grid for grid in sorted(grids, key=lambda grid: grid.path)}


def groups_of(paths: Iterable[str]) -> list[str]:
    """The groups that hold the datasets of these paths, without the root, outer ones first."""
    return sorted({str(parent) for path in paths for parent in Path(path).parents} - {"."})


def shape_of(grid: Grid) -> tuple[int, ...]:
    """The shape of an array's dataset."""
    return grid.shape if grid.views is None else (grid.views, *grid.shape)


def stored_bytes(grid: Grid) -> int:
    """Bytes of the values in an array's dataset."""
    return math.prod(shape_of(grid)) * grid.storage.itemsize


def limit_of(grid: Grid) -> int:
    """The most bytes that a piece of a dataset may have, which is held in memory."""
    return TEXT_BYTES if grid.path in (MANIFEST, PROVENANCE) else CHUNK_LIMIT


def span_of(grid: Grid, view: int, chunk: int) -> tuple[int, int]:
    """First byte and number of bytes of a chunk's values in its dataset, which has no rows past the last sample."""
    row_bytes, length = grid.body_bytes // grid.rows, grid.shape[0] if grid.shape else 1
    first = chunk * grid.rows
    return (view * length + first) * row_bytes, min(grid.rows, length - first) * row_bytes


def rows_of(values: bytes, grid: Grid) -> Array:
    """The values of a chunk as its rows."""
    return np.frombuffer(values, grid.storage).reshape((-1, *grid.shape[1:]) if grid.shape else ())


def lay_out(arrays: Mapping[str, Grid]) -> tuple[dict[str, int], list[tuple[int, bytes]]]:
    """Path -> first byte of every array in the file, and (first byte, content) of everything that is no array.

    HDF5 writes into a file in memory that has holes for the values: a program in which it meets a full disk crashes.
    """
    with os.fdopen(os.memfd_create("kdtool"), "r+b") as sparse:
        offsets = _create(sparse, arrays)
        ends = [0, *(offset + stored_bytes(arrays[name]) for name, offset in offsets.items())]
        starts = [*offsets.values(), sparse.seek(0, os.SEEK_END)]
        between = zip(sorted(ends), sorted(starts), strict=True)
        return offsets, [(end, bytes_at(sparse, end, start - end)) for end, start in between]


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
        for group in groups_of(arrays):
            h5g.create(file, group.encode(), gcpl=of_group)
        offsets = {}
        for name, grid in arrays.items():
            space = h5s.create_simple(shape_of(grid)) if shape_of(grid) else h5s.create(h5s.SCALAR)
            offsets[name] = h5d.create(file, name.encode(), type_of(grid), space, of_dataset).get_offset()
        return offsets


def type_of(grid: Grid) -> Any:
    """The type of a dataset: little endian; a boolean is the enumeration that h5py reads as one."""
    from h5py import h5t

    return h5t.py_create(grid.storage, logical=True)


def bytes_at(handle: BinaryIO, offset: int, size: int) -> bytes:
    """So many bytes at a place of a file."""
    handle.seek(offset)
    return handle.read(size)
