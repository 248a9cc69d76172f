"""FT: the student reproduces a paraphrase of what the teacher sees (Kim, Park & Kwak 2018, arXiv 1802.04977).

A paraphraser, a small convolutional autoencoder, is learned on the teacher's last map without labels; what its encoder
makes of a map is the teacher's factor (section 3.1). A translator makes a factor of the student's map, trained together
with the student (section 3.2). As RepDistiller has it:

* a factor is compared by the places where it is large: the mean square over its channels, over the norm. The paper
  compares whole factors over their norms. So one number for each place is stored.
* the weight is 200. The paraphraser is without BatchNorm, the translator has it. The paraphraser takes 30 passes of SGD
  at a constant learning rate with momentum 0.9 and weight decay 5e-4.

The paraphraser is learned once per cache, whatever the student will be. Departures from RepDistiller that follow:

* its learning rate is 0.01 for every student (there 0.05 for VGG)
* its batches are those of the cache, in the cache's order and over the fit views in turn (there 64, shuffled); it
  learns from maps as they are stored
* its gradient is clipped to a norm of 10. For maps of usual values it is far shorter, and nothing changes; for values
  some ten times as large the reference diverges

Left out: other norms of the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool import files
from kdtool.methods.at import attention
from kdtool.methods.learning import descend
from kdtool.methods.maps import (
    MapPair,
    Paired,
    PairwiseMethod,
    Size,
    last_stage,
    pooled_to,
    same_size,
    size_suffix,
    whole_map,
)
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.vectors import VALUES
from kdtool.targets import Facts, FitBatch, Shape, Shapes, Target

if TYPE_CHECKING:
    from kdtool.targets import Arrays, Fitted, State, Taps

ENCODER = ("encoder.0", "encoder.1", "encoder.2")
DECODER = ("decoder.0", "decoder.1", "decoder.2")
PARTS = ("weight", "bias")
LEARNED = tuple(f"{layer}.{part}" for layer in ENCODER + DECODER for part in PARTS)
SLOPE = 0.1  # of the leaky ReLUs
CLIP_NORM = 10.0  # of the paraphraser's gradient


@at_least_float32
def factor_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The mean over B HW of |a_S - a_T|, a = `attention` of a factor (section 3.2 with p = 1; RepDistiller's a).

    student_map (B, F, h, w), teacher_map (B, G, H, W): the larger one is averaged down to the size of the
    smaller one first. No gradient reaches the teacher's.
    """
    need(
        len(student_map) == len(teacher_map),
        f"FT compares factors of the same samples, not {len(student_map)} of the student with {len(teacher_map)}",
    )
    student, teacher = same_size(student_map, teacher_map.detach())
    return functional.l1_loss(attention(student), attention(teacher))


def factor_count(channels: int, rate: float) -> int:
    """Channels of the factor of a map: floor(C rate), at least 1."""
    return max(1, int(channels * rate))


def translator(channels: int, factors: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, F, H, W): 3x3 convolutions C -> C -> F -> F, each with bias, BatchNorm and leaky ReLU."""
    parts: list[nn.Module] = []
    for before, after in pairwise((channels, channels, factors, factors)):
        parts += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*parts)


def factor_map(feature_map: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """(B, C, H, W) -> (B, F, H, W): the encoder, 3x3 convolutions C -> C -> F -> F, each with leaky ReLU."""
    for layer in ENCODER:
        feature_map = functional.conv2d(feature_map, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)
        feature_map = functional.leaky_relu(feature_map, SLOPE)
    return feature_map


def reconstruction(factors: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """(B, F, H, W) -> (B, C, H, W): the decoder, transposed convolutions F -> F -> C -> C, each with leaky ReLU."""
    for layer in DECODER:
        factors = functional.conv_transpose2d(factors, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)
        factors = functional.leaky_relu(factors, SLOPE)
    return factors


def initial(channels: int, factors: int) -> dict[str, Tensor]:
    """The weights of encoder and decoder as PyTorch draws them by default."""
    widths = (channels, channels, factors, factors)
    layers: list[nn.Module] = [nn.Conv2d(*sizes, 3) for sizes in pairwise(widths)]
    layers += [nn.ConvTranspose2d(*sizes, 3) for sizes in pairwise(reversed(widths))]
    named = zip(ENCODER + DECODER, layers, strict=True)
    return {f"{name}.{part}": drawn.detach() for name, layer in named for part, drawn in layer.named_parameters()}


def reconstruction_error(maps: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The mean squared error of the maps that come out again."""
    return functional.mse_loss(reconstruction(factor_map(maps, weights), weights), maps)


