"""The sections of a report that say how good the students became: accuracies in a table, and learning curves.

Left out: what was transferred (report_analyses), and what it took (report_cost).
"""

from collections.abc import Callable, Sequence

from kdtool.analysis import plots
from kdtool.analysis.results import Group, Run
from kdtool.progress import counted
from kdtool.workflows import page
from kdtool.workflows.report_content import (
    Column,
    Content,
    Layer,
    accuracy,
    apart,
    duration,
    layer_name,
    left_of,
    legend,
    measured,
    signed,
    spread,
)

SEEDS = "Mean ± standard deviation over runs that differ in the seed only. "
ACCURACIES = "Accuracy on the test images. last: after the last epoch; best: of all epochs, chosen on those very images"
SELECTED = "; selected: of the weights that were best on images held out of the training"
BASELINE = "over no teacher: accuracy, last, beside that of the same network trained alike without a teacher. "
MARKED = "Bold: the best student{}. "


def results(shown: Content) -> list[str]:
    """The headline and the table of all groups, the teacher first."""
    measures = [
        Column("accuracy, last (%)", lambda run: run.last, ".2f", sign=1),
        Column("accuracy, best (%)", lambda run: run.best, ".2f", sign=1),
        Column("accuracy, selected (%)", lambda run: run.selected, ".2f", sign=1),
        *(Column(f"transfer loss {layer_name(layer, shown.layers)}", gap_of(layer), sign=-1) for layer in shown.layers),
    ]
    first, *others = (column.name for column in measures)
    columns = [first, "over no teacher (points)", *others, "runs", "network", "parameters"]
    rows = [result_row(shown, *row) for row in zip(shown.groups, measured(shown, shown.groups, measures), strict=True)]
    gains = [row.cells[1] for row in rows]
    return [
        page.paragraph(headline(shown), "headline"),
        page.paragraph(setup(shown)),
        page.table("run", columns, [*absent_teachers(shown, len(columns)), *rows]),
        page.paragraph(notes(shown, rows, any(gains))),
        page.details("Every run by itself", single_runs(shown, measures)) if shown.several_seeds else "",
    ]


def gap_of(layer: Layer) -> Callable[[Run], float | None]:
    """What gives the transfer loss of a layer."""
    return lambda run: run.gaps.get(layer)


def single_runs(shown: Content, measures: Sequence[Column]) -> str:
    """The table of all runs, which has the values behind the means."""
    columns = ["of", "seed", *(column.name for column in measures), "time"]
    rows = []
    for of, run in ((group, run) for group in shown.groups for run in group.runs):
        values = [spread([] if (value := column.of(run)) is None else [value], column.form) for column in measures]
        cells = [shown.title(of), str(run.seed), *values, duration(run.seconds["total"])]
        rows.append(page.TableRow(run.folder.name, cells, shown.swatch(of)))
    return page.table("run", columns, rows, cards=False)


def result_row(shown: Content, group: Group, measures: page.TableRow) -> page.TableRow:
    """The row of a group: its measures, what they are beside the baseline, and what was trained."""
    run, (last, *others) = group.runs[0], measures.cells
    about = [str(len(group.runs)), run.network, f"{run.parameters:,}"]
    best = [measures.best[0], False, *measures.best[1:], *[False] * len(about)]
    return page.TableRow(measures.head, [last, gain(shown, group), *others, *about], measures.swatch, best)


def gain(shown: Content, group: Group) -> str:
    """The points of accuracy over the baseline."""
    baseline = shown.baseline(group)
    return "" if baseline is None or not group.runs[0].methods else signed(accuracy(group) - accuracy(baseline))


def absent_teachers(shown: Content, columns: int) -> list[page.TableRow]:
    """Rows for teachers whose own run is not among the folders: what their students' caches say of them."""
    known = {run.teacher_sha256 for group in shown.groups if group.is_teacher for run in group.runs}
    return [
        page.TableRow("teacher", [f"{run.teacher_accuracy:.2f}", *[""] * (columns - 3), run.teacher_network, ""])
        for sha256, run in shown.teachers.items()
        if sha256 not in known
    ]


