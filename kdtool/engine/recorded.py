"""The extract that a cache came from, made again from what the cache itself records.

Encoders and fits are in the manifest as the names of their classes and the values of their fields, which is all that
they are. Left out: what is done with it (kdtool.engine.repair, kdtool.engine.replay).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdtool.cache.identity import refuse
from kdtool.engine.extraction import Extraction, held_dtypes
from kdtool.engine.lacking import identity_options
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.methods import recorded_kinds
from kdtool.progress import Progress, Silent
from kdtool.targets import Fit, Target, rebuild

if TYPE_CHECKING:
    from kdtool.cache import Cache
    from kdtool.engine.folder import Workspace


@dataclass(frozen=True)
class Again:
    """How the teacher is asked again. own: methods of the user's, `path.to:MyMethod`, whose keys the cache holds."""

    device: str = "auto"
    data_folder: str | None = None
    own: tuple[str, ...] = ()


def recorded_job(
    workspace: Workspace,
    cache: Cache,
    again: Again,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
) -> tuple[Extraction, tuple[str, ...]]:
    """(the extract of everything that a cache holds, the keys and fits whose classes are not known here).

    UsageError where the teacher or the data set is not at hand, IdentityError where they are not those of the cache.
    """
    options = identity_options(cache.identity)
    asked = ExtractConfig(device=again.device, data_folder=again.data_folder, **options)
    job = prepare(workspace, asked, progress, cache.layout)
    hint = "use the teacher and the data set that the cache was made with: --folder and --data-folder name them"
    refuse(f"{cache.path} is a cache of something else", cache.identity, dict(job.identity), hint)
    fits, unknown_fits = recorded_fits(cache, again.own)
    targets, unknown = recorded_targets(cache, fits, again.own)
    filled = replace(
        job,
        targets=tuple(targets.values()),
        fits=tuple(fits.values()),
        views=max((cache.views(key) for key in cache.contents), default=0),
        clean=tuple(targets),
        validated=tuple(targets),
        dtypes=held_dtypes(cache, cache.fits),
    )
    return filled, (*unknown_fits, *unknown)


def recorded_fits(cache: Cache, own: Sequence[str] = ()) -> tuple[dict[str, Fit], tuple[str, ...]]:
    """(key -> fit, the keys that could not be made again)."""
    found: dict[str, Fit] = {}
    for key, held in cache.fits.items():
        record = {name: value for name, value in held.record.items() if name != "reads"}
        fit = _rebuilt(record, own)
        if fit is not None and fit.key == key and fit.version == held.version:
            found[key] = fit
    return found, tuple(key for key in cache.fits if key not in found)


def recorded_targets(
    cache: Cache, fits: dict[str, Fit], own: Sequence[str] = ()
) -> tuple[dict[str, Target], tuple[str, ...]]:
    """(key -> target, the keys that could not be made again)."""
    found: dict[str, Target] = {}
    for key, held in cache.contents.items():
        encode = _rebuilt(held.encoder, own)
        if encode is not None and (held.fit is None or held.fit in fits):
            fit = None if held.fit is None else fits[held.fit]
            found[key] = Target(key, held.taps, encode, fit, version=held.version)
    return found, tuple(key for key in cache.contents if key not in found)


def _rebuilt(record: Any, own: Sequence[str]) -> Any:
    try:
        return rebuild(record, recorded_kinds(own))
    except (KeyError, ValueError, TypeError):
        return None
