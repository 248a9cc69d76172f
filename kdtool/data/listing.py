"""A data set whose images are files: which they are and what they show. No file has been opened yet.

Readers of published layouts give a `Listing`; `examined` looks at every file and makes the data set of it, or refuses
it with a list of what is wrong. What was seen is kept in the user's cache folder and used again where size and time of
change of a file are the same.
"""

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdtool.data import index
from kdtool.data.dataset import IMAGENET, Channels, Dataset, Part, Rows, content_digest
from kdtool.data.pictures import ANIMATED, CMYK, ENDINGS, FINDINGS, MISNAMED, Pictures
from kdtool.errors import DamageError, UsageError
from kdtool.progress import Progress

LISTED = 20  # files in an error message
AS_PUBLISHED = frozenset({CMYK, MISNAMED, ANIMATED})  # odd, and known in sets that everybody uses as they are


@dataclass(frozen=True, eq=False)
class Files:
    """names: paths below the data set's root, with "/"; labels (n,), NO_LABEL where there is none."""

    names: Sequence[str]
    labels: Rows


@dataclass(frozen=True, eq=False)
class Listing:
    """Files of the two parts. validation: rows of the train part that the publication holds out.

    width: of all pictures, where they share one. accepted: findings that are taken as they are.
    """

    name: str
    root: Path
    train: Files
    test: Files
    class_names: tuple[str, ...]
    validation: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    mean: Channels = IMAGENET[0]
    std: Channels = IMAGENET[1]
    width: int | None = None
    accepted: frozenset[int] = frozenset()


class WrongPicturesError(DamageError):
    """Some files of a data set cannot be used; `wrong` has all of them, with what is wrong with each."""

    def __init__(self, message: str, wrong: Sequence[tuple[str, str]]) -> None:
        super().__init__(message)
        self.wrong = wrong


def examined(listing: Listing, progress: Progress, fresh: bool = False) -> Dataset:
    """The data set. DamageError, with the files and what is wrong with each, where some cannot be taken.

    fresh: look at every file again, whatever was seen before.
    """
    names = [*listing.train.names, *listing.test.names]
    seen = index.look(listing.root, names, progress, fresh)
    wrong = [row for row in np.flatnonzero(seen.findings) if int(seen.findings[row]) not in listing.accepted]
    if wrong:
        raise _refused(listing, [(names[row], FINDINGS[int(seen.findings[row])]) for row in wrong])
    if listing.width is not None and (seen.sizes != listing.width).any():
        odd = names[int(np.flatnonzero((seen.sizes != listing.width).any(1))[0])]
        raise DamageError(
            f"{listing.root / odd} is not {listing.width} pixels high and wide as all pictures of {listing.name} are; "
            "unpack the published archive again"
        )
    both = Pictures(listing.root, names, seen.sizes, seen.digests, seen.stamps).parts(
        len(listing.train.names), len(listing.test.names)
    )
    train, test = (Part(p, files.labels) for p, files in zip(both, (listing.train, listing.test), strict=True))
    return Dataset(
        name=listing.name,
        train=train,
        test=test,
        classes=len(listing.class_names),
        class_names=listing.class_names,
        mean=listing.mean,
        std=listing.std,
        flip=True,
        digest=content_digest(train, test),
        validation=listing.validation,
    )


def _refused(listing: Listing, wrong: list[tuple[str, str]]) -> WrongPicturesError:
    shown = ", ".join(f"{name} {finding}" for name, finding in wrong[:LISTED])
    command = shlex.join(["kdtool", "data", "check", listing.name, "--data-folder", str(listing.root), "--json"])
    more = f" and {len(wrong) - LISTED} more, which `{command}` lists" if len(wrong) > LISTED else ""
    count = "1 picture" if len(wrong) == 1 else f"{len(wrong):,} pictures"
    return WrongPicturesError(
        f"{count} in {listing.root} cannot be used: {shown}{more}; convert or remove them, then run the command again",
        wrong,
    )


def classes_below(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted; hidden ones are left out."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder.absolute()}; name the one that holds the data set")
    found = sorted(entry.name for entry in os.scandir(folder) if _is_folder(entry) and not entry.name.startswith("."))
    return tuple(found)


def files_below(root: Path, folder: str) -> list[str]:
    """All files below root/folder, as sorted paths below `root`; hidden ones are left out.

    Links are followed, save to a folder in which they lie; a folder to which several lead is entered once.
    """
    found: list[str] = []
    above = Path(os.path.realpath((root / folder).parent))
    _walk(root, folder, frozenset((above, *above.parents)), set(), found)
    return sorted(found)


def _walk(root: Path, folder: str, above: frozenset[Path], entered: set[Path], found: list[str]) -> None:
    here = Path(os.path.realpath(root / folder))
    if here in above or here in entered:
        return
    entered.add(here)
    with os.scandir(root / folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        name = f"{folder}/{entry.name}"
        if entry.name.startswith(".") or entry.name in ("Thumbs.db", "desktop.ini"):
            continue
        if _is_folder(entry):
            _walk(root, name, above | {here, *here.parents}, entered, found)
        else:
            found.append(name)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def by_class(root: Path, folder: str, class_names: Sequence[str]) -> Files:
    """The files of root/folder/CLASS for every class that has such a folder, class after class."""
    names: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        place = f"{folder}/{class_name}" if folder else class_name
        if (root / place).is_dir():
            inside = files_below(root, place)
            names += inside
            labels += [label] * len(inside)
    return Files(names, np.array(labels, dtype=np.int64))


def with_endings(names: Iterable[str]) -> list[str]:
    """The names that end as pictures do."""
    return [name for name in names if Path(name).suffix.lower() in ENDINGS]
