"""The vocabulary that methods, cache and engine share: what a method asks of the teacher, and how it is answered.

    tap      a named layer output: stem, stage1.., stageN.preact, before_fc (pooled vector), after_fc (logits)
    Target   what is stored for every (view, sample): named arrays, encoded from one or more taps
    Fit      what is learned once per cache from the train part: class centres, dictionaries, a paraphraser
    Batch    the samples of one training step

This module holds values and protocols only. It imports no torch at run time, so that the command line can list
methods without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    Taps = Mapping[str, "torch.Tensor"]  # tap -> (B, ...)
    Arrays = Mapping[str, "torch.Tensor"]  # array -> (B, ...)
    Fitted = Mapping[str, "torch.Tensor"]  # what a Fit learned, by name
    State = dict[str, "torch.Tensor"]
    Rows = np.ndarray[Any, np.dtype[np.int64]]  # positions (b,)

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # tap -> shape of one sample

CLEAN = -1  # the view without augmentation


def canonical_tap(name: str) -> str:
    """KDA's name of a stage, conv2_x to conv5_x, as stage1 to stage4; every other name as it is."""
    if name in ("conv2_x", "conv3_x", "conv4_x", "conv5_x"):
        return f"stage{int(name[4]) - 1}"
    return name


@dataclass(frozen=True)
class Facts:
    """What a run is about, as far as methods and fits may know it.

    samples: images of the train part, n. classes: L. labels: (n,) of the train part. batch: samples in a step.
    epochs: of the recipe. seed: of the run (of the cache's fits while extracting).
    """

    samples: int
    classes: int
    labels: np.ndarray[Any, np.dtype[np.int64]]
    batch: int
    epochs: int
    seed: int


class Encoder(Protocol):
    """Turns the taps of a batch into the named arrays that are stored.

    A frozen dataclass: its class name and its fields go into the cache's manifest as the record of what was stored.
    """

    def __call__(self, taps: Taps, fitted: Fitted) -> dict[str, torch.Tensor]:
        """(B, ...) taps -> (B, ...) arrays by name."""


@dataclass(frozen=True)
class Target:
    """What is stored of the teacher for every (view, sample): what `encode` makes of the taps.

    Equal keys mean equal content: the key carries every parameter of the encoder and the fit but the dtype, which is
    only a default for the floating arrays; a cache keeps the one that was chosen when the key was first extracted.
    A definition that changes under the same key gets a new `version`.
    """

    key: str
    taps: tuple[str, ...]
    encode: Encoder
    fit: Fit | None = None
    dtype: str = "float16"
    version: int = 1


@dataclass(frozen=True)
class FitBatch:
    """One batch of a fit's source: the arrays of its targets, rounded to the stored type, then as float32.

    arrays: target key -> array -> (b, ...), on the teacher's device; labels (b,) and positions (b,) in the train part,
    on the CPU; turn: number of the pass; view: the view that the pass runs over; last: the pass ends with this batch.
    Padding samples have been removed.
    """

    arrays: Mapping[str, Arrays]
    labels: torch.Tensor
    positions: torch.Tensor
    turn: int
    view: int
    last: bool = False


class Fit(Protocol):
    """Learned once per cache from the train part and stored beside the arrays; a frozen dataclass.

    `reads` names the targets whose encoded, rounded arrays are its input (they need not be stored themselves). The
    state is a flat dictionary of tensors that holds everything, random generators and optimiser moments included,
    so that a fit can be resumed at any batch bit for bit.
    """

    @property
    def key(self) -> str:
        """Carries every parameter of the fit."""

    @property
    def version(self) -> int:
        """Of the definition; another one under the same key is refused."""

    @property
    def reads(self) -> tuple[Target, ...]:
        """What each `FitBatch` holds."""

    def passes(self, fit_views: int) -> Sequence[int]:
        """The view of every pass, in order: 0..fit_views-1 or CLEAN, as often as wanted."""

    def begin(self, facts: Facts, shapes: Mapping[str, Mapping[str, Shape]], fit_views: int) -> State:
        """The state before the first batch; `shapes`: target key -> array -> shape of one sample."""

    def step(self, state: State, batch: FitBatch) -> State:
        """The state after one more batch."""

    def remark(self, state: State) -> str:
        """What the last pass came to, as a line for the one who waits; empty for nothing to say."""

    def result(self, state: State, facts: Facts) -> dict[str, np.ndarray[Any, Any]]:
        """The named arrays that are stored, from the state after the last pass."""


