"""A made-up method that asks of the protocol, all at once, what SRM, AT, FSP and CRD will ask of it.

* a fit that learns atoms by gradient, with moments and a random generator in its state, shared by two targets
* a target of two taps and two arrays, one of them uint16; a target whose content depends on the student's sizes
* adapters with a convolution, BatchNorm, two heads, an inert parameter and memory banks that `after_step` writes
* three stages with recipes of their own that train different parts, one chosen by validation loss, one discarded

As a loss it means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.protocol import FittedResults, Method, need
from kdtool.methods.vectors import VALUES, vector
from kdtool.targets import CLEAN, Batch, Facts, Fit, FitBatch, Shape, Shapes, Stage, Target, Weight

State = dict[str, Tensor]
TURNS = 3


@dataclass(frozen=True)
class Whole:
    """The map as it is."""

    tap: str

    def __call__(self, taps: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {VALUES: taps[self.tap]}


@dataclass(frozen=True)
class Atoms:
    """Atoms of a map's pixels: noisy gradient steps with momentum on the distance to the nearest one."""

    tap: str
    count: int
    version: int = field(default=1, init=False)

    @property
    def key(self) -> str:
        return f"atoms{self.count}.{self.tap}"

    @property
    def reads(self) -> tuple[Target, ...]:
        return (Target(f"{self.tap}.map", (self.tap,), Whole(self.tap)),)

    def passes(self, fit_views: int) -> Sequence[int]:
        return (*(turn % fit_views for turn in range(TURNS)), CLEAN)

    def begin(self, facts: Facts, shapes: Mapping[str, Mapping[str, Shape]], fit_views: int) -> State:
        channels = shapes[f"{self.tap}.map"][VALUES][0]
        generator = torch.Generator().manual_seed(facts.seed)
        atoms = torch.randn(self.count, channels, generator=generator)
        return {"atoms": atoms, "moments": torch.zeros_like(atoms), "generator": generator.get_state()}

    def step(self, state: State, batch: FitBatch) -> State:
        generator = torch.Generator()
        generator.set_state(state["generator"])
        with torch.enable_grad():  # extract runs without gradients
            atoms = state["atoms"].clone().requires_grad_()
            pixels = batch.arrays[f"{self.tap}.map"][VALUES].movedim(1, -1).flatten(0, -2)
            (slope,) = torch.autograd.grad(_distances(pixels, atoms).min(1).values.mean(), atoms)
        moments = 0.9 * state["moments"] + slope / (1 + slope.norm())
        noise = torch.randn(atoms.shape, generator=generator)
        moved = atoms.detach() - 0.05 * moments + 0.001 * noise
        return {"atoms": moved, "moments": moments, "generator": generator.get_state()}

    def remark(self, state: State) -> str:
        return f"atoms of size {float(state['atoms'].norm()):.3f}"

    def result(self, state: State, facts: Facts) -> dict[str, np.ndarray[Any, Any]]:
        return {"atoms": state["atoms"].numpy()}


def _distances(pixels: Tensor, atoms: Tensor) -> Tensor:
    """(P, C), (M, C) -> squared distances (P, M)."""
    return (pixels[:, None] - atoms[None]).square().sum(2)


@dataclass(frozen=True)
class Nearest:
    """`nearest`, the index of the nearest atom at every pixel of a side; `relation`, the second tap against the first.

    relation: (C_upper, C_lower), the mean over the upper tap's pixels of the products of both taps' channels.
    """

    lower: str
    upper: str
    side: int

    def __call__(self, taps: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        small = functional.adaptive_avg_pool2d(taps[self.lower], self.side)
        flat = small.movedim(1, -1).flatten(0, -2)
        nearest = _distances(flat, fitted["atoms"]).argmin(1).reshape(len(small), self.side, self.side)
        relation = related(taps[self.lower], taps[self.upper])
        return {"nearest": nearest.to(torch.uint16), "relation": relation}


def related(lower: Tensor, upper: Tensor) -> Tensor:
    """FSP's matrix, (B, C_upper, C_lower)."""
    pooled = functional.adaptive_avg_pool2d(lower, upper.shape[-1])
    return torch.einsum("bchw,bdhw->bcd", upper, pooled) / upper[0, 0].numel()


@dataclass(frozen=True)
class Share:
    """How near the map's pixels are to each atom, averaged over space after pooling to a side: (M,)."""

    tap: str
    side: int

    def __call__(self, taps: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        small = functional.adaptive_avg_pool2d(taps[self.tap], self.side)
        near = -_distances(small.movedim(1, -1).flatten(0, -2), fitted["atoms"])
        return {VALUES: near.softmax(1).reshape(len(small), -1, near.shape[1]).mean(1)}


class ProbeState(nn.Module):
    """Student's dictionary with BatchNorm, heads of both sides, memory banks of both sides."""

    def __init__(self, channels: int, atoms: int, widths: tuple[int, int], width: int, samples: int) -> None:
        super().__init__()
        self.dictionary = nn.Conv2d(channels, atoms, 1)
        self.norm = nn.BatchNorm2d(atoms)
        self.student_head = nn.Linear(widths[0], width)
        self.teacher_head = nn.Linear(widths[1], width)
        self.shift = nn.Parameter(torch.zeros(()))
        self.register_buffer("student_bank", functional.normalize(torch.randn(samples, width)))
        self.register_buffer("teacher_bank", functional.normalize(torch.randn(samples, width)))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))


