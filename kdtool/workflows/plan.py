"""What an extract would cost, and from when on it pays, before anything is written.

Bytes come from `kdtool.engine.sizes`, seconds from `kdtool.workflows.costs`.
"""

from typing import Any

from kdtool import files
from kdtool.cache.journal import holds_cache
from kdtool.engine import sizes
from kdtool.engine.distill import options_of
from kdtool.engine.extract import check
from kdtool.engine.extraction import Extraction, stored_specs
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig
from kdtool.engine.sources import as_tensors
from kdtool.methods import reference
from kdtool.targets import by_key
from kdtool.workflows.costs import costs


def plan(workspace: Workspace, config: ExtractConfig, job: Extraction) -> dict[str, Any]:
    """Bytes per key, teacher batches, seconds, and the epochs of distillation after which the cache has paid off.

    job: what `prepare` made of the configuration. Refuses what extract would refuse, but for a full disk.
    """
    known = check(workspace.cache, job, room=False)
    learned = sizes.fit_results(job, known)
    fitted = {key: as_tensors(arrays, job.train.device) for key, arrays in learned.items()}
    rows = sizes.rows(job, known, learned)
    reads = by_key([target for fit in sizes.all_fits(job) for target in fit.reads])
    read = stored_specs(job, list(reads.values()), {}, known.contents)
    identity, device = job.identity, job.train.device
    return {
        "cache": str(workspace.cache),
        "state": "unfinished" if known.unfinished else "holds" if holds_cache(workspace.cache) else "new",
        "teacher": identity["teacher"]["network"],
        "data": identity["data"]["name"],
        "samples": dict(job.layout.samples),
        "views": job.views,
        "device": str(device),
        "precision": job.precision,
        "keys": [row for row in rows if row["key"] != "labels"],
        "bytes": sum(row["bytes"] for row in rows),
        "bytes_to_write": sum(row["bytes_to_write"] for row in rows),
        "free_bytes": files.free_bytes(workspace.cache),
        **costs(job, known, fitted, read),
        "config": resolved(workspace, config, job),
    }


def resolved(workspace: Workspace, config: ExtractConfig, job: Extraction) -> dict[str, Any]:
    """An extract as the plain values of a configuration file, defaults resolved."""
    asked = {
        "for": [reference(method) for method in config.methods],
        "student": list(config.students),
        "clean": list(config.clean),
        "dtype": [f"{key}={dtype}" if key else dtype for key, dtype in config.dtypes.items()],
    }
    narrowed = {"validation": config.validation, "few_shot": config.few_shot, "data_folder": config.data_folder}
    values = {
        "command": "extract",
        **{key: value for key, value in asked.items() if value},
        **{key: value for key, value in narrowed.items() if value is not None},
        "views": job.views,
        "batch": job.layout.batch,
        "block": job.layout.block,
        "fit_views": job.layout.fit_views,
        "seed": config.seed,
        "precision": config.precision,
        "device": config.device,
        "no_srm": "srm" in config.without,
        "allow_mixed": config.allow_mixed,
    }
    tables = {"set": options_of(config.methods), "taps": dict(config.taps)}
    return {**values, **({"cache": workspace.named_cache} if workspace.named_cache else {}), **tables}
