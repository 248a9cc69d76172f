"""The section of a report that looks closer: figures that compare the groups, and those of one run of each, folded.

A figure is SVG in the page, so that those of all runs would make it too large: what is left out is said. Left out: how
figures look (kdtool.analysis.figures).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kdtool.analysis import figures, plots
from kdtool.analysis.figures import landmarks, spectrum
from kdtool.analysis.kept import Result
from kdtool.analysis.results import Group, Run
from kdtool.progress import counted
from kdtool.workflows import page
from kdtool.workflows.report_content import Content

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 7  # groups, of which one run each is shown: as many as have a colour of their own beside the first
MOST = 24  # figures of one run
SINGLE = {  # analysis -> how the names of the figures begin that belong here; others repeat what tables say
    "gram-gap": "gram-gap-classes",
    "bounds": "bounds",
    "spectrum": "spectrum",
    "landmarks": "landmarks",
    "correlation": "correlation",
    "similarity": "reliability",
}
COMPARED: Mapping[str, Callable[[Sequence[Result]], "Figure"]] = {
    "spectrum": spectrum.compared,
    "landmarks": landmarks.compared,
}
NONSENSE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # drawing values that make no sense

Picked = Sequence[tuple[Group, Run]]


def closer(shown: Content) -> list[str]:
    """Figures that compare the groups, then those of one run of every group."""
    known = [(group, run) for group in shown.students if (run := representative(group)) is not None]
    known.sort(key=lambda pair: shown.number(pair[0]))
    picked = in_order(shown, known[:SHOWN])
    if not picked:
        return []
    seeds = "one run of each kind, that of the lowest seed" if shown.several_seeds else "every run"
    said = f"Figures of {seeds}. As files they lie in the folder analysis of every run."
    if len(known) > SHOWN:
        said += f" Those of {len(known) - SHOWN} more kinds are left out here, to keep the page small."
    together = list(comparisons(shown, picked))
    return [
        page.paragraph(said),
        page.figures(*together) if together else "",
        *(folded(shown, group, run, number) for number, (group, run) in enumerate(picked)),
    ]


def in_order(shown: Content, picked: Picked) -> Picked:
    """The picked runs in the order of the tables."""
    places = {group.runs[0].folder: place for place, group in enumerate(shown.groups)}
    return sorted(picked, key=lambda pair: places[pair[0].runs[0].folder])


def representative(group: Group) -> Run | None:
    """The run of the lowest seed that has a figure of its own."""
    return next((run for run in group.runs if any(of_analysis(run, analysis) for analysis in SINGLE)), None)


def of_analysis(run: Run, analysis: str) -> list[Result]:
    """The results of one analysis that have a figure here."""
    found = run.analysed.results.get(analysis, ())
    if analysis == "gram-gap":
        return [result for result in found if result["by_class"] is not None]
    if analysis == "similarity":
        return [result for result in found if result["predictions"] and result["predictions"]["student"]]
    return list(found)


def comparisons(shown: Content, picked: Picked) -> Iterator[str]:
    """One figure of all picked runs for every layer and part that several of them were analysed in."""
    for analysis, draw in COMPARED.items():
        found: dict[tuple[str, str], list[tuple[Group, Result]]] = {}
        for group, run in picked:
            for result in of_analysis(run, analysis):
                named = {**result, "run": shown.title(group)}
                found.setdefault((result["layer"], result["part"]), []).append((group, named))
        for number, ((layer, part), pairs) in enumerate(found.items()):
            if len(pairs) < 2:
                continue
            caption = f"{analysis} of several students, {layer}, {part} images"
            try:
                svg = plots.inline(draw([result for _, result in pairs]), f"{analysis}{number}")
            except NONSENSE as error:
                yield broken(caption, error)
            else:
                yield page.figure(caption, recoloured(svg, [shown.number(group) for group, _ in pairs]), titled=True)


def recoloured(svg: str, numbers: Sequence[int]) -> str:
    """A comparison, whose students have the colours 1, 2 and so on, with those that they have on this page."""
    new = {str(1 + place): number % len(plots.SERIES) for place, number in enumerate(numbers)}
    return re.sub(r"var\(--series-(\d)\)", lambda found: f"var(--series-{new.get(found[1], found[1])})", svg)


def folded(shown: Content, group: Group, run: Run, number: int) -> str:
    """The figures of one run, shown when they are asked for."""
    drawn = [figure for analysis in SINGLE for figure in singles(run, analysis, f"run{number}")]
    left = f" {len(drawn) - MOST} more are left out." if len(drawn) > MOST else ""
    summary = f"{shown.title(group)}, seed {run.seed}: {counted(min(len(drawn), MOST), 'figure')}"
    return page.details(summary, page.sheets(*drawn[:MOST]) + page.paragraph(left.strip()), shown.swatch(group))


def singles(run: Run, analysis: str, name: str) -> list[str]:
    """The figures of one analysis of a run; where its values make no sense, a notice instead."""
    results = of_analysis(run, analysis)
    try:
        drawn = [
            page.figure(f"{stem} of {run.folder.name}", plots.inline(figure, f"{name}-{analysis}{number}"), titled=True)
            for number, (stem, figure) in enumerate(figures.drawn(analysis, results).items())
            if stem.startswith(SINGLE[analysis])
        ]
    except NONSENSE as error:
        return [broken(f"analysis/{analysis}.json of {run.folder.name}", error)]
    return drawn


def broken(what: str, error: Exception) -> str:
    """What stands in the place of a figure that cannot be drawn."""
    return page.notice(
        f"{what} cannot be drawn: the values make no sense; remove the file, analyse again.", [str(error)]
    )
