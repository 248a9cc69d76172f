"""Files of MATLAB, written and read by scipy too."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kdtool.data.matlab import variables

matlab = pytest.importorskip("scipy.io", reason="scipy is not installed: it writes the files of MATLAB")

KINDS = st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
NUMBERS = KINDS.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(max_dims=3, max_side=4)))
TEXTS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=9)
CELLS = st.lists(NUMBERS | TEXTS, min_size=1, max_size=4)
STRUCTS = st.dictionaries(st.sampled_from(["fname", "class", "a_long_name_of_a_field"]), NUMBERS | TEXTS, min_size=1)


def cells(values: list[Any]) -> Any:
    found = np.empty((1, len(values)), dtype=object)
    for place, value in enumerate(values):
        found[0, place] = value
    return found


def written(compressed: bool, **held: Any) -> bytes:
    file = io.BytesIO()
    matlab.savemat(file, held, do_compression=compressed)
    return file.getvalue()


def same(mine: Any, theirs: Any) -> bool:
    """Compares with what scipy reads, which keeps the shapes."""
    if isinstance(mine, str):
        return mine == (str(theirs[0]) if theirs.size else "")
    if isinstance(mine, list):
        return all(same(one, other) for one, other in zip(mine, theirs.ravel("F"), strict=True))
    if isinstance(mine, dict):
        return all(same(mine[name], theirs[name]) for name in theirs.dtype.names)
    return np.array_equal(mine, theirs.ravel("F"), equal_nan=mine.dtype.kind == "f") and bool(
        mine.dtype == theirs.dtype
    )


@given(NUMBERS, TEXTS, CELLS, STRUCTS, st.booleans())
def test_variables_are_what_scipy_reads(number: Any, text: str, many: Any, fields: Any, compressed: bool) -> None:
    content = written(compressed, number=number, text=text, many=cells(many), fields=fields, rows=[[1, 2], [3, 4]])
    names = ("number", "text", "many", "fields", "rows")
    found, theirs = variables(content, names), matlab.loadmat(io.BytesIO(content))
    for name in names:
        assert same(found[name], theirs[name])
    assert found["rows"].tolist() == [1, 3, 2, 4]


def test_variables_that_nobody_asked_for_are_passed_over() -> None:
    content = written(True, z=np.array([1j]), wanted="here", sparse=np.eye(2) > 0)
    assert variables(content, ["wanted"]) == {"z": None, "wanted": "here", "sparse": None}
    with pytest.raises(ValueError, match="kind"):
        variables(content, ["z"])


def element(kind: int, content: bytes, order: str) -> bytes:
    return struct.pack(f"{order}II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_orders_of_bytes_are_read(order: str) -> None:
    flags = element(6, struct.pack(f"{order}II", 6, 0), order)
    sizes = element(5, struct.pack(f"{order}ii", 1, 2), order)
    name = struct.pack(f"{order}I", 1 << 16 | 1) + b"x\0\0\0" if order == "<" else struct.pack(">HH", 1, 1) + b"x\0\0\0"
    values = element(4, struct.pack(f"{order}HH", 1, 515), order)
    letters = element(17, "né".encode(f"utf-16-{'le' if order == '<' else 'be'}"), order)
    text = element(6, struct.pack(f"{order}II", 4, 0), order) + sizes + element(1, b"text", order) + letters
    mark = b"\0\1IM" if order == "<" else b"\1\0MI"
    content = b"".ljust(124) + mark + element(14, flags + sizes + name + values, order) + element(14, text, order)
    found = variables(content, ("x", "text"))
    assert found["x"].tolist() == [1, 515]
    assert found["text"] == "né"
    assert matlab.loadmat(io.BytesIO(content))["x"].tolist() == [[1, 515]]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_byte_is_an_error_or_harmless(compressed: bool) -> None:
    content = written(compressed, a=np.arange(3), b=cells(["x", 1.5]), c={"d": 1, "e": "text"})
    for place in range(len(content)):
        for flip in (1, 0x80, 0xFF):
            try:
                variables(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :], "abc")
            except (ValueError, KeyError, IndexError, struct.error, zlib.error):
                continue
    whole = variables(content, "abc")
    counts = set()
    for cut in range(128, len(content)):
        try:
            found = variables(content[:cut], "abc")
        except (ValueError, struct.error):
            continue
        assert str(found) == str({name: whole[name] for name in found})  # it ends behind a variable
        counts.add(len(found))
    assert counts == {0, 1, 2}


def test_what_is_compressed_may_not_grow_without_bounds() -> None:
    packed = zlib.compress(bytes(2**27))
    content = b"".ljust(124) + b"\0\1IM" + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(ValueError, match="more than 67,108,864 bytes"):
        variables(content, "a")


def test_claims_of_size_cost_nothing() -> None:
    head = element(6, struct.pack("<II", 2, 0), "<") + element(5, struct.pack("<ii", 2**13, 2**13), "<")
    none = element(5, struct.pack("<i", 8), "<") + element(1, b"", "<")
    one = element(5, struct.pack("<i", 8), "<") + element(1, b"field\0\0\0", "<")
    for fields, result in ((none, {}), (one, None)):
        content = b"".ljust(124) + b"\0\1IM" + element(14, head + element(1, b"s", "<") + fields, "<")
        if result is None:
            with pytest.raises((ValueError, struct.error)):
                variables(content, "s")
        else:
            assert variables(content, "s") == {"s": result}
