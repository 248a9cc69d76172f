"""A small life for a `Method`: everything that a run would give it, made up, for a few samples and steps.

What `kdtool.workflows.testing` tries its checks on. Left out: optimisers, caches and networks; taps are random numbers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdtool.engine.job import seeded
from kdtool.engine.sources import as_tensors
from kdtool.methods.protocol import FittedResults, Method
from kdtool.targets import CLEAN, Batch, Cached, Facts, Fit, FitBatch, Shapes, Stage, Target

if TYPE_CHECKING:
    from kdtool.targets import State, Taps

SAMPLES, CLASSES, BATCH, FIT_VIEWS = 24, 3, 8, 2
LABELS = np.arange(SAMPLES, dtype=np.int64) % CLASSES
FACTS = Facts(samples=SAMPLES, classes=CLASSES, labels=LABELS, batch=BATCH, epochs=240, seed=0)
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def three_stages(widths: tuple[int, int, int, int], side: int) -> Shapes:
    """The shapes of a small residual network: stem, three stages with their preact taps, vector and logits."""
    sides = (side, side, side // 2, side // 4)
    names = ("stem", "stage1", "stage2", "stage3")
    maps = {name: (width, size, size) for name, width, size in zip(names, widths, sides, strict=True)}
    preact = {f"{name}.preact": shape for name, shape in maps.items() if name != "stem"}
    return {**maps, **preact, "before_fc": (widths[-1],), "after_fc": (CLASSES,)}


@dataclass(frozen=True)
class Pair:
    """A student and a teacher, as the shapes of their taps."""

    name: str
    student: Shapes
    teacher: Shapes


STUDENT = three_stages((4, 4, 6, 8), 8)
PAIRS = (
    Pair("equal sizes", STUDENT, STUDENT),
    Pair("wider teacher", STUDENT, three_stages((6, 6, 9, 12), 8)),
    Pair("teacher with larger maps", STUDENT, three_stages((4, 4, 6, 8), 16)),
    Pair("teacher with smaller maps", three_stages((4, 4, 6, 8), 16), three_stages((6, 6, 9, 12), 8)),
)


def same(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Taps as they are."""
    return taps


