"""The kernel transfer loss at the size of ImageNet: seconds per sample and memory, from a made-up cache.

    python benchmarks/gram_gap_large.py --folder /tmp/large      # writes benchmarks/results/gram_gap_large.json
    python benchmarks/gram_gap_large.py --folder /tmp/small --samples 20000 --few 5000 --output small.json

A cache of 1,281,167 x 2,048 (teacher) and x 512 (student) float16 features takes 6.6 GB in the folder and is removed at
the end. Each measurement is a process of its own, which watches its anonymous memory (RssAnon) and its peak of all
resident memory (VmHWM); the latter counts pages of the cache's files too, which the system can take back at any time.
Measurements of few and of all samples follow one another, after one that does not count.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdtool.analysis.compared import CachedRows
from kdtool.analysis.gram import gram_gap
from kdtool.cache import ArraySpec, Contents, Layout, create_or_open, open_cache

RESULT = Path(__file__).with_name("results") / "gram_gap_large.json"
WIDTHS = {"teacher": 2048, "student": 512}
CLASSES = 1000


def make_cache(path: Path, samples: int) -> None:
    """Non-negative features; every block is the same draw, in another order and of another scale."""
    random = np.random.default_rng(0)
    layout = Layout({"train": samples, "train_clean": samples}, CLASSES, batch=256, fit_views=1)
    size = layout.block_rows("train_clean")
    draws = {
        key: np.maximum(random.standard_normal((size, width), dtype=np.float32), 0) for key, width in WIDTHS.items()
    }
    with create_or_open(path, {"made up": samples}, layout) as writer:
        for key, width in WIDTHS.items():
            writer.declare(
                key, Contents(1, (key,), {"name": "MadeUp"}, None, {"values": ArraySpec("float16", (width,))})
            )
        for block in range(layout.blocks("train_clean")):
            rows = random.permutation(size)[: min(size, samples - block * size)]
            scale = random.uniform(0.5, 1.5)
            arrays = {key: {"values": (scale * draw[rows]).astype(np.float16)} for key, draw in draws.items()}
            writer.commit("train_clean", 0, block, arrays)


def status(name: str) -> int:
    """A size of this process, in bytes, as the system counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def watch(peak: list[int], done: threading.Event) -> None:
    """Keeps the largest anonymous memory."""
    while not done.wait(0.02):
        peak[0] = max(peak[0], status("RssAnon"))


def measure(path: Path, samples: int) -> dict[str, Any]:
    """One loss of so many samples, its seconds and its memory."""
    cache = open_cache(path)
    sides = [CachedRows.whole(cache.array("train_clean", key, "values")).span(0, samples) for key in WIDTHS]
    peak, done = [0], threading.Event()
    thread = threading.Thread(target=watch, args=(peak, done))
    thread.start()
    start = time.perf_counter()
    found = gram_gap(sides[1], sides[0])
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    return {
        "samples": found.samples,
        "loss": found.loss,
        "seconds": seconds,
        "microseconds_per_sample": 1e6 * seconds / samples,
        "anonymous_bytes": peak[0],
        "peak_resident_bytes": status("VmHWM"),
    }


def machine() -> dict[str, Any]:
    """What the seconds belong to."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": name, "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}


def measured(path: Path, samples: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    words = [sys.executable, __file__, "--folder", str(path.parent), "--measure", str(samples)]
    out = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(out)
    print(
        f"n = {found['samples']:9,}: {found['seconds']:7.1f} s, {found['microseconds_per_sample']:6.1f} us a sample, "
        f"anonymous {found['anonymous_bytes'] / 1e6:,.0f} MB, peak RSS {found['peak_resident_bytes'] / 1e6:,.0f} MB"
    )
    return found


def main() -> None:
    """Makes the cache, measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--few", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.folder / "cache.zarr"
    if options.measure:
        print(json.dumps(measure(path, options.measure)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        make_cache(path, options.samples)
        os.sync()  # so that no measurement waits for the disk to take the cache in
        measured(path, options.few)
        found = [measured(path, n) for _ in range(options.rounds) for n in (options.few, options.samples)]
    finally:
        shutil.rmtree(path, ignore_errors=True)
    per_sample = {
        n: statistics.median(row["microseconds_per_sample"] for row in found if row["samples"] == n)
        for n in (options.few, options.samples)
    }
    ratio = per_sample[options.samples] / per_sample[options.few]
    print(f"time per sample, all against few: {ratio:.3f}")
    versions = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
    result = {"machine": machine(), "versions": versions, "widths": WIDTHS, "runs": found, "ratio_per_sample": ratio}
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
