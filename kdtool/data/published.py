"""What readers of published data sets share: where the files are, and lists in text files and in files of MATLAB.

A list is a claim: paths have to lead to a file below the folder, numbers have to lie within their bounds. Left out:
what the lists of one data set mean, which its own module says.
"""

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdtool.data.dataset import Rows
from kdtool.data.matlab import variables
from kdtool.data.sources import SMALL, SOURCES
from kdtool.errors import DamageError, UsageError

Needed = Sequence[str]  # files, and folders with "/" at their end, below the data set's own folder
CUT = 200  # characters of a hostile text in a message


def find(folder: Path, own: Sequence[str], needed: Needed) -> Path | None:
    """The data set's own folder, which is `folder` or one of the names `own` in it, where all that is needed is there.

    Which of several is taken does not depend on what else is there.
    """
    places = (*(folder / name for name in own), folder)
    return next((place for place in places if all(_is_there(place, name) for name in needed)), None)


def _is_there(place: Path, name: str) -> bool:
    return (place / name).is_dir() if name.endswith("/") else (place / name).is_file()


def lacking(name: str, folder: Path, own: str, *forms: Needed, source: str = "") -> UsageError:
    """The error for a data set that is not whole in any of its forms; source: the name of its archives, if another."""
    place = folder / own if (folder / own).is_dir() else folder
    there = [one for form in forms for one in form if _is_there(place, one)]
    found = "" if folder.is_dir() else " (there is no such folder)"
    if there:
        absent = " or ".join(", ".join(one for one in form if one not in there) for form in forms)
        found = f" (not there: {absent})"
    expected = " or ".join(f"{own}/ with {', '.join(form)}" for form in forms)
    repair = _repair(source or name, folder.parent if folder.name == own else folder, place if there else None)
    return UsageError(f"no complete {name} in {folder.absolute()}{found}; expected there: {expected}; {repair}")


def _repair(name: str, into: Path, incomplete: Path | None) -> str:
    """The command that brings the files, and what has to be removed for it."""
    source = SOURCES[name]
    command = shlex.join(["kdtool", "data", "fetch", name, "--into", str(into)])
    archives = [file.name for form in source.forms for file in form if not file.plain]
    lying = [one for one in archives if any((into / below / one).is_file() for below in ("", source.folder))]
    first = f"remove the incomplete {incomplete}, then " if incomplete and not source.folder else ""
    if lying:
        return f"{first}unpack the published archive {lying[0]} that lies there with `{command}`"
    return f"{first}get it with `{command}`, which says what to do where it cannot, or name the folder that holds it"


def damaged(path: Path, finding: str) -> DamageError:
    """The error for a file whose content does not fit its form."""
    return DamageError(f"{path} is damaged: {finding}; unpack the published archive again")


def content_of(path: Path) -> bytes:
    """A list of labels or names, which is never large."""
    if path.stat().st_size > SMALL:
        raise damaged(path, f"it has more than {SMALL:,} bytes")
    return path.read_bytes()


def lines(path: Path, errors: str = "replace") -> list[str]:
    """The lines of a text in UTF-8 that are not blank; errors: "surrogateescape" for names of files in any encoding."""
    text = content_of(path).decode("utf-8-sig", errors)
    return [line.strip() for line in text.split("\n") if line.strip()]


def below(root: Path, names: Iterable[str], source: Path) -> list[str]:
    """Paths that a list names, each of which has to be a file below `root`, and none of them twice."""
    found = list(names)
    for name in found:
        if {"", ".", ".."}.intersection(name.split("/")) or "\0" in name:
            raise damaged(source, f"it names {name[:CUT]!r}, which does not lie in the folder")
        if not os.path.isfile(root / name):  # noqa: PTH113 - Path.is_file raises where a name is too long
            raise DamageError(
                f"{source} names {name[:CUT]!r}, which is no file in {root}; unpack the published archive again"
            )
    if len(set(found)) < len(found):
        twice = next(name for place, name in enumerate(found) if name in found[:place])
        raise damaged(source, f"it names {twice!r} twice")
    return found


def numbers(path: Path, what: str, values: Iterable[Any], low: int, high: int) -> Rows:
    """Whole numbers (n,) from `low` to `high`, as int64."""
    given = list(values)
    try:
        exact = np.array(given, dtype=np.float64)
        fits = exact.ndim == 1 and bool(((exact >= low) & (exact <= high) & (exact == np.rint(exact))).all())
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        odd = next((one for one in given if not _whole(one, low, high)), "a list")
        raise damaged(path, f"{what} has {str(odd)[:CUT]!r}, which is no whole number from {low} to {high}")
    return exact.astype(np.int64)


def _whole(value: Any, low: int, high: int) -> bool:
    try:
        return low <= float(value) <= high and float(value).is_integer()
    except (TypeError, ValueError, OverflowError):
        return False


def matlab(path: Path, *keys: str) -> list[Any]:
    """Variables of a file of MATLAB, as `kdtool.data.matlab` gives them; DamageError for one that lacks a variable."""
    content = content_of(path)
    try:
        held = variables(content, keys)
    except Exception as error:  # noqa: BLE001 - a damaged file is told of in many ways
        raise damaged(path, f"{type(error).__name__}: {str(error)[:CUT]}") from None
    for key in keys:
        if key not in held:
            raise damaged(path, f"it has no {key!r}")
    return [held[key] for key in keys]


def columns(path: Path, what: str, table: Any, *fields: str) -> list[list[Any]]:
    """Fields of an array of MATLAB's structs; an array of one number is that number."""
    for field in fields:
        if not isinstance(table, dict) or field not in table:
            raise damaged(path, f"{what} has no {field!r}")
    return [[_single(value) for value in table[field]] for field in fields]


def _single(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


def texts(path: Path, what: str, values: Any) -> list[str]:
    """A list of texts out of a file of MATLAB."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise damaged(path, f"{what} is not a list of texts")
    return values
