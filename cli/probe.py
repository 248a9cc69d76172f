"""`kdtool analyze probe`: how well what a student has learned serves another task."""

from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line
from kdtool.errors import UsageError

PROBE = (
    "data",
    "data_folder",
    "stage",
    "whole",
    "batchnorm",
    "validation",
    "few_shot",
    "image_size",
    "crop",
    "seed",
    "device",
    "precision",
    *o.RECIPE,
)


def probe(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run.  [default: the newest student]")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Data set to learn, see `kdtool data list`.")] = None,
    data_folder: o.DataFolder = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="Weights at the end of this stage.  [default: the last]")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Train the whole network, not the classifier alone.")] = False,
    batchnorm: Annotated[
        str | None, typer.Option("--batchnorm", help="train or eval of the frozen network.  [default: train]")
    ] = None,
    validation: Annotated[int | None, typer.Option("--validation", help="Images to hold out for validation.")] = None,
    few_shot: Annotated[int | None, typer.Option("--few-shot", help="Train on so many images of each class.")] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Width of the images.  [default: that of the run]")
    ] = None,
    crop: Annotated[str | None, typer.Option("--crop", help="pad or resized.  [default: that of the run]")] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="probe-icd, probe-crd, probe-srm, or one of distill.  [default: probe-icd]"),
    ] = None,
    epochs: o.Epochs = None,
    batch: o.Batch = None,
    learning_rate: o.LearningRate = None,
    weight_decay: o.WeightDecay = None,
    optimizer: o.Optimizer = None,
    schedule: o.Schedule = None,
    seed: o.Seed = None,
    device: o.Device = None,
    precision: o.Precision = None,
    cache: o.CachePath = None,
    folder: o.Folder = Path(),
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a new classifier on a student, on other data.

    Example: kdtool analyze probe --data stl10 --data-folder data
    """
    values = o.Values("probe", config, (*PROBE, "recipe", "run", "weights"))
    chosen = values.get("data", data, None, str)
    if chosen is None:
        from kdtool.data import DATASETS

        raise UsageError(f"--data is missing: one of {', '.join(DATASETS)}")
    from kdtool.analysis.compared import newest_run
    from kdtool.analysis.probe import ProbeConfig
    from kdtool.analysis.probe import probe as train
    from kdtool.progress import stoppable

    workspace = o.open_workspace(folder, cache)
    named = values.get("run", None, None, str)
    asked = ProbeConfig(
        run=run or (workspace.runs / named if named else newest_run(workspace)),
        data=chosen,
        recipe=values.recipe(
            recipe or (None if "recipe" in values.table else "probe-icd"),
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            optimizer=optimizer,
            schedule=schedule,
        ),
        stage=values.get("stage", stage, "", str),
        whole=values.get("whole", whole or None, False, bool),
        batchnorm=values.get("batchnorm", batchnorm, "train", str),
        data_folder=values.where("data_folder", data_folder),
        validation=values.get("validation", validation, None, int),
        few_shot=values.get("few_shot", few_shot, None, int),
        image_size=values.get("image_size", image_size, None, int),
        crop=values.get("crop", crop, None, str),
        seed=values.get("seed", seed, 0, int),
        device=values.get("device", device, "auto", str),
        precision=values.get("precision", precision, "auto", str),
    )
    with Shown(quiet) as shown, stoppable() as stop:
        result = train(asked, shown, stop)
    if json:
        print_json(result)
        return
    print_line(
        f"{result['network']} of {result['run']} on {result['data']} ({result['kind']}): test accuracy "
        f"{result['test_accuracy']['last']:.2f} % (last)"
    )
    print_line(f"kept in {asked.run / result['name']}")
