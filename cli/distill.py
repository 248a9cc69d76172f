"""`kdtool distill`: train a student from the cache alone."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line
from kdtool.errors import UsageError

if TYPE_CHECKING:
    from kdtool.methods.protocol import Method

KEYS = (
    "student",
    "method",
    "with",
    "layer",
    "set",
    "taps",
    "recipe",
    "views",
    "seed",
    "device",
    "precision",
    "shuffle_block",
    "data_folder",
    "keep_weights",
    "sync_bn",
    "cache",
    "run",
    *o.RECIPE,
)

Name = Annotated[str | None, typer.Option("--method", "-m", help="One of `kdtool methods`, path.to:MyMethod, or none.")]


def distill(
    method: Name = None,
    layers: o.Layers = None,
    with_: Annotated[list[str] | None, typer.Option("--with", help="Add this method's terms (kd).")] = None,
    settings: o.Settings = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            "--model",
            help="Student, see `kdtool models`; or tv:NAME, timm:NAME, path.to:factory.  [default: the one of teach]",
        ),
    ] = None,
    tap: o.Taps = None,
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
    keep_weights: o.KeepWeights = None,
    sync_bn: o.SyncBn = False,
    data_folder: o.DataFolder = None,
    cache: o.CachePath = None,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run's folder below runs/.")] = None,
    folder: o.Folder = Path(),
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a student from the cache, without the teacher.

    Example: kdtool distill --method kda --layer before_fc --layer after_fc
    """
    values = o.Values("distill", config, KEYS)
    name = values.get("method", method, None, str)
    if name is None:
        raise UsageError("--method is missing: one of `kdtool methods`, or none")
    layers, added = values.get("layer", layers, [], list), values.get("with", with_, [], list)
    methods = chosen_methods(name, added, layers, values.settings(settings))
    from kdtool.engine.distill import DistillConfig
    from kdtool.engine.distill import distill as train
    from kdtool.engine.ranks import own_rank
    from kdtool.progress import stoppable

    workspace = o.open_workspace(folder, values.where("cache", cache))
    asked = DistillConfig(
        student=values.get("student", student, workspace.settings.get("student", "resnet18"), str),
        methods=methods,
        recipe=values.recipe(
            recipe,
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            optimizer=optimizer,
            schedule=schedule,
        ),
        name=values.get("run", run, "", str),
        views=values.get("views", views, 0, int),
        seed=values.get("seed", seed, 0, int),
        device=values.get("device", device, "auto", str),
        precision=values.get("precision", precision, "auto", str),
        shuffle_block=values.get("shuffle_block", shuffle_block, 0, int),
        keep_weights=values.get("keep_weights", keep_weights, None, int),
        sync_bn=values.get("sync_bn", sync_bn or None, None, bool),
        data_folder=values.where("data_folder", data_folder),
        taps=values.taps(tap),
    )
    with Shown(quiet or own_rank() > 0) as shown, stoppable() as stop:
        result = train(workspace, asked, shown, stop)
    if own_rank() > 0:
        return
    if json:
        print_json(result)
    else:
        print_line(
            f"student {result['network']} ({'+'.join(result['method']) or 'no teacher'}): test accuracy "
            f"{result['test_accuracy']['last']:.2f} % (last), teacher {result['teacher']['test_accuracy']:.2f} %"
        )
        following = shlex.join(["kdtool", "analyze", "gram-gap", *workspace.words])
        print_line(f"wrote {workspace.runs / result['name']}; next: {following}")


def chosen_methods(name: str, added: list[str], layers: list[str], settings: dict[str, str]) -> "tuple[Method, ...]":
    """The run's method and what is added to it, with their layers and options; none for labels alone."""
    if name == "none":
        if added or layers or settings:
            raise UsageError("--method none trains on labels alone; --with, --layer and --set do not apply to it")
        return ()
    from kdtool.methods import METHODS, method

    addable = {known: kind.added for known, kind in METHODS.items() if kind.added is not None}
    defaults: dict[str, str] = {}
    for extra in added:
        if extra not in addable:
            raise UsageError(f"--with {extra}: only {', '.join(addable)} can be added to another method")
        if not method(name).combines:
            raise UsageError(f"--with {extra}: the method {name} is KD itself")
        defaults |= {f"{extra}.{option}": value for option, value in addable[extra].items()}
    return o.build_methods(list(dict.fromkeys([name, *added])), layers, {**defaults, **settings})
