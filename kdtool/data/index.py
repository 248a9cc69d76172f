"""What was seen of the pictures below a folder, kept in the user's cache folder so that each is examined once.

A file counts as unchanged while its size and the time of its last change are. The index is a convenience: one that is
missing, torn, of another version or cannot be written costs a new look at the pictures, nothing else.
"""

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtool import files
from kdtool.data.pictures import FINDINGS, FINE, UNREADABLE, Seen, decoder, examine, stamp
from kdtool.data.workers import in_order, workers
from kdtool.errors import KdtoolError
from kdtool.progress import Progress

TOGETHER = 16  # files that a thread examines at a time
UNSEEN = 255  # the finding of a file that has not been looked at
VERSION = 2


@dataclass(frozen=True, eq=False)
class Look:
    """One row for each file.

    stamps (n, 3): what `pictures.stamp` gives. sizes (n, 2): height and width. digests (n, 32):
    SHA-256. findings (n,): numbers of `pictures.FINDINGS`, 0 for a file that is fine.
    """

    stamps: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]
    findings: npt.NDArray[np.uint8]


def look(root: Path, names: Sequence[str], progress: Progress, fresh: bool = False) -> Look:
    """What the files below `root` are; unless `fresh`, those that are as they were at the last look are not opened."""
    place = _place(root)
    table = _empty(len(names))
    table.stamps[:] = np.array([stamp(root / name) for name in names], np.int64).reshape(-1, 3)
    with _alone(place):
        if not fresh:
            _take_known(table, names, *_read(place))
        todo = np.flatnonzero(table.findings == UNSEEN).tolist()
        if todo:
            try:
                _examine(root, names, todo, table, progress)
            finally:
                _write(place, names, table)
    return table


@contextlib.contextmanager
def _alone(place: Path | None) -> Iterator[None]:
    """Waits while another process, such as one of the same `torchrun`, looks at these pictures."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            if place:
                place.parent.mkdir(parents=True, exist_ok=True)
                fcntl.flock(held.enter_context(place.with_suffix(".lock").open("w")), fcntl.LOCK_EX)
        yield


def _empty(count: int) -> Look:
    return Look(
        stamps=np.zeros((count, 3), np.int64),
        sizes=np.zeros((count, 2), np.int64),
        digests=np.zeros((count, 32), np.uint8),
        findings=np.full(count, UNSEEN, np.uint8),
    )


def _take_known(table: Look, names: Sequence[str], old_names: Sequence[str], old: Look) -> None:
    """Copies the rows of files that are as they were; what could not be read is tried again."""
    rows = {name: row for row, name in enumerate(old_names)}
    pairs = np.array([(row, rows[name]) for row, name in enumerate(names) if name in rows], np.int64).reshape(-1, 2)
    here, there = pairs[:, 0], pairs[:, 1]
    same = (table.stamps[here] == old.stamps[there]).all(1) & (old.findings[there] != UNREADABLE)
    here, there = here[same], there[same]
    for mine, theirs in zip(vars(table).values(), vars(old).values(), strict=True):
        mine[here] = theirs[there]


def _examine(root: Path, names: Sequence[str], todo: Sequence[int], table: Look, progress: Progress) -> None:
    threads = workers(processes=1)
    groups = [todo[start : start + TOGETHER] for start in range(0, len(todo), TOGETHER)]
    progress.begin("examining pictures", len(todo))

    def seen(rows: Sequence[int]) -> list[Seen]:
        return [examine(root / names[row]) for row in rows]

    for rows, found in zip(groups, in_order(seen, groups, threads, ahead=4 * threads), strict=True):
        for row, one in zip(rows, found, strict=True):
            table.sizes[row] = one.height, one.width
            table.digests[row] = np.frombuffer(one.sha256, np.uint8)
            table.findings[row] = one.finding
        progress.advance(len(rows))


def _place(root: Path) -> Path | None:
    """Where the index of a folder lies; findings depend on the decoder, so each version has its own.

    None where the user has no home, as in a container under a number that nobody has.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    name = files.digest({"root": str(root.resolve()), "version": VERSION, "decoder": decoder()})
    return cache / "kdtool" / "pictures" / f"{name[:32]}.npz"


def _read(place: Path | None) -> tuple[list[str], Look]:
    if not place:
        return [], _empty(0)
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as held:  # np.load leaves a torn one open
            names = held["names"].tobytes().decode(errors="surrogateescape").split("\0")
            found = Look(**{name: held[name] for name in vars(_empty(0))})
        fits = all(column.shape == (len(names), *like.shape[1:]) for column, like in _columns(found, _empty(0)))
        known = set(np.unique(found.findings).tolist()) <= {FINE, *FINDINGS}
        if fits and known and all(column.dtype == like.dtype for column, like in _columns(found, _empty(0))):
            return names, found
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the pictures are looked at again
        pass
    return [], _empty(0)


def _columns(one: Look, other: Look) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    yield from zip(vars(one).values(), vars(other).values(), strict=True)


def _write(place: Path | None, names: Sequence[str], table: Look) -> None:
    """Keeps what has been seen; a folder that cannot be written to is no reason to fail."""
    if not place:
        return
    seen = table.findings != UNSEEN
    kept = [name for name, there in zip(names, seen, strict=True) if there]
    content = io.BytesIO()
    arrays = {name: column[seen] for name, column in vars(table).items()}
    np.savez(content, names=np.frombuffer("\0".join(kept).encode(errors="surrogateescape"), np.uint8), **arrays)
    with contextlib.suppress(OSError, KdtoolError):
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write(place, content.getbuffer())
