"""The time until a command is there: processes from their start to their end, and what they import on the way.

Left out: commands that train or read a data set, where the start is no matter.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdtool.engine.extract import extract
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.progress import Silent, StopRequest
from kdtool.workflows.bench import made_up
from kdtool.workflows.bench.measured import Figure, Setting, alternating, medians

GOAL = 0.3  # seconds of `kdtool --help`
ROUNDS, COMMAND_ROUNDS = (5, 15), (1, 5)  # in the short form and in the full one
HELP = [sys.executable, "-m", "kdtool", "--help"]
EMPTY = [sys.executable, "-c", "pass"]
COMMANDS = (
    "distill --help",
    "data list",
    "cache info",
    "cache verify --quiet",
    "methods",
    "models --filter resnet8",
)

HEAVY = frozenset(
    {
        "torch",
        "torchvision",
        "numpy",
        "zarr",
        "numcodecs",
        "h5py",
        "matplotlib",
        "sklearn",
        "scipy",
        "safetensors",
        "timm",
        "PIL",
    }
)

_TOLD = """
import json, sys
sys.argv = ["kdtool", *sys.argv[1:]]
try:
    from kdtool.cli.main import main
    main()
except SystemExit as end:
    print(json.dumps([end.code or 0, sorted({name.split(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


def figures(setting: Setting) -> Iterator[Figure]:
    """Seconds of `kdtool --help` beside those of an empty Python, and of commands that answer at once."""
    rounds, folder = setting.pick(*ROUNDS), setting.folder
    work = {"help": lambda: quiet(HELP, folder), "empty": lambda: quiet(EMPTY, folder)}
    times = alternating(work, rounds, torch.device("cpu"))
    median = medians(times)
    yield Figure("start", "kdtool --help", median["help"], "s", GOAL, details={"seconds": times, "rounds": rounds})
    yield Figure("start", "python -c pass", median["empty"], "s")
    small_cache(folder)
    found = [(line, command(line.split(), folder)) for _ in range(setting.pick(*COMMAND_ROUNDS)) for line in COMMANDS]
    for line in COMMANDS:
        ended = [end for name, end in found if name == line]
        taken = statistics.median(end.seconds for end in ended)
        details = {"exit code": ended[0].code, "imports": sorted(ended[0].heavy)}
        yield Figure("start", f"kdtool {line}", taken, "s", details=details)


def quiet(words: Sequence[str], folder: Path) -> None:
    """A process whose output nobody reads."""
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@dataclass(frozen=True)
class Ended:
    """A `kdtool` command in a process of its own: exit code, seconds, what it said, those of HEAVY that it imported."""

    code: int
    seconds: float
    said: str
    heavy: frozenset[str]


def command(words: Sequence[str], folder: Path) -> Ended:
    """Runs `kdtool` with these words in a folder."""
    begun = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", _TOLD, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    taken = time.perf_counter() - begun
    code, modules = json.loads(process.stderr.splitlines()[-1])
    return Ended(int(code), taken, process.stdout, HEAVY.intersection(modules))


def small_cache(folder: Path) -> None:
    """A working folder whose cache holds one view of 64 images."""
    workspace = made_up.workspace(folder, made_up.dataset(64, 10, 16), "resnet8", "resnet8", 1)
    job = prepare(workspace, ExtractConfig(without=("srm",), views=1, fit_views=1, batch=32, device="cpu"))
    extract(workspace.cache, job, Silent(), StopRequest())
