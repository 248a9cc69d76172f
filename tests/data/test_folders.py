"""Any folder of classes: the layouts that people use, and what is said of those that are none."""

import shutil
from pathlib import Path

import numpy as np
import published
import pytest
from torchvision.datasets import ImageFolder

from kdtool import data
from kdtool.data.folders import divided
from kdtool.data.listing import Files
from kdtool.errors import UsageError


@pytest.fixture(autouse=True)
def _index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("index")))


def classes(folder: Path, *names: str, count: int = 5) -> Path:
    for name in names:
        for number in range(count):
            published.picture(folder / name / f"{number}.png")
    return folder


def pairs(part: data.Part) -> list[tuple[bytes, int]]:
    return [(part.images[row].tobytes(), int(label)) for row, label in enumerate(part.labels)]


def oracle(folder: Path) -> list[tuple[bytes, int]]:
    """What torchvision reads."""
    return [(picture.tobytes(), label) for picture, label in ImageFolder(folder)]


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        data.load("folder", folder)


@pytest.mark.parametrize("held", ["validation", "val", "valid"])
def test_validation_pictures_are_rows_of_the_train_part(tmp_path: Path, held: str) -> None:
    for part, count in (("train", 4), (held, 2), ("test", 3)):
        classes(tmp_path / part, "owl", "cat", "dog", count=count)
    found = data.load("folder", tmp_path)
    assert pairs(found.train) == oracle(tmp_path / "train") + oracle(tmp_path / held)
    assert pairs(found.test) == oracle(tmp_path / "test")
    assert found.validation.tolist() == list(range(12, 18))
    assert found.class_names == ("cat", "dog", "owl")
    assert (found.mean, found.flip) == ((0.485, 0.456, 0.406), True)


@pytest.mark.parametrize("tested", ["validation", "val", "valid", "test"])
def test_with_two_parts_the_second_is_the_test_part(tmp_path: Path, tested: str) -> None:
    classes(tmp_path / "train", "owl", "cat")
    classes(tmp_path / tested, "owl", count=2)
    found = data.load("folder", tmp_path)
    assert pairs(found.train) == oracle(tmp_path / "train")
    assert found.test.labels.tolist() == [1, 1]
    assert len(found.validation) == 0


@pytest.mark.parametrize("place", ["", "train"])
def test_without_a_test_part_a_fifth_of_every_class_is_one(tmp_path: Path, place: str) -> None:
    classes(tmp_path / place, "owl", count=10)
    classes(tmp_path / place, "cat", count=15)
    found = data.load("folder", tmp_path)
    assert np.bincount(found.train.labels).tolist() == [12, 8]
    assert np.bincount(found.test.labels).tolist() == [3, 2]
    assert sorted(pairs(found.train) + pairs(found.test)) == sorted(oracle(tmp_path / place))
    assert found.digest == data.load("folder", tmp_path).digest
    assert found.class_names == ("cat", "owl")


def test_the_same_pictures_have_the_same_digest_in_any_file_system(tmp_path: Path) -> None:
    one = classes(tmp_path / "one", "a", "b")
    for path in sorted(one.rglob("*.png"), reverse=True):
        (tmp_path / "two" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "two" / path.parent.name)
    assert data.load("folder", one).digest == data.load("folder", tmp_path / "two").digest


def test_folders_in_class_folders_count_and_hidden_files_do_not(tmp_path: Path) -> None:
    classes(tmp_path, "cat", "owl/white/young", "owl/grey")
    classes(tmp_path, ".git", "cat/.thumbnails")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "cat" / name).touch()
    (tmp_path / "labels.csv").touch()
    found = data.load("folder", tmp_path)
    assert np.bincount(np.concatenate([found.train.labels, found.test.labels])).tolist() == [5, 10]


def test_names_may_have_any_characters(tmp_path: Path) -> None:
    odd = [" a b", "ünï", "a\nb", "x'\"$;*", "%s{}", "-rf", "#", b"\xff\xfe".decode(errors="surrogateescape"), "1.5"]
    classes(tmp_path, *odd)
    for name in odd:
        published.picture(tmp_path / odd[0] / f"{name}.png")
    found = data.load("folder", tmp_path)
    assert found.class_names == tuple(sorted(odd))
    assert len(found.train.labels) + len(found.test.labels) == 54
    assert data.load("folder", tmp_path).digest == found.digest


def test_class_folders_may_be_links_and_loops_end(tmp_path: Path) -> None:
    pool = classes(tmp_path / "pool", "cats", "owls", "more")
    root = tmp_path / "root"
    (root / "train").mkdir(parents=True)
    (root / "train" / "cat").symlink_to(pool / "cats")
    (root / "train" / "owl").symlink_to("../../pool/owls")
    (pool / "cats" / "loop").symlink_to(".")
    (pool / "cats" / "up").symlink_to(pool)  # would show owls as cats
    (pool / "owls" / "top").symlink_to("/")
    (pool / "owls" / "train").symlink_to(root / "train")
    for name in ("again", "once"):
        (pool / "owls" / name).symlink_to(pool / "more")
    (pool / "more" / "back").symlink_to(pool / "owls")
    found = data.load("folder", root)
    assert np.bincount(np.concatenate([found.train.labels, found.test.labels])).tolist() == [5, 10]


