"""Plots of training and transfer: as bytes, or as SVG that takes its colours and font from the page around it.

matplotlib is optional (the extra `plots`) and used through its object interface: no pyplot, no global state.
Left out: reading results, the page, titles and legends, which belong to the page, and plots that are files of their own
(figures).
"""

from __future__ import annotations

import io
import math
import re
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdtool.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#24292f", "#d8dee4"
# Pairs for light and dark pages, told apart with the common colour blindnesses too.
SERIES = {
    "#6e7781": "#9da7b3",
    "#0969da": "#58a6ff",
    "#cf4a00": "#ff8c4b",
    "#1a7f4b": "#3fc380",
    "#8250df": "#b794f6",
    "#9a6b00": "#e3b341",
    "#bf3989": "#f778ba",
    "#1b7c83": "#4cc4cc",
}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
MARKERS = ("o", "s", "D")
WIDTH = 360  # points, shown as pixels at least on a telephone: letters keep their size there


@dataclass(frozen=True)
class Line:
    """A value after every epoch, of one or several runs, which need not be equally long."""

    number: int
    runs: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Point:
    """A kernel transfer loss, and an accuracy in percent, of one or several runs of one kind."""

    label: str
    number: int
    losses: Sequence[float]
    accuracies: Sequence[float] = ()


def look(number: int) -> tuple[str, Any, str]:
    """Colour, dashes and marker of a series; 24 of them differ."""
    turn = number // len(SERIES) % len(DASHES)
    return list(SERIES)[number % len(SERIES)], DASHES[turn], MARKERS[turn]


def curves(lines: Sequence[Line], reference: float | None = None, logarithmic: bool = False) -> Figure:
    """Means over runs against the epoch, with a band from the lowest to the highest; the reference is the teacher's.

    Unless logarithmic, the axis begins where the first quarter of the epochs ends: what follows is too close otherwise.
    """
    figure, axes = canvas(240)
    for line in lines:
        colour, dashes, marker = look(line.number)
        columns = list(zip(*line.runs, strict=False))
        epochs = range(1, len(columns) + 1)
        means = [statistics.fmean(column) for column in columns]
        axes.plot(epochs, means, color=colour, linestyle=dashes, marker=marker if len(means) == 1 else "")
        if len(line.runs) > 1:
            lowest, highest = [min(column) for column in columns], [max(column) for column in columns]
            axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.2, linewidth=0)
    if logarithmic and all(value > 0 for line in lines for run in line.runs for value in run if math.isfinite(value)):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    else:
        low, high = limits(lines, reference)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.12 * (high - low))
    draw_reference(axes, reference)
    axes.xaxis.set_major_locator(whole_numbers())
    axes.set_xlabel("epoch", color=INK, fontsize=11)
    return figure


def bars(points: Sequence[Point]) -> Figure:
    """The mean loss of every kind of run as a bar from 0, the runs as dots, label and value above it."""
    figure, axes = canvas(46 + 34 * len(points), left=14)
    for row, point in enumerate(points):
        colour, _, _ = look(point.number)
        mean = statistics.fmean(point.losses)
        axes.barh(row, mean, height=0.36, color=colour)
        if len(point.losses) > 1:
            axes.plot(point.losses, [row] * len(point.losses), "o", color=INK, markersize=3)
        for x, text, side in ((0, point.label, "left"), (1, short(mean), "right")):
            axes.annotate(
                text,
                (x, row - 0.24),
                xycoords=("axes fraction", "data"),
                ha=side,
                va="bottom",
                color=INK,
                fontsize=11,
                parse_math=False,
            )
    axes.set_ylim(len(points) - 0.6, -0.85)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlabel("kernel transfer loss", color=INK, fontsize=11)
    return figure


def scatter(points: Sequence[Point], reference: float | None = None) -> Figure:
    """Accuracy against loss: the mean of every kind of run, with whiskers of one standard deviation."""
    figure, axes = canvas(240)
    for point in points:
        colour, _, marker = look(point.number)
        (x, dx), (y, dy) = spread(point.losses), spread(point.accuracies)
        axes.errorbar(x, y, xerr=dx, yerr=dy, color=colour, marker=marker, markersize=7, elinewidth=1.2)
    draw_reference(axes, reference)
    axes.set_xlabel("kernel transfer loss", color=INK, fontsize=11)
    return figure


def canvas(height: float, left: float = 40) -> tuple[Figure, Axes]:
    """A figure of WIDTH x height points with one pair of axes, drawn as little as possible."""
    figure = blank(height)
    return figure, placed(figure, (left, 8, WIDTH - left - 8, height - 44))


def blank(height: float) -> Figure:
    """A figure of WIDTH x height points without axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError('plots need matplotlib; install it with pip install "kdtool[plots]"') from None
    return Figure(figsize=(WIDTH / 72, height / 72))


def placed(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes in a figure: the box is left, top, width and height in points, from the figure's upper left corner."""
    left, top, width, height = box
    whole = figure.get_figheight() * 72
    axes = figure.add_axes((left / WIDTH, 1 - (top + height) / whole, width / WIDTH, height / whole))
    axes.set_facecolor("none")
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=FAINT, labelcolor=INK, length=0, labelsize=11)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(FAINT)
    return axes


def limits(lines: Sequence[Line], reference: float | None) -> tuple[float, float]:
    """Lowest and highest of the reference and of what is finite after the first quarter of the epochs."""
    later: list[float] = [] if reference is None else [reference]
    for line in lines:
        for run in line.runs:
            later += filter(math.isfinite, run[len(run) // 4 :])
    low, high = min(later, default=0.0), max(later, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def draw_reference(axes: Axes, reference: float | None) -> None:
    """A horizontal line at the teacher's value, where there is one."""
    if reference is None:
        return
    axes.axhline(reference, color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.annotate(
        "teacher",
        (1, reference),
        (-2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        color=INK,
        fontsize=11,
    )


def whole_numbers() -> Any:
    """A locator of ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def plain_ticks(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times a power of ten, written as decimal numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def short(loss: float) -> str:
    """A loss in three significant digits."""
    return f"{loss:.3g}" if loss < 0.001 or loss >= 1000 else f"{loss:.{max(0, 2 - math.floor(math.log10(loss)))}f}"


def rendered(figure: Figure, kind: str, transparent: bool = False) -> bytes:
    """The figure as svg, png or pdf; the same figure gives the same bytes.

    A letter that matplotlib's font lacks is a box in png and pdf, and itself in svg, where the reader's fonts have it.
    """
    from matplotlib import rc_context

    target = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kdtool"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(target, format=kind, dpi=200, transparent=transparent, metadata=metadata)
    return target.getvalue()


def inline(figure: Figure, name: str) -> str:
    """The figure as an <svg> element for a page that defines --ink, --faint and --series-0 to --series-7.

    name: of the figure, unique on the page, because the elements inside are found by their ids.
    """
    svg = rendered(figure, "svg", transparent=True).decode()
    svg = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    return re.sub(r"<[^>]*>", lambda tag: themed(tag[0], name), svg).strip()


def themed(tag: str, name: str) -> str:
    """A tag of matplotlib's SVG with the page's colours and font, and ids that begin with `name`."""
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag.replace("xlink:href", "href"))
    for number, colour in enumerate(SERIES):
        tag = tag.replace(colour, f"var(--series-{number})")
    return tag.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
