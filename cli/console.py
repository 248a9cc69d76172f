"""What a person sees: progress on stderr, results on stdout, tables that fit 80 columns, JSON where it is asked for."""

import json
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from kdtool.errors import UsageError, printable
from kdtool.progress import StopRequest, stoppable

PLAIN_SECONDS = 10.0  # between two lines of progress where stderr is no terminal that can draw a bar
WIDEST = 100  # columns of a bar
PATIENCE_SECONDS = 1.0  # from a signal until it is said that something still works on


class _Bars(Bars):
    """Bars that are as wide as the terminal, to a limit."""

    def get_renderable(self) -> RenderableType:
        """What is drawn."""
        return Constrain(super().get_renderable(), WIDEST)


@dataclass
class _Task:
    """A task as it is shown. before: what was done when it began; left: when another one was shown in its place."""

    name: str
    total: int
    before: int
    unit: str
    started: float
    done: int = 0
    left: float = 0.0

    def text(self, now: float) -> str:
        """Count, rate and time left."""
        rate = (self.done - self.before) / max(now - self.started, 1e-9)
        if self.unit == "B":
            scale = next((unit for unit in _BYTES if self.total < 1000 * unit[0]), _BYTES[-1])
            count = f"{self.done / scale[0]:.1f}/{self.total / scale[0]:.1f} {scale[1]}"
            speed = f"{in_units(rate)}/s"
        else:
            count, speed = f"{self.done:,}/{self.total:,}", f"{_digits(rate)}/s"
        if rate <= 0:
            return count
        return f"{count}, {speed}, {_duration(max(self.total - self.done, 0) / rate)} left"


_BYTES = ((1e3, "kB"), (1e6, "MB"), (1e9, "GB"))


class Shown:
    """Progress for people: a bar with rate and time left on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self.drawn = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self.bars = _Bars(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True), markup=False),
            console=self.console,
            disable=not self.drawn,
            transient=True,
            expand=True,
        )
        self.task: _Task | None = None
        self.others: dict[tuple[str, int], _Task] = {}  # that may be taken up again
        self.bar: Any = None
        self.told = time.monotonic()
        self.stop: StopRequest | None = None

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    @contextmanager
    def stoppable(self) -> Iterator[StopRequest]:
        """As `kdtool.progress.stoppable`; where a stage works on for a while after the signal, that is told."""
        with stoppable() as self.stop:
            yield self.stop

    def begin(self, task: str, total: int, done: int = 0, unit: str = "") -> None:
        """A new bar in place of the one before; a task that was left at `done` goes on with its rate.

        unit: "B" for bytes, which are shown in larger units.
        """
        now = time.monotonic()
        if self.task is not None:
            self.task.left = now
            self.others[self.task.name, self.task.total] = self.task
        held = self.others.pop((task, total), None)
        if held is not None and held.done == done:
            held.started += now - held.left
        else:
            held = _Task(task, total, done, unit, now, done)
        self.task = held
        if self.bar is not None:
            self.bars.remove_task(self.bar)
        self.bar = self.bars.add_task(printable(task), total=total, completed=done, text=held.text(now))

    def advance(self, steps: int) -> None:
        """Moves the bar; elsewhere a line with rate and time left every ten seconds."""
        if self.task is None:
            return
        self.task.done += steps
        now = time.monotonic()
        if self.stop and self.stop.since is not None and now - self.stop.since > PATIENCE_SECONDS:
            self.stop.since = None
            self.note("stopping at the next safe point; Ctrl-C again stops at once")
        if self.drawn:
            self.bars.update(self.bar, completed=self.task.done, text=self.task.text(now))
        elif not self.quiet and now - self.told >= PLAIN_SECONDS:
            self._say(f"{self.task.name} {self.task.text(now)}")
            self.told = now

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self._say(text)

    def _say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, soft_wrap=not self.drawn)  # a terminal breaks words


def _digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _shown(text: str) -> str:
    """A cell of a table, each of its lines as a terminal takes it."""
    return "\n".join(map(printable, text.split("\n")))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout that fits the terminal; columns of numbers stand to the right.

    Where there is too little room, the heads of columns are folded first, then cells of text. Never folded are numbers,
    and columns that have a cell of several lines, since these stand beside those of other columns.
    """
    if title:
        print_line(title)
    sys.stdout.flush()
    gaps = _GAP * (len(columns) - 1)
    room = Console().width - gaps
    texts = [[f"{item:,}" if isinstance(item, int) else _shown(str(item)) for item in row] for row in rows]
    cells = [[row[index] for row in texts] for index in range(len(columns))]
    numbers = [bool(rows) and all(_NUMBER.match(cell) for cell in column) for column in cells]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    widths = _widths(columns, cells, numbers, room)
    for name, width, right in zip(columns, widths, numbers, strict=True):
        head = "\n".join(textwrap.wrap(name, width))
        table.add_column(head, justify="right" if right else "left", no_wrap=True, width=width)
    for row in texts:
        table.add_row(*(_folded(cell, width) for cell, width in zip(row, widths, strict=True)))
    Console(highlight=False, markup=False, width=max(room, sum(widths)) + gaps).print(table)


_GAP = 2  # between two columns
_NARROWEST = 10  # that a column of texts is folded to
_NUMBER = re.compile(r"-?\d|-?$")  # how the cell of a column of numbers begins; a dash where there is none


def _widths(
    columns: Sequence[str], cells: Sequence[Sequence[str]], numbers: Sequence[bool], room: int
) -> Sequence[int]:
    """The columns' widths, in all at most `room` where that can be."""
    longest = [max((len(line) for cell in column for line in cell.split("\n")), default=0) for column in cells]
    words = [max(map(len, name.split()), default=0) for name in columns]
    widths = [max(len(name), width) for name, width in zip(columns, longest, strict=True)]
    _narrow(widths, [max(pair) for pair in zip(longest, words, strict=True)], room)
    firm = [number or any("\n" in cell for cell in column) for number, column in zip(numbers, cells, strict=True)]
    floors = [
        width if hold else max(min(width, _NARROWEST), word)
        for width, hold, word in zip(widths, firm, words, strict=True)
    ]
    _narrow(widths, floors, room)
    return [max(width, 1) for width in widths]


def _narrow(widths: list[int], floors: Sequence[int], room: int) -> None:
    """Takes columns off the widest that is above its floor, one by one, until all have room."""
    while sum(widths) > room and any(width > floor for width, floor in zip(widths, floors, strict=True)):
        spare = [index for index, width in enumerate(widths) if width > floors[index]]
        widths[max(spare, key=lambda index: widths[index])] -= 1


def _folded(text: str, width: int) -> str:
    """A text in lines of at most so many columns, broken at blanks; a longer word behind a hyphen, a dot or a slash."""
    lines: list[str] = []
    for line in text.split("\n"):
        for part in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]:
            lines += [part] if len(part) <= width else _broken(part, width)
    return "\n".join(lines)


def _broken(word: str, width: int) -> list[str]:
    lines = [""]
    for part in re.split(r"(?<=[-./])", word):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1]) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return lines


def need_terminal(option: str) -> None:
    """Refuses to ask where nobody can answer."""
    if not sys.stdin.isatty():
        raise UsageError(f"nobody can be asked here, as this is no terminal; give {option}")


def print_line(text: str) -> None:
    """One line on stdout, or a few."""
    sys.stdout.write("\n".join(map(printable, text.split("\n"))) + "\n")


def in_time(seconds: float) -> str:
    """A time for people: seconds, or hours, minutes and seconds."""
    return f"{seconds:.0f} s" if seconds < 100 else _duration(seconds)


def in_units(size: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
