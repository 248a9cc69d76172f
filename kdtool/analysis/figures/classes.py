"""Figures of `gram-gap --by-class`: in which classes, and between which, the teacher's knowledge is lost.

Up to MOST classes have a row each; of more, the sorted curve of all shares and rows of the worst. Left out: the matrix
of all pairs of classes, of which results keep the largest blocks only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdtool.analysis.classes import EQUAL
from kdtool.analysis.figures.about import Result, listed, percent, place, runs, stem
from kdtool.analysis.figures.sheets import LETTER, SMALL, SOFT, Key, Panel, fitted, sheet
from kdtool.analysis.plots import INK, WIDTH, look, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 20  # classes with a row each
WORST = 12  # rows of the worst classes where there are more
BLOCKS = 8  # pairs of classes
ROW = 17  # points
NAME = 70  # points, for the name of a class
LOSS = 70  # points, for a loss behind its bar
WITHIN, BETWEEN = look(2)[0], look(3)[0]
SHARE = look(1)[0]
TEXT: dict[str, Any] = {"color": INK, "fontsize": SMALL}


def figures(results: Sequence[Result]) -> Iterator[tuple[str, Figure]]:
    """One figure for every result that has the losses by class."""
    several = len(runs(results)) > 1
    for result in results:
        if result["by_class"] is not None:
            kernel = "" if result["kernel"] == "linear" else result["kernel"]
            run = result["run"] if several else ""
            yield stem("gram-gap-classes", result["layer"], result["part"], kernel, run), by_class(result)


def by_class(result: Result) -> Figure:
    """Shares and losses of classes, and the blocks with the largest shares."""
    gaps: Mapping[str, Any] = result["by_class"]
    found = sorted(gaps["classes"], key=lambda gap: -gap["share"])
    many = len(found) > MOST
    shown = found[:WORST] if many else found
    rows = [[Panel(110, f"Shares of all {len(found)} classes, sorted (%)", "classes")]] if many else []
    heading = f"The {WORST} classes with the largest shares" if many else "By class"
    height = ROW * max(2, len(shown))
    names = [class_name(gaps, gap["label"]) for gap in shown]
    left = room(names, 46)
    middle = left + (WIDTH - 12 - 18 - left) * 0.46
    rows.append(
        [
            Panel(height, heading, "share of the loss (%)", left=left, right=middle),
            Panel(height, " ", "loss", left=middle + 18),
        ]
    )
    blocks = gaps["largest"][:BLOCKS]
    named = [block_name(gaps, block) for block in blocks]
    if blocks:
        rows.append([Panel(ROW * len(blocks), "The largest blocks", "share of the loss (%)", left=room(named, 86))])
    kernel = "" if result["kernel"] == "linear" else f", {result['kernel']} kernel"
    about = (place(result) + kernel, str(result["run"]))
    figure, axes = sheet("Where the knowledge is lost", about, rows, keys(), notes(gaps, shown))
    images = sum(gap["samples"] for gap in found)
    if many:
        draw_curve(axes.pop(0), found)
    draw_shares(axes[0], shown, names, images)
    draw_losses(axes[1], shown)
    if blocks:
        draw_blocks(axes[2], blocks, named)
    return figure


def keys() -> list[Key]:
    """The legend."""
    return [
        Key("share of the loss", SHARE, patch="solid"),
        Key("loss within", WITHIN, "", "o"),
        Key("share of the images", INK, "", "|"),
        Key("loss between", BETWEEN, "", "D"),
    ]


def notes(gaps: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the whole comes to, and what is not in the figure."""
    whole = (
        f"{percent(gaps['within_share'])} of the squared difference lies within classes, as does "
        f"{percent(gaps['teacher_within_share'])} of the teacher's squared kernel."
    )
    if not any(gap["share"] for gap in gaps["classes"]):
        whole = "Nothing is lost: the kernels are equal."
    said = [whole, "Within: images of the class with one another; between: with those of all others."]
    if len(gaps["classes"]) == 1:
        said.append("There is one class, so that nothing lies between classes.")
    for name in ("within", "between")[: len(gaps["classes"])]:
        without = [class_name(gaps, gap["label"]) for gap in shown if gap[name] is None]
        if without:
            said.append(f"No loss {name} of class {listed(without)}: the teacher's kernel is zero there.")
    if gaps["empty"]:
        said.append(f"Without images: class {listed([class_name(gaps, label) for label in gaps['empty']])}.")
    if gaps["unlabelled"]:
        said.append(f"{gaps['unlabelled']:,} images without a label are left out.")
    return said


