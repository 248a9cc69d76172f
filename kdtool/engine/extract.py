"""Runs the teacher once: fits, then every (view, block), then the un-augmented parts, into the cache.

The order of work: fits that an encoder needs (the teacher runs for them), the arrays, then the other fits, which read
the arrays where those hold what the teacher would say again. Every batch of samples lies on the cache's batch grid, so
an extract that was stopped anywhere gives the bytes of an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdtool.cache import ArraySpec, CacheWriter, Contents, Layout, create_or_open, require_space
from kdtool.data.batches import Images
from kdtool.engine import checkpoint
from kdtool.engine.fitting import FitSource, learn
from kdtool.engine.runs import environment
from kdtool.engine.sources import Teller, as_tensors
from kdtool.engine.spool import Spool
from kdtool.errors import IdentityError, UsageError
from kdtool.progress import Progress, StopRequest
from kdtool.targets import CLEAN, Facts, Fit, Target, by_key, describe

ALWAYS_CLEAN = ("logits", "before_fc")  # keys that train_clean, validation and test always hold
FLOATS = ("float16", "float32")


@dataclass(frozen=True)
class Extraction:
    """A frozen teacher over one split of a data set, and what is to be stored of it.

    parts: train_clean, validation and test images (un-augmented) beside `train`; labels: part -> (n,); rows: part ->
    the data set's rows. dtypes: key -> dtype of the floating arrays ("" for all keys that are not named).
    """

    model: nn.Module
    train: Images
    parts: Mapping[str, Images]
    labels: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]]
    rows: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]]
    identity: Mapping[str, Any]
    layout: Layout
    targets: tuple[Target, ...]
    fits: tuple[Fit, ...]
    views: int
    seed: int
    clean: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()  # keys that a stage selects by, on validation
    dtypes: Mapping[str, str] = field(default_factory=dict)
    precision: str = "float32"
    allow_mixed: bool = False

    def images(self, part: str) -> Images:
        """The images of a part."""
        return self.train if part == "train" else self.parts[part]

    def part_keys(self, part: str) -> tuple[str, ...]:
        """The keys that a part holds."""
        if part == "train":
            return tuple(target.key for target in self.targets)
        wanted = {*ALWAYS_CLEAN, *self.clean, *(self.validated if part == "validation" else ())}
        return tuple(target.key for target in self.targets if target.key in wanted)

    def dtype(self, target: Target, contents: Mapping[str, Contents]) -> str:
        """The dtype of a key's floating arrays: the cache's where it holds the key, else as asked, else the default."""
        chosen = self.dtypes.get(target.key, self.dtypes.get("", ""))
        known = contents.get(target.key)
        held = [spec.dtype for spec in known.arrays.values() if spec.dtype in FLOATS] if known else []
        if held and chosen and held[0] != chosen:
            raise IdentityError(
                f"the cache holds {target.key} as {held[0]} and --dtype asks for {chosen}; a key has one dtype: leave "
                "--dtype out, or extract into another --cache"
            )
        return held[0] if held else chosen or target.dtype


def extract(cache: Path, job: Extraction, progress: Progress, stop: StopRequest, save_seconds: float = 60.0) -> None:
    """Fills the cache with all that is missing of the job. Whatever stops it, the next call goes on."""
    _check_dtypes(job)
    with create_or_open(cache, dict(job.identity), job.layout) as writer, torch.no_grad():
        _check_mixed(job, writer)
        worker = _Worker(job, writer, progress, stop, save_seconds)
        for part in job.layout.samples:
            writer.put_samples(part, job.labels[part], job.rows[part])
        needed = tuple(target.fit for target in job.targets if target.fit is not None)
        worker.fit(tuple({fit.key: fit for fit in needed}.values()))
        worker.declare()
        worker.arrays()
        worker.fit(job.fits)
        worker.clear()
        writer.finish()


def stored_specs(
    job: Extraction,
    targets: Sequence[Target],
    fitted: Mapping[str, Mapping[str, torch.Tensor]],
    contents: Mapping[str, Contents],
) -> dict[str, dict[str, ArraySpec]]:
    """target key -> array -> dtype as stored and shape of one sample, from the teacher's answer to one image."""
    answer = Teller(job.model, tuple(targets), fitted, 2, job.precision).answer(job.train.view(np.arange(1), CLEAN))
    specs: dict[str, dict[str, ArraySpec]] = {}
    for target in targets:
        specs[target.key] = {}
        for name, rows in answer[target.key].items():
            kept = job.dtype(target, contents) if rows.is_floating_point() else str(rows.dtype).split(".")[1]
            specs[target.key][name] = ArraySpec(kept, tuple(rows.shape[1:]))
    return specs