def identical(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every sample is the first one."""
    return {tap: rows[:1].expand_as(rows).clone() for tap, rows in taps.items()}


def extreme(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits of the size of 10,000, everything else of 100."""
    return {tap: rows * (1e4 if tap == "after_fc" else 1e2) for tap, rows in taps.items()}


def zero(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network in which every ReLU is dead."""
    return {tap: torch.zeros_like(rows) for tap, rows in taps.items()}


def made_up(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Normal values for every tap, (n, ...); those after a ReLU are not negative."""
    generator = torch.Generator().manual_seed(seed)
    taps = {tap: torch.randn(SAMPLES, *shape, generator=generator) for tap, shape in shapes.items()}
    signed = re.compile(r"after_fc|.*\.preact")
    return {tap: rows if signed.fullmatch(tap) else rows.relu() for tap, rows in taps.items()}


def teacher_taps(pair: Pair, view: int, change: Change = same) -> dict[str, Tensor]:
    """All taps of the made-up teacher in a view, (n, ...)."""
    return change(made_up(pair.teacher, 2 + view))


@dataclass(frozen=True)
class Trial:
    """A method with all that a run would give it, for n made-up samples.

    student: the taps that it asked for, (n, ...); targets with cached, what was encoded of them from view 0; fitted:
    the results of all fits.
    """

    method: Method
    pair: Pair
    student: Taps
    targets: tuple[Target, ...]
    cached: Cached
    fitted: FittedResults

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the method."""
        return self.method.stages(self.pair.student, self.pair.teacher, FACTS)

    def adapters(self, seed: int = 0) -> nn.Module:
        """The method's module, fresh, as the engine builds it."""
        shapes = (self.pair.student, self.pair.teacher)
        given = {fit.key: self.fitted[fit.key] for fit in self.method.fits(*shapes)}
        with seeded(seed):
            return self.method.adapters(*shapes, FACTS, given)

    def lived(self, stage: Stage) -> nn.Module:
        """Adapters after one epoch of a stage."""
        adapters = self.adapters()
        self.run_epoch(stage, adapters, 0)
        return adapters

    def run_epoch(self, stage: Stage, adapters: nn.Module, epoch: int) -> None:
        """What the engine calls in an epoch, without the optimiser."""
        for start in range(0, SAMPLES, BATCH):
            positions = torch.arange(start, start + BATCH)
            batch = batch_of(stage, positions, epoch)
            student, cached = chosen(self.student, positions), self.cached_rows(positions)
            if epoch >= min(starts(stage)) and has_terms(stage):
                self.method.terms(student, cached, batch, adapters)
            with torch.no_grad():
                self.method.after_step(student, cached, batch, adapters)
            for tap, rows in student.items():
                assert torch.equal(rows, self.student[tap][positions]), f"{self.method.name} writes into the tap {tap}"
        self.method.after_epoch(adapters)

    def cached_rows(self, positions: Tensor, double: bool = False) -> Cached:
        """The targets of some samples."""
        return {key: chosen(arrays, positions, double) for key, arrays in self.cached.items()}

    def answer(
        self,
        stage: Stage,
        adapters: nn.Module,
        positions: Tensor | None = None,
        moves: Mapping[str, Tensor] | None = None,
        double: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(terms, leaves by name) of a batch in an epoch in which all terms are active; the adapters stay as they are.

        positions: by default a fixed batch. moves: added to the leaves of that name. double: all in float64.
        """
        places = some_positions() if positions is None else positions
        used = copy.deepcopy(adapters).double() if double else copy.deepcopy(adapters)
        student = {tap: rows.clone().requires_grad_() for tap, rows in chosen(self.student, places, double).items()}
        leaves = {f"student.{tap}": rows for tap, rows in student.items()}
        leaves |= {f"adapters.{name}": parameter for name, parameter in used.named_parameters()}
        with torch.no_grad():
            for name, move in (moves or {}).items():
                leaves[name] += move
        if not has_terms(stage):
            return {}, leaves
        batch = batch_of(stage, places, max(starts(stage)))
        return self.method.terms(student, self.cached_rows(places, double), batch, used), leaves


def trial(method: Method, pair: Pair = PAIRS[0], change: Change = same) -> Trial:
    """A method with made-up taps of both networks, its fits learned and its targets encoded."""
    asked = method.student_taps(pair.student, pair.teacher)
    for tap in asked:
        assert tap in pair.student, f"{method.name} asks for the tap {tap!r}, which the student has not"
    student, teacher = change(made_up(pair.student, 0)), teacher_taps(pair, 0, change)
    fitted = {fit.key: learn(fit, pair, change) for fit in fits_of(method, pair)}
    targets, cached = method.targets(pair.student, pair.teacher), {}
    for target in targets:
        for tap in target.taps:
            assert tap in teacher, f"{target.key} reads the tap {tap!r}, which the teacher has not"
        cached[target.key] = target.encode({tap: teacher[tap] for tap in target.taps}, fitted_of(target, fitted))
    return Trial(method, pair, {tap: student[tap] for tap in asked}, targets, cached, fitted)


@torch.no_grad()
def learn(
    fit: Fit, pair: Pair, change: Change = same, kept: Callable[[State], State] = lambda state: state
) -> dict[str, np.ndarray[Any, Any]]:
    """The result of a fit on the made-up teacher; `kept` is applied to the state after every batch."""
    told = {view: teacher_taps(pair, view, change) for view in (CLEAN, *range(FIT_VIEWS))}
    arrays = {
        view: {target.key: target.encode({tap: taps[tap] for tap in target.taps}, {}) for target in fit.reads}
        for view, taps in told.items()
    }
    shapes = {key: {name: tuple(rows.shape[1:]) for name, rows in a.items()} for key, a in arrays[CLEAN].items()}
    state = fit.begin(FACTS, shapes, FIT_VIEWS)
    for turn, view in enumerate(fit.passes(FIT_VIEWS)):
        for start in range(0, SAMPLES, BATCH):
            positions = torch.arange(start, start + BATCH)
            rows = {key: chosen(a, positions) for key, a in arrays[view].items()}
            last = start + BATCH >= SAMPLES
            batch = FitBatch(rows, torch.from_numpy(LABELS)[positions], positions, turn, view, last)
            state = kept(fit.step(state, batch))
            assert isinstance(fit.remark(state), str), f"{fit.key} gives a remark that is no text"
    return fit.result(state, FACTS)


def fits_of(method: Method, pair: Pair) -> tuple[Fit, ...]:
    """Every fit of a method, those of its targets first, equal keys once."""
    shapes = (pair.student, pair.teacher)
    found = [target.fit for target in method.targets(*shapes) if target.fit is not None]
    return once([*found, *method.fits(*shapes)])


def once(fits: Iterable[Fit]) -> tuple[Fit, ...]:
    """Fits by key, each once; two different definitions under one key are a bug of a method."""
    found: dict[str, Fit] = {}
    for fit in fits:
        known = found.setdefault(fit.key, fit)
        assert known == fit, f"two definitions of the fit {fit.key!r}: {known} and {fit}"
    return tuple(found.values())


def fitted_of(target: Target, fitted: FittedResults, double: bool = False) -> dict[str, Tensor]:
    """What the fit of a target learned, as its encoder gets it."""
    found = as_tensors(fitted[target.fit.key], torch.device("cpu")) if target.fit else {}
    return {name: in_double(value) if double else value for name, value in found.items()}


def chosen(arrays: Mapping[str, Tensor], positions: Tensor, double: bool = False) -> dict[str, Tensor]:
    """The rows of some samples."""
    return {name: in_double(rows[positions]) if double else rows[positions] for name, rows in arrays.items()}


def in_double(value: Tensor) -> Tensor:
    """Floating tensors in float64."""
    return value.double() if value.is_floating_point() else value


def some_positions() -> Tensor:
    """The samples of the batch on which terms are compared."""
    return torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(5))[:BATCH]


def batch_of(stage: Stage, positions: Tensor, epoch: int) -> Batch:
    """A batch of an epoch; its generator depends on the epoch alone."""
    labels = torch.from_numpy(LABELS)[positions]
    generator = torch.Generator().manual_seed(epoch)
    return Batch(positions, labels, 0, stage.name, epoch, epoch * SAMPLES // BATCH, generator)


def has_terms(stage: Stage) -> bool:
    """Whether the stage uses terms of the method at all."""
    return stage.weights is None or bool(stage.weights)


def starts(stage: Stage) -> list[int]:
    """The first epochs of the stage's terms."""
    return [weight.start for weight in (stage.weights or {}).values()] or [0]
