"""SIGKILL at random moments, again and again until the work is done: the same bytes as if nobody had disturbed it."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import extracts
import pytest
from made_up import PLAN
from processes import begun, ended, killed, seconds_of

from kdtool import files
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.folder import Workspace
from kdtool.engine.teach import TeachConfig, teach
from kdtool.methods import method
from kdtool.progress import Silent, StopRequest

Fresh = Callable[[], Path]
Trials = Callable[[int, int], int]


def nothing() -> None:
    """What is looked at after a kill where there is nothing to look at."""


def disturbed(
    work: Callable[[], object], seconds: float, limit: int, draw: random.Random, check: Callable[[], None] = nothing
) -> int:
    """Does the work to its end, killed at most `limit` times before; gives how often.

    seconds: that it takes when it is left alone. check: called after every kill.
    """
    kills = 0
    while kills < limit and killed(work, draw.uniform(0, seconds)):
        kills += 1
        check()
    ended(begun(work))
    return kills


@pytest.mark.timeout(7200)
def test_extract(fresh: Fresh, trials: Trials, figure: Callable[..., None]) -> None:
    folder = fresh()
    seconds = seconds_of(lambda: extracts.run(folder))
    wanted = extracts.files(folder / "cache.zarr")
    draw, kills, ends, total = random.Random(1), 0, 0, trials(12, 200)
    while kills < total:
        folder = fresh()
        cache = folder / "cache.zarr"
        run, check = partial(extracts.run, folder), partial(extracts.assert_nothing_is_wrong, cache)
        kills += disturbed(run, seconds, total - kills, draw, check)
        found = extracts.files(cache)
        assert found.keys() == wanted.keys()
        assert found == wanted
        ends += 1
    figure("SIGKILL during extract", kills=kills, finished=ends, identical=ends, orphans=0)


METHODS = {
    "kda": (method("kda").with_options({"landmarks": "kmeans"}), method("kd")),
    "ab": (method("ab"),),
    "srm": (method("srm").with_options({"passes": "2", "layers": "stage3"}),),
}


@pytest.mark.timeout(7200)
def test_distill(fresh: Fresh, trials: Trials, figure: Callable[..., None]) -> None:
    base = fresh()
    extracts.run(base)
    kept = Path(shutil.copytree(base, base.parent / "kept"))
    (kept / "teacher.safetensors").unlink()
    draw, kills, ends, total = random.Random(2), 0, 0, trials(9, 100)
    alone: dict[str, tuple[float, str]] = {}
    while kills < total:
        name = list(METHODS)[ends % 3]
        config = DistillConfig("resnet8", METHODS[name], PLAN, name=name, precision="float32")
        runs = kept / "runs"

        def work(config: DistillConfig = config) -> None:
            distill(Workspace.open(kept), config, Silent(), StopRequest(), checkpoint_seconds=0)

        if name not in alone:
            alone[name] = (seconds_of(work), weights(runs / name))
        shutil.rmtree(runs / name)
        kills += disturbed(work, alone[name][0], total - kills, draw)
        assert weights(runs / name) == alone[name][1]
        assert not list((runs / name).glob("*.partial")) + list((runs / name).glob("state*"))
        ends += 1
    figure("SIGKILL during distill", kills=kills, finished=ends, identical=ends)


def weights(run: Path) -> str:
    """The SHA-256 of the student, and of its file."""
    recorded = str(files.read_json(run / "result.json", "")["weights_sha256"])
    assert files.sha256_file(run / "student.safetensors") == recorded
    return recorded


@pytest.mark.timeout(7200)
def test_teach(tmp_path: Path, made_up_taught: Path, trials: Trials, figure: Callable[..., None]) -> None:
    config = TeachConfig(
        "made_up", "resnet8", replace(PLAN, epochs=4), student="resnet8", precision="float32", validation=16
    )
    folder = tmp_path / "work"

    def work() -> None:
        teach(Workspace.open(folder), config, Silent(), StopRequest(), checkpoint_seconds=0)

    folder.mkdir()
    seconds = seconds_of(work)
    names = ("teacher.safetensors", "teacher.json", "teacher.split.json", "kdtool.toml")
    wanted = {name: (folder / name).read_bytes() for name in names}
    draw, kills, ends, total = random.Random(3), 0, 0, trials(9, 100)
    while kills < total:
        shutil.rmtree(folder)
        folder.mkdir()
        kills += disturbed(work, seconds, total - kills, draw)
        assert {name: (folder / name).read_bytes() for name in names} == wanted
        ends += 1
    figure("SIGKILL during teach", kills=kills, finished=ends, identical=ends)
