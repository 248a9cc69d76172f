"""`kdtool report`: one HTML file for some runs."""

from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN", autocompletion=complete.runs, help="Run folders, or folders of them.  [default: runs]"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The file.  [default: report.html]")] = None,
    folder: o.Folder = Path(),
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write one HTML file: results, curves, kernels, cost.

    Example: kdtool report
    """
    from kdtool.workflows.report import write_report

    with Shown(quiet) as shown:
        written = write_report(runs or [folder / "runs"], out or folder / "report.html", shown)
    if json:
        print_json({"report": str(written)})
    else:
        print_line(f"wrote {written}")
