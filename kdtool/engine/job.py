"""What a training is made of: student, stages, methods, data, recipe. Nothing here changes while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdtool import philox
from kdtool.data.batches import batch_slices
from kdtool.data.images import Images
from kdtool.engine.optim import Recipe
from kdtool.engine.ranks import Alone, Ranks
from kdtool.errors import UsageError
from kdtool.methods.protocol import Method, need
from kdtool.targets import Stage, TargetSource, Weight


@dataclass(frozen=True)
class Labelled:
    """Images with their labels on the device. share: of the images that have a label."""

    images: Images
    labels: Tensor
    share: float = 1.0


@dataclass(frozen=True)
class Bound:
    """A method together with what this run makes of it; `adapters` builds its module for one stage.

    weights: None for the run's method, whose stages say them; those of a method that `--with` adds.
    """

    method: Method
    taps: tuple[str, ...]
    adapters: Callable[[], nn.Module]
    weights: Mapping[str, Weight] | None = None


@dataclass(frozen=True)
class Job:
    """Everything that a training is made of. `bound`: the method first, what `--with` adds after it; empty for none.

    fixed: parameters of the student that no stage trains; their modules stay in eval mode unless `moving` lets their
    BatchNorms follow the data. head, head_factor: module path of the classifier, and what its learning rate is
    multiplied by. keep: the weights of every so many epochs are kept, of none for None. ranks: the processes that train
    it together. validation_source: of the targets that a stage selects by. shuffle_block: samples that are shuffled
    among themselves, None for all.
    """

    student: nn.Module
    stages: tuple[Stage, ...]
    bound: tuple[Bound, ...]
    source: TargetSource | None
    train: Labelled
    test: Labelled
    validation: Labelled | None
    validation_source: TargetSource | None
    recipe: Recipe
    views: int
    seed: int
    precision: str
    shuffle_block: int | None = None
    fixed: frozenset[str] = frozenset()
    moving: bool = False
    head: str = ""
    head_factor: float = 1.0
    keep: int | None = None
    ranks: Ranks = Alone()  # noqa: RUF009 - it has no state

    @property
    def device(self) -> torch.device:
        """Where the training runs."""
        return self.train.labels.device


def stage_recipe(plan: Recipe, stage: Stage) -> Recipe:
    """The recipe of one stage."""
    return replace(plan, **{**stage.recipe, "epochs": stage.epochs or plan.epochs})


def epoch_steps(job: Job, plan: Recipe) -> int:
    """The steps of an epoch of a stage with this recipe."""
    return len(batch_slices(len(job.train.labels), plan.batch, plan.drop_last))


def check_schedule(stages: Sequence[Stage], bound: Sequence[Bound], plan: Recipe, samples: int) -> None:
    """Refuses a schedule in which a term would never become active, or whose epochs would have no step."""
    if len(bound) > 1 and not any(stage.task for stage in stages):
        own, extra = bound[0].method.name, bound[1].method.name
        raise UsageError(
            f"--with {extra} adds to stages that have a cross-entropy, and {own} has none with these options; give it "
            f"one, as in --set {own}.task=1"
        )
    for stage in stages:
        recipe = stage_recipe(plan, stage)
        epochs = recipe.epochs
        batch_slices(samples, recipe.batch, recipe.drop_last)
        need(recipe.batch > 1, "--batch 1: BatchNorm has no statistics of one sample; ask for 2 or more")
        need(stage.task >= 0, f"the weight of the cross-entropy is {stage.task:g}; a weight is at least 0")
        weights = weights_of(stage, bound)
        idle = not stage.task and stage.weights is not None and not any(weight.value for weight in weights.values())
        need(not idle, f"stage {stage.name} trains nothing: its cross-entropy and all its terms have weight 0")
        for term, weight in weights.items():
            need(weight.value >= 0, f"the weight of the term {term} is {weight.value:g}; a weight is at least 0")
            if weight.value != 0 and weight.start >= epochs:
                raise UsageError(
                    f"the term {term} becomes active in epoch {weight.start + 1} and the run has {epochs}; "
                    f"ask for more with --epochs {weight.start + 1}"
                )


def weights_of(stage: Stage, bound: Sequence[Bound]) -> dict[str, Weight]:
    """term -> weight of a stage's loss, what `--with` adds included; none of a stage that weighs all terms alike."""
    added = {term: weight for extra in bound for term, weight in (extra.weights or {}).items()}
    return {**(stage.weights or {}), **(added if stage.task else {})}


def loss_text(stage: Stage, bound: Sequence[Bound]) -> str:
    """A stage's loss for people, with the weights as they are after what a method scales them by."""
    found = [f"{stage.task:g} cross-entropy"] if stage.task else []
    found += ["every term of the method"] if stage.weights is None and bound else []
    for term, weight in weights_of(stage, bound).items():
        if weight.value:
            found.append(f"{weight.value:.4g} {term}" + (f" from epoch {weight.start + 1}" if weight.start else ""))
    return " + ".join(found)


def check_keep(epochs: int | None) -> None:
    """Refuses a number of epochs that is none."""
    if epochs is not None and epochs < 1:
        raise UsageError(f"--keep-weights is at least 1, not {epochs}")


def check_head_rate(rate: float | None) -> None:
    """Refuses a learning rate of the classifier that is none."""
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"--head-lr is above 0 and finite, not {rate}")


def check_seed(seed: int) -> None:
    """Refuses a seed that torch or the counter-based generator would cut off."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed is a whole number from 0 to {2**32 - 1:,}, not {seed}")


def teacher_seed(seed: int) -> int:
    """The seed of a teacher's first weights, so that a student of the same network and seed begins with others.

    torch takes 32 bits of a seed.
    """
    return (seed + 0x9E3779B9) % 2**32


def adapter_seed(seed: int, stage: int) -> int:
    """The seed of what a method adds to the student, so that it does not begin with the student's own numbers."""
    return int(philox.words(seed, philox.ADAPTERS, stage, [0], 1)[0, 0])


def seed_of(result: Mapping[str, Any]) -> int:
    """The seed of the first weights of a finished run."""
    seed = int(result.get("seed", 0))
    return teacher_seed(seed) if result["command"] == "teach" else seed


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block in which torch's global generator of the CPU is seeded; it is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)  # a damaged record may hold any number
        yield
