"""Stopped anywhere, gone on, and no bit is different: teach, extract and distill."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import run_extract
from stopping import StopAfter

from kdtool import files
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.keeping import kept
from kdtool.engine.optim import Recipe, recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.teach import TeachConfig, teach
from kdtool.errors import Stopped
from kdtool.methods import METHODS, method
from kdtool.methods.protocol import Method
from kdtool.progress import Silent, StopRequest


def often_stopped(run: Callable[[StopRequest], object], every: int) -> int:
    """Runs again and again, each time stopped after `every` safe points; gives the number of stops."""
    for stops in range(1000):
        try:
            run(StopAfter(every))
        except Stopped as stopped:
            if stopped.exit_code != 143:
                raise
        else:
            return stops
    raise AssertionError("it never ends")


def rows(path: Path) -> list[dict[str, object]]:
    """The metrics without the seconds, which differ; terms in the order in which they are written."""
    import json

    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{**row, "seconds": None, "terms": list(row["terms"].items())} for row in found]


ADAM = replace(recipe("srm"), epochs=4, batch=32)


@pytest.mark.parametrize(
    ("methods", "plan"),
    [
        ((), None),
        ((method("kda").with_options({"layers": "before_fc,after_fc"}),), None),
        ((method("kda"), method("kd")), ADAM),
    ],
    ids=["none", "kda", "kda+kd with Adam and its resets"],
)
@pytest.mark.parametrize("every", [1, 4])
def test_distill(work: Callable[[], Workspace], plan: Recipe | None, methods: tuple[Method, ...], every: int) -> None:
    from kdtool.engine.optim import recipe as named

    chosen = plan or replace(named("kda"), epochs=3, batch=32, learning_rate=0.05)
    config = DistillConfig("resnet8", methods, chosen, name="run", precision="float32", seed=3)
    stops = same_bits(work, config, every)
    assert stops >= 8 // every


def test_weights_that_are_kept(work: Callable[[], Workspace]) -> None:
    config = DistillConfig(
        "resnet8", (), replace(recipe("kda"), epochs=5, batch=32), name="run", precision="float32", keep_weights=2
    )
    undisturbed, stopped = work(), work()
    result = distill(undisturbed, config, Silent(), StopRequest())
    often_stopped(lambda stop: distill(stopped, config, Silent(), stop), 2)
    found = kept(undisturbed.runs / "run")
    assert [known.epoch for known in found] == [0, 2, 4, 5]
    assert kept(stopped.runs / "run") == found
    assert found[-1].sha256 == result["weights_sha256"]
    assert len({known.sha256 for known in found}) == 4


def same_bits(work: Callable[[], Workspace], config: DistillConfig, every: int) -> int:
    """Distils undisturbed and stopped after `every` steps, and compares; gives the number of stops."""
    undisturbed, stopped = work(), work()
    wanted = distill(undisturbed, config, Silent(), StopRequest())
    stops = often_stopped(lambda stop: distill(stopped, config, Silent(), stop), every)
    found = files.read_json(stopped.runs / "run" / "result.json", "")
    assert found["weights_sha256"] == wanted["weights_sha256"]
    assert rows(stopped.runs / "run") == rows(undisturbed.runs / "run")
    assert not list((stopped.runs / "run").glob("state*"))
    return stops


@pytest.mark.parametrize("name", METHODS)
def test_every_method(whole: Callable[[], Workspace], small: Callable[[str], Method], name: str) -> None:
    """All stages, with heads, memory banks, landmarks and generators; together with KD where that can be."""
    item = small(name)
    methods = (item, method("kd")) if item.combines else (item,)
    chosen = replace(recipe("kda"), epochs=2, batch=32, learning_rate=0.05)
    assert same_bits(whole, DistillConfig("resnet8", methods, chosen, name="run", precision="float32", seed=3), 2) >= 2


def test_a_cache_that_has_grown(work: Callable[[], Workspace], plan: Recipe) -> None:
    """A run that was begun goes on with the views that it has; what came to nothing takes those that there are."""
    config = DistillConfig("resnet8", (method("kd"),), plan, name="run", precision="float32")
    undisturbed, stopped = work(), work()
    wanted = distill(undisturbed, config)
    with pytest.raises(Stopped):
        distill(stopped, config, stop=StopAfter(4))
    run_extract(stopped.folder, views=int(wanted["views"]) + 1, dtypes={"": "float32"})
    assert distill(stopped, config)["weights_sha256"] == wanted["weights_sha256"]
    assert distill(stopped, replace(config, name="other"))["views"] == wanted["views"] + 1
    (stopped.runs / "run" / "result.json").unlink()
    assert distill(stopped, config)["views"] == wanted["views"] + 1


@pytest.mark.parametrize("every", [1, 3])
def test_teach(taught: Path, tmp_path: Path, plan: Recipe, every: int) -> None:
    config = TeachConfig("made_up", "resnet8", plan, student="resnet8", views=3, precision="float32", validation=16)
    stops = often_stopped(lambda stop: teach(Workspace(tmp_path), config, Silent(), stop), every)
    assert stops >= 6 // every
    for name in ("teacher.safetensors", "teacher.json", "teacher.split.json", "kdtool.toml"):
        assert (tmp_path / name).read_bytes() == (taught / name).read_bytes()


def cache_bytes(cache: Path) -> dict[str, bytes]:
    """Every file of a cache but the record of who wrote it."""
    skipped = ("provenance.jsonl", "lock")
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and path.name not in skipped
    }


@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_extract(taught: Path, tmp_path: Path, every: int, save_seconds: float) -> None:
    asked = ExtractConfig(
        batch=16,
        block=32,
        views=5,
        methods=(method("kda").with_options({"landmarks": "kmeans"}),),
        students=("resnet8",),
    )
    caches = []
    for name in ("undisturbed", "stopped"):
        shutil.copytree(taught, tmp_path / name)
        workspace = Workspace.open(tmp_path / name)
        caches.append(workspace.cache)

        def run(stop: StopRequest, workspace: Workspace = workspace) -> None:
            extract(workspace.cache, prepare(workspace, asked), Silent(), stop, save_seconds)

        if name == "undisturbed":
            run(StopRequest())
        else:
            assert often_stopped(run, every) >= 15 // every
    assert cache_bytes(caches[0]) == cache_bytes(caches[1])


def test_views_and_methods_that_are_added_later_change_nothing_that_is_there(taught: Path, tmp_path: Path) -> None:
    kda = method("kda").with_options({"layers": "conv3_x,before_fc"})
    once, grown = tmp_path / "once", tmp_path / "grown"
    for folder in (once, grown):
        shutil.copytree(taught, folder)

    def run(folder: Path, **options: object) -> None:
        workspace = Workspace.open(folder)
        asked = ExtractConfig(batch=16, block=32, **options)  # type: ignore[arg-type]
        extract(workspace.cache, prepare(workspace, asked), Silent(), StopRequest())

    run(once, views=4, methods=(kda,), students=("resnet8",))
    run(grown, views=2, without=("srm",))
    before = cache_bytes(Workspace(grown).cache)
    run(grown, views=4, without=("srm",))
    run(grown, views=4, methods=(kda,), students=("resnet8",))
    after = cache_bytes(Workspace(grown).cache)
    assert after == cache_bytes(Workspace(once).cache)
    chunks = {name: content for name, content in before.items() if "/c/" in name}
    assert chunks
    assert all(after[name] == content for name, content in chunks.items())
