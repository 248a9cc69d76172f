"""What the safety of the cache costs: gathers and slices beside plain zarr and a plain memory map, and durable writes.

    python benchmarks/cache_speed.py            # prints a table, writes benchmarks/results/cache_speed.json
    python benchmarks/cache_speed.py --rounds 1 --images 256 --output small.json

A cache of 50,000 rows of 1 KiB is read after every chunk was checked. An extract by a wrn_16_2 writes logits, vectors
and the maps of AT; the time within fsync and rename is taken out of that of the whole. What is compared follows one
another in one process.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from kdtool import data
from kdtool.cache import ArraySpec, Contents, Layout, create_or_open, open_cache, verify
from kdtool.data import Dataset, Part, content_digest
from kdtool.data.splits import make_split
from kdtool.engine.extract import extract
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.workspace import Workspace, write_teacher
from kdtool.methods import method
from kdtool.models import create
from kdtool.progress import Silent, StopRequest

RESULT = Path(__file__).with_name("results") / "cache_speed.json"
ROWS, WIDTH, BATCH = 50_000, 512, 256


def machine() -> dict[str, Any]:
    """What the seconds belong to."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": name, "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def each(read: Callable[[Any], object], places: Iterable[Any]) -> None:
    """Reads one place after the other, and keeps nothing, as a training does."""
    for place in places:
        read(place)


def reading(folder: Path, rounds: int) -> dict[str, float]:
    """Medians of rows a second, over rounds in which the ways follow one another."""
    rows = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float16)
    layout = Layout({"train": ROWS}, 10, batch=256, fit_views=1)
    contents = Contents(1, ("before_fc",), {"name": "Whole"}, None, {"values": ArraySpec("float16", (WIDTH,))})
    with create_or_open(folder / "cache", {}, layout) as writer:
        writer.declare("before_fc", contents)
        for block in range(layout.blocks("train")):
            size = layout.block_rows("train")
            writer.commit("train", 0, block, {"before_fc": {"values": rows[block * size : (block + 1) * size]}})
    assert verify(folder / "cache") == []
    rows.tofile(folder / "plain")
    plain = np.memmap(folder / "plain", np.float16, "r", shape=(ROWS, WIDTH))
    array = open_cache(folder / "cache").array("train", "before_fc", "values")
    other = zarr.open_array(folder / "cache/train/before_fc/values", mode="r")
    array.read(0)  # every chunk is checked once, and warm
    draw = np.random.default_rng(1)
    batches = [draw.integers(0, ROWS, BATCH) for _ in range(200)]
    slices = [slice(start, min(start + 4096, ROWS)) for start in range(0, ROWS, 4096)]
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "gather": (len(batches) * BATCH, lambda: each(lambda batch: array.rows(0, batch), batches)),
        "gather by zarr": (5 * BATCH, lambda: each(lambda batch: other.oindex[0, batch], batches[:5])),
        "gather by np.memmap": (len(batches) * BATCH, lambda: each(lambda batch: plain[batch], batches)),
        "slices": (ROWS, lambda: each(lambda part: array.read(0, part.start, part.stop), slices)),
        "slices by np.memmap": (ROWS, lambda: each(lambda part: np.array(plain[part]), slices)),
    }
    for wanted in batches[:3]:
        assert np.array_equal(array.rows(0, wanted), rows[wanted])
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (count, work) in ways.items():
            work()  # what it reads is as near to the processor as for the others
            speeds[name].append(count / seconds(work))
    return {name: statistics.median(found) for name, found in speeds.items()}


class Waits:
    """Counts the seconds within fsync and rename."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._fsync, self._replace = os.fsync, os.replace

    def __enter__(self) -> "Waits":
        os.fsync, os.replace = self._timed(os.fsync), self._timed(os.replace)
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync, os.replace = self._fsync, self._replace

    def _timed(self, call: Any) -> Any:
        def timed(*given: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*given, **more)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def made_up(images: int) -> Dataset:
    """Random images of 32 x 32 in 100 classes."""
    draw = np.random.default_rng(0)

    def part(count: int) -> Part:
        pixels = draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        return Part(pixels, np.arange(count, dtype=np.int64) % 100)

    train, test, half = part(images), part(200), (0.5, 0.5, 0.5)
    names = tuple(f"class{number}" for number in range(100))
    return Dataset("made_up", train, test, 100, names, half, half, True, content_digest(train, test))


def writing(folder: Path, images: int) -> tuple[float, float]:
    """(seconds of an extract, seconds of it within fsync and rename)."""
    found = made_up(images)
    data.DATASETS["made_up"] = lambda _: found
    split = make_split(found.train.labels, found.classes, 0, None, 0)
    torch.manual_seed(0)
    about = {
        "network": "wrn_16_2",
        "classes": 100,
        "data": "made_up",
        "data_digest": found.digest,
        "image_shape": (3, 32, 32),
        "mean": found.mean,
        "std": found.std,
        "flip": True,
        "test_accuracy": 1.0,
    }
    write_teacher(folder / "teacher.safetensors", create("wrn_16_2", 100), split, about)
    workspace = Workspace(folder)
    asked = ExtractConfig((method("at"),), ("resnet8",), views=2, fit_views=1)
    job = prepare(workspace, asked)
    with Waits() as waits:
        whole = seconds(lambda: extract(workspace.cache, job, Silent(), StopRequest()))
    return whole, waits.seconds


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        folder = Path(place)
        speeds = reading(folder, options.rounds)
        (folder / "work").mkdir()
        whole, waits = writing(folder / "work", options.images)
    result = {
        "machine": machine(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "zarr": zarr.__version__},
        "rows_per_second": {name: round(value) for name, value in speeds.items()},
        "gather_over_zarr": round(speeds["gather"] / speeds["gather by zarr"], 1),
        "slices_over_memmap": round(speeds["slices"] / speeds["slices by np.memmap"], 3),
        "extract_seconds": round(whole, 2),
        "durability_seconds": round(waits, 3),
        "durability_share": round(waits / whole, 4),
    }
    print(json.dumps(result, indent=1))
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
