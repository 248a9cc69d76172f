"""All commands of `kdtool`, in the order in which people need them."""

import sys
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup

from kdtool import __version__
from kdtool.cli import (
    analyze,
    bench,
    cache,
    data,
    distill,
    doctor,
    evaluate,
    extract,
    plan,
    quickstart,
    report,
    reproduce,
    show,
    teach,
)

ORDER = (
    *("teach", "extract", "distill", "analyze", "evaluate", "report", "quickstart", "plan", "cache", "data", "models"),
    *("methods", "doctor", "reproduce", "bench"),
)


class Ordered(TyperGroup):
    """A group that lists its commands in `ORDER`, and arguments by their names alone, as options are."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = {name: self.commands[name] for name in (*ORDER, *self.commands) if name in self.commands}
        for argument in _arguments(self):
            argument.display_type_rich = lambda **_: ""  # type: ignore[method-assign]


def _arguments(command: Any) -> Iterator[TyperArgument]:
    yield from (item for item in command.params if isinstance(item, TyperArgument))
    for below in getattr(command, "commands", {}).values():
        yield from _arguments(below)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"kdtool {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="kdtool",
    cls=Ordered,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("teach")(teach.teach)
app.command("extract")(extract.extract)
app.command("distill")(distill.distill)
app.add_typer(analyze.app, name="analyze")
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("quickstart")(quickstart.quickstart)
app.command("plan")(plan.plan)
app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")
app.command("models")(show.models)
app.command("methods")(show.methods)
app.command("doctor")(doctor.doctor)
app.add_typer(reproduce.app, name="reproduce")
app.command("bench")(bench.bench)


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Distil image classifiers from a teacher that runs once: teach, extract, distill, analyze.

    Example: kdtool quickstart
    """
