"""What the teacher said in a pass of a fit, on disk, for later passes over the same view.

A scratch file for each view, key and array, read back in the very bytes that were written; nothing of it is trusted
after the process has ended. Where little room is left on the disk the teacher simply runs again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdtool import files

MARGIN = 2**30  # bytes that stay free on the disk: for the states of the fits, and for others
BYTES_PER_SECOND = 1e9  # what reading back is taken to reach; a teacher that is faster than that runs again

Arrays = dict[str, np.ndarray[Any, Any]]


def pays(teacher_seconds: float, size: int) -> bool:
    """Whether reading `size` bytes back is quicker than asking the teacher again."""
    return teacher_seconds > size / BYTES_PER_SECOND


class Spool:
    """The answers of some batches; `close` removes them, and so does the next spool in that folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.full = False
        self._held: dict[tuple[int, str, int], dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]]] = {}
        self.close()

    def close(self) -> None:
        """Removes the folder."""
        self._held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, view: int, key: str, start: int, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Keeps the arrays of the batch that begins at `start`."""
        if self.full:
            return
        places = {}
        if files.free_bytes(self.folder) < MARGIN + sum(rows.nbytes for rows in arrays.values()):
            self.full = True
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, rows in arrays.items():
                with self._path(view, key, name).open("ab") as file:
                    places[name] = (file.tell(), rows.dtype, rows.shape)
                    file.write(np.ascontiguousarray(rows).data)
        except OSError:  # a quota: what is held has used it up
            self.full = True
            self.close()
            return
        self._held[view, key, start] = places

    def read(self, view: int, key: str, start: int) -> Arrays | None:
        """The arrays of a batch, or None where they are not held."""
        places = self._held.get((view, key, start))
        if places is None:
            return None
        found = {}
        for name, (offset, dtype, shape) in places.items():
            rows = np.fromfile(self._path(view, key, name), dtype, int(np.prod(shape)), offset=offset)
            found[name] = rows.reshape(shape)
        return found

    def _path(self, view: int, key: str, name: str) -> Path:
        return self.folder / f"{view}.{key}.{name}"
