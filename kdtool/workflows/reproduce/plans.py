"""What a recipe would take on this device, before anything runs: hours, bytes, and what a living teacher would take.

Seconds come from a few timed batches of each network, bytes from the arrays that the methods ask for. Left out of the
hours: what fits learn, methods' own arithmetic, analyses, probes and evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from kdtool.cache import open_cache
from kdtool.cache.journal import holds_cache
from kdtool.engine import sizes
from kdtool.engine.device import autocast, choose_device, choose_precision, placed, synchronize
from kdtool.engine.job import seeded
from kdtool.models import create
from kdtool.workflows.reproduce.ahead import after, check, trained_epochs
from kdtool.workflows.reproduce.recipe import Cell, Group, Recipe
from kdtool.workflows.reproduce.rows import Row
from kdtool.workflows.reproduce.tasks import Task, basis_of, counted
from kdtool.workflows.reproduce.work import Work, by_group, done

BATCH, ROUNDS = 64, 3  # of the timed steps
HOUR = 3600.0
LIVE = (False, True)  # whether the teacher answers from the cache, or in every step


@dataclass(frozen=True)
class Plan:
    """What one group would take. tasks, left: students of all seeds, and those without a row yet; hours on the device.

    Hours are without those of students that an open search will name, and without probes.
    teach_hours: 0 where the teacher is there. live_hours: what the teacher would add to the students' training if it
    answered in every step. bytes: of the whole cache; held: of it, what is there.
    """

    group: str
    teacher: str
    tasks: int
    left: int
    teach_hours: float
    extract_hours: float
    distill_hours: float
    live_hours: float
    bytes: int
    held: int


def plan(work: Work, asked: Sequence[tuple[Recipe, Sequence[Cell], int]]) -> list[Plan]:
    """A plan for each group, and for those that their teachers come from; asked: recipes, their cells and seeds.

    What several recipes have in common, teacher, cache or tasks, is counted once.
    """
    found: dict[str, Asked] = {}
    for recipe, cells, seeds in asked:
        check(recipe)
        groups = {group.name: group for cell in cells if not cell.skip for group in recipe.chain(cell.group)}
        for name, group in groups.items():
            own_cells = by_group(cells).get(name, [])
            rows = work.standing(recipe, own_cells, seeds) if own_cells else work.rows(recipe, name)
            tasks, more = counted(recipe, own_cells, seeds, rows)
            needed = [
                after(recipe, other)
                for other in groups.values()
                if other.after and other.before == name and not work.workspace(other.name).teacher.exists()
            ]
            own = found.setdefault(basis_of(recipe, name), Asked(recipe, group, rows))
            own.tasks |= {**tasks, **{task.key: task for task in needed}}
            own.cells += own_cells
            own.more += more
    return [_plan(work, one) for one in found.values()]


@dataclass
class Asked:
    """What recipes ask of one group. tasks: by their keys; cells: that ask for them; more: what searches will name."""

    recipe: Recipe
    group: Group
    rows: Sequence[Row]
    tasks: dict[str, Task] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    more: int = 0


def _plan(work: Work, asked: Asked) -> Plan:
    recipe, group = asked.recipe, asked.group
    tasks = {key: task for key, task in asked.tasks.items() if task.config}
    todo = [task for task in tasks.values() if not done(task, asked.rows)]
    students = list({task.name: task for task in todo}.values())  # a student may have several probes
    lesson = work.lesson(recipe, group)
    workspace, teach_epochs = work.workspace(group.name), 0
    if not workspace.teacher.exists():
        kept = work.results.kept_teacher(group.name, recipe.basis(group.name))
        teach_epochs = lesson.recipe.epochs if group.teach and not kept else 0
    job = work.foreseen(recipe, group, list(tasks.values()), asked.cells)
    known = open_cache(workspace.cache) if holds_cache(workspace.cache) else None
    stored = sizes.rows(job, known, sizes.fit_results(job, known)) if tasks else []
    size, unwritten = (sum(row[name] for row in stored) for name in ("bytes", "bytes_to_write"))
    images = job.layout.samples["train"] / HOUR
    clock = Clock(choose_device(work.device), job.layout.classes, tuple(job.identity["data"]["image_shape"]))
    answer = clock.forward(lesson.network)
    epochs = trained_epochs(students, job)
    steps = sum(epochs[task.name] * clock.step(task.config.student) for task in students if task.config)
    answers = {live: sum(epochs[task.name] for task in students if task.live == live and taught(task)) for live in LIVE}
    return Plan(
        group=group.name,
        teacher=lesson.network,
        tasks=len(tasks) + asked.more,
        left=len(todo) + asked.more,
        teach_hours=teach_epochs * images * clock.step(lesson.network) if teach_epochs else 0.0,
        extract_hours=job.views * images * answer * (unwritten / size if size else 0.0),
        distill_hours=images * (steps + answers[True] * answer),
        live_hours=images * answers[False] * answer,
        bytes=size,
        held=size - unwritten,
    )


def taught(task: Task) -> bool:
    """Whether a task has a teacher."""
    return bool(task.config and task.config.methods)


@dataclass
class Clock:
    """Seconds that networks take for one image on a device, in the precision of `auto`; each is timed once."""

    device: torch.device
    classes: int
    shape: tuple[int, ...]
    known: dict[tuple[str, bool], float] = field(default_factory=dict)

    def forward(self, network: str) -> float:
        """Of an answer, in the precision of extract, float32."""
        return self._of(network, training=False)

    def step(self, network: str) -> float:
        """Of a training step."""
        return self._of(network, training=True)

    def _of(self, network: str, training: bool) -> float:
        if (network, training) not in self.known:
            self.known[network, training] = self._timed(network, training)
        return self.known[network, training]

    def _timed(self, network: str, training: bool) -> float:
        precision = choose_precision("auto", self.device) if training else "float32"
        with seeded(0):
            model = placed(create(network, self.classes), self.device, precision).train(training)
        images = torch.rand(BATCH, *self.shape, device=self.device)
        labels = torch.arange(BATCH, device=self.device) % self.classes
        times = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            with torch.set_grad_enabled(training), autocast(self.device, precision):
                logits = model(images)
            if training:
                functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
            synchronize(self.device)
            times.append(time.perf_counter() - begun)
        return min(times) / BATCH
