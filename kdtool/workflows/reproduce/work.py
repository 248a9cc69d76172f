"""Runs the tasks of recipes: a working folder for each group, its teacher, its cache, students, analyses, rows.

Everything can be stopped at any step and goes on from there; what has a row is not run again. Several processes may
share one folder: each makes its share of the cells, and one of them teacher and cache while the others wait. Left out:
what the tasks are (tasks), where rows lie (rows).
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kdtool import files
from kdtool.analysis.kept import read_results
from kdtool.analysis.pairs import Asked
from kdtool.analysis.probe import probe, probe_config
from kdtool.cache import Cache, could_open
from kdtool.cache.manifest import Manifest
from kdtool.engine.configuration import Values, extract_config, teach_config
from kdtool.engine.device import choose_device
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import check as check_cache
from kdtool.engine.extract import extract
from kdtool.engine.extraction import Extraction
from kdtool.engine.folder import DEFAULT_VIEWS, Workspace
from kdtool.engine.keeping import kept
from kdtool.engine.prepare import ExtractConfig
from kdtool.engine.sizes import bytes_to_write
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.together import check_sync_bn
from kdtool.engine.workspace import TeacherRecord, read_record, record_path
from kdtool.errors import HeldError, IdentityError, NonFiniteError, UsageError
from kdtool.progress import Progress, StopRequest
from kdtool.workflows.reproduce.ahead import after, check, check_probes, foreseen, merged, teaching
from kdtool.workflows.reproduce.measures import ANALYSES
from kdtool.workflows.reproduce.recipe import Cell, Group, Recipe
from kdtool.workflows.reproduce.rows import DIGITS, ORIGIN, Results, Row, copy_teacher
from kdtool.workflows.reproduce.tasks import (
    Task,
    basis_of,
    by_teacher,
    counted,
    last,
    no_validation,
    searched,
    share_of,
    tasks,
    wanted,
)

T = TypeVar("T")
DIVERGED: dict[str, Any] = {  # what is known of a student whose training came to infinite or NaN numbers
    "test_accuracy": None,
    "validation_accuracy": None,
    "seconds": {},
    "cache": None,
    "weights_sha256": None,
    "analyses": {},
    "probe": None,
}
PAUSE = 2.0  # seconds between two looks at what another process holds


@dataclass(frozen=True)
class Work:
    """Where and how recipes run. data: folder of the data sets' files; weights: of those that teachers begin from.

    allow_mixed: lets other devices and versions of torch add to the caches that are there.
    """

    folder: Path
    results: Results
    progress: Progress
    stop: StopRequest
    data: Path | None = None
    weights: Path | None = None
    device: str = "auto"
    allow_mixed: bool = False

    def workspace(self, group: str) -> Workspace:
        """The working folder of a group."""
        return Workspace.open(self.folder / group)

    def run(self, asked: Sequence[tuple[Recipe, Sequence[Cell], int]]) -> int:
        """Runs what has no row yet; gives the number of cells that wait for the search of another share.

        asked: recipes, their cells and seeds; of all of them it is seen to that they can be run before any is.
        """
        check_together(asked)
        with self.results.writing():
            for recipe, cells, seeds in asked:
                self._foresee(recipe, by_group(cells), seeds)
            return sum(self._run(*one) for one in asked)

    def _run(self, recipe: Recipe, cells: Sequence[Cell], seeds: int) -> int:
        """Runs a recipe until nothing of this share is left, also of what searches have named in the meantime."""
        groups = by_group(cells)
        while True:
            for group, chosen in groups.items():
                if todo := self._todo(recipe, chosen, seeds):
                    self._run_all(recipe, group, todo)
            waiting = sum(_searching(recipe, own, self.standing(recipe, own, seeds)) for own in groups.values())
            if not any(self._todo(recipe, chosen, seeds) for chosen in groups.values()):
                return waiting

    def _foresee(self, recipe: Recipe, groups: Mapping[str, Sequence[Cell]], seeds: int) -> None:
        """Refuses what could not be run to its end, of all groups before the first one's training."""
        asked: dict[str, list[Task]] = {}
        for name, cells in groups.items():
            rows = self.standing(recipe, cells, seeds)
            todo = [task for task in counted(recipe, cells, seeds, rows)[0].values() if not done(task, rows)]
            if not rows and (lost := self.rows(recipe, name)):
                teacher = lost[0]["teacher"]["sha256"][:DIGITS]
                self.progress.note(f"{name}: {len(lost)} rows are of the teacher {teacher}, which is not here any more")
            links = self.links(recipe, name) if todo else []
            for group in links:
                asked.setdefault(group.name, [])
            for group in links[1:]:
                asked[group.before] += [after(recipe, group)] if group.after else []
                if group.early and group.before == links[0].name and self.has_teacher(recipe, links[0]):
                    self._early(group)  # which a teacher that came with rows has not
            if todo:
                asked[name] += todo
        for name, todo in asked.items():
            group = recipe.groups[name]
            initial = None
            if group.teach and not self.has_teacher(recipe, group):
                check_sync_bn(self.lesson(recipe, group).sync_bn, choose_device(self.device))
                initial = self._first_weights(recipe, group)
            self.foreseen(recipe, group, todo, groups.get(name, ()), initial)

    def foreseen(
        self,
        recipe: Recipe,
        group: Group,
        todo: Sequence[Task],
        cells: Sequence[Cell] = (),
        initial: str | None = None,
    ) -> Extraction:
        """The extract of what a group's tasks need; UsageError for what could not be run. See `ahead.foreseen`.

        cells: of the group, some of which may search; initial: file of weights that its teacher will begin from.
        IdentityError where its folder holds the teacher of another recipe.
        """
        self._origin(recipe, group)
        workspace = self.workspace(group.name) if self._made(group) else None
        searching = [cell for cell in cells if cell.search and not cell.skip]
        todo = [*todo, *(task for cell in searching for task in last(recipe, cell))] if todo else todo
        for config in (task.config for task in todo if task.config):
            check_sync_bn(config.sync_bn, choose_device(self.device))
        lesson = self.lesson(recipe, group)
        lesson = replace(lesson, initial=initial, as_is=lesson.as_is and initial is not None)
        every = [task for cell in recipe.cells if cell.group == group.name for task in tasks(recipe, cell, 1, [])]
        job = foreseen(workspace, lesson, self.extracting(group), todo, every, self.progress)
        check_probes(todo, job, self._data, self.progress)
        if workspace is not None and any(task.distill for task in todo):
            self._lacking(group, job)
        if searching and "validation" not in job.layout.samples:
            raise no_validation(searching[0])
        return job

    def _lacking(self, group: Group, job: Extraction) -> bool:
        """Whether the cache of a group, whose teacher is here, lacks something; refuses one that cannot be added to."""
        path = self.workspace(group.name).cache
        lacking = bool(bytes_to_write(job, could_open(path, dict(job.identity), job.layout)))
        if lacking:
            check_cache(path, job, room=False)
        return lacking

    def cache_for(self, group: Group, job: Extraction) -> Cache:
        """The cache of a group, an empty one where its teacher is not here."""
        path = self.workspace(group.name).cache
        if self._made(group):
            return could_open(path, dict(job.identity), job.layout)
        return Cache(path, Manifest(dict(job.identity), job.layout))

    def _made(self, group: Group) -> bool:
        """Whether the teacher of a group is here."""
        return (self.folder / group.name / ORIGIN).exists() and self.workspace(group.name).teacher.exists()

    def has_teacher(self, recipe: Recipe, group: Group) -> bool:
        """Whether the teacher of a group is here, or was kept with the rows."""
        return self._made(group) or self.results.kept_teacher(group.name, recipe.basis(group.name)) is not None

    def links(self, recipe: Recipe, name: str) -> list[Group]:
        """The groups whose teachers a group's own comes from, from the last on that has one; the group itself is last.

        What lies before that is not asked for again.
        """
        chain = list(recipe.chain(name))
        there = [number for number, group in enumerate(chain) if self.has_teacher(recipe, group)]
        return chain[max(there, default=0) :]

    def _todo(self, recipe: Recipe, cells: Sequence[Cell], seeds: int) -> list[Task]:
        """This share's tasks that have no row, each once; the first seed of all cells before the second of any."""
        rows = self.standing(recipe, cells, seeds)
        own = share_of(wanted(recipe, cells, seeds, rows).values(), self.results.share)
        return sorted((task for task in own if not done(task, rows)), key=lambda task: task.seed)

    def rows(self, recipe: Recipe, group: str) -> list[Row]:
        """The rows of a group's teacher; where it is gone and was not kept, of the one that has most of them."""
        rows = self.results.rows(group) if group else []
        digests = Counter(row["teacher"]["sha256"] for row in rows)
        fullest = digests.most_common(1)[0][0] if digests else ""
        digest = self._digest(recipe, group) or fullest
        return [row for row in rows if row["teacher"]["sha256"].startswith(digest)]

    def standing(self, recipe: Recipe, cells: Sequence[Cell], seeds: int) -> list[Row]:
        """The rows of a group that need not be made again; cells: of this group.

        Where its teacher is gone and something is missing, none: another one will be trained, with rows of its own.
        """
        group = cells[0].group
        rows = self.rows(recipe, group)
        if self._digest(recipe, group):
            return rows
        every = by_teacher(self.results.rows(group) if group else []).values()
        return next((own for own in every if complete(recipe, cells, seeds, own)), [])

    def _digest(self, recipe: Recipe, group: str) -> str:
        """How the SHA-256 of a group's teacher begins, where it is here or lies with rows; else empty."""
        if not group:
            return ""
        root = recipe.root(group)
        for name in (group, root):
            if record_path(self.workspace(name).teacher).exists():
                return read_record(self.workspace(name).teacher).sha256
        kept = self.results.kept_teacher(root, recipe.basis(root))
        return kept.parent.name if kept else ""

    def _run_all(self, recipe: Recipe, group: str, todo: Sequence[Task]) -> None:
        views = self.patiently(lambda: self.prepare(recipe, group, todo))
        rows = self.rows(recipe, group)  # now that the teacher is known
        todo = [task for task in todo if not done(task, rows)]
        for number, task in enumerate(todo):
            self.progress.note(f"{recipe.name}, {group}: {number + 1} of {len(todo)}, {task.name}, seed {task.seed}")
            if self.stop.requested():
                raise self.stop.stopped(f"before {task.name}")
            row = self.patiently(functools.partial(self.row, task, views))
            if row.get("diverged"):
                self.progress.note(f"{task.name} has diverged, and its row says so: {row['diverged']}")
            self.results.add(row)

    def prepare(self, recipe: Recipe, group: str, todo: Sequence[Task]) -> int:
        """Makes teacher and cache of a group, as far as its tasks need them; gives the cache's views, 0 for none."""
        self.teacher(recipe, recipe.groups[group])
        return self.fill(recipe.groups[group], todo) if any(task.distill for task in todo) else 0

    def row(self, task: Task, views: int) -> Row:
        """Runs a task, of views that its recipe leaves open so many; gives its row, also of one that has diverged."""
        workspace = self.workspace(task.group)
        record, run = read_record(workspace.teacher), workspace.runs / task.name
        environment = run / "environment.json"
        try:
            found = {
                **(self._trained(task, task.config, views) if task.config else of_teacher(record)),
                "analyses": self._analysed(task, workspace, run),
                "probe": self._probed(task, run) if task.probe else None,
            }
        except NonFiniteError as error:
            found = {**DIVERGED, "diverged": str(error)}
        return {
            "key": task.key,
            "group": task.group,
            "seed": task.seed,
            "config": task.asked,
            "live": task.live,
            "teacher": {name: getattr(record, name) for name in ("network", "sha256", "test_accuracy")},
            **found,
            "environment": files.read_json(environment, "remove the run") if environment.exists() else None,
        }

    def _trained(self, task: Task, config: DistillConfig, views: int) -> dict[str, Any]:
        """What a row says of a student."""
        views = config.views or (0 if task.live else views)
        asked = replace(config, name=task.name, views=views, device=self.device, data_folder=self._data)
        result = distill(self.workspace(task.group), asked, self.progress, self.stop, live=task.live)
        taken = ("network", "parameters", "method", "options", "stages", "views", "samples", "epochs", "batch", "cache")
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

    def teacher(self, recipe: Recipe, group: Group) -> None:
        """Makes the teacher of a group, unless it is there: the one that was kept, or a new one."""
        for before in self.links(recipe, group.name):
            with files.lock(self.folder / before.name / "group.lock", "making the teacher of"):
                self._teacher(recipe, before)

    def _teacher(self, recipe: Recipe, group: Group) -> None:
        """Sees to it that the teacher is there; the record of its origin is written last."""
        workspace, origin, held = self.workspace(group.name), recipe.basis(group.name), self._origin(recipe, group)
        if held is None or not workspace.teacher.exists():
            if place := self._kept(group, origin):
                self.progress.note(f"{group.name}: the teacher that was kept in {place}")
                copy_teacher(Workspace.open(place), workspace.folder, origin, self.lesson(recipe, group).data_folder)
            else:
                self.progress.note(f"{group.name}: teacher")
                self._make_teacher(recipe, group, origin)
        self._keep(group, origin)

    def _origin(self, recipe: Recipe, group: Group) -> dict[str, Any] | None:
        """What the teacher in a group's folder was made of, which is what the recipe says; None where there is none."""
        folder, origin = self.folder / group.name, recipe.basis(group.name)
        path = folder / ORIGIN
        held = files.read_json(path, f"remove {folder}") if path.exists() else None
        if held not in (None, origin):
            raise IdentityError(
                f"{folder} holds the teacher of another recipe ({path.name} says {held}, wanted is {origin}); name "
                "another --folder, or remove it"
            )
        return held

    def _kept(self, group: Group, origin: dict[str, Any]) -> Path | None:
        """The folder of the teacher that lies with the rows, unless another one is here already."""
        place, record = self.results.kept_teacher(group.name, origin), record_path(self.workspace(group.name).teacher)
        return place if place and (not record.exists() or same_file(record, place / record.name)) else None

    def _make_teacher(self, recipe: Recipe, group: Group, origin: dict[str, Any]) -> None:
        folder, lesson = self.folder / group.name, self.lesson(recipe, group)
        if group.teacher:
            copy_teacher(self.workspace(group.teacher), folder, origin, lesson.data_folder)
            return
        if group.after:
            task = after(recipe, group)
            assert task.config is not None
            self._trained(task, task.config, self.fill(recipe.groups[task.group], [task]))
        as_is = lesson.as_is or group.teach is None
        config = replace(lesson, initial=self._first_weights(recipe, group), as_is=as_is)
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
        own = str(Path(config.data_folder).absolute()) if config.data_folder else None
        return replace(config, data_folder=self._data or own)

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

    def fill(self, group: Group, todo: Sequence[Task]) -> int:
        """Adds to the cache of a group what its tasks lack; gives the number of views that the recipe means.

        The cache may hold more: somebody else's `extract` is no part of the recipe.
        """
        workspace, base = self.workspace(group.name), self.extracting(group)
        base = replace(base, views=base.views or int(workspace.settings.get("views", DEFAULT_VIEWS)))
        job = merged(workspace, base, todo, self.progress)
        if self._lacking(group, job):
            extract(workspace.cache, job, self.progress, self.stop)
        return job.views

    def extracting(self, group: Group) -> ExtractConfig:
        """What `extract` is asked for, but the methods."""
        values = Values("extract", group.extract, f"the recipe's [extract] of group {group.name}")
        asked = extract_config(values, "")
        mixed = asked.allow_mixed or self.allow_mixed
        return replace(asked, device=self.device, data_folder=self._data, allow_mixed=mixed)

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


