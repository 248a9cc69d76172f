"""What came out, a row of plain data for every finished cell and seed; and small teachers, to go on from elsewhere.

RESULTS/<group>/<teacher>/rows.jsonl    one checksummed line a row; a share of several machines has a file of its own
RESULTS/<group>/<teacher>/teacher/      the teacher's files, where its weights take no more than 4 MiB

<teacher> is the beginning of its SHA-256, so a teacher that came out otherwise starts rows of its own. A row is written
once, when all of it is known, and a finished cell is never computed again. Left out: what is run (work), what is shown
(tables).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.cache.lines import read_lines, seal
from kdtool.engine.folder import Workspace
from kdtool.engine.workspace import record_path, split_path

Row = dict[str, Any]

SMALL = 4 * 2**20  # bytes of a teacher's weights that are kept with the rows
DIGITS = 12  # of a SHA-256, in the name of a folder
ORIGIN = "group.json"  # of what a group's teacher is made
RESULT = "runs/teacher/result.json"  # which probes of a teacher read

_ROW: dict[str, Any] = {
    "key": str,
    "group": str,
    "seed": int,
    "config": dict,
    "analyses": dict,
    "seconds": dict,
    "teacher": {"sha256": str, "network": str, "test_accuracy": float},
}
_SCORE = {"test_accuracy": {"last": float}}  # of rows whose training has not diverged


@dataclass(frozen=True)
class Results:
    """The folder of all rows. share: (number, of how many), from 1; what this process adds is a share's."""

    folder: Path
    share: tuple[int, int] = (1, 1)

    @property
    def name(self) -> str:
        """The file of this share's rows."""
        number, count = self.share
        return "rows.jsonl" if count == 1 else f"rows-{number}-of-{count}.jsonl"

    def rows(self, group: str) -> list[Row]:
        """The rows of a group, of all teachers and shares; of equal ones the last, with the analyses of all of them.

        DamageError for a bad line.
        """
        found: dict[tuple[str, str], Row] = {}
        for path in sorted((self.folder / group).glob("*/rows*.jsonl")):
            for row in read_lines(path, f"restore {path}, or remove that line: its cell is computed again")[0]:
                known = _ROW if row.get("diverged") else {**_ROW, **_SCORE}
                files.check_fields(row, known, f"a row of {path}", f"restore {path}")
                name = (row["teacher"]["sha256"], row["key"])
                before = found[name]["analyses"] if name in found else {}
                found[name] = {**row, "analyses": {**before, **row["analyses"]}}
        return list(found.values())

    def add(self, row: Row) -> None:
        """Adds a row durably."""
        path = self._place(row["group"], row["teacher"]["sha256"]) / self.name
        with files.explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        lines, torn = read_lines(path, f"restore {path}")
        if torn:
            files.write(path, "".join(seal(line) + "\n" for line in lines).encode())
        files.append(path, seal(row))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the lock of this share."""
        with files.lock(self.folder / f"{self.name}.lock", "writing rows in"):
            yield

    def keep_teacher(self, group: str, workspace: Workspace, digest: str, origin: dict[str, Any]) -> None:
        """Keeps a small teacher with the rows."""
        place = self._place(group, digest) / "teacher"
        if workspace.teacher.stat().st_size > SMALL or (place / ORIGIN).exists():
            return
        copy_teacher(workspace, place, origin)

    def kept_teacher(self, group: str, origin: dict[str, Any]) -> Path | None:
        """The folder of a kept teacher of this origin, of several the one with most rows."""
        held = sorted((self.folder / group).glob(f"*/teacher/{ORIGIN}"))
        fitting = [path.parent for path in held if files.read_json(path, f"remove {path.parent}") == origin]
        hashes = [str(row["teacher"]["sha256"])[:DIGITS] for row in self.rows(group)]
        return max(fitting, key=lambda place: hashes.count(place.parent.name), default=None)

    def _place(self, group: str, digest: str) -> Path:
        return self.folder / group / digest[:DIGITS]


def copy_teacher(source: Workspace, place: Path, origin: dict[str, Any], data: str | None = None) -> None:
    """Copies a teacher's files, and writes last of all what it is made of.

    data: where the data lie for who works there, in place of where they lay for the source.
    """
    with files.explained(place):
        place.mkdir(parents=True, exist_ok=True)
        (place / RESULT).parent.mkdir(parents=True, exist_ok=True)
    teacher = (source.teacher, split_path(source.teacher), record_path(source.teacher))
    for name in (*(path.name for path in teacher), RESULT):
        if (source.folder / name).exists():
            files.write(place / name, (source.folder / name).read_bytes())
    Workspace(place).write({**source.settings, "data_folder": data})
    files.write_json(place / ORIGIN, origin)
