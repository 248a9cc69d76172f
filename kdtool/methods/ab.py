"""AB: the student's neurons learn on which side of zero the teacher's are (Heo et al. 2019, arXiv 1811.03233).

Before its training the student's maps, ahead of their ReLU and through a connector, are drawn beyond a margin of 1 on
the side of zero where the teacher's neuron is (the alternative loss of Eq. 4). As RepDistiller runs it:

* a stage "init" on this loss alone, then "distill" on labels alone; the weight acts in the first only.
* every stage is a level: the sum over its elements times 3 / (1000 B) and 2^(i - n + 1), which is 1 for the last one.
  The levels that the reference gives hold both factors, so that the loss is their plain sum.
* the connector is none where the shapes are equal, else FitNet's regressor without ReLU; it is dropped after "init".
* the classifier stays as it is, and so does the BatchNorm behind the last stage of a wide resnet, through which its
  last map is read.

Of the teacher one bit an element is stored, whether it is above zero: exact, in any dtype of the cache. Left out: other
margins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.initialisation import LEARNING_RATE, check_init, init_stage
from kdtool.methods.maps import MapMethod, MapPair, Paired, every_stage
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.regressor import check_regressor, regressor
from kdtool.targets import Batch, Cached, Facts, Shape, Shapes, Stage, Target

if TYPE_CHECKING:
    from kdtool.targets import Fitted, Taps

SIGNS = "signs"
PREACT = ".preact"
BITS = 8


@at_least_float32
def ab_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """sum_i 2^(i-n+1) 3/(1000 B) l_i, i = 0..n-1 from the lowest level to the highest (Eq. 4; factors: RepDistiller).

    l_i sums over all elements max(0, 1 + s)^2 where t <= 0 and max(0, 1 - s)^2 where t > 0. student_maps: s, ahead of
    the ReLU, each (B, C, H, W); teacher_maps: t of the same shapes, or their signs t > 0 as booleans. 0 where every
    student's neuron is beyond the margin, so not for a student that is the teacher.
    """
    need(
        [tuple(ours.shape) for ours in student_maps] == [tuple(theirs.shape) for theirs in teacher_maps],
        "AB compares maps of equal shapes level by level, and the lists differ; bring the student's maps there first",
    )
    levels = []
    for number, (ours, theirs) in enumerate(zip(student_maps, teacher_maps, strict=True)):
        active = theirs if theirs.dtype == torch.bool else theirs > 0
        level = torch.where(active, 1 - ours, 1 + ours).relu().square().sum()
        levels.append(2.0 ** (number - len(student_maps) + 1) * level)
    return torch.stack(levels).sum() * (3 / (1000 * len(student_maps[0])))


def pack_bits(bits: Tensor) -> Tensor:
    """(B, ...) booleans -> (B, ceil(n / 8)) uint8 for n bits a sample in C order, the first one in the highest place.

    The rest of the last byte is zeros. Equals numpy.packbits of every sample.
    """
    flat = bits.flatten(1).to(torch.uint8)
    whole = functional.pad(flat, (0, -flat.shape[1] % BITS)).reshape(len(flat), -1, BITS)
    return torch.sum(whole << _places(bits.device), 2, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Shape) -> Tensor:
    """(B, ceil(n / 8)) uint8 -> (B, *shape) booleans, n = the elements of `shape`."""
    bits: Tensor = (packed[:, :, None] >> _places(packed.device)) & 1
    return bits.flatten(1)[:, : math.prod(shape)].reshape(len(packed), *shape).bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(BITS - 1, -1, -1, dtype=torch.uint8, device=device)


@dataclass(frozen=True)
class Signs:
    """Whether each element of a map is above zero: `signs` (B, ceil(C H W / 8)) uint8."""

    tap: str

    def __call__(self, taps: Taps, fitted: Fitted) -> dict[str, torch.Tensor]:
        """The stored array."""
        return {SIGNS: pack_bits(taps[self.tap] > 0)}


def signs(tap: str) -> Target:
    """The target of a map's signs: key `stageN.preact.signs`."""
    return Target(f"{tap}.{SIGNS}", (tap,), Signs(tap))


def every_preact(student: Shapes, teacher: Shapes) -> list[tuple[str, str]]:
    """The maps ahead of the last ReLU of all stages, one by one; networks that do not name them are refused."""
    pairs = [(f"{ours}{PREACT}", f"{theirs}{PREACT}") for ours, theirs in every_stage(student, teacher)]
    for side, shapes, taps in zip(("student", "teacher"), (student, teacher), zip(*pairs, strict=True), strict=True):
        lacking = [tap for tap in taps if tap not in shapes]
        need(
            not lacking,
            f"method ab works on maps ahead of a ReLU, and the {side} does not name {', '.join(lacking)}; take another "
            "network, or name such maps with --layer STUDENT:TEACHER",
        )
    return pairs


@dataclass(frozen=True)
class AB(MapMethod):
    """Activation boundaries.

    weight: of the loss in the stage "init". layers: pairs of taps ahead of a ReLU, STUDENT:TEACHER, from the lowest
    level to the highest; none for all stages. init_epochs (none: 30 of 240) and init_learning_rate belong to "init".
    """

    name: ClassVar[str] = "ab"
    paper: ClassVar[str] = "Heo et al. 2019, arXiv 1811.03233"

    init_epochs: int | None = None
    init_learning_rate: float = LEARNING_RATE

    def __post_init__(self) -> None:
        check_init(self.name, self.init_epochs, self.init_learning_rate)

    @property
    def inert(self) -> tuple[str, ...]:
        """The connectors' biases, which BatchNorm takes out again."""
        return ("convolution.bias",)

    def default(self, student: Shapes, teacher: Shapes) -> Sequence[tuple[str, str]]:
        """All stages, ahead of their last ReLU."""
        return every_preact(student, teacher)

    def pairs(self, student: Shapes, teacher: Shapes) -> tuple[MapPair, ...]:
        """Maps ahead of a ReLU, of sizes that there is a connector for."""
        pairs = super().pairs(student, teacher)
        for pair in pairs:
            for tap, shapes in ((pair.student, student), (pair.teacher, teacher)):
                before = f"{tap}{PREACT}"
                need(before not in shapes, f"method ab works on maps ahead of a ReLU: name {before}, not {tap}")
            check_regressor(self.name, pair)
        return pairs

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """Signs."""
        return tuple(signs(tap) for tap in dict.fromkeys(pair.teacher for pair in self.pairs(student, teacher)))

    def module(self, pair: MapPair) -> nn.Module:
        """The connector."""
        return connector(pair)

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """The boundaries, then a training without them.

        What trains first is named by the stages' ends, where the network names them, not by their maps ahead of the
        ReLU: in a wide resnet those lie behind the BatchNorm that follows.
        """
        ends = ((tap.removesuffix(PREACT), tap) for tap in self.student_taps(student, teacher))
        trains = tuple(end if end in student else tap for end, tap in ends)
        init = init_stage("init", "ab", self.weight, trains, facts, self.init_epochs, self.init_learning_rate)
        return init, Stage(weights={})

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`ab`."""
        paired = cast(Paired, adapters)
        ours = [paired.of(pair)(student[pair.student]) for pair in paired.pairs]
        theirs = [unpack_bits(cached[signs(pair.teacher).key][SIGNS], pair.teacher_shape) for pair in paired.pairs]
        return {"ab": ab_loss(ours, theirs)}


def connector(pair: MapPair) -> nn.Module:
    """What brings a student's map to the teacher's shape."""
    return nn.Identity() if pair.student_shape == pair.teacher_shape else regressor(pair, relu=False)
