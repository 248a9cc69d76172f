"""Trainings whose single steps can be timed: on made-up images, from a cache, with a living teacher or with none.

Memory banks, landmarks and classes are those of a data set of the size of CIFAR-100, so that a step does the work of a
real one. Left out: whole epochs (evaluation, checkpoints).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdtool.cache import open_cache
from kdtool.data.batches import order_of_epoch
from kdtool.engine import distill
from kdtool.engine.extract import extract
from kdtool.engine.job import Job, seeded, stage_recipe
from kdtool.engine.optim import recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.sources import CachedTeacher, LiveTeacher, Teller, as_tensors
from kdtool.engine.state import Running, begin, train_mode
from kdtool.engine.train import step
from kdtool.engine.workspace import Workspace
from kdtool.methods.protocol import Method
from kdtool.models import create, tap_shapes
from kdtool.models.taps import TapReader
from kdtool.progress import Silent, StopRequest
from kdtool.targets import Batch, Cached, Stage
from kdtool.workflows.bench.made_up import dataset, workspace

IMAGES, SAMPLES, CLASSES, BATCH = 1024, 50_000, 100, 128
EPOCH = 50  # in which every term of every method is active


def filled(folder: Path, teacher: str, student: str, methods: tuple[Method, ...]) -> Workspace:
    """A working folder with a cache of what some methods need, its grid the batch of the steps."""
    made = workspace(folder, dataset(IMAGES, CLASSES), teacher, student, 2)
    add_targets(made, student, methods)
    return made


def add_targets(made: Workspace, student: str, methods: tuple[Method, ...]) -> None:
    """Adds what some methods need for one more student."""
    asked = ExtractConfig(methods, (student,) if methods else (), batch=BATCH, fit_views=1)
    extract(made.cache, prepare(made, asked), Silent(), StopRequest())


def make_job(made: Workspace, student: str, methods: tuple[Method, ...], device: torch.device, precision: str) -> Job:
    """The job of `distill`, with as many samples as CIFAR-100 has as far as its methods know."""
    cache = open_cache(made.cache)
    plan = replace(recipe("kda"), epochs=1000, batch=BATCH, learning_rate=1e-4)
    config = distill.DistillConfig(student, methods, plan)
    facts = replace(distill.facts_of(cache, config), samples=SAMPLES, labels=np.arange(SAMPLES) % CLASSES)
    with seeded(0):
        network = create(student, CLASSES)
    both = (tap_shapes(network, (3, 32, 32)), cache.layout.tap_shapes)
    needs = distill.needs_of(methods, *both, facts)
    pairs = zip(methods, needs.taps, strict=True)
    bound = tuple(distill.bind(item, taps, both[0], cache, facts, added=False) for item, taps in pairs)
    stages = methods[0].stages(*both, facts) if methods else (Stage("train"),)
    found = distill.data_of(made, cache, None, Silent())
    return distill.make_job(cache, found, network, stages, bound, needs, config, 2, device, precision)


def alive(made: Workspace, job: Job) -> Job:
    """The same job with the living teacher in place of the cache."""
    cache = open_cache(made.cache)
    assert isinstance(job.source, CachedTeacher)
    asked = prepare(made, ExtractConfig(tuple(bound.method for bound in job.bound), (), batch=BATCH, fit_views=1))
    targets = tuple(target for target in asked.targets if target.key in job.source.arrays)
    fitted = {target.fit.key: as_tensors(cache.fitted(target.fit.key), job.device) for target in targets if target.fit}
    teller = Teller(asked.model, targets, fitted, BATCH, asked.precision)
    return replace(job, source=LiveTeacher(teller, job.train.images, "float16"))


@dataclass
class Steps:
    """A stage of a job that takes steps, `count` in a row each time it is called."""

    job: Job
    place: int = 0
    count: int = 1
    taken: int = 0
    running: Running = field(init=False)
    reader: TapReader = field(init=False)

    def __post_init__(self) -> None:
        self.running = begin(self.job, 0)
        for following in range(1, self.place + 1):
            self.running = begin(self.job, following, self.running)
        self.running.epoch = EPOCH
        train_mode(self.job, self.running)
        taps = tuple(dict.fromkeys(tap for bound in self.job.bound for tap in bound.taps))
        self.reader = TapReader(self.job.student, taps)

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.job.stages[self.place]

    def order(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The positions of the next batch."""
        self.taken += 1
        return order_of_epoch(0, self.taken, IMAGES)[:BATCH]

    def __call__(self) -> None:
        """Takes steps, reading images and targets included."""
        plan, orders = stage_recipe(self.job.recipe, self.stage), [self.order() for _ in range(self.count)]
        images = self.job.train.images.views((order, 0) for order in orders)
        for order in orders:
            there = torch.from_numpy(order).to(self.job.device)
            step(self.job, self.stage, plan, self.running, self.reader, there, 0, IMAGES // BATCH, images)

    def batch(self) -> Batch:
        """A batch as a step asks its source for it."""
        there = torch.from_numpy(self.order()).to(self.job.device)
        labels, running = self.job.train.labels[there], self.running
        return Batch(there, labels, 0, self.stage.name, running.epoch, 0, running.generator)


@dataclass
class Reading:
    """Reads again and again what a step reads of the cache, and nothing else."""

    steps: Steps
    asked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        source = self.steps.job.source
        assert isinstance(source, CachedTeacher)
        watched = Watched(source)
        self.steps.job = replace(self.steps.job, source=watched)
        self.steps()
        self.steps.job = replace(self.steps.job, source=source)
        self.asked = watched.keys

    def __call__(self) -> None:
        """The targets of as many batches as there are steps."""
        source = self.steps.job.source
        assert source is not None
        for _ in range(self.steps.count):
            found = source.read(self.steps.batch())
            for key in self.asked:
                found[key]

    def slices(self) -> None:
        """The slices of a whole view, as at the beginning of an epoch."""
        assert isinstance(self.steps.job.source, CachedTeacher)
        self.steps.job.source.current = None
        self()


class Watched:
    """A source that remembers which keys the last batch was asked for."""

    def __init__(self, source: CachedTeacher) -> None:
        self.source = source
        self._last: Cached = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys."""
        held: Mapping[str, object] = getattr(self._last, "held", {})
        return tuple(held)

    def read(self, batch: Batch) -> Cached:
        """As the source."""
        self._last = self.source.read(batch)
        return self._last

    def ahead(self, view: int) -> None:
        """As the source."""
