"""Peak memory of every stage as images and views grow: flat, but for the arrays that are declared resident.

Each measurement is a process of its own (`python -m kdtool.workflows.bench.memory`), which watches its anonymous
memory: RssAnon of Linux, which leaves out the pages of mapped files, as the system can take those back at any time.
What is freed does not count: glibc is told not to keep large pieces, of which it holds up to 32 MB for a thread now and
then. Images are made up and the network costs next to nothing, so that many images take seconds. Left out: what
activations take, which depend on network and batch alone.

Declared, in bytes an image: its pixels (3,072), its placements in all views (162), the placement in the view that is
current (24), label, row and place in the order (48); `distill` holds two views' slices of the arrays that it reads.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdtool.cache import open_cache
from kdtool.engine import distill as distilling
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import Recipe, recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.teach import TeachConfig, teach
from kdtool.errors import ResourceError
from kdtool.methods import method
from kdtool.methods.protocol import Method
from kdtool.progress import Silent, StopRequest
from kdtool.workflows.bench import made_up
from kdtool.workflows.bench.measured import Figure, Setting

IMAGES = 4_096, 12_500  # in the short form and in the full one; each with four times as many
VIEWS, CLASSES = 4, 100
BLOCK = 1_024  # images in a commit, so that the fewest images are several of them: a block's arrays are no growth
TOLERANCE = 10.0  # MB: what allocators and threads differ by from run to run
LARGE = 2**20  # bytes from which on glibc gives back what is freed; left alone it keeps up to 32 MB for every thread
PERIOD = 0.002  # seconds between two looks at the memory
PIXELS, PLACEMENTS, LATEST, INDEX = 3_072, 162, 24, 48  # bytes an image
SLICES = 2  # views whose targets `distill` holds at a time: that of the epoch, and the next one, read ahead
ROW_BYTES = 2 * (512 + CLASSES)  # of the targets that it reads here: float16 vectors before and behind the classifier
DECLARED = {  # bytes an image
    "teach": PIXELS + PLACEMENTS + LATEST + INDEX,
    "extract": PIXELS + PLACEMENTS + LATEST + INDEX,
    "distill": PIXELS + PLACEMENTS + LATEST + INDEX + SLICES * ROW_BYTES,
    "analyze": PIXELS + INDEX,
}


def figures(setting: Setting) -> Iterator[Figure]:
    """By how many MB the peak grows beyond what is declared, from n to 4 n images and from v to 4 v views.

    A training runs as many epochs as there are views, so that it sees all of them.
    """
    images = setting.pick(*IMAGES)
    sizes = {"base": (images, VIEWS), "images": (4 * images, VIEWS), "views": (images, 4 * VIEWS)}
    for stage, declared in DECLARED.items():
        peaks = {name: peak(stage, *size, setting.folder / name, setting.device) for name, size in sizes.items()}
        for name, more in (("images", 3 * images), ("views", 0)):
            yield from grown(stage, name, peaks, more * declared, images)


def grown(stage: str, name: str, peaks: dict[str, dict[str, int]], declared: int, images: int) -> Iterator[Figure]:
    """The figures of a stage as images or views grow fourfold; on a CUDA device one for its memory, too."""
    for where, what in (("anonymous", f"{stage}, 4 times the {name}"), ("device", f"{stage} on the device")):
        if where in peaks["base"]:
            beyond = peaks[name][where] - peaks["base"][where] - declared
            details = {"images": images, "declared": declared, "base": peaks["base"], "grown": peaks[name]}
            yield Figure("memory", what, beyond / 1e6, "MB", TOLERANCE, details=details)


def peak(stage: str, images: int, views: int, folder: Path, device: torch.device) -> dict[str, int]:
    """Bytes at the peak of a stage, run in a process of its own: anonymous, all that is resident, on the device."""
    words = [sys.executable, "-m", __spec__.name, stage, str(images), str(views), str(folder), str(device)]
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(LARGE)}
    process = subprocess.run(words, env=settings, check=False, capture_output=True, text=True)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise ResourceError(f"{stage} of {images:,} made-up images and {views} views failed: {reason}")
    found: dict[str, int] = json.loads(process.stdout)
    return found


def run(stage: str, images: int, views: int, folder: Path, device: str) -> dict[str, int]:
    """Runs a stage on made-up images in this process; `distill` and `analyze` find what those before them left."""
    data = made_up.dataset(images, CLASSES)
    folder /= "teach" if stage == "teach" else "work"
    if stage == "extract":
        made_up.workspace(folder, data, made_up.TINY, made_up.TINY, views)
    made_up.offer(data)
    plan = replace(recipe("kda"), epochs=views, batch=128, learning_rate=1e-4)
    work: dict[str, Callable[[], object]] = {
        "teach": lambda: run_teach(folder, plan, views, device),
        "extract": lambda: run_extract(folder, views, device),
        "distill": lambda: run_distill(folder, plan, device),
        "analyze": lambda: run_analyze(folder, device),
    }
    with watched() as found:
        work[stage]()
    if torch.device(device).type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device)
    return found


def run_teach(folder: Path, plan: Recipe, views: int, device: str) -> None:
    """A teacher, trained."""
    config = TeachConfig(made_up.NAME, made_up.TINY, plan, student=made_up.TINY, views=views, device=device)
    teach(Workspace(folder), config, Silent(), StopRequest())


def run_extract(folder: Path, views: int, device: str) -> None:
    """The vectors before and behind the classifier."""
    workspace = Workspace.open(folder)
    config = ExtractConfig(methods(), (made_up.TINY,), views=views, block=BLOCK, fit_views=1, device=device)
    extract(workspace.cache, prepare(workspace, config), Silent(), StopRequest())


def run_distill(folder: Path, plan: Recipe, device: str) -> None:
    """A student of both."""
    config = distilling.DistillConfig(made_up.TINY, methods(), plan, device=device)
    workspace = Workspace.open(folder)
    assert sum(spec.row_bytes for spec in _read(workspace)) == ROW_BYTES
    distilling.distill(workspace, config, Silent(), StopRequest())


def run_analyze(folder: Path, device: str) -> None:
    """The kernel transfer loss of both."""
    from kdtool.analysis.analyses import GapPlan, gram_gap
    from kdtool.analysis.compared import newest_run
    from kdtool.analysis.pairs import Asked

    workspace = Workspace.open(folder)
    gram_gap(workspace, Asked((newest_run(workspace),), device=device), GapPlan(), Silent())


def methods() -> tuple[Method, ...]:
    """What is stored and read."""
    return (method("kda").with_options({"layers": "before_fc,after_fc"}),)


def _read(workspace: Workspace) -> list[Any]:
    contents = open_cache(workspace.cache).contents
    return [spec for key in ("before_fc", "logits") for spec in contents[key].arrays.values()]


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The largest anonymous memory while the block runs, and the most that was resident since the process began."""
    found, done = {"anonymous": anonymous()}, threading.Event()

    def watch() -> None:
        while not done.wait(PERIOD):
            found["anonymous"] = max(found["anonymous"], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found["resident"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def anonymous() -> int:
    """Bytes of this process that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def main(stage: str, images: str, views: str, folder: str, device: str) -> None:
    """One measurement, as JSON on stdout."""
    sys.stdout.write(json.dumps(run(stage, int(images), int(views), Path(folder), device)))


if __name__ == "__main__":
    main(*sys.argv[1:])
