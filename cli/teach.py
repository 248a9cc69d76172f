"""`kdtool teach`: train a teacher."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line
from kdtool.cli.dry_run import show_dry, show_training


def teach(
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA_SET", autocompletion=complete.data_sets, help="See `kdtool data list`."),
    ] = None,
    data_folder: o.DataFolder = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            "--model",
            metavar="NETWORK",
            autocompletion=complete.networks,
            help="See `kdtool models`; or tv:NAME, timm:NAME, path.to:factory.  [default: resnet34]",
        ),
    ] = None,
    tap: o.Taps = None,
    initial: o.Initial = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="Take the weights of --from as they are.")] = False,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            "--freeze",
            metavar="PART",
            autocompletion=complete.frozen,
            help="Train nothing up to this tap, nothing of this module, or not the body; repeat.",
        ),
    ] = None,
    batchnorm: Annotated[
        str | None,
        typer.Option(
            "--batchnorm",
            metavar="MODE",
            autocompletion=complete.modes,
            help="eval or train: statistics of frozen layers stay or follow.  [default: eval]",
        ),
    ] = None,
    head_learning_rate: o.HeadLearningRate = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="N", help="Width of the images in pixels.")
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop",
            metavar="KIND",
            autocompletion=complete.crops,
            help="pad (padded and cropped, in memory) or resized (random boxes).",
        ),
    ] = None,
    pad: Annotated[
        int | None, typer.Option("--pad", metavar="N", help="Pixels around an image that is cropped.  [default: 4]")
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Views may be mirrored, or never.  [default: by the data set]"),
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", metavar="R,G,B", help="In place of the data set's mean.")
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", metavar="R,G,B", help="In place of its standard deviation.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            metavar="NETWORK",
            autocompletion=complete.networks,
            help="Default student of distill.  [default: resnet18]",
        ),
    ] = None,
    views: Annotated[
        int | None, typer.Option("--views", metavar="N", help="Default number of views of extract.  [default: 8]")
    ] = None,
    validation: o.Validation = None,
    few_shot: o.FewShot = None,
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
    keep_weights: o.KeepWeights = None,
    selected: Annotated[
        bool, typer.Option("--selected", help="Take the epoch that is best on validation, not the last.")
    ] = False,
    sync_bn: o.SyncBn = False,
    folder: o.Folder = Path(),
    config: o.Config = None,
    tensorboard: o.Tensorboard = False,
    dry_run: o.DryRun = False,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a teacher on labels; write its weights and kdtool.toml.

    Example: kdtool teach --data digits --network resnet20 --student resnet8 --epochs 10
    """
    flags = dict(locals())
    from kdtool.engine.configuration import Values, teach_config
    from kdtool.engine.ranks import own_rank
    from kdtool.engine.teach import teach as run

    settings = teach_config(Values.of_file("teach", config), **flags)
    workspace = o.open_workspace(folder)
    if dry_run or print_config:
        from kdtool.workflows.dry_run import teach as rehearse

        with Shown(quiet or own_rank() > 0) as shown:
            found = rehearse(workspace, settings, shown, print_config)
        show_dry(found, print_config, json, show_training)
        return
    with Shown(quiet or own_rank() > 0) as shown, shown.stoppable() as stop:
        result = run(workspace, settings, shown, stop, tensorboard=tensorboard)
    if own_rank() > 0:
        return
    if json:
        print_json(result)
    else:
        print_line(f"teacher {result['network']}: test accuracy {result['teacher']['test_accuracy']:.2f} %")
        following = shlex.join(["kdtool", "extract", *workspace.words])
        print_line(f"wrote {workspace.teacher} and {folder / 'kdtool.toml'}; next: {following}")
