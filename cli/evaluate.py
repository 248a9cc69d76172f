"""`kdtool evaluate`: how good trained networks are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line, print_table
from kdtool.errors import UsageError

if TYPE_CHECKING:
    from kdtool.engine.folder import Workspace
    from kdtool.progress import Progress


def evaluate(
    weights: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="WEIGHTS",
            autocompletion=complete.runs,
            help="Files of weights, or folders of runs.  [default: the teacher and all students]",
        ),
    ] = None,
    part: Annotated[
        str, typer.Option("--part", metavar="PART", autocompletion=complete.published_parts, help="test, train or all.")
    ] = "test",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA_SET",
            autocompletion=complete.data_sets,
            help="Other data with the same classes.  [default: its own]",
        ),
    ] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Accuracy of every class, too.")] = False,
    data_folder: o.DataFolder = None,
    device: o.Device = None,
    folder: o.Folder = Path(),
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Tell how good teachers and students are on labelled images.

    Top-1 and top-5 accuracy, cross-entropy, and the calibration error of 15 bins, in float32.

    Example: kdtool evaluate runs/* --by-class
    """
    from dataclasses import asdict

    from kdtool.analysis.evaluation import Images, evaluate_all
    from kdtool.engine.folder import Workspace

    workspace = Workspace.open(folder)
    place = str(data_folder) if data_folder else workspace.settings.get("data_folder") if data is None else None
    with Shown(quiet) as shown:
        files = finished(weights, shown) if weights else trained(workspace, shown)
        found = evaluate_all(files, Images(part, data, place), device or "auto", shown)
    if json:
        print_json([asdict(one) for one in found])
        return
    names = [one.weights.removesuffix("/student.safetensors") for one in found]
    rows = [
        (
            name,
            one.images,
            f"{one.top1:.2f}",
            "" if one.top5 is None else f"{one.top5:.2f}",
            f"{one.quality.cross_entropy:.4f}",
            f"{100 * one.quality.calibration_error:.2f}",
        )
        for name, one in zip(names, found, strict=True)
    ]
    print_table("", ("weights", "images", "top-1 %", "top-5 %", "cross-entropy", "ECE %"), rows)
    for name, one in zip(names, found, strict=True) if by_class else ():
        scores = [(of.name, of.images, "" if of.accuracy is None else f"{of.accuracy:.2f}") for of in one.classes]
        print_line("")
        print_table(name, ("class", "images", "top-1 %"), scores)


def file_of(path: Path) -> Path:
    """The file of weights that is named by itself or by the folder of its run."""
    if not path.is_dir():
        return path
    run = path.absolute()
    teacher = run.parents[1] / "teacher.safetensors" if run.name == "teacher" else run
    return teacher if teacher.is_file() else path / "student.safetensors"


def finished(paths: Sequence[Path], progress: "Progress") -> list[Path]:
    """The files that are named; of several, runs that have not finished are left out and told of."""
    found = []
    for path in paths:
        if len(paths) > 1 and path.is_dir() and not (path / "result.json").exists():
            progress.note(f"left out: {path} has not finished")
        else:
            found.append(file_of(path))
    return found


def trained(workspace: "Workspace", progress: "Progress") -> list[Path]:
    """The teacher's weights and those of all finished students, the newest last; what is gone is told of."""
    ended = [run for run in sorted(workspace.runs.glob("*")) if (run / "result.json").exists()]
    students = [run / "student.safetensors" for run in ended if run.name != "teacher"]
    found = [path for path in (workspace.teacher, *students) if path.exists()]
    for path in students:
        if path not in found:
            progress.note(f"left out: {path} is gone")
    if not found:
        raise UsageError(f"{workspace.folder} holds no trained network; run `kdtool teach` first, or name a file")
    return sorted(found, key=lambda path: path.stat().st_mtime)
