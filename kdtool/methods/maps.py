"""Feature maps: which taps of two networks belong together, and the maps as targets.

What AT, NST, SP, FitNet, VID, AB, FT and SRM share. Left out: FSP's pairs of consecutive taps, which are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.protocol import need
from kdtool.methods.vectors import VALUES, tap_of
from kdtool.targets import Shape, Shapes, Target, canonical_tap

if TYPE_CHECKING:
    from kdtool.targets import Fitted, Taps

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
                len(shape) == 3, f"method {method} works on maps (C, H, W), and {tap} is a vector of {shape[0]} numbers"
            )
        pairs.append(MapPair(ours, theirs, student[ours], teacher[theirs]))
    need(len(set(pairs)) == len(pairs), f"method {method}: a layer is named twice")
    return tuple(pairs)


def _two_taps(layer: str) -> tuple[str, str]:
    student, _, teacher = layer.partition(":")
    return canonical_tap(student), canonical_tap(teacher or student)


def stage_taps(shapes: Shapes) -> tuple[str, ...]:
    """stage1, stage2, .. of a network."""
    return tuple(f"stage{number}" for number in range(1, len(shapes) + 1) if f"stage{number}" in shapes)


def every_stage(student: Shapes, teacher: Shapes) -> list[tuple[str, str]]:
    """All stages one by one (f_1 to f_(K-1) of RepDistiller); networks of another number of stages are refused."""
    ours, theirs = stage_taps(student), stage_taps(teacher)
    need(
        len(ours) == len(theirs),
        f"the student has {len(ours)} stages and the teacher {len(theirs)}, so they cannot be paired one by one; name "
        "the pairs, as in --layer stage3:stage4",
    )
    need(bool(ours), "the networks name no stages; name layers that both have with --layer STUDENT:TEACHER")
    return list(zip(ours, theirs, strict=True))


def last_stage(student: Shapes, teacher: Shapes) -> list[tuple[str, str]]:
    """The last stage of each (f_(K-1) of RepDistiller)."""
    ours, theirs = stage_taps(student), stage_taps(teacher)
    need(bool(ours and theirs), "a network names no stages; name layers with --layer STUDENT:TEACHER")
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

    def __init__(self, pairs: Sequence[MapPair], build: Callable[[MapPair], nn.Module] | None = None) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.modules_by_pair = nn.ModuleDict({pair.name: build(pair) for pair in pairs} if build else {})

    def of(self, pair: MapPair) -> nn.Module:
        """The module of a pair."""
        return self.modules_by_pair[pair.name]
