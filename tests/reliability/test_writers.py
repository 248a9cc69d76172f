"""One writer and many readers: a second writer is refused at once, and readers see whole views with right values."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import begun, ended

from kdtool.cache import ArraySpec, Contents, Layout, create_or_open, open_cache, verify
from kdtool.errors import ResourceError, UsageError

Trials = Callable[[int, int], int]
Figure = Callable[..., None]

LAYOUT = Layout({"train": 64}, 4, batch=8, fit_views=1, block=16)
ROWS = Contents(1, ("before_fc",), {"name": "Whole"}, None, {"values": ArraySpec("float32", (16,))})
READERS = 4


def rows(view: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(view).standard_normal((64, 16)).astype(np.float32)


def write(root: Path, views: int, amid: Path) -> None:
    """Waits in the middle until every reader has seen some of the views and not all."""
    with create_or_open(root, {}, LAYOUT) as writer:
        writer.put_samples("train", np.arange(64) % 4, np.arange(64))
        writer.declare("rows", ROWS)
        for view in range(views):
            while view == views // 2 and len(list(amid.iterdir())) < READERS:
                time.sleep(0.001)
            for block in writer.missing("train", "rows", view):
                writer.commit("train", view, block, {"rows": {"values": rows(view)[block * 16 : (block + 1) * 16]}})
            if view % 7 == 6:
                writer.finish()


def read_until_all(root: Path, views: int, amid: Path) -> None:
    """Opens the cache anew again and again, and compares all that it shows, until every view is there."""
    seen = 0
    while seen < views:
        try:
            cache = open_cache(root)
        except UsageError:
            continue  # there is none yet
        found = cache.views("rows")
        assert found >= seen
        for view in range(found):
            np.testing.assert_array_equal(cache.array("train", "rows", "values").read(view), rows(view))
        seen = found
        if 0 < seen < views:
            (amid / str(os.getpid())).touch()


def test_many_readers_beside_one_writer(tmp_path: Path, trials: Trials, figure: Figure) -> None:
    views = trials(20, 400)
    (tmp_path / "amid").mkdir()
    readers = [begun(lambda: read_until_all(tmp_path / "cache", views, tmp_path / "amid")) for _ in range(READERS)]
    try:
        write(tmp_path / "cache", views, tmp_path / "amid")
        for number in readers:
            ended(number)
    except BaseException:
        for number in readers:
            os.kill(number, signal.SIGKILL)
        raise
    assert verify(tmp_path / "cache") == []
    figure("readers beside a writer", readers=READERS, commits=views * 4, wrong=0)


def test_a_second_writer_is_refused(tmp_path: Path, trials: Trials, figure: Figure) -> None:
    total, slowest = trials(10, 50), 0.0

    def hold() -> None:
        with create_or_open(tmp_path / "cache", {}, LAYOUT):
            (tmp_path / "held").touch()
            time.sleep(3600)

    for _ in range(total):
        holder = begun(hold)
        while not (tmp_path / "held").exists():
            time.sleep(0.001)
        start = time.monotonic()
        with (
            pytest.raises(ResourceError, match="another process is writing into") as raised,
            create_or_open(tmp_path / "cache", {}, LAYOUT),
        ):
            pass
        slowest = max(slowest, time.monotonic() - start)
        assert raised.value.exit_code == 5
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        (tmp_path / "held").unlink()
        with create_or_open(tmp_path / "cache", {}, LAYOUT):
            pass  # the lock went with its holder
    figure("a second writer", tried=total, refused=total, slowest_milliseconds=round(slowest * 1000, 1))
