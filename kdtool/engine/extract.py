"""Runs the teacher once: fits, then every (view, block), then the un-augmented parts, into the cache.

The order of work: fits that an encoder needs (the teacher runs for them), the arrays, then the other fits, which read
the arrays where those hold what the teacher would say again. An extract that was stopped anywhere gives the bytes of
an undisturbed one. Under `torchrun` rank 0 learns the fits, and all ranks fill the arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kdtool.cache import Cache, CacheWriter, Contents, could_open, create_or_open, open_cache
from kdtool.engine import checkpoint
from kdtool.engine.blocks import Answers, Hand, fill_blocks, work
from kdtool.engine.extraction import Extraction, stored_specs
from kdtool.engine.fitting import FitSource, InTurn, learn
from kdtool.engine.lacking import check_fit, check_target
from kdtool.engine.ranks import Alone, Ranks, ranks
from kdtool.engine.runs import environment
from kdtool.engine.sizes import bytes_to_write
from kdtool.engine.sources import as_tensors
from kdtool.engine.spool import Spool
from kdtool.errors import IdentityError
from kdtool.progress import Progress, Silent, StopRequest
from kdtool.targets import Facts, Fit, by_key, describe


def extract(
    cache: Path,
    job: Extraction,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    stop: StopRequest | None = None,
    save_seconds: float = 60.0,
) -> None:
    """Fills the cache with all that is missing of the job. Whatever stops it, the next call goes on.

    cache: its folder, a workspace's `cache`. job: what `prepare` gives. stop: asked after every block, and after every
    batch of a fit; without one only an exception ends it. save_seconds: between states of a fit, the work that an
    exception can lose.
    """
    stop = stop or StopRequest()
    with ranks() as group:
        if group.rank > 0:
            _help(cache, job, group, progress, stop)
            return
        asked, alone = (dict(job.identity), job.layout), group.size == 1
        with create_or_open(cache, *asked, lambda held: bytes_to_write(job, held), alone) as writer:
            _check_mixed(job, writer)
            refuse_reads(job, writer.cache)
            fill(writer, job, progress, stop, save_seconds, group)


@torch.no_grad()
def fill(
    writer: CacheWriter,
    job: Extraction,
    progress: Progress,
    stop: StopRequest,
    save_seconds: float = 60.0,
    group: Ranks = Alone(),  # noqa: B008 - it has no state
) -> None:
    """Writes all of the job that an open cache lacks."""
    worker = _Worker(job, writer, progress, stop, save_seconds)
    for part in job.layout.samples:
        writer.put_samples(part, job.labels[part], job.rows[part])
    worker.fit(needed_fits(job))
    worker.declare()
    todo = group.shared(work(job, writer.missing))
    answers = worker.answers()
    fill_blocks(answers, writer, todo, group, stop)
    worker.fit(job.fits)
    if answers.asked.images:
        writer.provenance({**environment(job.train.device, job.precision), "asked": vars(answers.asked).copy()})
    worker.clear()
    writer.finish()


@torch.no_grad()
def _help(cache: Path, job: Extraction, group: Ranks, progress: Progress, stop: StopRequest) -> None:
    """What the ranks do that do not hold the writer: their share of the blocks, once rank 0 has declared the keys."""
    todo = group.shared(None)
    held = open_cache(cache)
    device = job.train.device
    fitted = {fit.key: as_tensors(held.fitted(fit.key), device) for fit in needed_fits(job)}
    fill_blocks(Answers(job, held, fitted, progress), Hand(held), todo, group, stop)


def needed_fits(job: Extraction) -> tuple[Fit, ...]:
    """The fits that encoders of the job need, each once."""
    needed = (target.fit for target in job.targets if target.fit is not None)
    return tuple({fit.key: fit for fit in needed}.values())


def check(cache: Path, job: Extraction, room: bool = True) -> Cache:
    """The cache as `extract` would find it, empty where there is none; writes nothing, and refuses what `extract` would
    refuse before the teacher answers for the first time, but where room is False a full disk.
    """
    held = could_open(cache, dict(job.identity), job.layout, lambda held: bytes_to_write(job, held) if room else 0)
    refuse_mixed(job, held)
    refuse_reads(job, held)
    for target in job.targets:
        if target.key in held.contents:
            check_target(held, target)
    for fit in (*needed_fits(job), *job.fits):
        if fit.key in held.fits:
            check_fit(held, fit)
    return held


def _check_mixed(job: Extraction, writer: CacheWriter) -> None:
    now = refuse_mixed(job, writer.cache)
    if now not in writer.cache.provenance:
        writer.provenance(now)


def refuse_mixed(job: Extraction, cache: Cache) -> dict[str, Any]:
    """One cache comes from one type of device and one torch, unless the user says otherwise; gives what is here."""
    device = job.train.device
    now = environment(device, job.precision)
    for record in (record for record in cache.provenance if not {"repaired", "asked"} & record.keys()):
        held = {"memory_format": "contiguous_format", **record}
        odd = [name for name in ("device_type", "torch", "memory_format") if held.get(name) != now[name]]
        if odd and not job.allow_mixed:
            raise IdentityError(
                f"the cache was written with {odd[0]} {held.get(odd[0])}, and this is {odd[0]} {now[odd[0]]}: bits "
                "would differ between its parts; extract into another --cache, or accept it with --allow-mixed"
            )
    return now


def refuse_reads(job: Extraction, cache: Cache) -> None:
    """Refuses to store a key in another dtype than a fit of the cache read it in: the fit could not be repaired."""
    for target in (target for target in job.targets if target.key not in cache.contents):
        wanted = job.dtype(target, cache.contents)
        for name, fit in cache.fits.items():
            read = fit.record.get("reads", {}).get(target.key, wanted)
            if read != wanted:
                raise IdentityError(
                    f"the fit {name} of this cache was learned from {target.key} as {read}, and it is to be stored as "
                    f"{wanted}; store it with --dtype {target.key}={read}, or extract into another --cache"
                )


class _Worker:
    """The running extract: the writer, the fitted results so far and the state of the fits that are under way."""

    def __init__(
        self, job: Extraction, writer: CacheWriter, progress: Progress, stop: StopRequest, save_seconds: float
    ) -> None:
        self.job, self.writer, self.progress, self.stop = job, writer, progress, stop
        self.save_seconds = save_seconds
        self.spool = Spool(writer.scratch / "spool")
        self.fitted: dict[str, dict[str, torch.Tensor]] = {}
        self.device = job.train.device
        self.facts = Facts(
            samples=job.layout.samples["train"],
            classes=job.layout.classes,
            labels=job.labels["train"],
            batch=job.layout.batch,
            epochs=0,
            seed=job.seed,
        )

    def answers(self) -> Answers:
        """The teacher with what has been fitted."""
        return Answers(self.job, self.writer.cache, self.fitted, self.progress)

    def declare(self) -> None:
        """Enters the keys into the cache."""
        specs = stored_specs(self.job, self.job.targets, self.fitted, self.writer.cache.contents)
        for target in self.job.targets:
            fit = None if target.fit is None else target.fit.key
            encoder = describe(target.encode)
            self.writer.declare(target.key, Contents(target.version, target.taps, encoder, fit, specs[target.key]))

    def fit(self, fits: Sequence[Fit]) -> None:
        """Learns the fits that the cache does not hold, all of them side by side, pass by pass; loads the others."""
        for fit in fits:
            if self.writer.has_fit(fit.key):
                check_fit(self.writer.cache, fit)
                self.fitted[fit.key] = as_tensors(self.writer.cache.fitted(fit.key), self.device)
        todo = [fit for fit in fits if fit.key not in self.fitted]
        if todo:
            self._learn(todo)

    def _learn(self, fits: Sequence[Fit]) -> None:
        targets = by_key([target for fit in fits for target in fit.reads])
        specs = stored_specs(self.job, list(targets.values()), self.fitted, self.writer.cache.contents)
        shapes = {key: {name: spec.shape for name, spec in arrays.items()} for key, arrays in specs.items()}
        images = InTurn(self.job.train, self.facts.samples, self.facts.batch)
        source = FitSource(self.writer.cache, self.answers().said, images, self.spool, self.device)
        records = [self._record(fit) for fit in fits]
        told = (self.progress, self.stop, self.save_seconds)
        try:
            with self.stop.deferring():
                states = learn(fits, shapes, self.facts, self.writer, source, *told, records)
        finally:
            images.close()
            self.spool.close()
        for fit, record in zip(fits, records, strict=True):
            result = fit.result(states[fit.key], self.facts)
            self.writer.put_fit(fit.key, fit.version, record, result)
            self.fitted[fit.key] = as_tensors(result, self.device)
        self.clear()

    def _record(self, fit: Fit) -> dict[str, Any]:
        """The definition of a fit, with the dtypes of what it read: these need not be stored themselves."""
        contents = self.writer.cache.contents
        return {**describe(fit), "reads": {target.key: self.job.dtype(target, contents) for target in fit.reads}}

    def clear(self) -> None:
        """Removes what the fits keep while they are learned, what a killed extract left behind included."""
        self.spool.close()
        checkpoint.clear_state(self.writer.scratch)
