"""The plot of every analysis, as figures that stand by themselves: with title, legend and notes.

They are drawn from plain results, as they are kept in a run's folder, without a look at features. Left out: the plots
of a report, whose words stand in its page (plots).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdtool import files
from kdtool.analysis import plots
from kdtool.analysis.figures import bounds, correlation, gaps, landmarks, similarity, spectrum
from kdtool.analysis.figures.about import Result
from kdtool.errors import UsageError, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = {
    "gram-gap": gaps.figures,
    "bounds": bounds.figures,
    "spectrum": spectrum.figures,
    "landmarks": landmarks.figures,
    "correlation": correlation.figures,
    "similarity": similarity.figures,
}
ENDINGS = (".svg", ".png", ".pdf")


def drawn(analysis: str, results: Sequence[Result]) -> dict[str, Figure]:
    """Every figure of an analysis, under a name that does for a file; none without results.

    results: as `kdtool.analysis.kept` holds them, of one run or of several, which are then compared where that makes
    sense and have their names in those of the figures. Raises UsageError for another analysis and without matplotlib.
    """
    if analysis not in DRAWN:
        raise unknown("analysis", analysis, DRAWN)
    found: dict[str, Figure] = {}
    if results:
        for stem, figure in DRAWN[analysis](results):
            found[unused(stem, found)] = figure
    return found


def unused(stem: str, taken: dict[str, Figure]) -> str:
    """The stem, numbered where another has it; some file systems do not tell capitals apart."""
    used = {other.casefold() for other in taken}
    numbered = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in numbered if name.casefold() not in used)


def check_ending(path: Path) -> None:
    """Refuses a file that no plot can be written to."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{path} is no plot that can be written; expected a name that ends in {', '.join(ENDINGS)}")


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as .svg, .png or .pdf, whole or not at all; the same figure gives the same bytes."""
    check_ending(path)
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, plots.rendered(figure, path.suffix.lower()[1:]))


def save_all(analysis: str, results: Sequence[Result], path: Path) -> list[Path]:
    """Writes all figures of an analysis: the first to `path`, others beside it with their names added to its own."""
    check_ending(path)
    figures = drawn(analysis, results)
    paths = [path.with_stem(f"{path.stem}-{stem}") if number else path for number, stem in enumerate(figures)]
    for figure, place in zip(figures.values(), paths, strict=True):
        save(figure, place)
    return paths
