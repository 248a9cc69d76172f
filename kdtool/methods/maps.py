"""Feature maps: which taps of two networks belong together, the maps as targets, and methods that pair them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.protocol import FittedResults, Method, need
from kdtool.methods.vectors import VALUES, tap_of
from kdtool.targets import Batch, Cached, Facts, Shape, Shapes, Stage, Target, Weight, canonical_tap

if TYPE_CHECKING:
    from kdtool.targets import Arrays, Fitted, Taps

Size = tuple[int, int]


@dataclass(frozen=True)
class MapPair:
    """A tap of the student and the tap of the teacher that it learns from, with the shapes (C, H, W) of a sample."""

    student: str
    teacher: str
    student_shape: Shape
    teacher_shape: Shape

    @property
    def name(self) -> str:
        """The tap where it is the same on both sides, else both; usable as the name of a module."""
        taps = self.student if self.student == self.teacher else f"{self.student}_{self.teacher}"
        return taps.replace(".", "_")

    @property
    def size(self) -> Size:
        """(H, W) of the smaller map, to which the larger one is pooled."""
        (_, high, wide), (_, teacher_high, teacher_wide) = self.student_shape, self.teacher_shape
        return min(high, teacher_high), min(wide, teacher_wide)

    @property
    def teacher_size(self) -> Size | None:
        """(H, W) to which the teacher's map has to be pooled; None where it is not the larger one."""
        return self.size if self.size != self.teacher_shape[1:] else None


Default = Callable[[Shapes, Shapes], Sequence[tuple[str, str]]]  # shapes of student and teacher -> pairs of taps


def map_pairs(
    method: str, layers: Sequence[str], student: Shapes, teacher: Shapes, default: Default
) -> tuple[MapPair, ...]:
    """The pairs that `--layer` names, else those of `default`.

    A layer is a tap of both networks, or STUDENT:TEACHER. UsageError for a tap that a network lacks, one that is no
    map, and a pair that is named twice.
    """
    named = [_two_taps(layer) for layer in layers] or list(default(student, teacher))
    pairs = []
    for ours, theirs in named:
        ours = tap_of(ours, student, "student")
        theirs = tap_of(theirs, teacher, "teacher")
        for tap, shape in ((ours, student[ours]), (theirs, teacher[theirs])):
            need(
                len(shape) == 3,
                f"method {method} works on maps (C, H, W), and {tap} is "
                + (f"a vector of {shape[0]} numbers" if len(shape) == 1 else f"of the shape {shape}"),
            )
        pairs.append(MapPair(ours, theirs, student[ours], teacher[theirs]))
    need(len(set(pairs)) == len(pairs), f"method {method}: a layer is named twice")
    return tuple(pairs)


_NAMED = "name layers with --layer STUDENT:TEACHER; --tap stage2=PATH names a module of a network of yours"


def _two_taps(layer: str) -> tuple[str, str]:
    student, _, teacher = layer.partition(":")
    return canonical_tap(student), canonical_tap(teacher or student)


def stage_taps(shapes: Shapes) -> tuple[str, ...]:
    """stage1, stage2, .. of a network."""
    return tuple(f"stage{number}" for number in range(1, len(shapes) + 1) if f"stage{number}" in shapes)


