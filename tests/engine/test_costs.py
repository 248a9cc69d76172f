"""The time that a plan foresees: the slower of pictures and teacher, for what is lacking alone."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from stopping import StopAfter

from kdtool.cache import open_cache
from kdtool.engine import sizes
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.errors import IdentityError, Stopped, UsageError
from kdtool.methods import method
from kdtool.progress import Silent
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


def test_a_plan_refuses_what_extract_would(work: Callable[[], Workspace], tmp_path: Path) -> None:
    workspace = work()
    asked = ExtractConfig(batch=16, block=32, views=2)
    foreign = tmp_path / "photographs"
    foreign.mkdir()
    (foreign / "note.txt").write_text("mine")
    elsewhere = replace(workspace, settings={**workspace.settings, "cache": str(foreign)})
    for place, config, error, told in (
        (elsewhere, asked, UsageError, "is there and is no cache"),
        (workspace, replace(asked, seed=3), IdentityError, "is a cache of something else"),
    ):
        with pytest.raises(error, match=told):
            plan(place, config, prepare(place, config))
    assert [path.name for path in foreign.iterdir()] == ["note.txt"]


def test_a_plan_says_of_what_state_the_cache_is(taught: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(shutil.copytree(taught, tmp_path / "work"))
    asked = ExtractConfig((method("srm"),), ("resnet8",), batch=16, block=32, views=1)

    def state() -> str:
        return str(plan(workspace, asked, prepare(workspace, asked))["state"])

    assert state() == "new"
    with pytest.raises(Stopped):
        extract(
            workspace.cache, prepare(workspace, asked), Silent(), StopAfter(3)
        )  # while it learns SRM's dictionaries
    assert state() == "unfinished"
    extract(workspace.cache, prepare(workspace, asked))
    assert state() == "holds"


def test_what_a_cache_holds_is_not_begun_to_tell_its_size(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.open(shutil.copytree(taught, tmp_path / "work"))
    asked = ExtractConfig((method("srm"),), ("resnet8",), batch=16, block=32, views=1)
    before = plan(workspace, asked, prepare(workspace, asked))
    extract(workspace.cache, prepare(workspace, asked))
    job = prepare(workspace, asked)
    for fit in sizes.all_fits(job):
        monkeypatch.setattr(type(fit), "begin", lambda *_: pytest.fail("begun"))
    after = plan(workspace, asked, job)
    assert after["bytes"] == before["bytes"] == before["bytes_to_write"]
    assert after["bytes_to_write"] == 0
    assert [row["dtype"] for row in after["keys"]] == [row["dtype"] for row in before["keys"]]