@dataclass(frozen=True)
class Paraphraser:
    """The encoder of one tap of the teacher, learned with a decoder by the error of the reconstruction.

    rate: channels of the factor for one of the map. turns: passes over the train part. Stored: the weights of the
    encoder, and `errors` (turns,) float64, the mean squared error of each pass.
    """

    tap: str
    rate: float
    turns: int
    learning_rate: float
    version: int = field(default=1, init=False)

    @property
    def key(self) -> str:
        """`paraphraser.`, the tap and every parameter."""
        return f"paraphraser.{self.tap}.{self.suffix}"

    @property
    def suffix(self) -> str:
        """The parameters, as keys carry them."""
        return f"rate{self.rate}.passes{self.turns}.lr{self.learning_rate}"

    @property
    def reads(self) -> tuple[Target, ...]:
        """The whole map."""
        return (whole_map(self.tap),)

    def passes(self, fit_views: int) -> Sequence[int]:
        """The fit views in turn."""
        return tuple(turn % fit_views for turn in range(self.turns))

    def begin(self, facts: Facts, shapes: Mapping[str, Mapping[str, Shape]], fit_views: int) -> State:
        """Weights drawn as PyTorch does by default, which depend on the seed and the tap alone; nothing counted."""
        channels = shapes[self.reads[0].key][VALUES][0]
        seed = int(files.sha256(f"{facts.seed} {self.tap}".encode())[:16], 16)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            weights = initial(channels, factor_count(channels, self.rate))
        return {
            **weights,
            "errors": torch.zeros(self.turns, dtype=torch.float64),
            "numbers": torch.zeros((), dtype=torch.float64),
            "done": torch.zeros((), dtype=torch.int64),
        }

    def step(self, state: State, batch: FitBatch) -> State:
        """One step of SGD on the mean squared error of a batch."""
        maps = batch.arrays[self.reads[0].key][VALUES]
        state = {name: kept.to(maps.device) for name, kept in state.items()}
        error = descend(state, LEARNED, self._optimizer, lambda learned: reconstruction_error(maps, learned))
        state["errors"][batch.turn] += error.double() * maps.numel()
        state["numbers"] += maps.numel()
        if batch.last:
            state["errors"][batch.turn] /= state["numbers"]
            state["numbers"].zero_()
            state["done"].fill_(batch.turn + 1)
        return state

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4)
        made.register_step_pre_hook(lambda *_: _clip(parameters))
        return made

    def remark(self, state: State) -> str:
        """The error of the last pass."""
        turn = int(state["done"]) - 1
        return f"reconstruction error {float(state['errors'][turn]):.4g}" if turn >= 0 else ""

    def result(self, state: State, facts: Facts) -> dict[str, np.ndarray[Any, Any]]:
        """The encoder and the record of the passes."""
        stored = [f"{layer}.{part}" for layer in ENCODER for part in PARTS]
        return {name: state[name].cpu().numpy() for name in (*stored, "errors")}


def _clip(parameters: Sequence[nn.Parameter]) -> None:
    nn.utils.clip_grad_norm_(parameters, CLIP_NORM)


@dataclass(frozen=True)
class Factor:
    """The attention of a tap's factor, averaged down to (H, W) where a size is given; `values` (B, H W)."""

    tap: str
    size: Size | None = None

    def __call__(self, taps: Taps, fitted: Fitted) -> dict[str, torch.Tensor]:
        """The stored array."""
        rows = taps[self.tap]
        weights = {name: value.to(rows.dtype) for name, value in fitted.items()}
        return {VALUES: attention(pooled_to(factor_map(rows, weights), self.size))}


@dataclass(frozen=True)
class FT(PairwiseMethod):
    """Factor transfer.

    layers: pairs of taps, STUDENT:TEACHER, whose losses are summed; none for the last stages. rate: channels of the
    factor for one of the teacher's map. passes, learning_rate: of the paraphraser.
    """

    name: ClassVar[str] = "ft"
    paper: ClassVar[str] = "Kim et al. 2018, arXiv 1802.04977"

    weight: float = 200.0
    rate: float = 0.5
    passes: int = 30
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        need(self.rate > 0, f"option ft.rate is above 0, not {self.rate}")
        need(self.passes >= 1, f"option ft.passes is at least 1, not {self.passes}")
        need(self.learning_rate > 0, f"option ft.learning_rate is above 0, not {self.learning_rate}")

    @property
    def inert(self) -> tuple[str, ...]:
        """The biases of the translators' convolutions, which BatchNorm takes out again."""
        return ("0.bias", "3.bias", "6.bias")

    def default(self, student: Shapes, teacher: Shapes) -> Sequence[tuple[str, str]]:
        """The last stages."""
        return last_stage(student, teacher)

    def target(self, pair: MapPair) -> Target:
        """Key `factor.`, the tap, the paraphraser's parameters, and the size where the teacher's map is the larger."""
        fit = Paraphraser(pair.teacher, self.rate, self.passes, self.learning_rate)
        key = f"factor.{pair.teacher}.{fit.suffix}{size_suffix(pair.teacher_size)}"
        return Target(key, (pair.teacher,), Factor(pair.teacher, pair.teacher_size), fit)

    def module(self, pair: MapPair) -> nn.Module:
        """The translator; the paraphraser is learned with the cache."""
        return translator(pair.student_shape[0], factor_count(pair.teacher_shape[0], self.rate))

    def loss(self, student_map: Tensor, stored: Arrays, pair: MapPair, adapters: Paired) -> Tensor:
        """`factor_loss`, the attention of the teacher's factor being there."""
        factor = adapters.of(pair)(student_map)
        return functional.l1_loss(attention(pooled_to(factor, pair.size)), stored[VALUES])
