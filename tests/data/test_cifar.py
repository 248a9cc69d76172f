"""CIFAR in both published forms: made-up folders in the exact layouts, and the real CIFAR-100 where it is at hand."""

import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdtool import data
from kdtool.errors import DamageError, UsageError

Pixels = npt.NDArray[np.uint8]
Entries = dict[str, Any]


@dataclass(frozen=True)
class Fake:
    """A made-up data set: train files and a test file of (pixels (n, 3072), labels, coarse labels)."""

    name: str
    train: list[tuple[Pixels, list[int], list[int]]]
    test: tuple[Pixels, list[int], list[int]]
    names: list[str]


def fake(name: str) -> Fake:
    rng = np.random.default_rng(7)
    classes, files, size = (10, 5, 4) if name == "cifar10" else (100, 1, 12)

    def part(count: int) -> tuple[Pixels, list[int], list[int]]:
        labels = rng.integers(0, classes, count)
        return rng.integers(0, 256, (count, 3072), dtype=np.uint8), labels.tolist(), (labels // 5).tolist()

    return Fake(name, [part(size) for _ in range(files)], part(7), [f"class_{number}" for number in range(classes)])


def published_pickle(entries: Entries) -> bytes:
    """A dictionary as Python 2 and its numpy wrote it: protocol 2, byte strings, the names of old numpy."""

    def code(value: Any) -> bytes:
        if isinstance(value, str):
            return code(value.encode())
        if isinstance(value, bytes):
            return (
                b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
            )
        if isinstance(value, int):
            return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(code, value)) + b"e"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        shape = code(value.shape[0]) + code(value.shape[1]) + b"\x86"
        return made + b"(K\x01" + shape + kind + b"\x89" + code(value.tobytes()) + b"tb"

    return b"\x80\x02}(" + b"".join(code(key) + code(value) for key, value in entries.items()) + b"u."


def today(entries: Entries) -> bytes:
    """The same dictionary pickled by this Python and numpy."""
    return pickle.dumps(entries, protocol=4)


def write_python(source: Fake, folder: Path, dump: Any = published_pickle) -> Path:
    ten = source.name == "cifar10"
    place = folder / ("cifar-10-batches-py" if ten else "cifar-100-python")
    place.mkdir(parents=True)

    def entries(part: tuple[Pixels, list[int], list[int]], name: str) -> Entries:
        pixels, labels, coarse = part
        if ten:
            return {"batch_label": name, "labels": labels, "data": pixels, "filenames": ["a.png"] * len(labels)}
        return {"filenames": ["a.png"] * len(labels), "fine_labels": labels, "coarse_labels": coarse, "data": pixels}

    for number, part in enumerate(source.train, start=1):
        (place / (f"data_batch_{number}" if ten else "train")).write_bytes(dump(entries(part, "training batch")))
    (place / ("test_batch" if ten else "test")).write_bytes(dump(entries(source.test, "testing batch")))
    names: Entries = {"label_names" if ten else "fine_label_names": source.names, "num_vis": 3072}
    (place / ("batches.meta" if ten else "meta")).write_bytes(dump(names))
    return place


def write_binary(source: Fake, folder: Path) -> Path:
    ten = source.name == "cifar10"
    place = folder / ("cifar-10-batches-bin" if ten else "cifar-100-binary")
    place.mkdir(parents=True)

    def records(part: tuple[Pixels, list[int], list[int]]) -> bytes:
        rows = []
        for pixels, fine, coarse in zip(*part, strict=True):
            rows.append(bytes([fine] if ten else [coarse, fine]) + pixels.tobytes())
        return b"".join(rows)

    for number, part in enumerate(source.train, start=1):
        (place / (f"data_batch_{number}.bin" if ten else "train.bin")).write_bytes(records(part))
    (place / ("test_batch.bin" if ten else "test.bin")).write_bytes(records(source.test))
    (place / ("batches.meta.txt" if ten else "fine_label_names.txt")).write_text("\n".join(source.names) + "\n\n")
    return place


