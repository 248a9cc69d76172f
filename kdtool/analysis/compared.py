"""Students that are finished runs, beside the teacher of their cache: pairs of features over un-augmented images.

A student's features are computed once and kept in its run's folder (spooled). The teacher's come from the cache, in the
type that was stored, or, where that is asked for, from its network. Left out: what is computed from them.
"""

from __future__ import annotations

import functools
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdtool import files
from kdtool.analysis import spooled
from kdtool.analysis.features import Features
from kdtool.analysis.pairs import Asked, Labels, Pairs, Student, read_files, run_names
from kdtool.cache import Cache
from kdtool.cache.rows import CachedArray
from kdtool.engine import checkpoint
from kdtool.engine.device import choose_device
from kdtool.engine.distill import check_teacher, data_of, seen_by
from kdtool.engine.folder import Workspace
from kdtool.engine.job import Labelled
from kdtool.engine.lacking import extract_command
from kdtool.engine.ranks import Ranks
from kdtool.engine.runs import read_result
from kdtool.engine.trained import checked_student
from kdtool.engine.workspace import Seen, labelled, open_teacher_cache, read_teacher, record_for
from kdtool.errors import DamageError, IdentityError, UsageError
from kdtool.methods import method
from kdtool.methods.vectors import VALUES, flat, known_layer, vector
from kdtool.models import tap_shapes
from kdtool.progress import Progress
from kdtool.targets import Shapes

PARTS = {"train": "train_clean", "validation": "validation", "test": "test"}
Network = Callable[[], torch.nn.Module]


@contextmanager
def open_pairs(workspace: Workspace, asked: Asked, progress: Progress, ranks: Ranks) -> Iterator[Pairs]:
    """The pairs that are asked for, readable while the block runs."""
    if asked.teacher is not None or asked.labels is not None or any(path.suffix == ".npy" for path in asked.students):
        yield read_files(asked)
        return
    with ExitStack() as stack:
        yield read_runs(workspace, asked, progress, ranks, stack)


