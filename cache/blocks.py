"""Writing the chunk files of one block, the unit of commits; the record of them is what makes them count.

Under several ranks each writes blocks of its own and hands the record, plain values, to the one that holds the writer.
Left out: recording (kdtool.cache.writer).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kdtool.cache.chunks import RECORD, Array, encode, write_files
from kdtool.cache.manifest import Manifest
from kdtool.cache.reader import Cache


def write_block(
    cache: Cache, part: str, view: int, block: int, arrays: Mapping[str, Mapping[str, Array]]
) -> dict[str, Any]:
    """Writes the chunk files of one block durably; gives their record, for `CacheWriter.record`.

    arrays: key -> array -> (rows, ...), where rows are the block's samples without padding. ValueError where they are
    not what was declared, or where the block is committed already.
    """
    written = write_files(cache.path, encode_block(cache, part, view, block, arrays))
    return {"part": part, "view": view, "block": block, "keys": sorted(arrays), "files": written}


def encode_block(
    cache: Cache, part: str, view: int, block: int, arrays: Mapping[str, Mapping[str, Array]]
) -> Iterator[tuple[str, bytes]]:
    """Path and content of every chunk file of one block, one after the other; arguments and errors as above."""
    for key, given in arrays.items():
        _check(cache.manifest, part, key, view, block, given)
    for key in sorted(arrays):
        yield from _encoded(cache.manifest, part, key, view, block, arrays[key])


def check_record(manifest: Manifest, record: Mapping[str, Any]) -> None:
    """Refuses a record of other files than those of a whole block that is not committed: ValueError."""
    part, view, block = record["part"], record["view"], record["block"]
    expected = {name for key in record["keys"] for name in manifest.block_files(part, key, view, block)}
    whole = expected and expected == set(record["files"]) and all(map(RECORD.fullmatch, record["files"].values()))
    if not whole or expected & manifest.files.keys():
        raise ValueError(
            f"block {block} of view {view} of {part}, keys {record['keys']}: not whole, or committed already"
        )


def _encoded(
    manifest: Manifest, part: str, key: str, view: int, block: int, given: Mapping[str, Array]
) -> Iterator[tuple[str, bytes]]:
    for name, (array, chunk) in manifest.block_files(part, key, view, block).items():
        grid = manifest.grid(f"{part}/{key}/{array}")
        first = chunk * grid.rows - block * manifest.layout.block_rows(part)
        yield name, encode(given[array][first : first + grid.rows], grid)


def _check(manifest: Manifest, part: str, key: str, view: int, block: int, given: Mapping[str, Array]) -> None:
    layout, place = manifest.layout, f"block {block} of view {view} of {part}/{key}"
    if not 0 <= block < layout.blocks(part) or view < 0 or (view > 0 and part != "train"):
        raise ValueError(f"{place}: there is no such block")
    if manifest.files.keys() & manifest.block_files(part, key, view, block).keys():
        raise ValueError(f"{place} is committed already")
    rows = min(layout.block_rows(part), layout.samples[part] - block * layout.block_rows(part))
    wanted = {name: (spec.dtype, (rows, *spec.shape)) for name, spec in manifest.contents[key].arrays.items()}
    found = {name: (array.dtype.name, array.shape) for name, array in given.items()}
    if found != wanted:
        raise ValueError(f"{place}: declared are {wanted}, given are {found}")
