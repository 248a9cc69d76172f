"""The time of an extract on this machine, from a few timed batches of the teacher and steps of the fits."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdtool.cache import ArraySpec, Cache
from kdtool.engine.blocks import batches, work
from kdtool.engine.device import synchronize
from kdtool.engine.extraction import Extraction
from kdtool.engine.fitting import passes
from kdtool.engine.sizes import all_fits
from kdtool.engine.sources import Teller
from kdtool.engine.spool import BYTES_PER_SECOND, pays
from kdtool.targets import CLEAN, Facts, Fit, FitBatch, Target, by_key

if TYPE_CHECKING:
    from kdtool.targets import Fitted

PROBES = 3  # timed batches

Specs = Mapping[str, Mapping[str, ArraySpec]]


def costs(job: Extraction, known: Cache, fitted: Mapping[str, Fitted], read: Specs) -> dict[str, Any]:
    """Teacher batches, seconds, the scratch space of fits, and the epochs after which the cache has paid for itself.

    fitted: results of the right shapes for every fit; read: the arrays of all that the fits read.
    """
    pictures = seconds_of_images(job)  # which come while the teacher answers
    told = functools.cache(lambda targets: seconds_per_batch(job, targets, fitted))
    in_epoch = -(-job.layout.samples["train"] // job.layout.batch)
    sizes = {key: sum(spec.row_bytes for spec in arrays.values()) * job.layout.batch for key, arrays in read.items()}
    first = max(pictures, seconds_per_batch(job, _read_by(all_fits(job)), {}))
    asked, spooled, held = 0, 0, 0
    for size, repeated, last in teacher_passes(job, known, sizes):
        kept = pays(first, size)
        asked += not (repeated and kept)
        spooled += size if repeated and kept else 0
        held += size if kept and not (repeated or last) else 0
    wanted = array_batches(job, known)
    steps = {fit: in_epoch * len(fit.passes(job.layout.fit_views)) for fit in to_learn(job, known)}
    fits = sum(count * step_seconds(job, fit) for fit, count in steps.items())
    arrays = sum(count * max(pictures, told(targets)) for targets, count in wanted.items())
    seconds = arrays + asked * in_epoch * first + fits + in_epoch * spooled / BYTES_PER_SECOND
    epoch = told(job.targets) * in_epoch
    return {
        "teacher_batches": wanted.total() + asked * in_epoch,
        "fit_seconds": fits,
        "fit_scratch_bytes": held * in_epoch,
        "extract_seconds": seconds,
        "live_teacher_seconds_per_epoch": epoch,
        "break_even_epochs": round(seconds / epoch, 1),
    }


def to_learn(job: Extraction, known: Cache) -> list[Fit]:
    """The fits that the cache does not hold."""
    return [fit for fit in all_fits(job) if fit.key not in known.fits]


def array_batches(job: Extraction, known: Cache) -> Counter[tuple[Target, ...]]:
    """Targets that the teacher answers together to fill the arrays -> the batches for which it does."""
    found, by_name = Counter[tuple[Target, ...]](), by_key(job.targets)
    for (part, _, block), keys in work(job, known.missing):
        found[tuple(by_name[key] for key in keys)] += len(batches(job, part, block))
    return found


def teacher_passes(job: Extraction, known: Cache, sizes: Mapping[str, int]) -> list[tuple[int, bool, bool]]:
    """(bytes of a batch, whether its view came before, whether it does not come again) of the passes without arrays.

    Fits that an encoder needs come before the arrays; the others find the views there that are kept.
    """
    first = {target.fit.key for target in job.targets if target.fit is not None}
    found = []
    for early in (True, False):
        fits = [fit for fit in to_learn(job, known) if (fit.key in first) == early]
        wanted = [
            (view, sum(sizes[target.key] for target in lacking))
            for _, view, members in (passes(fits, job.layout.fit_views) if fits else [])
            if (lacking := [t for t in _read_by(members) if early or not _kept(job, t, view)])
        ]
        views = [view for view, _ in wanted]
        found += [
            (size, view in views[:number], view not in views[number + 1 :])
            for number, (view, size) in enumerate(wanted)
        ]
    return found


def _read_by(fits: Sequence[Fit]) -> list[Target]:
    return list(by_key([target for fit in fits for target in fit.reads]).values())


def _kept(job: Extraction, target: Target, view: int) -> bool:
    """Whether the cache will hold what a late fit reads in a view."""
    return target.key in job.part_keys("train_clean" if view == CLEAN else "train") and view < job.views


def seconds_per_batch(job: Extraction, targets: Sequence[Target], fitted: Mapping[str, Fitted]) -> float:
    """The time that the teacher takes to answer some targets for one batch of the grid."""
    teller = Teller(job.model, tuple(targets), fitted, job.layout.batch, job.precision)
    images = _some_images(job)
    return _fastest(lambda: teller.answer(images), images.device)


def seconds_of_images(job: Extraction) -> float:
    """The time in which the images of a batch of the grid come, decoded ahead where they are pictures."""
    samples, batch = job.layout.samples["train"], job.layout.batch
    places = [(np.arange(start, start + batch) % samples, 0) for start in range(0, PROBES * batch, batch)]
    begun = time.perf_counter()
    for images in job.train.views(iter(places)):
        synchronize(images.device)
    return (time.perf_counter() - begun) / PROBES


def step_seconds(job: Extraction, fit: Fit) -> float:
    """The time of one step of a fit on a batch of the grid."""
    images = _some_images(job)
    answer = Teller(job.model, fit.reads, {}, job.layout.batch, job.precision).answer(images)
    shapes = {key: {name: tuple(rows.shape[1:]) for name, rows in arrays.items()} for key, arrays in answer.items()}
    samples = job.layout.samples["train"]
    facts = Facts(samples, job.layout.classes, job.labels["train"], job.layout.batch, 0, job.seed)
    state = fit.begin(facts, shapes, job.layout.fit_views)
    labels, positions = torch.from_numpy(job.labels["train"][: len(images)]), torch.arange(len(images))
    batch = FitBatch(answer, labels, positions, 0, fit.passes(job.layout.fit_views)[0])
    return _fastest(lambda: fit.step(state, batch), images.device)


def _some_images(job: Extraction) -> torch.Tensor:
    return job.train.view(np.arange(min(job.layout.batch, job.layout.samples["train"])), CLEAN)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(PROBES):
        begun = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times)
