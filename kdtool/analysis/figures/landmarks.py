"""Figures of `landmarks`: what landmarks say of the transfer loss while a student learns (KDA, figures 4, 5, 6).

One figure of the true loss with its estimates, one of the smallest eigenvalues of W, for every run; of several runs one
more, which compares their true losses. Left out: epochs whose weights were not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdtool.analysis.figures.about import Result, grouped, kinds, landmarks_name, place, runs, single, stem, stem_of
from kdtool.analysis.figures.scales import BELOW, Values, draw_line, is_below, log_range, make_log
from kdtool.analysis.figures.sheets import SMALL, SOFT, Key, Panel, sheet
from kdtool.analysis.figures.spectrum import SIDES, marked
from kdtool.analysis.plots import INK, look, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WHITENED = (0, (4, 2))
TALL = 210
MARKED = 12  # epochs up to which every one has its marker


@dataclass(frozen=True)
class Curve:
    """Values after every epoch, and how they look."""

    values: Values
    colour: str
    dashes: Any = "-"
    marker: str = ""
    width: float = 1.6


def figures(results: Sequence[Result]) -> Iterator[tuple[str, Figure]]:
    """Two figures for every result, and a comparison of several runs."""
    several = len(runs(results)) > 1
    if several:
        for found in grouped(results, "layer", "part").values():
            yield stem("landmarks", found[0]["layer"], found[0]["part"]), compared(found)
    for result in results:
        yield stem_of("landmarks", result, several), estimates(result)
        yield stem_of("landmarks-eigenvalues", result, several), eigenvalues(result)


def compared(results: Sequence[Result]) -> Figure:
    """The true losses of several runs."""
    losses = [[snapshot["loss"] for snapshot in result["snapshots"]] for result in results]
    limits = log_range(value for values in losses for value in values)
    keys = [Key(str(result["run"]), *look(1 + number)[:2]) for number, result in enumerate(results)]
    keys += [BELOW] if any(is_below(values, limits) for values in losses) else []
    panel = Panel(TALL, "True transfer loss", "epoch")
    figure, (axes,) = sheet("Transfer over training", [place(results[0])], [[panel]], keys)
    for number, (result, values) in enumerate(zip(results, losses, strict=True)):
        colour, dashes, _ = look(1 + number)
        draw_line(axes, epochs(result["snapshots"]), values, limits, color=colour, linestyle=dashes)
    make_log(axes, "y", limits)
    whole_epochs(axes, [epoch for result in results for epoch in epochs(result["snapshots"])])
    return figure


def estimates(result: Result) -> Figure:
    """The true loss and its estimates over the epochs."""
    snapshots = result["snapshots"]
    named = strategies(snapshots)
    curves = [Curve([snapshot["loss"] for snapshot in snapshots], INK, width=3.5)]
    for name in named:
        colour, _, marker = marked(name)
        curves += [
            Curve(said(snapshots, name, field), colour, dashes, marker)
            for field, dashes in (("plain", "-"), ("whitened", WHITENED))
        ]
    keys = [Key("true loss", INK, width=3.5), *(Key(landmarks_name(name), *marked(name)) for name in named)]
    keys.append(Key("with W^(-1/2)", SOFT, WHITENED))
    heading = "Transfer loss, true and estimated"
    return over_training("Estimates from landmarks", result, curves, keys, heading, agreements(result))


def eigenvalues(result: Result) -> Figure:
    """The smallest eigenvalues of W over the epochs."""
    snapshots = result["snapshots"]
    named = strategies(snapshots)
    curves = [
        Curve(said(snapshots, name, f"{side}_smallest"), marked(name)[0], dashes, marked(name)[2])
        for name in named
        for side, dashes in SIDES.items()
    ]
    keys = [Key(landmarks_name(name), *marked(name)) for name in named]
    keys += [Key(side, SOFT, dashes) for side, dashes in SIDES.items()]
    notes = ["Dotted: Corollaries 1 and 2 assume eigenvalues of at least 1."]
    return over_training("Smallest eigenvalues of W", result, curves, keys, "Smallest eigenvalue", notes, line=1)


def over_training(
    title: str,
    result: Result,
    curves: Sequence[Curve],
    keys: Sequence[Key],
    heading: str,
    notes: Sequence[str],
    line: float | None = None,
) -> Figure:
    """Curves over the epochs on a logarithmic axis; line: a value that is shown across."""
    limits = log_range([value for curve in curves for value in curve.values] + ([] if line is None else [line]))
    keys = [*keys, *([BELOW] if any(is_below(curve.values, limits) for curve in curves) else [])]
    missing = sum(value is None for curve in curves for value in curve.values)
    notes = [*notes, *([f"{missing} values do not exist and are left out."] if missing else [])]
    figure, (axes,) = sheet(title, single(result), [[Panel(TALL, heading, "epoch")]], keys, notes)
    make_log(axes, "y", limits)
    if line is not None:
        axes.axhline(line, color=INK, linewidth=1, linestyle=(0, (1, 2)))
    places = epochs(result["snapshots"])
    for curve in curves:
        look = {
            "color": curve.colour,
            "linestyle": curve.dashes,
            "linewidth": curve.width,
            "markersize": 2.5 * curve.width,
        }
        draw_line(axes, places, curve.values, limits, marker=curve.marker if len(places) <= MARKED else "", **look)
    draw_stages(axes, result["snapshots"])
    whole_epochs(axes, places)
    return figure


def strategies(snapshots: Sequence[Mapping[str, Any]]) -> list[str]:
    """The kinds of landmarks."""
    return kinds([estimate["landmarks"] for snapshot in snapshots for estimate in snapshot["estimates"]])


def said(snapshots: Sequence[Mapping[str, Any]], name: str, field: str) -> Values:
    """What a kind of landmarks says after every epoch, None where it says nothing."""
    found = ({estimate["landmarks"]: estimate for estimate in snapshot["estimates"]} for snapshot in snapshots)
    return [estimates[name][field] if name in estimates else None for estimates in found]


def epochs(snapshots: Sequence[Mapping[str, Any]]) -> list[float]:
    """Epochs on one axis: those of a stage follow those of the stage before."""
    found: list[float] = []
    before, stage, last = 0, None, 0
    for snapshot in snapshots:
        if stage is not None and snapshot["stage"] != stage:
            before += last
        stage, last = snapshot["stage"], snapshot["epoch"]
        found.append(before + last)
    return found


def whole_epochs(axes: Axes, places: Sequence[float]) -> None:
    """Ticks at whole epochs."""
    if len(set(places)) > 1:
        axes.xaxis.set_major_locator(whole_numbers())
    else:
        axes.set_xticks(places[:1])


def draw_stages(axes: Axes, snapshots: Sequence[Mapping[str, Any]]) -> None:
    """Where a stage ends and the next begins, and their names."""
    places, names = epochs(snapshots), [str(snapshot["stage"]) for snapshot in snapshots]
    if len(set(names)) < 2:
        return
    for number, name in enumerate(names):
        if number and name == names[number - 1]:
            continue
        border = places[number - 1] if number else places[0]
        if number:
            axes.axvline(border, color=SOFT, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            name,
            (border, 1),
            (3, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color=SOFT,
            fontsize=SMALL,
            parse_math=False,
        )


def agreements(result: Result) -> list[str]:
    """How the estimates follow the true loss, in words."""
    found: dict[str, list[str]] = {}
    if all(agreement["correlation"] is None for agreement in result["agreements"]):
        return []
    for agreement in result["agreements"]:
        value = agreement["correlation"]
        text = "none" if value is None else f"{value:.2f}"
        found.setdefault(agreement["landmarks"], []).append(f"{text} with W^(-1/2)" if agreement["whitened"] else text)
    listed = "; ".join(f"{landmarks_name(name)} {', '.join(values)}" for name, values in found.items())
    return [f"Correlation with the true loss: {listed}."]
