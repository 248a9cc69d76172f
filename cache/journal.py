"""The files that hold a cache's manifest: manifest.json, its copy, and journal.jsonl with what has been added since.

The copy is there for `kdtool cache repair`, and nobody else reads it: what the other files of a cache say can be told
from the manifest and the teacher, and what the manifest says from nothing else.

Left out: the meaning of the records (kdtool.cache.manifest).
"""

import contextlib
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.cache.chunks import repair
from kdtool.cache.identity import FORMAT
from kdtool.cache.layout import Layout
from kdtool.cache.lines import read_lines, seal
from kdtool.cache.manifest import Manifest
from kdtool.errors import DamageError, IdentityError, UsageError

MANIFEST, COPY, JOURNAL = "manifest.json", "manifest.copy.json", "journal.jsonl"
PROVENANCE, LOCK, SCRATCH = "provenance.jsonl", "lock", "scratch"
REPAIR = "repair"  # the folder of repair in scratch
ATTRIBUTE = "kdtool_format"  # in the root group's zarr.json, so that a cache without its manifest is known for one


def holds_cache(root: Path) -> bool:
    """Whether a folder is a cache, be it a damaged one."""
    if (root / MANIFEST).is_file():
        return True
    metadata = root / "zarr.json"
    return metadata.is_file() and metadata.stat().st_size < 1000 and ATTRIBUTE.encode() in metadata.read_bytes()


def load(root: Path) -> Manifest:
    """The manifest of the cache at `root`, journal included; changes nothing and may run beside a writer.

    UsageError where there is no cache, DamageError where it is damaged, IdentityError for another format.
    """
    if not holds_cache(root):
        raise UsageError(f"no cache at {root}; `kdtool extract` makes one, --cache names another folder")
    lines, _ = read_lines(root / JOURNAL, repair(root))  # first: a writer may fold it into the manifest meanwhile
    return parse(root, read(root / MANIFEST), lines)


def create(root: Path, manifest: Manifest) -> None:
    """Writes the manifest of a new cache."""
    write(root, manifest)
    files.sync_folder(root.parent)


def write(root: Path, manifest: Manifest) -> None:
    """Writes the manifest and, before it, its copy."""
    for name in (COPY, MANIFEST):
        files.write_json(root / name, manifest.to_json())


def append(root: Path, addition: dict[str, Any]) -> None:
    """Adds one durable line to the journal."""
    files.append(root / JOURNAL, seal(addition))


def fold(root: Path, manifest: Manifest) -> None:
    """Writes the manifest and removes the journal, which it holds; does nothing where there is no journal."""
    if (root / JOURNAL).exists():
        write(root, manifest)
        with files.explained(root):
            (root / JOURNAL).unlink()
            files.sync_folder(root)


def mend_copy(root: Path) -> None:
    """Writes the manifest's copy where it is not one: a writer was killed between the two, or it is damaged."""
    if not _is_copy(root):
        files.write(root / COPY, (root / MANIFEST).read_bytes())


def _is_copy(root: Path) -> bool:
    copy, manifest = root / COPY, root / MANIFEST
    return copy.is_file() and manifest.is_file() and copy.read_bytes() == manifest.read_bytes()


def check_copy(path: Path, manifest: Manifest) -> None:
    """Refuses a copy of the manifest that knows what manifest and journal do not, with a DamageError.

    kdtool leaves none: one of them was put there from elsewhere, and only the user can tell whose chunks are to stay.
    A copy that is damaged or missing is for `mend_copy`.
    """
    root = path.parent
    if _is_copy(root):
        return
    try:
        odd = _odd(root, read(path), manifest)
    except DamageError:
        return
    with contextlib.suppress(DamageError):  # a damaged journal is told of where it is read
        odd = odd and _odd(root, read(path), load(root))  # a writer may have recorded more since, and folds it now
    if odd:
        raise DamageError(
            f"{path} {odd}: one of them was put there from elsewhere; remove {COPY}, or {MANIFEST} where the copy is "
            f"right, and then `kdtool cache repair {root}` makes the cache what the other says"
        )


def _odd(root: Path, body: dict[str, Any], manifest: Manifest) -> str:
    """What the fields of a whole copy say that a manifest does not; empty for nothing."""
    if body.get("identity_digest") != manifest.digest:
        return "is the manifest of another cache"
    told, held = parse(root, body, []).to_json(), manifest.to_json()
    for kind, what in (("contents", "the key"), ("fits", "the fit"), ("files", "the chunk")):
        for name, value in told[kind].items():
            if held[kind].get(name) != value:
                return f"records {what} {name} otherwise than {MANIFEST} and {JOURNAL}"
    return ""


def read(path: Path) -> dict[str, Any]:
    """The fields of a manifest's file, its checksum and format compared; DamageError or IdentityError otherwise."""
    if not path.is_file():
        raise DamageError(f"{path} is missing; {repair(path.parent)}")
    body = files.read_json(path, repair(path.parent))
    if body.get("format") != FORMAT:
        raise IdentityError(
            f"{path.parent} is a cache of format {body.get('format')!r}; this kdtool reads format {FORMAT}: use the "
            "kdtool that wrote it, or name another folder with --cache"
        )
    return body


def parse(root: Path, body: dict[str, Any], lines: list[dict[str, Any]]) -> Manifest:
    """The manifest that a file's fields and the lines of the journal make; DamageError where they make none."""
    try:
        return _parsed(body, lines)
    except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise DamageError(f"{root / MANIFEST} or its journal describes no cache ({error}); {repair(root)}") from error


def _parsed(body: dict[str, Any], lines: list[dict[str, Any]]) -> Manifest:
    manifest = Manifest(dict(body["identity"]), Layout.from_json(body["layout"]))
    if manifest.digest != body["identity_digest"]:
        raise ValueError("identity_digest is not that of the identity")
    for addition in [body, *lines]:
        manifest.add(addition)
    there = {grid.path for grid in manifest.whole_grids()}
    for key, fit in manifest.fits.items():
        if not there >= {f"fitted/{key}/{name}" for name in fit.arrays}:
            raise ValueError(f"fit {key} is not whole")
    return manifest
