"""Figure of `gram-gap`: the kernel transfer losses of all students, layers and kernels.

Left out: the losses by class (classes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kdtool.analysis.classes import EQUAL
from kdtool.analysis.figures import bars, classes
from kdtool.analysis.figures.about import Result, grouped, place, runs
from kdtool.analysis.figures.sheets import sheet
from kdtool.analysis.kept import options_of
from kdtool.analysis.plots import look, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(results: Sequence[Result]) -> Iterator[tuple[str, Figure]]:
    """Bars of all losses, then the figures by class."""
    yield "gram-gap", overview(results)
    yield from classes.figures(results)


def overview(results: Sequence[Result]) -> Figure:
    """A bar for every loss; of several runs side by side in every layer."""
    names = runs(results)
    groups = by_layer(results, names) if len(names) > 1 else of_one(results)
    about = [f"{len(names)} students"] if len(names) > 1 else names
    notes = ["0: the student relates any two images as the teacher does."]
    if any(result["interval"] for result in results):
        notes.append("Whiskers: where the exact loss lies, 95 % sure. Others are exact.")
    panel = bars.panel(groups, label="kernel transfer loss")
    figure, (axes,) = sheet("Kernel transfer loss", about, [[panel]], (), notes)
    largest = max(end for result in results for end in (result["loss"], *(result["interval"] or ())))
    axes.set_xlim(0, 1.04 * largest if largest > EQUAL else 1)
    bars.draw(axes, groups)
    return figure


def of_one(results: Sequence[Result]) -> list[bars.Group]:
    """The losses of one student; by layer where there are several kernels."""
    if all(result["kernel"] == "linear" for result in results):
        return [bars.Group("", [bar(result, place(result), 1) for result in results])]
    return [
        bars.Group(place(found[0]), [bar(result, kernel(result) or "linear kernel", 1) for result in found])
        for found in grouped(results, "layer", "part").values()
    ]


def by_layer(results: Sequence[Result], names: Sequence[str]) -> list[bars.Group]:
    """The runs' losses under every layer and kernel."""
    found: dict[str, list[bars.Bar]] = {}
    for result in results:
        run = str(result["run"])
        found.setdefault(what(result), []).append(bar(result, run, 1 + names.index(run)))
    return [bars.Group(heading, listed) for heading, listed in found.items()]


def bar(result: Result, label: str, number: int) -> bars.Bar:
    """The bar of one loss."""
    ends = result["interval"]
    text = short(result["loss"]) + (f" ({short(ends[0])} to {short(ends[1])})" if ends else "")
    return bars.Bar(label, result["loss"], look(number)[0], text, ends)


def what(result: Result) -> str:
    """The layer, the part, and the kernel where it is not linear."""
    return ", ".join(filter(None, (place(result), kernel(result))))


def kernel(result: Result) -> str:
    """The kernel where it is not linear, and how it was approximated."""
    if result["kernel"] == "linear":
        return ""
    landmarks, degree, asked = result["nystrom_landmarks"], result.get("degree"), options_of(result)
    of = f" of degree {degree}, constant {result['constant']:g}" if degree is not None else ""
    told = [f"{landmarks:,} landmarks"] if landmarks else []
    told += [f"{name} {asked[name]}" for name in ("gamma", *(("seed",) if landmarks else ())) if name in asked]
    return ", ".join([f"{result['kernel']} kernel{of}", *told])
