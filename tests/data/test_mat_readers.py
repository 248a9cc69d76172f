"""Published data sets with files of MATLAB: tiny copies in the exact structure; torchvision reads the same."""

import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
from published import refused
from torchvision import datasets

from kdtool import data
from kdtool.errors import DamageError, UsageError

io = pytest.importorskip("scipy.io", reason="scipy is not installed: it writes the files of MATLAB")

MADE: dict[str, Callable[[Path], Path]] = {
    "flowers102": published.flowers102,
    "stanford_cars": published.stanford_cars,
    "imagenet": lambda folder: published.imagenet(folder, flat=True),
}
FILES = [
    ("flowers102", "imagelabels.mat"),
    ("flowers102", "setid.mat"),
    ("stanford_cars", "devkit/cars_train_annos.mat"),
    ("stanford_cars", "devkit/cars_meta.mat"),
    ("stanford_cars", "cars_test_annos_withlabels.mat"),
    ("imagenet", "ILSVRC2012_devkit_t12/data/meta.mat"),
]


@pytest.fixture(autouse=True)
def _index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("index")))


def pairs(part: data.Part) -> list[tuple[bytes, int]]:
    """Pixels and label of each image."""
    return [(part.images[row].tobytes(), int(label)) for row, label in enumerate(part.labels)]


def oracle(found: Any) -> list[tuple[bytes, int]]:
    return [(picture.convert("RGB").tobytes(), int(label)) for picture, label in found]


@pytest.mark.parametrize("name", MADE)
def test_the_folder_may_be_the_data_set_or_hold_it(tmp_path: Path, name: str) -> None:
    place = MADE[name](tmp_path)
    found = data.load(name, tmp_path)
    assert found.digest == data.load(name, place).digest
    assert (found.name, found.classes, found.flip) == (name, len(found.class_names), True)


@pytest.mark.parametrize("name", MADE)
def test_files_that_are_not_there_are_named_with_the_command_that_brings_them(tmp_path: Path, name: str) -> None:
    place = MADE[name](tmp_path)
    for entry in sorted(place.iterdir()):
        entry.rename(tmp_path / "away")
        with pytest.raises(UsageError) as caught:
            data.load(name, tmp_path)
        assert entry.name in str(caught.value).split("(not there: ")[1].split(")")[0]
        assert f"`kdtool data fetch {name} --into {tmp_path}`" in str(caught.value)
        (tmp_path / "away").rename(entry)
    assert data.load(name, tmp_path).name == name


