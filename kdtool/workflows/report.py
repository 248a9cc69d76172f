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
    "The kernel transfer loss is the Frobenius norm of K_T - K_S over that of K_T, the kernels of all images that were "
    "analysed: 0 says that the student relates any two of them to one another as the teacher does."
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
        """Every layer and part that some student has a kernel transfer loss for."""
        return list(dict.fromkeys(layer for group in self.students for run in group.runs for layer in run.gaps))

    @property
    def teachers(self) -> dict[str, Run]:
        """A run for every teacher by its SHA-256: its own, or one of a student that learned from it."""
        found: dict[str, Run] = {}
        for group in self.groups:
            for run in group.runs:
                found.setdefault(run.teacher_sha256, run)
        return found

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
        """The group's line as a piece of HTML; none for a teacher beside students, who is drawn as the reference."""
        if group.is_teacher and self.students:
            return ""
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
    gaps = [f"transfer loss {layer_name(content, layer)}" for layer in content.layers]
    accuracies = ["accuracy, last (%)", "accuracy, best (%)", "accuracy, selected (%)"]
    columns = ["network", "parameters", "runs", *accuracies, *gaps, "time"]
    notes = (
        "Accuracy on the test images. last: after the last epoch; best: of all epochs, chosen on those very images; "
        "selected: of the weights that were best on images held out of the training."
    )
    if several_seeds(content.groups):
        notes = f"Mean ± standard deviation over runs that differ in the seed only. {notes}"
    return page.section(
        "Results",
        page.paragraph(headline(content), "headline"),
        page.table("run", columns, [*absent_teachers(content, len(columns)), *group_rows(content)]),
        page.paragraph(notes),
    )


def absent_teachers(content: Content, columns: int) -> list[page.TableRow]:
    """Rows for teachers whose own run is not among the folders: what their students' caches say of them."""
    shown = {run.teacher_sha256 for group in content.groups if group.is_teacher for run in group.runs}
    return [
        page.TableRow("teacher", [run.teacher_network, "", "", f"{run.teacher_accuracy:.2f}", *[""] * (columns - 4)])
        for sha256, run in content.teachers.items()
        if sha256 not in shown
    ]


def group_rows(content: Content) -> list[page.TableRow]:
    """A row of results for every group."""
    rows = []
    for group in content.groups:
        run = group.runs[0]
        last, best = group.values(lambda run: run.last), group.values(lambda run: run.best)
        accuracies = [spread(values, ".2f") for values in (last, best, group.values(lambda run: run.selected))]
        gaps = [spread(losses(group, layer), "") for layer in content.layers]
        cells = [run.network, f"{run.parameters:,}", str(len(group.runs)), *accuracies, *gaps]
        rows.append(page.TableRow(content.title(group), [*cells, mean_seconds(group, "total")], content.swatch(group)))
    return rows


def headline(content: Content) -> str:
    """The best student in one sentence."""
    if not content.students:
        return ""
    best = max(content.students, key=accuracy)
    said = f"{content.title(best)} reaches {accuracy(best):.2f} % after the last epoch"
    alone = [g for g in content.students if not g.runs[0].methods and g.runs[0].network == best.runs[0].network]
    beside = [
        f"{apart(accuracy(best) - accuracy(group))} the same network that learned without a teacher"
        for group in alone[:1]
        if group is not best
    ]
    beside.append(f"{apart(accuracy(best) - best.runs[0].teacher_accuracy)} its teacher")
    return f"{said}: {' and '.join(beside)}."


def accuracy(group: Group) -> float:
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
    tests, train = [], []
    for group in shown:
        number = content.number(group)
        tests.append(plots.Line(number, [[epoch.test_accuracy for epoch in run.epochs] for run in group.runs]))
        train.append(plots.Line(number, [[epoch.loss for epoch in run.epochs] for run in group.runs]))
    reference = content.teacher_accuracy if content.students else None
    return page.section(
        "Learning curves",
        legend(content, shown),
        '<div class="figures">',
        figure("Test accuracy (%)", "accuracy", plots.curves(tests, reference)),
        figure("Training loss, the weighted sum of all terms", "loss", plots.curves(train, logarithmic=True)),
        "</div>",
        page.paragraph("A band reaches from the lowest to the highest run.") if several_seeds(shown) else "",
    )


