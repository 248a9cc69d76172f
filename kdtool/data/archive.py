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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, Self, TypeVar

from kdtool import files
from kdtool.errors import DamageError, KdtoolError, ResourceError, UsageError

LIMIT_BYTES = 2 * 2**30  # of all files together; the largest published form of a data set takes a tenth
MEMBERS = 1_000
NAME_BYTES = 200
OVERHEAD_BYTES = 4 * 2**20  # of headers and padding, more than so many members take; tarfile keeps headers in memory
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


def unpack(archive: Path, folder: Path, limit_bytes: int = LIMIT_BYTES) -> list[Path]:
    """Unpacks `archive` into `folder`; gives the files that it wrote, sorted. A top-level entry is whole or absent.

    Raises DamageError for an archive that is torn, tries to write elsewhere, or holds more than `limit_bytes`, links
    or devices, and then leaves nothing; UsageError where an entry is there already, ResourceError for a full disk.
    """
    read = _format(archive)
    with _Bounded(io.FileIO(archive)) as file:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with _alone(folder) as partial:
                    written = _write_all(archive, read(file), partial, folder, limit_bytes)
                    _move(partial, folder)
            except BaseException:
                with contextlib.suppress(OSError):  # another process may have come to use it
                    for place in made:
                        place.rmdir()
                raise
    return [folder / name for name in sorted(written)]


def _format(archive: Path) -> Callable[[IO[bytes]], Iterator[Member]]:
    for ending, read in _FORMATS.items():
        if archive.name.lower().endswith(ending):
            return read
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


def _write_all(archive: Path, members: Iterator[Member], partial: Path, folder: Path, limit: int) -> list[str]:
    """Writes every member durably below `partial`; gives the names of the files."""
    done = Progress()
    for member in _guarded(archive, members):
        name = _plain_name(archive, member)
        if not name:
            continue
        _admit(archive, member, name, done, limit)
        if os.path.lexists(folder / name.split("/")[0]):
            raise UsageError(f"{folder / name.split('/')[0]} is there already; remove it, or name another folder")
        if shutil.disk_usage(folder).free < member.size:
            raise ResourceError(f"{folder} has no room for {name}, {member.size:,} bytes; free some space")
        if member.folder:
            (partial / name).mkdir(parents=True, exist_ok=True)
        else:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            _write(archive, member, partial / name)
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


def _admit(archive: Path, member: Member, name: str, done: Progress, limit: int) -> None:
    """Records a member; DamageError where it meets another one, or where there are too many bytes or members."""
    folders = [name[:place] for place, letter in enumerate(name) if letter == "/"]
    found = done.kinds.get(name)
    if (found and not (member.folder and found == "implied")) or any(done.kinds.get(f) == "file" for f in folders):
        raise _refused(archive, "has the name of another one", name)
    for above in folders:
        done.kinds.setdefault(above, "implied")
    done.kinds[name] = "folder" if member.folder else "file"
    done.bytes += member.size
    if member.size < 0 or done.bytes > limit:
        raise _refused(archive, f"is too large: {limit:,} bytes are the most that is unpacked", name)
    if len(done.kinds) > MEMBERS:
        raise _refused(archive, f"is one too many: {MEMBERS:,} files and folders are the most that are unpacked", name)


def _write(archive: Path, member: Member, path: Path) -> None:
    """One file, durable; DamageError where it has another size than the archive says."""
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
        os.fsync(file.fileno())


def _move(partial: Path, folder: Path) -> None:
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
    budget.left += size
    while content and (piece := content.read(PIECE)):
        yield piece


class _Bounded(io.BufferedReader):
    """A file that is never read whole, whatever the end of a zip file says of its table of contents."""

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(OVERHEAD_BYTES + 1 if size is None or size < 0 else min(size, OVERHEAD_BYTES + 1))
        if len(content) > OVERHEAD_BYTES:
            raise ValueError("its table of contents is too large")
        return content


def _zip(file: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        file.seek(-22 - len(archive.comment), io.SEEK_END)
        said = int.from_bytes(file.read(22)[10:12], "little")
        if said != len(archive.infolist()):  # which zipfile lets pass, where the length of an entry is wrong
            raise ValueError(f"its table of contents has {len(archive.infolist())} entries, and {said} are said")
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG) or (info.is_dir() and info.file_size):
                raise ValueError(f"{info.filename[:NAME_BYTES]!r} in it is neither a plain file nor a folder")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename[:NAME_BYTES]!r} in it is compressed in an unknown way")
            yield Member(info.orig_filename, info.is_dir(), info.file_size, _zip_pieces(archive, info))


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
