"""A user's own method is found by module and class; whatever is wrong with it is told in a line."""

import sys
from pathlib import Path

import pytest

from kdtool.errors import UsageError
from kdtool.methods import METHODS, method, reference
from kdtool.methods.kd import KD

HEAD = """
from dataclasses import dataclass
from typing import ClassVar
from kdtool.methods.kd import KD
from kdtool.methods.protocol import Method
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def write(text: str, path: str = "mine.py") -> None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(HEAD + text)

    yield write
    for name in set(sys.modules) - known:
        if name.startswith("mine") or name == "folder":
            del sys.modules[name]


SOUND = """
@dataclass(frozen=True)
class Mine(KD):
    name: ClassVar[str] = "mine"
"""


def test_a_class_of_the_current_folder(write) -> None:
    write(SOUND)
    found = method("mine:Mine")
    assert isinstance(found, KD)
    assert found.name == "mine"
    assert reference(found.with_options({"temperature": "2"})) == "mine:Mine"
    assert method(reference(found)) == found


def test_a_class_in_a_folder(write) -> None:
    write(SOUND, "folder/mine2.py")
    assert reference(method("folder.mine2:Mine")) == "folder.mine2:Mine"


def test_those_of_the_table_are_found_by_their_names() -> None:
    assert all(reference(method(name)) == name for name in METHODS)
    assert reference(method("kdtool.methods.kd:KD")) == "kd"


@pytest.mark.parametrize(
    ("text", "asked", "message"),
    [
        (SOUND, "other:Mine", "there is no module other in .*path.to:MyMethod names the class MyMethod of path/to.py"),
        (SOUND, "mine.deeper:Mine", "there is no module mine.deeper"),
        (SOUND, "mine:Main", "unknown method in mine 'Main'; did you mean 'Mine'"),
        (SOUND, "mine:HEAD", "unknown method in mine"),
        (SOUND, "mine:dataclass", "is no class that extends"),
        ("class Mine(KD):\n    name = 'mine'\n", "mine:Mine", None),
        ("class Mine(Method):\n    pass\n", "mine:Mine", "does not define student_taps, targets, terms"),
        (SOUND.replace("mine", "Mine"), "mine:Mine", "is not made of small letters"),
        (SOUND.replace("mine", "kda"), "mine:Mine", "kdtool has a method 'kda' of its own"),
        ("import no_such_library\n", "mine:Mine", "mine imports no_such_library, which is not installed"),
        ("1 / 0\n", "mine:Mine", "mine cannot be imported: ZeroDivisionError"),
        ("def\n", "mine:Mine", "mine cannot be imported: SyntaxError"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(text: str, asked: str, message: str | None, write) -> None:
    write(text)
    if message is None:  # a plain subclass of a frozen dataclass is one itself
        assert method(asked).name == "mine"
        return
    with pytest.raises(UsageError, match=message) as error:
        method(asked)
    assert "\n" not in str(error.value)


def test_a_class_that_can_be_written_to_is_refused(write) -> None:
    write("@dataclass\nclass Mine:\n    name: ClassVar[str] = 'mine'\n")
    with pytest.raises(UsageError, match="is no class that extends"):
        method("mine:Mine")
