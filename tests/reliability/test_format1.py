"""A small cache of format 1 that was committed once stays readable for ever, and so does the HDF5 file made of it.

The files beside this test are never written again. What is in them follows from `rows`.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from kdtool.cache import (
    DTYPES,
    ArraySpec,
    CacheWriter,
    Contents,
    Layout,
    create_or_open,
    export_hdf5,
    import_hdf5,
    open_cache,
    verify,
    verify_hdf5,
)

CACHE, FILE = Path(__file__).with_name("format1") / "cache.zarr", Path(__file__).with_name("format1") / "cache.h5"
LAYOUT = Layout(
    {"train": 5, "train_clean": 5, "validation": 2, "test": 3}, 3, batch=2, fit_views=2, tap_shapes={"after_fc": (3,)}
)
IDENTITY = {"teacher": {"network": "resnet8", "sha256": "ab" * 32}, "data": {"name": "made_up", "digest": "cd" * 32}}
KEYS = {
    "logits": Contents(
        1, ("after_fc",), {"name": "Pooled", "tap": "after_fc"}, None, {"values": ArraySpec("float16", (3,))}
    ),
    "every.dtype": Contents(
        2,
        ("stage1", "stage2"),
        {"name": "Every", "sizes": [2, 3]},
        "centres",
        {dtype: ArraySpec(dtype, (2, 3)) for dtype in DTYPES},
    ),
}
VIEWS = {"train": 2, "train_clean": 1, "validation": 1, "test": 1}


def rows(part: str, key: str, name: str, view: int) -> np.ndarray[Any, Any]:
    """The rows (n, ...) of an array: small numbers that every dtype holds exactly."""
    spec = KEYS[key].arrays[name]
    shape = (LAYOUT.samples[part], *spec.shape)
    numbers = np.arange(np.prod(shape)) * 7 + 11 * view + 3 * len(part) + len(name)
    return (numbers % 101).reshape(shape).astype(spec.dtype)


def write(root: Path) -> None:
    """What wrote the committed cache."""
    with create_or_open(root, IDENTITY, LAYOUT) as writer:
        writer.provenance({"torch": "2.15.0", "device_type": "cpu"})
        for part, samples in LAYOUT.samples.items():
            writer.put_samples(part, np.arange(samples) % 3, np.arange(samples) * 10)
        writer.put_fit("centres", 1, {"name": "Centres"}, {"mean": np.arange(6.0).reshape(2, 3), "count": np.array(4)})
        for key, contents in KEYS.items():
            writer.declare(key, contents)
        for part, views in VIEWS.items():
            for view in range(views):
                _commit(writer, part, view)


def _commit(writer: CacheWriter, part: str, view: int) -> None:
    size = LAYOUT.block_rows(part)
    for block in range(LAYOUT.blocks(part)):
        taken = slice(block * size, (block + 1) * size)
        arrays = {key: {name: rows(part, key, name, view)[taken] for name in KEYS[key].arrays} for key in KEYS}
        writer.commit(part, view, block, arrays)


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy: a reader needs no lock, but tests must not write into what is committed."""
    return Path(shutil.copytree(CACHE, tmp_path / "cache.zarr"))


def test_every_value_is_read(copy: Path) -> None:
    assert verify(copy) == []
    cache = open_cache(copy)
    assert cache.identity == IDENTITY
    assert cache.layout.to_json() == LAYOUT.to_json()
    assert cache.provenance == [{"torch": "2.15.0", "device_type": "cpu"}]
    np.testing.assert_array_equal(cache.fitted("centres")["mean"], np.arange(6.0).reshape(2, 3))
    for part, views in VIEWS.items():
        np.testing.assert_array_equal(cache.index(part), np.arange(LAYOUT.samples[part]) * 10)
        for key, contents in KEYS.items():
            for name in contents.arrays:
                array = cache.array(part, key, name)
                plain = zarr.open_array(copy / part / key / name, mode="r")
                for view in range(views):
                    wanted = rows(part, key, name, view)
                    assert array.dtype == plain.dtype == wanted.dtype
                    np.testing.assert_array_equal(array.read(view), wanted)
                    np.testing.assert_array_equal(plain[view], wanted)


def test_the_file_is_read_and_becomes_that_cache(tmp_path: Path) -> None:
    assert verify_hdf5(FILE) == []
    import_hdf5(FILE, tmp_path / "cache.zarr")
    assert tree(tmp_path / "cache.zarr") == tree(CACHE)


def test_what_is_written_today_is_the_same(copy: Path, tmp_path: Path) -> None:
    write(tmp_path / "now")
    assert tree(tmp_path / "now") == tree(CACHE)
    export_hdf5(copy, tmp_path / "now.h5")
    assert verify_hdf5(tmp_path / "now.h5") == []


def test_it_is_extended(copy: Path) -> None:
    with create_or_open(copy, IDENTITY, LAYOUT) as writer:
        _commit(writer, "train", 2)
    assert open_cache(copy).views("every.dtype") == 3
    assert verify(copy) == []
