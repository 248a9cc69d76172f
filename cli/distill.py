"""`kdtool distill`: train a student from the cache alone."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line
from kdtool.cli.dry_run import show_dry, show_training

Name = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        "-m",
        metavar="METHOD",
        autocompletion=complete.methods_or_none,
        help="One of `kdtool methods`, path.to:MyMethod, or none.",
    ),
]


def distill(
    method: Name = None,
    layers: o.Layers = None,
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="METHOD", autocompletion=complete.added, help="Add this method's terms (kd)."),
    ] = None,
    settings: o.Settings = None,
    student: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            "--model",
            metavar="NETWORK",
            autocompletion=complete.networks,
            help="Student, see `kdtool models`; or tv:NAME, timm:NAME, path.to:factory.  [default: the one of teach]",
        ),
    ] = None,
    tap: o.Taps = None,
    initial: o.Initial = None,
    head_learning_rate: o.HeadLearningRate = None,
    views: Annotated[
        int | None, typer.Option("--views", metavar="N", help="Views to walk.  [default: all that are held]")
    ] = None,
    recipe: o.RecipeName = None,
    epochs: o.Epochs = None,
    batch: o.Batch = None,
    learning_rate: o.LearningRate = None,
    weight_decay: o.WeightDecay = None,
    optimizer: o.Optimizer = None,
    schedule: o.Schedule = None,
    shuffle_block: Annotated[
        int | None,
        typer.Option("--shuffle-block", metavar="N", help="Shuffle among so many samples.  [default: a whole view]"),
    ] = None,
    seed: o.Seeds = None,
    device: o.Device = None,
    precision: o.Precision = None,
    keep_weights: o.KeepWeights = None,
    sync_bn: o.SyncBn = False,
    data_folder: o.DataFolder = None,
    cache: o.CachePath = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="NAME", autocompletion=complete.run_names, help="Name of the run's folder below runs/."
        ),
    ] = None,
    folder: o.Folder = Path(),
    config: o.Config = None,
    tensorboard: o.Tensorboard = False,
    dry_run: o.DryRun = False,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a student from the cache, without the teacher.

    Example: kdtool distill --method kda --layer before_fc --layer after_fc
    """
    one = {"method": method, "student": student, "seed": seed}
    flags = dict(locals()) | {name: o.once(f"--{name}", given) for name, given in one.items()}
    from kdtool.engine.configuration import Values, distill_config
    from kdtool.engine.distill import distill as train
    from kdtool.engine.folder import DEFAULT_STUDENT
    from kdtool.engine.ranks import own_rank

    values = Values.of_file("distill", config)
    workspace = o.open_workspace(folder, values.where("cache", cache))
    asked = distill_config(values, workspace.settings.get("student", DEFAULT_STUDENT), **flags)
    if dry_run or print_config:
        from kdtool.workflows.dry_run import distill as rehearse

        with Shown(quiet or own_rank() > 0) as shown:
            found = rehearse(workspace, asked, shown, print_config)
        show_dry(found, print_config, json, show_training)
        return
    with Shown(quiet or own_rank() > 0) as shown, shown.stoppable() as stop:
        result = train(workspace, asked, shown, stop, tensorboard=tensorboard)
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