BOTH = pytest.mark.parametrize("name", ["cifar10", "cifar100"])


@BOTH
def test_both_forms_give_the_same_data_set(tmp_path: Path, name: str) -> None:
    source = fake(name)
    write_binary(source, tmp_path / "binary")
    write_python(source, tmp_path / "python")
    write_python(source, tmp_path / "today", today)
    for form in ("binary", "python", "today"):
        found = data.load(name, tmp_path / form)
        pixels = np.concatenate([part[0] for part in source.train])
        assert found.train.images.shape == (len(pixels), 3, 32, 32)
        assert found.train.images.dtype == np.uint8
        assert np.array_equal(found.train.images[3, 1, 2, 5], pixels[3, 1024 + 2 * 32 + 5])
        assert np.array_equal(found.train.images.reshape(-1, 3072), pixels)
        assert np.array_equal(found.test.images.reshape(-1, 3072), source.test[0])
        assert found.train.labels.tolist() == [label for part in source.train for label in part[1]]
        assert found.test.labels.tolist() == source.test[1]
        assert found.train.labels.dtype == np.int64
        assert found.class_names == tuple(source.names)
        assert (found.name, found.classes, found.flip) == (name, len(source.names), True)
        assert found.digest == data.load(name, tmp_path / "binary").digest
        for part in (found.train, found.test):
            assert part.images.flags.c_contiguous
            assert part.images.flags.writeable


@BOTH
def test_the_folder_may_be_the_form_itself_and_binary_is_preferred(tmp_path: Path, name: str) -> None:
    source = fake(name)
    python, binary = write_python(source, tmp_path), write_binary(source, tmp_path)
    assert data.load(name, python).digest == data.load(name, binary).digest == data.load(name, tmp_path).digest
    for path in python.iterdir():
        path.write_bytes(b"not a pickle")
    assert data.load(name, tmp_path).name == name
    next(binary.glob("*test*.bin")).unlink()
    with pytest.raises(DamageError):  # the binary form is incomplete, the python one damaged
        data.load(name, tmp_path)


@BOTH
@pytest.mark.parametrize("write", [write_binary, write_python])
def test_every_missing_file_is_a_usage_error(tmp_path: Path, name: str, write: Any) -> None:
    place = write(fake(name), tmp_path)
    for path in sorted(place.iterdir()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(UsageError, match="unpack the published archive") as caught:
            data.load(name, tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert path.name in str(caught.value)
        path.write_bytes(content)
    assert data.load(name, tmp_path).name == name


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"absent.*no such folder"):
        data.load("cifar100", tmp_path / "absent")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=str(tmp_path / "data")):
        data.load("cifar100")


@BOTH
@pytest.mark.parametrize("write", [write_binary, write_python])
@pytest.mark.parametrize("damage", ["shorter", "longer", "empty"])
def test_files_of_a_wrong_size_are_damaged(tmp_path: Path, name: str, write: Any, damage: str) -> None:
    place = write(fake(name), tmp_path)
    for path in sorted(place.iterdir()):
        if path.suffix == ".txt" or (damage == "longer" and write is write_python):
            continue
        content = path.read_bytes()
        path.write_bytes({"shorter": content[:-1], "longer": content + b"\0", "empty": b""}[damage])
        with pytest.raises(DamageError) as caught:
            data.load(name, tmp_path)
        assert str(path) in str(caught.value)
        path.write_bytes(content)


def test_a_train_file_with_fewer_images_than_the_others_is_damaged(tmp_path: Path) -> None:
    path = write_binary(fake("cifar10"), tmp_path) / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:-3073])
    with pytest.raises(DamageError, match=r"data_batch_4\.bin is damaged: it holds 3 images, data_batch_1\.bin 4"):
        data.load("cifar10", tmp_path)


