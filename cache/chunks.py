"""Chunk files: their bytes, how they are written durably, and how they are checked when they are read.

A chunk is recorded as one text, "<CRC-32C of its body> <SHA-256 of its file>", both in small hexadecimal digits. What
is recorded decides: a chunk that is missing, short, damaged or in another's place is a DamageError, never zeros.
"""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, cast

import google_crc32c
import numpy as np
import numpy.typing as npt

from kdtool import files
from kdtool.cache.arrays import CRC_BYTES, Grid
from kdtool.errors import DamageError

Array = npt.NDArray[Any]
RECORD = re.compile("[0-9a-f]{8} [0-9a-f]{64}")


def repair(root: Path) -> str:
    """The commands that an error about a damaged cache names."""
    return f"`kdtool cache verify {root}` lists all damage, `kdtool cache repair {root}` mends it"


def crc32c(body: Array | bytes) -> int:
    """CRC-32C (Castagnoli) of the bytes of a contiguous, read-only array."""
    return cast(int, google_crc32c.value(body))


def encode(values: npt.ArrayLike, grid: Grid) -> bytes:
    """The content of a chunk's file: the values, zeros up to the chunk's rows, then the CRC."""
    given = np.asarray(values)
    chunk = given
    if given.shape != grid.chunk_shape:
        chunk = np.zeros(grid.chunk_shape, grid.storage)
        chunk[tuple(slice(size) for size in given.shape)] = given
    body = chunk.astype(grid.storage, copy=False).tobytes()
    return body + crc32c(body).to_bytes(CRC_BYTES, "little")


def record_of(content: bytes) -> str:
    """What is recorded of a chunk's file."""
    return f"{int.from_bytes(content[-CRC_BYTES:], 'little'):08x} {files.sha256(content)}"


def encode_whole(values: Array, grid: Grid) -> dict[str, bytes]:
    """The files of an array without views."""
    if not grid.shape:
        return {grid.file(0): encode(values, grid)}
    rows = grid.rows
    return {grid.file(i): encode(values[i * rows : (i + 1) * rows], grid) for i in range(grid.chunks)}


def write_files(root: Path, contents: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Writes files below `root` durably, each whole or absent; gives path -> what is recorded of it.

    All are written beside their places and synced first, then renamed, then each folder up to `root` is synced once:
    the order of `kdtool.files.write`, with fewer waits for the disk. A folder that was there may be one that a killed
    writer made and did not sync, so none is left out.
    """
    written: dict[str, str] = {}
    folders: set[Path] = set()
    with files.explained(root):
        for name, content in contents:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.update(root / folder for folder in PurePosixPath(name).parents)
            with path.with_name(path.name + files.PARTIAL).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            written[name] = record_of(content)
        for name in written:
            path = root / name
            path.with_name(path.name + files.PARTIAL).replace(path)
        for folder in sorted(folders, reverse=True):
            files.sync_folder(folder)
    return written


def check_place(root: Path, name: str, file_bytes: int) -> Path:
    """The path of a recorded file, once it is known to be a file of the right size and in the cache itself."""
    path = root / name
    if Path(os.path.realpath(path)) != Path(os.path.realpath(root)) / name:
        raise DamageError(f"{path} is a link, or lies behind one: a cache holds none; {repair(root)}")
    try:
        found = path.lstat()
    except OSError as error:
        raise DamageError(f"{path} is missing; {repair(root)}") from error
    if not stat.S_ISREG(found.st_mode) or found.st_size != file_bytes:
        raise DamageError(f"{path} has {found.st_size:,} bytes, expected {file_bytes:,}; {repair(root)}")
    return path


def map_chunk(root: Path, name: str, grid: Grid, recorded: str | None) -> Array:
    """A chunk as a read-only array over its file, of the chunk's shape; compared with `recorded` unless it is None."""
    raw = np.asarray(np.memmap(check_place(root, name, grid.file_bytes), np.uint8, "r"))
    if recorded is not None:
        computed = f"{crc32c(raw[:-CRC_BYTES]):08x}"
        stored = f"{int.from_bytes(raw[-CRC_BYTES:].tobytes(), 'little'):08x}"
        if not computed == stored == recorded[:8]:
            raise DamageError(
                f"{root / name} is damaged or another chunk: its content has CRC-32C {computed} and says {stored}, "
                f"the manifest says {recorded[:8]}; {repair(root)}"
            )
    return raw[:-CRC_BYTES].view(grid.storage).reshape(grid.chunk_shape)


def check_file(root: Path, name: str, grid: Grid, recorded: str) -> bytes:
    """The whole content of a chunk's file, compared with what is recorded, SHA-256 included."""
    path = check_place(root, name, grid.file_bytes)
    try:
        content = path.read_bytes()
    except OSError as error:  # a bad sector is damage, too
        raise DamageError(f"{path} cannot be read ({error.strerror}); {repair(root)}") from error
    if f"{crc32c(content[:-CRC_BYTES]):08x}" != recorded[:8] or record_of(content) != recorded:
        raise DamageError(
            f"{root / name} is damaged or another chunk: its digests are not the manifest's; {repair(root)}"
        )
    return content


def read_whole(root: Path, grid: Grid, recorded: dict[str, str]) -> Array:
    """An array without views, every chunk checked; the caller has made sure that its chunks are recorded."""
    names = [grid.file(chunk) for chunk in range(grid.chunks)]
    bodies = [check_file(root, name, grid, recorded[name])[:-CRC_BYTES] for name in names]
    chunks = [np.frombuffer(body, grid.storage).reshape(grid.chunk_shape) for body in bodies]
    return (np.concatenate(chunks)[: grid.shape[0]] if grid.shape else chunks[0]).astype(grid.dtype)
