"""Extract beside the bare forward pass of the same network over the same batches in memory.

Extract makes the views, encodes, hashes, writes and syncs as well; most of that belongs beside the next batch. Where
encoding is work of its own (maps, SRM), the bare pass encodes too. Left out: fits, which are learned once a cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kdtool.cache import open_cache
from kdtool.engine.device import autocast, exact
from kdtool.engine.extract import extract
from kdtool.engine.extraction import Extraction
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.sources import Teller, as_tensors
from kdtool.progress import Silent, StopRequest
from kdtool.workflows.bench.made_up import dataset, workspace
from kdtool.workflows.bench.measured import Figure, Setting, alternating, medians, ratio
from kdtool.workflows.bench.steps import briefly

GOAL = 0.95
BLOCK = 512  # images in a commit: several in a view, as in a real one
VIEWS = 2  # in one call: what is not beside the next block, the last one, counts for little, as in a real one
IMAGES, ROUNDS = (1024, 1536), (3, 3)  # in the short form and in the full one
SHORT = {"wrn_16_2": ["vectors"]}
FULL = {"wrn_16_2": ["vectors", "maps", "srm"], "wrn_40_2": ["vectors", "maps"]}
KINDS = {"vectors": (), "maps": ("at", "fitnet"), "srm": ("srm",)}  # what is stored -> methods beside the defaults


def figures(setting: Setting) -> Iterator[Figure]:
    """A figure for each teacher and kind of targets."""
    for teacher, kinds in setting.pick(SHORT, FULL).items():
        for kind in kinds:
            yield compared(setting, teacher, kind)


def compared(setting: Setting, teacher: str, kind: str) -> Figure:
    """The figure of one teacher: every round extracts two more views."""
    images, rounds = setting.pick(*IMAGES), setting.pick(*ROUNDS)
    if setting.device.type == "cuda":
        images = 50_000
    made = workspace(setting.folder / f"{teacher}-{kind}", dataset(images), teacher, "resnet8", VIEWS * (rounds + 2))
    views = Views(made, kind, setting)
    views()  # creates the cache, learns the fits, writes the un-augmented parts
    bare = Bare(views.job(1), kind, made)
    times = alternating({"bare": bare, "extract": views}, rounds, setting.device)
    middle = medians(times)
    details: dict[str, Any] = {
        "images": images,
        "seconds": middle,
        "images_per_second": VIEWS * images / middle["extract"],
        "share_of_fsync_and_rename": views.waited / sum(views.taken),
    }
    what = f"{teacher}, {kind}: bare / extract"
    return Figure("extract", what, ratio(times, "bare", "extract"), goal=GOAL, at_least=True, details=details)


class Views:
    """Extracts two more views each time it is called."""

    def __init__(self, made: Workspace, kind: str, setting: Setting) -> None:
        self.made, self.kind, self.setting = made, kind, setting
        self.count, self.waited = 0, 0.0
        self.taken: list[float] = []

    def job(self, views: int) -> Extraction:
        """The job of an extract of so many views."""
        chosen = tuple(map(briefly, KINDS[self.kind]))
        asked = ExtractConfig(chosen, ("resnet8",) if chosen else (), without=() if chosen else ("srm",), views=views)
        return prepare(self.made, replace(asked, block=BLOCK, fit_views=1, device=str(self.setting.device)))

    def __call__(self) -> None:
        """Extracts the next views."""
        self.count += VIEWS
        job, begun = self.job(self.count), time.perf_counter()
        with waits() as found:
            extract(self.made.cache, job, Silent(), StopRequest())
        self.taken.append(time.perf_counter() - begun)
        self.waited += found[0]


class Bare:
    """The network over all batches of the train part, which lie in memory as it takes them."""

    def __init__(self, job: Extraction, kind: str, made: Workspace) -> None:
        self.job, self.encodes = job, kind != "vectors"
        count, size = job.layout.samples["train"], job.layout.batch
        self.batches = [job.train.view(np.arange(i, min(i + size, count)), 0) for i in range(0, count, size)]
        cache = open_cache(made.cache)
        fitted = {t.fit.key: as_tensors(cache.fitted(t.fit.key), job.train.device) for t in job.targets if t.fit}
        self.teller = Teller(job.model, job.targets, fitted, size, job.precision)

    @torch.no_grad()
    def __call__(self) -> None:
        """As many passes as there are views in a call of extract."""
        self.job.model.eval()
        for images in VIEWS * self.batches:
            if self.encodes:
                self.teller.answer(images)
            else:
                with exact(), autocast(images.device, self.job.precision):
                    self.job.model(images)


@contextmanager
def waits() -> Iterator[list[float]]:
    """Counts the seconds within fsync and rename while the block runs, whichever thread waits there."""
    found, before = [0.0], (os.fsync, os.replace)

    def timed(call: Any) -> Any:
        def counted(*given: Any, **more: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*given, **more)
            finally:
                found[0] += time.perf_counter() - begun

        return counted

    os.fsync, os.replace = timed(os.fsync), timed(os.replace)
    try:
        yield found
    finally:
        os.fsync, os.replace = before
