"""A user's own method: `path.to:MyMethod`, a class in a module of the current folder or of what is installed."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from kdtool.errors import UsageError, unknown
from kdtool.methods.protocol import Method, need

FILES: set[str] = set()  # of users' modules, so that an error in one is told as such
NAME = re.compile(r"[a-z][a-z0-9_]*")  # goes into folder names, metrics and the names of modules


def load_method(reference: str) -> type[Method]:
    """The class that `path.to:MyMethod` names; the user's module is imported and thereby run."""
    path, _, name = reference.partition(":")
    module = _import(reference, path)
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Method)]
        raise unknown(f"method in {path}", name, classes)
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


def _import(reference: str, path: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(path)
        FILES.add(str(getattr(module, "__file__", "")))
        return module
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f"{error.name}.")):
            raise UsageError(
                f"--method {reference}: there is no module {error.name} in {here} or among what is installed; "
                "path.to:MyMethod names the class MyMethod of path/to.py"
            ) from None
        raise UsageError(f"--method {reference}: {path} imports {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:  # whatever the user's file does when it runs
        raise UsageError(f"--method {reference}: {path} cannot be imported: {type(error).__name__}: {error}") from error
