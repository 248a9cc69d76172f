"""Methods of one's own with the bugs that they have at first: each is told in a line that leads to it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Typed = Callable[..., Any]

METHOD = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from kdtool.methods.protocol import Method
from kdtool.methods.vectors import vector
from kdtool.targets import Stage, Weight

@dataclass(frozen=True)
class Mine(Method):
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "none"

    def student_taps(self, student, teacher):
        return ("before_fc",)

    def targets(self, student, teacher):
        return (vector("before_fc"),)

    def stages(self, student, teacher, facts):
        return (Stage(weights={WEIGHTS}, task=TASK),)

    def terms(self, taps, cached, batch, adapters):
        ours, theirs = taps["before_fc"], cached["before_fc"]["values"]
        TERMS
"""
RIGHT = {
    "WEIGHTS": "'mine': Weight(1.0)",
    "TASK": "1.0",
    "TERMS": "return {'mine': (ours - theirs).square().mean()}",
}

BUGS: dict[str, tuple[dict[str, str], int, tuple[str, ...]]] = {
    "a weight for another term": (
        {"WEIGHTS": "'mien': Weight(1.0)"},
        2,
        ("stage distill of method mine has a weight for mien", "its terms are mine"),
    ),
    "no gradient": (
        {"TERMS": "return {'mine': (ours.detach() - theirs).square().mean()}"},
        2,
        ("the term mine of method mine has no gradient",),
    ),
    "a loss for each sample": (
        {"TERMS": "return {'mine': (ours - theirs).square().mean(1)}"},
        2,
        ("the term mine of method mine is of shape (16,)", "one number"),
    ),
    "a number": ({"TERMS": "return {'mine': 3.0}"}, 2, ("the term mine of method mine is float",)),
    "an exception": (
        {"TERMS": "raise RuntimeError('not yet')"},
        2,
        ("mine.py, line ", "in terms: RuntimeError: not yet"),
    ),
    "a tap that is not asked for": (
        {"TERMS": "return {'mine': taps['stage1'].mean()}"},
        2,
        ("in terms: KeyError: 'stage1'",),
    ),
    "other shapes": (
        {"TERMS": "return {'mine': (ours @ theirs).mean()}"},
        2,
        ("in terms: RuntimeError: ", "mat1 and mat2 shapes cannot be multiplied"),
    ),
    "nothing to train": (
        {"WEIGHTS": "'mine': Weight(0.0)", "TASK": "0.0"},
        2,
        ("stage distill trains nothing",),
    ),
    "no terms": ({"TERMS": "return None"}, 1, ("AttributeError", "check your method", "own-method.md")),
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Writes the method into the current folder, changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(change: dict[str, str]) -> None:
        text = METHOD
        for place, value in {**RIGHT, **change}.items():
            text = text.replace(place, value)
        (tmp_path / "mine.py").write_text(text)

    yield write
    sys.modules.pop("mine", None)


LINE = "distill --method mine:Mine --epochs 1 --batch 16 --precision float32 --quiet --folder"


def test_the_method_works(mine: Callable[[dict[str, str]], None], work: Path, typed: Typed) -> None:
    mine({})
    assert typed(LINE, work).code == 0


@pytest.mark.parametrize("name", BUGS)
def test_a_bug(name: str, mine: Callable[[dict[str, str]], None], work: Path, refused: Typed) -> None:
    change, code, texts = BUGS[name]
    mine(change)
    refused(code, texts, LINE, work)


@pytest.mark.parametrize("exit_code", ["", "0", "2"])
def test_a_method_that_ends_the_program(
    exit_code: str, mine: Callable[[dict[str, str]], None], work: Path, refused: Typed
) -> None:
    """As argparse does, which a repository's code may call."""
    mine({"TERMS": f"import sys; sys.exit({exit_code})"})
    refused(2, ("mine.py ended the command by sys.exit(",), LINE, work)


def test_a_module_that_ends_the_program(mine: Callable[[dict[str, str]], None], work: Path, refused: Typed) -> None:
    mine({"from dataclasses": "import sys; sys.exit(0)\nfrom dataclasses"})
    refused(2, ("mine cannot be imported", "SystemExit"), LINE, work)
