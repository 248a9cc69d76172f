"""What a person sees: progress on stderr, results on stdout, tables that fit 80 columns, JSON where it is asked for."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from kdtool.errors import UsageError, printable

PLAIN_SECONDS = 10.0  # between two lines of progress where stderr is no terminal


class Shown:
    """Progress for people: a bar with rate and time left on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self.bars = Bars(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self.task: Any = None
        self.name, self.total, self.done = "", 0, 0
        self.started = self.told = time.monotonic()
        self.before = 0

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """A new bar in place of the one before."""
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.task = self.bars.add_task(task, total=total, completed=done, rate="")
        self.name, self.total, self.done, self.before = task, total, done, done
        self.started = self.told = time.monotonic()

    def advance(self, steps: int) -> None:
        """Moves the bar; elsewhere a line with rate and time left every ten seconds."""
        self.done += steps
        now = time.monotonic()
        rate = (self.done - self.before) / max(now - self.started, 1e-9)
        self.bars.update(self.task, completed=self.done, rate=f"{rate:.1f}/s")
        if not self.console.is_terminal and not self.quiet and now - self.told >= PLAIN_SECONDS:
            left = (self.total - self.done) / rate if rate else 0.0
            self._say(f"{self.name} {self.done}/{self.total}, {rate:.1f}/s, {_duration(left)} left")
            self.told = now

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self._say(text)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout; columns of numbers stand to the right."""
    if title:
        print_line(title)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        numbers = all(str(row[index])[:1].isdigit() or row[index] == "" for row in rows)
        table.add_column(column, justify="right" if numbers and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{item:,}" if isinstance(item, int) else str(item) for item in row))
    sys.stdout.flush()
    Console(highlight=False, markup=False).print(table)


def folded(name: str, width: int = 24) -> str:
    """A long name of parts with dots between them, in lines of at most so many columns, broken behind a dot."""
    lines = [""]
    for part in name.replace(".", ".\n").split("\n"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def need_terminal(option: str) -> None:
    """Refuses to ask where nobody can answer."""
    if not sys.stdin.isatty():
        raise UsageError(f"nobody can be asked here, as this is no terminal; give {option}")


def print_line(text: str) -> None:
    """One line on stdout, or a few."""
    sys.stdout.write("\n".join(map(printable, text.split("\n"))) + "\n")


def in_units(size: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
