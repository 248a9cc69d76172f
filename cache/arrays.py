"""Arrays of a cache: what one holds, how it is cut into chunks, where each chunk lies, and its zarr metadata.

Every array is zarr v3, unsharded and uncompressed, so that a chunk file is the chunk's bytes in C order and little
endian, followed by four bytes of CRC-32C. Left out: reading and writing files (kdtool.cache.chunks), and which chunks
exist (kdtool.cache.manifest).
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtool import files

DTYPES = ("float16", "float32", "float64", "int64", "int32", "uint8", "uint16", "bool")
CHUNK_BYTES = 16 * 2**20  # a chunk is the largest that is not larger than this
CRC_BYTES = 4
ROW_BYTES_LIMIT = 2**31  # a sample larger than this is not a sample, so a hostile size is refused before it is used

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
RESERVED = ("index", "labels", "zarr.json")  # names that a folder of keys holds already


@dataclass(frozen=True)
class ArraySpec:
    """What one array holds: its dtype, and the shape of one sample (of the whole array for a fit's result)."""

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} cannot be cached; known: {', '.join(DTYPES)}")
        if not all(whole(size, 1) for size in self.shape) or len(self.shape) > 16:
            raise ValueError(f"shape {self.shape} is not up to 16 sizes of at least 1")
        if self.row_bytes > ROW_BYTES_LIMIT:
            raise ValueError(f"{self.dtype} of shape {self.shape} has {self.row_bytes:,} bytes, more than 2^31")

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Any) -> "ArraySpec":
        """From plain values; ValueError, TypeError or KeyError where they are none of ours."""
        return cls(str(value["dtype"]), tuple(value["shape"]))


@dataclass(frozen=True)
class Grid:
    """Where an array's chunks lie.

    path: below the cache's folder. shape: without the axis of views. rows: of a chunk, along the first axis of
    `shape`. views: length of the axis of views in front, None for an array without it (labels, index, fits).
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    rows: int
    views: int | None = None

    @property
    def storage(self) -> np.dtype[Any]:
        """The dtype as stored: little endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a chunk, without the axis of views."""
        return (self.rows, *self.shape[1:]) if self.shape else ()

    @property
    def body_bytes(self) -> int:
        """Bytes of a chunk without its CRC."""
        return math.prod(self.chunk_shape) * self.storage.itemsize

    @property
    def file_bytes(self) -> int:
        """Bytes of a chunk's file."""
        return self.body_bytes + CRC_BYTES

    @property
    def chunks(self) -> int:
        """Number of chunks (of one view)."""
        return -(-self.shape[0] // self.rows) if self.shape else 1

    def file(self, chunk: int, view: int = 0) -> str:
        """Path of a chunk's file below the cache's folder."""
        views = [] if self.views is None else [view]
        index = [*views, chunk, *[0] * (len(self.shape) - 1)] if self.shape else views
        return "/".join([self.path, "c", *map(str, index)])

    def locate(self, file: str) -> tuple[int, int]:
        """(view, chunk) of a chunk's file; ValueError where it is none of this array's."""
        index = [part for part in file[len(self.path) + 3 :].split("/") if part]
        if not all(re.fullmatch("[0-9]{1,9}", part) for part in index):
            raise ValueError(f"{file} is not the name of a chunk")
        view = int(index.pop(0)) if index and self.views is not None else 0
        chunk = int(index[0]) if index else 0
        if self.file(chunk, view) != file or chunk >= self.chunks:
            raise ValueError(f"{file} is not a chunk of this array")
        return view, chunk

    def metadata(self) -> bytes:
        """The bytes of the array's zarr.json: canonical JSON, so equal arrays have equal files."""
        views = [] if self.views is None else [self.views]
        chunk = [*[1] * len(views), *self.chunk_shape]
        record = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [*views, *self.shape],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": np.zeros((), self.dtype).item(),
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "attributes": {},
        }
        return files.canonical(record).encode()


def whole_grid(path: str, spec: ArraySpec) -> Grid:
    """The grid of an array without views: cut along its first axis into chunks of at most 16 MiB."""
    if not spec.shape:
        return Grid(path, spec.dtype, (), 1)
    row_bytes = spec.row_bytes // spec.shape[0]
    return Grid(path, spec.dtype, spec.shape, min(spec.shape[0], max(1, CHUNK_BYTES // row_bytes)))


def chunk_rows(block: int, row_bytes: int) -> int:
    """Rows of a chunk: `block` / 2^j, the largest of at most 16 MiB; an odd number is not halved further."""
    rows = block
    while rows * row_bytes > CHUNK_BYTES and rows % 2 == 0:
        rows //= 2
    return rows


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """The bytes of a group's zarr.json."""
    return files.canonical({"zarr_format": 3, "node_type": "group", "attributes": attributes}).encode()


def check_name(kind: str, name: str) -> None:
    """Refuses a name that is not one safe path segment: ValueError."""
    if not NAME.fullmatch(name) or name in RESERVED or name.endswith(files.PARTIAL):
        raise ValueError(f"{name!r} is no name for a {kind}: small letters, digits and _ . - only, no reserved name")


def whole(value: object, least: int) -> bool:
    """Whether a plain value is an integer (and no boolean) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