def test_many_folders_that_link_to_one_another_end(tmp_path: Path) -> None:
    names = [f"c{number:02d}" for number in range(12)]
    classes(tmp_path / "root", "a", "b")
    classes(tmp_path / "pool", *names, count=1)
    for one in names:
        (tmp_path / "root" / "a" / one).symlink_to(tmp_path / "pool" / one)
        for other in names:
            (tmp_path / "pool" / one / other).symlink_to(tmp_path / "pool" / other)
    found = data.load("folder", tmp_path / "root")
    assert np.bincount(np.concatenate([found.train.labels, found.test.labels])).tolist() == [17, 5]


def test_what_is_no_folder_of_classes_is_told(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "there is no folder .*absent; name the one that holds the data set")
    refused(tmp_path, "has no folder; a folder for each class is expected there$")
    classes(tmp_path / "set", "cat")
    refused(
        tmp_path / "set/cat", f"has 5 pictures, as 0.png, and no folder.*if they are one class, name {tmp_path}/set$"
    )
    refused(tmp_path / "set", "has one class, cat; two at least are expected$")
    classes(tmp_path / "set", "owl")
    refused(tmp_path, r"has one class, set;.*name \S*set if its folders \(cat, owl\) are the classes or parts")
    published.picture(tmp_path / "set/loose.JPEG")
    refused(tmp_path / "set", "set has 1 pictures beside its folders, as loose.JPEG; move each into the folder")
    (tmp_path / "set/loose.JPEG").unlink()
    (tmp_path / "set/dog").mkdir()
    refused(tmp_path / "set", "has no picture of dog; add pictures, or remove the folder")


def test_parts_that_do_not_fit_are_told(tmp_path: Path) -> None:
    classes(tmp_path / "val", "cat", "owl")
    refused(tmp_path, "has val and no train; add train/CLASS/, or name .*val")
    (tmp_path / "train").mkdir()
    refused(tmp_path, "train has no folder; a folder for each class is expected")
    classes(tmp_path / "train", "cat")
    refused(tmp_path, "train has one class, cat; two at least are expected")
    classes(tmp_path / "train", "dog")
    refused(tmp_path, "val has owl, which .*train does not have; classes are those of train")
    classes(tmp_path / "train", "owl")
    assert data.load("folder", tmp_path).class_names == ("cat", "dog", "owl")
    for path in (tmp_path / "val/cat").iterdir():
        path.rename(tmp_path / "val" / path.name)
    refused(tmp_path, "val has 5 pictures beside its folders")
    for path in (tmp_path / "val").glob("*.png"):
        path.unlink()
    refused(tmp_path, "val has no picture of cat")
    shutil.rmtree(tmp_path / "val/cat")
    (tmp_path / "test").mkdir()
    refused(tmp_path, "test has no folder")
    (tmp_path / "validation").mkdir()
    refused(tmp_path, "has val and validation, which mean the same; keep one of them")


def test_a_class_that_is_called_like_a_part_is_told(tmp_path: Path) -> None:
    classes(tmp_path, "bus", "car", "train")
    refused(
        tmp_path, "has train, which is read as a part .* pictures in bus, car beside; rename train if it is a class"
    )
    classes(tmp_path / "train", "diesel", "steam")
    refused(tmp_path, "rename train if it is a class, or move bus away")
    shutil.rmtree(tmp_path / "bus")
    shutil.rmtree(tmp_path / "car")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/notes.txt").write_text("folders without pictures may stay")
    for path in (tmp_path / "train").glob("*.png"):
        path.unlink()
    assert data.load("folder", tmp_path).class_names == ("diesel", "steam")


@pytest.mark.parametrize("name", ["Train", "TEST", "training", "Testing", "Val"])
def test_a_folder_that_may_be_meant_as_a_part_is_no_class(tmp_path: Path, name: str) -> None:
    classes(tmp_path, "cat", "owl", name)
    refused(tmp_path, f"has the folder {name}; rename it to train or test or")


def test_too_few_pictures_to_hold_some_out_are_told(tmp_path: Path) -> None:
    classes(tmp_path, "cat", "owl", count=2)
    refused(tmp_path, "one picture in 5 becomes the test part, and there are 4 pictures, 2 of them of cat")
    classes(tmp_path, "cat", count=10)
    (tmp_path / "owl/0.png").unlink()
    refused(tmp_path, "there are 11 pictures, 1 of them of owl; 5 and 2 of each class are the fewest")


def test_every_class_trains_and_no_picture_is_in_both_parts() -> None:
    for counts in ((2, 3), (2, 2, 2), (2, 50, 7), (5,) * 20):
        labels = np.repeat(np.arange(len(counts)), counts)
        files = Files([f"{row}" for row in range(len(labels))], labels)
        for held in (3, 5):
            train, test = divided(files, [str(label) for label in range(len(counts))], held)
            assert sorted([*train.names, *test.names]) == sorted(files.names)
            assert np.bincount(train.labels, minlength=len(counts)).min() > 0
            assert len(test.names) == len(labels) // held
            for part in (train, test):
                assert part.labels.tolist() == [labels[int(name)] for name in part.names]
