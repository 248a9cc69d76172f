"""`kdtool quickstart`: everything once, on handwritten digits."""

from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_line, print_table


def quickstart(
    folder: Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Where to work.")] = Path("quickstart"),
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", min=2, help="Epochs, for a faster look.")
    ] = None,
    quiet: o.Quiet = False,
) -> None:
    """Do everything once on handwritten digits, in two minutes.

    Teaches, extracts, distils five students, analyzes and reports: real images, and no download.

    Example: kdtool quickstart
    """
    from dataclasses import replace

    from kdtool import files
    from kdtool.analysis.kept import read_results
    from kdtool.workflows.quickstart import Quickstart
    from kdtool.workflows.quickstart import quickstart as run

    sizes = Quickstart() if epochs is None else replace(Quickstart(), epochs=epochs, teacher_epochs=epochs)
    with Shown(quiet) as shown, shown.stoppable() as stop:
        report = run(folder, sizes, shown, stop)
    rows = []
    for path in sorted((folder / "runs").glob("*/result.json"), key=lambda p: p.stat().st_mtime):
        result = files.read_json(path, "remove the folder and run again")
        losses = {gap["layer"]: gap["loss"] for gap in read_results(path.parent, "gram-gap")}
        rows.append(
            (
                result["name"],
                f"{result['test_accuracy']['last']:.2f}",
                *(f"{losses[layer]:.4f}" if layer in losses else "" for layer in ("before_fc", "after_fc")),
            )
        )
    print_table("", ("run", "test %", "gap before_fc", "gap after_fc"), rows)
    print_line(f"report: {report}")
