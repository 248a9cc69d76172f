"""Whether the fields of a configuration hold what they are annotated with, so that a mistake in Python is told at once.

Left out: whether the values make sense, and values from files (kdtool.analysis.checked).
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from kdtool.errors import UsageError

hints_of = functools.cache(get_type_hints)  # a recipe makes its configurations again at every look


def check_types(config: Any) -> None:
    """UsageError that names the first field of a dataclass which holds something else than its annotation says.

    Lists pass for tuples, whole numbers for floats, and an annotation that is neither a class nor a tuple, mapping or
    union of classes is not looked at; nor is a method of the user's that has names which type checkers alone see.
    """
    try:
        hints = hints_of(type(config))  # type: ignore[arg-type] # mypy takes no class for hashable
    except NameError:
        return
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), hints[field.name]
        if not fits(value, kind):
            name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
            expected = re.sub(r"\w+\.(?=\w)", "", name)
            raise UsageError(f"{type(config).__name__}: {field.name} is of type {expected}, and {value!r} is not")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is one that an annotation stands for."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (tuple, list, Sequence):
        many = origin is not tuple or parts[-1] is Ellipsis
        kinds = parts[:1] * len(value) if many and isinstance(value, tuple | list) else parts
        return isinstance(value, tuple | list) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if origin in (Mapping, dict):
        return isinstance(value, Mapping) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return kind is Any or parts != () or not isinstance(kind, type) or isinstance(value, kind)
