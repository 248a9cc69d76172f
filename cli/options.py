"""Options that several commands share. How they meet a configuration file: kdtool.engine.configuration."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdtool.cli import complete
from kdtool.errors import UsageError

if TYPE_CHECKING:
    from kdtool.engine.folder import Workspace
    from kdtool.engine.recorded import Again

Folder = Annotated[
    Path, typer.Option("--folder", metavar="FOLDER", help="Working folder: teacher, cache, runs and kdtool.toml.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.toml", help="Values for these options from a TOML file; flags win."),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data-folder", metavar="FOLDER", help="Folder with the data set's published files."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        autocompletion=complete.devices,
        help="auto, cpu or cuda[:N].  [default: auto]",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="DTYPE",
        autocompletion=complete.precisions,
        help="auto, float32 or bfloat16 (autocast).  [default: auto]",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the run.  [default: 0]")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", metavar="N", help="Seed of the run.  [default: 0]")]
Validation = Annotated[int | None, typer.Option("--validation", metavar="N", help="Images to hold out for validation.")]
FewShot = Annotated[int | None, typer.Option("--few-shot", metavar="N", help="Train on so many images of each class.")]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        autocompletion=complete.recipes,
        help="kda, crd, icd or srm: optimiser, schedule, batch.  [default: kda]",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", metavar="N", help="Epochs; the schedule keeps its shape.  [default: the recipe's]"),
]
Batch = Annotated[
    int | None, typer.Option("--batch", "--batch-size", metavar="N", help="Samples in a step.  [default: the recipe's]")
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", "--lr", metavar="RATE", help="Highest learning rate.  [default: the recipe's]"),
]
WeightDecay = Annotated[
    float | None,
    typer.Option("--weight-decay", metavar="RATE", help="Weight decay, on all parameters.  [default: the recipe's]"),
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        "--optimizer", metavar="NAME", autocompletion=complete.optimizers, help="sgd or adam.  [default: the recipe's]"
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="NAME",
        autocompletion=complete.schedules,
        help="cosine, step or constant.  [default: the recipe's]",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer", metavar="TAP", autocompletion=complete.taps, help="Layer of the method; repeat for several."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="[METHOD.]NAME=VALUE", help="Option of a method, see `kdtool methods`; repeat."),
]
Taps = Annotated[
    list[str] | None,
    typer.Option("--tap", metavar="TAP=PATH", help="Name a layer of the network by its module path; repeat."),
]
Initial = Annotated[
    Path | None, typer.Option("--from", metavar="FILE", help="Begin from these weights: .safetensors, .pt or .pth.")
]
HeadLearningRate = Annotated[
    float | None,
    typer.Option("--head-lr", metavar="RATE", help="Learning rate of the classifier, where it has its own."),
]
CachePath = Annotated[
    Path | None,
    typer.Option("--cache", metavar="FOLDER", help="The cache, from here.  [default: cache.zarr in --folder]"),
]
KeepWeights = Annotated[
    int | None,
    typer.Option("--keep-weights", metavar="N", help="Keep the weights of every so many epochs, for analyses."),
]
SyncBn = Annotated[
    bool, typer.Option("--sync-bn", help="Under torchrun, BatchNorm over the whole batch and not each share (GPUs).")
]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Write the metrics for TensorBoard too.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done; write nothing.")]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="As --dry-run, and print the resolved configuration for --config alone."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def once(option: str, given: Sequence[Any] | None) -> Any:
    """The value of an option that a run takes one of; of several, all but the last would be dropped silently."""
    if given and len(given) > 1:
        several = ", ".join(map(str, given))
        raise UsageError(f"{option} was given {len(given)} times ({several}); a run has one: begin a run for each")
    return given[0] if given else None


def open_workspace(folder: Path, cache: Path | str | None = None) -> "Workspace":
    """The workspace of a folder, with another cache where one is named."""
    from kdtool.engine.folder import Workspace

    workspace = Workspace.open(folder)
    if cache is None:
        return workspace
    return replace(workspace, settings={**workspace.settings, "cache": str(Path(cache).absolute())})


def again(device: str | None, data_folder: Path | None, own: list[str] | None) -> "Again":
    """How the teacher of a cache is asked again."""
    from kdtool.engine.recorded import Again

    return Again(device or "auto", str(data_folder.absolute()) if data_folder else None, tuple(own or ()))
