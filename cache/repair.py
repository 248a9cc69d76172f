"""Mending a damaged cache: what follows from its other files at once, chunks by writing again what was recorded.

The manifest decides, and nothing here changes it: a chunk is written again only in the very bytes that were recorded.
So a repaired cache is the cache that it was. Left out: where the values of lost chunks come from
(kdtool.engine.repair asks the teacher).
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.cache import journal, tree
from kdtool.cache.blocks import encode_block
from kdtool.cache.chunks import Array, check_file, record_of, repair, write_files
from kdtool.cache.lines import intact_lines, seal
from kdtool.cache.manifest import Manifest
from kdtool.cache.opening import sweep
from kdtool.cache.reader import Cache
from kdtool.cache.writer import CacheWriter
from kdtool.errors import DamageError, UsageError


@dataclass(frozen=True)
class Survey:
    """What is wrong with a cache. mendable: a line for each file that needs no teacher; damaged: paths of chunks.

    cache: as its manifest says that it is.
    """

    cache: Cache
    mendable: tuple[str, ...]
    damaged: tuple[str, ...]


def survey(path: Path | str, progress: Callable[[int], None] = lambda _: None) -> Survey:
    """What `open_damaged` would mend and find; changes nothing, and errors are the same, but for the lock."""
    root = Path(path)
    _check_there(root)
    links = _links(root)
    manifest, texts = _texts(root, links)
    mendable = [*_removed(links), *texts, *_metadata(root, manifest, links)]
    damaged = [name for name in sorted(manifest.files) if not _sound(root, manifest, name, progress)]
    return Survey(Cache(root, manifest), tuple(mending.line for mending in mendable), tuple(damaged))


@contextlib.contextmanager
def open_damaged(path: Path | str, progress: Callable[[int], None] = lambda _: None) -> Iterator["Repairer"]:
    """Opens a cache for repair, mends what needs no teacher, and finds the chunks that do.

    progress: is told the bytes of every chunk that was looked at.
    UsageError where there is no cache, ResourceError where another process writes into it, IdentityError for another
    format, DamageError where neither the manifest nor its copy is whole.
    """
    root = Path(path)
    _check_there(root)
    with files.lock(root / journal.LOCK, "writing into"):
        links = _links(root)
        for name in links:
            (root / name).unlink()
        manifest, texts = _texts(root)
        for mending in texts:
            files.write(root / mending.file, mending.content)
        sweep(root, manifest)
        metadata = _metadata(root, manifest)
        write_files(root, [(mending.file, mending.content) for mending in metadata])
        journal.fold(root, manifest)
        damaged = [name for name in sorted(manifest.files) if not _sound(root, manifest, name, progress)]
        mended = [mending.line for mending in (*_removed(links), *texts, *metadata)]
        yield Repairer(root, manifest, mended, damaged)


class Repairer(CacheWriter):
    """A cache that is open for repair; made by `open_damaged`, and filled like by any writer.

    cache: the cache without what is damaged. damaged: paths of the chunks that are missing or not what was recorded.
    mended: what has been put right already, a line for each. Values that are not those that were recorded are refused
    with a DamageError before anything is written.
    """

    def __init__(self, root: Path, manifest: Manifest, mended: list[str], damaged: Collection[str]) -> None:
        self.mended = mended
        self.damaged = set(damaged)
        self._recorded = manifest
        fits = {name.split("/")[1] for name in self.damaged if name.startswith("fitted/")}
        hidden = {other for name in self.damaged for other in _together(manifest, name)}
        super().__init__(Cache(root, manifest.without(hidden, fits=fits)))

    def missing(self, part: str, key: str, view: int) -> list[int]:
        """The blocks of a view that are recorded and have a damaged chunk."""
        absent = self._recorded.missing(part, key, view)
        return [block for block in self.cache.missing(part, key, view) if block not in absent]

    def write(self, part: str, view: int, block: int, arrays: Mapping[str, Mapping[str, Array]]) -> dict[str, Any]:
        """Writes the damaged chunks of one block again."""
        contents = dict(encode_block(self.cache, part, view, block, arrays))
        self._put(f"block {block} of view {view} of {part}", contents, {})
        return {}

    def record(self, block: Mapping[str, Any]) -> None:
        """Nothing: what is written again is recorded already."""

    @property
    def scratch(self) -> Path:
        """A folder of its own: the state of the fits of an unfinished extract stays where it is."""
        folder = super().scratch / journal.REPAIR
        folder.mkdir(exist_ok=True)
        return folder

    def finish(self) -> None:
        """Leaves the manifest as it is, and removes the scratch folders where they are empty."""
        with contextlib.suppress(OSError):
            self.scratch.rmdir()
        self._remove_scratch()

    def _put(self, what: str, contents: dict[str, bytes], addition: dict[str, Any]) -> None:
        wanted = {name: self._recorded.files.get(name) for name in contents}
        odd = [name for name, content in contents.items() if record_of(content) != wanted[name]]
        if odd:
            raise DamageError(
                f"{what} cannot be mended here: {odd[0]} comes out with other bits than were recorded; repair it on "
                "a machine like the one that wrote it (provenance.jsonl tells which), or `kdtool cache drop` its key "
                "and extract again"
            )
        lost = [(name, content) for name, content in contents.items() if name in self.damaged]
        for name, _ in lost:
            _clear_way(self.cache.path, name)
        write_files(self.cache.path, lost)
        self.damaged -= contents.keys()
        self.cache.manifest.add({**addition, "files": wanted})


def _sound(root: Path, manifest: Manifest, name: str, progress: Callable[[int], None]) -> bool:
    grid = manifest.grid_of(name)
    try:
        check_file(root, name, grid, manifest.files[name])
    except DamageError:
        return False
    finally:
        progress(grid.file_bytes)
    return True


def _together(manifest: Manifest, name: str) -> Collection[str]:
    """The chunks that are computed together with one: those of its block and key."""
    grid = manifest.grid_of(name)
    if grid.views is None:
        return [name]
    part, key, _ = grid.path.split("/")
    view, chunk = grid.locate(name)
    return manifest.block_files(part, key, view, chunk * grid.rows // manifest.layout.block_rows(part)).keys()


@dataclass(frozen=True)
class _Mending:
    """A file that is written again or removed, and what is told of it."""

    file: str
    content: bytes
    line: str


def _check_there(root: Path) -> None:
    if not journal.holds_cache(root) and not (root / journal.COPY).is_file():
        raise UsageError(f"no cache at {root}; --cache names another folder")


def _links(root: Path) -> list[str]:
    """A cache holds none; those that are there are removed, and what they lead to is left alone."""
    return [name for name in tree.walk(root) if (root / name).is_symlink()]


def _removed(links: Collection[str]) -> list[_Mending]:
    return [_Mending(name, b"", f"{name}: removed, it was a link") for name in links]


def _texts(root: Path, links: Collection[str] = ()) -> tuple[Manifest, list[_Mending]]:
    """The manifest, and what manifest, copy, journal and provenance have to hold; `links` count as absent."""

    def place(name: str) -> Path:
        return root / journal.LOCK / name if name in links else root / name  # nothing lies below a file

    try:
        body = journal.read(place(journal.MANIFEST))
        journal.parse(root, body, [])
        told = "written again"
    except DamageError:
        body, told = _copied(root, place(journal.COPY)), "written again from its copy"
    text = files.checked_json(body)
    found = [
        _Mending(name, text, f"{name}: {told if name == journal.MANIFEST else 'written again'}")
        for name in (journal.MANIFEST, journal.COPY)
        if not place(name).is_file() or place(name).read_bytes() != text
    ]
    lines, odd = _journal(root, place(journal.JOURNAL), body)
    manifest = journal.parse(root, body, lines)
    journal.check_copy(place(journal.COPY), manifest)
    return manifest, [*found, *odd, *_provenance(place(journal.PROVENANCE))]


def _copied(root: Path, copy: Path) -> dict[str, Any]:
    """The manifest's fields from its copy."""
    try:
        body = journal.read(copy)
        journal.parse(root, body, [])
    except DamageError as error:
        raise DamageError(
            f"neither {journal.MANIFEST} nor {journal.COPY} in {root} is whole; put one of them back from a copy of "
            "the cache, or remove the cache and extract again"
        ) from error
    return body


