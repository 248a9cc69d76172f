"""Versions of what is installed and of what a library requires; nothing is imported for it."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version


def installed(name: str) -> str | None:
    """The version of an installed library, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(name: str) -> list[tuple[str, str, bool]]:
    """What an installed library requires: name, versions (">=2.10,<3") and whether only an extra of it does."""
    lines = importlib.metadata.requires(name) or () if installed(name) is not None else ()
    found = [Requirement(line) for line in lines]
    return [(needed.name, str(needed.specifier), "extra" in str(needed.marker or "")) for needed in found]


def fits(version: str, wanted: str) -> bool:
    """Whether a version, which may be a development one, is among those asked for."""
    return SpecifierSet(wanted).contains(version, prereleases=True)


def release(version: str) -> str:
    """A version without the name of its build: "2.15.0+cpu" is "2.15.0"."""
    return Version(version).public


def build(version: str) -> str:
    """The name of the build, or nothing: "2.15.0+cpu" is of the build "cpu"."""
    return Version(version).local or ""


def whole_version(name: str) -> str | None:
    """The version with the name of its build, which the metadata may leave out and the library's version.py has."""
    known, found = installed(name), importlib.util.find_spec(name)
    if known is None or found is None or found.origin is None:
        return known
    file = Path(found.origin).with_name("version.py")
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    match = re.search(r"""^__version__\b[^=]*=\s*["']([^"']+)["']""", text, flags=re.MULTILINE)
    return match[1] if match and release(match[1]) == release(known) else known
