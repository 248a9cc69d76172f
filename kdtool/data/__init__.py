"""Data sets by name, from local files only.

`load` gives a data set as it is published: pixels in memory, or pictures in files, each of which has been examined.
Splits, augmentation, sizes and batches are in modules that this one does not import: it needs no torch.
"""

from collections.abc import Callable
from pathlib import Path

from kdtool.data.cifar import cifar10, cifar100
from kdtool.data.cub200 import cub200
from kdtool.data.dataset import Dataset as Dataset
from kdtool.data.dataset import Part as Part
from kdtool.data.dataset import content_digest as content_digest
from kdtool.data.digits import digits
from kdtool.data.flowers102 import flowers102
from kdtool.data.folders import folder as pictures_in_folders
from kdtool.data.imagenet import imagenet
from kdtool.data.indoor67 import indoor67
from kdtool.data.listing import Listing, examined
from kdtool.data.pubfig83 import pubfig83
from kdtool.data.stanford_cars import stanford_cars
from kdtool.data.stl10 import stl10, stl10_unlabelled
from kdtool.data.tiny_imagenet import tiny_imagenet
from kdtool.errors import UsageError, unknown
from kdtool.progress import Progress, Silent

DEFAULT_FOLDER = Path("data")

DATASETS: dict[str, Callable[[Path], Dataset | Listing]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cub200": cub200,
    "digits": digits,
    "flowers102": flowers102,
    "folder": pictures_in_folders,
    "imagenet": imagenet,
    "indoor67": indoor67,
    "pubfig83": pubfig83,
    "stanford_cars": stanford_cars,
    "stl10": stl10,
    "stl10_unlabelled": stl10_unlabelled,
    "tiny_imagenet": tiny_imagenet,
}


def load(name: str, folder: Path | None = None, progress: Progress | None = None, fresh: bool = False) -> Dataset:
    """The data set `name`, read from `folder` (default: `data` in the current folder; digits needs none).

    fresh: look at every picture again, whatever was seen of it before.

    Raises UsageError for an unknown name, a missing or unreadable file or a missing optional package, DamageError
    for a file whose content is not what its format says.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    try:
        found = DATASETS[name](DEFAULT_FOLDER if folder is None else folder)
    except OSError as error:
        raise UsageError(f"cannot read the data set {name!r}: {error.strerror}: {error.filename}") from error
    return examined(found, progress or Silent(), fresh) if isinstance(found, Listing) else found
