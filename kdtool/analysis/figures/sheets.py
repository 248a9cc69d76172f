"""The sheet that a figure of its own is drawn on: title, legend, rows of panels, notes; all places in points.

Left out: what is drawn in the panels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdtool.analysis.plots import INK, SERIES, WIDTH, blank, placed

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOFT = next(iter(SERIES))  # of what is said besides
SIZE, SMALL = 11, 10  # of letters, in points; a telephone shows them as large
MARGIN = 8
LETTER = 0.54  # mean width of a letter, of its size
LINE = 14  # height of a line of small letters
TICKS, LABEL, HEADING = 22, 16, 20  # heights below and above the axes


@dataclass(frozen=True)
class Panel:
    """Axes of `height` points between `left` and `right`, their heading, and the label of the axis below."""

    height: float
    heading: str = ""
    label: str = ""
    left: float = 46
    right: float = WIDTH - 12


@dataclass(frozen=True)
class Key:
    """An entry of the legend: a line, a marker, or with `patch` ("solid", "hollow", "hatched") a box."""

    label: str
    colour: str = INK
    dashes: Any = "-"
    marker: str = ""
    patch: str = ""
    width: float = 1.6


def sheet(
    title: str,
    about: Sequence[str],
    rows: Sequence[Sequence[Panel]],
    keys: Sequence[Key] = (),
    notes: Sequence[str] = (),
) -> tuple[Figure, list[Axes]]:
    """A figure and the axes of all panels; about: lines below the title; notes: sentences at the end."""
    said = [line for note in notes for line in textwrap.wrap(plain(note), int((WIDTH - 2 * MARGIN) / (LETTER * SMALL)))]
    columns = legend_columns(keys)
    top = MARGIN + 18.0 + LINE * len(about) + 6
    legend_top, top = top, top + (-(-len(keys) // columns) * (LINE + 1) + 6 if keys else 0)
    heights = [max(outer_height(panel) for panel in row) for row in rows]
    end = top + sum(heights)
    figure = blank(end + (LINE * len(said) + 4 if said else 0) + MARGIN)
    write(figure, fitted(title, WIDTH - 2 * MARGIN, SIZE + 2), MARGIN, size=SIZE + 2)
    for number, line in enumerate(about):
        write(figure, fitted(line, WIDTH - 2 * MARGIN), MARGIN + 18 + number * LINE, colour=SOFT)
    draw_legend(figure, keys, columns, legend_top)
    axes = []
    for row, height in zip(rows, heights, strict=True):
        axes += [panel_axes(figure, panel, top) for panel in row]
        top += height
    for number, line in enumerate(said):
        write(figure, line, end + 4 + number * LINE, colour=SOFT)
    return figure, axes


def outer_height(panel: Panel) -> float:
    """The height of a panel with what is written around it."""
    return (HEADING if panel.heading else 6) + panel.height + TICKS + (LABEL if panel.label else 0)


def panel_axes(figure: Figure, panel: Panel, top: float) -> Axes:
    """The axes of a panel."""
    above = HEADING if panel.heading else 6
    if panel.heading:
        write(figure, fitted(panel.heading, WIDTH - MARGIN - panel.left, SIZE), top, panel.left, SIZE)
    axes = placed(figure, (panel.left, top + above, panel.right - panel.left, panel.height))
    axes.tick_params(labelsize=SMALL)
    if panel.label:
        axes.set_xlabel(panel.label, color=INK, fontsize=SMALL, labelpad=2)
    return axes


def write(figure: Figure, text: str, top: float, left: float = MARGIN, size: float = SMALL, colour: str = INK) -> None:
    """Text whose upper left corner lies there, in points."""
    height = figure.get_figheight() * 72
    figure.text(left / WIDTH, 1 - (top + size) / height, text, color=colour, fontsize=size, parse_math=False)


def legend_columns(keys: Sequence[Key]) -> int:
    """Columns in which all entries fit side by side."""
    widest = max((len(key.label) for key in keys), default=1) * LETTER * SMALL + 44
    return int(max(1, min((WIDTH - 2 * MARGIN) // widest, len(keys))))


def draw_legend(figure: Figure, keys: Sequence[Key], columns: int, top: float) -> None:
    """The legend across the figure."""
    if not keys:
        return
    legend = figure.legend(
        [handle(key) for key in keys],
        ["-"] * len(keys),  # replaced below: a label that begins with _ would be left out
        loc="upper left",
        bbox_to_anchor=(MARGIN / WIDTH, 1 - top / (figure.get_figheight() * 72)),
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        labelspacing=0.35,
        columnspacing=1.4,
        handlelength=2.2,
        labelcolor=INK,
    )
    for text, key in zip(legend.get_texts(), keys, strict=True):
        text.set_parse_math(False)
        text.set_text(fitted(key.label, WIDTH - 2 * MARGIN - 36))


def handle(key: Key) -> Artist:
    """What stands before the entry's label."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if key.patch:
        face = key.colour if key.patch == "solid" else "none"
        return Patch(
            facecolor=face, edgecolor=key.colour, linewidth=1.2, hatch="////" if key.patch == "hatched" else None
        )
    size = 11 if key.marker == "|" else 5
    look: dict[str, Any] = {"color": key.colour, "linestyle": key.dashes, "linewidth": key.width}
    return Line2D([], [], marker=key.marker, markersize=size, markeredgewidth=size / 5, **look)


def plain(text: str) -> str:
    """Text without what neither SVG nor a reader knows, such as control characters in the name of a folder."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def fitted(text: str, room: float, size: float = SMALL) -> str:
    """Text in so many points: its beginning and its end, where it is too long."""
    letters, text = max(3, int(room / (LETTER * size))), plain(text)
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[len(text) - (letters - 1) // 2 :]}"
