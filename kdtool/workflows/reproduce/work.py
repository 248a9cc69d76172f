"""Runs the tasks of recipes: a working folder for each group, its teacher, its cache, students, analyses, rows.

Everything can be stopped at any step and goes on from there; what has a row is not run again. Several processes may
share one folder: each makes its share of the cells, and one of them teacher and cache while the others wait. Left out:
what the tasks are (tasks), where rows lie (rows).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kdtool import files
from kdtool.analysis.kept import read_results
from kdtool.analysis.pairs import Asked
from kdtool.analysis.probe import probe, probe_config
from kdtool.cache.journal import holds_cache
from kdtool.engine.configuration import Values, extract_config, teach_config
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import extract
from kdtool.engine.extraction import Extraction
from kdtool.engine.folder import Workspace
from kdtool.engine.keeping import kept
from kdtool.engine.prepare import ExtractConfig
from kdtool.engine.sizes import bytes_to_write
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.workspace import TeacherRecord, open_teacher_cache, read_record, record_path
from kdtool.errors import HeldError, IdentityError, UsageError
from kdtool.progress import Progress, StopRequest
from kdtool.workflows.plan import refuse_other
from kdtool.workflows.reproduce.ahead import after, check, foreseen, merged, teaching
from kdtool.workflows.reproduce.measures import ANALYSES
from kdtool.workflows.reproduce.recipe import Cell, Group, Recipe
from kdtool.workflows.reproduce.rows import ORIGIN, Results, Row, copy_teacher
from kdtool.workflows.reproduce.tasks import Task, counted, no_validation, searched, share_of, wanted

T = TypeVar("T")
PAUSE = 2.0  # seconds between two looks at what another process holds


@dataclass(frozen=True)
class Work:
    """Where and how recipes run. data: folder of the data sets' files; weights: of those that teachers begin from."""

    folder: Path
    results: Results
    progress: Progress
    stop: StopRequest
    data: Path | None = None
    weights: Path | None = None
    device: str = "auto"

    def workspace(self, group: str) -> Workspace:
        """The working folder of a group."""
        return Workspace.open(self.folder / group)

    def run(self, recipe: Recipe, cells: Sequence[Cell], seeds: int) -> int:
        """Runs what has no row yet; gives the number of cells that wait for the search of another share."""
        check(recipe)
        groups = {
            group: [cell for cell in cells if cell.group == group and not cell.skip]
            for group in dict.fromkeys(cell.group for cell in cells if not cell.skip)
        }
        with self.results.writing():
            self._foresee(recipe, groups, seeds)
            for group, chosen in groups.items():
                for _ in ("searches", "cells"):
                    if todo := self._todo(recipe, chosen, seeds):
                        self._run_all(recipe, group, todo)
        return sum(1 for cell in cells if _searching(recipe, cell, self.rows(recipe, cell.group)))

    def _foresee(self, recipe: Recipe, groups: Mapping[str, Sequence[Cell]], seeds: int) -> None:
        """Refuses what could not be run to its end, of all groups before the first one's training."""
        asked: dict[str, list[Task]] = {}
        for name, cells in groups.items():
            rows = self.rows(recipe, name)
            todo = [task for task in counted(recipe, cells, seeds, rows)[0].values() if not done(task, rows)]
            for group in recipe.chain(name) if todo else ():
                asked.setdefault(group.name, [])
                if group.after and not self.workspace(group.name).teacher.exists():
                    asked[group.before].append(after(recipe, group))
            if todo:
                asked[name] += todo
        for name, tasks in asked.items():
            group = recipe.groups[name]
            if group.teach and not self._made(group) and not self.results.kept_teacher(name, recipe.basis(name)):
                self._first_weights(recipe, group)
            job = self.foreseen(recipe, group, tasks)
            searching = [cell for cell in groups.get(name, ()) if cell.search]
            if searching and "validation" not in job.layout.samples:
                raise no_validation(searching[0])

    def foreseen(self, recipe: Recipe, group: Group, todo: Sequence[Task]) -> Extraction:
        """The extract of what a group's tasks need; UsageError for what could not be run. See `ahead.foreseen`."""
        workspace = self.workspace(group.name) if self._made(group) else None
        return foreseen(workspace, self.lesson(recipe, group), self.extracting(group), todo, self.progress)

    def _made(self, group: Group) -> bool:
        """Whether the teacher of a group is here."""
        return (self.folder / group.name / ORIGIN).exists() and self.workspace(group.name).teacher.exists()

    def _todo(self, recipe: Recipe, cells: Sequence[Cell], seeds: int) -> list[Task]:
        """This share's tasks that have no row, each once; the first seed of all cells before the second of any."""
        rows = self.rows(recipe, cells[0].group)
        own = share_of(list(wanted(recipe, cells, seeds, rows).values()), self.results.share)
        return sorted((task for task in own if not done(task, rows)), key=lambda task: task.seed)

    def rows(self, recipe: Recipe, group: str) -> list[Row]:
        """The rows of a group's teacher, as far as it is known here; else of all of its teachers."""
        rows = self.results.rows(group) if group else []
        known = record_path(self.workspace(group).teacher)
        if not known.exists():
            return rows
        digest = read_record(self.workspace(group).teacher).sha256
        return [row for row in rows if row["teacher"]["sha256"] == digest]

    def _run_all(self, recipe: Recipe, group: str, todo: Sequence[Task]) -> None:
        self.patiently(lambda: self.prepare(recipe, group, todo))
        rows = self.rows(recipe, group)  # now that the teacher is known
        todo = [task for task in todo if not done(task, rows)]
        for number, task in enumerate(todo):
            self.progress.note(f"{recipe.name}, {group}: {number + 1} of {len(todo)}, {task.name}, seed {task.seed}")
            if self.stop.requested():
                raise self.stop.stopped(f"before {task.name}")
            self.results.add(self.patiently(functools.partial(self.row, task)))

    def prepare(self, recipe: Recipe, group: str, todo: Sequence[Task]) -> None:
        """Makes teacher and cache of a group, as far as its tasks need them."""
        self.teacher(recipe, recipe.groups[group])
        if any(task.distill for task in todo):
            self.fill(recipe.groups[group], todo)

    def row(self, task: Task) -> Row:
        """Runs a task; gives its row."""
        workspace = self.workspace(task.group)
        record, run = read_record(workspace.teacher), workspace.runs / task.name
        environment = run / "environment.json"
        return {
            "key": task.key,
            "group": task.group,
            "seed": task.seed,
            "config": task.asked,
            "live": task.live,
            "teacher": {name: getattr(record, name) for name in ("network", "sha256", "test_accuracy")},
            **(self._trained(task, task.config) if task.config else of_teacher(record)),
            "analyses": self._analysed(task, workspace, run),
            "probe": self._probed(task, run) if task.probe else None,
            "environment": files.read_json(environment, "remove the run") if environment.exists() else None,
        }

    def _trained(self, task: Task, config: DistillConfig) -> dict[str, Any]:
        """What a row says of a student."""
        asked = replace(config, name=task.name, device=self.device, data_folder=self._data)
        result = distill(self.workspace(task.group), asked, self.progress, self.stop, live=task.live)
        taken = ("network", "parameters", "method", "options", "views", "samples", "epochs", "batch", "cache")
        scores = ("test_accuracy", "validation_accuracy", "seconds", "weights_sha256")
        return {name: result[name] for name in (*taken, *scores)}

    def _analysed(self, task: Task, workspace: Workspace, run: Path) -> dict[str, Any]:
        for name in task.analyze:
            ANALYSES[name](workspace, Asked((run,), device=self.device, data_folder=self._data), self.progress)
        return {name: read_results(run, name) for name in task.analyze}

    def _probed(self, task: Task, run: Path) -> dict[str, Any]:
        values = Values("probe", task.probe, f"the recipe's [probe] for group {task.group}")
        asked = replace(probe_config(values, run), seed=task.seed, device=self.device, data_folder=self._data)
        result = probe(asked, self.progress, self.stop)
        return {name: result[name] for name in ("data", "kind", "test_accuracy", "validation_accuracy", "seconds")}

    @property
    def _data(self) -> str | None:
        return str(self.data.absolute()) if self.data else None

    def teacher(self, recipe: Recipe, group: Group) -> Workspace:
        """The working folder of a group with its teacher: the one that is there, one that was kept, or a new one."""
        for before in recipe.chain(group.name):
            with files.lock(self.folder / before.name / "group.lock", "making the teacher of"):
                self._teacher(recipe, before)
        return self.workspace(group.name)

    def _teacher(self, recipe: Recipe, group: Group) -> None:
        """Sees to it that the teacher is there; the record of its origin is written last."""
        workspace, origin = self.workspace(group.name), recipe.basis(group.name)
        path = workspace.folder / ORIGIN
        held = files.read_json(path, f"remove {workspace.folder}") if path.exists() else None
        if held not in (None, origin):
            raise IdentityError(
                f"{workspace.folder} holds the teacher of another recipe ({path.name} says {held}, wanted is "
                f"{origin}); name another --folder, or remove it"
            )
        if held is None or not workspace.teacher.exists():
            if place := self._kept(group, origin):
                self.progress.note(f"{group.name}: the teacher that was kept in {place}")
                copy_teacher(Workspace.open(place), workspace.folder, origin, self._data)
            elif held is None or group.teacher:
                self.progress.note(f"{group.name}: teacher")
                self._make_teacher(recipe, group, origin)
        self._keep(group, origin)

    def _kept(self, group: Group, origin: dict[str, Any]) -> Path | None:
        """The folder of the teacher that lies with the rows, unless another one is here already."""
        place, record = self.results.kept_teacher(group.name, origin), record_path(self.workspace(group.name).teacher)
        return place if place and (not record.exists() or same_file(record, place / record.name)) else None

    def _make_teacher(self, recipe: Recipe, group: Group, origin: dict[str, Any]) -> None:
        folder = self.folder / group.name
        if group.teacher:
            copy_teacher(self.workspace(group.teacher), folder, origin, self._data)
            return
        if group.after:
            task = after(recipe, group)
            self.fill(recipe.groups[task.group], [task])
            self.row(task)
        config = replace(
            self.lesson(recipe, group), initial=self._first_weights(recipe, group), as_is=group.teach is None
        )
        teach(Workspace.open(folder), config, self.progress, self.stop)
        files.write_json(folder / ORIGIN, origin)

    def _keep(self, group: Group, origin: dict[str, Any]) -> None:
        """Keeps a small teacher with the rows, once for all groups that share it."""
        workspace = self.workspace(group.name)
        if not group.teacher and workspace.teacher.exists():
            self.results.keep_teacher(group.name, workspace, read_record(workspace.teacher).sha256, origin)

    def lesson(self, recipe: Recipe, group: Group) -> TeachConfig:
        """What `teach` is asked for; its first weights are not looked for yet."""
        where = f"the recipe's [teach] of group {group.name}"
        config = teach_config(Values("teach", {**teaching(recipe, group), "device": self.device}, where))
        return replace(config, data_folder=self._data or config.data_folder)

    def _first_weights(self, recipe: Recipe, group: Group) -> str | None:
        """The file that a group's teacher begins from, or whose weights it takes as they are."""
        if group.early:
            return str(self._early(group))
        if group.after:
            task = after(recipe, group)
            return str(self.workspace(task.group).runs / task.name / "student.safetensors")
        named = (group.teach or {}).get("initial")
        if not named:
            return None
        if self.weights is None:
            raise UsageError(f"group {group.name} begins from {named}; name the folder of that file with --weights")
        path = (self.weights / named).absolute()
        if not path.exists():
            raise UsageError(f"group {group.name} begins from {named}, and there is no {path}")
        return str(path)

    def _early(self, group: Group) -> Path:
        """The weights that a group's teacher had after so many epochs of its training."""
        assert group.early is not None
        run, epoch = self.workspace(group.before).runs / "teacher", group.early["epoch"]
        found = [known for known in kept(run) if known.epoch == epoch]
        if not found:
            raise UsageError(
                f"group {group.name} takes the teacher of {group.before} after epoch {epoch}, and {run} holds no such "
                "weights: keep_weights in its [teach] says of which epochs they are kept, and a teacher that came with "
                "rows has none; go on where it was trained"
            )
        return run / found[-1].file

    def fill(self, group: Group, todo: Sequence[Task]) -> None:
        """Adds to the cache of a group what its tasks lack."""
        workspace = self.workspace(group.name)
        job = merged(workspace, self.extracting(group), todo, self.progress)
        known = open_teacher_cache(workspace.cache) if holds_cache(workspace.cache) else None
        if known is not None:
            refuse_other(known, job)
        if known is None or bytes_to_write(job, known):
            extract(workspace.cache, job, self.progress, self.stop)

    def extracting(self, group: Group) -> ExtractConfig:
        """What `extract` is asked for, but the methods."""
        values = Values("extract", group.extract, f"the recipe's [extract] of group {group.name}")
        return replace(extract_config(values, ""), device=self.device, data_folder=self._data)

    def patiently(self, action: Callable[[], T]) -> T:
        """What an action gives, which is tried again while another process holds what it needs."""
        told = False
        while True:
            try:
                return action()
            except HeldError as error:
                if not told:
                    self.progress.note(f"waiting: {error}")
                told = True
                if self.stop.requested():
                    raise self.stop.stopped("while waiting for another process") from None
                time.sleep(PAUSE)


def of_teacher(record: TeacherRecord) -> dict[str, Any]:
    """What the row of a teacher says in place of what it says of a student."""
    return {
        "test_accuracy": dict.fromkeys(("last", "best", "selected"), record.test_accuracy),
        "validation_accuracy": None,
        "seconds": {},
        "cache": None,
        "weights_sha256": record.sha256,
    }


def same_file(one: Path, other: Path) -> bool:
    """Whether two files hold the same."""
    return one.read_bytes() == other.read_bytes()


def done(task: Task, rows: Sequence[Row]) -> bool:
    """Whether a task has a row with all of its analyses."""
    return any(row["key"] == task.key and set(task.analyze) <= set(row["analyses"]) for row in rows)


def _searching(recipe: Recipe, cell: Cell, rows: Sequence[Row]) -> bool:
    found = searched(recipe, cell, rows) if not cell.skip else None
    return found is not None and found.chosen is None