@pytest.mark.parametrize("name", MADE)
def test_scipy_is_not_needed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = MADE[name](tmp_path)
    for module in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, module, None)
    assert data.load(name, place).name == name


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_file_of_matlab_that_is_damaged_is_named(tmp_path: Path, name: str, file: str) -> None:
    path = MADE[name](tmp_path) / file
    content = path.read_bytes()
    halves = [content[:cut] for cut in (0, 1, 100, 128, 130, len(content) // 2, len(content) - 9)]
    for wrong in (*halves, b"junk" * 100, b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF\r\n"):
        path.write_bytes(wrong)
        refused(name, tmp_path, str(path), "is damaged")
    published.matlab(path, other=1)
    refused(name, tmp_path, str(path), "is damaged: it has no '")


@pytest.mark.parametrize(("name", "file"), FILES)
def test_any_byte_of_a_file_of_matlab_may_be_wrong(tmp_path: Path, name: str, file: str) -> None:
    """It is refused, or harmless: never another error, never another number of classes out of bounds."""
    path = MADE[name](tmp_path) / file
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 100)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = data.load(name, tmp_path)
        except DamageError:
            continue
        assert 0 <= min(found.train.labels) <= max(found.train.labels) < found.classes


def test_a_file_of_matlab_that_claims_to_be_large_is_damaged(tmp_path: Path) -> None:
    place = published.flowers102(tmp_path)
    with (place / "setid.mat").open("r+b") as file:
        file.truncate(2**24 + 1)
    refused("flowers102", tmp_path, "setid.mat is damaged: it has more than 16,777,216 bytes")
    element = np.array([14, 56, 6, 8, 2, 0, 5, 8, 1, 2**31 - 1, 1, 6], dtype="<u4").tobytes() + b"labels\0\0"
    packed = zlib.compress(element)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + np.array([15, len(packed)], dtype="<u4").tobytes()
    (place / "imagelabels.mat").write_bytes(header + packed)
    refused("flowers102", tmp_path, "imagelabels.mat is damaged")


def test_flowers102_is_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    published.flowers102(tmp_path, "flowers-102")
    found = data.load("flowers102", tmp_path)
    parts = [oracle(datasets.Flowers102(tmp_path, split)) for split in ("train", "val", "test")]
    assert pairs(found.train) == parts[0] + parts[1]
    assert pairs(found.test) == parts[2]
    assert found.validation.tolist() == [3, 4]
    assert found.class_names == tuple(str(number) for number in range(1, 103))
    assert found.train.labels.tolist() == [101, 2, 76, 2, 0]


@pytest.mark.parametrize(
    ("file", "key", "values", "words"),
    [
        ("imagelabels.mat", "labels", [0] * 10, ("labels has '0'", "from 1 to 102")),
        ("imagelabels.mat", "labels", [103] * 10, ("labels has '103'",)),
        ("imagelabels.mat", "labels", [1.5] * 10, ("labels has '1.5'",)),
        ("imagelabels.mat", "labels", [float("nan")] * 10, ("labels has 'nan'",)),
        ("imagelabels.mat", "labels", [1j] * 10, ("imagelabels.mat is damaged: ValueError",)),
        ("imagelabels.mat", "labels", "text", ("no whole number",)),
        ("imagelabels.mat", "labels", {"a": 1}, ("no whole number",)),
        ("imagelabels.mat", "labels", [1] * 9, ("setid.mat is damaged: tstid has '10'", "from 1 to 9")),
        ("imagelabels.mat", "labels", [1] * 11, ()),
        ("setid.mat", "trnid", [3, 9, 0], ("trnid has '0'", "from 1 to 10")),
        ("setid.mat", "valid", [8, 11], ("valid has '11'",)),
        ("setid.mat", "valid", [8, 3], ("a picture is in it twice",)),
        ("setid.mat", "tstid", [], ("a part is empty",)),
    ],
)
def test_numbers_of_flowers102_are_bounded(tmp_path: Path, file: str, key: str, values: Any, words: Any) -> None:
    place = published.flowers102(tmp_path)
    held = {name: value for name, value in io.loadmat(place / file).items() if name[0] != "_"}
    published.matlab(place / file, **{**held, key: values if isinstance(values, dict | str) else np.array([values])})
    if words:
        refused("flowers102", tmp_path, *words)
    else:
        assert len(data.load("flowers102", tmp_path).train.labels) == 5


def test_a_flower_that_is_not_there_is_named(tmp_path: Path) -> None:
    place = published.flowers102(tmp_path)
    (place / "jpg/image_00010.jpg").unlink()
    refused("flowers102", tmp_path, "setid.mat names 'jpg/image_00010.jpg', which is no file in")


def test_stanford_cars_are_what_torchvision_reads(tmp_path: Path) -> None:
    published.stanford_cars(tmp_path)
    published.stanford_cars_in_one(tmp_path)  # is not looked at
    found = data.load("stanford_cars", tmp_path)
    theirs = [datasets.StanfordCars(tmp_path, split) for split in ("train", "test")]
    assert pairs(found.train) == oracle(theirs[0])
    assert pairs(found.test) == oracle(theirs[1])
    assert found.class_names == tuple(theirs[0].classes) == published.CARS


def test_one_car_is_a_list_of_cars(tmp_path: Path) -> None:
    published.stanford_cars(tmp_path, (1, 1))
    found = data.load("stanford_cars", tmp_path)
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([2], [2])


def test_the_older_form_of_stanford_cars_is_read_by_its_list(tmp_path: Path) -> None:
    place = published.stanford_cars_in_one(tmp_path)
    found = data.load("stanford_cars", tmp_path)
    assert found.digest == data.load("stanford_cars", place).digest
    for part, numbers in ((found.train, (2, 4, 6, 8)), (found.test, (1, 3, 5, 7))):
        paths = [place / f"car_ims/{number:06d}.jpg" for number in numbers]
        pictures = [
            (datasets.folder.default_loader(str(path)), (number - 1) // 3)
            for path, number in zip(paths, numbers, strict=True)
        ]
        assert pairs(part) == oracle(pictures)
    assert found.class_names == published.CARS


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("relative_im_path", "../../etc/passwd", ("not lie in the folder",)),
        ("relative_im_path", "/etc/passwd", ("not lie in the folder",)),
        ("relative_im_path", "car_ims/000009.jpg", ("car_ims/000009.jpg", "no file")),
        ("relative_im_path", "car_ims/000002.jpg", ("twice",)),
        ("relative_im_path", 5.0, ("relative_im_path is not a list of texts",)),
        ("class", 0.0, ("class has '0", "from 1 to 3")),
        ("class", 4.0, ("class has '4",)),
        ("class", np.array([1.0, 2.0]), ("class has ",)),
        ("class", "1", ()),
        ("test", 2.0, ("test has '2",)),
    ],
)
def test_the_list_of_the_older_form_is_bounded(tmp_path: Path, field: str, value: Any, words: Any) -> None:
    place = published.stanford_cars_in_one(tmp_path)
    held = io.loadmat(place / "cars_annos.mat")
    held["annotations"][field][0, 0] = value
    published.matlab(place / "cars_annos.mat", annotations=held["annotations"], class_names=held["class_names"])
    if words:
        refused("stanford_cars", tmp_path, "cars_annos.mat", *words)
    else:
        assert len(data.load("stanford_cars", tmp_path).test.labels) == 4


def test_lists_of_stanford_cars_of_another_structure_are_damaged(tmp_path: Path) -> None:
    place = published.stanford_cars_in_one(tmp_path)
    rows = [{"class": 1.0, "test": 1}]
    published.matlab(
        place / "cars_annos.mat", annotations=published.table(rows, (1, 1)), class_names=published.cells("a")
    )
    refused("stanford_cars", tmp_path, "annotations has no 'relative_im_path'")
    published.matlab(place / "cars_annos.mat", annotations=np.ones((1, 3)), class_names=np.ones((1, 2)))
    refused("stanford_cars", tmp_path, "class_names is not a list of texts")
    rows = [{"relative_im_path": "car_ims/000001.jpg", "class": 1.0, "test": 1}]
    published.matlab(
        place / "cars_annos.mat", annotations=published.table(rows, (1, 1)), class_names=published.cells("a")
    )
    refused("stanford_cars", tmp_path, "one of the two parts is empty")
    other = published.stanford_cars(tmp_path / "other")
    published.matlab(other / "devkit/cars_meta.mat", class_names=np.empty((1, 0), dtype=object))
    refused("stanford_cars", other, "cars_meta.mat is damaged: it names no class")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flat_imagenet_is_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = published.imagenet(tmp_path, flat=True)
    found = data.load("imagenet", tmp_path)
    with tarfile.open(place / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(place / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    monkeypatch.setattr(datasets.imagenet, "_verify_archive", lambda root, file, md5: None)
    datasets.imagenet.parse_devkit_archive(place)
    words, wnids = datasets.imagenet.load_meta_file(place)
    train = datasets.ImageFolder(place / "train")
    assert pairs(found.train) == oracle(train)
    paths = sorted((place / "val").iterdir())
    shown = [
        (datasets.folder.default_loader(str(path)), train.class_to_idx[w]) for path, w in zip(paths, wnids, strict=True)
    ]
    assert pairs(found.test) == oracle(shown)
    assert [tuple(name.split(", ")) for name in found.class_names] == [words[wnid] for wnid in train.classes]


def test_both_forms_of_imagenet_have_the_same_labels(tmp_path: Path) -> None:
    place = published.imagenet(tmp_path, flat=True)
    found = data.load("imagenet", tmp_path)
    flat = [pairs(part) for part in (found.train, found.test)]
    for path, number in zip(sorted((place / "val").iterdir()), published.TRUTH, strict=True):
        (place / "val" / published.IDS[number]).mkdir(exist_ok=True)
        path.rename(place / "val" / published.IDS[number] / path.name)
    found = data.load("imagenet", tmp_path)
    assert sorted(pairs(found.test)) == sorted(flat[1])
    assert pairs(found.train) == flat[0]


def test_flat_imagenet_that_is_not_whole_is_damaged(tmp_path: Path) -> None:
    place = published.imagenet(tmp_path, flat=True)
    published.devkit(place, truth=(2, 1, 3))
    refused("imagenet", tmp_path, "ground_truth.txt is damaged: it has 3 classes, and val/ has 4 pictures")
    published.devkit(place, truth=(2, 1, 3, 1001))
    refused("imagenet", tmp_path, "ground_truth.txt", "'1001'", "from 1 to 3")
    published.devkit(place, truth=(2, 1, 3, 0))
    refused("imagenet", tmp_path, "ground_truth.txt", "'0'")
    published.devkit(place, ids={1: "n02085620", 9: "n01440764", 3: "n01443537"})
    refused("imagenet", tmp_path, "it has the class 2, which meta.mat does not have")
    published.devkit(place, ids={1: "n02085620", 2: "n01440764"})
    refused("imagenet", tmp_path, "are not those of", "n01443537 is in one of them only")
    published.devkit(place, ids={1: "n02085620", 2: "n01440764", 3: "n02085620"})
    refused("imagenet", tmp_path, "synsets has no classes, or one of them twice")
    published.devkit(place, ids={})
    refused("imagenet", tmp_path, "synsets has no classes")
    published.devkit(place)
    assert data.load("imagenet", tmp_path).classes == 3
    (place / "val/ILSVRC2012_val_00000002.JPEG").unlink()
    refused("imagenet", tmp_path, "val has no ILSVRC2012_val_00000002")