@BOTH
def test_a_label_that_is_no_class_is_damage(tmp_path: Path, name: str) -> None:
    path = next(write_binary(fake(name), tmp_path).glob("*test*.bin"))
    content = bytearray(path.read_bytes())
    content[0 if name == "cifar10" else 1] = 100
    path.write_bytes(content)
    with pytest.raises(DamageError, match=r"test.*\.bin is damaged: it has the label 100"):
        data.load(name, tmp_path)


def test_a_wrong_number_of_class_names_is_damage(tmp_path: Path) -> None:
    path = write_binary(fake("cifar10"), tmp_path) / "batches.meta.txt"
    path.write_text("airplane\nautomobile\n")
    with pytest.raises(DamageError, match=r"batches\.meta\.txt.*2 classes, 10 are expected"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"data": None},
        {"data": np.zeros((12, 3071), dtype=np.uint8)},
        {"data": np.zeros((12, 3072), dtype=np.int8)},
        {"data": np.zeros(12, dtype=np.uint8)},
        {"data": np.zeros((11, 3072), dtype=np.uint8)},
        {"fine_labels": None},
        {"fine_labels": [0] * 11},
        {"fine_labels": ["0"] * 12},
        {"fine_labels": [2**70] * 12},
        {"fine_labels": [-1] * 12},
    ],
)
def test_entries_that_do_not_fit_are_damage(tmp_path: Path, change: Entries) -> None:
    path = write_python(fake("cifar100"), tmp_path) / "train"
    pixels, labels, _ = fake("cifar100").train[0]
    path.write_bytes(today({"data": pixels, "fine_labels": labels, **change}))
    with pytest.raises(DamageError, match="train is damaged"):
        data.load("cifar100", tmp_path)


def test_the_digest_sees_pixels_labels_and_their_places(tmp_path: Path) -> None:
    source = fake("cifar100")
    write_binary(source, tmp_path)
    found = data.load("cifar100", tmp_path)
    digests = {found.digest}
    images = found.train.images
    images[5, 2, 31, 31] ^= 1
    digests.add(data.content_digest(found.train, found.test))
    images[5, 2, 31, 31] ^= 1
    found.test.labels[0] += 1
    digests.add(data.content_digest(found.train, found.test))
    found.test.labels[0] -= 1
    digests.add(data.content_digest(found.test, found.train))
    digests.add(data.content_digest(data.Part(images.transpose(0, 1, 3, 2), found.train.labels), found.test))
    digests.add(data.content_digest(data.Part(images.reshape(-1, 3, 16, 64), found.train.labels), found.test))
    assert len(digests) == 6
    assert data.content_digest(found.train, found.test) == found.digest


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the published python form of CIFAR-100, restored from lossless parts."""
    features = pytest.importorskip("PIL.features", reason="Pillow is not installed: it restores the real CIFAR-100")
    if not features.check("webp"):
        pytest.skip("this Pillow reads no WebP: it restores the real CIFAR-100")
    folder = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, shared / "data" / "restore.py", folder], check=True, capture_output=True)
    yield folder
    shutil.rmtree(folder)


def test_the_real_cifar100_has_its_known_content(real: Path) -> None:
    found = data.load("cifar100", real)
    assert found.train.images.shape == (50_000, 3, 32, 32)
    assert found.test.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(found.train.labels).tolist() == [500] * 100
    assert np.bincount(found.test.labels).tolist() == [100] * 100
    assert found.class_names[:3] == ("apple", "aquarium_fish", "baby")
    assert [found.class_names[label] for label in found.train.labels[:3]] == ["cattle", "dinosaur", "apple"]
    for channel in range(3):
        counts = np.bincount(found.train.images[:, channel].ravel(), minlength=256)
        mean = np.average(np.arange(256) / 255, weights=counts)
        assert found.mean[channel] == pytest.approx(mean, abs=3e-4)
        deviation = np.average((np.arange(256) / 255 - mean) ** 2, weights=counts) ** 0.5
        assert found.std[channel] == pytest.approx(deviation, abs=3e-4)
    assert found.digest == "d8db75659641851fdd9616425d879b440d3a38ade9ecdf13a4be4ca81d2db3ae"
