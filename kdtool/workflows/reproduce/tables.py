"""Tables of what came out, beside what is printed: means over seeds, and nothing that is not in a row.

Rows of several teachers of one group (one that was trained again, elsewhere, came out otherwise) are never averaged:
each teacher has lines of its own.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kdtool import files
from kdtool.analysis.kept import Result, exact_gaps
from kdtool.workflows.reproduce.recipe import Cell, Recipe
from kdtool.workflows.reproduce.rows import DIGITS, Results, Row
from kdtool.workflows.reproduce.tasks import Searched, by_teacher, counted, searched, wanted

ERROR, NOT_RUN = "top-1 error %", "not run"
FEWEST = 5  # means over which a rank correlation is told


@dataclass(frozen=True)
class Line:
    """A cell as it came out.

    group: the one that made its teacher; teacher: the beginning of its SHA-256. mean, sd: over `seeds` runs, in the
    unit of the printed number, else in percent. sd: of the sample, None of one run. printed, printed_sd: the paper's;
    difference: ours less the paper's. losses: layer -> mean kernel transfer loss of the students; alignments: layer ->
    mean alignment of their kernels with the teacher's. chosen: options that a search found; tried: all of its options
    with their accuracy on the validation part. note: why there is nothing, or what else is to be said.
    """

    row: str
    column: str
    group: str
    teacher: str
    seeds: int
    mean: float | None
    sd: float | None
    printed: float | None
    printed_sd: float | None
    difference: float | None
    losses: Mapping[str, float] = field(default_factory=dict)
    alignments: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, Any] | None = None
    tried: tuple[tuple[Mapping[str, Any], float], ...] = ()
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


MEASURES: Mapping[str, Callable[[Line], Mapping[str, float]]] = {  # of kernels, in the order of the columns
    "loss": lambda line: line.losses,
    "alignment": lambda line: line.alignments,
}


def lines(recipe: Recipe, results: Results, seeds: int | None = None) -> list[Line]:
    """The lines of a recipe's table, in its order; seeds: how many are wanted, None for all that there are."""
    rows = rows_of(recipe, results)
    return [line for cell in recipe.cells for line in _lines(recipe, cell, rows.get(cell.group, []), seeds)]


def rows_of(recipe: Recipe, results: Results) -> dict[str, list[Row]]:
    """group -> its rows, for the groups of all cells."""
    return {group: results.rows(group) for group in dict.fromkeys(cell.group for cell in recipe.cells if cell.group)}


def _lines(recipe: Recipe, cell: Cell, rows: Sequence[Row], seeds: int | None) -> Iterator[Line]:
    """A line of each teacher that has rows of the cell; one without a number where none has."""
    if cell.skip:
        yield _line(recipe, cell, "", [], note=cell.skip)
        return
    count = 0
    for teacher, own in by_teacher(rows).items():
        search = searched(recipe, cell, own)
        keys = wanted(recipe, [cell], seeds or 1 + max(row["seed"] for row in own), own)
        found = [row for row in own if row["key"] in keys]
        if found and (search is None or search.chosen is not None):
            count += 1
            ended = [row for row in found if not row.get("diverged")]
            yield _line(recipe, cell, teacher, ended, search, note=_note(recipe, found))
    if not count:
        yield _line(recipe, cell, "", [], note=NOT_RUN)


def _line(
    recipe: Recipe,
    cell: Cell,
    teacher: str,
    rows: Sequence[Row],
    search: Searched | None = None,
    note: str = "",
) -> Line:
    values = [score(recipe, cell, row) for row in rows]
    mean, paper = statistics.fmean(values) if values else None, cell.printed
    return Line(
        row=cell.row,
        column=cell.column,
        group=recipe.root(cell.group) if cell.group in recipe.groups else "",
        teacher=teacher[:DIGITS],
        seeds=len(values),
        mean=mean,
        sd=statistics.stdev(values) if len(values) > 1 else None,
        printed=paper.mean if paper else None,
        printed_sd=paper.sd if paper else None,
        difference=mean - paper.mean if paper and mean is not None else None,
        losses=_means(rows, lambda gap: gap["loss"]),
        alignments=_means(rows, _alignment),
        chosen=search.chosen if search else None,
        tried=tuple((dict(options), score) for options, score in search.scores) if search else (),
        note=note,
    )


