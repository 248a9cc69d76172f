"""`kdtool distill`: train a student from the cache alone."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line
from kdtool.errors import UsageError

KEYS = (
    "student",
    "method",
    "with",
    "layer",
    "set",
    "recipe",
    "views",
    "seed",
    "device",
    "precision",
    "shuffle_block",
    "data_folder",
)


def distill(
    method: Annotated[str | None, typer.Option("--method", "-m", help="Method, see `kdtool methods`, or none.")] = None,
    layers: o.Layers = None,
    with_: Annotated[list[str] | None, typer.Option("--with", help="Add this method's terms (kd).")] = None,
    settings: o.Settings = None,
    student: Annotated[str | None, typer.Option("--student", help="Student network.")] = None,
    views: Annotated[int | None, typer.Option("--views", help="Views to walk.  [default: all that are held]")] = None,
    recipe: o.RecipeName = None,
    epochs: o.Epochs = None,
    batch: o.Batch = None,
    learning_rate: o.LearningRate = None,
    weight_decay: o.WeightDecay = None,
    optimizer: o.Optimizer = None,
    schedule: o.Schedule = None,
    shuffle_block: Annotated[
        int | None, typer.Option("--shuffle-block", help="Shuffle among so many samples.  [default: a whole view]")
    ] = None,
    seed: o.Seed = None,
    device: o.Device = None,
    precision: o.Precision = None,
    data_folder: o.DataFolder = None,
    cache: o.CachePath = None,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run's folder below runs/.")] = None,
    folder: o.Folder = Path(),
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a student from the cache; the teacher is not needed any more.

    Example: kdtool distill --method kda --layer before_fc --layer after_fc
    """
    values = o.Values("distill", config, KEYS)
    name = values.get("method", method, None, str)
    if name is None:
        raise UsageError("--method is missing: one of `kdtool methods`, or none")
    from kdtool.engine.distill import DistillConfig
    from kdtool.engine.distill import distill as train
    from kdtool.progress import stoppable

    workspace = o.open_workspace(folder, cache)
    asked = DistillConfig(
        student=values.get("student", student, workspace.settings.get("student", "resnet18"), str),
        methods=chosen_methods(values, name, with_, layers, settings),
        recipe=values.recipe(
            recipe,
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            optimizer=optimizer,
            schedule=schedule,
        ),
        name=run or "",
        views=values.get("views", views, 0, int),
        seed=values.get("seed", seed, 0, int),
        device=values.get("device", device, "auto", str),
        precision=values.get("precision", precision, "auto", str),
        shuffle_block=values.get("shuffle_block", shuffle_block, 0, int),
        data_folder=values.get("data_folder", data_folder, None, str),
    )
    with Shown(quiet) as shown, stoppable() as stop:
        result = train(workspace, asked, shown, stop)
    if json:
        print_json(result)
    else:
        print_line(
            f"student {result['network']} ({'+'.join(result['method']) or 'no teacher'}): test accuracy "
            f"{result['test_accuracy']['last']:.2f} % (last), teacher {result['teacher']['test_accuracy']:.2f} %"
        )
        print_line(f"wrote {workspace.runs / result['name']}; next: kdtool analyze gram-gap")


def chosen_methods(
    values: o.Values, name: str, with_: list[str] | None, layers: list[str] | None, settings: list[str] | None
) -> Any:
    """The run's method and what is added to it, with options from the file's [set] table and then from flags."""
    added = values.get("with", with_, [], list)
    if name == "none":
        if added or layers or settings:
            raise UsageError("--method none trains on labels alone; --with, --layer and --set do not apply to it")
        return ()
    for extra in added:
        if extra != "kd":
            raise UsageError(f"--with {extra}: only kd can be added to another method")
        if name == "kd":
            raise UsageError(f"--with {extra}: the method {name} is KD itself")
    table = {key: _text(value) for key, value in values.get("set", None, {}, dict).items()}
    given = {**({"kd.weight": "1"} if added else {}), **table, **o.split_settings(settings or [])}
    return o.build_methods([name, *added], values.get("layer", layers, [], list), given)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