def transfer(content: Content) -> str:
    """The kernel transfer loss of every layer, and against the accuracy where there are enough students."""
    drawn, shown = [], []
    for number, layer in enumerate(content.layers):
        groups = [group for group in content.students if losses(group, layer)]
        points = [point(content, group, layer) for group in groups]
        name = layer_name(content, layer)
        drawn.append(figure(f"{name}: kernel transfer loss", f"gap{number}", plots.bars(points)))
        if len(points) >= ENOUGH:
            cloud = plots.scatter(points, content.teacher_accuracy)
            drawn.append(figure(f"{name}: test accuracy (%) against transfer loss", f"cloud{number}", cloud))
            shown += [group for group in groups if group not in shown]
    if not drawn:
        return ""
    return page.section(
        "Kernel transfer",
        page.paragraph(f"{GAP} Analysed: {' and '.join(sorted({part for _, part in content.layers}))} images."),
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
            "take in the views that it walks; a student never runs its teacher."
        ),
    )


def mean_seconds(group: Group, part: str) -> str:
    """The mean seconds of one part of the group's runs, as text."""
    return duration(group.values(lambda run: run.seconds.get(part)))


def again(content: Content) -> str:
    """How to run everything again, and what it ran on."""
    runs = [run for group in content.groups for run in group.runs]
    facts = [(f"teacher {run.teacher_network}, SHA-256", sha256) for sha256, run in content.teachers.items()]
    caches = dict.fromkeys(run.cache_identity for run in runs)
    facts += [("cache, identity", identity) for identity in caches if identity]
    machines = dict.fromkeys(", ".join(f"{key} {value}" for key, value in run.environment.items()) for run in runs)
    facts += [("versions and device", machine) for machine in machines]
    weights = [(f"{run.folder.name}, weights, SHA-256", run.weights_sha256) for run in runs if run.command != "teach"]
    return page.section(
        "How to run it again",
        page.paragraph(
            "In another working folder, with a copy of every config.toml; the identity below tells whether the cache "
            "has become the same."
        ),
        page.commands(commands(content)),
        page.definitions(facts),
        page.details("What came out, and the options of every method", page.definitions([*weights, *options(content)])),
    )


def commands(content: Content) -> list[str]:
    """The command lines of all runs, and between teachers and students the one that makes the cache."""
    lines = [command(run) for group in content.groups if group.is_teacher for run in group.runs]
    students = [run for group in content.students for run in group.runs]
    if students:
        methods = [f"--for {shlex.quote(name)}" for name in sorted({name for run in students for name in run.methods})]
        networks = [f"--student {shlex.quote(name)}" for name in sorted({run.network for run in students})]
        views = max(run.views for run in students)
        lines.append(" ".join(("kdtool extract", *methods, *networks, f"--views {views}")))
    return lines + [command(run) for run in students]


def command(run: Run) -> str:
    """The command line that runs it again."""
    return f"kdtool {run.command} --config {shlex.quote(config_of(run))}"


def config_of(run: Run) -> str:
    """Where the run's configuration lies, seen from the working folder."""
    runs = f"{run.folder.parent.name}/" if run.folder.parent.name == "runs" else ""
    return f"{runs}{run.folder.name}/config.toml"


def options(content: Content) -> list[tuple[str, str]]:
    """The options of every group's methods."""
    told = [(content.title(group), group.runs[0].options) for group in content.students]
    return [(title, ", ".join(f"{key} = {value}" for key, value in found.items())) for title, found in told if found]


# Numbers as text


def layer_name(content: Content, layer: Layer) -> str:
    """A layer, and the part of the data set where there are several."""
    return f"{layer[0]} ({layer[1]})" if len({part for _, part in content.layers}) > 1 else layer[0]


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation; empty without a value. form: "" for losses, which are of any magnitude."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    text = format(mean, form) if form else plots.short(mean)
    if deviation is None:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {deviation:.1g}" if "e" in text else f"{text} ± {deviation:.{decimals}f}"


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
