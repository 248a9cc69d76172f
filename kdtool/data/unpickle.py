"""Reads the pickles in which CIFAR's python version is published, without executing anything.

A pickle is a program that may name any function. Here it can use the instructions that build plain values, and name
numpy's array, dtype and bytes constructors alone; it gets stand-ins for those, so no code of numpy's own un-pickling
sees the file. Left out: protocols 0, 1 and 5, numpy scalars, records and objects, which no published file holds.
"""

import pickle
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kdtool.errors import DamageError


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as text; byte strings stay bytes. Arrays may be read-only.

    Raises DamageError, naming the file, for anything that is not a dictionary of plain values and number arrays.
    """
    with path.open("rb") as file:
        try:
            entries = _Unpickler(file, encoding="bytes").load()
            return {_text(key): value.value if isinstance(value, _Array) else value for key, value in entries.items()}
        except OSError:
            raise
        except Exception as error:  # a hostile or torn pickle can raise whatever it likes
            raise DamageError(
                f"{path} is damaged or is not a file of a data set ({type(error).__name__}: {error}); nothing in it "
                "was executed; unpack the published archive again"
            ) from error


class _Dtype:
    """Stands for a dtype: a boolean, integer or floating type of a fixed size."""

    def __init__(self, code: bytes | str, *_: Any) -> None:
        if not re.fullmatch("b1|[iu][1248]|f[248]", _text(code)):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}")
        self.value = np.dtype(_text(code))

    def build(self, state: tuple[Any, ...]) -> None:
        order: Any = _text(state[1])
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stands for an array until its content has been read."""

    value: np.ndarray[Any, Any]

    def __init__(self, *_: Any) -> None: ...

    def build(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.value = np.frombuffer(content, dtype.value).reshape(shape, order="F" if fortran else "C")


def _from_latin1(text: str, encoding: str) -> bytes:
    """Protocol 2 has no byte strings; Python 3 writes them as text of 256 letters."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """The constructor of bytes without its arguments, one of which would be a size."""
    return b""


_CONSTRUCTORS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _from_latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}

_INSTRUCTIONS = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE"
)


class _Unpickler(pickle._Unpickler):
    """The interpreter that is written in Python: unlike the one in C, it lets its instructions be chosen, and a few
    bytes of a damaged file cannot make it fill gigabytes of memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CONSTRUCTORS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _CONSTRUCTORS[module, name]

    def build(self) -> None:
        """BUILD, for the stand-ins alone: it would set attributes of anything."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise pickle.UnpicklingError("it changes something that is no array")
        self.stack[-1].build(state)

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: instruction
        for code, instruction in pickle._Unpickler.dispatch.items()
        if code in {getattr(pickle, name)[0] for name in _INSTRUCTIONS.split()}
    } | {pickle.BUILD[0]: build}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii")
    if not isinstance(value, str):
        raise pickle.UnpicklingError(f"it has {type(value).__name__} where text belongs")
    return value
