"""Logits and pooled vectors as targets, centres of classes and of clusters in them, and methods on a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdtool import philox
from kdtool.errors import UsageError, unknown
from kdtool.methods.protocol import Method
from kdtool.targets import CLEAN, Cached, Facts, FitBatch, Shape, Shapes, Stage, Target, Weight, canonical_tap

if TYPE_CHECKING:
    from kdtool.targets import Fitted, State, Taps

VALUES = "values"  # the name of the array of a target that stores a single one
LAYER = "before_fc"  # of the methods on a vector


@dataclass(frozen=True)
class Pooled:
    """The vector of a tap: as it is where it has one axis, else averaged over space; (B, C, H, W) -> (B, C)."""

    tap: str

    def __call__(self, taps: Taps, fitted: Fitted) -> dict[str, torch.Tensor]:
        """The stored array."""
        return {VALUES: pooled(taps[self.tap])}


def pooled(tap: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C) by the mean over space; (B, C) as it is. float32 at least."""
    tap = tap if tap.dtype == torch.float64 else tap.float()
    return tap.flatten(2).mean(2) if tap.dim() > 2 else tap


def vector(layer: str) -> Target:
    """The target of a layer as a vector: key `logits` for after_fc, `before_fc`, or `stageN.pooled`."""
    tap = canonical_tap(layer)
    key = {"after_fc": "logits", "before_fc": "before_fc"}.get(tap, f"{tap}.pooled")
    return Target(key, (tap,), Pooled(tap))


def known_layer(layer: str, student: Shapes, teacher: Shapes) -> str:
    """The canonical tap of `layer`, refused by name where one of the networks lacks it or has no vector there."""
    for side, shapes in (("student", student), ("teacher", teacher)):
        shape = shapes[tap_of(layer, shapes, side)]
        if len(shape) not in (1, 3):
            raise UsageError(
                f"layer {layer} of the {side} gives {shape} for an image, and a vector is made of (C,) or of a map "
                "(C, H, W); name a layer behind the pooling, or one that chooses a token"
            )
    return canonical_tap(layer)


def tap_of(layer: str, shapes: Shapes, side: str) -> str:
    """The canonical tap of `layer` in the network of one side, refused by name where it is not there."""
    tap = canonical_tap(layer)
    if tap not in shapes:
        option = f"--tap {layer}=PATH" if side == "student" else f"kdtool teach --tap {layer}=PATH"
        raise unknown(f"layer of the {side}", layer, shapes, f"`{option}` names a module of the {side} so")
    return tap


def flat(shape: Shape) -> int:
    """The width of a tap as a vector: its channels."""
    return shape[0]


@dataclass(frozen=True)
class VectorMethod(Method):
    """A method on the vectors before the classifiers, of one term that is named after it.

    The teacher's vector is stored as it is: what is made of it needs the other samples of a batch, or is trained.
    """

    weight: float = 1.0

    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        """The vector before the classifier."""
        return (known_layer(LAYER, student, teacher),)

    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """The teacher's vector."""
        return (vector(known_layer(LAYER, student, teacher)),)

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """One."""
        return (Stage(weights={self.name: Weight(self.weight)}),)


