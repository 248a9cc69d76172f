"""ImageNet-1k (ILSVRC 2012, Russakovsky et al. 2015) from a local folder; the test part is the validation part.

`train/` has a folder for each class. `val/` has such folders too, as people sort it, or all pictures beside one
another, as it is published: then the development kit says what they show. Classes are numbered in the order of their
sorted WordNet ids, as torchvision's weights have them. Left out: the published test part, which has no labels.
"""

from pathlib import Path

import numpy as np

from kdtool.data import published
from kdtool.data.listing import AS_PUBLISHED, Files, Listing, by_class, classes_below, files_below
from kdtool.data.published import damaged
from kdtool.errors import DamageError

NEEDED = ("train/", "val/")
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
PICTURE = "ILSVRC2012_val_{:08d}"


def imagenet(folder: Path) -> Listing:
    """ImageNet from `folder`, which holds train and val, or `imagenet` with them. Raises UsageError, DamageError.

    Classes are called by WordNet's words where the development kit is needed, else by their ids.
    """
    root = published.find(folder, ("imagenet",), NEEDED)
    if not root:
        raise published.lacking("imagenet", folder, "imagenet", NEEDED)
    wnids = classes_below(root / "train")
    _refuse_strays(root, "train", bool(wnids))
    train = by_class(root, "train", wnids)
    _refuse_gaps(root / "train", train, wnids)
    if classes_below(root / "val"):
        test, names = _sorted_validation(root, wnids), wnids
    else:
        test, names = _flat_validation(root, folder, wnids)
    return Listing("imagenet", root, train, test, names, accepted=AS_PUBLISHED)


def _refuse_strays(root: Path, part: str, classes: bool) -> None:
    strays = sorted(entry.name for entry in (root / part).iterdir() if entry.is_file() and entry.name[0] != ".")
    if strays or not classes:
        found = f"{strays[0]} and {len(strays) - 1:,} more files" if strays else "no folder"
        raise DamageError(
            f"{root / part} has {found} where a folder for each class is expected; unpack the published archive again"
        )


def _refuse_gaps(place: Path, files: Files, wnids: tuple[str, ...]) -> None:
    empty = np.flatnonzero(np.bincount(files.labels, minlength=len(wnids)) == 0)
    if len(empty):
        raise DamageError(f"{place / wnids[empty[0]]} has no picture; unpack the published archive again")


def _sorted_validation(root: Path, wnids: tuple[str, ...]) -> Files:
    odd = sorted(set(classes_below(root / "val")) ^ set(wnids))
    if odd:
        raise DamageError(
            f"train/ and val/ in {root} have different classes: {odd[0]} is in one of them only "
            f"({len(odd):,} such classes); unpack the published archives again"
        )
    _refuse_strays(root, "val", True)
    files = by_class(root, "val", wnids)
    _refuse_gaps(root / "val", files, wnids)
    return files


def _flat_validation(root: Path, folder: Path, wnids: tuple[str, ...]) -> tuple[Files, tuple[str, ...]]:
    """The pictures of `val/` by their numbers, the labels that the development kit gives, and the classes' names."""
    if not ((root / META).is_file() and (root / TRUTH).is_file()):
        raise published.lacking("imagenet", folder, "imagenet", (*NEEDED, META, TRUTH))
    wnid_of, words = _meta(root / META)
    unknown = sorted(set(wnids) ^ set(wnid_of.values()))
    if unknown:
        raise DamageError(
            f"the classes of {root / 'train'} are not those of {root / META}: {unknown[0]} is in one of them only "
            f"({len(unknown):,} such classes); unpack the published archives again"
        )
    ids = published.numbers(root / TRUTH, "the list of classes", published.lines(root / TRUTH), 1, max(wnid_of))
    names = files_below(root, "val")
    for row, name in enumerate(names, start=1):
        if Path(name).stem != PICTURE.format(row):
            raise DamageError(f"{root / 'val'} has no {PICTURE.format(row)}; unpack the published archive again")
    if len(ids) != len(names):
        raise damaged(root / TRUTH, f"it has {len(ids):,} classes, and val/ has {len(names):,} pictures")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for number in np.unique(ids).tolist():
        if number not in wnid_of:
            raise damaged(root / TRUTH, f"it has the class {number}, which meta.mat does not have")
    labels = np.array([label_of[wnid_of[number]] for number in ids.tolist()], dtype=np.int64)
    return Files(names, labels), tuple(words[wnid] for wnid in wnids)


def _meta(path: Path) -> tuple[dict[int, str], dict[str, str]]:
    """The WordNet id of each class number, and the words of each WordNet id.

    The table has groups of classes too, which are told by their children.
    """
    table = published.matlab(path, "synsets")[0]
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    numbers, wnids, words, children = published.columns(path, "synsets", table, *fields)
    ids = published.numbers(path, "ILSVRC2012_ID", numbers, 1, 2**20).tolist()
    leaves = (published.numbers(path, "num_children", children, 0, 2**20) == 0).tolist()
    rows = zip(ids, published.texts(path, "WNID", wnids), published.texts(path, "words", words), leaves, strict=True)
    kept = [(number, wnid, text) for number, wnid, text, leaf in rows if leaf]
    wnid_of = {number: wnid for number, wnid, _ in kept}
    if not len(kept) == len(wnid_of) == len(set(wnid_of.values())) > 0:
        raise damaged(path, "synsets has no classes, or one of them twice")
    return wnid_of, {wnid: text for _, wnid, text in kept}
