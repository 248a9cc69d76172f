"""A page of the documentation, followed from top to bottom: what every kind of fenced block means, and how it is run.

    sh       commands that succeed
    console  commands behind "$ " with what they say, both streams together; "..." stands for anything, `$ echo $?`
             tells the exit code, which is 0 or 2 where nobody asks; a line "^C" is an interrupt
    python   a file where the line above ends with its name and a colon, else code that runs
    toml     a file, named in the same way
    text     what the block above it printed, "..." for anything

Files are made and commands run in the current folder. Left out: what a page needs there before its first block.
"""

import contextlib
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtool.cli.main import run

LANGUAGES = ("sh", "console", "python", "toml", "text")
NAMED = re.compile(r"(?:`|\[[\w/]*?)(\w+\.(?:py|toml))(?:`|\]\([^)]*\)):$")
MAKEFILE = Path(__file__).parents[2] / "Makefile"
RANKS = re.compile(r"torchrun --nproc-per-node \d+ -m -- kdtool ")

Words = Callable[[list[str]], list[str]]  # changes the words of a command, as to a smaller size


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the name of the file that it is or "", and its first line's number."""

    page: Path
    language: str
    text: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.page.name}, line {self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    begun, above = -1, ""
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            above = line if begun < 0 and line.strip() else above
        elif begun < 0:
            begun = number
        else:
            named = NAMED.search(above)
            text = "".join(f"{inside}\n" for inside in lines[begun + 1 : number])
            found.append(Block(page, lines[begun][3:].strip(), text, named[1] if named else "", begun + 2))
            begun, above = -1, ""
    assert begun < 0, f"{page.name}: the block in line {begun + 1} has no end"
    return found


@dataclass
class Reader:
    """Who follows a page. words: how commands are made small. printed: by the block before; names: of the last code."""

    words: Words = list
    printed: str = ""
    names: dict[str, Any] | None = None

    def follow(self, page: Path) -> None:
        """Does all that a page says."""
        for block in blocks(page):
            self.do(block)

    def do(self, block: Block) -> None:
        """Does what one block says."""
        assert block.language in LANGUAGES, f"{block}: a block of {block.language or 'no language'}"
        if block.language == "text":
            assert fits(block.text, self.printed), f"{block}: printed was\n{self.printed}"
        elif block.file:
            Path(block.file).write_text(block.text)
        else:
            assert block.language != "toml", f"{block}: the line above does not name its file"
            {"sh": self._commands, "console": self._dialogue, "python": self._code}[block.language](block)

    def _commands(self, block: Block) -> None:
        said = ""
        for line in block.text.replace("\\\n", " ").splitlines():
            code, printed = self.typed(line, str(block))
            assert code == 0, f"{block}: {line} ends with {code}: {printed}"
            said += printed
        self.printed = said

    def _dialogue(self, block: Block) -> None:
        code, stated = 0, True
        for line, told in dialogue(block):
            if line == "echo $?":
                assert told.strip() == str(code), f"{block}: the exit code is {code}"
                stated = True
                continue
            assert stated, f"{block}: the command above `{line}` ends with {code}"
            interrupt = "^C\n" in told
            code, printed = self.typed(line, str(block), interrupt)
            assert fits(told.replace("^C\n", ""), printed), f"{block}: {line} says\n{printed}"
            stated = code in (0, 2)
        assert stated, f"{block}: the last command ends with {code}"

    def _code(self, block: Block) -> None:
        self.names = {"__name__": "__main__"}
        with said() as printed:
            exec(compile(block.text, str(block), "exec"), self.names)
        self.printed = printed.getvalue()

    def typed(self, line: str, where: str, interrupt: bool = False) -> tuple[int, str]:
        """(exit code, what it says) of a command.

        Several processes of a torchrun are left to tests/cli, and targets of make, which must be there, to its users.
        """
        words = shlex.split(RANKS.sub("kdtool ", line))
        if words[0] == "make":
            assert f"\n{words[1]}:" in MAKEFILE.read_text(), f"{where}: there is no {line}"
            return 0, ""
        assert words[0] == "kdtool", f"{where}: nothing runs {words[0]}"
        with said() as printed, interrupted(printed) if interrupt else contextlib.nullcontext():
            code = run(self.words(words)[1:])
        return code, printed.getvalue()


def dialogue(block: Block) -> Iterator[tuple[str, str]]:
    """(command, what it says) of a block of console."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not parts[0], f"{block} begins without a command"
    for part in parts[1:]:
        line, _, told = part.partition("\n")
        yield line, told


def fits(told: str, printed: str) -> bool:
    """Whether a page tells what was printed; spaces at the ends of lines do not count."""
    shown, found = ("".join(f"{line.rstrip()}\n" for line in text.splitlines()) for text in (told, printed))
    pattern = re.escape(shown).replace(r"\.\.\.\n", "(?:.*\n)?").replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, found, flags=re.DOTALL) is not None


@contextlib.contextmanager
def said() -> Iterator[io.StringIO]:
    """What is written to both streams while the block runs."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed


@contextlib.contextmanager
def interrupted(printed: io.StringIO) -> Iterator[None]:
    """Interrupts the block once it has told of an epoch."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            if "epoch 1/" in printed.getvalue():
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def forget(folder: Path) -> None:
    """Forgets the modules that were imported from below a folder."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
