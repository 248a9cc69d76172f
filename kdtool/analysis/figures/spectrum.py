"""Figures of `spectrum`: eigenvalues of the kernels and of the landmarks' W, and Nystrom errors as landmarks grow.

In the figure of one run a solid line is the student and a dashed one the teacher; colours tell landmarks apart. Of
several runs, one more figure compares the eigenvalues of their kernels. Left out: eigenvectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdtool.analysis.figures.about import (
    KINDS,
    Result,
    grouped,
    kinds,
    landmarks_name,
    place,
    runs,
    single,
    stem,
    stem_of,
)
from kdtool.analysis.figures.scales import BELOW, Range, Values, draw_line, is_below, log_range, make_log
from kdtool.analysis.figures.sheets import Key, Panel, sheet
from kdtool.analysis.plots import INK, look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TALL = 150
SIDES = {"student": "-", "teacher": (0, (4, 2))}
HEADINGS = {
    "K": "Eigenvalues of K",
    "W": "Eigenvalues of the landmarks' W",
    "student": "Relative Nystrom error, student",
    "teacher": "Relative Nystrom error, teacher",
}


def figures(results: Sequence[Result]) -> Iterator[tuple[str, Figure]]:
    """One figure for every result, and of several runs one that compares their kernels in every layer and part."""
    several = len(runs(results)) > 1
    if several:
        for found in grouped(results, "layer", "part").values():
            yield stem("spectrum", found[0]["layer"], found[0]["part"]), compared(found)
    for result in results:
        yield stem_of("spectrum", result, several), spectrum(result)


def compared(results: Sequence[Result]) -> Figure:
    """Eigenvalues of the kernels of several students and their teacher."""
    lines = [
        (str(result["run"]), result["student"]["eigenvalues"], *look(1 + n)[:2]) for n, result in enumerate(results)
    ]
    lines.append(("teacher", results[0]["teacher"]["eigenvalues"], INK, SIDES["teacher"]))
    limits = log_range(value for _, values, _, _ in lines for value in values)
    keys = [Key(label, colour, dashes) for label, _, colour, dashes in lines]
    keys += [BELOW] if any(is_below(values, limits) for _, values, _, _ in lines) else []
    panel = Panel(200, "Eigenvalues of K", "number of the eigenvalue, largest first")
    figure, (axes,) = sheet("Spectra", [place(results[0])], [[panel]], keys)
    for _, values, colour, dashes in lines:
        draw_line(axes, range(1, len(values) + 1), values, limits, color=colour, linestyle=dashes)
    finish(axes, limits, [len(values) for _, values, _, _ in lines])
    return figure


def spectrum(result: Result) -> Figure:
    """Everything about one student."""
    sets, growth = result["landmarks"], result["growth"]
    named = kinds([found["landmarks"] for found in sets] + [step["strategy"] for step in growth])
    limits = {name: log_range(values) for name, values in panel_values(result).items()}
    keys = [Key("student"), Key("teacher", dashes=SIDES["teacher"])]
    keys += [Key(landmarks_name(name), *marked(name)) for name in named]
    keys += [BELOW] if any(is_below(values, limits[name]) for name, values in panel_values(result).items()) else []
    rows = [[Panel(TALL, HEADINGS[name], "number of the eigenvalue, largest first")] for name in limits]
    rows[-2:] = [[Panel(TALL, HEADINGS[side], "landmarks")] for side in SIDES]
    figure, axes = sheet("Spectrum", single(result), rows, keys, notes(result))
    placed = dict(zip(limits, axes, strict=True))
    draw_kernels(placed["K"], result, limits["K"])
    if sets:
        draw_landmarks(placed["W"], sets, limits["W"])
    for side in SIDES:
        draw_growth(placed[side], growth, side, limits[side])
    return figure


def panel_values(result: Result) -> dict[str, list[float]]:
    """All values of every panel; there is none of W without landmarks."""
    sets = result["landmarks"]
    found = {"K": [value for side in SIDES for value in result[side]["eigenvalues"]]}
    if sets:
        found["W"] = [value for held in sets for side in SIDES for value in held[side]["eigenvalues"]]
    for side in SIDES:
        found[side] = [step[side]["mean"] for step in result["growth"] if step[side] is not None]
    return found


def marked(name: str) -> tuple[str, Any, str]:
    """Colour, dashes and marker of a kind of landmarks."""
    if name == "best":
        return INK, (0, (1.5, 1.5)), ""
    number = KINDS.index(name) if name in KINDS else len(KINDS)
    return look(1 + number)[0], "-", "osDv^"[number]


def draw_kernels(axes: Axes, result: Result, limits: Range) -> None:
    """Eigenvalues of both kernels."""
    found = {side: result[side]["eigenvalues"] for side in SIDES}
    for side, values in found.items():
        draw_line(axes, range(1, len(values) + 1), values, limits, color=INK, linestyle=SIDES[side])
    finish(axes, limits, list(map(len, found.values())))


def draw_landmarks(axes: Axes, sets: Sequence[Mapping[str, Any]], limits: Range) -> None:
    """Eigenvalues of both W of every set of landmarks."""
    for found in sets:
        for side, dashes in SIDES.items():
            values = found[side]["eigenvalues"]
            colour = marked(found["landmarks"])[0]
            draw_line(axes, range(1, len(values) + 1), values, limits, color=colour, linestyle=dashes)
    finish(axes, limits, [found["count"] for found in sets])


def draw_growth(axes: Axes, growth: Sequence[Mapping[str, Any]], side: str, limits: Range) -> None:
    """Errors over the number of landmarks, with a band over draws."""
    known = [step for step in growth if step[side] is not None]
    for name in kinds([step["strategy"] for step in known]):
        steps = sorted((step for step in known if step["strategy"] == name), key=lambda step: step["count"])
        counts = [step["count"] for step in steps]
        means: Values = [step[side]["mean"] for step in steps]
        colour, dashes, marker = marked(name)
        draw_line(axes, counts, means, limits, color=colour, linestyle=dashes, marker=marker)
        low, high = ([max(step[side][end], limits[0]) for step in steps] for end in ("lowest", "highest"))
        shown = [step[side]["mean"] >= limits[0] for step in steps]
        axes.fill_between(counts, low, high, where=shown, color=colour, alpha=0.2, linewidth=0)
    finish(axes, limits, [step["count"] for step in known])
    if not known:
        axes.annotate("no values: a kernel of zeros", (0.5, 0.5), xycoords="axes fraction", ha="center", color=INK)


def finish(axes: Axes, limits: Range, counts: Sequence[int]) -> None:
    """Both axes logarithmic."""
    make_log(axes, "y", limits)
    most = max(counts, default=1)
    make_log(axes, "x", (0.9, 1.1 * max(most, 2)))


def notes(result: Result) -> list[str]:
    """Effective ranks, and what the lines are."""
    ranks = [
        f"{side} {'none' if result[side]['effective_rank'] is None else format(result[side]['effective_rank'], '.3g')}"
        f" of {result[side]['width']:,}"
        for side in SIDES
    ]
    said = [f"Effective rank of K: {', '.join(ranks)}."]
    draws = max((step["draws"] for step in result["growth"]), default=1)
    if draws > 1:
        said.append(f"Band: lowest to highest of {draws} draws of random images.")
    said += dict.fromkeys(
        f"{landmarks_name(found['landmarks'])}: {note}." for found in result["landmarks"] for note in found["notes"]
    )
    return said