@dataclass(frozen=True)
class Probe(Method):
    name: ClassVar[str] = "probe"
    paper: ClassVar[str] = "made up"
    inert = ("shift",)  # not a field, for it has no annotation

    atoms: int = 6
    negatives: int = 4
    width: int = 5
    epochs: int = 2

    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        return ("stage2", "stage3", "before_fc")

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        for tap in ("stage2", "stage3"):
            need(student[tap][0] == teacher[tap][0], f"method probe needs {tap} of equal width")
        side, fit = self._side(student, teacher), Atoms("stage2", self.atoms)
        nearest = Nearest("stage2", "stage3", side)
        return (
            Target(f"stage2.nearest{self.atoms}x{side}", ("stage2", "stage3"), nearest, fit),
            Target(f"stage2.share{self.atoms}x{side}", ("stage2",), Share("stage2", side), fit),
            vector("before_fc"),
        )

    def _side(self, student: Shapes, teacher: Shapes) -> int:
        return min(student["stage2"][1], teacher["stage2"][1])

    def fits(self, student: Shapes, teacher: Shapes) -> tuple[Fit, ...]:
        return (Atoms("stage2", self.atoms),)

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        atoms = torch.from_numpy(fitted[f"atoms{self.atoms}.stage2"]["atoms"])
        widths = (student["before_fc"][0], teacher["before_fc"][0])
        state = ProbeState(student["stage2"][0], self.atoms, widths, self.width, facts.samples)
        with torch.no_grad():
            state.dictionary.weight.copy_(atoms[..., None, None])
        return state

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        constant = {"schedule": "constant", "warmup": 0.0}
        return (
            Stage(
                name="dictionary",
                epochs=self.epochs,
                recipe={**constant, "optimizer": "adam", "learning_rate": 1e-3, "batch": 16},
                trains=("stage2",),
                weights={"pixel": Weight(1.0), "image": Weight(2.0)},
                task=0.0,
                select="validation_loss",
                discard=True,
            ),
            Stage(
                name="relation",
                epochs=1,
                recipe={**constant, "learning_rate": 0.01},
                trains=("stage3",),
                weights={"relation": Weight(1.0)},
                task=0.0,
            ),
            Stage(name="main", weights={"contrast": Weight(0.8, 1)}),
        )

    def terms(
        self,
        student: Mapping[str, Tensor],
        cached: Mapping[str, Mapping[str, Tensor]],
        batch: Batch,
        adapters: nn.Module,
    ) -> dict[str, Tensor]:
        assert isinstance(adapters, ProbeState)
        (first, second) = (key for key in cached if key.startswith("stage2"))
        if batch.stage == "dictionary":
            side = cached[first]["nearest"].shape[-1]
            scores = adapters.norm(adapters.dictionary(functional.adaptive_avg_pool2d(student["stage2"], side)))
            return {
                "pixel": functional.cross_entropy(scores, cached[first]["nearest"].long()),
                "image": (scores.softmax(1).mean((2, 3)) - cached[second][VALUES]).square().sum(1).mean(),
            }
        if batch.stage == "relation":
            difference = related(student["stage2"], student["stage3"]) - cached[first]["relation"]
            return {"relation": difference.square().mean()}
        ours, theirs = self._heads(student, cached, adapters)
        drawn = torch.randint(len(adapters.student_bank), (len(ours), self.negatives), generator=batch.generator)
        positive = (ours * theirs).sum(1, keepdim=True)
        negative = torch.einsum("bw,bkw->bk", ours, adapters.teacher_bank[drawn])
        scores = torch.cat([positive, negative], 1) + adapters.shift
        return {"contrast": functional.cross_entropy(scores, torch.zeros_like(batch.labels)), "unused": positive.mean()}

    def _heads(
        self, student: Mapping[str, Tensor], cached: Mapping[str, Mapping[str, Tensor]], adapters: ProbeState
    ) -> tuple[Tensor, Tensor]:
        ours = functional.normalize(adapters.student_head(student["before_fc"]))
        return ours, functional.normalize(adapters.teacher_head(cached["before_fc"][VALUES]))

    def after_step(
        self,
        student: Mapping[str, Tensor],
        cached: Mapping[str, Mapping[str, Tensor]],
        batch: Batch,
        adapters: nn.Module,
    ) -> None:
        assert isinstance(adapters, ProbeState)
        for bank, rows in zip(
            (adapters.student_bank, adapters.teacher_bank), self._heads(student, cached, adapters), strict=True
        ):
            bank[batch.indices] = functional.normalize(0.5 * bank[batch.indices] + 0.5 * rows.to(bank.dtype))

    def after_epoch(self, adapters: nn.Module) -> None:
        assert isinstance(adapters, ProbeState)
        adapters.epochs += 1