def _journal(root: Path, path: Path, body: dict[str, Any]) -> tuple[list[dict[str, Any]], list[_Mending]]:
    """(the lines that hold, what the journal is without the others); what those recorded is done again by extract."""
    lines, lost = intact_lines(path)
    kept = _consistent(root, body, lines)
    lost += len(lines) - len(kept)
    told = f"{journal.JOURNAL}: {lost} damaged lines removed; `kdtool extract` does again what they recorded"
    return kept, [_Mending(journal.JOURNAL, _sealed(kept), told)] if lost else []


def _consistent(root: Path, body: dict[str, Any], lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that fit the manifest and those before them; one by one only where they do not all."""
    with contextlib.suppress(DamageError):
        journal.parse(root, body, lines)
        return lines
    kept: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(DamageError):
            journal.parse(root, body, [*kept, line])
            kept.append(line)
    return kept


def _provenance(path: Path) -> list[_Mending]:
    lines, lost = intact_lines(path)
    told = f"{journal.PROVENANCE}: {lost} damaged lines removed"
    return [_Mending(journal.PROVENANCE, _sealed(lines), told)] if lost else []


def _sealed(lines: Collection[dict[str, Any]]) -> bytes:
    return "".join(f"{seal(line)}\n" for line in lines).encode()


def _metadata(root: Path, manifest: Manifest, links: Collection[str] = ()) -> list[_Mending]:
    """The zarr.json that are not what follows from the manifest."""
    wanted = tree.metadata(manifest)
    odd = [name for name, state in tree.states(root, manifest).items() if state != "right" or name in links]
    for name in odd:
        _clear_way(root, name)
    return [_Mending(name, wanted[name], f"{name}: written again") for name in odd]


def _clear_way(root: Path, name: str) -> None:
    """Refuses a folder where a file belongs, and a file where a folder belongs."""
    for place in [name, *map(str, Path(name).parents)][:-1]:
        path = root / place
        if path.exists() and path.is_dir() == (place == name):
            raise DamageError(f"{path} does not belong to a cache and is in the way; remove it; {repair(root)}")
