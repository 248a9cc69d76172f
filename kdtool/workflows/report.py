"""One HTML file that shows what a set of runs came to: accuracies, learning curves, kernel transfer, cost.

The file needs nothing beside itself, follows the reader's light or dark scheme, and the same runs give the same bytes.
Unfinished and damaged runs are listed with the reason. Left out: how a page looks (page) and is read in (results).
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdtool import files
from kdtool.analysis import plots
from kdtool.analysis.results import Group, Run, Skipped, grouped, mean_and_deviation, read_runs
from kdtool.workflows import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layer = tuple[str, str]  # layer and part, as in gram-gap.json
GAP = (
    "The kernel transfer loss is the Frobenius norm of K_T - K_S over that of K_T, for the kernels of all images of "
    "the part: 0 says that the student relates all images to one another as the teacher does."
)
ENOUGH = 3  # students for a plot of accuracy against transfer loss


@dataclass(frozen=True)
class Content:
    """What the report is about: groups in the order in which they are shown, and what was left out."""

    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]

    @property
    def students(self) -> list[Group]:
        """The groups of distill runs."""
        return [group for group in self.groups if not group.is_teacher]

    @property
    def layers(self) -> list[Layer]:
        """Every layer and part that some run has a kernel transfer loss for."""
        return list(dict.fromkeys(layer for group in self.groups for run in group.runs for layer in run.gaps))

    @property
    def teachers(self) -> dict[str, Run]:
        """A run for every teacher by its SHA-256: its own, or one of a student that learned from it."""
        return {run.teacher_sha256: run for group in reversed(self.groups) for run in reversed(group.runs)}

    @property
    def teacher_accuracy(self) -> float | None:
        """The test accuracy of the teacher in percent, where there is just one."""
        found = [run.teacher_accuracy for run in self.teachers.values()]
        return found[0] if len(found) == 1 else None

    def title(self, group: Group) -> str:
        """The group's label, with its network where students of several are shown."""
        several = len({other.runs[0].network for other in self.students}) > 1 and not group.is_teacher
        return f"{group.runs[0].network}: {group.label}" if several else group.label

    def number(self, group: Group) -> int:
        """The number of the group's colour: students come first, so that these differ."""
        return [*self.students, *self.groups].index(group)

    def swatch(self, group: Group) -> str:
        """The group's line as a piece of HTML."""
        number = self.number(group)
        _, dashes, _ = plots.look(number)
        dashed = "" if dashes == "-" else f' stroke-dasharray="{" ".join(str(2 * length) for length in dashes[1])}"'
        stroke = f"var(--series-{number % len(plots.SERIES)})"
        line = f'<path d="M0 7H32" fill="none" stroke-width="5" stroke="{stroke}"{dashed}/>'
        return f'<svg class="swatch" viewBox="0 0 32 14" aria-hidden="true">{line}</svg>'


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Writes the report of run folders, or of folders of run folders, to `out`; gives its path.

    A damaged or unfinished run is left out visibly. Raises UsageError where there is no finished run, DamageError where
    all that there are are damaged, and UsageError without matplotlib.
    """
    runs, skipped = read_runs(folders)
    content = Content(tuple(grouped(runs)), tuple(skipped))
    parts = (left_out(content), results(content), learning(content), transfer(content), cost(content), again(content))
    written = page.page("Distillation report", plots.SERIES, "\n".join(filter(None, (subtitle(content), *parts))))
    with files.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    files.write(out, written.encode())
    return out


def subtitle(content: Content) -> str:
    """Which networks, on which data."""
    names = [", ".join(sorted({run.teacher_network for run in content.teachers.values()}))]
    names += [", ".join(sorted({group.runs[0].network for group in content.students}))] if content.students else []
    data = {str(run.config["data"]) for group in content.groups for run in group.runs if "data" in run.config}
    return page.paragraph(" on ".join((" to ".join(names), *sorted(data)[:1])))


def left_out(content: Content) -> str:
    """The folders that could not be shown."""
    if not content.skipped:
        return ""
    folders = "1 folder is" if len(content.skipped) == 1 else f"{len(content.skipped)} folders are"
    return page.notice(f"{folders} left out:", [f"{skipped.name}: {skipped.reason}" for skipped in content.skipped])


# Results


def results(content: Content) -> str:
    """The headline and the table of all groups, the teacher first."""
    columns = ["network", "parameters", "runs", "test accuracy, last (%)", "test accuracy, best (%)"]
    columns += ["validation accuracy, best (%)", *(f"transfer loss {layer_name(layer)}" for layer in content.layers)]
    known = {run.teacher_sha256 for group in content.groups if group.is_teacher for run in group.runs}
    rows = [
        page.TableRow(
            "teacher", [run.teacher_network, "", "", f"{run.teacher_accuracy:.2f}", *[""] * (len(columns) - 4)]
        )
        for sha256, run in content.teachers.items()
        if sha256 not in known
    ]
    rows += [result_row(content, group) for group in content.groups]
    notes = "last: after the last epoch. best: of all epochs, and chosen on the images that it is measured on."
    if several_seeds(content.groups):
        notes = f"Mean ± standard deviation over runs that differ in the seed only. {notes}"
    return page.section(
        "Results",
        page.paragraph(headline(content), "headline"),
        page.table("run", columns, rows),
        page.paragraph(notes),
    )


def result_row(content: Content, group: Group) -> page.TableRow:
    """One group in the table of results."""
    run = group.runs[0]
    cells = [run.network, f"{run.parameters:,}", str(len(group.runs))]
    cells += [
        spread(group.values(of), ".2f") for of in (lambda r: r.last, lambda r: r.best, lambda r: r.validation_best)
    ]
    cells += [spread(losses(group, layer), "") for layer in content.layers]
    return page.TableRow(content.title(group), cells, content.swatch(group))


def headline(content: Content) -> str:
    """The best student in one sentence."""
    if not content.students:
        return ""
    best = max(content.students, key=last)
    said = f"{content.title(best)} reaches {last(best):.2f} % after the last epoch"
    alone = [g for g in content.students if not g.runs[0].methods and g.runs[0].network == best.runs[0].network]
    beside = [
        f"{apart(last(best) - last(group))} the same network that learned without a teacher"
        for group in alone[:1]
        if group is not best
    ]
    beside.append(f"{apart(last(best) - best.runs[0].teacher_accuracy)} its teacher")
    return f"{said}: {' and '.join(beside)}."


def last(group: Group) -> float:
    """The mean test accuracy after the last epoch, in percent."""
    return mean_and_deviation(group.values(lambda run: run.last))[0]


def losses(group: Group, layer: Layer) -> list[float]:
    """The kernel transfer losses of the group's runs."""
    return group.values(lambda run: run.gaps.get(layer))


