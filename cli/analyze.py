"""`kdtool analyze`: what was transferred."""

from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line, print_table
from kdtool.errors import unknown

app = typer.Typer(no_args_is_help=True, help="Measure what a student took over.", rich_markup_mode=None)

Layers = Annotated[list[str] | None, typer.Option("--layer", help="Layer; repeat.  [default: before_fc, after_fc]")]


@app.callback()
def analyze() -> None:
    """Measure what a student took over."""


@app.command("gram-gap")
def gram_gap(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run.  [default: the newest student]")] = None,
    layers: Annotated[
        list[str] | None, typer.Option("--layer", help="Layer; repeat.  [default: before_fc and after_fc]")
    ] = None,
    part: Annotated[str, typer.Option("--part", help="train, validation or test, un-augmented.")] = "train",
    algorithm: Annotated[str, typer.Option("--algorithm", help="moments, or blocked as the check.")] = "moments",
    fresh: Annotated[bool, typer.Option("--fresh", help="Run the teacher instead of reading the cache.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a plot (.svg, .png or .pdf).")] = None,
    device: o.Device = None,
    data_folder: o.DataFolder = None,
    cache: o.CachePath = None,
    folder: o.Folder = Path(),
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Kernel transfer loss over all images of a part, exact.

    ||K_T - K_S|| / ||K_T|| in the Frobenius norm, with K the matrix of inner products of all pairs of images.

    Example: kdtool analyze gram-gap
    """
    if algorithm not in ("moments", "blocked"):
        raise unknown("algorithm", algorithm, ("moments", "blocked"))
    from kdtool.analysis.transfer import GapConfig, newest_run, transfer

    workspace = o.open_workspace(folder, cache)
    chosen = run or newest_run(workspace)
    asked = GapConfig(
        run=chosen,
        layers=tuple(layers or ("before_fc", "after_fc")),
        part=part,
        algorithm=algorithm,
        fresh=fresh,
        device=device or "auto",
        data_folder=str(data_folder) if data_folder else None,
    )
    with Shown(quiet) as shown:
        gaps = transfer(workspace, asked, shown)
    if plot:
        from kdtool.analysis.plots import gap_plot

        gap_plot(gaps, plot)
    if json:
        print_json({"run": str(chosen), "gaps": gaps})
        return
    rows = [(g["layer"], g["part"], g["samples"], f"{g['loss']:.6f}", g["algorithm"]) for g in gaps]
    print_table(f"kernel transfer loss of {chosen.name}", ("layer", "part", "images", "loss", "algorithm"), rows)
    print_line(f"kept in {chosen / 'gram-gap.json'}")
