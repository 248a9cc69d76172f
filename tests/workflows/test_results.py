"""The pages of docs/results that recipes made say what the rows beside them say, and nothing else."""

from pathlib import Path

import pytest

from kdtool.workflows.reproduce import tables
from kdtool.workflows.reproduce.recipe import load, names
from kdtool.workflows.reproduce.rows import Results

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results"
PAGES = [name for name in names() if (FOLDER / f"{name}.md").exists()]


def test_there_are_pages_and_each_is_told_of() -> None:
    assert PAGES
    told = (FOLDER / "README.md").read_text()
    assert [name for name in PAGES if f"({name}.md)" not in told] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_its_rows_say(name: str) -> None:
    recipe, rows = load(name), Results(FOLDER / "rows")
    found = tables.lines(recipe, rows)
    assert (FOLDER / f"{name}.md").read_text() == tables.markdown(recipe, rows, found)
    assert any(line.seeds for line in found)


def test_every_row_is_shown_on_some_page() -> None:
    shown = {cell.group for name in PAGES for cell in load(name).cells}
    assert {path.parts[-3] for path in (FOLDER / "rows").glob("*/*/rows*.jsonl")} <= shown