def _stages(student: Shapes, teacher: Shapes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The stages of both; a network without any is refused by name."""
    found = stage_taps(student), stage_taps(teacher)
    lacking = [name for name, stages in zip(("student", "teacher"), found, strict=True) if not stages]
    need(not lacking, f"the {' and the '.join(lacking)} names no stages; {_NAMED}")
    return found


def every_stage(student: Shapes, teacher: Shapes) -> list[tuple[str, str]]:
    """All stages one by one (f_1 to f_(K-1) of RepDistiller); networks of another number of stages are refused."""
    ours, theirs = _stages(student, teacher)
    need(
        len(ours) == len(theirs),
        f"the student has {len(ours)} stages and the teacher {len(theirs)}, so they cannot be paired one by one; name "
        "the pairs, as in --layer stage3:stage4",
    )
    return list(zip(ours, theirs, strict=True))


def last_stage(student: Shapes, teacher: Shapes) -> list[tuple[str, str]]:
    """The last stage of each (f_(K-1) of RepDistiller)."""
    ours, theirs = _stages(student, teacher)
    return [(ours[-1], theirs[-1])]


def second_stage(student: Shapes, teacher: Shapes) -> list[tuple[str, str]]:
    """stage2 of both, the hint of RepDistiller (f_2)."""
    return [("stage2", "stage2")]


def pooled_to(feature_map: Tensor, size: Size | None) -> Tensor:
    """A map (B, C, H, W) averaged down to a size (adaptive average pooling); as it is for its own size and for None."""
    if size is None or tuple(feature_map.shape[2:]) == tuple(size):
        return feature_map
    return functional.adaptive_avg_pool2d(feature_map, size)


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (B, C, H, W) at the size of the smaller one."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return pooled_to(student, size), pooled_to(teacher, size)


def size_suffix(size: Size | None) -> str:
    """How a key carries the size that a map was pooled to: `.8x8`, nothing where it was not."""
    return "" if size is None else f".{size[0]}x{size[1]}"


@dataclass(frozen=True)
class WholeMap:
    """The map of a tap, averaged down to (H, W) where a size is given; `values` (B, C, H, W)."""

    tap: str
    size: Size | None = None

    def __call__(self, taps: Taps, fitted: Fitted) -> dict[str, torch.Tensor]:
        """The stored array."""
        return {VALUES: pooled_to(taps[self.tap], self.size)}


def whole_map(tap: str, size: Size | None = None) -> Target:
    """The target of a whole map: key `stageN.map`, or `stageN.map.8x8` where it is pooled."""
    return Target(f"{tap}.map{size_suffix(size)}", (tap,), WholeMap(tap, size))


class Paired(nn.Module):
    """Adapters on pairs of maps: the pairs, and for each one the module that `build` makes, if any."""

    def __init__(self, pairs: Sequence[MapPair], build: Callable[[MapPair], nn.Module | None] = lambda _: None) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        built = {pair.name: build(pair) for pair in pairs}
        self.by_pair = nn.ModuleDict({name: module for name, module in built.items() if module is not None})

    def of(self, pair: MapPair) -> nn.Module:
        """The module of a pair."""
        return self.by_pair[pair.name]


@dataclass(frozen=True)
class MapMethod(Method):
    """A method on pairs of maps, of one term that is named after it.

    layers: pairs of taps, STUDENT:TEACHER, or a tap of both; none for `default`.
    """

    weight: float = 1.0
    layers: tuple[str, ...] = ()

    @abstractmethod
    def default(self, student: Shapes, teacher: Shapes) -> Sequence[tuple[str, str]]:
        """The pairs of taps where no layers are named."""

    def module(self, pair: MapPair) -> nn.Module | None:
        """What trains beside the student on a pair."""
        return None

    def pairs(self, student: Shapes, teacher: Shapes) -> tuple[MapPair, ...]:
        """The taps that belong together."""
        return map_pairs(self.name, self.layers, student, teacher, self.default)

    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        """The maps of the pairs."""
        return tuple(dict.fromkeys(pair.student for pair in self.pairs(student, teacher)))

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        """The pairs and their modules."""
        return Paired(self.pairs(student, teacher), self.module)

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """One."""
        return (Stage(weights={self.name: Weight(self.weight)}),)


@dataclass(frozen=True)
class PairwiseMethod(MapMethod):
    """A method on pairs of maps whose loss is a sum of losses, one of each pair and of what is stored for it."""

    @abstractmethod
    def target(self, pair: MapPair) -> Target:
        """What is stored of the teacher for a pair."""

    @abstractmethod
    def loss(self, student_map: Tensor, stored: Arrays, pair: MapPair, adapters: Paired) -> Tensor:
        """The loss of a pair, of the student's map (B, C, H, W) and the stored arrays."""

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """Those of the pairs, each once."""
        return tuple(dict.fromkeys(self.target(pair) for pair in self.pairs(student, teacher)))

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """The sum over the pairs."""
        paired = cast(Paired, adapters)
        losses = [
            self.loss(student[pair.student], cached[self.target(pair).key], pair, paired) for pair in paired.pairs
        ]
        return {self.name: torch.stack(losses).sum()}
