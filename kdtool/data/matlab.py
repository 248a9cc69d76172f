"""Reads variables of MATLAB's files, version 5 to 7: numbers, texts, cells and structs, all as flat lists.

The format is that of MathWorks' "MAT-File Format"; a file is a claim, so sizes are compared with what is there, and
what is compressed may not grow without bounds. Read here because a damaged byte can end scipy, and Python with it.
Left out: version 4, version 7.3 (HDF5), objects, functions, sparse and complex arrays, and the shapes of arrays.
"""

import math
import struct
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

HEADER = 128  # bytes
MOST_BYTES = 2**26  # of a variable; those of data sets have some megabytes
MATRIX, COMPRESSED, NAMES, SIZES, FLAGS = 14, 15, 1, 5, 6
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
LETTERS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
CELL, STRUCT, TEXT, NUMERIC = 1, 2, 4, range(6, 16)
COMPLEX = 0x800


def variables(content: bytes, names: Collection[str]) -> dict[str, Any]:
    """Those of the variables `names` that a file has.

    An array of numbers is an array of one dimension, column after column; a text is a str; cells are a list; an array
    of structs is a dictionary of lists, field by field. ValueError, or another error of Python, for a damaged file.
    """
    order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(content[HEADER - 4 : HEADER])
    if not order:
        raise ValueError("it is no file of MATLAB 5 to 7")
    found: dict[str, Any] = {}
    data = memoryview(content)[HEADER:]
    while data:
        kind, body, data = _element(data, order)
        if kind == COMPRESSED:
            kind, body, _ = _element(memoryview(_inflated(body)), order)
        if kind != MATRIX:
            raise ValueError("it holds something that is no variable")
        name, value = _variable(body, order, names)
        found[name] = value
    return found


def _inflated(packed: memoryview) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(packed, MOST_BYTES)
    if not stream.eof:
        raise ValueError(f"a variable is torn, or has more than {MOST_BYTES:,} bytes")
    return content


def _element(data: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Kind and content of the element that `data` begins with, and what follows it."""
    kind, size = struct.unpack(f"{order}II", data[:8])
    start, stop = 8, 8 + size
    if kind >> 16:  # at most 4 bytes, which have the place of the size
        kind, size = kind & 0xFFFF, kind >> 16
        start, stop = 4, 4 + size
    if stop > len(data) or (start == 4 and size > 4):
        raise ValueError("an element is larger than what is there")
    return kind, data[start:stop], data[stop if kind == COMPRESSED else -(-stop // 8) * 8 :]


def _variable(body: memoryview, order: str, names: Collection[str] | None = None) -> tuple[str, Any]:
    """Name and value of a variable; None for one that is not among `names`. Fields and cells have no name."""
    if not body:
        return "", np.empty(0)
    flags, rest = _numbers(body, order, FLAGS)
    sizes, rest = _numbers(rest, order, SIZES)
    letters, rest = _numbers(rest, order, NAMES)
    name, count = letters.tobytes().decode("latin-1"), math.prod(sizes.tolist())
    if names is not None and name not in names:
        return name, None
    if len(flags) != 2 or min(sizes, default=-1) < 0 or count > MOST_BYTES:
        raise ValueError(f"{name!r} has no possible size")
    return name, _value(int(flags[0]), count, int(sizes[0]), rest, order)


def _numbers(data: memoryview, order: str, kind: int | None = None) -> tuple["np.ndarray[Any, Any]", memoryview]:
    """The array in an element, which has to be of a kind."""
    there, content, rest = _element(data, order)
    if kind not in (None, there):
        raise ValueError(f"an element is of the kind {there}, and {kind} is expected")
    return np.frombuffer(content, dtype=f"{order}{NUMBERS[there]}"), rest


def _value(flags: int, count: int, rows: int, rest: memoryview, order: str) -> Any:
    shape = flags & 0xFF
    if shape in NUMERIC and not flags & COMPLEX:
        numbers, _ = _numbers(rest, order)
        if len(numbers) != count:
            raise ValueError(f"an array has {len(numbers):,} numbers, and {count:,} are expected")
        return numbers
    if shape == TEXT and rows <= 1:
        kind, letters, _ = _element(rest, order)
        wide = LETTERS[kind] in ("utf-16", "utf-32")
        return letters.tobytes().decode(f"{LETTERS[kind]}-{'le' if order == '<' else 'be'}" if wide else LETTERS[kind])
    if shape == CELL:
        return _list(count, rest, order)
    if shape == STRUCT:
        widths, rest = _numbers(rest, order, SIZES)
        names, rest = _numbers(rest, order, NAMES)
        text, width = names.tobytes().decode("latin-1"), int(widths[0])
        fields = [text[place : place + width].split("\0")[0] for place in range(0, len(text), width)]
        values = _list(count * len(fields), rest, order)
        return {field: values[place :: len(fields)] for place, field in enumerate(fields)}
    raise ValueError(f"a variable is of the kind {shape}, which no data set needs")


def _list(count: int, rest: memoryview, order: str) -> list[Any]:
    """So many variables without names."""
    found = []
    for _ in range(count):
        kind, body, rest = _element(rest, order)
        if kind != MATRIX:
            raise ValueError("a cell or field is no variable")
        found.append(_variable(body, order)[1])
    return found
