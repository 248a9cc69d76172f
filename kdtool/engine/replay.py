"""Asks the teacher again for some rows of a cache, and compares: the proof that a cache says what its teacher says.

Checksums tell that a cache is as it was written; this tells that what was written is right: the right sample, view,
crop, layer and row. Results of fits are taken as they are stored; rows that were encoded with them are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdtool.engine.blocks import Answers
from kdtool.engine.device import choose_device
from kdtool.engine.extraction import Extraction
from kdtool.engine.recorded import Again, recorded_job
from kdtool.engine.sources import as_tensors
from kdtool.engine.workspace import open_teacher_cache
from kdtool.errors import IdentityError, UsageError

if TYPE_CHECKING:
    from kdtool.cache import Cache
    from kdtool.engine.folder import Workspace
    from kdtool.progress import Progress

Array = np.ndarray[Any, Any]

# The largest difference of a row, as a share of its largest value, that another device or torch may come to, by
# precision of the teacher and stored dtype. The same machine gives the same bits.
BOUNDS = {
    ("float32", "float32"): 1e-3,
    ("float32", "float16"): 2e-3,
    ("bfloat16", "float32"): 5e-2,
    ("bfloat16", "float16"): 5e-2,
}
SHARE = 0.01  # of the integers and bits of an array that may differ: near ties fall otherwise elsewhere
SMALL = 1e-3  # of the largest value of all rows: what is smaller than that in a row counts as so much


@dataclass
class Replayed:
    """What came of one array. rows: compared. identical: with the same bits.

    difference: of the worst row as a share of its largest value; for integers and bits the share of values that differ.
    worst: a row outside of the bound, as (view, position in the part).
    """

    part: str
    key: str
    array: str
    bound: float
    rows: int = 0
    identical: int = 0
    difference: float = 0.0
    worst: tuple[int, int] | None = None
    _total: float = 0.0

    @property
    def right(self) -> bool:
        """Whether the difference keeps within the bound."""
        return self.difference <= self.bound

    def add(self, held: Array, given: Array, view: int, positions: Array) -> None:
        """Takes in rows (b, ...) that the cache holds and what the teacher says of the same samples."""
        held, given = held.reshape(len(held), -1), given.reshape(len(given), -1)
        equal, floating = held == given, held.dtype.kind == "f"
        rows = _relative(held, given) if floating else 1 - equal.mean(1)
        self.rows += len(rows)
        self.identical += int(equal.all(1).sum())
        self._total += float(rows.sum())
        self.difference = max(self.difference, float(rows.max())) if floating else self._total / self.rows
        if not self.right and self.worst is None:
            self.worst = (view, int(positions[rows.argmax()]))


def replay(
    workspace: Workspace, rows: int, again: Again, progress: Progress, draw: np.random.Generator
) -> tuple[list[Replayed], tuple[str, ...]]:
    """(what came of every array, the keys that no method of this kdtool stores) for random rows.

    rows: how many (view, sample)s are drawn, from all views of all parts alike; of each all arrays are compared. Labels
    and rows of the data set are compared whole. UsageError where the teacher or the data set is not at hand,
    IdentityError where they are others, DamageError where a chunk that is read is damaged.
    """
    check_replay(rows, again)
    cache = open_teacher_cache(workspace.cache)
    job, unknown = recorded_job(workspace, cache, again, progress)
    _compare_samples(cache, job)
    places = _drawn(cache, rows, draw)
    progress.begin("replay", sum(len(positions) for _, _, positions in places))
    found: dict[tuple[str, str, str], Replayed] = {}
    for part, view, positions in places:
        targets = tuple(target for target in job.targets if cache.views(target.key, part) > view)
        fits = {target.fit.key for target in targets if target.fit is not None}
        fitted = {key: as_tensors(cache.fitted(key), job.train.device) for key in fits}
        answers = Answers(job, cache, fitted, progress)
        for start in range(0, len(positions), job.layout.batch):
            batch = positions[start : start + job.layout.batch]
            told = answers.rows(targets, part, view, batch)
            for key, name in ((key, name) for key, arrays in told.items() for name in arrays):
                held = cache.array(part, key, name).rows(view, batch)
                result = found.setdefault((part, key, name), Replayed(part, key, name, _bound(job, held)))
                result.add(held, told[key][name], view, batch)
            progress.advance(len(batch))
    return list(found.values()), unknown


def check_replay(rows: int, again: Again) -> None:
    """Refuses what can be refused before anything is read."""
    if rows < 1:
        raise UsageError(f"--replay is at least 1, not {rows}")
    choose_device(again.device)


def _relative(held: Array, given: Array) -> Array:
    """(b,) the largest difference in each row, as a share of the row's largest value; infinite where one of them is not
    finite.
    """
    wide, exact = held.astype(np.float64), given.astype(np.float64)
    finite = np.isfinite(wide).all(1) & np.isfinite(exact).all(1)
    shares = np.full(len(wide), np.inf)
    wide, exact = wide[finite], exact[finite]
    sizes = np.maximum(np.abs(wide), np.abs(exact)).max(1)
    scale = np.maximum(sizes, SMALL * sizes.max(initial=0.0))
    shares[finite] = np.abs(wide - exact).max(1) / np.where(scale > 0, scale, 1.0)
    return shares


def _bound(job: Extraction, held: Array) -> float:
    return BOUNDS[job.precision, held.dtype.name] if held.dtype.kind == "f" else SHARE


def _drawn(cache: Cache, rows: int, draw: np.random.Generator) -> list[tuple[str, int, Array]]:
    """(part, view, positions) of so many different (view, sample)s."""
    views = [
        (part, view, size)
        for part, size in cache.layout.samples.items()
        for view in range(max((cache.views(key, part) for key in cache.contents), default=0))
    ]
    total = sum(size for _, _, size in views)
    chosen = np.sort(draw.choice(total, min(rows, total), replace=False, shuffle=False))
    found, first = [], 0
    for part, view, size in views:
        positions = chosen[(chosen >= first) & (chosen < first + size)] - first
        if len(positions):
            found.append((part, view, positions))
        first += size
    return found


def _compare_samples(cache: Cache, job: Extraction) -> None:
    for part in cache.layout.samples:
        for name, held, given in (
            ("labels", cache.labels(part), job.labels[part]),
            ("index", cache.index(part), job.rows[part]),
        ):
            if not np.array_equal(held, given):
                raise IdentityError(f"{part}/{name} of {cache.path} is not that of the data set and the split")
