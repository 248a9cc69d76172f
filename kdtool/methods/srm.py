"""SRM: sparse representation matching (Tran, Gabbouj & Iosifidis, arXiv 2103.17012).

A dictionary of each of the teacher's maps is learned once per cache (kdtool.methods.dictionaries). It gives every pixel
a label, the nearest atom, and every image one, the mean of the sparse codes. In a first stage the student learns these
labels through dictionaries of its own, which are then dropped (Eq. 4 and 5, weights 1, summed over the layers); in a
second one the whole student is trained by knowledge distillation.

As the reference code has it: Adam with weight decay 1e-4, drops at 30/160 and 130/160 of the pre-training with a new
optimiser at each, the phase end of the lowest validation loss. Departures, beside those of the dictionaries:

* by default the dictionaries take 10 passes (the code: 100) and all stages of equal size are paired (the code: 1, 2, 4)
* the linear kernel works with pixel labels only, because image labels are compared as probabilities

Left out: the schedules of ImageNet and of the transfer experiments; a recipe and the options give them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool.errors import unknown
from kdtool.methods.dictionaries import (
    KERNELS,
    Dictionary,
    active_count,
    as_map,
    atom_count,
    full_precision,
    initial,
    labels,
    reconstruct,
    similarity,
    sparse_code,
)
from kdtool.methods.initialisation import adam_phases
from kdtool.methods.kd import kd_loss
from kdtool.methods.maps import MapPair, Paired, map_pairs, stage_taps
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import FittedResults, Method, need
from kdtool.methods.vectors import VALUES, vector
from kdtool.targets import Batch, Cached, Facts, Shapes, Stage, Target, Weight

if TYPE_CHECKING:
    from kdtool.targets import Fitted, Taps

__all__ = [
    "SRM",
    "Dictionary",
    "image_loss",
    "labels",
    "pixel_loss",
    "reconstruct",
    "similarity",
    "sparse_code",
]

LABELS = ("both", "pixel", "image")
ATOM_LIMIT = 2**16  # pixel labels are stored as uint16


@at_least_float32
def pixel_loss(student_similarity: Tensor, pixel_labels: Tensor) -> Tensor:
    """Cross-entropy of the teacher's nearest atom at every pixel, mean over N H W, in nats (Eq. 4).

    student_similarity (N, M, H, W), pixel_labels (N, H, W) of any integer type. The similarities themselves, after the
    sigmoid, are the logits, in the paper and in the code; as they lie in [0, 1], the loss is never below
    ln(e + M - 1) - 1.
    """
    logits = student_similarity.movedim(1, -1).flatten(0, -2)
    return functional.cross_entropy(logits, pixel_labels.flatten().long())


@at_least_float32
def image_loss(student_similarity: Tensor, image_labels: Tensor) -> Tensor:
    """Binary cross-entropy of the mean similarity over the pixels, mean over N M, in nats (Eq. 5).

    student_similarity (N, M, H, W) in [0, 1], the mean over all of it and not over a sparse code; image_labels (N, M).
    Logarithms are clamped at -100. The least value is the entropy of the labels.
    """
    mean = student_similarity.mean((2, 3)).clamp(max=1)  # a mean of ones may round to more
    known = mean.masked_fill(mean.isnan(), 0.5)  # torch's function fails at NaN, on CUDA for good; the sum keeps it
    with full_precision(mean):
        return functional.binary_cross_entropy(known, image_labels.to(mean.dtype)) + (0 * mean).sum()


@dataclass(frozen=True)
class SparseLabels:
    """The labels of a map: `pixel` (H, W) uint16 and `image` (M,); a vector is a map of one pixel.

    mu, sparsity, kernel: of the dictionary, as in `SRM`.
    """

    tap: str
    mu: float
    sparsity: float
    kernel: str

    def __call__(self, taps: Taps, fitted: Fitted) -> dict[str, torch.Tensor]:
        """The stored arrays."""
        features = as_map(taps[self.tap])
        dictionary, bias = (fitted[name].to(features.dtype) for name in ("dictionary", "bias"))
        active = active_count(features.shape[1], self.mu, self.sparsity)
        pixel, image = labels(features, dictionary, bias, active, self.kernel)
        return {"pixel": pixel.to(torch.uint16), "image": image}


class StudentDictionary(nn.Module):
    """The dictionary (C, M) and the bias () of a map of the student.

    The bias of the linear kernel is a buffer: a shift of all its logits changes no cross-entropy.
    """

    bias: Tensor

    def __init__(self, channels: int, atoms: int, kernel: str) -> None:
        super().__init__()
        dictionary, bias = initial(channels, atoms, kernel)
        self.dictionary = nn.Parameter(dictionary)
        if kernel == "linear":
            self.register_buffer("bias", bias)
        else:
            self.bias = nn.Parameter(bias)


@dataclass(frozen=True)
class SRM(Method):
    """Two stages: pre-training by the labels of the teacher's dictionaries, then knowledge distillation.

    layers: taps of equal size, `stage2` or STUDENT:TEACHER; none takes every stage of the teacher that has its size in
    the student. mu: atoms per channel. sparsity: share of the atoms that is active. kernel: sigmoid, linear or rbf.
    passes: over the train part, for the dictionaries. labels: both, pixel or image. alpha, temperature: the second
    stage is alpha KD + (1 - alpha) cross-entropy. pretraining_epochs: none takes 160 for 200 epochs of the recipe.
    pretraining_batch: 0 takes three times the recipe's (384 for 128).
    """

    name: ClassVar[str] = "srm"
    paper: ClassVar[str] = "Tran et al. 2021, arXiv 2103.17012"
    combines: ClassVar[bool] = False

    layers: tuple[str, ...] = ()
    mu: float = 2.0
    sparsity: float = 0.02
    kernel: str = "sigmoid"
    passes: int = 10
    labels: str = "both"
    alpha: float = 0.5
    temperature: float = 4.0
    pretraining_epochs: int | None = None
    pretraining_batch: int = 0

    def __post_init__(self) -> None:
        for name, known in (("kernel", KERNELS), ("labels", LABELS)):
            if getattr(self, name) not in known:
                raise unknown(f"srm.{name}", getattr(self, name), known)
        need(0 < self.mu < math.inf, f"option srm.mu is above 0 and finite, not {self.mu}")
        need(0 < self.sparsity <= 1, f"option srm.sparsity is above 0 and at most 1, not {self.sparsity}")
        for name in ("mu", "sparsity"):
            value = getattr(self, name)
            need(float(f"{value:g}") == value, f"option srm.{name} has at most six digits, unlike {value}")
        need(self.passes >= 1, f"option srm.passes is at least 1, not {self.passes}")
        need(0 <= self.alpha <= 1, f"option srm.alpha is from 0 to 1, not {self.alpha}")
        need(0 < self.temperature < math.inf, f"option srm.temperature is above 0 and finite, not {self.temperature}")
        enough = self.pretraining_epochs is None or self.pretraining_epochs >= 1
        need(enough, f"option srm.pretraining_epochs is at least 1, not {self.pretraining_epochs}")
        need(self.pretraining_batch >= 0, f"option srm.pretraining_batch is not negative, as {self.pretraining_batch}")
        need(
            self.kernel != "linear" or self.labels == "pixel",
            f"option srm.kernel=linear gives no probabilities, which srm.labels={self.labels} compares; take "
            "srm.labels=pixel",
        )

    def pairs(self, student: Shapes, teacher: Shapes) -> tuple[MapPair, ...]:
        """The taps that belong together, vectors as maps of one pixel."""
        ours, theirs = _as_maps(student), _as_maps(teacher)
        found = map_pairs(self.name, self.layers, ours, theirs, equal_sizes)
        for pair in found:
            need(
                pair.student_shape[1:] == pair.teacher_shape[1:],
                f"method srm needs two maps of equal size, and {pair.student} of the student is "
                f"{_size(pair.student_shape)}, {pair.teacher} of the teacher {_size(pair.teacher_shape)}; "
                f"{_both_sizes(ours, theirs)}",
            )
        return found

    def target(self, tap: str) -> Target:
        """The labels of a tap of the teacher."""
        fit = Dictionary(tap, self.mu, self.sparsity, self.kernel, self.passes)
        encode = SparseLabels(tap, self.mu, self.sparsity, self.kernel)
        return Target(f"{tap}.srm.{fit.suffix}", (tap,), encode, fit)

    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        """Those of the pairs, and the logits for KD."""
        logits = ("after_fc",) if self.alpha else ()
        return tuple(dict.fromkeys((*(pair.student for pair in self.pairs(student, teacher)), *logits)))

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """The labels of the teacher's taps of the pairs, both kinds whichever are used, and the logits for KD."""
        taps = dict.fromkeys(pair.teacher for pair in self.pairs(student, teacher))
        for tap in taps:
            atoms = atom_count(teacher[tap][0], self.mu)
            need(
                atoms <= ATOM_LIMIT,
                f"option srm.mu={self.mu:g} gives {atoms:,} atoms for {tap}; at most {ATOM_LIMIT:,} can be stored",
            )
        return (*(self.target(tap) for tap in taps), *((vector("after_fc"),) if self.alpha else ()))

    def always(self, teacher: Shapes) -> tuple[Target, ...]:
        """The labels of every stage of a teacher."""
        return tuple(self.target(tap) for tap in stages_of(teacher))

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        """A dictionary of the student's map for each pair, with as many atoms as the teacher's."""

        def build(pair: MapPair) -> nn.Module:
            atoms = atom_count(pair.teacher_shape[0], self.mu)
            return StudentDictionary(pair.student_shape[0], atoms, self.kernel)

        return Paired(self.pairs(student, teacher), build)

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """`pretrain` on the labels, without the classifier and the task, then `kd` on the recipe of the run."""
        taps = dict.fromkeys(pair.student for pair in self.pairs(student, teacher))
        pretrain = Stage(
            name="pretrain",
            epochs=self.pretraining_epochs or max(1, round(facts.epochs * 160 / 200)),
            recipe=adam_phases(self.pretraining_batch or min(3 * facts.batch, facts.samples)),
            trains=tuple(taps),
            weights={f"srm_{kind}": Weight(1.0) for kind in self._kinds()},
            task=0.0,
            select="validation_loss",
            discard=True,
        )
        kd = {"kd": Weight(self.alpha)} if self.alpha else {}
        return (pretrain, Stage(name="kd", weights=kd, task=1 - self.alpha))

    def _kinds(self) -> tuple[str, ...]:
        return ("pixel", "image") if self.labels == "both" else (self.labels,)

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`srm_pixel` and `srm_image`, sums over the pairs, in the first stage; `kd` in the second."""
        if batch.stage == "kd":
            return {"kd": kd_loss(student["after_fc"], cached["logits"][VALUES], self.temperature)}
        losses: dict[str, list[Tensor]] = {kind: [] for kind in self._kinds()}
        for pair in cast(Paired, adapters).pairs:
            ours = cast(StudentDictionary, cast(Paired, adapters).of(pair))
            similar = similarity(as_map(student[pair.student]), ours.dictionary, ours.bias, self.kernel)
            wanted = cached[self.target(pair.teacher).key]
            for kind, values in losses.items():
                values.append(_LOSSES[kind](similar, wanted[kind]))
        return {f"srm_{kind}": torch.stack(values).sum() for kind, values in losses.items()}


_LOSSES = {"pixel": pixel_loss, "image": image_loss}


def equal_sizes(student: Shapes, teacher: Shapes) -> list[tuple[str, str]]:
    """Every stage of the teacher with the student's stage of its size: that of the same name, else the last."""
    pairs = []
    for theirs in stages_of(teacher):
        fitting = [ours for ours in stages_of(student) if student[ours][1:] == teacher[theirs][1:]]
        if fitting:
            pairs.append((theirs if theirs in fitting else fitting[-1], theirs))
    need(bool(pairs), f"method srm finds no stages of equal size in the two networks; {_both_sizes(student, teacher)}")
    return pairs


def stages_of(shapes: Shapes) -> tuple[str, ...]:
    """The stages of a network that are maps or vectors; those of a transformer may be tokens."""
    return tuple(tap for tap in stage_taps(shapes) if len(shapes[tap]) in (1, 3))


def _as_maps(shapes: Shapes) -> Shapes:
    return {tap: (*shape, 1, 1) if len(shape) == 1 else shape for tap, shape in shapes.items()}


def _both_sizes(student: Shapes, teacher: Shapes) -> str:
    ours, theirs = (
        ", ".join(f"{tap} {_size(shapes[tap])}" for tap in stage_taps(shapes)) or "none"
        for shapes in (student, teacher)
    )
    return f"stages of the student: {ours}; of the teacher: {theirs}; name others with --layer STUDENT:TEACHER"


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape[1:])
