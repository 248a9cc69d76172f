"""How a long stage tells what it is doing, and how it is asked to stop. The library prints nothing itself."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from kdtool.errors import Stopped


class Progress(Protocol):
    """What a stage reports to; the command line shows it, `Silent` swallows it."""

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """A task of `total` steps starts, `done` of them already there."""

    def advance(self, steps: int) -> None:
        """So many more steps are done."""

    def note(self, text: str) -> None:
        """One line that stays visible."""


def counted(number: int, what: str) -> str:
    """A number of things in words: 1 run, 2 runs."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Silent:
    """Reports nothing."""

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def advance(self, steps: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class Terminated(BaseException):
    """SIGTERM outside of what stops at a safe point; like KeyboardInterrupt, for SIGINT, it is no error."""


class StopRequest:
    """Set by SIGINT or SIGTERM; stages look at it at their safe points, and until then work on."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.since: float | None = None  # when it came, by time.monotonic()
        self.deferred = 0

    def requested(self) -> bool:
        """Whether a signal has come. Asked once at every safe point, before the state is saved."""
        return self.signal is not None

    def stopped(self, where: str) -> Stopped:
        """What a stage raises when it stops."""
        code = 130 if self.signal == signal.SIGINT else 143
        return Stopped(f"stopped {where}; run the same command again: it goes on from there", code)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """A block with safe points: a signal is a request there, and elsewhere acts at once, as nothing is lost."""
        self.deferred += 1
        try:
            yield
        finally:
            self.deferred -= 1


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request where a stage defers it; a second one acts at once.

    Signals can be caught in the main thread only; elsewhere the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        signal.signal(number, previous[number])
        if request.deferred:
            request.signal, request.since = number, time.monotonic()
        else:
            signal.raise_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.getsignal(number)
        signal.signal(number, note)
    try:
        yield request
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)
