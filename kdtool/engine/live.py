"""The living teacher as the source of a training: what the cache replaces.

For tests and benchmarks, and for `kdtool reproduce`, where a table has methods whose targets would fill the disk. What
fits have learned comes from the cache. No option of `kdtool distill`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdtool.cache import Cache
from kdtool.engine.extraction import stored_dtype
from kdtool.engine.folder import Workspace
from kdtool.engine.sources import LiveTeacher, Teller, as_tensors
from kdtool.engine.workspace import read_teacher, record_for
from kdtool.targets import Target

if TYPE_CHECKING:
    from kdtool.data.images import Images


def living(workspace: Workspace, cache: Cache, images: Images, targets: Sequence[Target]) -> LiveTeacher:
    """The teacher of a working folder, who answers targets for images as the cache does, or would with them in it."""
    record, precision = record_for(workspace.teacher, cache), str(cache.identity["numeric"]["precision"])
    fits = {target.fit.key for target in targets if target.fit is not None}
    fitted = {key: as_tensors(cache.fitted(key), images.device) for key in fits}
    model = read_teacher(workspace.teacher, record, images.device, precision)
    dtypes = {target.key: stored_dtype(target.key, cache.contents) or target.dtype for target in targets}
    return LiveTeacher(Teller(model, tuple(targets), fitted, cache.layout.batch, precision), images, dtypes)
