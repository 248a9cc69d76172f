"""Features of a network over the un-augmented images of a part, on disk: computed once, read by every analysis.

<name>-<tap>.npy is a float32 array (n, d) that is read through a memory map, <name>-<tap>.json says of which weights
and images it is, with its SHA-256. Files that are absent, damaged or of something else are written again. Under several
ranks each runs the network on its batches. Left out: which network, and on which images (pairs).
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from kdtool import files
from kdtool.data.images import Images
from kdtool.engine.evaluate import BATCH, vectors
from kdtool.engine.ranks import Ranks
from kdtool.errors import DamageError
from kdtool.progress import Progress

Rows = npt.NDArray[np.float32]
Network = Callable[[], tuple[nn.Module, Images]]


def features(
    folder: Path,
    name: str,
    basis: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, int]],
    network: Network,
    progress: Progress,
    ranks: Ranks,
) -> dict[str, Rows]:
    """The features of every tap in `shapes`, tap -> (n, d), as read-only memory maps.

    basis: plain values that the features depend on; network: the network with its images, asked for only where
    something has to be computed.
    """
    lacking = [tap for tap, shape in shapes.items() if not held(folder, name, tap, basis, shape)]
    lacking = ranks.shared(lacking)
    if lacking:
        with writing(folder, ranks):
            compute(folder, name, basis, {tap: shapes[tap] for tap in lacking}, network(), progress, ranks)
    return {tap: np.load(array_path(folder, name, tap), mmap_mode="r", allow_pickle=False) for tap in shapes}


def array_path(folder: Path, name: str, tap: str) -> Path:
    """Where the features of a tap lie; the record lies beside them."""
    return folder / f"{name}-{tap}.npy"


def held(folder: Path, name: str, tap: str, basis: Mapping[str, Any], shape: tuple[int, int]) -> bool:
    """Whether the features of a tap are there, whole, and of these weights and images."""
    path = array_path(folder, name, tap)
    record = path.with_suffix(".json")
    if not path.is_file() or not record.is_file():
        return False
    try:
        known = files.read_json(record, "")
    except DamageError:
        return False
    wanted = {"basis": dict(basis), "shape": list(shape)}
    return {key: known.get(key) for key in wanted} == wanted and known.get("sha256") == files.sha256_file(path)


@contextmanager
def writing(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Rank 0 holds the folder's lock; the others wait until it is there, and at the end until all is written."""
    if ranks.rank == 0:
        with files.lock(folder / "lock", "writing features into"):
            files.sweep(folder)
            ranks.shared(None)
            yield
            ranks.shared(None)
    else:
        ranks.shared(None)
        yield
        ranks.shared(None)


def compute(
    folder: Path,
    name: str,
    basis: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, int]],
    network: tuple[nn.Module, Images],
    progress: Progress,
    ranks: Ranks,
) -> None:
    """Runs the network and writes the features of some taps, each whole or absent."""
    partial = {tap: Path(f"{array_path(folder, name, tap)}{files.PARTIAL}") for tap in shapes}
    if ranks.rank == 0:
        for tap, shape in shapes.items():
            make_room(partial[tap], shape)
    ranks.shared(None)
    (samples, _) = next(iter(shapes.values()))
    batches = -(-samples // BATCH)
    start, stop = (min(samples, BATCH * (batches * k // ranks.size)) for k in (ranks.rank, ranks.rank + 1))
    progress.begin("features", stop - start)
    for first, found in vectors(*network, list(shapes), start, stop):
        for tap, rows in found.items():
            with files.explained(partial[tap]):
                put(partial[tap], first, rows)
        progress.advance(len(next(iter(found.values()))))
    ranks.gathered(None)
    if ranks.rank == 0:
        for tap, shape in shapes.items():
            finish(partial[tap], array_path(folder, name, tap), basis, shape)


def make_room(path: Path, shape: tuple[int, int]) -> None:
    """An .npy file of zeros of this shape, which takes no room on most disks before it is filled."""
    with files.explained(path):
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()


def put(path: Path, first: int, rows: Rows) -> None:
    """Writes rows at their place: not through a memory map, in which a full disk would end the process."""
    room = np.load(path, mmap_mode="r", allow_pickle=False)
    offset = room.offset + first * room.shape[1] * room.itemsize
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.ascontiguousarray(rows, dtype=room.dtype).tobytes())


def finish(partial: Path, path: Path, basis: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Makes a file durable, gives it its name, and says what it is."""
    with files.explained(path):
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        files.sync_folder(path.parent)
    record = {"basis": dict(basis), "shape": list(shape), "sha256": files.sha256_file(path)}
    files.write_json(path.with_suffix(".json"), record)
