"""Figures of `similarity`: CKA, RSA and agreement as bars, and how well calibrated student and teacher are.

Several runs stand beside one another in each. Left out: what has no picture, such as the Brier score (results).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdtool.analysis.figures import bars
from kdtool.analysis.figures.about import Result, grouped, percent, place, single, stem
from kdtool.analysis.figures.sheets import LETTER, SMALL, Key, Panel, fitted, sheet
from kdtool.analysis.plots import INK, WIDTH, look, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {
    "CKA": ("cka", "cka"),
    "CKA, debiased": ("cka", "debiased"),
    "RSA, Pearson": ("rsa", "pearson"),
    "RSA, Spearman": ("rsa", "spearman"),
    "same predicted class": ("predictions", "agreement"),
}
TEACHER = (0, (4, 2))

Quality = Mapping[str, Any]


def figures(results: Sequence[Result]) -> Iterator[tuple[str, Figure]]:
    """The bars of every layer and part, and reliability where there are predictions with labels."""
    for found in grouped(results, "layer", "part").values():
        where = found[0]["layer"], found[0]["part"]
        yield stem("similarity", *where), similarity(found)
        known = [result for result in found if result["predictions"] and result["predictions"]["student"]]
        if known:
            yield stem("reliability", *where), reliability(known)


def about(results: Sequence[Result]) -> Sequence[str]:
    """The lines below the title."""
    return single(results[0]) if len(results) == 1 else (place(results[0]), f"{len(results)} students")


def label(result: Result, results: Sequence[Result]) -> str:
    """The name of a student beside others."""
    return "student" if len(results) == 1 else str(result["run"])


def similarity(results: Sequence[Result]) -> Figure:
    """Bars of everything that is 1 for equal networks, and of the KL divergence."""
    groups = [group for name in MEASURES if (group := measure(name, results)).bars]
    if len(results) == 1:
        groups = [bars.Group("", [replace(bar, label=group.heading) for group in groups for bar in group.bars])]
    rows = [[bars.panel(groups, label="1: the same up to what the measure is blind to")]]
    listed = kl(results)
    divergences = [bars.Group("", listed)]
    if listed:
        rows.append([bars.panel(divergences, "KL(teacher || student)", "nats")])
    intervals = any(result["rsa"]["spearman_interval"] for result in results)
    notes = ["Whiskers: 95 % sure. Others are exact."] if intervals else []
    notes += [] if listed else ["No logits, so that there are no predictions to compare."]
    figure, axes = sheet("Similarity to the teacher", about(results), rows, (), notes)
    ends = [end for group in groups for bar in group.bars for end in (bar.value or 0, *(bar.interval or ()))]
    axes[0].set_xlim(min(0, *ends), 1)
    bars.draw(axes[0], groups)
    if listed:
        axes[1].set_xlim(0, 1.04 * max(bar.value or 0 for bar in listed) or 1)
        bars.draw(axes[1], divergences)
    return figure


def measure(name: str, results: Sequence[Result]) -> bars.Group:
    """The bars of one measure; none where no result has it."""
    part, field = MEASURES[name]
    listed = []
    for number, result in enumerate(results):
        if result[part] is not None:
            value = result[part][field]
            ends = result[part]["spearman_interval"] if field == "spearman" else None
            text = "not defined" if value is None else f"{value:.3f}"
            listed.append(bars.Bar(label(result, results), value, look(1 + number)[0], text, ends))
    return bars.Group(name, listed)


def kl(results: Sequence[Result]) -> list[bars.Bar]:
    """The bars of the KL divergence."""
    found = []
    for number, result in enumerate(results):
        said = result["predictions"]
        if said is not None:
            heat = "" if said["temperature"] == 1 else f", temperature {said['temperature']:g}"
            name = label(result, results) + heat
            found.append(bars.Bar(name, said["kl"], look(1 + number)[0], f"{short(said['kl'])} nats"))
    return found


def reliability(results: Sequence[Result]) -> Figure:
    """Accuracy against confidence, and how many images have it."""
    lines: list[tuple[str, Quality, str, Any, str]] = []
    for number, result in enumerate(results):
        colour, dashes, marker = look(1 + number)
        lines.append((label(result, results), result["predictions"]["student"], colour, dashes, marker))
    teacher = results[0]["predictions"]["teacher"]
    if teacher is not None:
        lines.append(("teacher", teacher, INK, TEACHER, "D"))
    keys = [Key(said(name, quality), colour, dashes, marker) for name, quality, colour, dashes, marker in lines]
    rows = [[Panel(240, "Accuracy (%)")], [Panel(80, "Share of the images (%)", "confidence (%)")]]
    notes = [
        "Points below the diagonal: more confident than right; the larger, the more images.",
        "ECE: expected calibration error.",
    ]
    figure, (upper, lower) = sheet("Reliability", about(results), rows, keys, notes)
    upper.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (1, 2)))
    for _, quality, colour, dashes, marker in lines:
        draw_reliability(upper, quality, color=colour, linestyle=dashes, marker=marker)
        draw_counts(lower, quality, color=colour, linestyle=dashes)
    for axes in (upper, lower):
        axes.set_xlim(0, 100)
        axes.tick_params(labelsize=SMALL)
    upper.set_ylim(0, 100)
    lower.set_ylim(bottom=0)
    return figure


def said(name: str, quality: Quality) -> str:
    """An entry of the legend."""
    numbers = f": {percent(quality['accuracy'])} right, ECE {percent(quality['calibration_error'])}"
    return fitted(name, WIDTH - 52 - LETTER * SMALL * len(numbers)) + numbers


def draw_reliability(axes: Axes, quality: Quality, marker: str, **look: Any) -> None:
    """A point for every bin that is not empty, the larger the more images it has."""
    held = [found for found in quality["bins"] if found["count"]]
    x, y = ([100 * found[name] for found in held] for name in ("confidence", "accuracy"))
    total = sum(found["count"] for found in held)
    axes.plot(x, y, linewidth=1.2, **look)
    areas = [8 + 130 * found["count"] / total for found in held]
    axes.scatter(x, y, areas, color=look["color"], marker=marker, clip_on=False, zorder=3)


def draw_counts(axes: Axes, quality: Quality, **look: Any) -> None:
    """The share of the images in every bin."""
    total = sum(found["count"] for found in quality["bins"])
    edges = [100 * found["lower"] for found in quality["bins"]] + [100.0]
    axes.stairs([100 * found["count"] / total for found in quality["bins"]], edges, linewidth=1.6, **look)
