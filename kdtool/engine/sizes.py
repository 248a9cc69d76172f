"""The bytes that an extract stores and those that it has still to write, before anything is written.

Bytes are those of the chunk files, exact; they leave out metadata, journal and manifest, which are small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdtool.cache import ArraySpec, Cache
from kdtool.cache.arrays import whole_grid
from kdtool.engine.extraction import Extraction, stored_specs
from kdtool.engine.sources import as_tensors
from kdtool.targets import Facts, Fit

if TYPE_CHECKING:
    from kdtool.targets import Fitted

Arrays = dict[str, np.ndarray[Any, Any]]
Row = dict[str, Any]


def bytes_to_write(job: Extraction, known: Cache) -> int:
    """The bytes of everything of the job that a cache, which may be empty, does not hold."""
    return sum(row["bytes_to_write"] for row in rows(job, known, fit_results(job, known)))


def rows(job: Extraction, known: Cache, learned: Mapping[str, Arrays]) -> list[Row]:
    """What every key takes in every part, what every fit takes, and what labels and indices take.

    learned: results of the fits, of which shapes and dtypes count.
    """
    fitted: dict[str, Fitted] = {key: as_tensors(arrays, job.train.device) for key, arrays in learned.items()}
    specs = stored_specs(job, job.targets, fitted, known.contents)
    keys = [
        _key_row(job, known, part, key, arrays)
        for key, arrays in specs.items()
        for part in job.layout.samples
        if key in job.part_keys(part)
    ]
    return [*keys, *(_fit_row(known, key, arrays) for key, arrays in learned.items()), *_sample_rows(job, known)]


def all_fits(job: Extraction) -> list[Fit]:
    """The fits of encoders and of methods, each once."""
    fits = [*(target.fit for target in job.targets if target.fit is not None), *job.fits]
    return list({fit.key: fit for fit in fits}.values())


def fit_results(job: Extraction, known: Cache) -> dict[str, Arrays]:
    """What every fit stores or would store, by key, in shape and dtype: of one that the cache does not hold, its
    result from the state before the first batch.
    """
    samples, labels = job.layout.samples["train"], job.labels["train"]
    facts = Facts(samples, job.layout.classes, labels, job.layout.batch, 0, job.seed)
    found = {}
    for fit in all_fits(job):
        if fit.key in known.fits:
            arrays = known.fits[fit.key].arrays
            found[fit.key] = {name: np.zeros(of.shape, of.dtype) for name, of in arrays.items()}
            continue
        specs = stored_specs(job, fit.reads, {}, known.contents)
        shapes = {key: {name: spec.shape for name, spec in arrays.items()} for key, arrays in specs.items()}
        found[fit.key] = fit.result(fit.begin(facts, shapes, job.layout.fit_views), facts)
    return found


def _key_row(job: Extraction, known: Cache, part: str, key: str, arrays: Mapping[str, ArraySpec]) -> dict[str, Any]:
    """What a key takes in a part."""
    layout, views = job.layout, job.views if part == "train" else 1
    grids = [layout.grid(part, key, name, spec) for name, spec in arrays.items()]
    blocks = [
        sum(grid.file_bytes * len(layout.chunks(grid, part, block)) for grid in grids)
        for block in range(layout.blocks(part))
    ]
    absent = [block for view in range(views) for block in known.missing(part, key, view)]
    return {
        "key": key,
        "part": part,
        "dtype": ", ".join(sorted({spec.dtype for spec in arrays.values()})),
        "bytes_per_image": sum(spec.row_bytes for spec in arrays.values()),
        "views": views,
        "views_held": min(known.views(key, part), views),
        "bytes": views * sum(blocks),
        "bytes_to_write": sum(blocks[block] for block in absent),
    }


def _fit_row(known: Cache, key: str, arrays: Arrays) -> dict[str, Any]:
    """What the result of a fit takes."""
    size = sum(_whole_bytes(name, array) for name, array in arrays.items())
    return {
        "key": key,
        "part": "fitted",
        "dtype": ", ".join(sorted({array.dtype.name for array in arrays.values()})),
        "bytes_per_image": None,
        "views": None,
        "views_held": None,
        "bytes": size,
        "bytes_to_write": 0 if key in known.fits else size,
    }


def _sample_rows(job: Extraction, known: Cache) -> list[Row]:
    """What labels and indices take."""
    found = []
    for part, samples in job.layout.samples.items():
        size = 2 * _whole_bytes("", np.zeros(samples, np.int64))
        held = f"{part}/labels" in {grid.path for grid in known.manifest.whole_grids()}
        found.append({"key": "labels", "part": part, "bytes": size, "bytes_to_write": 0 if held else size})
    return found


def _whole_bytes(name: str, array: np.ndarray[Any, Any]) -> int:
    """Bytes of the chunk files of an array without views."""
    grid = whole_grid(name, ArraySpec(array.dtype.name, array.shape))
    return grid.chunks * grid.file_bytes
