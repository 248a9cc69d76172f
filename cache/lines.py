"""Files of checksummed JSON lines: the journal and the provenance.

A line is the canonical JSON of an object with `checksum`, the SHA-256 of the canonical JSON of its other fields. A
crash can tear the last line only; a bad line before it is damage.
"""

import json
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.errors import DamageError


def seal(record: dict[str, Any]) -> str:
    """The line of a record, without its end."""
    return files.canonical({**record, "checksum": files.digest(record)})


def read_lines(path: Path, repair: str) -> tuple[list[dict[str, Any]], bool]:
    """The records of a file, and whether a torn last line was left out; an absent file has none.

    A bad line that is not the last is a DamageError that names `repair`.
    """
    content = _content(path)
    *lines, tail = content.split(b"\n")
    records = [_opened(line) for line in lines]
    torn = bool(tail)
    if not torn and records and records[-1] is None:
        records.pop()
        torn = True
    whole = [record for record in records if record is not None]
    if len(whole) < len(records):
        number = records.index(None) + 1
        raise DamageError(f"line {number} of {path} is damaged (its checksum does not fit its content); {repair}")
    return whole, torn


def intact_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a file that are whole, wherever they stand, and the number of lines that are not."""
    content = _content(path)
    records = [_opened(line) for line in content.split(b"\n") if line]
    whole = [record for record in records if record is not None]
    return whole, len(records) - len(whole)


def _content(path: Path) -> bytes:
    """What a file holds; nothing where there is none, or none any more: a writer may fold it away meanwhile."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return b""


def _opened(line: bytes) -> dict[str, Any] | None:
    """The record of a line, None where the line is not byte for byte what `seal` gives for it."""
    try:
        value = json.loads(line)
        record = {key: value[key] for key in value if key != "checksum"}
        return record if seal(record).encode() == line else None
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
