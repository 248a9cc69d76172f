"""The `kdtool` command: its subcommands, and one place where errors become one line and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from kdtool import __version__
from kdtool.cli import analyze, cache, distill, extract, plan, quickstart, report, show, teach
from kdtool.errors import KdtoolError

app = typer.Typer(
    name="kdtool",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil image classifiers from a teacher that runs once: teach, extract, distill, analyze.",
)
app.command("teach")(teach.teach)
app.command("extract")(extract.extract)
app.command("distill")(distill.distill)
app.add_typer(analyze.app, name="analyze")
app.command("plan")(plan.plan)
app.add_typer(cache.app, name="cache")
app.command("report")(report.report)
app.command("methods")(show.methods)
app.command("models")(show.models)
app.add_typer(show.data_app, name="data")
app.command("quickstart")(quickstart.quickstart)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"kdtool {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Distil image classifiers from a teacher that runs once: teach, extract, distill, analyze."""


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; gives its exit code."""
    try:
        code = app(list(arguments), standalone_mode=False)
    except KdtoolError as error:
        return _fail(str(error), error.exit_code, arguments)
    except typer.Abort:
        return _fail("interrupted", 130, arguments)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again: it goes on where it stopped", 130, arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the one place that may see anything
        if hasattr(error, "format_message"):  # typer's own errors: a wrong option, value or command
            return _fail(error.format_message() or "see --help", 2, arguments)
        return _fail(
            f"a bug in kdtool: {type(error).__name__}: {error}; `kdtool --debug ...` shows where", 1, arguments
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    sys.stderr.write(f"kdtool: {' '.join(message.split())}\n")
    return code


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))
