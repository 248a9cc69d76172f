"""Options that several commands share. How they meet a configuration file: kdtool.engine.configuration."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdtool.engine.folder import Workspace
    from kdtool.engine.recorded import Again

Folder = Annotated[Path, typer.Option("--folder", help="Working folder: teacher, cache, runs and kdtool.toml.")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with values for these options; flags win.")]
DataFolder = Annotated[Path | None, typer.Option("--data-folder", help="Folder with the data set's published files.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.  [default: auto]")]
Precision = Annotated[
    str | None, typer.Option("--precision", help="auto, float32 or bfloat16 (autocast).  [default: auto]")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the run.  [default: 0]")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="kda, crd, icd or srm: optimiser, schedule, batch.  [default: kda]")
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs; the schedule keeps its shape.")]
Batch = Annotated[int | None, typer.Option("--batch", help="Samples in a step.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="Highest learning rate.")]
WeightDecay = Annotated[float | None, typer.Option("--weight-decay", help="Weight decay, on all parameters.")]
Optimizer = Annotated[str | None, typer.Option("--optimizer", help="sgd or adam.")]
Schedule = Annotated[str | None, typer.Option("--schedule", help="cosine, step or constant.")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="Layer of the method; repeat for several.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Option of a method, [METHOD.]NAME=VALUE.")]
Taps = Annotated[
    list[str] | None, typer.Option("--tap", help="Name a layer of the network by its module path, TAP=PATH; repeat.")
]
CachePath = Annotated[Path | None, typer.Option("--cache", help="The cache.  [default: cache.zarr]")]
KeepWeights = Annotated[
    int | None, typer.Option("--keep-weights", help="Keep the weights of every so many epochs, for analyses.")
]
SyncBn = Annotated[
    bool, typer.Option("--sync-bn", help="Under torchrun, BatchNorm over the whole batch and not each share (GPUs).")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


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