def _note(recipe: Recipe, rows: Sequence[Row]) -> str:
    """What is said of seeds that diverged, where nothing is held out for a recipe that reports what validation
    selects, and of a mean over seeds that were trained in several precisions, on several numbers of views or from
    caches of several bits, as two machines make them.
    """
    found, diverged = [], sum(bool(row.get("diverged")) for row in rows)
    if diverged:
        found.append(f"{diverged} of {len(rows)} trainings diverged")
    students = [row for row in rows if row["config"] and not row.get("diverged")]
    if recipe.report == "selected" and any(row["test_accuracy"].get("selected") is None for row in students):
        found.append("after the last epoch: no images are held out for validation")
    counts = Counter(row["environment"]["precision"] for row in students if row["environment"])
    if len(counts) > 1:
        found.append(f"trained in {' and '.join(f'{name} ({count})' for name, count in sorted(counts.items()))}")
    if len(views := sorted({row["views"] for row in students if not row["live"]})) > 1:
        found.append(f"trained on {' and '.join(map(str, views))} views")
    elif len({targets for row in students if not row["live"] and (targets := row["cache"].get("targets"))}) > 1:
        found.append("trained from caches whose bits differ")
    return "; ".join(found)


def analysed(recipe: Recipe, results: Results, analysis: str) -> list[Result]:
    """What an analysis said of the first seed of every cell, under the cell's name: for a plot of all."""
    found, rows = [], rows_of(recipe, results)
    rows_alike = len({cell.row for cell in recipe.cells}) == 1
    columns_alike = len({cell.column for cell in recipe.cells}) == 1
    for cell in recipe.cells:
        teachers = by_teacher(rows.get(cell.group, []))
        name = cell.column if rows_alike else cell.row if columns_alike else f"{cell.row}, {cell.column}"
        for teacher, own in teachers.items():
            keys, of = wanted(recipe, [cell], 1, own), f" ({teacher[:DIGITS]})" if len(teachers) > 1 else ""
            for row in [row for row in own if row["key"] in keys][:1]:
                found += [{**result, "run": f"{name}{of}"} for result in row["analyses"].get(analysis, ())]
    return found


def score(recipe: Recipe, cell: Cell, row: Row) -> float:
    """The number of a row that the table shows: of the probe where there is one, as an error where the paper does."""
    of = row["probe"] if row["probe"] else row
    found = of["test_accuracy"]
    selected = found.get("selected") if recipe.report == "selected" else None
    accuracy = float(found["last"] if selected is None else selected)
    return 100 - accuracy if cell.printed and cell.printed.unit == ERROR else accuracy


def _means(rows: Sequence[Row], measure: Callable[[Result], float]) -> dict[str, float]:
    """layer -> mean of a measure of the linear kernels, over the rows that were analysed."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for (layer, part), gap in exact_gaps(row["analyses"].get("gram-gap", ())).items():
            if part == "train":
                found.setdefault(layer, []).append(measure(gap))
    return {layer: statistics.fmean(values) for layer, values in found.items()}


def _alignment(gap: Result) -> float:
    from kdtool.analysis.gram import alignment

    return alignment(gap)


def number(value: float | None, sd: float | None = None, digits: int = 2) -> str:
    """A number as tables show it, with what follows the ±."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


def cells(line: Line, found: Sequence[Line]) -> list[str]:
    """What the table of all lines that were found shows of one, under `header`; a dash where a note says why not."""
    difference = "" if line.difference is None else f"{line.difference:+.2f}"
    kernels = [number(of(line).get(layer), digits=4) for layer in layers_of(found) for of in MEASURES.values()]
    ours = number(line.mean, line.sd) or (line.note if line.note == NOT_RUN else "-")
    theirs = [number(line.printed, line.printed_sd), difference] if beside_printed(found) else []
    return [ours, str(line.seeds or ""), *theirs, *kernels]


def remark(line: Line) -> str:
    """What is to be said of a line beside its numbers: why there are none, or what a search chose."""
    if line.chosen:
        tried = "; ".join(f"{_options(options)}: {score:.2f} %" for options, score in line.tried)
        found = f"searched on the validation part: {_options(line.chosen)}, of {tried}"
        return f"{found}; {line.note}" if line.note else found
    return "" if line.note == NOT_RUN else line.note


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in options.items())


def layers_of(found: Sequence[Line]) -> list[str]:
    """The layers of which there are losses."""
    return list(dict.fromkeys(layer for line in found for layer in line.losses))


def correlated(found: Sequence[Line]) -> list[str]:
    """A sentence for every layer, and teacher: how the means go with the losses and alignments of the lines that have
    them.

    Spearman's correlations; nothing where the lines are few. The papers' claim is that a lower loss goes with a better
    student.
    """
    import numpy as np

    from kdtool.analysis.rsa import spearman

    told, several = [], mixed(found)
    teachers = dict.fromkeys(line.teacher if several else "" for line in found)
    for layer, teacher in itertools.product(layers_of(found), teachers):
        own = [line for line in found if line.teacher == teacher or not several]
        known = [line for line in own if line.mean is not None and layer in line.losses]
        if len(known) < FEWEST:
            continue
        means = np.array([line.mean for line in known])
        values = {name: spearman(means, np.array([of(line)[layer] for line in known])) for name, of in MEASURES.items()}
        said = [f"{value:+.2f} with the {name}" for name, value in values.items() if value is not None]
        of = f" ({teacher})" if teacher else ""
        told += [f"{layer}{of}: rank correlation of {len(known)} means {', '.join(said)}"] if said else []
    return told


