"""`kdtool analyze probe`: how well what a student has learned serves another task."""

from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line


def probe(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", autocompletion=complete.runs, help="Folder of a run.  [default: the newest student]"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA_SET",
            autocompletion=complete.data_sets,
            help="Data set to learn, see `kdtool data list`.",
        ),
    ] = None,
    data_folder: o.DataFolder = None,
    stage: Annotated[
        str | None,
        typer.Option("--stage", metavar="STAGE", help="Weights at the end of this stage.  [default: the last]"),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Train the whole network, not the classifier alone.")] = False,
    batchnorm: Annotated[
        str | None,
        typer.Option(
            "--batchnorm",
            metavar="MODE",
            autocompletion=complete.modes,
            help="train or eval of the frozen network.  [default: train]",
        ),
    ] = None,
    validation: o.Validation = None,
    few_shot: o.FewShot = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="N", help="Width of the images.  [default: that of the run]")
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop", metavar="KIND", autocompletion=complete.crops, help="pad or resized.  [default: that of the run]"
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            autocompletion=complete.probe_recipes,
            help="probe-icd, probe-crd, probe-srm, or one of distill.  [default: probe-icd]",
        ),
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
    folder: o.Folder = Path(),
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a new classifier on a student, on other data.

    Example: kdtool analyze probe --data stl10 --data-folder data
    """
    flags = dict(locals())
    from kdtool.analysis.compared import newest_run
    from kdtool.analysis.probe import probe as train
    from kdtool.analysis.probe import probe_config
    from kdtool.engine.configuration import Values

    values = Values.of_file("probe", config)
    workspace = o.open_workspace(folder)
    named = values.get("run", None, None, str)
    found = run or (workspace.runs / named if named else newest_run(workspace))
    asked = probe_config(values, **{**flags, "run": found})
    with Shown(quiet) as shown, shown.stoppable() as stop:
        result = train(asked, shown, stop)
    if json:
        print_json(result)
        return
    print_line(
        f"{result['network']} of {result['run']} on {result['data']} ({result['kind']}): test accuracy "
        f"{result['test_accuracy']['last']:.2f} % (last)"
    )
    print_line(f"kept in {asked.run / result['name']}")
