"""Any folder of classes: CLASS/** alone, or train/CLASS/** with validation and test beside it.

Everything below a class folder that is not hidden is one of its pictures. Classes are the folders of the train part,
sorted. With train and val alone, val is the test part, as people lay ImageNet out; with a test part as well, its
pictures come behind those of train as the published `validation` rows. Where no test part is there, a fifth of the
pictures is held out as one, of each class in proportion, by seed 0. Left out: lists of labels in files.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdtool.data import splits
from kdtool.data.listing import Files, Listing, by_class, classes_below, files_below, with_endings
from kdtool.errors import UsageError

TRAIN, TEST = "train", "test"
VALIDATION = ("validation", "val", "valid")
PARTS = (TRAIN, TEST, *VALIDATION)
ALIKE = {*PARTS, "training", "testing"}  # names that somebody may give to parts, whatever the case
HELD = 5  # one picture in so many becomes the test part
SHOWN = 5  # names in a message


def folder(root: Path) -> Listing:
    """The pictures of a folder of classes. UsageError, with what was found, where it is not laid out as one."""
    there = classes_below(root)
    parts = [name for name in there if name in PARTS]
    odd = [name for name in there if name.casefold() in ALIKE and name not in parts]
    if odd:
        raise UsageError(f"{root} has the folder {odd[0]}; rename it to {' or '.join(PARTS)}, or to what its class is")
    if not parts:
        return _divided(root, "")
    beside = [name for name in there if name not in parts and with_endings(files_below(root, name))]
    if beside:
        raise UsageError(
            f"{root} has {_some(parts)}, which is read as a part of a data set, and pictures in {_some(beside)} "
            f"beside; rename {parts[0]} if it is a class, or move {beside[0]} away"
        )
    if TRAIN not in parts:
        raise UsageError(f"{root} has {', '.join(parts)} and no {TRAIN}; add {TRAIN}/CLASS/, or name {root / parts[0]}")
    held = [name for name in parts if name in VALIDATION]
    if len(held) > 1:
        raise UsageError(f"{root} has {' and '.join(held)}, which mean the same; keep one of them")
    if len(parts) == 1:
        return _divided(root, TRAIN)
    return _in_parts(root, held, TEST in parts)


def _divided(root: Path, place: str) -> Listing:
    classes = _classes(root, place)
    train, test = divided(_pictures(root, place, classes, classes), classes, HELD)
    return Listing("folder", root, train, test, classes)


def _in_parts(root: Path, held: Sequence[str], tested: bool) -> Listing:
    classes = _classes(root, TRAIN)
    parts = [_pictures(root, place, classes, _classes(root, place, classes)) for place in (TRAIN, *held)]
    if not tested:
        return Listing("folder", root, parts[0], parts[1], classes)
    test = _pictures(root, TEST, classes, _classes(root, TEST, classes))
    train = Files([name for part in parts for name in part.names], np.concatenate([part.labels for part in parts]))
    return Listing("folder", root, train, test, classes, validation=np.arange(len(parts[0].names), len(train.names)))


def _classes(root: Path, place: str, known: Sequence[str] | None = None) -> tuple[str, ...]:
    """The class folders of a part; UsageError where the part hints that another folder was meant."""
    here = root / place
    found = classes_below(here)
    loose = with_endings(sorted(entry.name for entry in here.iterdir() if entry.name[0] != "."))
    loose = [name for name in loose if name not in found]
    if not found:
        held = f"{len(loose):,} pictures, as {loose[0]}, and no folder" if loose else "no folder"
        above = f"; if they are one class, name {here.absolute().parent}" if loose and not place else ""
        raise UsageError(f"{here} has {held}; a folder for each class is expected there{above}")
    if loose:
        raise UsageError(
            f"{here} has {len(loose):,} pictures beside its folders, as {loose[0]}; move each into the folder of its "
            "class, or name the folder whose folders are classes"
        )
    if known is None and len(found) == 1:
        inner = classes_below(here / found[0])
        hint = f"; name {here / found[0]} if its folders ({_some(inner)}) are the classes or parts" if inner else ""
        raise UsageError(f"{here} has one class, {found[0]}; two at least are expected{hint}")
    new = [] if known is None else sorted(set(found) - set(known))
    if new:
        raise UsageError(f"{here} has {_some(new)}, which {root / TRAIN} does not have; classes are those of {TRAIN}")
    return found


def _pictures(root: Path, place: str, classes: Sequence[str], there: Sequence[str]) -> Files:
    """The files of a part, each of whose class folders has some."""
    files = by_class(root, place, classes)
    empty = sorted(set(there) - {classes[label] for label in np.unique(files.labels).tolist()})
    if empty:
        raise UsageError(f"{root / place} has no picture of {_some(empty)}; add pictures, or remove the folder")
    return files


def divided(files: Files, classes: Sequence[str], held: int) -> tuple[Files, Files]:
    """Train and test part: one picture in `held` is in the test part, of each class in proportion, by seed 0."""
    counts = np.bincount(files.labels, minlength=len(classes))
    if counts.min() < 2 or len(files.names) < held:
        scarce = int(counts.argmin())
        raise UsageError(
            f"one picture in {held} becomes the test part, and there are {len(files.names):,} pictures, "
            f"{counts[scarce]:,} of them of {classes[scarce]}; {held} and 2 of each class are the fewest"
        )
    split = splits.make_split(files.labels, len(classes), validation=len(files.names) // held, seed=0)
    train, test = (
        Files([files.names[r] for r in rows], files.labels[rows]) for rows in (split.train, split.validation)
    )
    return train, test


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
