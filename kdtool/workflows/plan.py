"""What an extract would cost, and from when on it pays, before anything is written.

Bytes come from `kdtool.engine.sizes`, seconds from `kdtool.workflows.costs`.
"""

from typing import Any

from kdtool.cache import Cache
from kdtool.cache.identity import refuse
from kdtool.cache.journal import holds_cache
from kdtool.engine import sizes
from kdtool.engine.extraction import Extraction, stored_specs
from kdtool.engine.folder import Workspace
from kdtool.engine.sources import as_tensors
from kdtool.engine.workspace import open_teacher_cache
from kdtool.targets import by_key
from kdtool.workflows.costs import costs


def plan(workspace: Workspace, job: Extraction) -> dict[str, Any]:
    """Bytes per key, teacher batches, seconds, and the epochs of distillation after which the cache has paid off.

    IdentityError where the cache that is there is of something else: extract would refuse it too.
    """
    known = open_teacher_cache(workspace.cache) if holds_cache(workspace.cache) else None
    if known is not None:
        refuse_other(known, job)
    learned = sizes.fit_results(job, known)
    fitted = {key: as_tensors(arrays, job.train.device) for key, arrays in learned.items()}
    rows = sizes.rows(job, known, learned)
    reads = by_key([target for fit in sizes.all_fits(job) for target in fit.reads])
    read = stored_specs(job, list(reads.values()), {}, sizes.contents_of(known))
    return {
        "keys": [row for row in rows if row["key"] != "labels"],
        "bytes": sum(row["bytes"] for row in rows),
        "bytes_to_write": sum(row["bytes_to_write"] for row in rows),
        **costs(job, known, fitted, read),
    }


def refuse_other(known: Cache, job: Extraction) -> None:
    """Refuses a cache of another identity or layout, as extract does."""
    found = {"identity": known.identity, "layout": known.layout.to_json()}
    wanted = {"identity": dict(job.identity), "layout": job.layout.to_json()}
    hint = "use what the cache was made with, or name another folder with --cache"
    refuse(f"{known.path} is a cache of something else", found, wanted, hint)
