"""Sparse codes of feature maps over a dictionary, and the dictionaries themselves, learned once per cache.

The left half of SRM (Tran, Gabbouj & Iosifidis, arXiv 2103.17012): every pixel t (C,) of a map is written as a sum of a
few of M atoms, the columns of D (C, M), each times its similarity to the pixel (Eq. 1), and D with its bias c is
learned so that the map comes out (Eq. 3). Similarities of a pixel and an atom d:

    sigmoid   sigmoid(<t, d> + c)
    linear    <t, d> + c
    rbf       exp(-exp(c) |t - d|^2), so that the bias is the logarithm of the inverse width. That form is ours, the
              paper's width is not at hand; its bias begins lower by ln C, else all similarities of a wide map are 0

Departures from the reference code:

* the active atoms are those of the highest score before the sigmoid, equal ones from the lowest index, and exactly k;
  there all that reach the k-th largest value are active, which are more than k once the sigmoid gives 1 in float32
* the teacher is frozen and in eval mode, as a cache needs it; there it normalises by the statistics of each batch,
  and the running ones that moved meanwhile are used afterwards
* batches are those of the cache, in its order (there 512, shuffled), and passes run over its fit views in turn

Left out: the losses of the student (kdtool.methods.srm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdtool import files
from kdtool.errors import unknown
from kdtool.methods.learning import MakeOptimizer, descend, forget_moments
from kdtool.methods.maps import whole_map
from kdtool.methods.precision import at_least_float32
from kdtool.methods.vectors import VALUES
from kdtool.targets import Facts, FitBatch, Shape, Target

if TYPE_CHECKING:
    from kdtool.targets import State

KERNELS = ("sigmoid", "linear", "rbf")
PHASES = (1, 6, 3)  # parts of the passes, each with a learning rate of its own
LEARNING_RATES = (1e-3, 1e-4, 1e-5)
LEARNED = ("dictionary", "bias")
PIECE = 2**22  # scores at a time: larger blocks of memory make a CPU slower, smaller ones waste wide matrix products


@at_least_float32
def similarity(features: Tensor, dictionary: Tensor, bias: Tensor | float, kernel: str = "sigmoid") -> Tensor:
    """How near every pixel is to every atom: maps (N, C, H, W) and atoms (C, M) to (N, M, H, W)."""
    scores = _scores(_pixels(features), dictionary, bias, kernel)
    return _map_of(_similar(scores, bias, kernel), features)


@at_least_float32
def sparse_code(
    features: Tensor, dictionary: Tensor, bias: Tensor | float, active: int, kernel: str = "sigmoid"
) -> Tensor:
    """The similarities (N, M, H, W) of the `active` nearest atoms of each pixel, 0 for all others (Eq. 1).

    Gradient through the similarities that are kept; none through the choice.
    """
    scores = _scores(_pixels(features), dictionary, bias, kernel)
    return _map_of(_dense(scores, *_kept(scores, bias, active, kernel)), features)


@at_least_float32
def reconstruct(code: Tensor, dictionary: Tensor) -> Tensor:
    """D times the code of every pixel: codes (N, M, H, W) to maps (N, C, H, W)."""
    with full_precision(code):
        return _map_of(_pixels(code) @ dictionary.T, code)


@torch.no_grad()
@at_least_float32
def labels(
    features: Tensor, dictionary: Tensor, bias: Tensor | float, active: int, kernel: str = "sigmoid"
) -> tuple[Tensor, Tensor]:
    """What is stored of a teacher's map: pixel (N, H, W) int64, the nearest atom, and image (N, M), the mean code."""
    nearest, means = [], []
    for piece in _pieces(features, dictionary.shape[1]):
        scores = _scores(_pixels(piece), dictionary, bias, kernel)
        nearest.append(scores.argmax(1).reshape(len(piece), *piece.shape[2:]))
        means.append(_map_of(_dense(scores, *_kept(scores, bias, active, kernel)), piece).mean((2, 3)))
    return torch.cat(nearest), torch.cat(means)


def as_map(tap: Tensor) -> Tensor:
    """A vector (B, C) as a map of one pixel (B, C, 1, 1); a map as it is."""
    return tap[:, :, None, None] if tap.dim() == 2 else tap


def full_precision(features: Tensor) -> AbstractContextManager[object]:
    """The context without autocast, whose shorter numbers would choose other atoms."""
    return torch.autocast(features.device.type, enabled=False)


