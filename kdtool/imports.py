"""What a user names as `path.to:name`: found by importing a module of the current folder or of what is installed.

The import runs the user's file. `FILES` remembers it and what it imported of the current folder, so that the command
line tells a bug in there as the user's, with file and line.
"""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from kdtool import files
from kdtool.errors import UsageError, unknown

FILES: set[str] = set()
LIBRARIES = ("tv", "timm")  # before the colon in names of networks that are nobody's own


def load(reference: str, option: str, kind: str, example: str, offered: Callable[[object], bool]) -> object:
    """The object that `path.to:name` names.

    option begins every message, as in "--method"; kind and example say what is looked for: "method", "class MyMethod".
    offered: which objects of the module a message may propose. UsageError where there is no such module or name, and
    where the module fails when it runs.
    """
    path, _, name = reference.partition(":")
    module = _imported(path, f"{option} {reference}", example)
    found: object = getattr(module, name, None)
    if found is None:
        raise unknown(f"{kind} in {path}", name, _offered(module, offered))
    return found


def source_digest(reference: str) -> str:
    """SHA-256 of the file of the module in `path.to:name`; empty for one that is not imported, or of a library's."""
    path = reference.partition(":")[0]
    place = getattr(sys.modules.get(path), "__file__", None)
    if place is None or path in LIBRARIES or not Path(place).is_file():
        return ""
    return files.sha256_file(Path(place))


def _offered(module: ModuleType, offered: Callable[[object], bool]) -> list[str]:
    return [key for key, value in vars(module).items() if offered(value) and not key.startswith("_")]


def _imported(path: str, asked: str, example: str) -> ModuleType:
    here = Path.cwd()
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))
    meaning = f"path.to:{example.split()[-1]} names the {example} of path/to.py"
    if not all(part.isidentifier() for part in path.split(".")):
        raise UsageError(f"{asked}: {path!r} is no name of a module; {meaning}")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f"{error.name}.")):
            raise UsageError(
                f"{asked}: there is no module {error.name} in {here} or among what is installed; {meaning}"
            ) from None
        raise UsageError(f"{asked}: {path} imports {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:  # whatever the user's file does when it runs
        place = _place(error, here)
        raise UsageError(f"{asked}: {path} cannot be imported: {type(error).__name__}: {error}{place}") from error
    FILES.update(_files(module, here))
    return module


def _files(module: ModuleType, here: Path) -> set[str]:
    """The module's file and those of the other modules that lie below the current folder."""
    loaded = [(name, str(getattr(other, "__file__", None) or "")) for name, other in list(sys.modules.items())]
    own = {file for name, file in loaded if name.split(".")[0] != "kdtool" and _below(file, here)}
    return own | {str(getattr(module, "__file__", ""))}


def _below(file: str, folder: Path) -> bool:
    """Whether a file lies below a folder, and not in an environment there into which packages were installed."""
    return Path(file).is_relative_to(folder) and "site-packages" not in file


def _place(error: BaseException, here: Path) -> str:
    """Where in the current folder it happened, where that can be told; a SyntaxError says so itself."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _below(frame.filename, here)]
    frames = [frame for frame in frames if Path(frame.filename).resolve() != Path(__file__).resolve()]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
