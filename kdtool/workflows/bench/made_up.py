"""Made-up images and a working folder with a teacher that nobody trained: what a stage costs depends on neither.

Left out: pictures in files, which `kdtool.workflows.bench.reading` writes where it needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import nn

from kdtool.data import DATASETS, Dataset, Part, content_digest
from kdtool.data.preparation import rule_for
from kdtool.data.splits import make_split
from kdtool.engine.folder import Workspace
from kdtool.engine.job import seeded
from kdtool.engine.workspace import answer, architecture, write_teacher
from kdtool.models import create

NAME = "made up"
TINY = f"{__name__}:tiny"
SHAPE = (3, 32, 32)
HALF = (0.5, 0.5, 0.5)


def dataset(images: int, classes: int = 100, test: int = 256) -> Dataset:
    """Random pixels (n, 3, 32, 32) to train and to test, the classes in turn; the same on every machine."""
    draw = np.random.default_rng(0)

    def part(count: int) -> Part:
        return Part(draw.integers(0, 256, (count, *SHAPE), dtype=np.uint8), np.arange(count, dtype=np.int64) % classes)

    train, held = part(images), part(test)
    names = tuple(f"class{number}" for number in range(classes))
    return Dataset(NAME, train, held, classes, names, HALF, HALF, True, content_digest(train, held))


def tiny(classes: int) -> nn.Module:
    """A network that costs next to nothing, with a vector of 512 before its classifier."""
    inner = (nn.Conv2d(3, 16, 3, stride=8, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 512), nn.ReLU())
    return nn.Sequential(*inner, nn.Linear(512, classes))


def offer(data: Dataset) -> None:
    """Lets `kdtool.data.load` find it in this process, in place of one that was offered before."""
    DATASETS[data.name] = lambda folder: data


@contextmanager
def registry_kept() -> Iterator[None]:
    """What is offered while the block runs is gone after it."""
    before = dict(DATASETS)
    try:
        yield
    finally:
        DATASETS.clear()
        DATASETS.update(before)


def workspace(folder: Path, data: Dataset, teacher: str, student: str, views: int) -> Workspace:
    """A working folder as `kdtool teach` leaves it, its teacher with the weights of seed 0; the data set is offered."""
    offer(data)
    folder.mkdir(parents=True, exist_ok=True)
    with seeded(0):
        model = create(teacher, data.classes)
    rule, shape = rule_for(data)
    about = {
        "network": teacher,
        "classes": data.classes,
        "data": data.name,
        "data_digest": data.digest,
        "image_shape": shape,
        "mean": data.mean,
        "std": data.std,
        "augmentation": rule.rule(),
        "taps": {},
        "architecture": architecture(teacher, model),
        "seed": 0,
        "answer": answer(model, shape),
        "test_accuracy": 1.0,
    }
    made = Workspace(folder)
    record = write_teacher(made.teacher, model, make_split(data.train.labels, data.classes), about)
    settings = {
        "data": data.name,
        "teacher": made.teacher.name,
        "teacher_sha256": record.sha256,
        "split_digest": record.split_digest,
        "student": student,
        "cache": made.cache.name,
        "views": views,
    }
    made.write(settings)
    return Workspace.open(folder)
