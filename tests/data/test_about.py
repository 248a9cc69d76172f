"""What is said of the data sets, and the checksums of their files: cited ones, compared file by file."""

import hashlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtool.data import DATASETS, about, load
from kdtool.data.about import ABOUT, PINNED, Compared, compare


def test_every_data_set_is_told_of_within_a_line_of_80_columns() -> None:
    assert list(ABOUT) == [name for name in DATASETS if name != "made_up"]  # which other tests add
    assert max(map(len, ABOUT.values())) <= 80 - 2 - max(map(len, ABOUT))


def test_no_pinned_checksum_is_invented() -> None:
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        pytest.skip("torchvision is not installed, whose source code the checksums are from")
    folder = Path(found.submodule_search_locations[0]) / "datasets"
    text = "".join((folder / f"{name}.py").read_text() for name in ("cifar", "stl10"))
    for sums in PINNED.values():
        for file, md5 in sums.items():
            name = re.escape(Path(file).name)
            beside = rf'"{name}"[^\[\]{{}}]{{0,60}}"{md5}"|"{name}",[^{{}}]*"md5": "{md5}"'
            assert re.search(beside, text), file


def test_files_are_compared_in_the_folder_or_in_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = {"own/a": hashlib.md5(b"a").hexdigest(), "own/b": hashlib.md5(b"b").hexdigest(), "own/c": ""}
    monkeypatch.setitem(about.PINNED, "made_up", sums)
    assert compare("made_up", tmp_path) == compare("no such set", tmp_path) == Compared((), ())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"other")
    assert compare("made_up", tmp_path) == Compared(("own/a",), ("own/b",))


def test_cifar100_is_read_exactly(shared: Path, tmp_path: Path) -> None:
    """The set restored from its lossless pictures, whose files have the published MD5s, read by both ways."""
    source = shared / "data"
    subprocess.run([sys.executable, source / "restore.py", tmp_path], check=True, capture_output=True)
    assert compare("cifar100", tmp_path) == Compared(tuple(PINNED["cifar100"]), ())
    found = load("cifar100", tmp_path)
    assert found.train.images.shape == (50_000, 3, 32, 32)  # type: ignore[union-attr]
    assert np.bincount(found.train.labels).tolist() == [500] * 100
    assert np.bincount(found.test.labels).tolist() == [100] * 100
    with Image.open(source / "cifar-100" / "cifar100-test.webp") as mosaic:
        pixels = np.asarray(mosaic.convert("RGB"))
    rows, columns = pixels.shape[0] // 32, pixels.shape[1] // 32
    tiles = pixels.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    assert {tile.tobytes() for tile in tiles} == {image.tobytes() for image in found.test.images}  # type: ignore[union-attr]
