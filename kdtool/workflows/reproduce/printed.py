"""The numbers that the three papers print, as data: kdtool/workflows/tables.json."""

import functools
import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Printed:
    """A cell of a printed table. mean and sd in `unit`; sd is None where the paper prints none."""

    paper: str
    table: str
    row: str
    column: str
    mean: float
    sd: float | None
    unit: str
    note: str | None = None


@functools.cache
def printed() -> tuple[Printed, ...]:
    """All of them, in the order of the papers."""
    text = resources.files("kdtool.workflows").joinpath("tables.json").read_text(encoding="utf-8")
    return tuple(Printed(**cell) for cell in json.loads(text))


def table(paper: str, number: str) -> dict[tuple[str, str], Printed]:
    """(row, column) -> cell of one table."""
    return {(cell.row, cell.column): cell for cell in printed() if (cell.paper, cell.table) == (paper, number)}