def draw_curve(axes: Axes, found: Sequence[Mapping[str, Any]]) -> None:
    """Shares from the largest to the smallest, beside the one that each would have if all were alike."""
    places = range(1, len(found) + 1)
    axes.plot(places, [100 * gap["share"] for gap in found], color=SHARE, linewidth=1.6)
    axes.fill_between(places, [100 * gap["share"] for gap in found], color=SHARE, alpha=0.2, linewidth=0)
    axes.axhline(100 / len(found), color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.annotate("all alike", (len(found), 100 / len(found)), (-2, 3), textcoords="offset points", ha="right", **TEXT)
    axes.set_ylim(bottom=0)
    axes.set_xlim(1, len(found))
    axes.xaxis.set_major_locator(whole_numbers())


def draw_shares(axes: Axes, shown: Sequence[Mapping[str, Any]], names: Sequence[str], images: int) -> None:
    """A bar a class, with its share of the images."""
    rows = range(len(shown))
    axes.barh(rows, [100 * gap["share"] for gap in shown], height=0.55, color=SHARE)
    axes.plot(
        [100 * gap["samples"] / images for gap in shown], rows, "|", color=INK, markersize=11, markeredgewidth=1.6
    )
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(rows, names, parse_math=False)
    axes.set_ylabel("class", color=INK, fontsize=SMALL)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(left=0)
    few_ticks(axes)


def draw_losses(axes: Axes, shown: Sequence[Mapping[str, Any]]) -> None:
    """The losses within and between as points."""
    for name, colour, marker in (("between", BETWEEN, "D"), ("within", WITHIN, "o")):
        found = [(gap[name], row) for row, gap in enumerate(shown) if gap[name] is not None]
        axes.plot(
            [loss for loss, _ in found], [row for _, row in found], marker, color=colour, markersize=5, clip_on=False
        )
    for row, gap in enumerate(shown):
        known = [gap[name] for name in ("within", "between") if gap[name] is not None]
        if len(known) == 2:
            axes.plot(known, [row, row], color=SOFT, linewidth=1, zorder=1)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), [""] * len(shown))
    largest = max((gap[name] for gap in shown for name in ("within", "between") if gap[name] is not None), default=0)
    axes.set_xlim(0, 1.08 * largest if largest > EQUAL else 1)
    few_ticks(axes)


def draw_blocks(axes: Axes, blocks: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """A bar for every pair of classes, with its loss."""
    rows = range(len(blocks))
    axes.barh(rows, [100 * block["share"] for block in blocks], height=0.55, color=SHARE)
    axes.set_ylim(len(blocks) - 0.5, -0.5)
    axes.set_yticks(rows, names, parse_math=False)
    axes.grid(visible=False, axis="y")
    width = axes.get_position().width * WIDTH
    axes.set_xlim(0, 100 * max(block["share"] for block in blocks) * width / (width - LOSS))
    for row, block in enumerate(blocks):
        loss = "no loss" if block["loss"] is None else f"loss {block['loss']:.3g}"
        axes.annotate(loss, (100 * block["share"], row), (4, 0), textcoords="offset points", va="center", **TEXT)
    few_ticks(axes)


def class_name(gaps: Mapping[str, Any], label: int) -> str:
    """The name of a class, or its number where it is not known."""
    known = gaps.get("class_names")  # results of an earlier kdtool hold none
    return fitted(known[label], NAME) if known else str(label)


def block_name(gaps: Mapping[str, Any], block: Mapping[str, Any]) -> str:
    """A pair of classes in words."""
    first, second = (class_name(gaps, block[side]) for side in ("first", "second"))
    return f"within {first}" if first == second else f"{first} with {second}"


def room(names: Sequence[str], least: float) -> float:
    """Points left of a panel for the names of its rows."""
    return max(least, LETTER * SMALL * max(map(len, names)) + 32)


def few_ticks(axes: Axes) -> None:
    """So few ticks that they do not touch in a narrow panel."""
    from matplotlib.ticker import MaxNLocator

    narrow = axes.get_position().width * WIDTH < WIDTH / 2
    axes.xaxis.set_major_locator(MaxNLocator(3 if narrow else 5))
