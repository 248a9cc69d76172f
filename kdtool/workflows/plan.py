"""What an extract would cost, and from when on it pays, before anything is written.

Bytes are exact. Seconds come from a few timed batches of the teacher on this machine.
"""

import time
from typing import Any

import numpy as np

from kdtool.cache import open_cache
from kdtool.engine.device import synchronize
from kdtool.engine.extract import Extraction, stored_specs
from kdtool.engine.sources import Teller
from kdtool.engine.workspace import Workspace
from kdtool.targets import CLEAN, by_key

PROBES = 3  # timed batches


def plan(workspace: Workspace, job: Extraction) -> dict[str, Any]:
    """Bytes per key, teacher passes, seconds, and the epochs of distillation after which the cache has paid off."""
    known = open_cache(workspace.cache) if workspace.cache.exists() else None
    specs = stored_specs(job, [t for t in job.targets if t.fit is None], {}, known.contents if known else {})
    rows: list[dict[str, Any]] = []
    batches = 0
    for key, target in by_key(job.targets).items():
        if key not in specs:
            continue
        size = sum(spec.row_bytes for spec in specs[key].values())
        for part, samples in job.layout.samples.items():
            if key in job.part_keys(part):
                views = job.views if part == "train" else 1
                held = known.views(key, part) if known else 0
                rows.append(
                    {
                        "key": key,
                        "part": part,
                        "dtype": ", ".join(sorted({spec.dtype for spec in specs[target.key].values()})),
                        "bytes_per_view": size,
                        "views": views,
                        "views_held": held,
                        "bytes": size * samples * views,
                        "bytes_to_write": size * samples * max(views - held, 0),
                    }
                )
    for part, samples in job.layout.samples.items():
        lacking = [row["views"] - row["views_held"] for row in rows if row["part"] == part]
        batches += max([0, *lacking]) * -(-samples // job.layout.batch)
    per_batch = seconds_per_batch(job)
    epoch = per_batch * -(-job.layout.samples["train"] // job.layout.batch)
    return {
        "keys": rows,
        "bytes": sum(row["bytes"] for row in rows),
        "bytes_to_write": sum(row["bytes_to_write"] for row in rows),
        "teacher_batches": batches,
        "extract_seconds": batches * per_batch,
        "live_teacher_seconds_per_epoch": epoch,
        "break_even_epochs": round(batches * per_batch / epoch, 1),
    }


def seconds_per_batch(job: Extraction) -> float:
    """The teacher's time for one batch of the grid, the fastest of a few."""
    teller = Teller(job.model, tuple(t for t in job.targets if t.fit is None), {}, job.layout.batch, job.precision)
    count = min(job.layout.batch, job.layout.samples["train"])
    images, times = job.train.view(np.arange(count), CLEAN), []
    for _ in range(PROBES):
        begun = time.perf_counter()
        teller.answer(images)
        synchronize(images.device)
        times.append(time.perf_counter() - begun)
    return min(times)