def both_vectors(student: Taps, cached: Cached) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors of a batch before the classifiers, (B, d_S) and (B, d_T)."""
    return pooled(student[LAYER]), cached[vector(LAYER).key][VALUES]


@dataclass(frozen=True)
class ClassCentres:
    """Class means of the teacher's vectors of one layer (KDA, Eq. 3): one set for each fit view, and a clean one.

    Stored: `views` (F, L, d) and `clean` (L, d), float32; sums in float64 in batch order. A class without samples has
    the centre 0.
    """

    layer: str
    version: int = field(default=1, init=False)

    @property
    def key(self) -> str:
        """`centres.` and the key of the vectors."""
        return f"centres.{vector(self.layer).key}"

    @property
    def reads(self) -> tuple[Target, ...]:
        """The vectors of the layer."""
        return (vector(self.layer),)

    def passes(self, fit_views: int) -> Sequence[int]:
        """Every fit view once, then the clean images."""
        return (*range(fit_views), CLEAN)

    def begin(self, facts: Facts, shapes: Mapping[str, Mapping[str, Shape]], fit_views: int) -> State:
        """Zero sums (F + 1, L, d) and counts (F + 1, L)."""
        width = shapes[self.reads[0].key][VALUES][0]
        return {
            "sums": torch.zeros(fit_views + 1, facts.classes, width, dtype=torch.float64),
            "counts": torch.zeros(fit_views + 1, facts.classes, dtype=torch.float64),
        }

    def step(self, state: State, batch: FitBatch) -> State:
        """Adds a batch to the sums of its pass; images without a label count for no class."""
        rows = batch.arrays[self.reads[0].key][VALUES].double().cpu()  # sums on CUDA depend on chance
        known = batch.labels >= 0
        state["sums"][batch.turn].index_add_(0, batch.labels[known], rows[known])
        state["counts"][batch.turn] += torch.bincount(batch.labels[known], minlength=state["counts"].shape[1])
        return state

    def remark(self, state: State) -> str:
        """Nothing."""
        return ""

    def result(self, state: State, facts: Facts) -> dict[str, np.ndarray[Any, Any]]:
        """Means from sums."""
        means = (state["sums"] / state["counts"].clamp(min=1)[..., None]).float().numpy()
        return {"views": means[:-1], "clean": means[-1]}


@dataclass(frozen=True)
class ClassClusters:
    """k-means within each class on the clean vectors of one layer: the two centres per class of KDA's Fig. 7.

    The paper does not say which side is clustered; here the teacher's, and both sides are averaged over the same
    assignment, so that landmarks correspond. Stored: `assignment` (n,) int64, the number class*k + cluster of every
    sample's landmark, and `centres` (L*k, d) float32. Lloyd's algorithm from k-means++ seeds, in float64.
    The state holds the vectors of the whole train part: n*d float32 in memory.
    """

    layer: str
    centres: int
    version: int = field(default=1, init=False)

    @property
    def key(self) -> str:
        """`kmeansK.` and the key of the vectors."""
        return f"kmeans{self.centres}.{vector(self.layer).key}"

    @property
    def reads(self) -> tuple[Target, ...]:
        """The vectors of the layer."""
        return (vector(self.layer),)

    def passes(self, fit_views: int) -> Sequence[int]:
        """The clean images once."""
        return (CLEAN,)

    def begin(self, facts: Facts, shapes: Mapping[str, Mapping[str, Shape]], fit_views: int) -> State:
        """Room for all vectors, (n, d)."""
        return {"rows": torch.zeros(facts.samples, shapes[self.reads[0].key][VALUES][0])}

    def step(self, state: State, batch: FitBatch) -> State:
        """Keeps the vectors of a batch."""
        state["rows"][batch.positions] = batch.arrays[self.reads[0].key][VALUES].cpu()
        return state

    def remark(self, state: State) -> str:
        """Nothing."""
        return ""

    def result(self, state: State, facts: Facts) -> dict[str, np.ndarray[Any, Any]]:
        """Clusters every class; an image without a label is in no cluster, -1."""
        rows = state["rows"].numpy()
        assignment = np.full(facts.samples, -1, dtype=np.int64)
        centres = np.zeros((facts.classes * self.centres, rows.shape[1]))
        for label in range(facts.classes):
            members = np.flatnonzero(facts.labels == label)
            if len(members) == 0:
                continue
            found, centre = k_means(rows[members].astype(np.float64), self.centres, facts.seed, label)
            first = label * self.centres
            assignment[members] = first + found
            centres[first : first + len(centre)] = centre
        return {"assignment": assignment, "centres": centres.astype(np.float32)}


Matrix = np.ndarray[Any, np.dtype[np.float64]]


def k_means(
    rows: Matrix, clusters: int, seed: int, turn: int, rounds: int = 100
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Matrix]:
    """Lloyd's algorithm: assignment (n,) and centres (k, d), k = min(clusters, n).

    An empty cluster keeps its centre.
    """
    centres = _seeds(rows, min(clusters, len(rows)), seed, turn)
    assignment = np.full(len(rows), -1)
    for _ in range(rounds):
        nearest = _squared_distances(rows, centres).argmin(1)
        if np.array_equal(nearest, assignment):
            break
        assignment = nearest
        for cluster in range(len(centres)):
            members = rows[assignment == cluster]
            if len(members):
                centres[cluster] = members.mean(0)
    return assignment, centres


def _seeds(rows: Matrix, clusters: int, seed: int, turn: int) -> Matrix:
    """k-means++ (Arthur & Vassilvitskii 2007): each next seed with probability proportional to the squared distance."""
    draws = philox.words(seed, philox.FIT, turn, [0], clusters)[0] / 2.0**32
    chosen = [int(draws[0] * len(rows))]
    for draw in draws[1:]:
        mass = _squared_distances(rows, rows[chosen]).min(1).cumsum()
        index = int(np.searchsorted(mass, draw * mass[-1], side="right"))
        chosen.append(min(index, len(rows) - 1))
    return rows[chosen].copy()


def _squared_distances(rows: Matrix, centres: Matrix) -> Matrix:
    return np.stack([((rows - centre) ** 2).sum(1) for centre in centres], axis=1)