def notes(shown: Content, rows: Sequence[page.TableRow], baselines: bool) -> str:
    """What the columns are."""
    said = SEEDS if shown.several_seeds else ""
    selected = any(run.selected is not None for run in shown.runs)
    said += f"{ACCURACIES}{SELECTED if selected else ''}. {BASELINE if baselines else ''}"
    if any(any(row.best) for row in rows):
        said += MARKED.format(" of each network" if shown.several_networks else "")
    return said.strip()


def headline(shown: Content) -> str:
    """The best student in one sentence."""
    if not shown.students:
        return ""
    best = max(shown.students, key=accuracy)
    baseline, beside = shown.baseline(best), []
    if baseline is not None and baseline is not best:
        difference = apart(accuracy(best) - accuracy(baseline))
        beside.append(f"{difference} the same network that learned without a teacher")
    beside.append(f"{apart(accuracy(best) - best.runs[0].teacher_accuracy)} the teacher")
    return f"{shown.title(best)} reaches {accuracy(best):.2f} % after the last epoch: {' and '.join(beside)}."


def setup(shown: Content) -> str:
    """What all students were trained with: in words where it is the same, by its values where it differs."""
    runs = [group.runs[0] for group in shown.students]
    recipes = [run.config.get("recipe", {}) for run in runs]
    found = {
        "epochs": ("{} epochs", [len(run.epochs) for run in runs]),
        "batch size": ("batches of {}", [recipe.get("batch") for recipe in recipes]),
        "optimizer": ("{}", [recipe.get("optimizer") for recipe in recipes]),
        "learning rate": ("learning rate {}", [recipe.get("learning_rate") for recipe in recipes]),
        "schedule": ("{} schedule", [recipe.get("schedule") for recipe in recipes]),
        "training images": ("{} training images", [f"{run.samples:,}" if run.samples else None for run in runs]),
        "views": ("{} of each", [counted(run.views, "view") for run in runs if run.methods]),
    }
    same, differing = [], []
    for name, (form, values) in found.items():
        known = sorted(set(map(str, values)) - {"None"}, key=lambda text: (len(text), text))  # 2 before 10
        if len(known) > 1:
            differing.append(f"{name} ({', '.join(known)})")
        elif known and None not in values:
            same.append(form.format(*known))
    every = "All students" if len(runs) > 1 else "The student"
    said = [f"{every}: {', '.join(same)}."] if same else []
    return " ".join((*said, f"Not the same for all: {', '.join(differing)}.") if differing else said)


def learning(shown: Content) -> list[str]:
    """Test accuracy and loss after every epoch, of the students, or of a teacher alone."""
    whole = [group for group in shown.students or shown.groups if all(run.epochs for run in group.runs)]
    drawn = shown.drawn(whole)
    if not drawn:
        return []
    tests, train = [], []
    for group in drawn:
        number = shown.number(group)
        tests.append(plots.Line(number, [[epoch.test_accuracy for epoch in run.epochs] for run in group.runs]))
        train.append(plots.Line(number, [[epoch.loss for epoch in run.epochs] for run in group.runs]))
    reference = shown.teacher_accuracy if shown.students else None
    return [
        legend(shown, drawn),
        page.figures(
            page.figure("Test accuracy (%)", plots.inline(plots.curves(tests, reference), "accuracy")),
            page.figure(
                "Training loss, the weighted sum of all terms",
                plots.inline(plots.curves(train, logarithmic=True), "loss"),
            ),
        ),
        page.paragraph(curve_notes(whole, drawn)),
    ]


def curve_notes(whole: Sequence[Group], drawn: Sequence[Group]) -> str:
    """What the curves are, and which are left out."""
    said = []
    if any(len(group.runs) > 1 for group in drawn):
        said.append("A band reaches from the lowest to the highest run.")
    staged = [group.label for group in drawn if len({epoch.stage for epoch in group.runs[0].epochs}) > 1]
    if staged:
        said.append(f"Epochs of all stages, one stage after the other: {', '.join(staged)}.")
    return " ".join(filter(None, (*said, left_of(whole, drawn))))
