"""Work in a process of its own that is killed at a random moment."""

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable

Work = Callable[[], object]


def begun(work: Work) -> int:
    """Starts the work in a copy of this process; gives its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads, none of which the copy needs
        number = os.fork()
    if number == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - nothing may come back into the tests from here
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    return number


def ended(number: int) -> None:
    """Waits for the end of the work, which must be a good one."""
    _, status = os.waitpid(number, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def seconds_of(work: Work) -> float:
    """How long the work takes when it is left alone."""
    start = time.monotonic()
    ended(begun(work))
    return time.monotonic() - start


def killed(work: Work, after: float) -> bool:
    """Starts the work and kills it so many seconds later; whether it was still running then."""
    number = begun(work)
    time.sleep(after)
    found, status = os.waitpid(number, os.WNOHANG)
    if found:
        assert os.waitstatus_to_exitcode(status) == 0
        return False
    os.kill(number, signal.SIGKILL)
    _, status = os.waitpid(number, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL
