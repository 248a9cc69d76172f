"""Published data sets without files of MATLAB: tiny copies in the exact layouts; torchvision reads the same."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
from published import refused
from torchvision import datasets

from kdtool import data
from kdtool.data.dataset import NO_LABEL
from kdtool.errors import UsageError

MADE: dict[str, Callable[[Path], Any]] = {
    "stl10": published.stl10,
    "stl10_unlabelled": published.stl10,
    "tiny_imagenet": published.tiny_imagenet,
    "imagenet": lambda folder: published.imagenet(folder, flat=False),
    "cub200": published.cub200,
    "indoor67": published.indoor67,
    "pubfig83": published.pubfig83,
}


@pytest.fixture(autouse=True)
def _index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("index")))


def same(part: data.Part, oracle: Any) -> None:
    """Compares a part with (picture, label) pairs, one by one."""
    assert len(part.labels) == len(part.images) == len(oracle)
    for row, (picture, label) in enumerate(oracle):
        mine = part.images[row]
        pixels = mine.transpose(1, 2, 0) if isinstance(mine, np.ndarray) else np.asarray(mine)
        assert np.array_equal(pixels, np.asarray(picture.convert("RGB")))
        assert part.labels[row] == label
    assert part.labels.dtype == np.int64


def opened(paths: list[Path], labels: list[int]) -> list[tuple[Any, int]]:
    return [(datasets.folder.default_loader(str(path)), label) for path, label in zip(paths, labels, strict=True)]


def replaced(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


@pytest.mark.parametrize("name", MADE)
def test_the_folder_may_be_the_data_set_or_hold_it(tmp_path: Path, name: str) -> None:
    MADE[name](tmp_path)
    own = next(tmp_path.iterdir())
    found = data.load(name, tmp_path)
    assert found.digest == data.load(name, own).digest
    assert (found.name, found.classes, found.flip) == (name, len(found.class_names), True)
    for part in (found.train, found.test):
        assert part.labels.max() < found.classes
        assert part.labels.min() >= (NO_LABEL if name == "stl10_unlabelled" else 0)


@pytest.mark.parametrize("name", MADE)
def test_files_that_are_not_there_are_named_with_the_command_that_brings_them(tmp_path: Path, name: str) -> None:
    source = "stl10" if name == "stl10_unlabelled" else name
    with pytest.raises(UsageError, match=f"no such folder.*`kdtool data fetch {source} --into .*absent`"):
        data.load(name, tmp_path / "absent")
    MADE[name](tmp_path)
    own = next(tmp_path.iterdir())
    if name == "pubfig83":
        return
    for entry in sorted(own.iterdir()):
        if entry.name in ("fold_indices.txt", "test") or (name == "stl10" and entry.name.startswith("unlabeled")):
            continue
        entry.rename(tmp_path / "away")
        for folder in (tmp_path, own):
            with pytest.raises(UsageError) as caught:
                data.load(name, folder)
            assert f"(not there: {entry.name}" in str(caught.value).replace("val/images/", "val").replace("val/", "val")
            assert f"`kdtool data fetch {source} --into {tmp_path}`" in str(caught.value)
        (tmp_path / "away").rename(entry)
    assert data.load(name, tmp_path).name == name


def test_an_archive_that_lies_there_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200.zip").touch()
    with pytest.raises(UsageError, match=r"archive tiny-imagenet-200\.zip that lies there with `kdtool data fetch tin"):
        data.load("tiny_imagenet", tmp_path)
    (tmp_path / "tiny-imagenet-200" / "train").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"remove the incomplete \S*tiny-imagenet-200, then unpack"):
        data.load("tiny_imagenet", tmp_path)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares checksums of whole files, which tiny copies do not have."""
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)


@pytest.mark.usefixtures("unchecked")
def test_stl10_is_what_torchvision_reads(tmp_path: Path) -> None:
    shown = published.stl10(tmp_path)
    found = data.load("stl10", tmp_path)
    same(found.train, datasets.STL10(tmp_path, "train"))
    same(found.test, datasets.STL10(tmp_path, "test"))
    assert np.array_equal(found.train.images, shown["train"])
    assert found.test.labels.tolist() == shown["test labels"].tolist()
    more = data.load("stl10_unlabelled", tmp_path)
    same(more.train, datasets.STL10(tmp_path, "train+unlabeled"))
    same(more.test, datasets.STL10(tmp_path, "test"))
    assert more.train.labels[12:].tolist() == [NO_LABEL] * 3
    assert found.class_names[:2] == ("airplane", "bird")
    assert found.image_shape == more.image_shape == (3, 96, 96)
    assert found.digest != more.digest
    for part in (found.train, more.train, found.test):
        assert type(part.images) is np.ndarray
        assert part.images.flags.c_contiguous
        assert part.images.flags.writeable


