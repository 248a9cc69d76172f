"""What a cache depends on, compared field by field: plain values, canonical JSON, no hashing of objects."""

import json
from collections.abc import Iterator
from typing import Any

from kdtool import files
from kdtool.errors import IdentityError

FORMAT = 1
LINES = 8  # of a difference that are shown
TEXT = 72  # characters of a value that are shown; a SHA-256 fits


def identity_digest(identity: dict[str, Any], layout: dict[str, Any]) -> str:
    """SHA-256 of everything that another run must agree with: format, identity and layout as plain values."""
    return files.digest({"format": FORMAT, "identity": identity, "layout": layout})


def plain(value: Any) -> Any:
    """A value as JSON gives it back (tuples become lists); TypeError or ValueError where it is not plain."""
    return json.loads(files.canonical(value))


def difference(found: Any, wanted: Any) -> list[str]:
    """One readable line for each field that differs, with dotted names for nested fields; empty where all agree."""
    return list(_differences("", plain(found), plain(wanted)))


def refuse(what: str, found: dict[str, Any], wanted: dict[str, Any], hint: str) -> None:
    """Raises an IdentityError with the difference of two records, if there is one, and the hint what to do."""
    lines = difference(found, wanted)
    if lines:
        more = [f"and {len(lines) - LINES} more"] if len(lines) > LINES else []
        raise IdentityError("\n  ".join([f"{what}:", *lines[:LINES], *more]) + f"\n{hint}")


def _differences(name: str, found: Any, wanted: Any) -> Iterator[str]:
    if files.canonical(found) == files.canonical(wanted):
        return
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            field = f"{name}.{key}" if name else key
            if key in found and key in wanted:
                yield from _differences(field, found[key], wanted[key])
            else:
                yield f"{field}: the cache has {_text(found, key)}, wanted is {_text(wanted, key)}"
    else:
        yield f"{name or 'value'}: the cache has {_short(found)}, wanted is {_short(wanted)}"


def _text(values: dict[str, Any], key: str) -> str:
    return _short(values[key]) if key in values else "nothing"


def _short(value: Any) -> str:
    text = files.canonical(value)
    return text if len(text) <= TEXT else f"{text[: TEXT // 2]}... (SHA-256 {files.sha256(text.encode())[:12]})"
