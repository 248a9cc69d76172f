"""The `kdtool` command: its subcommands, and one place where errors become one line and an exit code."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from kdtool import __version__
from kdtool.cli import (
    analyze,
    bench,
    cache,
    data,
    distill,
    doctor,
    extract,
    plan,
    quickstart,
    report,
    reproduce,
    show,
    teach,
)
from kdtool.errors import KdtoolError, UsageError, printable
from kdtool.imports import FILES

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
app.add_typer(reproduce.app, name="reproduce")
app.command("report")(report.report)
app.command("methods")(show.methods)
app.command("models")(show.models)
app.add_typer(data.app, name="data")
app.command("doctor")(doctor.doctor)
app.command("quickstart")(quickstart.quickstart)
app.command("bench")(bench.bench)


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
    """Runs a command line; gives its exit code. `--debug` may stand anywhere."""
    words = [word for word in arguments if word != "--debug"]
    FILES.clear()  # of the command before, in tests
    try:
        code = app(words, standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the reader of a pipe has left, as in `kdtool models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the one place that may see anything
        return _fail(error, debug=len(words) < len(arguments))
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        return _say("interrupted", 130)
    return code if isinstance(code, int) else 0


def _fail(error: Exception, debug: bool) -> int:
    """Says in one line what went wrong; gives the exit code that belongs to it."""
    message = error.format_message() if hasattr(error, "format_message") else ""  # typer's own errors have one
    if "\n" in message:  # the help of a command that was named without a subcommand
        sys.stderr.write(f"{message}\n")
        return 2
    if debug:
        traceback.print_exception(error)
    said = _explained(error, message)
    return said[1] if _said_by_rank_0(error) else _say(*said)


def _said_by_rank_0(error: Exception) -> bool:
    """Whether another process of the same torchrun says the same: until they join, all read the same command line."""
    if isinstance(error, KdtoolError):
        same = isinstance(error, UsageError) if error.apart is None else not error.apart
    else:
        same = hasattr(error, "format_message")
    return same and os.environ.get("RANK", "0") != "0"


def _explained(error: Exception, message: str) -> tuple[str, int]:
    if isinstance(error, KdtoolError):
        return str(error), error.exit_code
    if isinstance(error, typer.Abort):
        return "interrupted", 130
    if message:  # a wrong option, value or command
        return f"{message.rstrip('.')} (see --help)", 2
    torchs = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    if isinstance(error, MemoryError) or torchs:
        return f"not enough memory: {error}; take a smaller --batch, or --device cpu", 5
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left; free some space and run the same command again: it goes on where it stopped", 5
    if isinstance(error, OSError):
        name = f": {error.filename}" if error.filename else ""
        mistyped = isinstance(error, _NAMES) or error.errno == errno.ENAMETOOLONG
        return f"{error.strerror or error}{name}", 2 if mistyped else 5
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in FILES:
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}: {type(error).__name__}: {error}", 2
    if FILES:
        advice = "check your method as docs/own-method.md shows, your network with `kdtool models`, or see --debug"
        return f"{type(error).__name__}: {error}; {advice}", 1
    return f"a bug in kdtool: {type(error).__name__}: {error}; `kdtool --debug ...` shows where", 1


_NAMES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


def _say(message: str, code: int) -> int:
    lines = "; ".join(line.strip() for line in message.splitlines() if line.strip())
    sys.stderr.write(f"kdtool: {printable(lines.replace(':; ', ': '))}\n")
    return code


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))
