"""Unpacks a published archive (tar, also compressed, or zip) and trusts nothing in it.

Regular files and folders alone, under plain names, are written into a fresh folder beside their place and moved there
when the archive has been read to its end, so what is there is whole. What an archive says of sizes is a claim: the
bytes that come out are counted. Owners, times and permissions are ignored. Left out: downloading, sparse files, links,
encrypted archives, and zip's rarer compressions.
"""

import bz2
import contextlib
import fcntl
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Protocol, Self, TypeVar

from kdtool import files
from kdtool.errors import DamageError, KdtoolError, ResourceError, UsageError

LIMIT_BYTES = 2 * 2**30  # of all files together, where the caller does not know better
MEMBERS = 1_000
NAME_BYTES = 200
OVERHEAD_BYTES = 4 * 2**20  # of headers and padding, more than 1,000 members take; a header is read into memory
HEADER_BYTES = 2**11  # and so many more for every file of a tar file: header, padding, a long name
ENTRY_BYTES = 200  # of an entry in the table of contents of a zip file; names in published data sets are short
MEMORY_BYTES = 100 * 2**20  # for the dictionary of xz, which its header chooses; `xz -9` takes 65 MiB
PIECE = 2**20
FORBIDDEN = {"", ".", ".."}

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """A file or folder of an archive; `size` is what the archive says, `pieces` what it holds."""

    name: str
    folder: bool
    size: int
    pieces: Iterator[bytes]


@dataclass
class Progress:
    """What has been unpacked: path below the folder -> "file", "folder", or "implied" by something below it."""

    kinds: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


@dataclass(frozen=True)
class Limits:
    """The most that is unpacked: bytes of all files together, files and folders."""

    bytes: int
    members: int

    @property
    def many(self) -> bool:
        """Whether there may be so many files that an fsync of each would take hours."""
        return self.members > MEMBERS


def unpack(
    archive: Path,
    folder: Path,
    limit_bytes: int = LIMIT_BYTES,
    limit_members: int = MEMBERS,
    *,
    below: str = "",
    expected: str = "",
    nested: bool = False,
    told: Callable[[int], None] | None = None,
) -> list[Path]:
    """Unpacks `archive` into `folder`; gives the files that it wrote, sorted. A top-level entry is whole or absent.

    below: a folder in `folder` for archives without one of their own; it is whole or absent then.
    expected: the top-level entry without which it is another archive.
    nested: a tar file of tar files, each of which gives a folder of its name; the inner ones are never on the disk.
    told: is given the number of bytes of the archive that were read, again and again.

    Raises DamageError for an archive that is torn, tries to write elsewhere, or holds more than `limit_bytes` or
    `limit_members`, links or devices, and then leaves nothing; UsageError where an entry is there already,
    ResourceError for a full disk.
    """
    read = _format(archive, nested)
    limits = Limits(limit_bytes, limit_members)
    with _Bounded(archive, max(OVERHEAD_BYTES, limit_members * ENTRY_BYTES), told) as file:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with _alone(folder) as partial:
                    members = _below(below, read(file)) if below else read(file)
                    written = _write_all(archive, members, partial, folder, limits)
                    if expected and not os.path.lexists(partial / expected):
                        raise _refused(archive, f"it has no {expected}")
                    _move(partial, folder, limits)
            except BaseException:
                with contextlib.suppress(OSError):  # another process may have come to use it
                    for place in made:
                        place.rmdir()
                raise
    return [folder / name for name in sorted(written)]


def _format(archive: Path, nested: bool) -> Callable[[IO[bytes]], Iterator[Member]]:
    for ending, read in _FORMATS.items():
        if archive.name.lower().endswith(ending):
            return _tar_of_tars if nested else read
    raise UsageError(f"{archive} is none of the archives that can be unpacked: {', '.join(_FORMATS)}")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """An empty folder to unpack into, removed in the end; what a killed process left there is removed first."""
    handle = os.open(folder, os.O_RDONLY)
    partial = folder / f"unpacked{files.PARTIAL}"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if partial.is_symlink() or partial.is_file():
            partial.unlink()
        elif partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial)
    except BlockingIOError:
        raise ResourceError(f"another process is unpacking into {folder}; wait until it has ended") from None
    finally:
        os.close(handle)


def _below(folder: str, members: Iterator[Member]) -> Iterator[Member]:
    """The same members in a folder."""
    for member in members:
        name = "" if member.folder and member.name == "." else member.name.removeprefix("./")
        yield replace(member, name=f"{folder}/{name}")


