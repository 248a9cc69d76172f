"""Heat maps whose colours grow out of the page, so that they work on light and on dark ones.

A value is a colour over nothing: transparent at 0, opaque at the end of the range, blue below 0 and orange above.
Left out: colours that are lighter than a light page or darker than a dark one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdtool.analysis.figures.sheets import SMALL, SOFT
from kdtool.analysis.plots import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NEGATIVE, POSITIVE = "#3088ed", "#e76b26"  # between those of light and of dark pages
ALL_TICKS = 12  # classes up to which every one has its tick on a large map

Rows = Sequence[Sequence[float | None]]


def draw(axes: Axes, rows: Rows, limits: tuple[float, float], large: bool = True) -> None:
    """Draws a matrix, its first row on top; values beyond the limits take their colours, missing ones are hatched."""
    from matplotlib.ticker import MaxNLocator

    values = np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
    axes.imshow(colours(values, limits), interpolation="none", aspect="auto")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    for number, row in enumerate(rows):
        hatch_missing(axes, row, number)
    for axis in (axes.xaxis, axes.yaxis):
        if large and len(rows) <= ALL_TICKS:
            axis.set_ticks(range(len(rows)))
        else:
            axis.set_major_locator(MaxNLocator(10 if large else 5, integer=True))
    axes.tick_params(labelsize=SMALL, pad=2)


def hatch_missing(axes: Axes, row: Sequence[float | None], number: int) -> None:
    """Marks the entries of a row that do not exist."""
    from matplotlib.patches import Rectangle

    for missing, run in groupby(range(len(row)), lambda column: row[column] is None):
        columns = list(run)
        if missing:
            box: dict[str, Any] = {"facecolor": FAINT, "edgecolor": SOFT, "linewidth": 0, "hatch": "////"}
            axes.add_patch(Rectangle((columns[0] - 0.5, number - 0.5), len(columns), 1, **box))


def colours(values: npt.NDArray[np.float64], limits: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Colours (..., 4) of values; of values that are NaN, nothing."""
    largest = max(map(abs, limits))
    bounded = np.nan_to_num(np.clip(values / largest if largest else values * 0, -1, 1))
    rgba = np.empty((*values.shape, 4))
    rgba[..., :3] = np.where((bounded < 0)[..., None], rgb(NEGATIVE), rgb(POSITIVE))
    rgba[..., 3] = np.abs(bounded)
    return rgba


def rgb(colour: str) -> list[float]:
    """Red, green and blue from 0 to 1 of #rrggbb."""
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def draw_scale(axes: Axes, limits: tuple[float, float]) -> None:
    """A strip of all colours with the values at its ends and in the middle."""
    strip = colours(np.linspace(*limits, 256)[None], limits)
    axes.imshow(strip, extent=(*limits, 0, 1), interpolation="none", aspect="auto")
    axes.grid(visible=False)
    axes.set_yticks([])
    middle = sum(limits) / 2
    axes.set_xticks([limits[0], middle, limits[1]], [f"{value:.3g}" for value in (limits[0], middle, limits[1])])
    axes.tick_params(labelsize=SMALL, pad=2)
