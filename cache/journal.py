"""The two files that hold a cache's manifest: manifest.json, and journal.jsonl with what has been added since.

Left out: the meaning of the records (kdtool.cache.manifest).
"""

from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.cache.chunks import repair
from kdtool.cache.identity import FORMAT
from kdtool.cache.layout import Layout
from kdtool.cache.lines import read_lines, seal
from kdtool.cache.manifest import Manifest
from kdtool.errors import DamageError, IdentityError, UsageError

MANIFEST, JOURNAL, PROVENANCE, LOCK, SCRATCH = "manifest.json", "journal.jsonl", "provenance.jsonl", "lock", "scratch"
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
    body = _read_manifest(root)
    try:
        return _parse(body, lines)
    except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise DamageError(f"{root / MANIFEST} or its journal describes no cache ({error}); {repair(root)}") from error


def create(root: Path, manifest: Manifest) -> None:
    """Writes the manifest of a new cache."""
    files.write_json(root / MANIFEST, manifest.to_json())
    files.sync_folder(root.parent)


def append(root: Path, addition: dict[str, Any]) -> None:
    """Adds one durable line to the journal."""
    files.append(root / JOURNAL, seal(addition))


def fold(root: Path, manifest: Manifest) -> None:
    """Writes the manifest and removes the journal, which it holds; does nothing where there is no journal."""
    if (root / JOURNAL).exists():
        files.write_json(root / MANIFEST, manifest.to_json())
        (root / JOURNAL).unlink()
        files.sync_folder(root)


def _read_manifest(root: Path) -> dict[str, Any]:
    if not (root / MANIFEST).is_file():
        raise DamageError(f"{root / MANIFEST} is missing; {repair(root)}")
    body = files.read_json(root / MANIFEST, repair(root))
    if body.get("format") != FORMAT:
        raise IdentityError(
            f"{root} is a cache of format {body.get('format')!r}; this kdtool reads format {FORMAT}: use the kdtool "
            "that wrote it, or name another folder with --cache"
        )
    return body


def _parse(body: dict[str, Any], lines: list[dict[str, Any]]) -> Manifest:
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
