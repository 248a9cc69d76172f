"""Published archives of data sets: found or downloaded, verified, unpacked to where the readers look.

An archive that lies in the folder is taken as it is, and then there is no network at all. Nothing that is there is
ever overwritten. Left out: reading; the network itself, which `kdtool.data.download` uses.
"""

import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdtool import files
from kdtool.data.archive import unpack
from kdtool.data.download import PIECE, Megabytes, download
from kdtool.data.sources import SOURCES, File, Source
from kdtool.errors import DamageError, UsageError, unknown
from kdtool.progress import Progress, Silent


@dataclass(frozen=True)
class Fetched:
    """What became of a published file.

    place: where it, or what it holds, is now; files: how many were written, 0 where it was there already.
    checksum: "MD5 ..." where that is the pinned one, else "SHA-256 ...", of a file of which none is pinned; empty
    where it was unpacked already.
    """

    name: str
    place: Path
    files: int
    checksum: str

    @property
    def pinned(self) -> bool:
        """Whether the checksum was compared with a published one."""
        return self.checksum.startswith("MD5")


def fetch(name: str, folder: Path, archives: Sequence[Path] = (), progress: Progress | None = None) -> list[Fetched]:
    """Puts the data set `name` below `folder`: from `archives`, from archives that lie there, else from its publisher.

    Raises UsageError for a data set that has to be got by hand, with what to do; DamageError for a file that has
    another checksum than the published one or is no sound archive; ResourceError where network or disk fail.
    """
    source, given, form = _chosen(name, folder, archives)
    return [_one(file, source, folder, given, progress or Silent()) for file in form]


@dataclass(frozen=True)
class Wanted:
    """What would become of a published file.

    place: where it, or what it holds, comes to lie; held: the file that is there already, or is `place` itself, None
    where it would be downloaded from `address`.
    """

    name: str
    place: Path
    held: Path | None
    address: str


def would_fetch(name: str, folder: Path, archives: Sequence[Path] = ()) -> list[Wanted]:
    """What `fetch` would do; uses no network and writes nothing. Errors are those before the first file is touched."""
    source, given, form = _chosen(name, folder, archives)
    return [
        Wanted(file.name, folder / source.folder / file.gives, _found(file, source, folder, given), file.address)
        for file in form
    ]


def _chosen(name: str, folder: Path, archives: Sequence[Path]) -> tuple[Source, dict[str, Path], tuple[File, ...]]:
    """The source of a data set, the user's own archives of it, and the form to take."""
    if name not in SOURCES:
        raise unknown("published data set", name, SOURCES)
    source = SOURCES[name]
    given = _given(name, source, archives)
    form = _form(source, folder, given)
    lacking = [file.name for file in form if not file.address and not _found(file, source, folder, given)]
    if lacking:
        command = shlex.join(["kdtool", "data", "fetch", name, "--into", str(folder)])
        raise UsageError(
            f"{name} cannot be downloaded by a command: {source.advice}; put {', '.join(lacking)} into {folder} "
            f"and run `{command}`"
        )
    return source, given, form


def _given(name: str, source: Source, archives: Sequence[Path]) -> dict[str, Path]:
    """The user's own archives by their published names; where a data set has one only, it may have any name."""
    known = {file.name: file for form in source.forms for file in form}
    found = {}
    for path in archives:
        if not path.is_file():
            raise UsageError(f"--archive {path}: there is no such file")
        published = next(iter(known)) if len(known) == 1 else path.name
        if published not in known:
            raise UsageError(f"--archive {path}: {name} is published as {', '.join(known)}; rename it to its own name")
        found[published] = path
    return found


def _form(source: Source, folder: Path, given: Mapping[str, Path]) -> tuple[File, ...]:
    """The form to take: one that is there, those that were named first; else the one to download."""
    named = [form for form in source.forms if any(file.name in given for file in form)]
    for form in (*named, *source.forms):
        if all(_found(file, source, folder, given) for file in form):
            return form
    return (named or source.forms)[0]


def _found(file: File, source: Source, folder: Path, given: Mapping[str, Path]) -> Path | None:
    """Where a file, or what it holds, is already: unpacked, else named by the user, else in the folder."""
    place = folder / source.folder / file.gives
    if os.path.lexists(place):
        return place
    if file.name in given:
        return given[file.name]
    return next((path for path in (folder / file.name, place.with_name(file.name)) if path.is_file()), None)


def _one(file: File, source: Source, folder: Path, given: Mapping[str, Path], progress: Progress) -> Fetched:
    """Brings one published file to its place."""
    place = folder / source.folder / file.gives
    path = _found(file, source, folder, given)
    if path == place:
        return Fetched(file.name, place, 0, _verified(file, path, progress) if file.plain else "")
    if path:
        checksum = _verified(file, path, progress)
        return Fetched(file.name, place, _put(file, path, place, progress), checksum)
    path = place if file.plain else folder / file.name
    checksum = _downloaded(file, path, progress)
    try:
        return Fetched(file.name, place, 1 if file.plain else _put(file, path, place, progress), checksum)
    except DamageError:
        if not file.md5:  # else it is what was published
            path.unlink()
        raise


def _downloaded(file: File, path: Path, progress: Progress) -> str:
    """Downloads a file to `path`, which it gets only when it is verified; gives its checksum."""
    partial = path.with_name(path.name + files.PARTIAL)
    download(file.address, partial, file.limit_bytes, progress)
    try:
        checksum = _verified(file, partial, progress)
    except DamageError as error:
        partial.unlink()
        raise DamageError(f"{error}; what was downloaded from {file.address} was removed") from None
    with files.explained(path):
        partial.replace(path)
        files.sync_folder(path.parent)
    return checksum


def _verified(file: File, path: Path, progress: Progress) -> str:
    """The checksum of a file; DamageError where another one is pinned."""
    digest = hashlib.md5(usedforsecurity=False) if file.md5 else hashlib.sha256()
    size = path.stat().st_size
    if size > file.limit_bytes:
        raise DamageError(f"{path} has {size:,} bytes, and {file.name} as published at most {file.limit_bytes:,}")
    tell = Megabytes(progress, f"verify {file.name}", size)
    with path.open("rb") as content:
        while piece := content.read(PIECE):
            digest.update(piece)
            tell(len(piece))
    if file.md5 and digest.hexdigest() != file.md5:
        raise DamageError(
            f"{path} is torn or another file: its MD5 is {digest.hexdigest()}, that of {file.name} as published is "
            f"{file.md5}; get it again"
        )
    return f"{'MD5' if file.md5 else 'SHA-256'} {digest.hexdigest()}"


def _put(file: File, path: Path, place: Path, progress: Progress) -> int:
    """Brings what a verified file holds to its place; gives the number of files."""
    if file.plain:
        with files.explained(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        files.write(place, path.read_bytes())
        return 1
    written = unpack(
        path,
        place.parent,
        file.limit_bytes,
        file.limit_members,
        below=file.gives if file.bare else "",
        expected=file.gives,
        nested=file.nested,
        told=Megabytes(progress, f"unpack {file.name}", path.stat().st_size),
    )
    return len(written)
