"""Figures of `correlation`: class matrices of teacher and student and their difference (ICD, figure 1).

The difference has the colours' range of the published figure; the two matrices have that of their own values.
Left out: the numbers of single classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kdtool.analysis.figures import heat
from kdtool.analysis.figures.about import Result, listed, runs, single, stem
from kdtool.analysis.figures.sheets import SMALL, SOFT, Key, Panel, sheet
from kdtool.analysis.plots import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL_MAP, LARGE_MAP = 142, 302  # points
TITLES = {"standardised": "Class correlation of logits", "class means": "Mean logits of every class"}
DIFFERENCES = {"standardised": "teacher - student", "class means": "|student - teacher|"}


def figures(results: Sequence[Result]) -> Iterator[tuple[str, Figure]]:
    """One figure for every result."""
    several = len(runs(results)) > 1
    for result in results:
        run = result["run"] if several else ""
        yield stem("correlation", result["form"], result["layer"], result["part"], run), correlation(result)


def correlation(result: Result) -> Figure:
    """Three maps with two scales."""
    second, left, edge = 2 * 46 + SMALL_MAP - 26, 46, 46 + LARGE_MAP
    rows = [
        [
            Panel(SMALL_MAP, "teacher", left=left, right=left + SMALL_MAP),
            Panel(SMALL_MAP, "student", left=second, right=second + SMALL_MAP),
        ],
        [Panel(8, left=left, right=second + SMALL_MAP)],
        [Panel(LARGE_MAP, DIFFERENCES[result["form"]], left=left, right=edge)],
        [Panel(8, left=left, right=edge)],
    ]
    keys = [Key("class without images", SOFT, patch="hatched")] if result["empty"] else []
    figure, axes = sheet(TITLES[result["form"]], single(result), rows, keys, notes(result))
    own = own_limits(result)
    heat.draw(axes[0], result["teacher"], own, large=False)
    heat.draw(axes[1], result["student"], own, large=False)
    heat.draw_scale(axes[2], own)
    heat.draw(axes[3], result["difference"], tuple(result["limits"]))
    heat.draw_scale(axes[4], tuple(result["limits"]))
    for number in (0, 3):
        axes[number].set_ylabel("class", color=INK, fontsize=SMALL, labelpad=6)
    return figure


def own_limits(result: Result) -> tuple[float, float]:
    """-1 to 1 for correlations, else as far from 0 as the values are."""
    if result["form"] == "standardised":
        return -1.0, 1.0
    values = [value for side in ("teacher", "student") for row in result[side] for value in row if value is not None]
    largest = max(map(abs, values), default=1.0) or 1.0
    return -largest, largest


def notes(result: Result) -> list[str]:
    """The numbers behind the colours, and what is beyond them."""
    low, high = result["limits"]
    beyond = sum(value is not None and not low <= value <= high for row in result["difference"] for value in row)
    said = [
        f"{result['samples']:,} images. Colours of the difference as published, from {low:g} to {high:g}.",
        f"Beside the diagonal: mean {result['mean_difference']:.3g}, largest {result['largest_difference']:.3g}.",
    ]
    if beyond:
        said.append(f"{beyond:,} entries are beyond these colours and have the last of them.")
    if result["correlation"] is not None:
        said.append(f"Correlation of the student's with the teacher's entries: {result['correlation']:.3f}.")
    if result["empty"]:
        said.append(f"Without images: class {listed(result['empty'])}.")
    if result["left_out"]:
        said.append(f"{result['left_out']:,} images whose logits are all equal are left out.")
    return said
