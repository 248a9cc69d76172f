"""Every failure that a user can meet, each with the exit code that the command line gives for it.

    KdtoolError        1   a bug of ours; never raised on purpose
    ├── UsageError     2   an option, a configuration, a name or a path that is not right
    ├── DamageError    3   data that are there, but damaged or incomplete
    ├── IdentityError  4   a cache, teacher, data set or split other than the one that was asked for
    ├── ResourceError  5   disk full, lock held, no such device
    │   └── HeldError        a lock that another process holds
    ├── NonFiniteError 6   a loss that became infinite or NaN
    └── Stopped      130   interrupted (SIGINT) or, with 143, terminated (SIGTERM) after a safe point

A message says what was found, what was expected, and the command or option that repairs it.
"""

import difflib
from collections.abc import Iterable


class KdtoolError(Exception):
    """Base of all errors that are meant for the user's eyes.

    apart: of several processes, whether this one may have come upon it alone; None where they had not joined yet.
    """

    exit_code = 1
    apart: bool | None = None


class UsageError(KdtoolError):
    """An option, a configuration, a name or a path that is not right."""

    exit_code = 2


class DamageError(KdtoolError):
    """Data that are present but damaged, incomplete or failing verification."""

    exit_code = 3


class IdentityError(KdtoolError):
    """A cache, teacher, data set or split that is not the one that was asked for."""

    exit_code = 4


class ResourceError(KdtoolError):
    """A resource that is missing: disk space, a lock, a device."""

    exit_code = 5


class HeldError(ResourceError):
    """What another process is working on, so that it may be tried again later."""


class NonFiniteError(KdtoolError):
    """A loss, or what a network answers, that became infinite or NaN."""

    exit_code = 6


class Stopped(KdtoolError):  # noqa: N818 - it is an outcome, not an error
    """A stage that was asked to stop and reached a safe point; 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def printable(text: str) -> str:
    """A text that may hold a name from a hostile file: what a terminal would obey is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unknown(kind: str, name: str, known: Iterable[str], otherwise: str = "") -> UsageError:
    """The error for a name that is not in a list: offers the nearest right name, and the list where it is short.

    otherwise: is added where no name is near.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else ""
    if len(names) <= 16 or not near:
        hint = f"{hint} known: {', '.join(names)}".strip()
    if otherwise and not near:
        hint = f"{hint}; {otherwise}"
    return UsageError(f"unknown {kind} {name!r}; {hint}")
