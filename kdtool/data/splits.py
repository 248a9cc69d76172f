"""Which images of the train part train and which validate: index lists, stratified by class, seeded, with a digest.

Left out: the test part, which no split touches.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtool import files, philox
from kdtool.data.dataset import NO_LABEL, Rows
from kdtool.errors import DamageError, UsageError


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of the data set's train part, in increasing order: train (n,), validation (m,).

    rule: how they were chosen, as plain values: validation (images held out), few_shot (images of each class that
    train, None for all), seed; held "published" where the data set itself says which images validate.
    """

    train: Rows
    validation: Rows
    rule: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the two index lists; the rule that made them does not enter."""
        return files.digest([files.sha256(rows.astype("<i8").tobytes()) for rows in (self.train, self.validation)])


def make_split(
    labels: Rows,
    classes: int,
    validation: int | None = 0,
    few_shot: int | None = None,
    seed: int = 0,
    published: Rows | None = None,
) -> Split:
    """Holds out `validation` images, then takes `few_shot` of each class, or all, of what remains.

    labels (N,): of the whole train part. published: rows that the data set itself holds out, which validate where
    `validation` is None. Every class gives its share of the validation images, rounded so that the total is exact. One
    seeded order of all images decides, so a smaller few_shot is part of a larger one. Images without a label always
    train. Raises UsageError where a class has too few images.
    """
    if (validation is not None and validation < 0) or (few_shot is not None and few_shot < 1):
        raise UsageError(
            f"a split needs at least 0 validation images and 1 image of each class, not {validation} and {few_shot}"
        )
    rows, rule = np.arange(len(labels)), {"validation": validation or 0, "few_shot": few_shot, "seed": seed}
    if validation is None and published is not None and len(published):
        train, _ = _choose(labels, classes, np.setdiff1d(rows, published), 0, few_shot, seed)
        return Split(train, np.sort(published), {**rule, "validation": len(published), "held": "published"})
    train, held = _choose(labels, classes, rows, validation or 0, few_shot, seed)
    return Split(train, held, rule)


def narrow(
    split: Split, labels: Rows, classes: int, validation: int | None = None, few_shot: int | None = None
) -> Split:
    """A split that trains on a part of what `split` trains on, by the same seed; None keeps what `split` has.

    validation: images held out in total; more of them leave the train part, none ever comes back. Raises UsageError
    for anything that would widen the train part.
    """
    held, kept = len(split.validation), split.rule["few_shot"]
    validation = held if validation is None else validation
    few_shot = kept if few_shot is None else few_shot
    if validation < held:
        raise UsageError(
            f"the split holds out {held:,} validation images and {validation:,} were asked for; images that were held "
            f"out cannot train later: ask for {held:,} or more"
        )
    if few_shot is not None and not 1 <= few_shot <= (kept or few_shot):
        raise UsageError(
            f"the split trains on {kept or 'all'} images of each class and {few_shot} were asked for; "
            f"it can only be narrowed: ask for 1 to {kept or 'as many as there are'}"
        )
    train, more = _choose(labels, classes, split.train, validation - held, few_shot, split.rule["seed"])
    rule = {**split.rule, "validation": validation, "few_shot": few_shot}
    return Split(train, np.sort(np.concatenate([split.validation, more])), rule)


def shares(counts: Rows, total: int) -> Rows:
    """`total` divided over classes in proportion to their counts: largest remainders, ties to the lowest class."""
    exact = counts * total
    share: Rows = exact // counts.sum()
    remainder = exact - share * counts.sum()
    share[np.argsort(-remainder, kind="stable")[: total - share.sum()]] += 1
    return share


def _choose(
    labels: Rows, classes: int, pool: Rows, validation: int, few_shot: int | None, seed: int
) -> tuple[Rows, Rows]:
    """Train and validation rows out of `pool`, both in increasing order."""
    unlabelled, pool = pool[labels[pool] == NO_LABEL], pool[labels[pool] != NO_LABEL]
    if validation > len(pool):
        raise UsageError(f"{validation:,} more validation images were asked for, and {len(pool):,} are left")
    counts = np.bincount(labels[pool], minlength=classes)
    held = shares(counts, validation)
    needed = np.minimum(counts, 1) if few_shot is None else np.full(classes, few_shot)
    if np.any(counts - held < needed):
        scarce = int(np.argmin(counts - held - needed))
        raise UsageError(
            f"class {scarce} has {counts[scarce]:,} images; {held[scarce]:,} of them for validation and "
            f"{needed[scarce]:,} for training are too many: ask for fewer"
        )
    order = philox.permutation(seed, philox.SPLIT, 0, len(labels))
    walk = order[np.isin(order, pool)]
    walk = walk[np.argsort(labels[walk], kind="stable")]  # class by class, in the seeded order within each
    group = labels[walk]
    place = np.arange(len(walk)) - (np.cumsum(counts) - counts)[group]
    last = counts if few_shot is None else held + few_shot
    train = walk[(place >= held[group]) & (place < last[group])]
    return np.sort(np.concatenate([train, unlabelled])), np.sort(walk[place < held[group]])


def to_plain(split: Split) -> dict[str, Any]:
    """The split as plain values for JSON."""
    return {
        "rule": split.rule,
        "train": split.train.tolist(),
        "validation": split.validation.tolist(),
        "digest": split.digest,
    }


def from_plain(value: dict[str, Any]) -> Split:
    """The split that `to_plain` wrote. Raises DamageError where the lists do not have the digest beside them."""
    try:
        train, validation = (np.array(value[key], dtype=np.int64) for key in ("train", "validation"))
        split = Split(train, validation, dict(value["rule"]))
        intact = split.digest == value["digest"]
    except (KeyError, TypeError, ValueError, OverflowError):
        intact = False
    if not intact:
        raise DamageError(
            "the stored split is damaged: its index lists do not have the digest that was stored with them"
        )
    return split