def test_stl10_is_the_same_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdtool.data.stl10 import stl10_unlabelled

    published.stl10(tmp_path)
    digest = data.load("stl10_unlabelled", tmp_path).digest
    for pieces in (1, 5, 12):
        monkeypatch.setitem(stl10_unlabelled.__globals__, "TOGETHER", pieces)
        assert stl10_unlabelled(tmp_path).digest == digest


@pytest.mark.parametrize("file", ["train_X.bin", "test_X.bin", "unlabeled_X.bin", "train_y.bin", "test_y.bin"])
def test_files_of_stl10_of_a_wrong_size_are_damaged(tmp_path: Path, file: str) -> None:
    published.stl10(tmp_path)
    path = tmp_path / "stl10_binary" / file
    content = path.read_bytes()
    for wrong in (content[:-1], content + b"\1", b""):
        path.write_bytes(wrong)
        refused("stl10_unlabelled", tmp_path, str(path))


def test_labels_and_names_of_stl10_are_bounded(tmp_path: Path) -> None:
    published.stl10(tmp_path)
    place = tmp_path / "stl10_binary"
    for label in (0, 11, 255):
        (place / "test_y.bin").write_bytes(bytes([1, 2, label, 4, 5]))
        refused("stl10", tmp_path, "test_y.bin is damaged", f"'{label}'", "from 1 to 10")
    published.text(place / "class_names.txt", "airplane")
    refused("stl10", tmp_path, "class_names.txt is damaged: it names 1 classes, 10 are expected")


def test_tiny_imagenet_is_what_everybody_reads(tmp_path: Path) -> None:
    place = published.tiny_imagenet(tmp_path)
    found = data.load("tiny_imagenet", tmp_path)
    oracle = datasets.ImageFolder(place / "train")
    same(found.train, oracle)
    wnids = sorted(published.TINY)
    assert oracle.classes == wnids
    rows = [line.split("\t")[:2] for line in (place / "val/val_annotations.txt").read_text().splitlines()]
    same(found.test, opened([place / "val/images" / name for name, _ in rows], [wnids.index(w) for _, w in rows]))
    assert found.class_names == ("goldfish, Carassius auratus", "Egyptian cat", "reel")
    assert found.image_shape == (3, 64, 64)
    assert found.mean == (0.4802, 0.4481, 0.3975)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("wnids.txt", "n04067472\n", "", ("train/n04067472", "wnids.txt does not name it")),
        ("wnids.txt", "n04067472\n", "n04067472\nn09\n", ("train/n09", "no such folder")),
        ("wnids.txt", "n04067472\n", "../../etc\n", ("../../etc", "no such folder")),
        ("val/val_annotations.txt", "val_3.JPEG", "val_9.JPEG", ("val/images/val_9.JPEG", "no file")),
        ("val/val_annotations.txt", "val_3.JPEG", "val_2.JPEG", ("names 'val/images/val_2.JPEG' twice",)),
        ("val/val_annotations.txt", "val_3.JPEG", "../../wnids.txt", ("does not lie in the folder",)),
        ("val/val_annotations.txt", "val_3.JPEG", "/etc/passwd", ("does not lie in the folder",)),
        ("val/val_annotations.txt", "n02124075", "n00000000", ("does not name a picture and its class",)),
        ("val/val_annotations.txt", "val_4.JPEG\t", "val_4.JPEG", ("does not name a picture and its class",)),
        ("val/val_annotations.txt", "val_4.JPEG\tn01443537\t0\t32\t44\t62\n", "", ("not name val/images/val_4.JPEG",)),
    ],
)
def test_lists_of_tiny_imagenet_are_bounded(tmp_path: Path, file: str, old: str, new: str, words: Any) -> None:
    place = published.tiny_imagenet(tmp_path)
    replaced(place / file, old, new)
    refused("tiny_imagenet", tmp_path, *words)


def test_tiny_imagenet_with_a_class_or_a_size_that_is_wrong_is_damaged(tmp_path: Path) -> None:
    place = published.tiny_imagenet(tmp_path)
    published.picture(place / "train/n02124075/images/n02124075_3.JPEG", (64, 63))
    refused("tiny_imagenet", tmp_path, "n02124075_3.JPEG is not 64 pixels high and wide")
    shutil.rmtree(place / "train/n02124075/images")
    refused("tiny_imagenet", tmp_path, "train/n02124075/images has no picture")
    published.text(place / "wnids.txt")
    refused("tiny_imagenet", tmp_path, "wnids.txt is damaged: it names no class")


