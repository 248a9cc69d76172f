"""One file from a publisher's address, by HTTP or HTTPS: the only place in kdtool where the network is used.

What comes in is a claim: its size is limited, and it lies in a partial file until somebody has verified it. What broke
off is gone on with where the server can give the rest. Left out: checksums, which the caller compares; whether the
file changed at the publisher between two tries, which they tell; and mirrors.
"""

import fcntl
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from kdtool import __version__, files
from kdtool.errors import DamageError, ResourceError, Stopped
from kdtool.progress import Progress

TIMEOUT_SECONDS = 60.0  # without a single byte
PIECE = 2**20
MEGA = 10**6


class Megabytes:
    """Tells progress in whole megabytes of what is counted in bytes."""

    def __init__(self, progress: Progress, task: str, total: int, done: int = 0) -> None:
        self.progress, self.bytes = progress, done
        progress.begin(f"{task}, MB", -(-total // MEGA), done // MEGA)

    def __call__(self, count: int) -> None:
        """So many more bytes are done."""
        before, self.bytes = self.bytes, self.bytes + count
        if steps := self.bytes // MEGA - before // MEGA:
            self.progress.advance(steps)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to HTTPS, or from HTTP to HTTP."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise urllib.error.HTTPError(newurl, code, f"leads to {newurl}, which is refused", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def download(address: str, partial: Path, limit_bytes: int, progress: Progress) -> None:
    """Writes the file at `address` to `partial`, durably; goes on with what is there of it.

    Raises ResourceError where the network, the server or the disk fails, and Stopped for Ctrl-C, and leaves what came
    for the next try; DamageError where more than `limit_bytes` come, and then leaves nothing.
    """
    if partial.is_symlink():
        partial.unlink()
    held = partial.stat().st_size if partial.exists() else 0
    try:
        with _answer(address, partial, max(held - 1, 0)) as answer, files.explained(partial):
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab") as file:
                _hold(file, partial, held)
                _receive(answer, address, file, partial, limit_bytes, progress)
                file.flush()
                os.fsync(file.fileno())
    except DamageError:
        partial.unlink()
        raise
    except KeyboardInterrupt:
        raise Stopped(f"stopped while downloading {address}; run the same command again: it goes on there") from None


def _answer(address: str, partial: Path, start: int) -> Any:
    """The open answer to a request for the bytes from `start`.

    That is the last byte that is held already, as servers refuse to give none of a file that is whole.
    """
    opener = urllib.request.OpenerDirector()  # the usual one opens files and FTP too
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    headers = {"User-Agent": f"kdtool/{__version__}", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        return opener.open(urllib.request.Request(address, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # it has fewer bytes than are held
            return _answer(address, partial, 0)
        raise _failed(address, partial, f"the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise _failed(address, partial, getattr(error, "reason", error)) from error


def _hold(file: IO[bytes], partial: Path, held: int) -> None:
    """Keeps other processes from writing the same file, until it is closed."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = os.fstat(file.fileno()).st_size == held
    except BlockingIOError:
        alone = False
    if not alone:
        raise ResourceError(f"another process is downloading {partial}; wait until it has ended")


def _receive(answer: Any, address: str, file: IO[bytes], partial: Path, limit: int, progress: Progress) -> None:
    """Writes what an answer holds behind, or in place of, what is held."""
    received, total = _extent(answer, address, partial)
    larger = DamageError(f"{address} is larger than the {limit:,} bytes that this file has at most; it was not kept")
    if (total or 0) > limit:
        raise larger
    file.truncate(received)
    if (total or 0) - received > shutil.disk_usage(partial.parent).free:
        raise ResourceError(f"{partial.parent} has no room for {total:,} bytes of {address}; free some space")
    tell = Megabytes(progress, partial.name.removesuffix(files.PARTIAL), total or limit, received)
    for piece in _pieces(answer, address, partial):
        received += len(piece)
        if received > limit:
            raise larger
        file.write(piece)
        tell(len(piece))
    if total is not None and received != total:
        raise _failed(address, partial, f"the connection ended after {received:,} of {total:,} bytes")


def _extent(answer: Any, address: str, partial: Path) -> tuple[int, int | None]:
    """Where the bytes of an answer start, and how many the whole file has, where the server says so."""
    if answer.status != 206:
        return 0, answer.length
    held = partial.stat().st_size
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", answer.headers.get("Content-Range", ""))
    if not found or int(found[1]) > held:
        raise _failed(address, partial, "the server gives another part than the one that was asked for")
    return int(found[1]), int(found[2])


def _pieces(answer: Any, address: str, partial: Path) -> Iterator[bytes]:
    """What comes, as it comes."""
    try:
        while piece := answer.read1(PIECE):
            yield piece
    except (OSError, HTTPException, ValueError) as error:
        raise _failed(address, partial, error) from error


def _failed(address: str, partial: Path, why: object) -> ResourceError:
    """The error for a network that does not give the file."""
    name, folder = partial.name.removesuffix(files.PARTIAL), partial.parent
    return ResourceError(
        f"cannot download {address}: {str(why)[:200]}; run the same command again (it goes on where it stopped), or "
        f"get {name} elsewhere, put it into {folder} and run it again"
    )