def _check_dtypes(job: Extraction) -> None:
    known = {target.key for target in job.targets}
    for key, dtype in job.dtypes.items():
        if dtype not in FLOATS:
            raise UsageError(f"--dtype {dtype} is not one of {', '.join(FLOATS)}")
        if key and key not in known:
            raise UsageError(f"--dtype {key}={dtype}: this extract stores no {key}, but {', '.join(sorted(known))}")


def _check_mixed(job: Extraction, writer: CacheWriter) -> None:
    """One cache comes from one type of device and one torch, unless the user says otherwise."""
    device = job.train.pixels.device
    now = environment(device, job.precision)
    records = writer.cache.provenance
    for record in records:
        odd = [name for name in ("device_type", "torch") if record.get(name) != now[name]]
        if odd and not job.allow_mixed:
            raise IdentityError(
                f"the cache was written with {odd[0]} {record.get(odd[0])}, and this is {odd[0]} {now[odd[0]]}: bits "
                "would differ between its parts; extract into another --cache, or accept it with --allow-mixed"
            )
    if now not in records:
        writer.provenance(now)


class _Worker:
    """The running extract: the writer, the fitted results so far and the state of the fits that are under way."""

    def __init__(
        self, job: Extraction, writer: CacheWriter, progress: Progress, stop: StopRequest, save_seconds: float
    ) -> None:
        self.job, self.writer, self.progress, self.stop = job, writer, progress, stop
        self.save_seconds = save_seconds
        self.spool = Spool(writer.scratch / "spool")
        self.fitted: dict[str, dict[str, torch.Tensor]] = {}
        self.device = job.train.pixels.device
        self.facts = Facts(
            samples=job.layout.samples["train"],
            classes=job.layout.classes,
            labels=job.labels["train"],
            batch=job.layout.batch,
            epochs=0,
            seed=job.seed,
        )

    def teller(self, targets: Sequence[Target], batch: int | None = None) -> Teller:
        """The teacher, made ready to answer some targets."""
        return Teller(self.job.model, tuple(targets), self.fitted, batch or self.job.layout.batch, self.job.precision)

    def declare(self) -> None:
        """Enters the keys into the cache, after a look at the space that they will take."""
        specs = stored_specs(self.job, self.job.targets, self.fitted, self.writer.cache.contents)
        sizes = {key: sum(spec.row_bytes for spec in arrays.values()) for key, arrays in specs.items()}
        missing = self._missing_blocks()
        needed = sum(sizes[key] * self._rows(part, block) for part, key, _, block in missing)
        require_space(self.writer.cache.path, needed)
        for target in self.job.targets:
            arrays = specs[target.key]
            fit = None if target.fit is None else target.fit.key
            encoder = describe(target.encode)
            self.writer.declare(target.key, Contents(target.version, target.taps, encoder, fit, arrays))

    def _missing_blocks(self) -> Iterator[tuple[str, str, int, int]]:
        """(part, key, view, block) of every block that is not there yet."""
        for part in self.job.layout.samples:
            for view in range(self.job.views if part == "train" else 1):
                for key in self.job.part_keys(part):
                    for block in self.writer.missing(part, key, view):
                        yield part, key, view, block

    def _rows(self, part: str, block: int) -> int:
        """Samples in a block; the last may hold fewer than the others."""
        size = self.job.layout.block_rows(part)
        return min(size, self.job.layout.samples[part] - block * size)

    def arrays(self) -> None:
        """Writes every block that is missing, all its keys together."""
        work: dict[tuple[str, int, int], list[str]] = {}
        targets = by_key(self.job.targets)
        for part, key, view, block in self._missing_blocks():
            work.setdefault((part, view, block), []).append(key)
        total = sum(len(self._batches(part, block)) for part, _, block in work)
        self.progress.begin("extract", total)
        for (part, view, block), keys in sorted(work.items(), key=lambda item: _order(item[0])):
            chosen = [targets[key] for key in keys]
            teller, pieces = self.teller(chosen), []
            for start, stop in self._batches(part, block):
                pieces.append(self._stored(chosen, teller, self._pixels(part, view, start, stop)))
                self.progress.advance(1)
            arrays = {
                key: {name: np.concatenate([piece[key][name] for piece in pieces]) for name in pieces[0][key]}
                for key in keys
            }
            self.writer.commit(part, view, block, arrays)
            if self.stop.requested():
                raise self.stop.stopped(f"after block {block} of view {view} of {part}")

    def _pixels(self, part: str, view: int, start: int, stop: int) -> torch.Tensor:
        return self.job.images(part).view(np.arange(start, stop), view if part == "train" else CLEAN)

    def _batches(self, part: str, block: int) -> list[tuple[int, int]]:
        """(start, stop) of the batches of a block, on the batch grid."""
        begin, batch = block * self.job.layout.block_rows(part), self.job.layout.batch
        end = begin + self._rows(part, block)
        return [(start, min(start + batch, end)) for start in range(begin, end, batch)]

    def _stored(
        self, targets: Sequence[Target], teller: Teller, images: torch.Tensor
    ) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
        """The answers of a batch as they are stored; a value that the dtype cannot hold stops here."""
        answer = teller.answer(images)
        stored: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        for target in targets:
            dtype = getattr(torch, self.job.dtype(target, self.writer.cache.contents))
            rows = {
                name: value.to(dtype) if value.is_floating_point() else value
                for name, value in answer[target.key].items()
            }
            for name, value in rows.items():
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    _explain(target, name, answer[target.key][name], str(dtype).split(".")[1])
            stored[target.key] = {name: value.cpu().numpy() for name, value in rows.items()}
        return stored

    def fit(self, fits: Sequence[Fit]) -> None:
        """Learns the fits that the cache does not hold, all of them side by side, pass by pass; loads the others."""
        for fit in fits:
            if self.writer.has_fit(fit.key):
                self.fitted[fit.key] = as_tensors(self.writer.cache.fitted(fit.key), self.device)
        todo = [fit for fit in fits if fit.key not in self.fitted]
        if todo:
            self._learn(todo)

    def _learn(self, fits: Sequence[Fit]) -> None:
        targets = by_key([target for fit in fits for target in fit.reads])
        specs = stored_specs(self.job, list(targets.values()), self.fitted, self.writer.cache.contents)
        shapes = {key: {name: spec.shape for name, spec in arrays.items()} for key, arrays in specs.items()}
        source = FitSource(self.writer.cache, self._told, self.spool, self.device)
        try:
            states = learn(fits, shapes, self.facts, self.writer, source, self.progress, self.stop, self.save_seconds)
        finally:
            self.spool.close()
        for fit in fits:
            result = fit.result(states[fit.key], self.facts)
            self.writer.put_fit(fit.key, fit.version, describe(fit), result)
            self.fitted[fit.key] = as_tensors(result, self.device)
        self.clear()

    def clear(self) -> None:
        """Removes what the fits keep while they are learned, what a killed extract left behind included."""
        self.spool.close()
        checkpoint.clear_state(self.writer.scratch)

    def _told(
        self, targets: Sequence[Target], view: int, start: int, stop: int
    ) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
        """What the teacher says of a batch of the train part, as it would be stored."""
        return self._stored(targets, self.teller(targets), self.job.train.view(np.arange(start, stop), view))


def _order(place: tuple[str, int, int]) -> tuple[int, int, int]:
    """Clean parts last, so that an augmented view is there as early as possible."""
    part, view, block = place
    return (("train", "train_clean", "validation", "test").index(part), view, block)


def _explain(target: Target, name: str, exact: torch.Tensor, dtype: str) -> None:
    if not bool(torch.isfinite(exact).all()):
        raise UsageError(
            f"the teacher gives infinite or NaN values for {target.key}/{name}; it cannot be distilled: train it again"
        )
    raise UsageError(
        f"{target.key}/{name} reaches {float(exact.abs().max()):.3g}, which {dtype} cannot hold; extract it with "
        f"--dtype {target.key}=float32"
    )
