"""The benchmark: what a step, an extract, a reading, an analysis, a start and the memory cost on this machine.

`measure` runs the parts by name. The short form takes minutes and small networks; the full one, which
`benchmarks/speed.py` runs, has all pairs and sizes. Left out: what a training comes to (docs/results).
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from kdtool.errors import unknown
from kdtool.workflows.bench.made_up import registry_kept
from kdtool.workflows.bench.measured import Figure as Figure
from kdtool.workflows.bench.measured import Setting

# name -> title; each is a module of this package with `figures(setting) -> Iterator[Figure]`
PARTS = {
    "steps": "a distillation step beside the plain step of the student",
    "live": "a step with the living teacher, in float32, beside one from the cache",
    "layout": "a plain step in channels-last memory over one in contiguous memory",
    "extract": "the teacher's forward pass alone, in float32, beside extract",
    "reading": "views of images, and reading the cache",
    "kernels": "the kernel transfer loss over all images",
    "start": "the time until a command is there",
    "memory": "peak memory as images and views grow",
}


def chosen(parts: Sequence[str]) -> tuple[str, ...]:
    """Parts by name, each once, in the order of the benchmark; all where none is named. UsageError for an unknown."""
    for name in parts:
        if name not in PARTS:
            raise unknown("part of the benchmark", name, PARTS)
    return tuple(name for name in PARTS if name in parts or not parts)


def measure(
    parts: Sequence[str], device: torch.device, precision: str, full: bool = False, work: Path | None = None
) -> Iterator[Figure]:
    """The figures of some parts (all where none is named), one by one as they are found.

    work: the folder below which the parts write; what they wrote is removed. UsageError for an unknown part.
    """
    for name in chosen(parts):
        module = importlib.import_module(f"kdtool.workflows.bench.{name}")
        with tempfile.TemporaryDirectory(prefix="kdtool-bench-", dir=work) as folder, registry_kept():
            yield from module.figures(Setting(device, precision, Path(folder), full))
