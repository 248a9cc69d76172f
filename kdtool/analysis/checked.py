"""Whether plain values from a file are those of a dataclass: every field there, of its type, no number beyond all.

A checksum tells that a file is whole, not who wrote it; what a reader is shown has its types checked as well. Left out:
whether the values make sense.
"""

from collections.abc import Iterable
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from kdtool.errors import DamageError

LARGEST = 2**63  # beyond any count or size of ours; every whole number below it is a float too
HUGE = 1e300  # beyond any measure of ours; sums of smaller ones stay finite


def check(value: Any, kind: Any, what: str, repair: str) -> None:
    """DamageError that names `what`, the odd place and `repair`, unless the value is one that `kind` stands for.

    kind: a dataclass, for an object with all of its fields and perhaps more; a tuple or list type, for a list; a union;
    float, for any number of at most HUGE; int, str, bool or None.
    """
    odd = oddity(value, kind, "")
    if odd:
        raise DamageError(f"{what} is not as kdtool writes it ({odd}); {repair}")


def oddity(value: Any, kind: Any, place: str) -> str:
    """The first thing that does not fit, in words; empty where all does."""
    origin, parts = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return of_object(value, get_type_hints(kind), place)
    if origin in (tuple, list):
        many = origin is list or parts[-1] is Ellipsis
        if not isinstance(value, list) or not (many or len(value) == len(parts)):
            return f"{place or 'it'} is no list" + ("" if many else f" of {len(parts)}")
        if many and float in (parts[0], *get_args(parts[0])) and all(is_plain(item, float) for item in value):
            return ""  # the matrices of a thousand classes are millions of numbers
        kinds = parts[:1] * len(value) if many else parts
        return first(oddity(item, own, f"{place}[{n}]") for n, (item, own) in enumerate(zip(value, kinds, strict=True)))
    if parts:  # a union
        odd = [oddity(value, part, place) for part in parts if part is not NoneType or value is None]
        return "" if "" in odd else odd[0]
    return "" if is_plain(value, kind) else f"{place or 'it'} is no {kind.__name__}"


def of_object(value: Any, hints: dict[str, Any], place: str) -> str:
    """The first oddity of an object with these fields."""
    if not isinstance(value, dict):
        return f"{place or 'it'} is no object"
    names = {name: f"{place}.{name}" if place else name for name in hints}
    missing = [names[name] for name in hints if name not in value]
    if missing:
        return f"it has no {missing[0]}"
    return first(oddity(value[name], kind, names[name]) for name, kind in hints.items())


def is_plain(value: Any, kind: type) -> bool:
    """Whether it is a number, a text or a truth value of that type; whole numbers are floats as well."""
    if kind is float and type(value) is float:
        return abs(value) < HUGE
    if kind in (float, int):
        return type(value) is int and abs(value) < LARGEST
    return type(value) is kind


def first(found: Iterable[str]) -> str:
    """The first text that is not empty."""
    return next(filter(None, found), "")
