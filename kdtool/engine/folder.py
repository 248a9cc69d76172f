"""The folder that commands work in: the teacher, its record and split, the defaults in kdtool.toml, cache and runs.

kdtool.toml            defaults for extract, distill and analyze, with the teacher's SHA-256 and the split's digest
teacher.safetensors    weights; teacher.json says of what network, on which data; teacher.split.json the index lists
cache.zarr             what extract wrote
runs/<name>            one folder a run

Commands that train nothing read no more than this: no torch is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.data.preparation import rule_from
from kdtool.engine.runs import read_toml, toml
from kdtool.errors import DamageError, UsageError, unknown

DEFAULT_STUDENT = "resnet18"
DEFAULT_VIEWS = 8
DEFAULT_BATCH = 256  # of the teacher

# What is read of the identity of a cache, which holds more.
_IDENTITY: dict[str, Any] = {
    "teacher": {"network": str, "sha256": str, "split_digest": str},
    "data": {"name": str, "digest": str, "image_shape": list},
    "split": {"rule": {"validation": int}, "digest": str},
    "preprocessing": {"mean": list, "std": list},
    "augmentation": {"name": str, "seed": int},
    "numeric": {"precision": str},
}


@dataclass(frozen=True)
class Workspace:
    """Paths and defaults of a working folder: teacher, cache, runs; made by `Workspace.open`.

    settings: those of kdtool.toml, as it was when the workspace was opened or `teach` wrote it for this one.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | str) -> "Workspace":
        """The workspace of a folder; without a kdtool.toml it has no settings yet, and it need not exist yet.

        UsageError for a setting that is unknown or of another type.
        """
        path = Path(folder) / "kdtool.toml"
        settings = read_toml(path) if path.exists() else {}
        for key in settings:
            if key not in _SETTINGS:
                raise unknown(f"setting of {path}", key, _SETTINGS)
            if type(settings[key]) is not _SETTINGS[key]:
                wanted = "a whole number" if _SETTINGS[key] is int else "a text"
                raise UsageError(f"{path}: {key} is {settings[key]!r}; {wanted} is expected")
        return cls(Path(folder), settings)

    @property
    def teacher(self) -> Path:
        """The teacher's weights."""
        return self.folder / str(self.settings.get("teacher", "teacher.safetensors"))

    @property
    def cache(self) -> Path:
        """The cache."""
        return self.folder / str(self.settings.get("cache", "cache.zarr"))

    @property
    def words(self) -> list[str]:
        """The options that lead a command to this folder and cache, for messages that tell what to type."""
        return [*self.folder_words, *(["--cache", self.named_cache] if self.named_cache else [])]

    @property
    def named_cache(self) -> str:
        """The cache that was named in place of the folder's own, as an absolute path; empty where none was."""
        return str(self.cache) if Path(str(self.settings.get("cache", ""))).is_absolute() else ""

    @property
    def folder_words(self) -> list[str]:
        """The option that leads a command to this folder, whatever its cache."""
        return [] if self.folder == Path() else ["--folder", str(self.folder)]

    @property
    def runs(self) -> Path:
        """The folder of runs."""
        return self.folder / "runs"

    def write(self, settings: dict[str, Any]) -> None:
        """Writes kdtool.toml, and takes its settings over."""
        header = "# Defaults of the kdtool commands in this folder, written by `kdtool teach`.\n"
        files.write(self.folder / "kdtool.toml", (header + toml(settings)).encode())
        self.settings.update(settings)


_SETTINGS: dict[str, type] = {
    "data": str,
    "data_folder": str,
    "teacher": str,
    "teacher_sha256": str,
    "split_digest": str,
    "student": str,
    "cache": str,
    "views": int,
}


def check_identity(path: Path, identity: dict[str, Any]) -> None:
    """DamageError where the identity of a cache lacks what every command reads of it."""
    what, repair = f"the identity of {path}", "extract into another --cache"
    files.check_fields(identity, _IDENTITY, what, repair)
    check_rule(identity["augmentation"], what, repair)


def check_rule(record: Mapping[str, Any], what: str, repair: str) -> None:
    """DamageError for the record of an augmentation that this kdtool does not know."""
    try:
        rule_from(record)
    except (KeyError, ValueError, TypeError, UsageError):
        raise DamageError(f"{what} names an augmentation that is unknown here: {record}; {repair}") from None


def default_fit_views(placements: int | None) -> int:
    """How many views fits pass over where nobody says, of an augmentation with so many (None for no end of them)."""
    return min(4, placements or 4)
