"""One HTML file that shows what a set of runs came to: accuracies, learning curves, what was transferred, cost.

The file needs nothing beside itself, follows the reader's light or dark scheme, and the same runs give the same bytes.
Unfinished and damaged runs are listed with the reason, and so is what was analysed of weights that a run no longer has.
Left out: how a page looks (page), how runs are read (kdtool.analysis.results), and what the sections say (report_*).
"""

from collections.abc import Iterable
from pathlib import Path

from kdtool import files
from kdtool.analysis import plots
from kdtool.analysis.results import read_runs
from kdtool.progress import Progress, Silent, counted
from kdtool.workflows import page
from kdtool.workflows.report_again import again
from kdtool.workflows.report_analyses import others, probes, transfer
from kdtool.workflows.report_content import Content, content
from kdtool.workflows.report_cost import cost
from kdtool.workflows.report_figures import closer
from kdtool.workflows.report_results import learning, results

# What gives the parts of every section; a section without parts is absent.
SECTIONS = {
    "Results": results,
    "Learning curves": learning,
    "Kernel transfer": transfer,
    "Other kernels and similarity": others,
    "A closer look": closer,
    "On other data": probes,
    "Cost": cost,
    "How to run it again": again,
}


def write_report(
    folders: Iterable[Path | str] | Path | str,
    out: Path | str,
    progress: Progress = Silent(),  # noqa: B008
) -> Path:
    """Writes the report of run folders, or of folders of run folders, to `out`; gives its path.

    A damaged or unfinished run is left out visibly. Raises UsageError where there is no finished run, DamageError where
    all that there are are damaged, and UsageError without matplotlib.
    """
    out = Path(out)
    progress.begin("report", 1 + len(SECTIONS))
    shown = content(*read_runs(folders))
    found = {}
    for title, of in SECTIONS.items():
        progress.advance(1)
        if parts := of(shown):
            found[title] = parts
    sections = [page.section(title, *parts) for title, parts in found.items()]
    top = (subtitle(shown), page.contents(list(found)), left_out(shown), stale(shown))
    written = page.page("Distillation report", plots.SERIES, "\n".join(filter(None, (*top, *sections))))
    with files.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    files.write(out, written.encode(errors="replace"))  # JSON may hold halves of letters
    return out


def subtitle(shown: Content) -> str:
    """Which networks, on which data."""
    names = [", ".join(sorted({run.teacher_network for run in shown.teachers.values()}))]
    names += [", ".join(sorted({group.runs[0].network for group in shown.students}))] if shown.students else []
    data = ", ".join(sorted({run.data for run in shown.runs} - {""}))
    said = " on ".join(filter(None, (" to ".join(names), data)))
    return page.paragraph(f"{said}: {counted(len(shown.runs), 'run')}")


def left_out(shown: Content) -> str:
    """The folders that could not be shown."""
    if not shown.skipped:
        return ""
    folders = "1 folder is" if len(shown.skipped) == 1 else f"{len(shown.skipped)} folders are"
    return page.notice(f"{folders} left out:", [f"{skipped.name}: {skipped.reason}" for skipped in shown.skipped])


def stale(shown: Content) -> str:
    """What was analysed before a run was trained again."""
    found = [f"{run.folder.name}: {what}" for run in shown.runs for what in run.analysed.stale]
    return page.notice("Analyses of weights that a run no longer has are left out:", found) if found else ""
