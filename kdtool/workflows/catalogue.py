"""What every method is, needs and stores for a pair of networks: the content of `kdtool methods` and docs/methods.md.

Everything is asked of the methods themselves; bytes are those of one image in one view. No network runs on images of a
data set and no cache is read.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from kdtool.engine.lacking import option_text
from kdtool.engine.sources import as_tensors
from kdtool.errors import UsageError
from kdtool.methods import METHODS, reference
from kdtool.methods.protocol import Method
from kdtool.models import create, image_width, tap_shapes
from kdtool.targets import Facts, Fit, Shape, Shapes, Stage, Target

TEACHER, STUDENT = "resnet32x4", "resnet8x4"  # the pair of the tables in the papers
FIT_VIEWS = 4


def catalogue(
    methods: Iterable[Method], student: str, teacher: str, classes: int, width: int | None = None
) -> list[dict[str, Any]]:
    """A row for each method; one that refuses the pair of networks has `refuses` in place of what it needs.

    width: of the images, None for those that the teacher is made for.
    """
    side = width or image_width(teacher)
    image = (3, side, side)
    shapes = tap_shapes(create(student, classes), image), tap_shapes(create(teacher, classes), image)
    facts = Facts(50_000, classes, np.arange(50_000, dtype=np.int64) % classes, batch=64, epochs=240, seed=0)
    return [_row(method, *shapes, facts) for method in methods]


def _row(method: Method, student: Shapes, teacher: Shapes, facts: Facts) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": reference(method),
        "paper": method.paper,
        "options": dict(vars(method)),
    }
    try:
        targets = method.targets(student, teacher)
        stages = method.stages(student, teacher, facts)
        fits = method.fits(student, teacher)
        learned = {fit.key: fit for fit in (*(t.fit for t in targets if t.fit is not None), *fits)}
        arrays = {target.key: stored(target, teacher, facts) for target in targets}
    except UsageError as error:
        return {**row, "refuses": str(error)}
    return {
        **row,
        "targets": arrays,
        "bytes_per_view": sum(array["bytes"] for target in arrays.values() for array in target.values()),
        "fits": list(learned),
        "stages": [_stage(stage, facts) for stage in stages],
    }


def _stage(stage: Stage, facts: Facts) -> dict[str, Any]:
    return {
        "name": stage.name,
        "epochs": stage.epochs or facts.epochs,
        "task": stage.task,
        "weights": None if stage.weights is None else {term: weight.value for term, weight in stage.weights.items()},
        "trains": stage.trains,
        "select": stage.select,
    }


def stored(target: Target, teacher: Shapes, facts: Facts) -> dict[str, dict[str, Any]]:
    """array -> dtype, shape and bytes of what a target stores of one image in one view, by its default dtype."""
    fitted = {} if target.fit is None else as_tensors(_untrained(target.fit, teacher, facts), torch.device("cpu"))
    return {name: _about(rows, target.dtype) for name, rows in target.encode(_zeros(target, teacher), fitted).items()}


def _about(rows: torch.Tensor, default: str) -> dict[str, Any]:
    dtype = default if rows.is_floating_point() else str(rows.dtype).removeprefix("torch.")
    shape = tuple(rows.shape[1:])
    return {"dtype": dtype, "shape": shape, "bytes": int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize}


def _untrained(fit: Fit, teacher: Shapes, facts: Facts) -> dict[str, np.ndarray[Any, Any]]:
    """What a fit would store, in shape and dtype: its result from the state before the first batch."""
    shapes: dict[str, Mapping[str, Shape]] = {
        target.key: {name: about["shape"] for name, about in stored(target, teacher, facts).items()}
        for target in fit.reads
    }
    return fit.result(fit.begin(facts, shapes, FIT_VIEWS), facts)


def _zeros(target: Target, teacher: Shapes) -> dict[str, torch.Tensor]:
    return {tap: torch.zeros(1, *teacher[tap]) for tap in target.taps}


def text(row: Mapping[str, Any]) -> str:
    """A row as a paragraph of at most 80 columns."""
    lines = [f"{row['method']}  {row['paper']}"]
    if "refuses" in row:
        lines.append(f"refuses   {row['refuses']}")
    else:
        for key, arrays in row["targets"].items():
            lines.append(f"target    {key}: {_arrays(arrays)}")
        lines += [f"fit       {key}" for key in row["fits"]]
        lines.append(f"bytes     {row['bytes_per_view']:,} per image and view")
        lines += [f"stage     {_shown(stage)}" for stage in row["stages"]]
    lines.append(f"defaults  {_options(row['options']) or 'none'}")
    return "\n".join(_wrapped(line, "  " if number else "") for number, line in enumerate(lines))


def _wrapped(line: str, indent: str) -> str:
    return textwrap.fill(line, 80, initial_indent=indent, subsequent_indent=" " * 12, break_long_words=False)


def _arrays(arrays: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{name} {about['dtype']} {'x'.join(map(str, about['shape'])) or 'scalar'}" for name, about in arrays.items()
    )


def _shown(stage: Mapping[str, Any]) -> str:
    weights = stage["weights"]
    terms = ["the method's terms"] if weights is None else [f"{value:g} {term}" for term, value in weights.items()]
    task = [f"{stage['task']:g} task"] if stage["task"] else []
    trains = f", trains up to {' and '.join(stage['trains'])}" if stage["trains"] else ""
    return f"{stage['name']}: {' + '.join([*task, *terms])}{trains}"


def _options(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={option_text(value)}" for name, value in options.items())


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table of docs/methods.md."""
    head = ("method", "paper", "stored per image and view", "bytes", "stages", "options and defaults")
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        needs = ["refuses this pair", "", ""]
        if "refuses" not in row:
            targets = [f"`{key}`: {_arrays(arrays)}" for key, arrays in row["targets"].items()]
            fits = [f"fit `{key}`" for key in row["fits"]]
            stages = [_shown(stage) for stage in row["stages"]]
            needs = ["<br>".join([*targets, *fits]), f"{row['bytes_per_view']:,}", "<br>".join(stages)]
        options = " ".join(f"`{part}`" for part in _options(row["options"]).split(" ") if part)
        lines.append(" | ".join((f"`{row['method']}`", row["paper"], *needs, options)))
    return "".join(f"| {line} |\n" for line in lines)


def page() -> str:
    """docs/methods.md as a whole; `kdtool methods --markdown` prints it."""
    rows = catalogue((kind() for kind in METHODS.values()), STUDENT, TEACHER, 100)
    return f"""# The methods

Made by `kdtool methods --markdown` from the methods themselves, for the pair {TEACHER} to {STUDENT} on 32x32 images in
100 classes; `kdtool methods --student NAME --teacher NAME --image-size N` tells it of another pair. The logits and
`before_fc` are stored by every extract. Weights are those of a run of 240 epochs with batches of 64, to which KDA's is
scaled (0.04 to 0.08); the others are as given. [Mathematics](mathematics.md) tells how each loss is defined, and where
it departs from the reference code.

{markdown(rows)}"""
