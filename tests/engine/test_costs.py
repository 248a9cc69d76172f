"""The time that a plan foresees: the slower of pictures and teacher, for what is lacking alone."""

from collections.abc import Callable

import pytest

from kdtool.cache import open_cache
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.methods import method
from kdtool.workflows import costs
from kdtool.workflows.plan import plan


@pytest.mark.parametrize("pictures", [0.0, 25.0])
def test_a_plan_counts_the_batches_of_what_is_lacking(
    pictures: float, work: Callable[[], Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key takes ten seconds here; the cache has three views of KD's, and nothing of AT's."""
    monkeypatch.setattr(costs, "seconds_per_batch", lambda job, targets, fitted: 10.0 * len(targets))
    monkeypatch.setattr(costs, "seconds_of_images", lambda job: pictures)
    workspace = work()
    asked = ExtractConfig((method("kd"), method("at")), ("resnet8",), views=4, batch=16, block=32)
    job = prepare(workspace, asked)
    cache = open_cache(workspace.cache)
    wanted, batches = 0.0, 0
    for part, samples in job.layout.samples.items():
        for view in range(4 if part == "train" else 1):
            lacking = [key for key in job.part_keys(part) if cache.views(key, part) <= view]
            batches += -(-samples // 16) if lacking else 0
            wanted += -(-samples // 16) * max(pictures, 10.0 * len(lacking)) if lacking else 0.0
    found = plan(workspace, asked, job)
    assert found["teacher_batches"] == batches > 0
    assert found["extract_seconds"] == pytest.approx(wanted)
    assert found["live_teacher_seconds_per_epoch"] == 10.0 * len(job.targets) * -(-job.layout.samples["train"] // 16)
