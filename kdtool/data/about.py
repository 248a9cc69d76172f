"""What the data sets are, in a line each, and the checksums of files that their archives hold.

An MD5 is pinned only where its source can be cited: they stand beside the files' names in the source code of
`torchvision.datasets` (0.29; modules cifar and stl10). What other files hold is told by the digest of the content.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

ABOUT: dict[str, str] = {
    "cifar10": "50,000 + 10,000 images of 32x32, 10 classes",
    "cifar100": "50,000 + 10,000 images of 32x32, 100 classes",
    "cub200": "5,994 + 5,794 pictures of 200 birds",
    "digits": "1,437 + 360 handwritten digits of 32x32, with scikit-learn",
    "flowers102": "1,020 + 1,020 (validation) + 6,149 pictures of 102 flowers",
    "folder": "any folder of classes: train/CLASS, test/CLASS, or CLASS",
    "imagenet": "1,281,167 + 50,000 pictures, 1,000 classes",
    "indoor67": "5,360 + 1,340 pictures of 67 indoor scenes",
    "pubfig83": "pictures of the faces of 83 people",
    "stanford_cars": "8,144 + 8,041 pictures of 196 cars",
    "stl10": "5,000 + 8,000 images of 96x96, 10 classes",
    "stl10_unlabelled": "stl10 with 100,000 images more that have no label",
    "tiny_imagenet": "100,000 + 10,000 pictures of 64x64, 200 classes",
}

_STL10 = {
    "stl10_binary/train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "stl10_binary/train_y.bin": "5a34089d4802c674881badbb80307741",
    "stl10_binary/test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "stl10_binary/test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
PINNED: dict[str, dict[str, str]] = {
    "cifar10": {
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
        "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "cifar100": {
        "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
        "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    },
    "stl10": _STL10,
    "stl10_unlabelled": {**_STL10, "stl10_binary/unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4"},
}


@dataclass(frozen=True)
class Compared:
    """Files whose published MD5 is known: those that have it, and those that have another."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]


def compare(name: str, folder: Path) -> Compared:
    """The files of a data set, in `folder` or in their own folder below it, beside the MD5s that are known of them."""
    right: list[str] = []
    wrong: list[str] = []
    for file, md5 in PINNED.get(name, {}).items():
        path = next((place for place in (folder / file, folder / Path(file).name) if place.is_file()), None)
        if path is not None:
            with path.open("rb") as content:
                found = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            (right if found == md5 else wrong).append(file)
    return Compared(tuple(right), tuple(wrong))
