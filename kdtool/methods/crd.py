"""CRD: contrastive representation distillation (Tian, Krishnan & Isola 2020, arXiv 1910.10699).

Student's and teacher's vectors go through a trained linear head each, to embeddings of length 1. Each is told apart,
among thousands of embeddings of images of other classes, from that of the same image on the other side; these others
come from two memory banks, which hold an embedding of every training image (section 3.2). As RepDistiller has it:

* the contrast by noise-contrastive estimation: exp(<v, m> / 0.07) over a constant Z, which is n times the mean of the
  first batch and stays so, and K / n as the density of the noise, with 1e-7 added.
* a bank row becomes the normalised mean of itself and the embedding that the step used, before the optimiser's step.

Departures, which change no expectation:

* negatives are drawn here, on the device, and not by the loader: uniformly among the images of other classes, without
  replacement where there are as many, with it elsewhere.
* Z is kept as its logarithm, and the loss is taken from the logarithms of the scores as two logistic losses, so that no
  exponential overflows at any temperature.
* lengths are clamped at 1e-12 where embeddings and bank rows are divided by them.
* scores come from one product of the embeddings with the whole bank, of which those of the negatives are taken: for
  50,000 images less work than to gather 16,384 rows of the bank for each sample.

Left out: positives of the same class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import FittedResults, need
from kdtool.methods.vectors import LAYER, VectorMethod, both_vectors, flat
from kdtool.targets import Batch, Cached, Facts, Shapes

if TYPE_CHECKING:
    from kdtool.targets import Taps

EPSILON = 1e-7  # the reference adds it to the denominators


@at_least_float32
def contrast_loss(scores: Tensor, samples: int) -> Tensor:
    """-(1/B) [sum log(o_+ / (o_+ + c + 1e-7)) + sum log(c / (o_- + c + 1e-7))] with c = K / n, in nats.

    scores: o (B, 1 + K), the positive first, exponentials already divided by Z; 0 counts as the smallest positive
    number. samples: n. One side's loss.
    """
    return contrast_of_logarithms(scores.clamp(min=torch.finfo(scores.dtype).tiny).log(), samples)


def contrast_of_logarithms(log_scores: Tensor, samples: int) -> Tensor:
    """`contrast_loss` of the scores' logarithms (B, 1 + K): o / (o + k) is the sigmoid of ln o - ln k."""
    negatives = log_scores.shape[1] - 1
    need(negatives >= 1, "CRD contrasts a positive with at least 1 negative, and the scores have none")
    noise = negatives / samples
    margin = log_scores - math.log(noise + EPSILON)
    found = functional.logsigmoid(margin[:, 0])
    rejected = functional.logsigmoid(-margin[:, 1:]).sum(1) - negatives * math.log1p(EPSILON / noise)
    return -(found + rejected).mean()


