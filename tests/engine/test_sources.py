"""Training from the cache is training with the living teacher: to the bit in float32, within a bound in float16."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distilling import make_job

from kdtool.cache import open_cache
from kdtool.engine import distill as stage
from kdtool.engine.cached import CachedTeacher
from kdtool.engine.distill import DistillConfig
from kdtool.engine.folder import Workspace
from kdtool.engine.job import Job
from kdtool.engine.optim import Recipe
from kdtool.engine.runs import RunFolder
from kdtool.engine.sources import LiveTeacher, Plain, Teller, as_tensors
from kdtool.engine.train import train
from kdtool.engine.workspace import read_record, read_teacher
from kdtool.errors import UsageError
from kdtool.methods import METHODS, method
from kdtool.methods.protocol import Method
from kdtool.progress import Silent, StopRequest
from kdtool.targets import Batch

CPU = torch.device("cpu")


def live(workspace: Workspace, job: Job, round_to: str = "float32") -> Job:
    """The same job with the teacher running in every step."""
    record = read_record(workspace.teacher)
    cache = open_cache(workspace.cache)
    targets = [t for item in job.bound for t in item.method.targets(cache.layout.tap_shapes, cache.layout.tap_shapes)]
    fitted = {key: as_tensors(cache.fitted(key), CPU) for key in cache.fits}
    teacher = read_teacher(workspace.teacher, record, CPU)
    teller = Teller(teacher, tuple(dict.fromkeys(targets)), fitted, cache.layout.batch, "float32")
    dtypes = {target.key: round_to for target in targets}
    return replace(job, source=LiveTeacher(teller, job.train.images, dtypes))


def weights(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    running = train(job, RunFolder(folder, {"command": "test"}), Silent(), StopRequest())
    return {**job.student.state_dict(), **{f"adapters.{k}": v for k, v in running.adapters.state_dict().items()}}


KDA_OPTIONS = [
    {"layers": "before_fc"},
    {"layers": "after_fc,before_fc", "teacher_landmarks": "fixed"},
    {"layers": "before_fc", "whiten": "true", "rank": "3"},
    {"landmarks": "random", "count": "5"},
]


@pytest.mark.parametrize(
    "methods",
    [
        (method("kd"),),
        *((method("kda").with_options(options),) for options in KDA_OPTIONS),
        (method("kda"), method("kd").with_options({"weight": "1"})),
    ],
    ids=lambda methods: "+".join(item.name for item in methods),
)
def test_float32_cache_trains_to_the_bits_of_the_live_teacher(
    work: Callable[[], Workspace], plan: Recipe, tmp_path: Path, methods: tuple[Method, ...]
) -> None:
    workspace = work()
    cached = weights(make_job(workspace, methods, plan), tmp_path / "cached")
    alive = weights(live(workspace, make_job(workspace, methods, plan)), tmp_path / "live")
    assert cached.keys() == alive.keys()
    odd = [name for name in cached if not torch.equal(cached[name], alive[name])]
    assert odd == []


@pytest.mark.parametrize("added", ["", "kd"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_to_the_bits_of_the_live_teacher(
    name: str, added: str, complete: Path, small: Callable[[str], Method], plan: Recipe, tmp_path: Path
) -> None:
    """All stages; student and adapters, heads and memory banks included."""
    methods = (small(name), *([method("kd").with_options({"weight": "1"})] if added else []))
    if added and not methods[0].combines:
        return
    workspace, short = Workspace.open(complete), replace(plan, epochs=2)
    cached = weights(make_job(workspace, methods, short), tmp_path / "cached")
    alive = weights(live(workspace, make_job(workspace, methods, short)), tmp_path / "live")
    assert cached.keys() == alive.keys()
    odd = [name for name in cached if not torch.equal(cached[name], alive[name])]
    assert odd == []


def test_the_comparison_notices_another_teacher(work: Callable[[], Workspace], plan: Recipe, tmp_path: Path) -> None:
    workspace = work()
    cached = weights(make_job(workspace, (method("kd"),), plan), tmp_path / "cached")
    job = live(workspace, make_job(workspace, (method("kd"),), plan))
    assert isinstance(job.source, LiveTeacher)
    with torch.no_grad():
        next(job.source.teller.model.parameters()).mul_(1.001)
    assert any(not torch.equal(cached[name], value) for name, value in weights(job, tmp_path / "live").items())


def batch_of(positions: np.ndarray, view: int) -> Batch:
    indices = torch.from_numpy(positions)
    return Batch(indices, indices % 4, view, "distill", 0, 0, torch.Generator())


def test_rows_of_any_batch_are_the_teachers(work: Callable[[], Workspace], plan: Recipe) -> None:
    workspace = work()
    job = make_job(workspace, (method("kda").with_options({"layers": "before_fc,after_fc"}),), plan)
    alive = live(workspace, job)
    assert job.source is not None
    assert alive.source is not None
    random = np.random.default_rng(0)
    for size in (1, 7, 16, 33, 80):
        batch = batch_of(random.permutation(80)[:size], int(random.integers(3)))
        cached, told = job.source.read(batch), alive.source.read(batch)
        for key in ("logits", "before_fc"):
            assert torch.equal(cached[key]["values"], told[key]["values"])


def test_rows_read_one_by_one_equal_the_resident_slice(work: Callable[[], Workspace], plan: Recipe) -> None:
    workspace = work()
    cache = open_cache(workspace.cache)
    targets = method("kda").targets(cache.layout.tap_shapes, cache.layout.tap_shapes)
    batch = batch_of(np.random.default_rng(1).permutation(80)[:32], 2)
    resident = CachedTeacher(cache, targets, CPU).read(batch)
    by_row = CachedTeacher(cache, targets, CPU, resident=0).read(batch)
    assert torch.equal(resident["before_fc"]["values"], by_row["before_fc"]["values"])


def test_float16_rows_are_within_half_a_unit_in_the_last_place(taught: Path, tmp_path: Path, plan: Recipe) -> None:
    from shutil import copytree

    from kdtool.engine.extract import extract
    from kdtool.engine.prepare import ExtractConfig, prepare

    copytree(taught, tmp_path / "half")
    workspace = Workspace.open(tmp_path / "half")
    extract(workspace.cache, prepare(workspace, ExtractConfig(batch=16)), Silent(), StopRequest())
    job = make_job(workspace, (method("kda").with_options({"layers": "before_fc,after_fc"}),), plan)
    alive = live(workspace, job)
    assert job.source is not None
    assert alive.source is not None
    batch = batch_of(np.arange(80), 1)
    stored, exact = job.source.read(batch), alive.source.read(batch)
    for key in ("logits", "before_fc"):
        error = (stored[key]["values"] - exact[key]["values"]).abs()
        assert float((error - exact[key]["values"].abs() * 2.0**-11).max()) <= 2.0**-25  # half an ulp; subnormals
        assert float(error.max()) > 0


def test_adding_to_a_method_without_a_task_is_refused(
    complete: Path, small: Callable[[str], Method], plan: Recipe
) -> None:
    asked = DistillConfig("resnet8", (small("logits").with_options({"task": "0"}), method("kd")), plan)
    with pytest.raises(UsageError, match=r"--with kd adds to stages .*--set logits\.task=1"):
        stage.distill(Workspace.open(complete), asked, Silent(), StopRequest())


def test_a_tap_is_gathered_when_it_is_asked_for_and_once() -> None:
    asked: list[torch.Tensor] = []

    def whole(value: torch.Tensor) -> torch.Tensor:
        asked.append(value)
        return torch.cat([value, value])

    outputs = {"stage1": torch.ones(2, 3, dtype=torch.bfloat16), "logits": torch.ones(2, 4)}
    taps = Plain(outputs, whole)
    assert (set(taps), asked) == (set(outputs), [])
    for _ in range(2):
        assert (taps["stage1"].shape, taps["stage1"].dtype) == ((4, 3), torch.float32)
    assert len(asked) == 1
