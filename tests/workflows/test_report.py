"""The HTML report of made-up runs: what it shows, what it leaves out, and that it needs nothing beside itself."""

import html.parser
import json
import math
import re
import sys

import pytest

from kdtool import files
from kdtool.analysis import plots
from kdtool.analysis.results import grouped, read_run, read_runs
from kdtool.engine.runs import toml
from kdtool.errors import DamageError, UsageError
from kdtool.workflows.report import write_report

TEACHER, CACHE = "7e" * 32, "ca" * 32
RECIPE = {"epochs": 30, "batch": 256, "optimizer": "sgd", "learning_rate": 0.1, "schedule": "cosine"}
ENVIRONMENT = {"kdtool": "0.1.0", "python": "3.12.1", "torch": "2.10.0", "device": "A processor", "threads": 8}
VOID = {"meta", "path", "use", "br"}


def write_run(folder, command, network, method, options, seed, reached, gaps=None, seconds=900.0, epochs=30):
    """A finished run as the engine writes it; `reached` is the accuracy that the curve tends to."""
    folder.mkdir(parents=True)
    config = {"command": command, "seed": seed, "recipe": RECIPE}
    config |= {"data": "cifar100", "network": network} if command == "teach" else {"student": network, "views": 8}
    config |= {} if command == "teach" else {"method": (method or ["none"])[0], "with": method[1:], "set": options}
    (folder / "config.toml").write_text(toml(config))
    files.write_json(folder / "environment.json", ENVIRONMENT)
    curve = [
        reached * (1 - math.exp(-(epoch + 2) / 6)) + math.sin(9 * epoch + seed) / (epoch + 1) for epoch in range(epochs)
    ]
    rows = [
        {
            "stage": "train",
            "epoch": epoch,
            "steps": 196,
            "learning_rate": 0.1,
            "loss": 4.6 * math.exp(-epoch / 8) + 0.05 + 0.2 * len(method),
            "terms": {"task": 1.0},
            "train_accuracy": min(100.0, accuracy + 8),
            "validation_accuracy": None,
            "test_accuracy": accuracy,
            "seconds": seconds * (epoch + 1) / epochs,
        }
        for epoch, accuracy in enumerate(curve)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files.write_json(
        folder / "result.json",
        {
            "command": command,
            "name": folder.name,
            "network": network,
            "method": method,
            "options": options,
            "seed": seed,
            "epochs": epochs,
            "batch": 256,
            "views": None if command == "teach" else 8,
            "parameters": 21_328_292 if command == "teach" else 11_220_132,
            "teacher": {"network": "resnet34", "sha256": TEACHER, "test_accuracy": 78.31},
            "test_accuracy": {"last": curve[-1], "best": max(curve)},
            "validation_accuracy": None,
            "seconds": {"total": seconds, "train": 0.8 * seconds, "data": 0.05 * seconds, "evaluate": 0.15 * seconds},
            "cache": None if command == "teach" else {"identity": CACHE, "bytes": 409_600_000 if method else 0},
            "weights_sha256": f"{len(folder.name):02x}" * 32,
        },
    )
    if gaps:
        layers = zip(("before_fc", "after_fc"), gaps, strict=True)
        found = [
            {"layer": name, "part": "train", "loss": loss, "samples": 50_000, "algorithm": "moments"}
            for name, loss in layers
        ]
        files.write_json(folder / "gram-gap.json", {"gaps": found})


@pytest.fixture
def runs(tmp_path):
    """A teacher, two students without it, two with KD, two KDA variants and their combination with KD."""
    folder = tmp_path / "runs"
    both = {"kda.layers": ["before_fc", "after_fc"], "kda.alpha": 0.04}
    one = {"kda.layers": ["before_fc"], "kda.alpha": 0.04}
    write_run(folder / "teacher", "teach", "resnet34", [], {}, 0, 78.9, seconds=9100.0)
    for seed in (0, 1):
        gaps = (0.412 + 0.01 * seed, 0.553 - 0.02 * seed)
        write_run(folder / f"resnet18-none-seed{seed}", "distill", "resnet18", [], {}, seed, 75.2 + 0.3 * seed, gaps)
        kd = {"kd.temperature": 4.0}
        gaps = (0.361 + 0.01 * seed, 0.182 - 0.01 * seed)
        write_run(folder / f"resnet18-kd-seed{seed}", "distill", "resnet18", ["kd"], kd, seed, 76.4 - 0.3 * seed, gaps)
    write_run(folder / "resnet18-kda-before_fc-seed0", "distill", "resnet18", ["kda"], one, 0, 77.3, (0.093, 0.247))
    write_run(
        folder / "resnet18-kda-before_fc-after_fc-seed0", "distill", "resnet18", ["kda"], both, 0, 77.6, (0.098, 0.101)
    )
    name = "resnet18-kda-before_fc-after_fc-kd-seed0"
    write_run(
        folder / name, "distill", "resnet18", ["kda", "kd"], {**both, "kd.temperature": 4.0}, 0, 77.7, (0.101, 0.0009)
    )
    return folder
