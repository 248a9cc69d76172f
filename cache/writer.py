"""Writing a cache: one holder of the lock, one durable record for each addition, resumable at any moment.

Every addition has the same order: the files with values, each whole or absent; then one line of the journal; then the
zarr metadata that follow from it. So a killed writer leaves what it recorded, and files without a record, which the
next writer removes. Resumed or not, the same additions give the same bytes. Left out: what the values are.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtool import files
from kdtool.cache import journal, tree
from kdtool.cache.arrays import ArraySpec, check_name, whole_grid
from kdtool.cache.blocks import check_record, write_block
from kdtool.cache.chunks import Array, encode_whole, record_of, write_files
from kdtool.cache.identity import difference, plain, refuse
from kdtool.cache.layout import Contents, FitContents, Layout
from kdtool.cache.lines import seal
from kdtool.cache.opening import (
    abandon,
    holds_nothing,
    mend_provenance,
    open_manifest,
    refuse_folder,
    refuse_odd,
    require_space,
    tidy,
)
from kdtool.cache.reader import Cache
from kdtool.errors import IdentityError, ResourceError


@contextlib.contextmanager
def create_or_open(
    path: Path | str,
    identity: Mapping[str, Any],
    layout: Layout,
    room: Callable[[Cache], int] = lambda _: 0,
    alone: bool = True,
) -> Iterator["CacheWriter"]:
    """Creates the cache at `path`, or opens it to go on; leaving the block without an error calls `finish`.

    identity: plain values. room: the bytes that will be written, asked before the first is. ResourceError where the
    disk has fewer, or another process writes into the cache, IdentityError where it is a cache of something else,
    UsageError where the folder holds other things, DamageError where the cache is damaged.

    A new cache that an error leaves without a block, a fit or the state of one is none: its batch and its device bind
    nobody who tries again with others. Where other processes write chunks beside this one (not alone), it stays.
    """
    root = Path(path)
    refuse_folder(root)
    with files.lock(root / journal.LOCK, "writing into"):
        manifest = open_manifest(root, plain(dict(identity)), layout)
        begun = journal.holds_cache(root)
        if begun:
            tidy(root, manifest)  # what a killed writer left takes room
        cache = Cache(root, manifest)
        require_space(root, room(cache))
        if not begun:
            journal.create(root, manifest)
            tidy(root, manifest)
        writer = CacheWriter(cache)
        try:
            yield writer
        except BaseException:
            if alone and not begun and holds_nothing(root, manifest):
                with contextlib.suppress(ResourceError):  # the error that led here is the one to tell of
                    abandon(root)
            raise
        writer.finish()


def could_open(
    path: Path | str, identity: Mapping[str, Any], layout: Layout, room: Callable[[Cache], int] = lambda _: 0
) -> Cache:
    """The cache that `create_or_open` would open, an empty one where there is none; errors are the same, but for the
    lock, and nothing is written. A cache that is there and to which nothing is added need not be writable.
    """
    root = Path(path)
    refuse_folder(root)
    cache = Cache(root, open_manifest(root, plain(dict(identity)), layout))
    missing, there = room(cache), journal.holds_cache(root)
    if missing or not there:
        with files.explained(root / journal.LOCK):
            files.check_folder(root)
    require_space(root, missing)
    if there:
        refuse_odd(root, cache.manifest)
        tree.stale_metadata(root, cache.manifest)
    return cache


class CacheWriter:
    """A cache that is open for writing; made by `create_or_open`.

    cache: the same cache for reading, which sees every addition at once.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._published = tree.metadata(cache.manifest)
        self._torn = False

    @property
    def scratch(self) -> Path:
        """A folder in the cache for what can be thrown away, such as the state of an unfinished fit."""
        folder = self.cache.path / journal.SCRATCH
        folder.mkdir(exist_ok=True)
        return folder

    def put_samples(self, part: str, labels: npt.ArrayLike, index: npt.ArrayLike) -> None:
        """Stores the classes (n,) and the data set's rows (n,) of a part; they must equal what is stored already.

        A class of -1 is that of a sample without a label.
        """
        given = {"labels": np.asarray(labels), "index": np.asarray(index)}
        samples, classes = self.cache.layout.samples[part], self.cache.layout.classes
        for (name, values), least in zip(given.items(), (-1, 0), strict=True):
            if values.shape != (samples,) or values.dtype.kind not in "iu" or values.min() < least:
                raise ValueError(f"{name} of {part}: {samples} integers from {least} are needed, not {values!r}")
        if given["labels"].max() >= classes:
            raise ValueError(f"labels of {part} reach {given['labels'].max()}, the cache has {classes} classes")
        grids = {name: self.cache.manifest.grid(f"{part}/{name}") for name in given}
        contents = [item for name, grid in grids.items() for item in encode_whole(given[name], grid).items()]
        self._put(f"the samples of {part}", dict(contents), {})

    def declare(self, key: str, contents: Contents) -> None:
        """Records a new key durably; a known one must have the same definition (IdentityError)."""
        check_name("key", key)
        wanted = plain(contents.to_json())
        held = self.cache.manifest.contents.get(key)
        if held is None:
            self._add({"contents": {key: wanted}})
        else:
            _refuse_definition(f"{self.cache.path} holds {key!r} with another definition", held.to_json(), wanted)

    def missing(self, part: str, key: str, view: int) -> list[int]:
        """The blocks of a view that are not committed."""
        return self.cache.missing(part, key, view)

    def commit(self, part: str, view: int, block: int, arrays: Mapping[str, Mapping[str, Array]]) -> None:
        """Stores one block of one view for some keys, all or nothing; `arrays` as for `write_block`."""
        self.record(self.write(part, view, block, arrays))

    def write(self, part: str, view: int, block: int, arrays: Mapping[str, Mapping[str, Array]]) -> dict[str, Any]:
        """The first half of `commit`: writes the files, and gives what `record` takes."""
        return write_block(self.cache, part, view, block, arrays)

    def record(self, block: Mapping[str, Any]) -> None:
        """Records a block that `write_block` wrote, here or in another process; ValueError where it is not whole."""
        check_record(self.cache.manifest, block)
        self._add({field: block[field] for field in ("part", "view", "block", "keys", "files")})

    def has_fit(self, key: str) -> bool:
        """Whether the result of a fit is stored."""
        return key in self.cache.manifest.fits

    def put_fit(self, key: str, version: int, record: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Stores the result of a fit; one that is stored already must be the same (IdentityError)."""
        check_name("fit", key)
        given = {name: np.asarray(array) for name, array in arrays.items()}
        specs = {name: ArraySpec(array.dtype.name, array.shape) for name, array in given.items()}
        wanted = plain(FitContents(version, record, specs).to_json())
        held = self.cache.manifest.fits.get(key)
        if held is not None:
            _refuse_definition(f"{self.cache.path} holds the fit {key!r} of another definition", held.to_json(), wanted)
        grids = {name: whole_grid(f"fitted/{key}/{name}", spec) for name, spec in sorted(specs.items())}
        contents = [item for name, grid in grids.items() for item in encode_whole(given[name], grid).items()]
        self._put(f"the fit {key!r}", dict(contents), {"fits": {key: wanted}})

    def provenance(self, record: Mapping[str, Any]) -> None:
        """Appends a record of who writes and how: versions, device, command line. It is never compared."""
        mend_provenance(self.cache.path)
        files.append(self.cache.path / journal.PROVENANCE, seal(plain(dict(record))))

    def finish(self) -> None:
        """Folds the journal into the manifest, and removes the scratch folder where it is empty."""
        journal.fold(self.cache.path, self.cache.manifest)
        self._remove_scratch()

    def _remove_scratch(self) -> None:
        with contextlib.suppress(OSError):
            (self.cache.path / journal.SCRATCH).rmdir()

    def _put(self, what: str, contents: dict[str, bytes], addition: dict[str, Any]) -> None:
        wanted = {name: record_of(content) for name, content in contents.items()}
        held = {name: self.cache.manifest.files[name] for name in wanted if name in self.cache.manifest.files}
        if not held:
            self._add({**addition, "files": write_files(self.cache.path, contents.items())})
        elif held != wanted:
            raise IdentityError(
                f"{what} differ from those that {self.cache.path} holds, though its identity is the same; verify the "
                "cache and the data set, or name another folder with --cache"
            )

    def _add(self, addition: dict[str, Any]) -> None:
        if self._torn:  # an append failed and may have left half a line: nothing may follow it
            journal.fold(self.cache.path, self.cache.manifest)
        self._torn = True
        journal.append(self.cache.path, addition)
        self._torn = False
        self.cache.manifest.add(addition)
        wanted = tree.metadata(self.cache.manifest)
        changed = [(name, content) for name, content in wanted.items() if self._published.get(name) != content]
        write_files(self.cache.path, changed)
        self._published = wanted


def _refuse_definition(what: str, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    hint = "another definition needs a new cache: name another folder with --cache"
    if all(".dtype: " in line for line in difference(held, wanted)):
        hint = "the stored dtype is kept: leave --dtype out, or name another folder with --cache"
    refuse(what, held, wanted, hint)
