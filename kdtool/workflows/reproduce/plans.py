"""What a recipe would take on this device, before anything runs: hours, bytes, and what a living teacher would take.

Seconds come from a few timed batches of each network, bytes from the arrays that the methods ask for. Left out of the
hours: what fits learn, methods' own arithmetic, analyses, probes and evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from kdtool.engine import sizes
from kdtool.engine.device import autocast, choose_device, choose_precision, placed, synchronize
from kdtool.engine.job import seeded
from kdtool.models import create
from kdtool.workflows.costs import array_batches
from kdtool.workflows.reproduce.ahead import after, trained_epochs
from kdtool.workflows.reproduce.recipe import Cell, Group, Recipe
from kdtool.workflows.reproduce.tasks import Task, basis_of, counted
from kdtool.workflows.reproduce.work import Work, by_group, check_together, done

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
    check_together(asked)
    for recipe, cells, seeds in asked:

        def of(name: str, recipe: Recipe = recipe) -> Asked:
            return found.setdefault(basis_of(recipe, name), Asked(recipe, recipe.groups[name]))

        for name, own_cells in by_group(cells).items():
            rows = work.standing(recipe, own_cells, seeds)
            tasks, more = counted(recipe, own_cells, seeds, rows)
            todo = {key: task for key, task in tasks.items() if not done(task, rows)}
            links = work.links(recipe, name) if todo or more else []
            for link in links:
                of(link.name).needed = True
            for task in (after(recipe, link) for link in links[1:] if link.after):
                of(task.group).add({task.key: task}, {task.key: task})
            own = of(name)
            own.add(tasks, todo)
            own.cells += own_cells
            own.more |= {search: max(left, own.more.get(search, 0)) for search, left in more.items()}
    return [_plan(work, one) for one in found.values()]


@dataclass
class Asked:
    """What recipes ask of one group.

    tasks: by their keys; todo: of them, those without rows; cells: that ask for them; more: students that open searches
    will name. needed: whether the teacher is, since something is left to be run.
    """

    recipe: Recipe
    group: Group
    tasks: dict[str, Task] = field(default_factory=dict)
    todo: dict[str, Task] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    more: dict[tuple[str, ...], int] = field(default_factory=dict)
    needed: bool = False

    def add(self, tasks: Mapping[str, Task], todo: Mapping[str, Task]) -> None:
        """Adds tasks about students."""
        self.tasks |= {key: task for key, task in tasks.items() if task.config}
        self.todo |= {key: task for key, task in todo.items() if task.config}


def _plan(work: Work, asked: Asked) -> Plan:
    recipe, group, tasks, todo = asked.recipe, asked.group, list(asked.tasks.values()), list(asked.todo.values())
    students = list({task.name: task for task in todo}.values())  # a student may have several probes
    lesson, more = work.lesson(recipe, group), sum(asked.more.values())
    trained = asked.needed and group.teach and not lesson.as_is and not work.has_teacher(recipe, group)
    job = work.foreseen(recipe, group, tasks, asked.cells)
    known = work.cache_for(group, job)
    stored = sizes.rows(job, known, sizes.fit_results(job, known)) if tasks else []
    size, unwritten = (sum(row[name] for row in stored) for name in ("bytes", "bytes_to_write"))
    images = job.layout.samples["train"] / HOUR
    clock = Clock(choose_device(work.device), job.layout.classes, tuple(job.identity["data"]["image_shape"]))
    answer = clock.forward(lesson.network)
    epochs, teach_epochs = trained_epochs(students, job), lesson.recipe.epochs if trained else 0
    steps = sum(epochs[task.name] * clock.step(task.config.student) for task in students if task.config)
    taught = [task for task in students if task.config and task.config.methods]
    answers = {live: sum(epochs[task.name] for task in taught if task.live == live) for live in LIVE}
    return Plan(
        group=group.name,
        teacher=lesson.network,
        tasks=len(tasks) + more,
        left=len(todo) + more,
        teach_hours=teach_epochs * images * clock.step(lesson.network) if teach_epochs else 0.0,
        extract_hours=array_batches(job, known).total() * job.layout.batch * answer / HOUR if size and todo else 0.0,
        distill_hours=images * (steps + answers[True] * answer),
        live_hours=images * answers[False] * answer,
        bytes=size,
        held=size - unwritten,
    )


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
