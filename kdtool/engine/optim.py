"""Recipes: optimiser, schedule and batch of a training, as plain values, and the learning rate as a pure function."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kdtool.errors import UsageError, unknown
from kdtool.typed import check_types


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    batch: samples in a step, over all ranks. optimizer: "sgd" (with momentum, nesterov) or "adam". learning_rate: the
    highest. weight_decay: of every parameter. schedule: "cosine" to 0, "step" (times `gamma` at each milestone) or
    "constant", per step, after a linear warm-up. milestones and warmup are fractions of the epochs, so that a shorter
    run keeps the recipe's shape; every milestone is rounded to a whole epoch, a warm-up above 0 to at least one.
    resets: a new optimiser (moments 0) at each milestone, as SRM's code has it. drop_last: the rest of an epoch that
    fills no batch is not used.
    """

    epochs: int = 120
    batch: int = 256
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 5 / 120
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    resets: bool = False
    drop_last: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name, known in (("optimizer", ("sgd", "adam")), ("schedule", ("cosine", "step", "constant"))):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is at least 1, not {getattr(self, name)}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name, factor in (("learning rate", self.learning_rate), ("gamma", self.gamma)):
            if not 0 < factor < math.inf:
                raise UsageError(f"the {name} is above 0 and finite, not {factor}")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"the weight decay is at least 0 and finite, not {self.weight_decay}")
        fractions = [("momentum", self.momentum), ("warmup", self.warmup)]
        for name, fraction in [*fractions, *(("milestone", place) for place in self.milestones)]:
            if not 0 <= fraction < 1:
                raise UsageError(f"the {name} of a recipe is from 0 to below 1, not {fraction}")
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs a momentum above 0")
        if self.schedule == "step" and not self.milestones:
            raise UsageError(
                "the schedule step drops the learning rate at milestones, and this recipe has none; take --recipe crd, "
                "or say milestones = [0.5, 0.75] in [recipe] of a file for --config"
            )
        if self.resets and self.schedule != "step":
            raise UsageError(
                f"this recipe has a new optimiser at each drop of the schedule step, and {self.schedule} has no drops; "
                "take another --recipe, or say resets = false in [recipe] of a file for --config"
            )


_SRM = Recipe(
    epochs=200,
    batch=128,
    optimizer="adam",
    learning_rate=1e-3,
    weight_decay=1e-4,
    schedule="step",
    warmup=0.0,
    milestones=(30 / 200, 130 / 200),
    resets=True,
)
_STEPS = {"warmup": 0.0, "schedule": "step", "milestones": (150 / 240, 180 / 240, 210 / 240)}

# Sources: methods.md of the design; KDA's official code, RepDistiller, ICD's code, SRM's code (KD step). Of the linear
# probes: ICD's script of 2024, whose drops at epochs 150, 180 and 210 lie behind its 100 epochs; RepDistiller's; SRM's
# code (10, 20 and 10 epochs; the paper says 60 in all, which --epochs 60 gives). SRM's whole update is its KD step's.
RECIPES: dict[str, Recipe] = {
    "kda": Recipe(),
    "crd": replace(Recipe(epochs=240, batch=64, learning_rate=0.05), **_STEPS),  # type: ignore[arg-type]
    "icd": replace(Recipe(epochs=240, batch=64, learning_rate=0.05, drop_last=True), **_STEPS),  # type: ignore[arg-type]
    "srm": _SRM,
    "probe-icd": Recipe(epochs=100, batch=64, learning_rate=0.05, schedule="constant", warmup=0.0),
    "probe-crd": replace(
        Recipe(epochs=120, batch=64, learning_rate=0.05),
        **{**_STEPS, "milestones": (30 / 120, 60 / 120, 90 / 120)},  # type: ignore[arg-type]
    ),
    "probe-srm": replace(_SRM, epochs=40, milestones=(10 / 40, 30 / 40)),
}


def recipe(name: str) -> Recipe:
    """A recipe by name: "kda" (what commands take by themselves), "crd", "icd", "srm", or one of a probe."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]


def milestone_epochs(plan: Recipe) -> list[int]:
    """The epochs, from 0, at whose start the step schedule drops; at least one epoch has the full rate."""
    return [max(1, round(fraction * plan.epochs)) for fraction in plan.milestones]


def warmup_epochs(plan: Recipe) -> int:
    """Whole epochs of linear warm-up, never the whole run."""
    return min(max(1, round(plan.warmup * plan.epochs)), plan.epochs - 1) if plan.warmup > 0 else 0


def learning_rate(plan: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole run (KDA's main_kda.py for warm-up and cosine)."""
    warm, total = warmup_epochs(plan) * steps_per_epoch, plan.epochs * steps_per_epoch
    if step < warm:
        return plan.learning_rate * max(1, step) / warm
    if plan.schedule == "cosine":
        return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
    drops = sum(step >= epoch * steps_per_epoch for epoch in milestone_epochs(plan)) if plan.schedule == "step" else 0
    return float(plan.learning_rate * plan.gamma**drops)


def build_optimizer(
    plan: Recipe, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], fused: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of a recipe for parameters or groups of them; weight decay on everything, heads and BatchNorm
    included, as in the references.

    fused: all parameters in one kernel, on CUDA; on CPUs it is the slower one for large networks.
    """
    if plan.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=fused or None)
    return torch.optim.SGD(
        parameters,
        lr=plan.learning_rate,
        momentum=plan.momentum,
        nesterov=plan.nesterov,
        weight_decay=plan.weight_decay,
        fused=fused or None,
    )