def check_together(asked: Sequence[tuple[Recipe, Sequence[Cell], int]]) -> None:
    """Refuses what a recipe says wrongly, and two recipes that make teacher or cache of one folder differently."""
    known: dict[tuple[str, str], tuple[str, str]] = {}
    for recipe, cells, _ in asked:
        check(recipe)
        for name in dict.fromkeys(cell.group for cell in cells if cell.group and not cell.skip):
            meant = {(link.name, "teacher"): files.digest(recipe.basis(link.name)) for link in recipe.chain(name)}
            for (title, kind), basis in {**meant, (name, "cache"): basis_of(recipe, name)}.items():
                before, other = known.setdefault((title, kind), (basis, recipe.name))
                if before != basis:
                    raise UsageError(
                        f"group {title} is another one in recipe {recipe.name} than in {other}: its teacher or cache "
                        "would be made otherwise; call one of them differently, or run the recipes in folders of their "
                        "own"
                    )


def complete(recipe: Recipe, cells: Sequence[Cell], seeds: int, rows: Sequence[Row]) -> bool:
    """Whether rows hold all that cells of a group ask for, students that searches have named among them."""
    tasks, more = counted(recipe, cells, seeds, rows)
    return not more and all(done(task, rows) for task in tasks.values())


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


def by_group(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """group -> its cells that can be run."""
    groups = dict.fromkeys(cell.group for cell in cells if not cell.skip)
    return {group: [cell for cell in cells if cell.group == group and not cell.skip] for group in groups}


def done(task: Task, rows: Sequence[Row]) -> bool:
    """Whether a task has a row with all of its analyses, of which there are none of a training that diverged."""
    return any(
        row["key"] == task.key and (row.get("diverged") or set(task.analyze) <= set(row["analyses"])) for row in rows
    )


def _searching(recipe: Recipe, cells: Sequence[Cell], rows: Sequence[Row]) -> int:
    """How many of a group's cells have searches that are not done."""
    return sum(found is not None and found.chosen is None for cell in cells for found in [searched(recipe, cell, rows)])
