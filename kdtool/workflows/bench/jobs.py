"""Trainings whose single steps can be timed: on made-up images, from a cache, with a living teacher or with none.

Memory banks, landmarks and classes are those of a data set of the size of CIFAR-100, so that a step does the work of a
real one. Left out: whole epochs (evaluation, checkpoints).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kdtool.cache import open_cache
from kdtool.data.batches import order_of_epoch
from kdtool.data.dataset import Rows
from kdtool.engine import distill
from kdtool.engine.cached import CachedTeacher
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.job import Job, seeded, stage_recipe
from kdtool.engine.live import living
from kdtool.engine.optim import recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.state import begin, train_mode
from kdtool.engine.train import step
from kdtool.methods.protocol import Method
from kdtool.models import create, tap_shapes
from kdtool.models.taps import TapReader
from kdtool.progress import Silent, StopRequest
from kdtool.targets import Batch, Cached, Expected, Stage, TargetSource
from kdtool.workflows.bench.made_up import dataset, workspace

IMAGES, SAMPLES, CLASSES, BATCH = 1024, 50_000, 100, 128
STEPS = SAMPLES // BATCH  # of an epoch
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
    stages, bound = distill.staged(methods, needs, *both, facts, cache.fitted)
    found = distill.data_of(made, cache, None, Silent())
    return distill.make_job(cache, found, network, stages, bound, needs, config, 2, device, precision)


def alive(made: Workspace, job: Job) -> Job:
    """The same job with the living teacher in place of the cache."""
    cache = open_cache(made.cache)
    assert isinstance(job.source, CachedTeacher)
    asked = prepare(made, ExtractConfig(tuple(bound.method for bound in job.bound), (), batch=BATCH, fit_views=1))
    targets = tuple(target for target in asked.targets if target.key in job.source.arrays)
    return replace(job, source=living(made, cache, job.train.images, targets))


class Steps:
    """A stage of a job that takes steps, `count` in a row each time it is called, as in the middle of an epoch."""

    def __init__(self, job: Job, place: int = 0, count: int = 1) -> None:
        self.job, self.place, self.count = job, place, count
        self.source = None if job.source is None else Timed(job.source)
        self.job = replace(job, source=self.source)
        self.running = begin(self.job, 0)
        for following in range(1, place + 1):
            self.running = begin(self.job, following, self.running)
        self.running.epoch = EPOCH
        train_mode(self.job, self.running)
        self.reader = TapReader(job.student, tuple(dict.fromkeys(tap for bound in job.bound for tap in bound.taps)))
        self.coming: Iterator[torch.Tensor] = iter(())
        self.images: Iterator[torch.Tensor] = iter(())
        self.length = 0

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.job.stages[self.place]

    def __call__(self) -> None:
        """Takes `count` steps, after an epoch of as many as CIFAR-100 has the first of the next one."""
        for _ in range(self.count):
            if not self.length:
                self.epoch([order_of_epoch(0, number, IMAGES)[:BATCH] for number in range(STEPS)])
            self.take(1)

    def epoch(self, positions: Sequence[Rows]) -> None:
        """Begins an epoch of these batches."""
        there = [torch.from_numpy(order).to(self.job.device) for order in positions]
        self.images = self.job.train.images.views((order, 0) for order in positions)
        if self.source:
            self.source.expect(list(zip(there, positions, strict=True)), 1)
        self.coming, self.length = iter(there), len(there)

    def take(self, steps: int) -> None:
        """Takes steps of the epoch, reading images and targets included."""
        plan = stage_recipe(self.job.recipe, self.stage)
        for _ in range(steps):
            self.length -= 1
            step(self.job, self.stage, plan, self.running, self.reader, next(self.coming), 0, STEPS, self.images)


class Timed:
    """A source that counts the seconds for which steps wait for it."""

    def __init__(self, source: TargetSource) -> None:
        self.source, self.seconds, self.batches = source, 0.0, 0

    def expect(self, batches: Sequence[Expected], following: int) -> None:
        """As the source."""
        self.source.expect(batches, following)

    def read(self, batch: Batch) -> Cached:
        """As the source."""
        self.batches += 1
        begun = time.perf_counter()
        found = self.source.read(batch)
        self.seconds += time.perf_counter() - begun
        return TimedAnswers(self, found)

    def taken(self) -> float:
        """The seconds for a batch since it was asked last."""
        seconds, batches = self.seconds, self.batches
        self.seconds, self.batches = 0.0, 0
        return seconds / max(1, batches)


class TimedAnswers(Mapping[str, Mapping[str, torch.Tensor]]):
    """The answers for a batch."""

    def __init__(self, source: Timed, found: Cached) -> None:
        self.source, self.found = source, found

    def __getitem__(self, key: str) -> Mapping[str, torch.Tensor]:
        begun = time.perf_counter()
        arrays = self.found[key]
        self.source.seconds += time.perf_counter() - begun
        return arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)
