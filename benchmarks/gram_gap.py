"""How long the kernel transfer loss takes: d x d moments against the kernels' entries, and against twice the samples.

    python benchmarks/gram_gap.py            # prints a table, writes benchmarks/results/gram_gap.json
    python benchmarks/gram_gap.py --rounds 1 --samples 4000 --output small.json

All measurements of a round follow one another in one process, so that other load on the machine moves them alike.
OMP_NUM_THREADS sets the number of threads, as everywhere.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdtool.analysis.gram import gram_gap

RESULT = Path(__file__).with_name("results") / "gram_gap.json"
CORES = len(os.sched_getaffinity(0))


def features(samples: int, width: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Non-negative features like those behind a ReLU."""
    return np.maximum(np.random.default_rng(seed).standard_normal((samples, width)), 0)


def seconds(algorithm: str, student: Any, teacher: Any) -> tuple[float, float]:
    """Seconds of one call, and the loss that it gave."""
    start = time.perf_counter()
    loss = gram_gap(student, teacher, algorithm=algorithm).loss
    return time.perf_counter() - start, loss


def cpu() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(samples: int, width: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds of moments at n, 2n, 4n and blocked at n."""
    student, teacher = features(4 * samples, width, 0), features(4 * samples, width, 1)
    runs = [("moments", samples), ("blocked", samples), ("moments", 2 * samples), ("moments", 4 * samples)]
    times: dict[tuple[str, int], list[float]] = {run: [] for run in runs}
    losses: dict[tuple[str, int], float] = {}
    gram_gap(student[:samples], teacher[:samples])  # threads and memory are ready before the first measurement
    for _ in range(rounds):
        for algorithm, n in runs:
            taken, losses[algorithm, n] = seconds(algorithm, student[:n], teacher[:n])
            times[algorithm, n].append(taken)
    median = {run: statistics.median(times[run]) for run in runs}
    first, entries, second, fourth = (median[run] for run in runs)
    return {
        "machine": {"cpu": cpu(), "cores": CORES, "threads": int(os.environ.get("OMP_NUM_THREADS", CORES))},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "width": width,
        "rounds": rounds,
        "seconds": [
            {"algorithm": algorithm, "samples": n, "median": median[algorithm, n], "all": times[algorithm, n]}
            for algorithm, n in runs
        ],
        "speed_up": entries / first,
        "speed_up_wanted": 0.8 * samples / (3 * width),
        "doubling": [second / first, fourth / second],
        "relative_difference": abs(losses["moments", samples] / losses["blocked", samples] - 1),
    }


def main() -> None:
    """Measures, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    found = measure(options.samples, options.width, options.rounds)
    for row in found["seconds"]:
        print(f"{row['algorithm']:8} n = {row['samples']:6} d = {found['width']}: {row['median']:7.3f} s")
    print(f"speed-up {found['speed_up']:.1f} (wanted: at least {found['speed_up_wanted']:.1f})")
    print(f"twice the samples: {found['doubling'][0]:.2f} and {found['doubling'][1]:.2f} times the seconds")
    print(f"the two losses differ by {found['relative_difference']:.0e} of their value")
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
