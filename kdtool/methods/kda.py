"""KDA: transfer of the full kernel matrix through Nystrom landmarks (Qian et al., arXiv 2009.14416, SDM 2022).

The kernel matrix of all n samples is approximated by its columns at m landmarks, C = X^T D; the student's partial
kernel is drawn to the teacher's (Eq. 4). By default as the official code does it; each departure is an option:

* landmarks of both sides are means over the rows that the previous epoch used, so they move with the student. The
  counts are taken anew every epoch (the official code takes them in epoch 0 only, and a resumed run divides by zero).
* `landmark_momentum` keeps a share of the last landmarks in the new ones. The official code keeps none, and then a
  student that learns fast enough does not settle: landmarks s times too large are met by features 1/s times too large,
  of which the next landmarks are made. 0.5 ends this at once, since it takes the mean of both.
* `teacher_landmarks=fixed` holds the teacher's side at the mean of the cache's centres, as Eq. 3 reads.
* `landmarks=random` takes single images (Fig. 2), `landmarks=kmeans` several centres per class (Fig. 7).
* `whiten` multiplies C by W^(-1/2), the form of Corollary 1 (Fig. 6), over the `rank` largest eigenvalues.
* the weight 0.04 belongs to B = 256 and L = 100; the loss grows like sqrt(B m), so it is scaled to the run's B and m.

Left out: weights per layer. The paper's combination of before_fc and after_fc is the plain sum (its weights are not
published).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtool import philox
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import FittedResults, Method, need
from kdtool.methods.vectors import VALUES, ClassCentres, ClassClusters, flat, known_layer, pooled, vector
from kdtool.targets import Batch, Cached, Facts, Fit, Shapes, Stage, Target, Weight

if TYPE_CHECKING:
    from kdtool.targets import Taps


@at_least_float32
def kda_loss(student: Tensor, teacher: Tensor, student_landmarks: Tensor, teacher_landmarks: Tensor) -> Tensor:
    """sum_ic huber(<x_S^i, d_S^c> - <x_T^i, d_T^c>) / ||C_T||_F over the batch (Eq. 4; normaliser: official code).

    student (B, d_S), teacher (B, d_T), landmarks (m, d_S) and (m, d_T); huber is quadratic below 1. Gradient through
    the student's features alone. The normaliser is clamped at 1e-12, so that zero teacher features give a finite loss.
    """
    partial = student @ student_landmarks.detach().T
    wanted = (teacher @ teacher_landmarks.T).detach()
    difference: Tensor = functional.smooth_l1_loss(partial, wanted, reduction="sum")
    norm: Tensor = torch.linalg.vector_norm(wanted)
    return difference / norm.clamp(min=1e-12)


def whitened(landmarks: Tensor, rank: int) -> Tensor:
    """W^(-1/2) D with W = D D^T over its `rank` largest eigenvalues (0: all that are numerically not zero).

    landmarks (m, d) -> (m, d); x^T of the result is a row of C W^(-1/2) (Corollary 1). Computed in float64.
    """
    exact = landmarks.double()
    values, vectors = torch.linalg.eigh(exact @ exact.T)
    keep = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    if rank:
        keep[: max(len(values) - rank, 0)] = False
    scale = torch.where(keep, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    result: Tensor = (vectors * scale) @ vectors.T @ exact
    return result.to(landmarks.dtype)


class Landmarks(nn.Module):
    """The landmarks of one layer on both sides, and the sums over the epoch from which the next ones are made.

    bins (n,): the landmark that each sample of the train part counts for, -1 for none. `student` and `teacher` are
    the means; `student_used` and `teacher_used` what the loss takes, which differs from them where W is in play.
    """

    student: Tensor
    teacher: Tensor
    student_used: Tensor
    teacher_used: Tensor
    student_sums: Tensor
    teacher_sums: Tensor
    counts: Tensor
    bins: Tensor

    def __init__(self, bins: Tensor, count: int, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.register_buffer("bins", bins)
        self.register_buffer("counts", torch.zeros(count, dtype=torch.float64))
        for side, width in (("student", student_width), ("teacher", teacher_width)):
            self.register_buffer(side, torch.zeros(count, width))
            self.register_buffer(f"{side}_used", torch.zeros(count, width))
            self.register_buffer(f"{side}_sums", torch.zeros(count, width, dtype=torch.float64))

    def accumulate(self, indices: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Adds the rows of a step to the sums of their landmarks."""
        used = (self.bins[indices] >= 0).double()  # a factor and not a selection, which would wait for the device
        bins = self.bins[indices].clamp(min=0)
        self.student_sums.index_add_(0, bins, student.double() * used[:, None])
        self.teacher_sums.index_add_(0, bins, teacher.double() * used[:, None])
        self.counts.index_add_(0, bins, used)

    def renew(self, teacher_fixed: bool, rank: int | None, momentum: float = 0.0) -> None:
        """Takes the means of the epoch as landmarks; a landmark without rows keeps its last value.

        rank: None leaves the landmarks as they are, a number whitens them over so many eigenvalues. momentum: the share
        of the last value that stays in the new one, save in the first of a landmark.
        """
        share = self.student.any(1).double() * momentum  # landmarks are zeros until they are made
        share = torch.where(self.counts > 0, share, 1.0)[:, None]
        divisor = self.counts.clamp(min=1)[:, None]
        kind = self.student.dtype
        self.student = (share * self.student + (1 - share) * self.student_sums / divisor).to(kind)
        if not teacher_fixed:
            self.teacher = (share * self.teacher + (1 - share) * self.teacher_sums / divisor).to(kind)
        self.student_used = self.student.clone() if rank is None else whitened(self.student, rank)
        self.teacher_used = self.teacher.clone() if rank is None else whitened(self.teacher, rank)
        for sums in (self.student_sums, self.teacher_sums, self.counts):
            sums.zero_()


