"""`kdtool bench`: what the stages cost on this machine."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line, print_table
from kdtool.progress import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kdtool.workflows.bench import Figure

BUSY = 0.5  # of the cores: a load from which on figures suffer

Parts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PART",
        autocompletion=complete.bench_parts,
        help="steps, live, layout, extract, reading, kernels, start, memory.  [default: all]",
    ),
]


def bench(
    parts: Parts = None,
    full: Annotated[bool, typer.Option("--full", help="All pairs and sizes; takes hours on a CPU.")] = False,
    device: o.Device = None,
    precision: o.Precision = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure speed and memory on this machine, beside their goals.

    What is compared takes turns, on made-up images; a minute or two for each part.

    Example: kdtool bench start kernels
    """
    from kdtool.engine.device import choose_device, choose_precision
    from kdtool.engine.runs import environment
    from kdtool.workflows.bench import PARTS, chosen, measure

    place = choose_device(device or "auto")
    numbers = choose_precision(precision or "auto", place)
    machine = environment(place, numbers)
    names = chosen(parts or [])
    if not json:
        print_line(about(machine))
    found: list[Figure] = []
    load = os.getloadavg()[0]
    for name in names:
        with Shown(quiet) as shown:
            if not found and load > BUSY * machine["cores"]:
                shown.note(
                    f"this machine is busy (load {load:.1f} on {machine['cores']} cores): figures will tell of it"
                )
            shown.note(f"measuring {PARTS[name]}")
            figures = list(measure([name], place, numbers, full))
        found += figures
        if not json:
            print_line("")
            print_table(f"{name}: {PARTS[name]}", ("what", "value", "goal", "met"), [row(figure) for figure in figures])
    if json:
        print_json({"machine": machine, "full": full, "figures": [figure.plain() for figure in found]})


def about(machine: "Mapping[str, Any]") -> str:
    """The machine in one line."""
    cores, threads = (counted(machine[f"{name}s"], name) for name in ("core", "thread"))
    return f"{machine['device']}, {cores}, {threads}, {machine['precision']}, torch {machine['torch']}"


def row(figure: "Figure") -> "Sequence[str]":
    """A line of the table."""
    goal = "" if figure.goal is None else f"{'at least' if figure.at_least else 'at most'} {number(figure.goal)}"
    met = {True: "yes", False: "no", None: ""}[figure.met]
    unit = "" if figure.unit == "ratio" else f" {figure.unit}"
    return figure.what, f"{number(figure.value)}{unit}", goal, met


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
