"""The price of a distillation step from the cache: its time over that of the plain student step, in one run.

    python benchmarks/distill_step.py [--out benchmarks/results/distill_step.json]

A small teacher, a cache of made-up 32x32 images (their content does not change the time), and for each student a plain
job and one for every method. The jobs take their steps in turn, so that what else the machine does meets all of them
alike; the figure is the median of the ratios of neighbouring steps. Reading the targets is part of the step.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdtool import data
from kdtool.cache import open_cache
from kdtool.data import Dataset, Part
from kdtool.data.batches import order_of_epoch
from kdtool.engine import distill as stage
from kdtool.engine.device import choose_device, choose_precision, synchronize
from kdtool.engine.extract import extract
from kdtool.engine.job import Job, seeded
from kdtool.engine.optim import recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.runs import environment
from kdtool.engine.state import begin
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.train import step
from kdtool.engine.workspace import Workspace
from kdtool.methods import method
from kdtool.methods.protocol import Method
from kdtool.models import create, tap_shapes
from kdtool.models.taps import TapReader
from kdtool.progress import Silent, StopRequest
from kdtool.targets import Stage

IMAGES, CLASSES, GOAL = 1024, 100, 1.05


def made_up(folder: Path) -> Dataset:
    """Random images in 100 classes."""
    random = np.random.default_rng(0)
    parts = [
        Part(random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), np.arange(count) % CLASSES)
        for count in (IMAGES, 256)
    ]
    half = (0.5, 0.5, 0.5)
    return Dataset("made_up", parts[0], parts[1], CLASSES, tuple(map(str, range(CLASSES))), half, half, True, "0" * 64)


def make_job(workspace: Workspace, student: str, methods: tuple[Method, ...], batch: int) -> Job:
    """The job of `distill`."""
    cache = open_cache(workspace.cache)
    config = stage.DistillConfig(student, methods, replace(recipe("kda"), epochs=1000, batch=batch, learning_rate=1e-4))
    facts = stage.facts_of(cache, config)
    with seeded(0):
        network = create(student, CLASSES)
    shapes = tap_shapes(network, (3, 32, 32))
    needs = stage.needs_of(methods, shapes, cache.layout.tap_shapes, facts)
    bound = tuple(stage.bind(m, t, shapes, cache, facts, added=False) for m, t in zip(methods, needs.taps, strict=True))
    device = choose_device("auto")
    stages = methods[0].stages(shapes, cache.layout.tap_shapes, facts) if methods else (Stage("train"),)
    found = stage.data_of(workspace, cache, None)
    precision = choose_precision("auto", device)
    return stage.make_job(cache, found, network.to(device), stages, bound, needs, config, 2, device, precision)


def measure(jobs: dict[str, Job], rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """name -> median seconds of a step and median ratio to the plain step beside it."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    running = {name: begin(job, 0) for name, job in jobs.items()}
    readers = {
        name: TapReader(job.student, tuple(dict.fromkeys(tap for bound in job.bound for tap in bound.taps)))
        for name, job in jobs.items()
    }
    for state in running.values():
        state.epoch = 50  # every term is active
    for number in range(rounds + 2):
        order = order_of_epoch(0, number, IMAGES)[:batch]
        names = list(jobs) if number % 2 else list(reversed(jobs))
        for name in names:
            job = jobs[name]
            synchronize(job.device)
            begun = time.perf_counter()
            step(job, job.stages[0], job.recipe, running[name], readers[name], order, 0, IMAGES // batch)
            synchronize(job.device)
            if number >= 2:
                times[name].append(time.perf_counter() - begun)
    return {
        name: {
            "seconds": statistics.median(taken),
            "ratio": statistics.median(a / b for a, b in zip(taken, times["none"], strict=True)),
        }
        for name, taken in times.items()
    }


def main() -> None:
    """Measures and prints; writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "distill_step.json")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--students", nargs="+", default=["resnet8", "resnet20", "wrn_16_2"])
    parser.add_argument("--batch", type=int, default=128)
    asked = parser.parse_args()
    data.DATASETS["made_up"] = made_up
    device = choose_device("auto")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        plan = replace(recipe("kda"), epochs=1, batch=asked.batch)
        teach(Workspace(folder), TeachConfig("made_up", "wrn_16_2", plan, views=2), Silent(), StopRequest())
        workspace = Workspace.open(folder)
        extract(workspace.cache, prepare(workspace, ExtractConfig()), Silent(), StopRequest())
        both = {"layers": "before_fc,after_fc"}
        methods: dict[str, tuple[Method, ...]] = {
            "none": (),
            "kd": (method("kd"),),
            "kda before_fc": (method("kda"),),
            "kda both": (method("kda").with_options(both),),
        }
        for student in asked.students:
            jobs = {name: make_job(workspace, student, chosen, asked.batch) for name, chosen in methods.items()}
            figures[student] = measure(jobs, asked.rounds, asked.batch)
            for name, row in figures[student].items():
                print(f"{student:10} {name:14} {1000 * row['seconds']:8.1f} ms   {row['ratio']:.3f}", flush=True)
    worst = max(row["ratio"] for rows in figures.values() for row in rows.values())
    print(f"worst ratio {worst:.3f}, goal at most {GOAL}")
    machine = environment(device, choose_precision("auto", device))
    asked.out.parent.mkdir(exist_ok=True)
    record = {"batch": asked.batch, "rounds": asked.rounds, "machine": machine, "students": figures, "worst": worst}
    asked.out.write_text(json.dumps({**record, "goal": GOAL}, indent=1) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