@dataclass(frozen=True)
class CachedRows:
    """Rows start..stop-1 of one view of a cached array, as (rows, d) chunks over the cache's files."""

    array: CachedArray
    view: int = 0
    start: int = 0
    stop: int = 0

    @classmethod
    def whole(cls, array: CachedArray, view: int = 0) -> CachedRows:
        """All rows of a view."""
        return cls(array, view, 0, array.shape[1])

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        rows = self.array.grid.rows
        for chunk in range(self.start // rows, -(-self.stop // rows)):
            first = chunk * rows
            yield self.array.chunk(self.view, chunk)[max(0, self.start - first) : self.stop - first]

    def span(self, start: int, stop: int) -> CachedRows:
        """A part of the rows."""
        return CachedRows(self.array, self.view, self.start + start, self.start + stop)


@dataclass(frozen=True)
class Finished:
    """A finished run of `distill`: its folder, its result, the number of classes, the shapes of its network's taps."""

    folder: Path
    result: Mapping[str, Any]
    classes: int
    shapes: Shapes = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the student's weights."""
        return str(self.result["weights_sha256"])

    def network(self) -> torch.nn.Module:
        """The network with the weights that the run ended with, or with any where these are gone."""
        return checked_student(self.folder, self.result, self.classes)

    def trained(self, weights: Path, sha256: str) -> torch.nn.Module:
        """The network with the weights in a file."""
        model = self.network()
        checkpoint.load_weights(weights, model, sha256)
        return model

    def features(self, basis: Basis, taps: Sequence[str]) -> Mapping[str, Features]:
        """The student's vectors of some taps, kept in the run's folder."""
        weights = self.folder / "student.safetensors"
        checkpoint.load_tensors(weights, self.sha256)  # so that features of weights that are damaged now are not used
        trained = functools.partial(self.trained, weights, self.sha256)
        return basis.features(self.folder / "features", basis.part, self.sha256, self.shapes, taps, trained)


def newest_run(workspace: Workspace) -> Path:
    """The run that finished last."""
    results = sorted(workspace.runs.glob("*/student.safetensors"), key=lambda path: path.stat().st_mtime)
    finished = [path.parent for path in results if (path.parent / "result.json").exists()]
    if not finished:
        raise UsageError(
            f"{workspace.runs} holds no finished student; run `kdtool distill` first, or name a run folder"
        )
    return finished[-1]


@dataclass(frozen=True)
class Basis:
    """What the features of every network over one part depend on, and how its images are had."""

    cache: Cache
    part: str
    images: Callable[[], Labelled]
    device: torch.device
    progress: Progress
    ranks: Ranks

    @property
    def labels(self) -> Labels:
        """The classes of the images."""
        return self.cache.labels(self.part)

    @property
    def plain(self) -> dict[str, Any]:
        """As plain values, for the record of features."""
        seen = seen_by(self.cache).plain()
        known = {name: seen[name] for name in ("name", "digest", "image_shape", "mean", "std")}
        decoder = self.cache.identity["preprocessing"].get("decoder")
        return {
            "part": self.part,
            "index": files.sha256(self.cache.index(self.part).tobytes()),
            "decoder": decoder,
        } | known

    def features(
        self, folder: Path, name: str, sha256: str, shapes: Shapes, taps: Sequence[str], network: Network
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The features of a network's taps, from files in `folder` that begin with `name`."""
        wanted = {tap: (len(self.labels), flat(shapes[tap])) for tap in taps}
        return spooled.features(
            folder,
            name,
            {**self.plain, "weights_sha256": sha256},
            wanted,
            lambda: (network().to(self.device), self.images().images),
            self.progress,
            self.ranks,
        )


def read_runs(workspace: Workspace, asked: Asked, progress: Progress, ranks: Ranks, stack: ExitStack) -> Pairs:
    """Pairs of finished runs and the cache, or the teacher's network."""
    basis, taps, runs = prepared(workspace, asked, progress, ranks)
    teacher, source = teacher_of(workspace, asked, basis, taps, runs[0], stack)
    students = {
        name: Student(run.features(basis, taps), run.folder, run.sha256)
        for name, run in zip(run_names([run.folder for run in runs]), runs, strict=True)
    }
    class_names = Seen.from_plain(runs[0].result["seen"]).class_names
    return Pairs(asked.part, students, teacher, source, basis.labels, class_names)


def teacher_of(
    workspace: Workspace, asked: Asked, basis: Basis, taps: Sequence[str], student: Finished, stack: ExitStack
) -> tuple[Mapping[str, Features], dict[str, str]]:
    """The teacher's vectors of every tap, and where they come from; what is fresh goes when the stack is left."""
    if asked.fresh:
        folder = stack.enter_context(scratch(workspace.folder, basis.ranks))
        return fresh_teacher(workspace, basis, taps, folder), dict.fromkeys(taps, "fresh float32")
    cached = {tap: cached_teacher(workspace, asked, basis, tap, student) for tap in taps}
    return cached, {tap: f"cached {rows.array.dtype}" for tap, rows in cached.items()}


def prepared(
    workspace: Workspace, asked: Asked, progress: Progress, ranks: Ranks
) -> tuple[Basis, list[str], list[Finished]]:
    """What is compared: the part, the taps by their canonical names, the runs; all of it checked."""
    cache = open_teacher_cache(workspace.cache)
    check_teacher(workspace, cache)
    part = part_of(cache, asked.part)
    device = choose_device(asked.device)
    runs = [read_student(folder, cache) for folder in distilled(asked.students, progress)]
    found = [known_layer(layer, run.shapes, cache.layout.tap_shapes) for run in runs for layer in asked.layers]

    @functools.cache
    def images() -> Labelled:
        data = data_of(workspace, cache, asked.data_folder, progress)
        of = data.test if part == PARTS["test"] else data.train
        return labelled(of, cache.index(part), seen_by(cache).rule(), data, device)

    return Basis(cache, part, images, device, progress, ranks), list(dict.fromkeys(found)), runs


def distilled(folders: Sequence[Path], progress: Progress) -> list[Path]:
    """The folders, each once. Of several, runs of a teacher and unfinished runs are left out, and told of."""
    found = list(dict.fromkeys(folder.resolve() for folder in folders))
    if len(found) == 1:
        return found
    kept = []
    for folder in found:
        result = folder / "result.json"
        of = files.read_json(result, "distil the student again").get("command") if result.exists() else None
        if of == "distill" or not (folder / "config.toml").exists():  # what is no run is refused where it is read
            kept.append(folder)
        else:
            progress.note(f"left out: {folder.name} is no finished run of `kdtool distill`")
    if not kept:
        raise UsageError(f"none of the {len(found)} folders holds a finished run of `kdtool distill`")
    return kept


def part_of(cache: Cache, name: str) -> str:
    """The cache's part for `train`, `validation` or `test`."""
    if name not in PARTS or PARTS[name] not in cache.layout.samples:
        held = [known for known, part in PARTS.items() if part in cache.layout.samples]
        raise UsageError(f"--part {name}: the cache has {', '.join(held)}")
    return PARTS[name]


def read_student(run: Path, cache: Cache) -> Finished:
    """A finished distill run on the cache's data set, from its teacher."""
    known = {"command": str, "name": str, "network": str, "weights_sha256": str, "seen": dict, "teacher": dict}
    result = read_result(run, "distil the student again", known)
    if result["command"] != "distill":
        raise UsageError(f"{run} is a run of `kdtool {result['command']}`; name one of `kdtool distill`")
    theirs, ours = Seen.from_plain(result["seen"]), seen_by(cache)
    for name in ("name", "digest", "classes", "image_shape", "mean", "std"):
        if getattr(theirs, name) != getattr(ours, name):
            raise IdentityError(
                f"{run} was trained on other data than the cache {cache.path} is of: {name} is "
                f"{getattr(theirs, name)} there and {getattr(ours, name)} in the cache; name its own with --cache"
            )
    learned_from, teacher = str(result["teacher"].get("sha256")), cache.identity["teacher"]["sha256"]
    if learned_from != teacher:
        raise IdentityError(
            f"{run} has learned from another teacher than the cache {cache.path} is of: {learned_from[:12]} there and "
            f"{teacher[:12]} in the cache; name its own with --cache"
        )
    found = Finished(run, result, cache.layout.classes)
    return replace(found, shapes=tap_shapes(found.network(), ours.image_shape))


def cached_teacher(workspace: Workspace, asked: Asked, basis: Basis, tap: str, student: Finished) -> CachedRows:
    """The teacher's vectors of a tap, as they are stored."""
    key, cache = vector(tap).key, basis.cache
    if not cache.views(key, basis.part):
        needed = (method("kda").with_options({"layers": tap}),)
        result = student.result
        command = extract_command(
            workspace, cache.identity, needed, result["network"], asked.data_folder, result.get("taps", {})
        )
        views = max(cache.views("logits"), 1)
        raise DamageError(
            f"the cache {cache.path} holds no {key} of clean {asked.part} images; add it with "
            f"`{shlex.join([*command, '--clean', key, '--views', str(views)])}`, or give --fresh"
        )
    return CachedRows.whole(cache.array(basis.part, key, VALUES))


def fresh_teacher(workspace: Workspace, basis: Basis, taps: Sequence[str], folder: Path) -> Mapping[str, Features]:
    """The teacher's vectors of some taps from its network, in float32, in a folder that is removed afterwards."""
    record = record_for(workspace.teacher, basis.cache)
    model = read_teacher(workspace.teacher, record, basis.device)
    return basis.features(folder, "teacher", record.sha256, basis.cache.layout.tap_shapes, taps, lambda: model)


@contextmanager
def scratch(parent: Path, ranks: Ranks) -> Iterator[Path]:
    """A folder that all ranks see and that is removed at the end."""
    own = tempfile.TemporaryDirectory(prefix=".analysis-", dir=parent) if ranks.rank == 0 else nullcontext()
    with own as name:
        yield Path(ranks.shared(name))
        ranks.gathered(None)
