"""A user's own method: `path.to:MyMethod`, a class in a module of the current folder or of what is installed."""

import re

from kdtool.errors import UsageError
from kdtool.imports import load
from kdtool.methods.protocol import Method, need

NAME = re.compile(r"[a-z][a-z0-9_]*")  # goes into folder names, metrics and the names of modules


def load_method(reference: str) -> type[Method]:
    """The class that `path.to:MyMethod` names; the user's module is imported and thereby run."""
    found = load(reference, "--method", "method", "class MyMethod", _is_method)
    name = reference.partition(":")[2]
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(f"--method {reference}: {name} is no class that extends kdtool.methods.protocol.Method")
    parameters = getattr(found, "__dataclass_params__", None)
    frozen = parameters is not None and parameters.frozen
    need(frozen, f"--method {reference}: {name} is not declared with @dataclass(frozen=True)")
    lacking = sorted(found.__abstractmethods__)
    need(not lacking, f"--method {reference}: {name} does not define {', '.join(lacking)}")
    for field in ("name", "paper"):
        need(isinstance(getattr(found, field, None), str), f"--method {reference}: {name} has no ClassVar `{field}`")
    fits = NAME.fullmatch(found.name)
    need(bool(fits), f"--method {reference}: its name {found.name!r} is not made of small letters, digits and _")
    return found


def _is_method(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Method)
