"""`kdtool reproduce`: the tables of the papers, and one's own, from recipes."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdtool import files
from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, in_units, print_json, print_line, print_table
from kdtool.cli.extract import AllowMixed
from kdtool.errors import UsageError

if TYPE_CHECKING:
    from kdtool.progress import Progress, StopRequest
    from kdtool.workflows.reproduce.plans import Plan
    from kdtool.workflows.reproduce.recipe import Cell, Group, Recipe
    from kdtool.workflows.reproduce.rows import Results
    from kdtool.workflows.reproduce.work import Work

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        autocompletion=complete.tables,
        help="See `kdtool reproduce list`; or a file of yours, NAME.toml.",
    ),
]
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE",
        autocompletion=complete.tables,
        help="See `kdtool reproduce list`; or files of yours, NAME.toml.",
    ),
]
Place = Annotated[
    Path,
    typer.Option("--folder", metavar="FOLDER", help="Where teachers, caches and students lie, a folder a group."),
]
Kept = Annotated[
    Path | None,
    typer.Option("--results", metavar="FOLDER", help="Where rows lie.  [default: results in --folder]"),
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", metavar="N", min=1, help="Runs of each cell.  [default: the recipe's]")
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="TEXT", help="Cells with this text in row or column; repeat.")
]
Share = Annotated[
    str | None,
    typer.Option("--share", metavar="I/N", help="One of several disjoint shares of the cells, as in 2/4."),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FOLDER", help="Folder of the weights that teachers begin from."),
]
PLACE = Path("reproduce")
FLAGS = {"taps": "tap", "initial": "from", "head_learning_rate": "head-lr"}  # keys that are no option's name


@app.callback()
def reproduce() -> None:
    """Make the tables of the papers, or your own.

    Example: kdtool reproduce run digits
    """


@app.command("list")
def list_(json: o.Json = False) -> None:
    """List the recipes.

    Example: kdtool reproduce list
    """
    from kdtool.workflows.reproduce.recipe import load, names

    found = [load(name) for name in names()]
    if json:
        print_json([{"name": one.name, "title": one.title, "cells": len(one.cells)} for one in found])
        return
    print_table("", ("recipe", "cells", "what"), [(one.name, len(one.cells), one.title) for one in found])


@app.command()
def show(name: Name, json: o.Json = False) -> None:
    """Show what a recipe runs, and what of it is chosen.

    What the paper says, what its code says, and what was chosen where a number is lost.

    Example: kdtool reproduce show kda-table-2
    """
    from dataclasses import asdict

    from kdtool.workflows.reproduce.recipe import load

    recipe = load(name)
    if json:
        print_json(asdict(recipe))
        return
    number = {
        "last": "the last epoch",
        "selected": "the epoch that is best on validation, of [recipe] with resets the end of a phase",
    }[recipe.report]
    print_line(f"{recipe.title}\n\n{wrapped(recipe.about)}\n")
    searching = f" ({recipe.search_seeds} of each point of a search)" if recipe.search_seeds > 1 else ""
    print_line(wrapped(f"seeds: {recipe.seeds}{searching}; accuracy after {number}"))
    said = {id(cell): words(cell) for cell in recipe.cells}
    students = [said[id(cell)] for cell in recipe.cells if cell.distill and not cell.skip]
    every = [word for word in students[0] if all(word in found for found in students)] if students else []
    if every:
        print_line(wrapped(f"every student: {' '.join(every)}"))
    for name in dict.fromkeys([*recipe.groups, *(cell.group for cell in recipe.cells)]):
        group = recipe.groups.get(name)
        print_line(f"\n{wrapped(f'{name}: {group.about}' if group else 'Not run:')}")
        for part, found in (origin(group) if group else {}).items():
            print_line(wrapped(f"{part}: {' '.join(found)}", "  "))
        own = [cell for cell in recipe.cells if cell.group == name]
        rows = [(cell.row, cell.column, " ".join(x for x in said[id(cell)] if x not in every)) for cell in own]
        if own:
            print_line("")
            print_table("", ("row", "column", "student"), rows)


def wrapped(text: str, indent: str = "") -> str:
    """Paragraphs in lines that fit the terminal."""
    import shutil
    import textwrap

    width = min(shutil.get_terminal_size().columns, 100)
    fill = textwrap.TextWrapper(
        width, initial_indent=indent, subsequent_indent=2 * indent, break_on_hyphens=False, break_long_words=False
    ).fill
    return "\n\n".join(map(fill, text.strip().split("\n\n")))


def origin(group: "Group") -> dict[str, list[str]]:
    """Where a group's teacher comes from and what is extracted, in the words of the commands."""
    table: Mapping[str, Any]
    found = {"the teacher of": [group.teacher]} if group.teacher else {}
    for name in ("teach", "early", "after", "extract"):
        if table := getattr(group, name):
            found[name] = [word for key, value in table.items() for word in option(key, value)]
    return found


