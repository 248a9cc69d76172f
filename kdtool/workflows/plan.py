"""What an extract would cost, and from when on it pays, before anything is written.

Bytes are those of the chunk files, exact; they leave out metadata, journal and manifest. Seconds come from
`kdtool.workflows.costs`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdtool.cache import ArraySpec, Cache, Contents, open_cache
from kdtool.cache.arrays import whole_grid
from kdtool.cache.identity import refuse
from kdtool.cache.journal import holds_cache
from kdtool.engine.extract import Extraction, stored_specs
from kdtool.engine.sources import as_tensors
from kdtool.engine.workspace import Workspace
from kdtool.targets import Facts, by_key
from kdtool.workflows.costs import all_fits, costs, missing_blocks

Arrays = dict[str, np.ndarray[Any, Any]]


def plan(workspace: Workspace, job: Extraction) -> dict[str, Any]:
    """Bytes per key, teacher batches, seconds, and the epochs of distillation after which the cache has paid off.

    IdentityError where the cache that is there is of something else: extract would refuse it too.
    """
    known = open_cache(workspace.cache) if holds_cache(workspace.cache) else None
    if known is not None:
        refuse_other(known, job)
    contents = known.contents if known else {}
    learned = fit_results(job, contents)
    fitted = {key: as_tensors(arrays, job.train.pixels.device) for key, arrays in learned.items()}
    specs = stored_specs(job, job.targets, fitted, contents)
    rows = [
        key_row(job, known, part, key, arrays)
        for key, arrays in specs.items()
        for part in job.layout.samples
        if key in job.part_keys(part)
    ]
    rows += [fit_row(known, key, arrays) for key, arrays in learned.items()]
    lists = sum(2 * whole_bytes("", np.zeros(samples, np.int64)) for samples in job.layout.samples.values())
    reads = by_key([target for fit in all_fits(job) for target in fit.reads])
    read = stored_specs(job, list(reads.values()), {}, contents)
    return {
        "keys": rows,
        "bytes": lists + sum(row["bytes"] for row in rows),
        "bytes_to_write": (0 if known else lists) + sum(row["bytes_to_write"] for row in rows),
        **costs(job, known, fitted, read),
    }


def refuse_other(known: Cache, job: Extraction) -> None:
    """Refuses a cache of another identity or layout, as extract does."""
    found = {"identity": known.identity, "layout": known.layout.to_json()}
    wanted = {"identity": dict(job.identity), "layout": job.layout.to_json()}
    hint = "use what the cache was made with, or name another folder with --cache"
    refuse(f"{known.path} is a cache of something else", found, wanted, hint)


def fit_results(job: Extraction, contents: Mapping[str, Contents]) -> dict[str, Arrays]:
    """What every fit would store, by key, in shape and dtype: its result from the state before the first batch."""
    samples, labels = job.layout.samples["train"], job.labels["train"]
    facts = Facts(samples, job.layout.classes, labels, job.layout.batch, 0, job.seed)
    found = {}
    for fit in all_fits(job):
        specs = stored_specs(job, fit.reads, {}, contents)
        shapes = {key: {name: spec.shape for name, spec in arrays.items()} for key, arrays in specs.items()}
        found[fit.key] = fit.result(fit.begin(facts, shapes, job.layout.fit_views), facts)
    return found


def key_row(
    job: Extraction, known: Cache | None, part: str, key: str, arrays: Mapping[str, ArraySpec]
) -> dict[str, Any]:
    """What a key takes in a part."""
    layout, views = job.layout, job.views if part == "train" else 1
    grids = [layout.grid(part, key, name, spec) for name, spec in arrays.items()]
    blocks = [
        sum(grid.file_bytes * len(layout.chunks(grid, part, block)) for grid in grids)
        for block in range(layout.blocks(part))
    ]
    missing = [block for view in range(views) for block in missing_blocks(job, known, part, key, view)]
    return {
        "key": key,
        "part": part,
        "dtype": ", ".join(sorted({spec.dtype for spec in arrays.values()})),
        "bytes_per_image": sum(spec.row_bytes for spec in arrays.values()),
        "views": views,
        "views_held": min(known.views(key, part), views) if known else 0,
        "bytes": views * sum(blocks),
        "bytes_to_write": sum(blocks[block] for block in missing),
    }


def fit_row(known: Cache | None, key: str, arrays: Arrays) -> dict[str, Any]:
    """What the result of a fit takes."""
    size = sum(whole_bytes(name, array) for name, array in arrays.items())
    held = known is not None and key in known.fits
    return {
        "key": key,
        "part": "fitted",
        "dtype": ", ".join(sorted({array.dtype.name for array in arrays.values()})),
        "bytes_per_image": None,
        "views": None,
        "views_held": None,
        "bytes": size,
        "bytes_to_write": 0 if held else size,
    }


def whole_bytes(name: str, array: np.ndarray[Any, Any]) -> int:
    """Bytes of the chunk files of an array without views."""
    grid = whole_grid(name, ArraySpec(array.dtype.name, array.shape))
    return grid.chunks * grid.file_bytes
