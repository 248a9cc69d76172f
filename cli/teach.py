"""`kdtool teach`: train a teacher."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line
from kdtool.errors import UsageError

KEYS = (
    "data",
    "network",
    "recipe",
    "data_folder",
    "validation",
    "few_shot",
    "student",
    "views",
    "seed",
    "device",
    "precision",
    *o.RECIPE,
)


def teach(
    data: Annotated[str | None, typer.Option("--data", help="Data set: digits, cifar10 or cifar100.")] = None,
    data_folder: o.DataFolder = None,
    network: Annotated[str | None, typer.Option("--network", help="Network, see `kdtool models`.")] = None,
    student: Annotated[str | None, typer.Option("--student", help="Default student.  [default: resnet18]")] = None,
    views: Annotated[int | None, typer.Option("--views", help="Default number of views.  [default: 8]")] = None,
    validation: Annotated[int | None, typer.Option("--validation", help="Images to hold out for validation.")] = None,
    few_shot: Annotated[int | None, typer.Option("--few-shot", help="Train on so many images of each class.")] = None,
    recipe: o.RecipeName = None,
    epochs: o.Epochs = None,
    batch: o.Batch = None,
    learning_rate: o.LearningRate = None,
    weight_decay: o.WeightDecay = None,
    optimizer: o.Optimizer = None,
    schedule: o.Schedule = None,
    seed: o.Seed = None,
    device: o.Device = None,
    precision: o.Precision = None,
    folder: o.Folder = Path(),
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a teacher on labels; write its weights and kdtool.toml.

    Example: kdtool teach --data digits --network resnet20 --student resnet8 --epochs 10
    """
    values = o.Values("teach", config, KEYS)
    chosen = values.get("data", data, None, str)
    if chosen is None:
        raise UsageError("--data is missing: digits, cifar10 or cifar100")
    from kdtool.engine.teach import TeachConfig
    from kdtool.engine.teach import teach as run
    from kdtool.progress import stoppable

    settings = TeachConfig(
        data=chosen,
        network=values.get("network", network, "resnet34", str),
        recipe=values.recipe(
            recipe,
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            optimizer=optimizer,
            schedule=schedule,
        ),
        data_folder=values.where("data_folder", data_folder),
        validation=values.get("validation", validation, 0, int),
        few_shot=values.get("few_shot", few_shot, None, int),
        student=values.get("student", student, "resnet18", str),
        views=values.get("views", views, 8, int),
        seed=values.get("seed", seed, 0, int),
        device=values.get("device", device, "auto", str),
        precision=values.get("precision", precision, "auto", str),
    )
    workspace = o.open_workspace(folder)
    with Shown(quiet) as shown, stoppable() as stop:
        result = run(workspace, settings, shown, stop)
    if json:
        print_json(result)
    else:
        print_line(f"teacher {result['network']}: test accuracy {result['test_accuracy']['last']:.2f} %")
        following = shlex.join(["kdtool", "extract", *workspace.words])
        print_line(f"wrote {workspace.teacher} and {folder / 'kdtool.toml'}; next: {following}")
