"""What the order of maps in memory does to students: nothing beyond the noise of seeds, or it would show here.

    python benchmarks/memory_format.py WORK [--seeds 20]

Channels-last memory changes the last bits of every convolution, so trainings with one seed drift apart. One teacher and
one cache on `digits`; then students of every seed and method in both formats, by the library calls of `kdtool
quickstart`. Writes docs/results/memory-format.md and .json. What is there already is not trained again.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdtool import files
from kdtool.engine import device
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.runs import environment
from kdtool.engine.teach import TeachConfig, teach
from kdtool.progress import Silent, StopRequest
from kdtool.workflows.quickstart import Quickstart, students

PLACE = Path(__file__).parents[1] / "docs" / "results"
FORMATS = ("contiguous_format", "channels_last")


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Networks lie in this format, whatever the device asks for."""
    usual = device.memory_format
    device.memory_format = lambda _device, _precision: getattr(torch, name)
    try:
        yield
    finally:
        device.memory_format = usual


def accuracies(work: Path, seeds: int) -> dict[str, dict[str, list[float]]]:
    """method -> format -> test accuracy in percent, a number for each seed."""
    sizes, silent, stop = Quickstart(), Silent(), StopRequest()
    plan = replace(recipe("kda"), batch=sizes.batch, epochs=sizes.epochs)
    work.mkdir(parents=True, exist_ok=True)
    teach(Workspace.open(work), TeachConfig("digits", sizes.teacher, plan, views=sizes.views), silent, stop)
    workspace = Workspace.open(work)
    extract(workspace.cache, prepare(workspace, ExtractConfig(without=("srm",))), silent, stop)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        for methods in students():
            config = DistillConfig(sizes.student, methods, plan, seed=seed)
            title = config.title.removeprefix(f"{sizes.student}-").removesuffix(f"-seed{seed}")
            for name in FORMATS:
                with forced(name):
                    result = distill(workspace, replace(config, name=f"{config.title}-{name}"), silent, stop)
                found.setdefault(title, {}).setdefault(name, []).append(result["test_accuracy"]["last"])
                print(seed, title, name, f"{result['test_accuracy']['last']:.2f}", flush=True)
    return found


def page(about: dict[str, Any]) -> str:
    """The document."""
    lines = [
        "# Channels-last memory, and what becomes of students",
        "",
        f"Made by `benchmarks/memory_format.py` on {about['machine']}: resnet14 to resnet8 on digits, {about['seeds']}",
        "seeds, each trained in both formats from one cache. The last column: the mean difference of a seed's two",
        "students, with its standard error.",
        "",
        "| student | contiguous, test % | channels last, test % | difference |",
        "| --- | --- | --- | --- |",
    ]
    for title, formats in about["accuracies"].items():
        before, after = (formats[name] for name in FORMATS)
        pairs = [b - a for a, b in zip(before, after, strict=True)]
        error = statistics.stdev(pairs) / len(pairs) ** 0.5
        spread = " | ".join(f"{statistics.mean(x):.2f} ± {statistics.stdev(x):.2f}" for x in (before, after))
        lines.append(f"| {title} | {spread} | {statistics.mean(pairs):+.2f} ± {error:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    known = environment(device.choose_device("cpu"), device.choose_precision("auto", torch.device("cpu")))
    machine = f"{known['device']}, {known['threads']} threads, torch {known['torch']}, {known['precision']}"
    found = accuracies(asked.work.resolve(), asked.seeds)
    about = {"machine": machine, "seeds": asked.seeds, "accuracies": found}
    files.write_json(PLACE / "memory-format.json", about)
    (PLACE / "memory-format.md").write_text(page(about))


if __name__ == "__main__":
    main()
