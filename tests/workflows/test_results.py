"""The pages of docs/results that recipes made say what the rows beside them say, and nothing else."""

from pathlib import Path

import pytest

from kdtool.workflows.reproduce import tables
from kdtool.workflows.reproduce.recipe import load, names
from kdtool.workflows.reproduce.rows import Results
from kdtool.workflows.reproduce.tasks import by_teacher, counted

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
    command = f"kdtool reproduce table {name} --results docs/results/rows --markdown docs/results/{name}.md"
    assert (FOLDER / f"{name}.md").read_text() == tables.markdown(recipe, rows, found, command)
    assert any(line.seeds for line in found)


def test_every_row_is_shown_on_some_page() -> None:
    groups = {path.parts[-3] for path in (FOLDER / "rows").glob("*/*/rows*.jsonl")}
    kept = {group: Results(FOLDER / "rows").rows(group) for group in groups}
    shown: set[str] = set()
    for recipe in map(load, PAGES):
        for group in groups & {cell.group for cell in recipe.cells}:
            own = [cell for cell in recipe.cells if cell.group == group]
            for rows in by_teacher(kept[group]).values():
                shown |= counted(recipe, own, 1 + max(row["seed"] for row in rows), rows)[0].keys()
    every = [row for rows in kept.values() for row in rows]
    assert every
    assert [(row["group"], row["config"], row["seed"]) for row in every if row["key"] not in shown] == []


def test_students_beside_the_living_teacher_are_those_of_the_cache() -> None:
    """To the bit, where both were trained: on digits and on CIFAR-100."""
    pairs = {}
    for recipe in (load("digits-views"), load("cifar100-live")):
        for group in {cell.group for cell in recipe.cells}:
            rows = [row for row in Results(FOLDER / "rows").rows(group) if row["config"]]
            for live in (row for row in rows if row["live"]):
                asked = {**live["config"], "views": None}, live["views"], live["seed"]
                for row in rows:
                    if not row["live"] and ({**row["config"], "views": None}, row["views"], row["seed"]) == asked:
                        pairs[row["key"]] = (row["weights_sha256"], live["weights_sha256"])
    assert len(pairs) == 22
    assert [pair for pair in pairs.values() if pair[0] != pair[1]] == []