class Others(nn.Module):
    """Draws, for each sample, images of other classes than its own.

    labels (n,): of the train part; they and what follows from them are no state. few: whether a class has fewer than
    `count` others, many: whether one has as many.
    """

    labels: Tensor
    order: Tensor
    sizes: Tensor
    starts: Tensor

    def __init__(self, labels: Tensor, classes: int, count: int) -> None:
        super().__init__()
        sizes = torch.bincount(labels, minlength=classes)
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("starts", sizes.cumsum(0) - sizes, persistent=False)
        others = len(labels) - sizes[sizes > 0]
        self.count, self.few, self.many = count, bool((others < count).any()), bool((others >= count).any())

    def draw(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """Positions (B, count) of images of other classes than `own` (B,).

        Without replacement for a sample that has as many others, with it elsewhere.
        """
        if not self.few:
            return self._without(own, generator)
        drawn = self._with(own, generator)
        if not self.many:
            return drawn
        enough = len(self.labels) - self.sizes[own] >= self.count
        return torch.where(enough[:, None], self._without(own, generator), drawn)

    def _without(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """The places of the highest of random keys."""
        keys = torch.rand(len(own), len(self.labels), generator=generator, device=own.device)
        keys.masked_fill_(self.labels == own[:, None], -1.0)
        return keys.topk(self.count, sorted=False).indices

    def _with(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform places among the images in the order of their classes, the own class skipped."""
        shape, size = (len(own), self.count), self.sizes[own][:, None]
        uniform = torch.rand(shape, generator=generator, device=own.device, dtype=torch.float64)
        others = len(self.labels) - size
        place = (uniform * others).long().clamp(max=others - 1)
        return self.order[place + size * (place >= self.starts[own][:, None])]


class Memory(nn.Module):
    """Heads and banks of both sides, and the logarithms of the constants Z, 0 until the first batch has fixed them."""

    student_bank: Tensor
    teacher_bank: Tensor
    log_constants: Tensor
    fixed: Tensor

    def __init__(self, widths: tuple[int, int], width: int, samples: int, others: Others) -> None:
        super().__init__()
        self.student = nn.Linear(widths[0], width)
        self.teacher = nn.Linear(widths[1], width)
        bound = (3 / width) ** 0.5
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", torch.empty(samples, width).uniform_(-bound, bound))
        self.register_buffer("log_constants", torch.zeros(2))
        self.register_buffer("fixed", torch.zeros((), dtype=torch.bool))
        self.others = others
        self.used: tuple[Tensor, Tensor] | None = None  # the embeddings of the step that is under way

    @torch.no_grad()
    def fix(self, scores: tuple[Tensor, Tensor], samples: int) -> None:
        """Z = n times the mean of the exponentials of the first scores (B, 1 + K), of both sides."""
        found = [side.flatten().logsumexp(0) + math.log(samples / side.numel()) for side in scores]
        self.log_constants.copy_(torch.where(self.fixed, self.log_constants, torch.stack(found)))
        self.fixed.fill_(True)

    def remember(self, indices: Tensor, momentum: float) -> None:
        """Moves the rows of the step's samples in both banks to the embeddings that it used."""
        if self.used is None:
            return
        for bank, rows in zip((self.student_bank, self.teacher_bank), self.used, strict=True):
            mixed = momentum * bank[indices] + (1 - momentum) * rows.to(bank.dtype)
            bank[indices] = functional.normalize(mixed)
        self.used = None


@dataclass(frozen=True)
class CRD(VectorMethod):
    """Contrast with memory banks.

    width: of the embeddings. negatives: K for each sample. temperature: of the similarities. momentum: share of a bank
    row that is kept.
    """

    name: ClassVar[str] = "crd"
    paper: ClassVar[str] = "Tian et al. 2020, arXiv 1910.10699"

    weight: float = 0.8
    width: int = 128
    negatives: int = 16384
    temperature: float = 0.07
    momentum: float = 0.5

    def __post_init__(self) -> None:
        need(self.width >= 1, f"option crd.width is at least 1, not {self.width}")
        need(self.negatives >= 1, f"option crd.negatives is at least 1, not {self.negatives}")
        need(self.temperature > 0, f"option crd.temperature is above 0, not {self.temperature}")
        need(0 <= self.momentum < 1, f"option crd.momentum is from 0 to below 1, not {self.momentum}")

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        """Heads, banks and constants."""
        labels = torch.from_numpy(facts.labels.copy())
        need(
            int(labels.min()) >= 0,
            "method crd contrasts images of different classes, and some training images have no label; take another "
            "method",
        )
        need(
            int(labels.min()) < int(labels.max()),
            "method crd contrasts images of different classes, and all training images are of one; take another method",
        )
        others = Others(labels, facts.classes, self.negatives)
        return Memory((flat(student[LAYER]), flat(teacher[LAYER])), self.width, facts.samples, others)

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`crd`: the student's embeddings against the teacher's bank and the other way round."""
        memory = cast(Memory, adapters)
        ours, theirs = both_vectors(student, cached)
        ours, theirs = functional.normalize(memory.student(ours)), functional.normalize(memory.teacher(theirs))
        drawn = memory.others.draw(batch.labels, batch.generator)
        places = torch.cat([batch.indices[:, None], drawn], dim=1)
        sides = (
            self._similar(ours, memory.teacher_bank, places),
            self._similar(theirs, memory.student_bank, places),
        )
        samples = len(memory.student_bank)
        memory.fix((sides[0].detach(), sides[1].detach()), samples)
        memory.used = (ours.detach(), theirs.detach())
        losses = [
            contrast_of_logarithms(side - constant, samples)
            for side, constant in zip(sides, memory.log_constants.clone(), strict=True)
        ]
        return {"crd": torch.stack(losses).sum()}

    def _similar(self, embeddings: Tensor, bank: Tensor, places: Tensor) -> Tensor:
        """(B, w), (n, w), (B, 1 + K) -> (B, 1 + K)."""
        return (embeddings @ bank.T).gather(1, places) / self.temperature

    def after_step(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> None:
        """Renews the rows of the step's samples."""
        cast(Memory, adapters).remember(batch.indices, self.momentum)
