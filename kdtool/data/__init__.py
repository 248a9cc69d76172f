"""Data sets by name, from local files only.

`load` gives a whole data set in memory, pixels as published. Splits, augmentation and batches are in the modules
`splits`, `augment` and `batches`, which this one does not import: it needs no torch.
"""

from collections.abc import Callable
from pathlib import Path

from kdtool.data.cifar import cifar10, cifar100
from kdtool.data.dataset import Dataset as Dataset
from kdtool.data.dataset import Part as Part
from kdtool.data.dataset import content_digest as content_digest
from kdtool.data.digits import digits
from kdtool.errors import UsageError, unknown

DEFAULT_FOLDER = Path("data")

DATASETS: dict[str, Callable[[Path], Dataset]] = {"cifar10": cifar10, "cifar100": cifar100, "digits": digits}


def load(name: str, folder: Path | None = None) -> Dataset:
    """The data set `name`, read from `folder` (default: `data` in the current folder; digits needs none).

    Raises UsageError for an unknown name, a missing or unreadable file or a missing optional package, DamageError
    for a file whose content is not what its format says.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    try:
        return DATASETS[name](DEFAULT_FOLDER if folder is None else folder)
    except OSError as error:
        raise UsageError(f"cannot read the data set {name!r}: {error.strerror}: {error.filename}") from error