@dataclass(frozen=True)
class Batch:
    """The samples of one training step.

    indices (B,): positions in the train part, or in the validation part while a stage's validation loss is taken (view
    CLEAN); labels (B,); epoch and step count from 0 within the stage, which is named by `stage`. generator: on the
    device, seeded by the run's seed and the step, for draws such as CRD's negatives.
    """

    indices: torch.Tensor
    labels: torch.Tensor
    view: int
    stage: str
    epoch: int
    step: int
    generator: torch.Generator


Cached = Mapping[str, "Arrays"]  # target key -> array -> (B, ...), float32 where it is stored as floating


# A batch that will be asked for: its indices (b,), the very tensor that `Batch` will hold, and the same in memory.
Expected = tuple["torch.Tensor", "Rows"]


class TargetSource(Protocol):
    """Where a training step gets the teacher's answers from: `CachedTeacher`, or `LiveTeacher` in tests."""

    def read(self, batch: Batch) -> Cached:
        """The targets of a batch."""

    def expect(self, batches: Sequence[Expected], following: int) -> None:
        """Told the batches of an epoch in their order and the view of the epoch after it, so as to read ahead."""


@dataclass(frozen=True)
class Weight:
    """The weight of a loss term, active from epoch `start` on, counted from 0 within the stage."""

    value: float
    start: int = 0


@dataclass(frozen=True)
class Stage:
    """One stage of a method's training.

    epochs: None takes the recipe's. recipe: changes to the run's recipe, as field -> value (optimiser, learning rate,
    schedule). trains: taps of the student; the layers that these are computed from train, and the others stay as they
    are, in eval mode; None trains everything. weights: term -> weight; a term that is not named is not used; None gives
    every term weight 1. task: weight of the cross-entropy that the engine adds. select: which weights of student and
    adapters leave the stage, "last" or those with the lowest "validation_loss" (of the ends of phases where the recipe
    has `resets`, else of all epochs; the last where there is no validation part). discard: the adapters start the next
    stage afresh.
    """

    name: str = "distill"
    epochs: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    trains: tuple[str, ...] | None = None
    weights: Mapping[str, Weight] | None = None
    task: float = 1.0
    select: str = "last"
    discard: bool = False


def describe(value: object) -> dict[str, Any]:
    """A frozen dataclass as plain data: its class name and its fields. This is its record on disk."""
    assert dataclasses.is_dataclass(value)
    assert not isinstance(value, type)
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {"name": type(value).__name__, **{key: _plain(item) for key, item in fields.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return describe(value)
    return value


def rebuild(record: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    """The dataclass that `describe` made a record of; `kinds`: class name -> class.

    KeyError for a name that is not among the kinds, ValueError where the class has other fields than the record.
    """
    kind = kinds[str(record["name"])]
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    value = kind(**{name: _built(item, kinds) for name, item in record.items() if name in known})
    if describe(value) != record:
        raise ValueError(f"{kind.__name__} has other fields than its record")
    return value


def _built(value: Any, kinds: Mapping[str, type]) -> Any:
    if isinstance(value, list):
        return tuple(_built(item, kinds) for item in value)
    return rebuild(value, kinds) if isinstance(value, Mapping) else value


def by_key(targets: Sequence[Target]) -> dict[str, Target]:
    """Targets by key, each once; two different definitions under one key are a bug of a method."""
    found: dict[str, Target] = {}
    for target in targets:
        known = found.setdefault(target.key, target)
        assert known == target, f"two definitions of the target {target.key!r}: {known} and {target}"
    return found
