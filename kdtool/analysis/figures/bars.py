"""Horizontal bars in groups, with the label and the value of each above it.

Left out: stacked bars, and bars of several runs in one (plots).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdtool.analysis.figures.sheets import LETTER, SIZE, SMALL, Panel, fitted
from kdtool.analysis.plots import INK, WIDTH, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, GROUP, SPACE = 30, 20, 6  # points of a bar with its label, of a group's heading, and above the latter
MIDDLE = 21  # points from the top of a bar's place to the middle of the bar
LEFT = 14


@dataclass(frozen=True)
class Bar:
    """A bar of one value; text: stands for the value, at its right; interval: whiskers; hollow: drawn as a frame."""

    label: str
    value: float | None
    colour: str
    text: str = ""
    interval: Sequence[float] | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Group:
    """Bars below one heading; without a heading they just follow. start: the value where they begin."""

    heading: str
    bars: Sequence[Bar]
    start: float = 0.0


def panel(groups: Sequence[Group], heading: str = "", label: str = "") -> Panel:
    """The panel that bars need."""
    return Panel(sum(map(height, groups)), heading, label, left=LEFT)


def height(group: Group) -> float:
    """Points that a group takes."""
    return (GROUP + SPACE if group.heading else 0) + ROW * len(group.bars)


def draw(axes: Axes, groups: Sequence[Group]) -> list[list[float]]:
    """Draws the bars on a panel of `panel`; gives the places of the bars of every group.

    The limits of the x axis are set before.
    """
    axes.set_ylim(sum(map(height, groups)), 0)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    top = 0.0
    places: list[list[float]] = []
    for group in groups:
        if group.heading:
            write(axes, 0, top + SPACE + 13, fitted(group.heading, width(axes), SIZE), "left", SIZE)
            top += GROUP + SPACE
        for number, bar in enumerate(group.bars):
            draw_bar(axes, bar, top + ROW * number, group.start)
        places.append([top + ROW * number + MIDDLE for number in range(len(group.bars))])
        top += ROW * len(group.bars)
    return places


def draw_bar(axes: Axes, bar: Bar, top: float, start: float) -> None:
    """One bar with its texts."""
    text = bar.text or ("no value" if bar.value is None else short(bar.value))
    room = width(axes) - LETTER * SMALL * (len(text) + 2)
    write(axes, 0, top + 13, fitted(bar.label, room), "left")
    write(axes, 1, top + 13, text, "right")
    if bar.value is None:
        return
    axes.barh(
        top + MIDDLE,
        bar.value - start,
        left=start,
        height=9,
        facecolor="none" if bar.hollow else bar.colour,
        edgecolor=bar.colour,
        linewidth=1.2 if bar.hollow else 0,
    )
    if bar.interval is not None:
        low, high = bar.interval
        axes.plot([low, high], [top + MIDDLE] * 2, "|-", color=INK, linewidth=1.4, markersize=9)


def width(axes: Axes) -> float:
    """The width of the axes in points."""
    return float(axes.get_position().width * WIDTH)


def write(axes: Axes, x: float, y: float, text: str, side: str, size: float = SMALL) -> None:
    """Text with its foot at y, at the left (0) or the right (1) of the axes."""
    axes.annotate(
        text,
        (x, y),
        xycoords=("axes fraction", "data"),
        ha=side,
        va="bottom",
        color=INK,
        fontsize=size,
        parse_math=False,
    )
