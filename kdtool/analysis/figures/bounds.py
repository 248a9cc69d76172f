"""Figures of `bounds`: every bound as a bar that begins at the true gap, so that its length says how loose it is.

Left out: what the bounds are made of, save the terms of Theorem 2 (results).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdtool.analysis.bounds import EQUAL
from kdtool.analysis.figures import bars
from kdtool.analysis.figures.about import Result, grouped, landmarks_name, percent, runs, single, stem_of
from kdtool.analysis.figures.scales import log_range, make_log
from kdtool.analysis.figures.sheets import Key, sheet
from kdtool.analysis.plots import INK, look, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR = look(1)[0]
TERMS = {"Theorem 2": "term_a", "Theorem 2, tighter": "term_a_tighter"}
KEYS = (
    Key("true gap", INK, "", "|"),
    Key("guaranteed", COLOUR, patch="solid"),
    Key("an assumption fails", COLOUR, patch="hollow"),
)


def figures(results: Sequence[Result]) -> Iterator[tuple[str, Figure]]:
    """One figure for every layer, part and run."""
    several = len(runs(results)) > 1
    for found in grouped(results, "run", "layer", "part").values():
        yield stem_of("bounds", found[0], several), bounds(found)


def bounds(results: Sequence[Result]) -> Figure:
    """The bounds of every set of landmarks."""
    values = [bound["value"] for result in results for bound in result["bounds"]]
    gaps = [gap(result) for result in results]
    limits = log_range([*values, *gaps], decades=math.inf)
    groups = [group(result, limits[0]) for result in results]
    panel = bars.panel(groups, label="||K_S - K_T||_F and bounds on it")
    figure, (axes,) = sheet("Bounds on the true gap", single(results[0]), [[panel]], KEYS, notes(results))
    make_log(axes, "x", limits)
    for true, places in zip(gaps, bars.draw(axes, groups), strict=True):
        if true:
            axes.plot([true] * len(places), places, "|", color=INK, markersize=15, markeredgewidth=2)
    return figure


def group(result: Result, foot: float) -> bars.Group:
    """The bars of one set of landmarks."""
    limited = "" if result["rank"] is None else f", rank {result['rank']}"
    heading = f"{name_of(result)}{limited}: true gap {short(gap(result))}"
    return bars.Group(heading, [bar(bound, result) for bound in result["bounds"]], gap(result) or foot)


def name_of(result: Result) -> str:
    """A set of landmarks in words."""
    return f"{result['count']:,} {landmarks_name(result['landmarks'])}"


def gap(result: Result) -> float:
    """The true gap, 0 where it is rounding."""
    return float(result["gap"]) if result["loss"] > EQUAL else 0.0


def bar(bound: Mapping[str, Any], result: Result) -> bars.Bar:
    """The bar of one bound."""
    name, value, ratio = bound["name"], bound["value"], bound["ratio"]
    if name in TERMS:
        name += f" (a {short(result[TERMS[name]])}, b {short(result['term_b'])})"
    text = "cannot be computed" if value is None else short(value) if ratio is None else f"{short(ratio)} x gap"
    return bars.Bar(name, value if value else None, COLOUR, text, hollow=not bound["guaranteed"])


def notes(results: Sequence[Result]) -> list[str]:
    """Which assumptions fail, and whether Lemma 1 holds."""
    said = []
    if not all(map(gap, results)):
        said.append("There is no gap: the kernels are equal.")
    for result in results:
        name = name_of(result)
        failing = dict.fromkeys(reason for bound in result["bounds"] for reason in bound["failing"])
        said += [f"{name}: {'; '.join(failing)}."] if failing else []
        lemma = result["lemma_1"]
        if lemma["share"] < 1:
            said.append(f"{name}: Lemma 1 holds for {percent(lemma['share'])} of {lemma['pairs']:,} pairs.")
    if all(result["lemma_1"]["share"] == 1 for result in results):
        said.append(f"Lemma 1 holds for all of {results[0]['lemma_1']['pairs']:,} pairs that were tried.")
    return said
