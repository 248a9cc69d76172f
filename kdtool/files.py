"""Files that are whole or absent: durable atomic writes, digests, locks, checksummed JSON.

Every write of kdtool that must survive a crash goes through `write` or `append`, so that one place can be tested by
injecting faults. A reader sees the old content or the new one, never a part.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kdtool.errors import DamageError, HeldError, ResourceError

PARTIAL = ".partial"  # ending of a file that is being written; a leftover belongs to a writer that was killed


def write(path: Path, content: bytes | memoryview) -> None:
    """Replaces `path` by `content` atomically and durably: written beside it, fsync, rename, fsync of the folder."""
    partial = path.with_name(path.name + PARTIAL)
    with explained(path):
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)


def append(path: Path, line: str) -> None:
    """Appends one line durably. A crash can leave a torn last line; the reader tells by the line's own checksum."""
    new = not path.exists()
    with explained(path):
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the errors of a full or read-only disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no space left while writing {path}; free some space and run the same command again: it goes on "
                "where it stopped"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ResourceError(f"cannot write {path}: {os.strerror(error.errno)}; name another folder") from error
        raise


def check_folder(folder: Path) -> None:
    """Raises the OSError that making a folder, and writing into it, would meet; makes nothing."""
    place = _existing(folder)
    if not place.is_dir():
        number = errno.EEXIST if place == folder else errno.ENOTDIR
        raise OSError(number, os.strerror(number), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def free_bytes(path: Path) -> int:
    """What is free on the disk that a path is or will be on."""
    return shutil.disk_usage(_existing(path.absolute())).free


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def sweep(folder: Path) -> None:
    """Removes what killed writers left half-written below `folder`."""
    for partial in sorted(folder.rglob(f"*{PARTIAL}")):
        partial.unlink()


@contextlib.contextmanager
def lock(path: Path, purpose: str, patience: float = 0.0) -> Iterator[None]:
    """Holds an exclusive lock on `path` while the block runs.

    Where another process holds it, waits for so many seconds, and then refuses.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise DamageError(f"{path} is a link, which would lead a writer elsewhere; remove it")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
            os.close(handle)
            raise HeldError(
                f"another process is {purpose} {path.parent} (it holds {path.name}); wait until it has ended"
            ) from error
        except OSError as error:
            os.close(handle)
            raise ResourceError(
                f"the file system of {path.parent} gives no locks ({error.strerror}), without which two processes "
                "could write there at once; take a folder on another one"
            ) from error
    try:
        yield
    finally:
        os.close(handle)


def sha256(content: bytes | memoryview) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal plain values give equal text in every process."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a plain value."""
    return sha256(canonical(value).encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with its own checksum (`"checksum"`, over all other fields), for people to read."""
    write(path, checked_json(value))


def checked_json(value: dict[str, Any]) -> bytes:
    """The bytes that `write_json` writes."""
    body = {key: value[key] for key in value if key != "checksum"}
    text = json.dumps({**body, "checksum": digest(body)}, indent=1, sort_keys=True, allow_nan=False)
    return text.encode() + b"\n"


def read_json(path: Path, repair: str, fields: Mapping[str, type] = MappingProxyType({})) -> dict[str, Any]:
    """Reads what `write_json` wrote; DamageError, naming `repair`, where the checksum does not fit or `fields` do not.

    fields: name -> type of what must be there at least; a checksum tells of accidents, not of who wrote it.
    """
    try:
        value = json.loads(path.read_bytes())
        body = {key: value[key] for key in value if key != "checksum"}
        intact = value.get("checksum") == digest(body)
    except (ValueError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise DamageError(f"{path} is damaged (its checksum does not fit its content); {repair}")
    check_fields(body, fields, str(path), repair)
    return body


def check_fields(value: Any, fields: Mapping[str, Any], what: str, repair: str) -> None:
    """Refuses plain values that lack a field or have one of another type; `fields`: name -> type, or fields in turn."""
    for name, kind in fields.items():
        if isinstance(kind, Mapping):
            check_fields(value.get(name) if isinstance(value, dict) else None, kind, f"{name} of {what}", repair)
        elif not isinstance(value, dict) or type(value.get(name)) is not kind:
            raise DamageError(f"{what} is not as kdtool writes it (it has no {name} of type {kind.__name__}); {repair}")
