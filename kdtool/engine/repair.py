"""Mends a damaged cache: what is damaged, and only that, is asked of the teacher again and must come out the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdtool.cache import open_damaged, survey
from kdtool.engine.extract import fill
from kdtool.engine.extraction import Extraction
from kdtool.engine.folder import check_identity
from kdtool.engine.recorded import Again, recorded_job
from kdtool.engine.runs import environment
from kdtool.engine.workspace import open_teacher_cache
from kdtool.errors import DamageError, KdtoolError

if TYPE_CHECKING:
    from kdtool.cache import Cache
    from kdtool.engine.folder import Workspace
    from kdtool.progress import Progress, StopRequest


@dataclass(frozen=True)
class Mended:
    """What a repair came to. again: a line for each file that needed no teacher. chunks: those that did."""

    again: tuple[str, ...]
    chunks: tuple[str, ...]


def repair(workspace: Workspace, again: Again, progress: Progress, stop: StopRequest) -> Mended:
    """Makes the cache of a workspace what its manifest says, to the byte.

    Errors as for `open_damaged`; UsageError where chunks are lost and the teacher or the data set is not at hand,
    DamageError where the teacher gives other bits here than were recorded. What was mended until then stays so.
    """
    with open_damaged(workspace.cache, progress.advance) as repairer:
        lost = tuple(sorted(repairer.damaged))
        if lost:
            job = _job(workspace, open_teacher_cache(workspace.cache), lost, again, progress)
            repairer.provenance({**environment(job.train.device, job.precision), "repaired": len(lost)})
            fill(repairer, job, progress, stop)
        return Mended(tuple(repairer.mended), lost)


def would_repair(workspace: Workspace, again: Again, progress: Progress) -> Mended:
    """What `repair` would come to; changes nothing. Errors are the same up to the teacher's first answer."""
    found = survey(workspace.cache, progress.advance)
    if found.damaged:
        check_identity(workspace.cache, found.cache.identity)
        _job(workspace, found.cache, found.damaged, again, progress)
    return Mended(found.mendable, found.damaged)


def _job(workspace: Workspace, cache: Cache, lost: Sequence[str], again: Again, progress: Progress) -> Extraction:
    """The extract that the cache came from, of the keys, fits and views that have lost chunks."""
    try:
        job, unknown = recorded_job(workspace, cache, again, progress)
    except KdtoolError as error:
        raise type(error)(f"{_count(lost)}, the teacher has to be asked for them again, and {error}") from error
    owners = {name.split("/")[1] for name in lost}
    strange = sorted(owners.intersection(unknown))
    if strange:
        raise DamageError(
            f"{_count(lost)}, among them of {strange[0]}, which no method of kdtool stores; name the method of "
            "your own that does with --for path.to:MyMethod"
        )
    return replace(
        job,
        targets=tuple(target for target in job.targets if target.key in owners),
        fits=tuple(fit for fit in job.fits if fit.key in owners),
        views=1 + max(cache.manifest.grid_of(name).locate(name)[0] for name in lost),  # the last may be unfinished
    )


def _count(lost: Collection[str]) -> str:
    return f"{len(lost)} damaged or missing chunks, the first is {min(lost)}"