@dataclass(frozen=True)
class KDA(Method):
    """Kernel transfer with Nystrom landmarks.

    layers: taps, maps are averaged over space; several are summed. weight: alpha at B = 256 and 100 landmarks.
    landmarks: class, kmeans or random. centres: per class, for kmeans. count: of random ones, 0 for one a class.
    landmark_momentum: share of the last landmarks in the new ones, below 1; none keeps nothing of them.
    teacher_landmarks: epoch or fixed. whiten: the W variant, over `rank` eigenvalues (0: all). start: first epoch in
    which the term is active; none takes round(epochs * 5 / 120), at least 1.
    """

    name: ClassVar[str] = "kda"
    paper: ClassVar[str] = "Qian et al. 2022, arXiv 2009.14416"

    layers: tuple[str, ...] = ("before_fc",)
    weight: float = 0.04
    landmarks: str = "class"
    centres: int = 2
    count: int = 0
    teacher_landmarks: str = "epoch"
    whiten: bool = False
    rank: int = 0
    start: int | None = None
    landmark_momentum: float | None = None

    def __post_init__(self) -> None:
        need(bool(self.layers), "option kda.layers names at least one layer")
        kinds = ("class", "kmeans", "random")
        need(self.landmarks in kinds, f"option kda.landmarks is one of {', '.join(kinds)}, not {self.landmarks!r}")
        sides = ("epoch", "fixed")
        need(
            self.teacher_landmarks in sides,
            f"option kda.teacher_landmarks is epoch or fixed, not {self.teacher_landmarks!r}",
        )
        need(self.centres >= 1, f"option kda.centres is at least 1, not {self.centres}")
        need(self.landmarks == "kmeans" or self.centres == 2, "option kda.centres needs landmarks=kmeans")
        need(self.count >= 0 and self.rank >= 0, "options kda.count and kda.rank are not negative")
        need(self.landmarks == "random" or not self.count, "option kda.count needs landmarks=random")
        need(self.whiten or not self.rank, "option kda.rank needs whiten=true")
        need(
            self.start is None or self.start >= 1,
            f"option kda.start is at least 1, not {self.start}: landmarks come from the epoch before",
        )
        need(
            self.landmark_momentum is None or 0 <= self.landmark_momentum < 1,
            f"option kda.landmark_momentum is at least 0 and below 1, not {self.landmark_momentum}",
        )
        need(
            not (self.fixed and self.landmarks == "random"),
            "option kda.teacher_landmarks=fixed needs landmarks=class or kmeans: random landmarks are single images",
        )

    @property
    def fixed(self) -> bool:
        """Whether the teacher's landmarks stay as the cache's fit gave them."""
        return self.teacher_landmarks == "fixed"

    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        """The layers."""
        return tuple(dict.fromkeys(known_layer(layer, student, teacher) for layer in self.layers))

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """The vectors of the layers."""
        return tuple(vector(tap) for tap in self.student_taps(student, teacher))

    def fits(self, student: Shapes, teacher: Shapes) -> tuple[Fit, ...]:
        """Centres for fixed landmarks, clusters for several a class."""
        taps = self.student_taps(student, teacher)
        if self.landmarks == "kmeans":
            return tuple(ClassClusters(tap, self.centres) for tap in taps)
        return tuple(ClassCentres(tap) for tap in taps) if self.fixed else ()

    def landmark_count(self, facts: Facts) -> int:
        """m."""
        if self.landmarks == "kmeans":
            return facts.classes * self.centres
        return (self.count or facts.classes) if self.landmarks == "random" else facts.classes

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        """One `Landmarks` for each layer, under the tap's name with '.' as '_'."""
        count = self.landmark_count(facts)
        enough = self.landmarks != "random" or count <= facts.samples
        need(enough, f"option kda.count asks for {count} landmarks of {facts.samples} images")
        module = nn.ModuleDict()
        for tap in self.student_taps(student, teacher):
            bins = torch.from_numpy(self._bins(tap, count, facts, fitted))
            state = Landmarks(bins, count, flat(student[tap]), flat(teacher[tap]))
            if self.fixed:
                state.teacher.copy_(torch.from_numpy(self._fixed_landmarks(tap, fitted)))
            module[tap.replace(".", "_")] = state
        return module

    def _bins(self, tap: str, count: int, facts: Facts, fitted: FittedResults) -> np.ndarray[Any, Any]:
        if self.landmarks == "class":
            return facts.labels.copy()
        if self.landmarks == "kmeans":
            return np.array(fitted[ClassClusters(tap, self.centres).key]["assignment"])
        bins = np.full(facts.samples, -1, dtype=np.int64)
        bins[philox.permutation(facts.seed, philox.LANDMARKS, 0, facts.samples)[:count]] = np.arange(count)
        return bins

    def _fixed_landmarks(self, tap: str, fitted: FittedResults) -> np.ndarray[Any, Any]:
        if self.landmarks == "kmeans":
            return np.array(fitted[ClassClusters(tap, self.centres).key]["centres"])
        views = fitted[ClassCentres(tap).key]["views"]
        return np.asarray(views.mean(0, dtype=np.float64), dtype=np.float32)

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """One; every layer's term has the same weight and starts when there are landmarks and the warm-up is over."""
        batch = min(facts.batch, facts.samples)
        value = self.weight * (256 * 100 / (batch * self.landmark_count(facts))) ** 0.5
        start = max(1, round(facts.epochs * 5 / 120)) if self.start is None else self.start
        taps = dict.fromkeys(f"kda_{vector(layer).taps[0]}" for layer in self.layers)
        return (Stage(weights={term: Weight(value, start) for term in taps}),)

    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, Tensor]:
        """`kda_<tap>` for each layer."""
        found = {}
        for tap, state, rows, wanted in self._sides(student, cached, adapters):
            found[f"kda_{tap}"] = kda_loss(rows, wanted, state.student_used, state.teacher_used)
        return found

    def after_step(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> None:
        """Adds the step's rows to the sums; they are the rows of the forward pass before the update."""
        for _, state, rows, wanted in self._sides(student, cached, adapters):
            state.accumulate(batch.indices, rows.detach(), wanted)

    def after_epoch(self, adapters: nn.Module) -> None:
        """Renews the landmarks."""
        for state in adapters.children():
            cast(Landmarks, state).renew(self.fixed, self.rank if self.whiten else None, self.landmark_momentum or 0)

    def _sides(self, student: Taps, cached: Cached, adapters: nn.Module) -> list[tuple[str, Landmarks, Tensor, Tensor]]:
        modules = dict(adapters.named_children())
        sides = []
        for layer in self.layers:
            target = vector(layer)
            (tap,) = target.taps
            state = cast(Landmarks, modules[tap.replace(".", "_")])
            sides.append((tap, state, pooled(student[tap]), cached[target.key][VALUES]))
        return sides
