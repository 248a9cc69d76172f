"""The price of a distillation step from the cache: its time over that of the plain student step, in one run.

    python benchmarks/distill_step.py [--out benchmarks/results/distill_step.json]

A small teacher, a cache of made-up 32x32 images (their content does not change the time), and for each student a plain
job and one for every method and stage. Each takes its steps beside a plain one, so that what else the machine does
meets both alike; the figure is the median of the ratios of neighbouring steps. Reading the targets is part of the step.
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
from kdtool.engine.folder import Workspace
from kdtool.engine.job import Job, seeded, stage_recipe
from kdtool.engine.optim import recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.runs import environment
from kdtool.engine.state import Running, begin, train_mode
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.train import step
from kdtool.errors import UsageError
from kdtool.methods import METHODS, method
from kdtool.methods.protocol import Method
from kdtool.models import create, tap_shapes
from kdtool.models.taps import TapReader
from kdtool.progress import Silent, StopRequest
from kdtool.targets import Stage
from kdtool.workflows.catalogue import catalogue

IMAGES, SAMPLES, CLASSES, GOAL = 1024, 50_000, 100, 1.05
TEACHER = "wrn_16_2"


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
    """The job of `distill`; memory banks and landmarks are those of a data set of the size of CIFAR-100."""
    cache = open_cache(workspace.cache)
    config = stage.DistillConfig(student, methods, replace(recipe("kda"), epochs=1000, batch=batch, learning_rate=1e-4))
    facts = replace(stage.facts_of(cache, config), samples=SAMPLES, labels=np.arange(SAMPLES) % CLASSES)
    with seeded(0):
        network = create(student, CLASSES)
    both = (tap_shapes(network, (3, 32, 32)), cache.layout.tap_shapes)
    needs = stage.needs_of(methods, *both, facts)
    pairs = zip(methods, needs.taps, strict=True)
    bound = tuple(stage.bind(item, taps, both[0], cache, facts, added=False) for item, taps in pairs)
    device = choose_device("auto")
    stages = methods[0].stages(*both, facts) if methods else (Stage("train"),)
    found = stage.data_of(workspace, cache, None, Silent())
    precision = choose_precision("auto", device)
    return stage.make_job(cache, found, network.to(device), stages, bound, needs, config, 2, device, precision)


def started(job: Job, number: int) -> Running:
    """A stage of a job in an epoch in which every term is active."""
    running = begin(job, 0)
    for following in range(1, number + 1):
        running = begin(job, following, running)
    running.epoch = 50
    train_mode(job, running)
    return running


def measure(jobs: dict[str, tuple[Job, int]], rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """name -> median seconds of a step of a stage and median ratio to the plain step beside it."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    running = {name: started(*chosen) for name, chosen in jobs.items()}
    readers = {
        name: TapReader(job.student, tuple(dict.fromkeys(tap for bound in job.bound for tap in bound.taps)))
        for name, (job, _) in jobs.items()
    }
    for number in range(rounds + 2):
        order = order_of_epoch(0, number, IMAGES)[:batch]
        for name in jobs:
            for who in ("none", name):  # the plain step beside each
                taken = one_step(*jobs[who], running[who], readers[who], order)
                if number >= 2:
                    times.setdefault(f"beside {name}" if who == "none" else name, []).append(taken)
    return {
        name: {
            "seconds": statistics.median(times[name]),
            "ratio": statistics.median(a / b for a, b in zip(times[name], times[f"beside {name}"], strict=True)),
        }
        for name in jobs
        if name != "none"
    }


def one_step(job: Job, place: int, running: Running, reader: TapReader, order: np.ndarray[Any, Any]) -> float:
    """The seconds of one step."""
    chosen = job.stages[place]
    synchronize(job.device)
    begun = time.perf_counter()
    step(
        job,
        chosen,
        stage_recipe(job.recipe, chosen),
        running,
        reader,
        order,
        0,
        IMAGES // len(order),
        job.train.images.views([(order, 0)]),
    )
    synchronize(job.device)
    return time.perf_counter() - begun


def suits(item: Method, student: str) -> bool:
    """Whether a method accepts the pair of networks."""
    (row,) = catalogue((item,), student, TEACHER, CLASSES)
    return "refuses" not in row


def jobs_of(workspace: Workspace, student: str, batch: int) -> dict[str, tuple[Job, int]]:
    """The plain job, and every stage of every method that the networks suit; "kda both" is the paper's combination."""
    chosen: dict[str, Method] = {name: method(name) for name in METHODS}
    chosen["kda both"] = method("kda").with_options({"layers": "before_fc,after_fc"})
    jobs = {"none": (make_job(workspace, student, (), batch), 0)}
    for name, item in chosen.items():
        try:
            stages = make_job(workspace, student, (item,), batch).stages
        except UsageError:
            continue
        for number, of in enumerate(stages):
            if of.weights is None or of.weights:  # else it is a plain step
                title = name if len(stages) == 1 else f"{name} {of.name}"
                jobs[title] = (make_job(workspace, student, (item,), batch), number)
    return jobs


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
        teach(Workspace(folder), TeachConfig("made_up", TEACHER, plan, views=2), Silent(), StopRequest())
        workspace = Workspace.open(folder)
        for student in asked.students:
            wanted = [method(name) for name in METHODS]
            extracted = ExtractConfig(tuple(m for m in wanted if suits(m, student)), (student,))
            extract(workspace.cache, prepare(workspace, extracted), Silent(), StopRequest())
            figures[student] = measure(jobs_of(workspace, student, asked.batch), asked.rounds, asked.batch)
            for name, row in figures[student].items():
                print(f"{student:10} {name:14} {1000 * row['seconds']:8.1f} ms   {row['ratio']:.3f}", flush=True)
    light = [rows[name]["ratio"] for rows in figures.values() for name in ("kd", "kda", "kda both")]
    worst = max(light)
    print(f"worst ratio of kd and kda {worst:.3f}, goal at most {GOAL}")
    machine = environment(device, choose_precision("auto", device))
    asked.out.parent.mkdir(exist_ok=True)
    record = {"batch": asked.batch, "rounds": asked.rounds, "machine": machine, "students": figures, "worst": worst}
    asked.out.write_text(json.dumps({**record, "goal": GOAL}, indent=1) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