def _pieces(features: Tensor, atoms: int) -> Sequence[Tensor]:
    return torch.split(features, max(1, PIECE // (atoms * math.prod(features.shape[2:]))))


def _pixels(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N H W, C), float32 at least."""
    wide = features if features.dtype == torch.float64 else features.float()
    return wide.movedim(1, -1).reshape(-1, features.shape[1])


def _map_of(rows: Tensor, features: Tensor) -> Tensor:
    """(N H W, M) -> (N, M, H, W), of the maps that the rows are of."""
    return rows.reshape(len(features), *features.shape[2:], rows.shape[1]).movedim(-1, 1)


def _scores(pixels: Tensor, dictionary: Tensor, bias: Tensor | float, kernel: str) -> Tensor:
    """(P, C), (C, M) -> (P, M): what the similarity grows with."""
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    with full_precision(pixels):
        if kernel == "rbf":
            return -_squared_distances(pixels, dictionary)
        return torch.addmm(_like(bias, pixels).expand(dictionary.shape[1]), pixels, dictionary)


def _like(bias: Tensor | float, rows: Tensor) -> Tensor:
    return torch.as_tensor(bias, dtype=rows.dtype, device=rows.device)


def _squared_distances(pixels: Tensor, dictionary: Tensor) -> Tensor:
    """(P, C), (C, M) -> (P, M). In float64, because near an atom the three parts cancel."""
    exact, atoms = pixels.double(), dictionary.double()
    distances = torch.addmm(atoms.square().sum(0), exact, atoms, alpha=-2) + exact.square().sum(1, keepdim=True)
    return distances.clamp(min=0).to(pixels.dtype)


def _similar(scores: Tensor, bias: Tensor | float, kernel: str) -> Tensor:
    if kernel == "rbf":
        return (_like(bias, scores).exp() * scores).exp()
    return scores.sigmoid() if kernel == "sigmoid" else scores


def _kept(scores: Tensor, bias: Tensor | float, active: int, kernel: str) -> tuple[Tensor, Tensor]:
    """The active atoms (P, k) of each pixel and their similarities (P, k)."""
    chosen = highest(scores.detach(), active)
    return chosen, _similar(scores.gather(1, chosen), bias, kernel)


def highest(scores: Tensor, active: int) -> Tensor:
    """The columns (P, active) of the highest scores of each row (P, M); of equal ones the first, unlike topk."""
    values, chosen = scores.topk(active, dim=1)
    reached = scores >= values[:, -1:]
    if torch.count_nonzero(reached) > chosen.numel():
        tied = (reached.sum(1) > active).nonzero()[:, 0]
        chosen[tied] = torch.sort(scores[tied], dim=1, descending=True, stable=True).indices[:, :active]
    return chosen


def _dense(scores: Tensor, chosen: Tensor, similar: Tensor) -> Tensor:
    """(P, M), 0 where an atom is not active."""
    return torch.zeros_like(scores).scatter(1, chosen, similar)


def atom_count(channels: int, mu: float) -> int:
    """M = floor(C mu), at least 1."""
    return max(1, int(channels * _exact(mu)))


def active_count(channels: int, mu: float, sparsity: float) -> int:
    """k = floor(C mu lambda), at least 1."""
    return max(1, int(channels * _exact(mu) * _exact(sparsity)))


def _exact(number: float) -> Fraction:
    """The decimal number that was meant, so that 100 * 0.29 is 29 and not a little less."""
    return Fraction(repr(number))


def initial(channels: int, atoms: int, kernel: str, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """A dictionary (C, M) uniform in +-sqrt(6 / M) and a bias () uniform in +-1, as the reference code draws them."""
    bound = (6 / atoms) ** 0.5
    dictionary = torch.empty(channels, atoms).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(()).uniform_(-1, 1, generator=generator)
    return dictionary, bias - math.log(channels) if kernel == "rbf" else bias


@dataclass(frozen=True)
class Dictionary:
    """The dictionary of one tap of the teacher, learned by the error of its sparse codes (Eq. 3).

    mu, sparsity: M = floor(C mu) atoms, floor(C mu sparsity) of them active. turns: passes over the train part, in
    phases of 1 : 6 : 3 with Adam at 1e-3, 1e-4, 1e-5, a new one for each. What remains is the phase end with the lowest
    error in its last pass. Stored: `dictionary` (C, M) and `bias` (), float32; `errors` (turns,) float64, the mean
    squared error of each pass; `unused` (turns,) int64, the atoms that were not active once in it.
    """

    tap: str
    mu: float
    sparsity: float
    kernel: str
    turns: int
    version: int = field(default=1, init=False)

    @property
    def key(self) -> str:
        """`srm.` and the tap and every parameter."""
        return f"srm.{self.tap}.{self.suffix}"

    @property
    def suffix(self) -> str:
        """The parameters, as keys carry them."""
        return f"{self.kernel}.mu{self.mu:g}.lambda{self.sparsity:g}.passes{self.turns}"

    @property
    def reads(self) -> tuple[Target, ...]:
        """The whole map."""
        return (whole_map(self.tap),)

    def passes(self, fit_views: int) -> Sequence[int]:
        """The fit views in turn."""
        return tuple(turn % fit_views for turn in range(self.turns))

    def phase_ends(self) -> tuple[int, ...]:
        """The number of passes after each phase: rounded shares, and at least one pass in the first."""
        whole = sum(PHASES)
        return tuple(max(1, (2 * part * self.turns + whole) // (2 * whole)) for part in accumulate(PHASES))

    def begin(self, facts: Facts, shapes: Mapping[str, Mapping[str, Shape]], fit_views: int) -> State:
        """A random dictionary, which depends on the seed and the tap alone, and nothing counted."""
        channels = shapes[self.reads[0].key][VALUES][0]
        atoms = atom_count(channels, self.mu)
        seed = int(files.sha256(f"{facts.seed} {self.tap}".encode())[:16], 16)
        dictionary, bias = initial(channels, atoms, self.kernel, torch.Generator().manual_seed(seed))
        return {
            "dictionary": dictionary,
            "bias": bias,
            "best_dictionary": dictionary.clone(),
            "best_bias": bias.clone(),
            "best_error": torch.tensor(math.inf, dtype=torch.float64),
            "errors": torch.zeros(self.turns, dtype=torch.float64),
            "powers": torch.zeros(self.turns, dtype=torch.float64),
            "unused": torch.zeros(self.turns, dtype=torch.int64),
            "used": torch.zeros(atoms, dtype=torch.bool),
            "numbers": torch.zeros((), dtype=torch.float64),
            "done": torch.zeros((), dtype=torch.int64),
        }

    def step(self, state: State, batch: FitBatch) -> State:
        """One step of Adam on the mean squared error of a batch."""
        maps = as_map(batch.arrays[self.reads[0].key][VALUES])
        # Adam counts its steps on the CPU, wherever the parameters are
        state = {name: kept if name.endswith(".step") else kept.to(maps.device) for name, kept in state.items()}
        error = descend(state, LEARNED, self._optimizer(batch.turn), lambda learned: self._error(maps, learned, state))
        state["errors"][batch.turn] += error.double() * maps.numel()
        state["powers"][batch.turn] += maps.square().mean().double() * maps.numel()
        state["numbers"] += maps.numel()
        if batch.last:
            self._end_pass(state, batch.turn)
        return state

    def _optimizer(self, turn: int) -> MakeOptimizer:
        phase = sum(turn >= end for end in self.phase_ends()[:-1])
        return lambda parameters: torch.optim.Adam(parameters, lr=LEARNING_RATES[phase])

    def _error(self, maps: Tensor, learned: Mapping[str, Tensor], state: State) -> Tensor:
        """The mean squared error; notes the atoms that were used. The code stays (P, k), which is twice as fast."""
        dictionary, bias = (learned[name] for name in LEARNED)
        active, errors = active_count(maps.shape[1], self.mu, self.sparsity), []
        for piece in _pieces(maps, dictionary.shape[1]):
            pixels = _pixels(piece)
            chosen, similar = _kept(_scores(pixels, dictionary, bias, self.kernel), bias, active, self.kernel)
            state["used"].index_fill_(0, chosen.flatten(), True)
            sums = functional.embedding_bag(chosen, dictionary.T.contiguous(), mode="sum", per_sample_weights=similar)
            errors.append((sums - pixels).square().sum())
        return torch.stack(errors).sum() / maps.numel()

    def _end_pass(self, state: State, turn: int) -> None:
        for sums in (state["errors"], state["powers"]):
            sums[turn] /= state["numbers"]
        state["unused"][turn] = (~state["used"]).sum()
        state["numbers"].zero_()
        state["used"].zero_()
        state["done"].fill_(turn + 1)
        if turn + 1 in self.phase_ends():
            better = state["errors"][turn] < state["best_error"]
            state["best_error"] = torch.where(better, state["errors"][turn], state["best_error"])
            for name in LEARNED:
                state[f"best_{name}"] = torch.where(better, state[name], state[f"best_{name}"])
            forget_moments(state, LEARNED)

    def remark(self, state: State) -> str:
        """The error of the last pass, absolute and as a share of the map's mean square, and the unused atoms."""
        turn = int(state["done"]) - 1
        if turn < 0:
            return ""
        error, power, unused = (float(state[name][turn]) for name in ("errors", "powers", "unused"))
        share = f" ({error / power:.3f} of the map's power)" if power else ""
        return f"reconstruction error {error:.4g}{share}, {unused:.0f} of {len(state['used'])} atoms unused"

    def result(self, state: State, facts: Facts) -> dict[str, np.ndarray[Any, Any]]:
        """The best phase end and the record of the passes."""
        stored = {"dictionary": "best_dictionary", "bias": "best_bias", "errors": "errors", "unused": "unused"}
        return {name: state[kept].cpu().numpy() for name, kept in stored.items()}
