"""Help: every command says in a line what it is for, gives an example that parses, and tells of every option."""

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from kdtool.cli.commands import ORDER, app

Typed = Callable[..., Any]

LIST_WIDTH = 80 - 2 - len("quickstart") - 2  # of a summary in the list of commands


def walk(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*words, name))


COMMANDS = dict(walk(typer.main.get_command(app)))


def named(words: tuple[str, ...]) -> str:
    return " ".join(words) or "kdtool"


def examples(command: Any) -> list[str]:
    """The lines of the paragraphs that begin with Example, joined."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n"))
    return [paragraph.removeprefix("Example: ") for paragraph in paragraphs if paragraph.startswith("Example: ")]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words], ids=named)
def test_the_summary_fits_the_list(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    summary = (command.help or "").split("\n\n")[0].strip()
    assert summary
    assert "\n" not in summary
    assert summary.endswith(".")
    assert len(summary) <= LIST_WIDTH
    assert command.get_short_help_str(LIST_WIDTH).rstrip(".") == summary.rstrip(".")


@pytest.mark.parametrize("words", COMMANDS, ids=named)
def test_the_example_parses(words: tuple[str, ...]) -> None:
    found = examples(COMMANDS[words])
    assert found
    for line in found:
        typed = shlex.split(line)
        assert typed[: len(words) + 1] == ["kdtool", *words]
        command, rest, context = COMMANDS[()], typed[1:], None
        while hasattr(command, "commands"):
            context = command.make_context(command.name or "kdtool", [rest[0]], parent=context)
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(command.name, rest, parent=context)  # raises for what is unknown, missing or no number


@pytest.mark.parametrize("words", COMMANDS, ids=named)
def test_every_option_and_argument_is_told_of(words: tuple[str, ...], typed: Typed) -> None:
    for parameter in COMMANDS[words].params:
        assert parameter.help, parameter.name
        if not getattr(parameter, "is_flag", False):
            assert parameter.metavar, parameter.name
    shown = typed(" ".join((*words, "--help"))).out
    for type_ in ("<str>", "<int>", "<path>", "<float>", "<list"):
        assert type_ not in shown


def test_commands_are_listed_in_the_order_in_which_they_are_needed(typed: Typed) -> None:
    listed = [line.split()[0] for line in typed("--help").out.partition("Commands:")[2].splitlines() if line]
    assert listed == [name for name in ORDER if name in listed]
    assert listed[:4] == ["teach", "extract", "distill", "analyze"]
