"""What a report is about: groups of runs in their order, with their names, colours and baselines, and numbers as text.

Left out: reading runs (kdtool.analysis.results), and every section of the page.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdtool.analysis import plots
from kdtool.analysis.results import Group, Run, Skipped, grouped, mean_and_deviation, setting
from kdtool.errors import printable
from kdtool.workflows import page

Layer = tuple[str, str]  # layer and part, as in the results of analyses
DRAWN = 12  # groups in one plot: more cannot be told apart
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Content:
    """What the report is about: groups in the order in which they are shown, and what was left out."""

    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs that are shown."""
        return [run for group in self.groups for run in group.runs]

    @cached_property
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
        for run in self.runs:
            found.setdefault(run.teacher_sha256, run)
        return found

    @property
    def teacher_accuracy(self) -> float | None:
        """The test accuracy of the teacher in percent, where there is just one."""
        found = [run.teacher_accuracy for run in self.teachers.values()]
        return found[0] if len(found) == 1 else None

    @cached_property
    def several_networks(self) -> bool:
        """Whether students of several networks are shown."""
        return len({group.runs[0].network for group in self.students}) > 1

    @cached_property
    def several_seeds(self) -> bool:
        """Whether some group has more than one run."""
        return any(len(group.runs) > 1 for group in self.groups)

    def title(self, group: Group) -> str:
        """The group's label, with its network where students of several are shown."""
        told = self.several_networks and not group.is_teacher
        return printable(f"{group.runs[0].network}: {group.label}" if told else group.label)

    @cached_property
    def numbers(self) -> dict[Path, int]:
        """The number of every group's colour by the folder of its first run: baselines first, then the best student."""
        ranked = sorted(self.students, key=lambda group: (bool(group.runs[0].methods), -accuracy(group)))
        teachers = [group for group in self.groups if group.is_teacher]
        return {group.runs[0].folder: number for number, group in enumerate((*ranked, *teachers))}

    def number(self, group: Group) -> int:
        """The number of the group's colour."""
        return self.numbers[group.runs[0].folder]

    def drawn(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that a plot has room for: baselines and the best students."""
        first = sorted(map(self.number, groups))[:DRAWN]
        return [group for group in groups if self.number(group) in first]

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

    def baseline(self, group: Group) -> Group | None:
        """The same network that learned without a teacher, by the same recipe from as many images, if it is here."""
        return next((other for other in self.students if is_baseline(other.runs[0], group.runs[0])), None)

    def best(self, groups: Sequence[Group], column: "Column") -> list[bool]:
        """Which students look best of their network and data set in a column; none where nothing is to compare."""
        known: dict[tuple[str, str], dict[int, float]] = {}
        for number, group in enumerate(groups):
            if not group.is_teacher and (value := mean(group.values(column.of))) is not None:
                run = group.runs[0]
                known.setdefault((run.network, run.data_digest), {})[number] = column.sign * value
        found = [False] * len(groups)
        for values in known.values():
            texts = {number: spread([value], column.form) for number, value in values.items()}
            top = texts[max(values, key=values.__getitem__)]
            for number, text in texts.items():
                found[number] = text == top and len(set(texts.values())) > 1
        return found


@dataclass(frozen=True)
class Column:
    """A measure of runs in a table. form: as of `spread`; sign: 1 where large values are best, -1 small ones."""

    name: str
    of: Callable[[Run], float | None]
    form: str = ""
    sign: int = 1


def measured(shown: Content, groups: Sequence[Group], columns: Sequence[Column]) -> list[page.TableRow]:
    """A row for every group with the means of its runs; the best students of every network are marked."""
    marks = [shown.best(groups, column) for column in columns]
    return [
        page.TableRow(
            shown.title(group),
            [averaged(group, column) for column in columns],
            shown.swatch(group),
            [mark[place] for mark in marks],
        )
        for place, group in enumerate(groups)
    ]


def averaged(group: Group, column: Column) -> str:
    """Mean ± standard deviation over the group's runs, and of how many where not all have a value."""
    values = group.values(column.of)
    told = f" ({len(values)} of {len(group.runs)})" if 0 < len(values) < len(group.runs) else ""
    return spread(values, column.form) + told


def left_of(groups: Sequence[Group], drawn: Sequence[Group]) -> str:
    """What is said of the groups that `drawn` has no room for."""
    left = len(groups) - len(drawn)
    return (
        f"{left} more are in the table only: students without a teacher and the best others are drawn." if left else ""
    )


def legend(shown: Content, groups: Sequence[Group]) -> str:
    """The lines of some groups with their names."""
    return page.legend([(shown.swatch(group), shown.title(group)) for group in groups])


def is_baseline(run: Run, of: Run) -> bool:
    """Whether a run learned without a teacher what another learned with one, from the same first weights."""
    same_images = run.samples == of.samples or None in (run.samples, of.samples)  # older results do not say how many
    alike = all(run.config.get(key) == of.config.get(key) for key in ("recipe", "initial", "head_learning_rate"))
    same = (run.network, run.data_digest) == (of.network, of.data_digest)
    return same and alike and same_images and not run.methods


def content(runs: Sequence[Run], skipped: Sequence[Skipped] = ()) -> Content:
    """The content of a report: teachers first, then the students of every network, the best first.

    Runs of the same settings and seed are one run: the second would be counted as another sample.
    """
    first: dict[tuple[str, int], Run] = {}
    again = []
    for run in runs:
        known = first.setdefault((setting(run), run.seed), run)
        if known is not run:
            again.append(Skipped(run.folder.name, f"has the settings and the seed of {known.folder}"))
    return Content(tuple(sorted(grouped(list(first.values())), key=rank)), (*skipped, *again))


def rank(group: Group) -> tuple[bool, str, float]:
    """Where a group stands in the report."""
    return not group.is_teacher, group.runs[0].network, -accuracy(group)


def accuracy(group: Group) -> float:
    """The mean test accuracy after the last epoch, in percent."""
    return mean_and_deviation(group.values(lambda run: run.last))[0]


def mean(values: Sequence[float]) -> float | None:
    """The mean, None without a value."""
    return mean_and_deviation(values)[0] if values else None


# Numbers and names as text


def layer_name(layer: Layer, layers: Sequence[Layer]) -> str:
    """A layer, and the part of the data set where there are several."""
    return f"{layer[0]} ({layer[1]})" if len({part for _, part in layers}) > 1 else layer[0]


def spread(values: Sequence[float], form: str = "") -> str:
    """Mean ± standard deviation; empty without a value. form: "" for what is of any magnitude."""
    if not values:
        return ""
    middle, deviation = mean_and_deviation(values)
    text = format(middle, form) if form else plots.short(middle)
    if deviation is None:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {deviation:.1g}" if "e" in text else f"{text} ± {deviation:.{decimals}f}"


def signed(difference: float) -> str:
    """A difference of accuracies with its sign."""
    return f"{difference:+.2f}".replace("-", MINUS)


def apart(difference: float) -> str:
    """A difference of accuracies in words."""
    return f"{abs(difference):.2f} points {'above' if difference >= 0 else 'below'}"


def mean_duration(seconds: Sequence[float]) -> str:
    """Mean seconds as text; empty without a value."""
    return duration(mean_and_deviation(seconds)[0]) if seconds else ""


def duration(seconds: float) -> str:
    """Seconds in the unit that people use."""
    if not math.isfinite(seconds):
        return ""
    if seconds < 0.1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int | None) -> str:
    """Bytes in binary units."""
    if not count:
        return ""
    power = min(4, (count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
