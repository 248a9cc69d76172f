"""The unpickler gives back plain values and number arrays, and executes nothing."""

import contextlib
import os
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtool.data import unpickle
from kdtool.errors import DamageError

ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
    np.array([1.5, -2.0], dtype=">f4"),
    np.array([], dtype=np.float64),
    np.array(7, dtype="<u2"),
    np.array([True, False]),
]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays_come_back_from_the_protocols_with_byte_strings(
    tmp_path: Path, protocol: int, array: np.ndarray[Any, Any]
) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({b"data": array, "text": b"bytes"}, protocol=protocol))
    found = unpickle.load(tmp_path / "file")
    assert found["text"] == b"bytes"
    assert found["data"].dtype == array.dtype
    assert np.array_equal(found["data"], array)


def test_plain_values_and_empty_bytes_come_back(tmp_path: Path) -> None:
    value = {"labels": [0, 1, 2**40], "batch_label": b"", "num_vis": 3072, "none": None, "nested": ({"a": 1.5},)}
    (tmp_path / "file").write_bytes(pickle.dumps(value, protocol=2))
    assert unpickle.load(tmp_path / "file") == value


class Reduced:
    """Pickles as the call of any function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, subprocess.getoutput, eval, exec])
def test_a_hostile_pickle_executes_nothing(tmp_path: Path, protocol: int, function: Any) -> None:
    mark = tmp_path / "executed"
    command = f"touch {mark}" if function in (os.system, subprocess.getoutput) else f"open({str(mark)!r}, 'w').close()"
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Reduced(function, (command,))}, protocol=protocol))
    with pytest.raises(DamageError, match=f"{re.escape(str(path))}.*nothing in it was executed"):
        unpickle.load(path)
    assert not mark.exists()


def test_the_error_says_what_a_hostile_pickle_names(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({"data": Reduced(os.getcwd, ())}, protocol=2))
    with pytest.raises(DamageError, match=r"it names posix\.getcwd"):
        unpickle.load(tmp_path / "file")


ARRAY = pickle.dumps(np.zeros(3, dtype=np.uint8), protocol=2)[2:-1]  # without PROTO and STOP


@pytest.mark.parametrize(
    "code",
    [
        b"cnumpy\nload\nU\x01x\x85R",  # another function of numpy
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n",  # an attribute of an admitted one
        b"X\x05\0\0\0numpyX\x10\0\0\0ndarray.__init__\x93",
        b"cnumpy\nndarray\n}U\x05buildK\x01sb",  # changes an admitted one
        b"c_codecs\nencode\nN}U\x0c__defaults__Nsb",
        ARRAY + b"N}U\x05valueK\x01s\x86b",
        b"c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R",  # two gigabytes
        b"c_codecs\nencode\nX\x01\0\0\0xX\x06\0\0\0utf-16\x86R",
        b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R",  # objects
        b"cnumpy\ndtype\nU\x02V8K\x00K\x01\x87R",
        b"cnumpy\nndarray\n)\x81",  # NEWOBJ
        b"(cnumpy\nndarray\no",  # OBJ
        b"(inumpy\nndarray\n",  # INST
        b"Pname\n",  # a persistent identifier
        b"\x82\x01",  # an extension code
        b"\x96\xff\xff\xff\xff\x0f\0\0\0",  # BYTEARRAY8 of 64 gigabytes
        b"]r\xff\xff\xff\xff\xc4",  # an instruction that does not exist, behind a large number in the memo
    ],
)
def test_what_is_not_admitted_is_refused(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "file").write_bytes(b"\x80\x02}U\x04data" + code + b"s.")
    with pytest.raises(DamageError):
        unpickle.load(tmp_path / "file")


def test_the_frame_of_the_refusals_is_sound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\x80\x02}U\x04data" + ARRAY + b"s.")
    assert unpickle.load(tmp_path / "file")["data"].tolist() == [0, 0, 0]


def test_object_arrays_and_wrong_sizes_are_refused(tmp_path: Path) -> None:
    for array in (np.array([{}, 1], dtype=object), np.array(["text"]), np.array([(1, 2.0)], dtype="i4,f8")):
        (tmp_path / "file").write_bytes(pickle.dumps({"data": array}, protocol=4))
        with pytest.raises(DamageError):
            unpickle.load(tmp_path / "file")
    short = pickle.dumps({"data": np.zeros(9, dtype=np.uint8)}, protocol=4).replace(b"K\x09\x85", b"K\x0a\x85")
    (tmp_path / "file").write_bytes(short)
    with pytest.raises(DamageError, match="reshape"):
        unpickle.load(tmp_path / "file")


@pytest.mark.parametrize("value", [3, [1], None, b"text", {1: 2}])
def test_what_is_no_dictionary_with_text_keys_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(DamageError):
        unpickle.load(tmp_path / "file")


def test_torn_files_are_refused_at_every_length(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": np.arange(20), "labels": [1, 2, 300]}, protocol=2)
    for length in range(len(whole)):
        (tmp_path / "file").write_bytes(whole[:length])
        with pytest.raises(DamageError):
            unpickle.load(tmp_path / "file")


def test_flipped_bits_give_a_value_or_a_damage_error_and_nothing_else(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": np.arange(20, dtype=np.uint8), "labels": [1, 2, 300]}, protocol=2)
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "file").write_bytes(damaged)
        with contextlib.suppress(DamageError):
            assert isinstance(unpickle.load(tmp_path / "file"), dict)