# Plots


def learning(content: Content) -> str:
    """Test accuracy and loss after every epoch, of the students, or of a teacher alone."""
    shown = [group for group in content.students or content.groups if all(run.epochs for run in group.runs)]
    if not shown:
        return ""
    accuracy, loss = [], []
    for group in shown:
        number = content.number(group)
        accuracy.append(plots.Line(number, [[epoch.test_accuracy for epoch in run.epochs] for run in group.runs]))
        loss.append(plots.Line(number, [[epoch.loss for epoch in run.epochs] for run in group.runs]))
    reference = content.teacher_accuracy if content.students else None
    return page.section(
        "Learning curves",
        legend(content, shown),
        '<div class="figures">',
        figure("Test accuracy (%)", "accuracy", plots.curves(accuracy, reference)),
        figure("Training loss, the weighted sum of all terms", "loss", plots.curves(loss, logarithmic=True)),
        "</div>",
        page.paragraph("A band reaches from the lowest to the highest run.") if several_seeds(shown) else "",
    )


def transfer(content: Content) -> str:
    """The kernel transfer loss of every layer, and against the accuracy where there are enough students."""
    drawn, shown = [], []
    for number, layer in enumerate(content.layers):
        groups = [group for group in content.students if losses(group, layer)]
        points = [point(content, group, layer) for group in groups]
        drawn.append(figure(f"{layer_name(layer)}: kernel transfer loss", f"gap{number}", plots.bars(points)))
        if len(points) >= ENOUGH:
            cloud = plots.scatter(points, content.teacher_accuracy)
            drawn.append(figure(f"{layer_name(layer)}: test accuracy (%) against it", f"cloud{number}", cloud))
            shown += [group for group in groups if group not in shown]
    if not drawn:
        return ""
    return page.section(
        "Kernel transfer",
        page.paragraph(GAP),
        legend(content, shown) if shown else "",
        '<div class="figures">',
        *drawn,
        "</div>",
    )