def _write_all(archive: Path, members: Iterator[Member], partial: Path, folder: Path, limits: Limits) -> list[str]:
    """Writes every member below `partial`; gives the names of the files."""
    done = Progress()
    for member in _guarded(archive, members):
        name = _plain_name(archive, member)
        if not name:
            continue
        _admit(archive, member, name, done, limits)
        if os.path.lexists(folder / name.split("/")[0]):
            raise UsageError(f"{folder / name.split('/')[0]} is there already; remove it, or name another folder")
        if shutil.disk_usage(folder).free < member.size:
            raise ResourceError(f"{folder} has no room for {name}, {member.size:,} bytes; free some space")
        if member.folder:
            (partial / name).mkdir(parents=True, exist_ok=True)
        else:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            _write(archive, member, partial / name, limits)
    if "file" not in done.kinds.values():
        raise _refused(archive, "it holds no file")
    return [name for name, kind in done.kinds.items() if kind == "file"]


def _plain_name(archive: Path, member: Member) -> str:
    """The path of a member below the folder, empty for the folder itself; DamageError where it leads elsewhere."""
    name = member.name
    if member.folder and name.rstrip("/") == ".":
        return ""
    plain = (name[:-1] if member.folder and name.endswith("/") else name).removeprefix("./")
    if not plain.isprintable() or "\\" in plain or ":" in plain:
        raise _refused(archive, "has a name with characters that no file of a data set has", name)
    if FORBIDDEN.intersection(plain.split("/")):
        raise _refused(archive, "does not lie below the folder", name)
    if len(plain.encode()) > NAME_BYTES:
        raise _refused(archive, f"has a name of more than {NAME_BYTES} bytes", name)
    return plain


def _admit(archive: Path, member: Member, name: str, done: Progress, limits: Limits) -> None:
    """Records a member; DamageError where it meets another one, or where there are too many bytes or members."""
    folders = [name[:place] for place, letter in enumerate(name) if letter == "/"]
    found = done.kinds.get(name)
    if (found and not (member.folder and found == "implied")) or any(done.kinds.get(f) == "file" for f in folders):
        raise _refused(archive, "has the name of another one", name)
    for above in folders:
        done.kinds.setdefault(above, "implied")
    done.kinds[name] = "folder" if member.folder else "file"
    done.bytes += member.size
    if member.size < 0 or done.bytes > limits.bytes:
        raise _refused(archive, f"is too large: {limits.bytes:,} bytes are the most that is unpacked", name)
    if len(done.kinds) > limits.members:
        most = f"{limits.members:,} files and folders are the most that are unpacked"
        raise _refused(archive, f"is one too many: {most}", name)


def _write(archive: Path, member: Member, path: Path, limits: Limits) -> None:
    """One file, durable where they are not many; DamageError where it has another size than the archive says."""
    with path.open("xb") as file:
        written = 0
        for piece in _guarded(archive, member.pieces):
            written += len(piece)
            if written > member.size:
                break
            file.write(piece)
        if written != member.size:
            raise _refused(archive, f"does not have the {member.size:,} bytes that the archive says", member.name)
        file.flush()
        if not limits.many:
            os.fsync(file.fileno())


def _move(partial: Path, folder: Path, limits: Limits) -> None:
    if limits.many:
        os.sync()
    else:
        for inner, _, _ in os.walk(partial, topdown=False):
            files.sync_folder(Path(inner))
    for entry in sorted(partial.iterdir()):
        entry.rename(folder / entry.name)
    files.sync_folder(folder)


def _guarded(archive: Path, items: Iterator[T]) -> Iterator[T]:
    """The same items; whatever goes wrong in reading them is a DamageError."""
    try:
        yield from items
    except (KdtoolError, MemoryError):
        raise
    except Exception as error:  # a hostile or torn archive can raise whatever it likes
        raise _refused(archive, f"{type(error).__name__}: {error}") from error


def _refused(archive: Path, finding: str, member: str | None = None) -> DamageError:
    """The error for an archive, or one of its members; names are shown without control characters, and cut."""
    where = "" if member is None else f"{member[:NAME_BYTES]!r} in it "
    return DamageError(
        f"{archive} is damaged or hostile: {where}{finding}; nothing of it was kept; get the published archive again"
    )


class Stream(Protocol):
    """What can be read forwards."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes, none at the end."""
        ...


class _Header(tarfile.TarInfo):
    """A header of a tar file; one that is torn raises, where tarfile would take it for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # two blocks of zeros
            raise
        except tarfile.HeaderError as error:
            raise EOFError(f"a header is damaged or missing: {error}") from None


class _Budget:
    """A stream that hands out a limited number of bytes, as tarfile reads headers of any size into memory."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.left = stream, OVERHEAD_BYTES

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise ValueError("it is larger than its members, or has headers of many megabytes")
        return content


