"""Tables fit the terminal, never break a number, and what stands beside something stays beside it."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtool.cli import console

NAME = st.from_regex(r"[a-z]{1,8}([-._/ ]?[a-z]{1,9}){0,7}", fullmatch=True)
NUMBER = st.floats(1e-9, 1e9).map(lambda value: f"{value:.4g}")


def drawn(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> list[str]:
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as found:
        patch.setenv("COLUMNS", str(width))
        console.print_table("", columns, rows)
    return found.getvalue().splitlines()


@settings(max_examples=100, deadline=None)
@given(
    cells=st.lists(st.tuples(NAME, NUMBER, NUMBER, NUMBER, NAME), min_size=1, max_size=5), width=st.integers(60, 130)
)
def test_a_table_fits_and_what_belongs_together_stands_in_one_line(
    cells: list[tuple[str, str, str, str, str]], width: int
) -> None:
    rows = [
        (name, f"upper{row}\nlower{row}", f"{first}\n{second}", third, remark)
        for row, (name, first, second, third, remark) in enumerate(cells)
    ]
    lines = drawn(("run", "which side", "smallest of all", "gap", "remark"), rows, width)
    assert max(map(len, lines)) <= width
    for row, (_, first, second, third, _) in enumerate(cells):
        (upper,) = (line.split() for line in lines if f"upper{row}" in line)
        (lower,) = (line.split() for line in lines if f"lower{row}" in line)
        place = upper.index(f"upper{row}")
        assert upper[place + 1 : place + 3] == [first, third]
        assert lower[lower.index(f"lower{row}") + 1] == second


@settings(max_examples=300, deadline=None)
@given(NAME, st.integers(1, 40))
def test_a_name_is_folded_behind_its_parts(name: str, width: int) -> None:
    lines = console._folded(name, width).split("\n")
    assert max(map(len, lines)) <= width
    assert "".join(lines).replace(" ", "") == name.replace(" ", "")
    if len(name) <= width:
        assert lines == [name]


def test_where_it_breaks() -> None:
    assert console._folded("resnet8-kda-before_fc-seed0", 14).split("\n") == ["resnet8-kda-", "before_fc-", "seed0"]
    assert console._folded("kda --layer before_fc --set kda.weight=0.1", 20).split("\n") == [
        "kda --layer",
        "before_fc --set",
        "kda.weight=0.1",
    ]
    lines = drawn(("run", "test %", "KL"), [("resnet8-kda-before_fc-seed0", "98.33", "-")], 30)
    assert [line.rstrip() for line in lines] == [
        "                      test",
        "run                      %  KL",
        "─" * 30,
        "resnet8-kda-         98.33   -",
        "before_fc-seed0",
    ]


def test_heads_are_folded_before_names() -> None:
    lines = drawn(("run", "cross-entropy of all", "n"), [("a" * 20, "0.1", 3)], 42)
    assert any(line.startswith("a" * 20) for line in lines)


def test_a_name_commands_no_terminal_and_is_always_written() -> None:
    (line,) = (line for line in drawn(("run", "n"), [("a\x1b[2Jb\udce4", 1)], 80) if "a" in line)
    assert line.split() == ["a\\x1b[2Jb\\udce4", "1"]


def test_numbers_are_never_broken_however_narrow_it_is() -> None:
    lines = drawn(("what", "value", "goal"), [("seconds per image", "1.234e-05", "5.678e-05")], 20)
    assert any("1.234e-05  5.678e-05" in line for line in lines)
    assert drawn(("a", "b"), [], 80)[0].split() == ["a", "b"]