def point(content: Content, group: Group, layer: Layer) -> plots.Point:
    """A group in the plots of one layer: those of its runs that were analysed."""
    accuracies = group.values(lambda run: run.last if layer in run.gaps else None)
    return plots.Point(content.title(group), content.number(group), losses(group, layer), accuracies)


def legend(content: Content, groups: Sequence[Group]) -> str:
    """The lines of some groups with their names."""
    return page.legend([(content.swatch(group), content.title(group)) for group in groups])


def figure(caption: str, name: str, drawn: "Figure") -> str:
    """A drawn figure as a piece of HTML."""
    return page.figure(caption, plots.inline(drawn, name))


def several_seeds(groups: Sequence[Group]) -> bool:
    """Whether some group has more than one run."""
    return any(len(group.runs) > 1 for group in groups)


# Cost and reproduction


def cost(content: Content) -> str:
    """Seconds by part and the bytes of cache that were read."""
    columns = ("total", "an epoch", "training", "data", "evaluation", "cache")
    rows = []
    for group in content.groups:
        parts = [mean_seconds(group, part) for part in ("total", "train", "data", "evaluate")]
        epoch = duration(group.values(lambda run: run.seconds["total"] / len(run.epochs) if run.epochs else None))
        cache = size(group.runs[0].cache_bytes)
        rows.append(page.TableRow(content.title(group), [parts[0], epoch, *parts[1:], cache], content.swatch(group)))
    return page.section(
        "Cost",
        page.table("run", columns, rows),
        page.paragraph(
            "Means over runs. data: waiting for images and for the teacher's answers. cache: what the run's targets "
            "take in the views that it walks. No student ran its teacher."
        ),
    )


def mean_seconds(group: Group, part: str) -> str:
    """The mean seconds of one part of the group's runs, as text."""
    return duration(group.values(lambda run: run.seconds.get(part)))


def again(content: Content) -> str:
    """How to run everything again, and what it ran on."""
    runs = [run for group in content.groups for run in group.runs]
    facts = [(f"teacher {run.teacher_network}, SHA-256", sha256) for sha256, run in content.teachers.items()]
    facts += [
        ("cache, identity", identity) for identity in dict.fromkeys(run.cache_identity for run in runs) if identity
    ]
    machines = dict.fromkeys(", ".join(f"{key} {value}" for key, value in run.environment.items()) for run in runs)
    facts += [("versions and device", machine) for machine in machines]
    weights = [(f"{run.folder.name}, weights, SHA-256", run.weights_sha256) for run in runs if run.command != "teach"]
    return page.section(
        "How to run it again",
        page.paragraph("In a working folder without these runs, with a copy of their config.toml:"),
        page.commands([f"kdtool {run.command} --config {shlex.quote(config_of(run))}" for run in runs]),
        page.definitions(facts),
        page.details("What came out, and the options of every method", page.definitions([*weights, *options(content)])),
    )


def config_of(run: Run) -> str:
    """Where the run's configuration lies, seen from the working folder."""
    runs = f"{run.folder.parent.name}/" if run.folder.parent.name == "runs" else ""
    return f"{runs}{run.folder.name}/config.toml"


def options(content: Content) -> list[tuple[str, str]]:
    """The options of every group's methods."""
    told = [(content.title(group), group.runs[0].options) for group in content.students]
    return [(title, ", ".join(f"{key} = {value}" for key, value in found.items())) for title, found in told if found]


# Numbers as text


def layer_name(layer: Layer) -> str:
    """A layer and the part of the data set."""
    return f"{layer[0]} ({layer[1]})"


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation; empty without a value. form: "" for losses, which are of any magnitude."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    text = format(mean, form) if form else plots.short(mean)
    if deviation is None:
        return text
    return f"{text} ± {format(deviation, form) if form else format(deviation, '.1g')}"


def apart(difference: float) -> str:
    """A difference of accuracies in words."""
    return f"{abs(difference):.2f} points {'above' if difference >= 0 else 'below'}"


def duration(seconds: Sequence[float]) -> str:
    """Mean seconds in the unit that people use."""
    if not seconds or not math.isfinite(mean := mean_and_deviation(seconds)[0]):
        return ""
    if mean < 120:
        return f"{mean:.1f} s"
    return f"{mean / 60:.1f} min" if mean < 7200 else f"{mean / 3600:.1f} h"


def size(count: int | None) -> str:
    """Bytes in binary units."""
    if not count:
        return ""
    power = min(4, (count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
