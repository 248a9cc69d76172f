"""From a recipe to what has to be run: a task for every cell and seed, those of a search before those of its cell.

A task is named by the digest of all that it asks for, so that cells of several tables which ask for the same are run
once. Left out: running them (work).
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdtool import files
from kdtool.engine.configuration import Values, distill_config
from kdtool.engine.distill import DistillConfig
from kdtool.errors import UsageError
from kdtool.workflows.reproduce.recipe import PLACES, Cell, Recipe, Table
from kdtool.workflows.reproduce.rows import Row


@dataclass(frozen=True)
class Task:
    """One training, and what is measured of it. distill: empty for the teacher itself; probe: empty for none.

    basis: digest of what the group's teacher and cache are made of. live: the teacher answers in every step.
    """

    group: str
    basis: str
    distill: Table
    probe: Table
    analyze: tuple[str, ...]
    seed: int
    live: bool = False

    @functools.cached_property
    def config(self) -> DistillConfig | None:
        """What `kdtool distill` is asked for; None for a task about the teacher."""
        if not self.distill:
            return None
        values = Values("distill", self.distill, f"the recipe's [distill] for group {self.group}")
        found = distill_config(values, "")
        if not found.student:
            raise UsageError(f"the recipe's [distill] for group {self.group} names no student")
        return replace(found, seed=self.seed)

    @property
    def asked(self) -> dict[str, Any]:
        """What `kdtool distill` is asked for, as plain values with all defaults resolved; empty for the teacher."""
        config = self.config
        return {name: value for name, value in (config.plain() if config else {}).items() if name not in PLACES}

    @functools.cached_property
    def key(self) -> str:
        """The digest of what is asked for; analyses add to a row and make no other one."""
        asked = {
            "group": self.group,
            "basis": self.basis,
            "distill": self.asked,
            "probe": dict(self.probe),
            "seed": self.seed,
        }
        return files.digest({**asked, **({"live": True} if self.live else {})})

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        config = self.config
        student = replace(self, probe={}) if self.probe else self
        return f"{config.title[:100]}-{student.key[:8]}" if config else "teacher"


@dataclass(frozen=True)
class Searched:
    """A cell whose options are searched.

    tried: its tasks; chosen: the options that are best, None where rows are missing; scores: options and mean accuracy
    in percent on the validation part.
    """

    tried: tuple[Task, ...]
    chosen: Mapping[str, Any] | None
    scores: tuple[tuple[Mapping[str, Any], float], ...] = ()


def tasks(recipe: Recipe, cell: Cell, seeds: int, rows: Sequence[Row]) -> list[Task]:
    """The tasks of a cell, as far as they are known: where a search is not done, those of the search."""
    if cell.skip:
        return []
    found = searched(recipe, cell, rows)
    if found is not None and found.chosen is None:
        return list(found.tried)
    distill = with_options(cell.distill, found.chosen) if found and found.chosen else cell.distill
    count = seeds if cell.distill or cell.probe else 1
    analyze = recipe.analyze if cell.distill else ()
    basis = basis_of(recipe, cell.group)
    return [Task(cell.group, basis, distill, cell.probe, analyze, seed, cell.live) for seed in range(count)]


def basis_of(recipe: Recipe, group: str) -> str:
    """The digest of what a group's teacher and cache are made of."""
    return files.digest({"teacher": recipe.basis(group), "extract": recipe.groups[group].stored})


def last(recipe: Recipe, cell: Cell) -> list[Task]:
    """What a cell that searches runs in the end, with the first point of its grid: for what can be told beforehand."""
    first = {name: values[0] for name, values in cell.search.items()}
    return tasks(recipe, replace(cell, distill=with_options(cell.distill, first), search={}), 1, [])


def by_teacher(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """SHA-256 of a teacher -> its rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["teacher"]["sha256"], []).append(row)
    return found


def searched(recipe: Recipe, cell: Cell, rows: Sequence[Row]) -> Searched | None:
    """The search of a cell; the choice is the grid's point with the highest validation accuracy, of equals the first.

    The accuracy is that of the weights which the table reports, a mean over the recipe's `search_seeds`. UsageError for
    a group that holds no images out for validation.
    """
    if not cell.search:
        return None
    grid = [dict(zip(cell.search, point, strict=True)) for point in itertools.product(*cell.search.values())]
    basis = basis_of(recipe, cell.group)
    asked = [
        [
            Task(cell.group, basis, with_options(cell.distill, point), {}, (), seed, cell.live)
            for seed in range(recipe.search_seeds)
        ]
        for point in grid
    ]
    tried = tuple(task for tasks in asked for task in tasks)
    held = {row["key"]: row for row in rows}
    found = {task.key: _validation(held[task.key], recipe.report) for task in tried if task.key in held}
    if None in found.values():
        raise no_validation(cell)
    if any(task.key not in found for task in tried):
        return Searched(tried, None)
    scores = [statistics.fmean(found[task.key] or 0.0 for task in tasks) for tasks in asked]
    return Searched(tried, grid[scores.index(max(scores))], tuple(zip(grid, scores, strict=True)))


def _validation(row: Row, report: str) -> float | None:
    """The accuracy on the validation part that a search goes by; 0 of a training that diverged."""
    if row.get("diverged"):
        return 0.0
    found = row["validation_accuracy"]
    return float(found[report]) if found else None


def no_validation(cell: Cell) -> UsageError:
    """What a search says of a group without a validation part."""
    return UsageError(
        f"{cell.row} / {cell.column} searches its options, and group {cell.group} holds no images out for validation: "
        "its [teach] or [extract] needs validation = N"
    )


def wanted(recipe: Recipe, cells: Sequence[Cell], seeds: int, rows: Sequence[Row]) -> dict[str, Task]:
    """The tasks of several cells by their keys, each once."""
    return {task.key: task for cell in cells for task in tasks(recipe, cell, seeds, rows)}


def counted(
    recipe: Recipe, cells: Sequence[Cell], seeds: int, rows: Sequence[Row]
) -> tuple[dict[str, Task], dict[tuple[str, ...], int]]:
    """All tasks of several cells, those of their searches among them; and how many more every open search will name.

    A search is told from others by the keys of what it tries.
    """
    searches = [found for cell in cells if not cell.skip and (found := searched(recipe, cell, rows))]
    tried = {task.key: task for search in searches for task in search.tried}
    left = max(0, seeds - recipe.search_seeds)  # the others are among those tried
    more = {tuple(task.key for task in search.tried): left for search in searches if search.chosen is None}
    return {**tried, **wanted(recipe, cells, seeds, rows)}, more


def with_options(distill: Table, options: Mapping[str, Any]) -> Table:
    """A [distill] with more options of its methods."""
    return {**distill, "set": {**distill.get("set", {}), **options}}


def share_of(todo: Iterable[Task], share: tuple[int, int]) -> Iterator[Task]:
    """Those of a share, whatever else is still to be done: the seeds of a student go round, and its probes with it."""
    number, count = share
    for task in todo:
        first = int(replace(task, seed=0, probe={}).key[:8], 16)
        if (first + task.seed) % count == number - 1:
            yield task
