"""The `kdtool` command: one place where errors and signals become one line and an exit code.

The commands themselves are imported when one is run (kdtool.cli.commands), so that Ctrl-C while they are is no error.
"""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

from kdtool.errors import KdtoolError, UsageError, printable
from kdtool.imports import FILES
from kdtool.progress import Terminated

COMPLETE = "_KDTOOL_COMPLETE"  # set by a shell that asks what it may propose; its value names the shell

# Commands that go on where they stopped; the others start anew and leave nothing that is half-written.
GOES_ON = ("teach", "extract", "distill", "quickstart", "cache repair", "data fetch", "analyze probe", "reproduce run")


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; gives its exit code. `--debug` may stand anywhere."""
    words = [word for word in arguments if word != "--debug"]
    FILES.clear()  # of the command before, in tests
    try:
        from kdtool.cli.commands import app
        from kdtool.cli.complete import whole_words

        with whole_words():
            code = app(words, prog_name="kdtool", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:  # the reader of a pipe has left, as in `kdtool models | head -1`
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            return _exited(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the one place that may see anything
        return _fail(error, words, debug=len(words) < len(arguments))
    except KeyboardInterrupt:
        code = 130
    except Terminated:
        return _say(_stopped("terminated", words), 143)
    if code == 130:
        return _say(_stopped("interrupted", words), 130)
    return code if isinstance(code, int) else 0


def _exited(error: SystemExit) -> int:
    """The exit code of a command that something has ended by itself: a shell's completion, or code of the user's."""
    if FILES:
        named = " or ".join(sorted(FILES))
        return _say(f"{named} ended the command by sys.exit({error.code!r}); raise an error there", 2)
    return error.code if isinstance(error.code, int) else 0


def _stopped(how: str, words: Sequence[str]) -> str:
    """What a command says that a signal has ended outside of its safe points."""
    there = any(" ".join(words[: name.count(" ") + 1]) == name for name in GOES_ON)
    return f"{how}; run the same command again: it {'goes on from what was saved' if there else 'starts anew'}"


def _fail(error: Exception, words: Sequence[str], debug: bool) -> int:
    """Says in one line what went wrong; gives the exit code that belongs to it."""
    message = error.format_message() if hasattr(error, "format_message") else ""  # typer's own errors have one
    if "\n" in message:  # the help of a command that was named without a subcommand
        sys.stderr.write(f"{message}\n")
        return 2
    if debug:
        traceback.print_exception(error)
    abort = type(error).__name__ == "Abort"
    said = (_stopped("interrupted", words), 130) if abort else _explained(error, message, words)
    return said[1] if _said_by_rank_0(error) else _say(*said)


def _said_by_rank_0(error: Exception) -> bool:
    """Whether another process of the same torchrun says the same: until they join, all read the same command line."""
    if isinstance(error, KdtoolError):
        same = isinstance(error, UsageError) if error.apart is None else not error.apart
    else:
        same = hasattr(error, "format_message")
    return same and os.environ.get("RANK", "0") != "0"


def _explained(error: Exception, message: str, words: Sequence[str]) -> tuple[str, int]:
    if isinstance(error, KdtoolError):
        return str(error), error.exit_code
    if message:  # a wrong option, value or command
        return f"{message.rstrip('.')} (see --help)", 2
    torchs = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    if isinstance(error, MemoryError) or torchs:
        return f"not enough memory: {error}; {_smaller(words)}", 5
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left; free some space and run the same command again: it goes on where it stopped", 5
    if isinstance(error, OSError):
        name = f": {error.filename}" if error.filename else ""
        mistyped = isinstance(error, _NAMES) or error.errno == errno.ENAMETOOLONG
        return f"{error.strerror or error}{name}", 2 if mistyped else 5
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in FILES:
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}: {type(error).__name__}: {error}", 2
    if FILES:
        advice = "check your method as docs/own-method.md shows, your network with `kdtool models`, or see --debug"
        return f"{type(error).__name__}: {error}; {advice}", 1
    return f"a bug in kdtool: {type(error).__name__}: {error}; `kdtool --debug ...` shows where", 1


def _smaller(words: Sequence[str]) -> str:
    """What a command can do with less memory."""
    if words[:1] in (["teach"], ["distill"]) or words[:2] == ["analyze", "probe"]:
        return "take a smaller --batch, or --device cpu"
    if words[:1] == ["extract"]:
        return "take a smaller --batch, or --device cpu; a cache that holds something has its own: name another --cache"
    return "free some, or run it on a machine with more"


_NAMES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


def _say(message: str, code: int) -> int:
    lines = "; ".join(line.strip() for line in message.splitlines() if line.strip())
    sys.stderr.write(f"kdtool: {printable(lines.replace(':; ', ': '))}\n")
    return code


def _terminated(number: int, frame: object) -> None:
    raise Terminated


def _again(lost: "sys.UnraisableHookArgs") -> None:
    """Sends a signal again that came where Python has to ignore exceptions, as in the callback of a weak reference."""
    if lost.exc_type not in (KeyboardInterrupt, Terminated):
        sys.__unraisablehook__(lost)
        return
    number = signal.SIGINT if lost.exc_type is KeyboardInterrupt else signal.SIGTERM
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.unraisablehook = _again
    code = run(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what has ended keeps its exit code
    exec("", {})  # or Python would kill itself for a KeyboardInterrupt that came in another exec, though it was caught
    sys.exit(code)
