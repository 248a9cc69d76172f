"""A tiny cache of several parts, keys, arrays, blocks and chunks, written by a session that can be run again."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdtool.cache import ArraySpec, CacheWriter, Contents, Layout, create_or_open

IDENTITY = {"teacher": {"name": "resnet8", "sha256": "ab" * 32}, "data": {"rows": 30}, "flags": ["tf32"]}
LAYOUT = Layout(
    {"train": 10, "train_clean": 10, "test": 3}, 5, batch=2, fit_views=2, tap_shapes={"after_fc": (5,)}, block=6
)
LOGITS = Contents(1, ("after_fc",), {"name": "Whole"}, None, {"values": ArraySpec("float32", (5,))})
CODES = Contents(
    2,
    ("stage1", "stage2"),
    {"name": "Code", "active": 4},
    "srm.stage1",
    {"image": ArraySpec("bool", (7,)), "pixel": ArraySpec("uint16", (2, 3))},
)
KEYS = {"logits": LOGITS, "stage1.srm4": CODES}
VIEWS = {"train": 2, "train_clean": 1, "test": 1}
CHUNK_BYTES = 64  # so that a block of logits has two chunks


def values(part: str, key: str, name: str, view: int) -> np.ndarray[Any, Any]:
    """The rows (n, ...) that the session writes, a function of their place."""
    spec = KEYS[key].arrays[name]
    draw = np.random.default_rng(zlib.crc32(f"{part}/{key}/{name}/{view}".encode()))
    return draw.integers(0, 1000, (LAYOUT.samples[part], *spec.shape)).astype(spec.dtype)


def rows_of_block(part: str, key: str, view: int, block: int) -> dict[str, np.ndarray[Any, Any]]:
    size = LAYOUT.block_rows(part)
    taken = slice(block * size, (block + 1) * size)
    return {name: values(part, key, name, view)[taken] for name in KEYS[key].arrays}


def labels(part: str) -> np.ndarray[Any, Any]:
    return np.arange(LAYOUT.samples[part]) % 5


Done = list[tuple[str, str, int, int]]


def commit_missing(writer: CacheWriter, part: str, view: int, done: Done | None = None) -> None:
    """What an extract does: each block that a key lacks, with all keys that lack it; `done` grows by it."""
    for block in range(LAYOUT.blocks(part)):
        keys = [key for key in KEYS if block in writer.missing(part, key, view)]
        if keys:
            writer.commit(part, view, block, {key: rows_of_block(part, key, view, block) for key in keys})
            if done is not None:
                done += [(part, key, view, block) for key in keys]


def session(root: Path, views: dict[str, int] = VIEWS, done: Done | None = None) -> None:
    """Creates the tiny cache, or goes on where an earlier session was killed."""
    with create_or_open(root, IDENTITY, LAYOUT) as writer:
        for part in views:
            writer.put_samples(part, labels(part), labels(part) + 20)
        writer.put_fit("srm.stage1", 1, {"atoms": 4}, {"atoms": np.eye(4, 3), "count": np.array(7)})
        for key, contents in KEYS.items():
            writer.declare(key, contents)
        for part, number in views.items():
            for view in range(number):
                commit_missing(writer, part, view, done)


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True, scope="module")
def _small_and_fast() -> Iterator[None]:
    """Small chunks, and no waiting for the disk: a model of lost writes tests durability, not the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdtool.cache.arrays.CHUNK_BYTES", CHUNK_BYTES)
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The session and what it writes."""
    return SimpleNamespace(
        identity=IDENTITY,
        layout=LAYOUT,
        keys=KEYS,
        views=VIEWS,
        session=session,
        values=values,
        rows_of_block=rows_of_block,
        labels=labels,
        commit_missing=commit_missing,
        tree=tree,
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny cache, finished; not to be changed."""
    root = tmp_path_factory.mktemp("sound") / "cache.zarr"
    session(root)
    return root