def beside_printed(found: Sequence[Line]) -> bool:
    """Whether a paper prints any of the numbers."""
    return any(line.printed is not None for line in found)


def mixed(found: Sequence[Line]) -> bool:
    """Whether a group has rows of several teachers, so that every line says of which it is."""
    teachers = {(line.group, line.teacher) for line in found if line.teacher}
    return len(teachers) > len({group for group, _ in teachers})


def header(found: Sequence[Line]) -> list[str]:
    """The names of the columns that `cells` gives."""
    theirs = ["paper", "difference"] if beside_printed(found) else []
    kernels = [f"{measure} {layer}" for layer in layers_of(found) for measure in MEASURES]
    return ["here", "seeds", *theirs, *kernels]


def markdown(recipe: Recipe, results: Results, found: Sequence[Line], command: str) -> str:
    """The page of a recipe: what it is, the lines of its table, and what the numbers were made with.

    command: that makes it.
    """
    several = mixed(found)
    titles = ["row", "column", *(["teacher"] if several else []), *header(found)]
    page = [f"# {recipe.title}", "", *recipe.about.strip().splitlines(), ""]
    page += [f"Made by `{command}`.", "", *_about_teachers(recipe, results), ""]
    there, asked = _finished(recipe, results)
    page += [f"Not finished: {asked - there:,} of {asked:,} runs are still to come.", ""] if there < asked else []
    page += [f"| {' | '.join(titles)} |", f"| {' | '.join('---' for _ in titles)} |"]
    rows = list(dict.fromkeys(line.row for line in found))
    for line in sorted(found, key=lambda line: rows.index(line.row)):
        named = [line.row, line.column, *([f"`{line.teacher}`"] if several else [])]
        shown = [text.replace("|", "\\|") for text in [*named, *cells(line, found)]]
        page.append(f"| {' | '.join(shown)} |")
    of = {id(line): f" ({line.teacher})" if several else "" for line in found}
    page += [f"\n{line.row}, {line.column}{of[id(line)]}: {text}." for line in found if (text := remark(line))]
    for row in rows:
        page += [f"\n{row}, {text}." for text in correlated([line for line in found if line.row == row])]
    return "\n".join(page) + "\n"


def _finished(recipe: Recipe, results: Results) -> tuple[int, int]:
    """How many of a recipe's runs have rows, of a group with several teachers those of the fullest, and of how many."""
    there = asked = 0
    for group, rows in rows_of(recipe, results).items():
        cells = [cell for cell in recipe.cells if cell.group == group]
        finished = []
        for own in by_teacher(rows).values() or [[]]:
            keys, more = counted(recipe, cells, recipe.seeds, own)
            finished.append((sum(row["key"] in keys for row in own), len(keys) + sum(more.values())))
        most, of = max(finished)
        there, asked = there + most, asked + of
    return there, asked


def _about_teachers(recipe: Recipe, results: Results) -> list[str]:
    """A line for each teacher: its accuracy, its weights, and the machines and time of its students."""
    found = []
    for group, rows in rows_of(recipe, results).items():
        cells = [cell for cell in recipe.cells if cell.group == group]
        for digest, of_teacher in by_teacher(rows).items():
            keys, _ = counted(recipe, cells, 1 + max(row["seed"] for row in of_teacher), of_teacher)
            own = [row for row in of_teacher if row["key"] in keys]
            if not own:
                continue
            teacher = own[0]["teacher"]
            hours = sum(_trainings(own).values()) / 3600
            machines = dict.fromkeys(_machine(row["environment"]) for row in own if row["environment"])
            found.append(
                f"* {group}: {teacher['network']}, {teacher['test_accuracy']:.2f} % of the test images "
                f"(`{digest[:DIGITS]}`); {len(own)} rows, {hours:.1f} hours of training on {'; '.join(machines)}"
            )
    return found


def _trainings(rows: Sequence[Row]) -> dict[str, float]:
    """The seconds of every training; of one student several probes may have a row each."""
    return {
        files.canonical([row["config"], row["seed"], row.get("live")]): row["seconds"].get("total", 0.0) for row in rows
    }


def _machine(environment: Mapping[str, Any]) -> str:
    threads = (
        f", {environment['threads']} thread{'s' * (environment['threads'] != 1)}"
        if environment["device_type"] == "cpu"
        else ""
    )
    return f"{environment['device']}{threads}, torch {environment['torch']}, {environment['precision']}"
