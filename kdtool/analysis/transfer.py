"""The kernel transfer loss of a trained student, from its run folder and the cache: what `analyze gram-gap` shows.

The student runs over all images of a part, un-augmented, in float32. The teacher's features come from the cache in the
type that was stored, or, where asked for, from the teacher's network.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdtool import files
from kdtool.analysis.gram import gram_gap
from kdtool.cache import Cache
from kdtool.engine import checkpoint
from kdtool.engine.device import choose_device
from kdtool.engine.distill import check_teacher, data_of, seen_by
from kdtool.engine.evaluate import vectors
from kdtool.engine.job import Labelled, seeded
from kdtool.engine.lacking import extract_command
from kdtool.engine.runs import read_result
from kdtool.engine.workspace import Workspace, labelled, open_teacher_cache, read_record, read_teacher
from kdtool.errors import DamageError, UsageError
from kdtool.methods import method
from kdtool.methods.vectors import VALUES, known_layer, vector
from kdtool.models import create, tap_shapes
from kdtool.progress import Progress

PARTS = {"train": "train_clean", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class GapConfig:
    """What was asked for. run: the folder of a run. fresh: run the teacher instead of reading its features."""

    run: Path
    layers: tuple[str, ...] = ("before_fc", "after_fc")
    part: str = "train"
    algorithm: str = "moments"
    fresh: bool = False
    device: str = "auto"
    data_folder: str | None = None


def newest_run(workspace: Workspace) -> Path:
    """The run that finished last."""
    results = sorted(workspace.runs.glob("*/student.safetensors"), key=lambda path: path.stat().st_mtime)
    finished = [path.parent for path in results if (path.parent / "result.json").exists()]
    if not finished:
        raise UsageError(
            f"{workspace.runs} holds no finished student; run `kdtool distill` first, or name a run folder"
        )
    return finished[-1]


def transfer(workspace: Workspace, config: GapConfig, progress: Progress) -> list[dict[str, Any]]:
    """The gap of every layer, as plain values; they are kept in the run's gram-gap.json."""
    cache = open_teacher_cache(workspace.cache)
    check_teacher(workspace, cache)
    if config.part not in PARTS or PARTS[config.part] not in cache.layout.samples:
        held = [name for name, part in PARTS.items() if part in cache.layout.samples]
        raise UsageError(f"--part {config.part}: the cache has {', '.join(held)}")
    result, known = read_student(config.run), read_gaps(config.run)
    device = choose_device(config.device)
    with seeded(int(result.get("seed", 0))):
        student = create(result["network"], cache.layout.classes, result.get("taps", {}))
    shapes = tap_shapes(student, tuple(cache.identity["data"]["image_shape"]))
    taps = [known_layer(layer, shapes, cache.layout.tap_shapes) for layer in config.layers]
    images = part_images(workspace, cache, config, device, progress)
    checkpoint.load_weights(config.run / "student.safetensors", student, result["weights_sha256"])
    theirs = teacher_vectors(workspace, cache, config, taps, images, device, result)
    progress.note(f"features of {result['name']} over {len(images.labels):,} images")
    ours = vectors(student.to(device), images.images, len(images.labels), taps)
    gaps = []
    for tap in taps:
        found = gram_gap(ours[tap], theirs[tap], algorithm=config.algorithm)
        source = "fresh" if config.fresh else f"cached {theirs[tap].dtype}"
        gaps.append({"layer": tap, "part": config.part, "teacher_features": source, **asdict(found)})
    renewed = {(gap["layer"], gap["part"]) for gap in gaps}
    kept = [gap for gap in known if (gap["layer"], gap["part"]) not in renewed]
    files.write_json(config.run / "gram-gap.json", {"gaps": [*kept, *gaps]})
    return gaps


def read_gaps(run: Path) -> list[dict[str, Any]]:
    """The gaps that were computed for a run before."""
    path = run / "gram-gap.json"
    if not path.exists():
        return []
    gaps: list[dict[str, Any]] = files.read_json(path, f"remove {path}", {"gaps": list})["gaps"]
    for gap in gaps:
        files.check_fields(gap, {"layer": str, "part": str}, f"a gap in {path}", f"remove {path}")
    return gaps


def read_student(run: Path) -> dict[str, Any]:
    """The result of a finished distill run."""
    known = {"command": str, "name": str, "network": str, "weights_sha256": str}
    result = read_result(run, "distil the student again", known)
    if result["command"] != "distill":
        raise UsageError(f"{run} is a run of `kdtool {result['command']}`; name one of `kdtool distill`")
    return result


def part_images(
    workspace: Workspace, cache: Cache, config: GapConfig, device: torch.device, progress: Progress
) -> Labelled:
    """The images of the part, in the cache's order."""
    data = data_of(workspace, cache, config.data_folder, progress)
    part = data.test if config.part == "test" else data.train
    return labelled(part, cache.index(PARTS[config.part]), seen_by(cache).rule(), data, device)


def teacher_vectors(
    workspace: Workspace,
    cache: Cache,
    config: GapConfig,
    taps: Sequence[str],
    images: Labelled,
    device: torch.device,
    student: Mapping[str, Any],
) -> dict[str, npt.NDArray[Any]]:
    """The teacher's vectors (n, d) of every tap."""
    if config.fresh:
        record = read_record(workspace.teacher)
        model: nn.Module = read_teacher(workspace.teacher, record, device)
        return dict(vectors(model, images.images, len(images.labels), taps))
    part, found = PARTS[config.part], {}
    for tap in taps:
        key = vector(tap).key
        if not cache.views(key, part):
            needed = (method("kda").with_options({"layers": tap}),)
            command = extract_command(
                workspace, cache, needed, student["network"], config.data_folder, student.get("taps", {})
            )
            views = max(cache.views("logits"), 1)
            raise DamageError(
                f"the cache {cache.path} holds no {key} of clean {config.part} images; add it with "
                f"`{shlex.join([*command, '--clean', key, '--views', str(views)])}`, or give --fresh"
            )
        found[tap] = np.asarray(cache.array(part, key, VALUES).read(0))
    return found
