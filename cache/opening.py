"""Making a cache ready for a writer: room on the disk, the right identity, and no leftovers of a killed one.

Left out: the lock and the additions (kdtool.cache.writer).
"""

import shutil
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.cache import journal, tree
from kdtool.cache.chunks import repair, write_files
from kdtool.cache.identity import refuse
from kdtool.cache.layout import Layout
from kdtool.cache.lines import read_lines, seal
from kdtool.cache.manifest import Manifest
from kdtool.errors import DamageError, ResourceError, UsageError


def require_space(path: Path | str, bytes_needed: int) -> None:
    """Refuses with a ResourceError where the disk of `path` has fewer than `bytes_needed` bytes free."""
    free = files.free_bytes(Path(path))
    if free < bytes_needed:
        raise ResourceError(
            f"{path} needs {bytes_needed:,} bytes, its disk has {free:,} free; free some space, or name a folder on "
            "another disk with --cache (`kdtool plan` shows what each key and view takes)"
        )


def usable(root: Path) -> bool:
    """Whether a folder is a cache, or holds nothing but what a writer leaves that was killed while it made one."""
    copy = journal.COPY
    begun = {journal.LOCK, copy, copy + files.PARTIAL, journal.MANIFEST + files.PARTIAL}
    return root.is_dir() and (journal.holds_cache(root) or {entry.name for entry in root.iterdir()} <= begun)


def open_manifest(root: Path, identity: dict[str, Any], layout: Layout) -> Manifest:
    """The manifest of the cache at `root`, an empty one where there is none; IdentityError where it is another's."""
    if not journal.holds_cache(root):
        return Manifest(identity, layout)
    manifest = journal.load(root)
    found = {"identity": manifest.identity, "layout": manifest.layout.to_json()}
    wanted = {"identity": identity, "layout": layout.to_json()}
    hint = "use what the cache was made with, or name another folder with --cache"
    refuse(f"{root} is a cache of something else", found, wanted, hint)
    return manifest


def refuse_folder(root: Path) -> None:
    """Refuses a folder that holds other things than a cache."""
    if root.exists() and not usable(root):
        raise UsageError(f"{root} is there and is no cache; name another folder with --cache")


def refuse_odd(root: Path, manifest: Manifest) -> None:
    """Refuses a cache that holds links, or a copy of the manifest that knows more than the manifest."""
    links = [name for name in tree.walk(root) if (root / name).is_symlink()]
    if links:
        raise DamageError(f"{root / links[0]} is a link: a cache holds none; {repair(root)}")
    journal.check_copy(root / journal.COPY, manifest)


def tidy(root: Path, manifest: Manifest) -> None:
    """Removes what a killed writer left unfinished, and finishes what it recorded."""
    refuse_odd(root, manifest)
    sweep(root, manifest)
    write_files(root, tree.stale_metadata(root, manifest))
    journal.fold(root, manifest)
    journal.mend_copy(root)
    mend_provenance(root)


def sweep(root: Path, manifest: Manifest) -> None:
    """Removes half-written files, and what lies where a writer puts chunks and metadata without being recorded."""
    with files.explained(root):
        files.sweep(root)
        for name in tree.strays(manifest, tree.walk(root)):
            if tree.CHUNK.fullmatch(name) or tree.METADATA.fullmatch(name):
                (root / name).unlink()


def holds_nothing(root: Path, manifest: Manifest) -> bool:
    """Whether a cache has neither blocks nor fits, nor a fit that was begun. Labels are soon there again."""
    kept = {grid.file(chunk) for grid in manifest.whole_grids() for chunk in range(grid.chunks)}
    begun = root / journal.SCRATCH
    return not manifest.fits and manifest.files.keys() <= kept and not (begun.is_dir() and any(begun.iterdir()))


def abandon(root: Path) -> None:
    """Removes everything but the lock; whatever stops it, what is left is a cache that holds nothing, or none."""
    with files.explained(root):
        (root / journal.JOURNAL).unlink(missing_ok=True)
        for entry in root.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in (journal.LOCK, journal.MANIFEST, journal.COPY):
                entry.unlink()
        (root / journal.MANIFEST).unlink()
        (root / journal.COPY).unlink(missing_ok=True)


def mend_provenance(root: Path) -> None:
    """Removes a torn last line, which the next one would follow."""
    records, torn = read_lines(root / journal.PROVENANCE, repair(root))
    if torn:
        files.write(root / journal.PROVENANCE, "".join(f"{seal(record)}\n" for record in records).encode())
