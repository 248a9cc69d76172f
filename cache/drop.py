"""Taking keys, fits and views out of a cache, and giving their space back.

What is dropped is taken out of the manifest first and removed then, so a drop that is killed has happened or has not;
what it did not come to remove, the next writer does. What stays is not touched, and what is extracted again has the
bytes that it had.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kdtool import files
from kdtool.cache import journal, tree
from kdtool.cache.chunks import write_files
from kdtool.cache.manifest import Manifest
from kdtool.cache.opening import refuse_odd, sweep, tidy
from kdtool.errors import UsageError, unknown


@dataclass(frozen=True)
class Choice:
    """What is to be dropped: keys in all parts, fits, or of the train part all views but the first `keep_views`.

    With keep_views, `keys` are the keys that lose views (all of them where none is named), and no key goes wholly.
    """

    keys: Sequence[str] = ()
    fits: Sequence[str] = ()
    keep_views: int | None = None

    def __post_init__(self) -> None:
        if not self.keys and not self.fits and self.keep_views is None:
            raise UsageError("nothing to drop is named; name it with --key, --fit or --keep-views")
        if self.keep_views is not None and self.keep_views < 1:
            raise UsageError(f"--keep-views is at least 1, not {self.keep_views}; --key drops a key with all its views")


@dataclass(frozen=True)
class Dropped:
    """What a drop takes: its bytes, those that stay, views of the train part as key -> (now, then), and fits."""

    bytes: int
    left: int
    views: Mapping[str, tuple[int, int]]
    fits: tuple[str, ...]


def would_drop(path: Path | str, choice: Choice) -> Dropped:
    """What `drop` would take; changes nothing. Errors are the same, but for the lock."""
    root = Path(path)
    manifest = journal.load(root)
    kept = _kept(manifest, choice)
    refuse_odd(root, manifest)
    tree.stale_metadata(root, manifest)
    views = {
        key: (manifest.views("train", key), kept.views("train", key) if key in kept.contents else 0)
        for key in sorted(manifest.contents)
    }
    return Dropped(
        _size(manifest, manifest.files.keys() - kept.files.keys()),
        _size(kept, kept.files.keys()),
        {key: count for key, count in views.items() if count[0] != count[1] or key not in kept.contents},
        tuple(sorted(manifest.fits.keys() - kept.fits.keys())),
    )


def drop(path: Path | str, choice: Choice) -> int:
    """Drops a part of the content of a cache; gives the number of bytes.

    UsageError for a name that the cache does not hold, or a fit that a key which stays was encoded with; ResourceError
    where another process writes; DamageError where the manifest is damaged.
    """
    root = Path(path)
    _kept(journal.load(root), choice)  # refuses before the lock makes a file
    with files.lock(root / journal.LOCK, "writing into"):
        manifest = journal.load(root)
        tidy(root, manifest)
        kept = _kept(manifest, choice)
        before, after = tree.metadata(manifest), tree.metadata(kept)
        journal.append(root, {"drop": asdict(choice)})  # adds nothing; while it is there, metadata may lag behind
        write_files(root, [(name, content) for name, content in after.items() if before[name] != content])
        journal.fold(root, kept)
        sweep(root, kept)
        _remove_empty(root)
        return _size(manifest, manifest.files.keys() - kept.files.keys())


def _kept(manifest: Manifest, choice: Choice) -> Manifest:
    for kind, named, held in (("key", choice.keys, manifest.contents), ("fit", choice.fits, manifest.fits)):
        for name in named:
            if name not in held:
                raise unknown(f"{kind} of this cache", name, held)
    if choice.keep_views is None:
        gone, names = choice.keys, set[str]()
    else:
        gone, names = (), _last_views(manifest, choice.keys or list(manifest.contents), choice.keep_views)
    for key, contents in manifest.contents.items():
        if key not in gone and contents.fit in choice.fits:
            raise UsageError(f"the key {key} was encoded with the fit {contents.fit}; drop it too, with --key {key}")
    return manifest.without(names, gone, choice.fits)


def _last_views(manifest: Manifest, keys: Collection[str], keep: int) -> set[str]:
    """The files of views from `keep` on."""
    found = set()
    for name in manifest.files:
        part, owner = name.split("/")[:2]
        if part == "train" and owner in keys and manifest.grid_of(name).locate(name)[0] >= keep:
            found.add(name)
    return found


def _size(manifest: Manifest, names: Collection[str]) -> int:
    return sum(manifest.grid_of(name).file_bytes for name in names)


def _remove_empty(root: Path) -> None:
    """Removes folders without files, deepest first."""
    for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