def test_a_class_without_a_word_is_called_by_its_id(tmp_path: Path) -> None:
    place = published.tiny_imagenet(tmp_path)
    (place / "words.txt").write_bytes(b"n01443537\tgold\xfffish\n")
    assert data.load("tiny_imagenet", tmp_path).class_names == ("gold\ufffdfish", "n02124075", "n04067472")


def test_sorted_imagenet_is_what_torchvision_reads(tmp_path: Path) -> None:
    place = published.imagenet(tmp_path, flat=False)
    found = data.load("imagenet", tmp_path)
    same(found.train, datasets.ImageFolder(place / "train"))
    same(found.test, datasets.ImageFolder(place / "val"))
    assert found.class_names == published.WNIDS
    assert found.mean == (0.485, 0.456, 0.406)


def test_imagenet_that_is_not_whole_is_damaged(tmp_path: Path) -> None:
    place = published.imagenet(tmp_path, flat=False)
    (place / "train/n02085620.tar").touch()
    refused("imagenet", tmp_path, "train has n02085620.tar and 0 more files")
    (place / "train/n02085620.tar").rename(place / "val/ILSVRC2012_val_00000009.JPEG")
    refused("imagenet", tmp_path, "val has ILSVRC2012_val_00000009.JPEG")
    (place / "val/ILSVRC2012_val_00000009.JPEG").unlink()
    (place / "val/n09").mkdir()
    refused("imagenet", tmp_path, "train/ and val/", "n09 is in one of them only")
    (place / "train/n09").mkdir()
    refused("imagenet", tmp_path, "train/n09 has no picture")
    published.picture(place / "train/n09/n09_1.JPEG")
    refused("imagenet", tmp_path, "val/n09 has no picture")
    shutil.rmtree(place / "train")
    (place / "train").mkdir()
    refused("imagenet", tmp_path, "train has no folder")


def test_cub200_is_read_by_its_lists(tmp_path: Path) -> None:
    place = published.cub200(tmp_path)
    for file in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):  # in any order
        rows = (place / file).read_text().splitlines()
        (place / file).write_text("\n".join(sorted(rows)))
    found = data.load("cub200", tmp_path)

    def column(file: str) -> dict[int, str]:
        return {int(row.split()[0]): row.split()[1] for row in (place / file).read_text().splitlines()}

    paths, labels, trains = column("images.txt"), column("image_class_labels.txt"), column("train_test_split.txt")
    for part, flag in ((found.train, "1"), (found.test, "0")):
        numbers = [number for number in range(1, 13) if trains[number] == flag]
        pictures = [place / "images" / paths[number] for number in numbers]
        same(part, opened(pictures, [int(labels[number]) - 1 for number in numbers]))
        assert [path.parent.name for path in pictures] == [found.class_names[label] for label in part.labels]
    assert found.class_names == published.BIRDS


BIRD = "003.Sooty_Albatross/Sooty_Albatross_0005.jpg"


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("images.txt", BIRD, "../../../../etc/passwd", ("images/../../../../etc/passwd", "not lie in the folder")),
        ("images.txt", BIRD, "/etc/passwd", ("images//etc/passwd", "not lie in the folder")),
        ("images.txt", BIRD, "a\0b", ("not lie in the folder",)),
        ("images.txt", BIRD, "x" * 5000, ("no file",)),
        ("images.txt", BIRD, "absent.jpg", ("images/absent.jpg", "no file")),
        ("images.txt", f"5 {BIRD}", "5", ("images.txt is damaged: the line '5' has no second word",)),
        ("images.txt", f"5 {BIRD}", f"4 {BIRD}", ("a number is in it twice",)),
        ("images.txt", f"5 {BIRD}", f"five {BIRD}", ("'five'",)),
        ("images.txt", f"5 {BIRD}\n", "", ("image_class_labels.txt", "the picture 5 is either")),
        ("image_class_labels.txt", "5 3", "5 4", ("'4'", "from 1 to 3")),
        ("image_class_labels.txt", "5 3", "5 0", ("'0'", "from 1 to 3")),
        ("image_class_labels.txt", "5 3", "5 nan", ("'nan'",)),
        ("image_class_labels.txt", "12 1\n", "", ("the picture 12 is either",)),
        ("train_test_split.txt", "5 1", "5 2", ("'2'", "from 0 to 1")),
        ("train_test_split.txt", "12 0\n", "", ("the picture 12 is either",)),
        ("classes.txt", "2 ", "7 ", ("classes.txt is damaged: its numbers are not 1 to 3",)),
    ],
)
def test_lists_of_cub200_are_bounded(tmp_path: Path, file: str, old: str, new: str, words: Any) -> None:
    place = published.cub200(tmp_path)
    replaced(place / file, old, new)
    refused("cub200", tmp_path, *words)


