"""A made-up data set of 96 images in 4 classes, and an extract of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from kdtool.data import Dataset, Part, content_digest
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.progress import Silent, StopRequest

PLAN = replace(recipe("kda"), epochs=3, batch=32, learning_rate=0.05)


def made_up(folder: Path) -> Dataset:
    random = np.random.default_rng(5)
    patterns = random.integers(0, 256, (4, 3, 16, 16))

    def part(count: int) -> Part:
        labels = np.arange(count) % 4
        noise = random.integers(-60, 60, (count, 3, 16, 16))
        return Part(np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels.astype(np.int64))

    train, test = part(96), part(40)
    half = (0.5, 0.5, 0.5)
    return Dataset("made_up", train, test, 4, tuple("abcd"), half, half, True, content_digest(train, test))


def run_extract(folder: Path, **options: object) -> Workspace:
    workspace = Workspace.open(folder)
    asked = ExtractConfig(**{"batch": 16, "block": 32, **options})  # type: ignore[arg-type]
    extract(workspace.cache, prepare(workspace, asked), Silent(), StopRequest())
    return workspace
