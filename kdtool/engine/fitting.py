"""Learns fits side by side, pass by pass, resumable at any batch; where their batches come from makes no difference.

A batch is read from the arrays where the cache holds the view, from the spool where an earlier pass left it there, and
is asked of the teacher otherwise: the same bytes all three ways.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdtool.cache import Cache, CacheWriter
from kdtool.cache.identity import plain
from kdtool.engine import checkpoint
from kdtool.engine.device import exact
from kdtool.engine.extraction import Stored
from kdtool.engine.sources import widened
from kdtool.engine.spool import Spool, pays
from kdtool.errors import DamageError, UsageError
from kdtool.progress import Progress, StopRequest
from kdtool.targets import CLEAN, Facts, Fit, FitBatch, Shape, Target, by_key

if TYPE_CHECKING:
    from kdtool.data.images import Images
    from kdtool.targets import State

Tell = Callable[[Sequence[Target], torch.Tensor], Stored]  # targets, images
Pass = tuple[int, int, tuple[Fit, ...]]  # number of the pass, view, fits that take part


class InTurn:
    """The images of batches that follow one another in a view, which are decoded ahead where they are pictures."""

    def __init__(self, images: Images, samples: int, batch: int) -> None:
        self.images, self.samples, self.batch = images, samples, batch
        self._coming: Generator[torch.Tensor] | None = None
        self._next = (CLEAN, 0)

    def at(self, view: int, start: int) -> torch.Tensor:
        """The batch that begins at a sample; one that does not follow the last one begins a row of its own."""
        if self._coming is None or self._next != (view, start):
            self.close()
            starts = range(start, self.samples, self.batch)
            places = (np.arange(at, min(at + self.batch, self.samples)) for at in starts)
            self._coming = self.images.views((positions, view) for positions in places)
        self._next = view, start + self.batch
        return next(self._coming)

    def close(self) -> None:
        """Lets go of what was decoded ahead."""
        if self._coming is not None:
            self._coming.close()
            self._coming = None


@dataclass(frozen=True)
class FitSource:
    """Where the batches of fits come from: the cache, what `spool` kept, or the teacher, whom `tell` asks."""

    cache: Cache
    tell: Tell
    images: InTurn
    spool: Spool
    device: torch.device

    def batch(
        self, targets: Sequence[Target], view: int, start: int, stop: int, again: bool
    ) -> dict[str, dict[str, torch.Tensor]]:
        """The arrays of some targets for the samples of one batch; again: a later pass will ask for them too."""
        part, number = ("train_clean", 0) if view == CLEAN else ("train", view)
        found: Stored = {}
        for target in targets:
            if self.cache.views(target.key, part) > number:
                names = self.cache.contents[target.key].arrays
                found[target.key] = {
                    name: self.cache.array(part, target.key, name).read(number, start, stop) for name in names
                }
            elif (kept := self.spool.read(view, target.key, start)) is not None:
                found[target.key] = kept
        lacking = [target for target in targets if target.key not in found]
        if lacking:
            found |= self._told(lacking, view, start, again)
        return {
            key: {name: widened(torch.from_numpy(rows).to(self.device)) for name, rows in arrays.items()}
            for key, arrays in found.items()
        }

    def _told(self, targets: Sequence[Target], view: int, start: int, again: bool) -> Stored:
        begun = time.perf_counter()
        told = self.tell(targets, self.images.at(view, start))
        seconds = time.perf_counter() - begun
        if again and pays(seconds, sum(rows.nbytes for arrays in told.values() for rows in arrays.values())):
            for key, arrays in told.items():
                self.spool.write(view, key, start, arrays)
        return told


def learn(
    fits: Sequence[Fit],
    shapes: Mapping[str, Mapping[str, Shape]],
    facts: Facts,
    writer: CacheWriter,
    source: FitSource,
    progress: Progress,
    stop: StopRequest,
    save_seconds: float,
    records: Sequence[Mapping[str, Any]],
) -> dict[str, State]:
    """The states of fits after their last passes, from the state in the cache's scratch folder where there is one.

    shapes: target key -> array -> shape of one sample, of all that the fits read. records: the definition of every fit,
    dtypes of what it reads included; a state of other definitions is not taken up.
    """
    definitions = [{"version": fit.version, **record} for fit, record in zip(fits, records, strict=True)]
    layout = writer.cache.layout
    plan = passes(fits, layout.fit_views)
    per_pass = -(-facts.samples // layout.batch)
    begun = {fit.key: fit.begin(facts, shapes, layout.fit_views) for fit in fits}
    states, done = _resume(writer, fits, definitions, progress) or (begun, 0)
    progress.begin("fit", len(plan) * per_pass, done)
    saved = time.monotonic()
    for number in range(done, len(plan) * per_pass):
        (turn, view, members), place = plan[number // per_pass], number % per_pass
        start, end = place * layout.batch, min((place + 1) * layout.batch, facts.samples)
        again = view in (later for _, later, _ in plan[number // per_pass + 1 :])
        reads = list(by_key([target for fit in members for target in fit.reads]).values())
        arrays = source.batch(reads, view, start, end, again)
        labels, last = torch.from_numpy(facts.labels[start:end]), place == per_pass - 1
        batch = FitBatch(arrays, labels, torch.arange(start, end), turn, view, last)
        with exact():
            for fit in members:
                states[fit.key] = fit.step(states[fit.key], batch)
        progress.advance(1)
        if last:
            _tell_remarks(members, states, turn, layout.fit_views, progress)
        stopping = stop.requested()
        if stopping or time.monotonic() - saved > save_seconds:
            _save(writer, definitions, states, number + 1)
            saved = time.monotonic()
        if stopping:
            raise stop.stopped(f"in pass {turn + 1} of the fits")
    return states


def passes(fits: Sequence[Fit], fit_views: int) -> list[Pass]:
    """The passes of all fits in order, those with the same view at the same pass together."""
    plans = {fit.key: tuple(fit.passes(fit_views)) for fit in fits}
    found: list[Pass] = []
    for turn in range(max(len(plan) for plan in plans.values())):
        views = [plan[turn] for plan in plans.values() if turn < len(plan)]
        for view in dict.fromkeys(views):
            members = tuple(fit for fit in fits if plans[fit.key][turn : turn + 1] == (view,))
            found.append((turn, view, members))
    return found


def _tell_remarks(
    fits: Sequence[Fit], states: Mapping[str, State], turn: int, fit_views: int, progress: Progress
) -> None:
    """After the passes 1, 2, 4, 8, .. and the last, so that a long fit does not fill the terminal."""
    for fit in fits:
        count, passed = len(fit.passes(fit_views)), turn + 1
        if passed == count or passed & turn == 0:
            remark = fit.remark(states[fit.key])
            if remark:
                progress.note(f"{fit.key}, pass {passed}/{count}: {remark}")


def _save(
    writer: CacheWriter, definitions: Sequence[Mapping[str, Any]], states: Mapping[str, State], done: int
) -> None:
    tensors = {f"{key}/{name}": value for key, state in states.items() for name, value in state.items()}
    checkpoint.save_state(writer.scratch, tensors, {"fits": plain(definitions), "done": done})


def _resume(
    writer: CacheWriter, fits: Sequence[Fit], definitions: Sequence[Mapping[str, Any]], progress: Progress
) -> tuple[dict[str, State], int] | None:
    """The states and the number of batches that are done; None where there is nothing to go on with."""
    try:
        state = checkpoint.load_state(writer.scratch)
    except (DamageError, UsageError) as error:
        progress.note(f"fits begin anew: {error}")
        return None
    if state is None or state[1]["fits"] != plain(definitions):
        return None
    states: dict[str, State] = {fit.key: {} for fit in fits}
    for path, value in state[0].items():
        key, name = path.rsplit("/", 1)
        states[key][name] = value
    return states, int(state[1]["done"])