def test_lists_of_cub200_that_are_empty_large_or_one_sided_are_damaged(tmp_path: Path) -> None:
    place = published.cub200(tmp_path)
    published.text(place / "train_test_split.txt", *(f"{number} 1" for number in range(1, 13)))
    refused("cub200", tmp_path, "one of the two parts is empty")
    published.text(place / "classes.txt")
    refused("cub200", tmp_path, "classes.txt is damaged: it is empty")
    with (place / "images.txt").open("r+b") as file:
        file.truncate(2**24 + 1)
    refused("cub200", tmp_path, "images.txt is damaged: it has more than 16,777,216 bytes")


def test_indoor67_is_read_by_its_lists(tmp_path: Path) -> None:
    place = published.indoor67(tmp_path)
    found = data.load("indoor67", tmp_path)
    assert found.class_names == ("airport_inside", "children_room", "winecellar")
    for part, file in ((found.train, "TrainImages.txt"), (found.test, "TestImages.txt")):
        names = (place / file).read_text().split()
        labels = [found.class_names.index(name.split("/")[0]) for name in names]
        same(part, opened([place / "Images" / name for name in names], labels))
    assert (len(found.train.labels), len(found.test.labels)) == (6, 3)


ROOM = "winecellar/winecellar_0002.jpg"


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("winecellar/../../../etc/passwd", ("not lie in the folder",)),
        ("../Images/" + ROOM, ("names '../Images/winecellar", "no such class")),
        ("/etc/passwd", ("no such class",)),
        ("cellar/x.jpg", ("names 'cellar/x.jpg', and Images/ has no such class",)),
        ("winecellar/absent.jpg", ("absent.jpg", "no file")),
        ("winecellar", ("no file",)),
        ("winecellar/winecellar_0000.jpg", ("twice",)),
        ("winecellar/winecellar_0003.jpg", ("TestImages.txt is damaged", "which TrainImages.txt names too")),
    ],
)
def test_lists_of_indoor67_are_bounded(tmp_path: Path, new: str, words: Any) -> None:
    place = published.indoor67(tmp_path)
    replaced(place / "TrainImages.txt", ROOM, new)
    refused("indoor67", tmp_path, *words)
    published.text(place / "TrainImages.txt")
    refused("indoor67", tmp_path, "TrainImages.txt is damaged: it is empty")


def test_a_list_may_name_files_in_any_encoding(tmp_path: Path) -> None:
    place = published.indoor67(tmp_path)
    name = b"winecellar/caf\xe9.jpg"
    (place / "Images" / ROOM).rename(place / "Images" / name.decode(errors="surrogateescape"))
    path = place / "TrainImages.txt"
    path.write_bytes(path.read_bytes().replace(ROOM.encode(), name))
    assert len(data.load("indoor67", tmp_path).train.labels) == 6
    assert len(data.load("indoor67", tmp_path).train.labels) == 6  # from the index


def test_a_third_of_every_person_in_pubfig83_is_tested(tmp_path: Path) -> None:
    published.pubfig83(tmp_path)
    found = data.load("pubfig83", tmp_path)
    train, test = (np.bincount(part.labels, minlength=83) for part in (found.train, found.test))
    assert (train + test).tolist() == [3 + person % 3 for person in range(83)]
    assert test.sum() == sum(3 + person % 3 for person in range(83)) // 3
    assert test.min() == 1
    assert test.max() == 2
    assert found.digest == data.load("pubfig83", tmp_path).digest
    seen = {bytes(digest) for part in (found.train, found.test) for digest in part.images.digests}  # type: ignore[union-attr]
    assert len(seen) == len(found.train.labels) + len(found.test.labels)


def test_pubfig83_has_83_people(tmp_path: Path) -> None:
    place = published.pubfig83(tmp_path, 82)
    refused("pubfig83", tmp_path, "has 82 folders, one for each of 83 people")
    for person in place.iterdir():
        shutil.move(person, tmp_path)
    place.rmdir()
    with pytest.raises(UsageError, match="a folder for each of 83 people"):
        data.load("pubfig83", tmp_path)


def test_knowing_all_data_sets_imports_nothing_that_reads_them() -> None:
    code = (
        "import sys, kdtool.data; sys.exit(any(name in sys.modules for name in ('torch', 'PIL', 'scipy', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
