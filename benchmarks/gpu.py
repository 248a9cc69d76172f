"""CIFAR-100 on a GPU: what the cache saves beside a plain loop in the manner of the official code, on the same card.

    python benchmarks/gpu.py teach --work WORK --data-folder DATA      # once; every step below 10 minutes on an H200
    python benchmarks/gpu.py extract --work WORK --data-folder DATA    # all 162 views
    python benchmarks/gpu.py distill ...                               # KDA from the cache, 120 epochs
    python benchmarks/gpu.py short ...                                 # the same over as many epochs as the loops have
    python benchmarks/gpu.py loop-float32 ... ; python benchmarks/gpu.py loop-bfloat16 ...
    python benchmarks/gpu.py table --work WORK                         # benchmarks/results/gpu-<device>.json

Teacher resnet34, student resnet18, KDA before_fc, batch 256. Every step can be stopped and run again; what is finished
is not done again, a loop begins anew. The loops have a living teacher, a DataLoader with worker processes and
torchvision's transforms, and wait for the loss in every step as the official code does; one in float32, one in
bfloat16 with channels-last memory, so that precision and caching are told apart. `--toy` runs all of it in minutes on
a CPU: digits, small networks, few views.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from kdtool import data, files
from kdtool.data.augment import Augmentation
from kdtool.data.images import images_of
from kdtool.engine.device import autocast, choose_device, placed, synchronize
from kdtool.engine.evaluate import accuracy
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import Recipe, learning_rate
from kdtool.engine.runs import environment
from kdtool.engine.workspace import read_record, read_teacher
from kdtool.methods import method
from kdtool.methods.vectors import VALUES, vector
from kdtool.models import create, multiply_adds, tap_shapes
from kdtool.models.taps import TapReader
from kdtool.targets import Batch, Facts

RESULTS = Path(__file__).parent / "results"
BF16_RATE = 790e12  # operations a second of an H200 in a product of two 8192 x 8192 matrices of bfloat16
GOALS = {"distill_seconds": 180.0, "extract_seconds": 180.0, "loop_over_cached_epoch": 8.0}


@dataclass(frozen=True)
class Plan:
    """What is run; `short`: epochs of the loops and of the run beside them."""

    data: str = "cifar100"
    teacher: str = "resnet34"
    student: str = "resnet18"
    epochs: int = 120
    short: int = 20
    views: str = "all"
    batch: int = 256


TOY = Plan("digits", "resnet14", "resnet8", epochs=3, short=2, views="3", batch=64)


def kdtool(work: Path, *words: str) -> None:
    """Runs a command in the folder, as a user would."""
    subprocess.run([sys.executable, "-m", "kdtool", *words, "--folder", str(work)], check=True)


def teach(plan: Plan, work: Path, place: list[str]) -> None:
    """The teacher."""
    words = ["--network", plan.teacher, "--student", plan.student, "--epochs", str(plan.epochs)]
    kdtool(work, "teach", "--data", plan.data, *words, "--batch", str(plan.batch), *place)


def extract(plan: Plan, work: Path, place: list[str]) -> None:
    """All views of logits and vectors, in bfloat16; the seconds are those of this call if it did all of it."""
    fresh, begun = not (work / "cache.zarr").exists(), time.perf_counter()
    words = ["--for", "kd", "--for", "kda", "--student", plan.student, "--views", plan.views]
    kdtool(work, "extract", *words, "--precision", "bfloat16", "--batch", str(2 * plan.batch), *place)
    if fresh:
        keep(work, "extract", {"seconds": time.perf_counter() - begun, "views": plan.views})


def distill(plan: Plan, work: Path, place: list[str], epochs: int, name: str) -> None:
    """KDA before_fc from the cache."""
    words = ["--method", "kda", "--layer", "before_fc", "--epochs", str(epochs), "--batch", str(plan.batch)]
    kdtool(work, "distill", *words, "--run", name, *place)
    result = files.read_json(work / "runs" / name / "result.json", "run it again")
    keep(work, name, {key: result[key] for key in ("epochs", "seconds", "test_accuracy")})


class Pictures(Dataset[tuple[torch.Tensor, int, int]]):
    """The train part with torchvision's transforms, image by image in a worker process."""

    def __init__(self, part: data.Part, found: data.Dataset) -> None:
        assert isinstance(part.images, np.ndarray)
        self.images, self.labels = part.images, part.labels
        flip = [v2.RandomHorizontalFlip()] if found.flip else []
        size = part.images.shape[-1]
        moves = [v2.ToPILImage(), v2.RandomCrop(size, 4), *flip, v2.PILToTensor()]
        self.transform = v2.Compose(
            [*moves, v2.ToDtype(torch.float32, scale=True), v2.Normalize(found.mean, found.std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int, int]:
        return self.transform(torch.from_numpy(self.images[row])), int(self.labels[row]), row


def loop(plan: Plan, work: Path, precision: str, folder: Path | None) -> None:
    """KDA with the living teacher, in the manner of the official code; keeps seconds of its epochs and accuracy."""
    device = choose_device("auto")
    found = data.load(plan.data, folder)
    workspace = Workspace.open(work)
    teacher = read_teacher(workspace.teacher, read_record(workspace.teacher), device, precision)
    torch.manual_seed(0)
    student = placed(create(plan.student, found.classes), device, precision)
    labels, shape = found.train.labels, found.train.images.shape[1:]
    facts = Facts(len(labels), found.classes, labels, plan.batch, plan.short, 0)
    kda = method("kda")
    both = (tap_shapes(student, shape), tap_shapes(teacher, shape))
    adapters, (stage,) = kda.adapters(*both, facts, {}).to(device), kda.stages(*both, facts)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    workers = len(os.sched_getaffinity(0))
    loader = DataLoader(
        Pictures(found.train, found),
        plan.batch,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )
    schedule, seconds, number = Recipe(epochs=plan.short, batch=plan.batch), [], 0
    key = vector("before_fc").key
    with TapReader(student, ("before_fc",)) as read, TapReader(teacher, ("before_fc",)) as ask:
        for epoch in range(plan.short):
            student.train()
            begun = time.perf_counter()
            for images, targets, rows in loader:
                pixels, there = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
                batch = Batch(rows.to(device), there, 0, stage.name, epoch, number, torch.Generator(device))
                with torch.no_grad(), autocast(device, precision):
                    _, told = ask(pixels)
                with autocast(device, precision):
                    logits, taps = read(pixels)
                cached = {key: {VALUES: told["before_fc"].float()}}
                taps = {tap: value.float() for tap, value in taps.items()}
                loss = nn.functional.cross_entropy(logits.float(), there)
                assert stage.weights is not None
                weight = stage.weights["kda_before_fc"]
                if epoch >= weight.start:
                    loss = loss + weight.value * kda.terms(taps, cached, batch, adapters)["kda_before_fc"]
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(schedule, number, len(loader))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    kda.after_step(taps, cached, batch, adapters)
                loss.item()  # the official code's meters wait for it
                number += 1
            kda.after_epoch(adapters)
            synchronize(device)
            seconds.append(time.perf_counter() - begun)
    everything = np.arange(len(found.test.labels))
    test = images_of(found.test, everything, Augmentation(), found.mean, found.std, device)
    share = accuracy(student, test, torch.from_numpy(found.test.labels).to(device), precision)
    keep(work, f"loop-{precision}", {"epochs": plan.short, "epoch_seconds": seconds, "test_accuracy": share})


def keep(work: Path, name: str, values: dict[str, Any]) -> None:
    """Remembers what a step gave."""
    path = work / "gpu.json"
    known = files.read_json(path, "remove it") if path.exists() else {}
    files.write_json(path, {**known, name: values})


def table(plan: Plan, work: Path) -> dict[str, Any]:
    """All that is known, with the ratios; printed, and written for the device's name."""
    known = files.read_json(work / "gpu.json", "run the steps again")
    device = choose_device("auto")
    found: dict[str, Any] = {
        "machine": environment(device, "bfloat16"),
        "plan": vars(plan),
        "goals": GOALS,
        "steps": known,
        "teacher": read_record(work / "teacher.safetensors").test_accuracy,
    }
    ratios: dict[str, float] = {}
    if "distill" in known:
        seconds = known["distill"]["seconds"]["train"] + known["distill"]["seconds"]["data"]
        ratios["distill_seconds"] = seconds
        adds = multiply_adds(create(plan.student, 100), (3, 32, 32))
        ratios["share_of_bf16_rate"] = 2 * 3 * adds * 50_000 * plan.epochs / seconds / BF16_RATE
    if "extract" in known:
        ratios["extract_seconds"] = known["extract"]["seconds"]
    for precision in ("float32", "bfloat16"):
        if f"loop-{precision}" in known and "short" in known:
            cached = (known["short"]["seconds"]["train"] + known["short"]["seconds"]["data"]) / plan.short
            own = known[f"loop-{precision}"]
            epoch = float(np.median(own["epoch_seconds"]))
            ratios[f"loop_over_cached_epoch, {precision}"] = epoch / cached
            ratios[f"accuracy, loop in {precision}"] = own["test_accuracy"]
            ratios["accuracy, from the cache"] = known["short"]["test_accuracy"]["last"]
    return {**found, "figures": ratios}


def main() -> None:
    """Runs one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = ("teach", "extract", "distill", "short", "loop-float32", "loop-bfloat16", "table")
    parser.add_argument("step", choices=steps)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data-folder", type=Path)
    parser.add_argument("--toy", action="store_true")
    asked = parser.parse_args()
    plan = TOY if asked.toy else Plan()
    asked.work.mkdir(parents=True, exist_ok=True)
    place = ["--data-folder", str(asked.data_folder)] if asked.data_folder else []
    if asked.step == "teach":
        teach(plan, asked.work, place)
    elif asked.step == "extract":
        extract(plan, asked.work, place)
    elif asked.step in ("distill", "short"):
        distill(plan, asked.work, place, plan.epochs if asked.step == "distill" else plan.short, asked.step)
    elif asked.step == "table":
        found = table(plan, asked.work)
        print(json.dumps(found["figures"], indent=1))
        if not asked.toy:
            name = "-".join(str(found["machine"]["device"]).split())
            (RESULTS / f"gpu-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    else:
        loop(plan, asked.work, asked.step.removeprefix("loop-"), asked.data_folder)


if __name__ == "__main__":
    main()