def words(cell: "Cell") -> list[str]:
    """A cell in the words of `kdtool distill`, an option and its value being one of them."""
    if cell.skip:
        return [cell.skip]
    if not cell.distill and not cell.probe:
        return ["teacher"]
    found = [str(cell.distill[name]) for name in ("student", "method") if name in cell.distill]
    for name, value in cell.distill.items():
        found += option(name, value) if name not in ("student", "method") else []
    for name, tried in cell.search.items():
        found.append(f"--set {name}={' or '.join(map(str, tried))}")
    for name, value in cell.probe.items():
        found += [f"probe {word}" for word in option(name, value)]
    return [*found, *(["beside the living teacher"] if cell.live else [])]


def option(name: str, value: Any) -> list[str]:
    """A key of a configuration as options of a command line; a [recipe] as a file for --config has it."""
    if name == "recipe" and isinstance(value, dict):
        return [f"[recipe] {key} = {files.canonical(item)}" for key, item in value.items()]
    flag = f"--{FLAGS.get(name, name.replace('_', '-'))}"
    if isinstance(value, dict):
        return [f"{flag} {key}={item}" for key, item in value.items()]
    if value is True:
        return [flag]
    if name in ("mean", "std") and isinstance(value, list):
        return [f"{flag} {','.join(map(str, value))}"]
    return [f"{flag} {item}" for item in value] if isinstance(value, list) else [f"{flag} {value}"]