class _Xz:
    """An xz file; unlike lzma's own class it limits the memory that the file can ask for."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.decompressor = file, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES)

    def read(self, size: int) -> bytes:
        content = b""
        while not content and not self.decompressor.eof:
            packed = self.file.read(PIECE) if self.decompressor.needs_input else b""
            if self.decompressor.needs_input and not packed:
                raise EOFError("it ends too early")
            content = self.decompressor.decompress(packed, size)
        return content


def _tar(stream: Stream) -> Iterator[Member]:
    budget = _Budget(stream)
    # The budget needs no other method of a file where tarfile reads a stream.
    with tarfile.open(fileobj=budget, mode="r|", bufsize=2**16, tarinfo=_Header) as archive:  # type: ignore[call-overload]
        while header := archive.next():
            archive.members.clear()  # it would keep every header; only links ask for them
            if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or header.issparse():
                raise ValueError(f"{header.name[:NAME_BYTES]!r} in it is neither a plain file nor a folder")
            if len(header.pax_headers) > 100:
                raise ValueError(f"{header.name[:NAME_BYTES]!r} in it has too many headers")
            content = archive.extractfile(header)
            yield Member(header.name, header.isdir(), header.size, _pieces(content, budget, header.size))
        while rest := archive.fileobj.read(PIECE):  # also compares the checksum of gzip, bzip2 and xz
            if rest.strip(b"\0"):
                raise ValueError("something follows its end")


def _pieces(content: IO[bytes] | None, budget: _Budget, size: int) -> Iterator[bytes]:
    """The content of a member of a tar file, by which the budget grows once it has been admitted."""
    budget.left = min(budget.left + HEADER_BYTES, OVERHEAD_BYTES) + size
    while content and (piece := content.read(PIECE)):
        yield piece


class _Joined:
    """The content of a member as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.rest = pieces, memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self.rest:
            self.rest = memoryview(next(self.pieces, b""))
        content, self.rest = self.rest[:size], self.rest[size:]
        return bytes(content)


def _tar_of_tars(file: IO[bytes]) -> Iterator[Member]:
    """The members of the tar files in a tar file, each in a folder that has its tar file's name without the ending."""
    for outer in _tar(file):
        if outer.folder or not outer.name.endswith(".tar"):
            raise ValueError(f"{outer.name[:NAME_BYTES]!r} in it is no tar file")
        yield from _below(outer.name.removesuffix(".tar"), _tar(_Joined(outer.pieces)))


class _Bounded(io.BufferedReader):
    """A file that is never read whole, whatever the end of a zip file says of its table of contents."""

    def __init__(self, path: Path, limit: int, told: Callable[[int], None] | None) -> None:
        super().__init__(io.FileIO(path))
        self.limit, self.told = limit, told

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(self.limit + 1 if size is None or size < 0 else min(size, self.limit + 1))
        if len(content) > self.limit:
            raise ValueError("its table of contents is too large")
        if self.told:
            self.told(len(content))
        return content


def _zip(file: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        count, said = len(archive.infolist()), _entries_said(file, len(archive.comment))
        if said not in (count, count % 2**16):  # zipfile lets it pass; some tools know 16 bits only
            raise ValueError(f"its table of contents has {count} entries, and {said} are said")
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG) or (info.is_dir() and info.file_size):
                raise ValueError(f"{info.filename[:NAME_BYTES]!r} in it is neither a plain file nor a folder")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename[:NAME_BYTES]!r} in it is compressed in an unknown way")
            yield Member(info.orig_filename, info.is_dir(), info.file_size, _zip_pieces(archive, info))


def _entries_said(file: IO[bytes], comment: int) -> int:
    """The number of entries that the end of a zip file says: of 64 bits where there is such a record, else of 16."""
    end = 22 + comment
    place = file.seek(0, io.SEEK_END) - end
    file.seek(max(place - 76, 0))
    content = file.read(min(place, 76) + 22)
    wide = len(content) == 98 and content.startswith(b"PK\6\6") and content[56:60] == b"PK\6\7"
    return int.from_bytes(content[32:40] if wide else content[-12:-10], "little")


def _zip_pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as content:
        while piece := content.read(PIECE):
            yield piece


def _gzip_tar(file: IO[bytes]) -> Iterator[Member]:
    return _tar(gzip.GzipFile(fileobj=file))


_FORMATS: dict[str, Callable[[IO[bytes]], Iterator[Member]]] = {
    ".tar": _tar,
    ".tar.gz": _gzip_tar,
    ".tgz": _gzip_tar,
    ".tar.bz2": lambda file: _tar(bz2.BZ2File(file)),
    ".tar.xz": lambda file: _tar(_Xz(file)),
    ".zip": _zip,
}