@app.command()
def plan(
    names: Names,
    folder: Place = PLACE,
    results: Kept = None,
    seeds: Seeds = None,
    only: Only = None,
    data_folder: o.DataFolder = None,
    device: o.Device = None,
    allow_mixed: AllowMixed = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Show hours, bytes and what the cache saves, before anything runs.

    Example: kdtool reproduce plan digits
    """
    from dataclasses import asdict

    from kdtool.workflows.reproduce.plans import plan as compute
    from kdtool.workflows.reproduce.recipe import load

    recipes = [load(name) for name in names]
    with Shown(quiet) as shown:
        work = _work(folder, _results(folder, results), shown, None, data_folder, None, device, allow_mixed)
        found = compute(work, [(recipe, chosen(recipe, only), seeds or recipe.seeds) for recipe in recipes])
    if json:
        print_json([asdict(one) for one in found])
        return
    for one in [*found, *([total(found)] if len(found) > 1 else [])]:
        print_line(
            f"{one.group}: {one.left} of {one.tasks} to run\n"
            f"  on this device: teach {hours(one.teach_hours)}, extract {hours(one.extract_hours)}, distill "
            f"{hours(one.distill_hours)}\n"
            f"{saving(one.live_hours, one.extract_hours)}"
            f"  the cache takes {in_units(one.bytes)}, {in_units(one.held)} of it are there"
        )


@app.command()
def run(
    names: Names,
    folder: Place = PLACE,
    results: Kept = None,
    seeds: Seeds = None,
    only: Only = None,
    share: Share = None,
    data_folder: o.DataFolder = None,
    weights: Weights = None,
    device: o.Device = None,
    allow_mixed: AllowMixed = False,
    quiet: o.Quiet = False,
) -> None:
    """Run what has no row yet; it may be stopped at any time.

    Run again, it goes on. Under torchrun every process takes a share of the cells.

    Example: kdtool reproduce run digits
    """
    from kdtool.engine.ranks import leave
    from kdtool.workflows.reproduce.recipe import load

    recipes = [load(name) for name in names]
    if found := leave():
        if share:
            raise UsageError("--share is for processes of their own; under torchrun each one takes its share by itself")
        share = f"{found[0]}/{found[1]}"
    kept = _results(folder, results, share)
    with Shown(quiet) as shown, shown.stoppable() as stop:
        work = _work(folder, kept, shown, stop, data_folder, weights, device, allow_mixed)
        waiting = work.run([(recipe, chosen(recipe, only), seeds or recipe.seeds) for recipe in recipes])
    if waiting:
        print_line(f"{waiting} cells wait for the searches of other shares; run this again when those have ended")
    print_line(f"rows are in {kept.folder}; next: {_table_command(names[0], folder, results)}")


@app.command()
def table(
    name: Name,
    folder: Place = PLACE,
    results: Kept = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", min=1, help="The first so many.  [default: all]")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE.md", help="Write the page to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write plots of the recipe's analyses (.svg, .png or .pdf)."),
    ] = None,
    json: o.Json = False,
) -> None:
    """Show what came out beside what the paper prints.

    Example: kdtool reproduce table digits
    """
    from kdtool.workflows.reproduce import tables
    from kdtool.workflows.reproduce.recipe import load

    recipe, kept = load(name), _results(folder, results)
    if (results or folder != PLACE) and not kept.folder.is_dir():
        raise UsageError(f"there are no rows: {kept.folder} does not exist; name their folder with --results")
    found = tables.lines(recipe, kept, seeds)
    if markdown:
        first = ["--seeds", str(seeds)] if seeds else []
        command = _table_command(name, folder, results, *first, "--markdown", str(markdown))
        files.write(markdown, tables.markdown(recipe, kept, found, command).encode())
    drawn = plots(recipe, kept, plot) if plot else []
    if json:
        print_json([line.plain() for line in found])
        return
    mixed = tables.mixed(found)
    for row in dict.fromkeys(line.row for line in found):
        own = [line for line in found if line.row == row]
        named = [f"{line.column} ({line.teacher})" if mixed else line.column for line in own]
        shown = [tables.cells(line, own) for line in own]
        print_table(row, ("", *tables.header(own)), [(name, *cells) for name, cells in zip(named, shown, strict=True)])
        for line in own:
            if text := tables.remark(line):
                print_line(f"{line.column}{f' ({line.teacher})' if mixed else ''}: {text}")
        for text in tables.correlated(own):
            print_line(text)
    for path in [*([markdown] if markdown else []), *drawn]:
        print_line(f"wrote {path}")


def plots(recipe: "Recipe", kept: "Results", path: Path) -> list[Path]:
    """Draws the recipe's analyses: the first to `path`, others beside it."""
    from kdtool.analysis import figures
    from kdtool.workflows.reproduce.tables import analysed

    figures.check_ending(path)
    drawn: list[Path] = []
    for number, analysis in enumerate(recipe.analyze):
        place = path.with_stem(f"{path.stem}-{analysis}") if number else path
        drawn += figures.save_all(analysis, analysed(recipe, kept, analysis), place)
    if not drawn:
        raise UsageError(f"--plot: no row of {recipe.name} holds an analysis; its recipe's `analyze` names those made")
    return drawn


def total(plans: Sequence["Plan"]) -> "Plan":
    """All groups together."""
    from dataclasses import fields

    from kdtool.workflows.reproduce.plans import Plan

    sums = {field.name: sum(getattr(one, field.name) for one in plans) for field in fields(Plan)[2:]}
    return Plan("in all", "", **sums)


def saving(live: float, extract: float) -> str:
    """What a cache is worth, as a line; hours of a living teacher beside students, and of the extract in its place.

    Empty where no student is left that a cache serves.
    """
    if not live:
        return ""
    found = hours(live - extract) if live > extract else "no time"
    return f"  a living teacher would take {hours(live)} in place of the extract: the cache saves {found}\n"


def hours(value: float) -> str:
    """Hours for people."""
    if value >= 1:
        return f"{value:.1f} h"
    return f"{60 * value:.1f} min" if value >= 1 / 60 else f"{3600 * value:.0f} s"


def chosen(recipe: "Recipe", only: Sequence[str] | None) -> list["Cell"]:
    """The cells with one of some texts in their row or column."""
    if not recipe.cells:
        raise UsageError(f"{recipe.name} has no cells")
    found: dict[int, Cell] = {}
    for text in only or [""]:
        own = [cell for cell in recipe.cells if text in (cell.row, cell.column)]
        own = own or [cell for cell in recipe.cells if text in f"{cell.row} / {cell.column}"]
        if not own:
            raise UsageError(f"no cell of {recipe.name} has {text!r} in its row or column")
        found |= {id(cell): cell for cell in own}
    return [cell for cell in recipe.cells if id(cell) in found]


def _table_command(name: str, folder: Path, results: Path | None, *more: str) -> str:
    """The command that shows the table of rows that lie where one of these says."""
    where = ["--results", str(results)] if results else ["--folder", str(folder)] if folder != PLACE else []
    return shlex.join(["kdtool", "reproduce", "table", name, *where, *more])


def _results(folder: Path, results: Path | None, share: str | None = None) -> "Results":
    from kdtool.workflows.reproduce.rows import Results

    number, mark, count = (share or "1/1").partition("/")
    if not (mark and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--share is one of several, as in 2/4, not {share!r}")
    return Results(results or folder / "results", (int(number), int(count)))


def _work(
    folder: Path,
    results: "Results",
    progress: "Progress",
    stop: "StopRequest | None",
    data_folder: Path | None,
    weights: Path | None,
    device: str | None,
    allow_mixed: bool,
) -> "Work":
    from kdtool.progress import StopRequest
    from kdtool.workflows.reproduce.work import Work

    return Work(folder, results, progress, stop or StopRequest(), data_folder, weights, device or "auto", allow_mixed)
