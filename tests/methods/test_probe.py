"""The made-up method of probe_method.py goes through extract and distill: three stages, stopped anywhere, resumed."""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stopping import StopAfter
from telling import Told

from kdtool import data, files
from kdtool.cache import open_cache
from kdtool.data import Dataset, Part, content_digest
from kdtool.data.batches import order_of_epoch
from kdtool.engine import checkpoint, fitting, spool, state
from kdtool.engine import distill as stage
from kdtool.engine import train as loop
from kdtool.engine.cached import CachedTeacher
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.job import Job, seeded
from kdtool.engine.optim import recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.runs import RunFolder
from kdtool.engine.sources import Teller, as_tensors
from kdtool.engine.spool import Spool
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.workspace import read_record, read_teacher
from kdtool.errors import DamageError, Stopped
from kdtool.methods.kd import KD
from kdtool.methods.protocol import Method
from kdtool.models import create, tap_shapes
from kdtool.progress import Silent, StopRequest
from kdtool.targets import CLEAN, Batch

CPU = torch.device("cpu")
PLAN = replace(recipe("kda"), epochs=3, batch=32, learning_rate=0.05)
PROBE_KEYS = {"stage2.nearest6x8", "stage2.share6x8", "before_fc"}


def made_up(folder: Path) -> Dataset:
    """80 and 24 images of 16x16 pixels in 4 classes."""
    random = np.random.default_rng(11)

    def part(count: int) -> Part:
        images = random.integers(0, 256, (count, 3, 16, 16)).astype(np.uint8)
        return Part(images, np.arange(count, dtype=np.int64) % 4)

    train, test, half = part(80), part(24), (0.5, 0.5, 0.5)
    return Dataset("probed", train, test, 4, tuple("abcd"), half, half, True, content_digest(train, test))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "probed", made_up)
        yield


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, _registered: None) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    plan = replace(PLAN, epochs=2)
    config = TeachConfig("probed", "resnet8", plan, student="resnet8", views=2, precision="float32", validation=16)
    teach(Workspace(folder), config, Silent(), StopRequest())
    return folder


def run_extract(folder: Path, *methods: Method) -> Workspace:
    workspace = Workspace.open(folder)
    asked = ExtractConfig(methods, ("resnet8",), batch=16, block=32, dtypes={"": "float32"}, fit_views=2)
    extract(workspace.cache, prepare(workspace, asked), Silent(), StopRequest())
    return workspace


@pytest.fixture(scope="module")
def extracted(taught: Path, tmp_path_factory: pytest.TempPathFactory, probe) -> Path:
    folder = tmp_path_factory.mktemp("extracted") / "work"
    shutil.copytree(taught, folder)
    run_extract(folder, KD(), probe.Probe())
    return folder


@pytest.fixture
def work(extracted: Path, tmp_path: Path) -> Callable[[], Workspace]:
    """Gives fresh copies of the extracted workspace."""
    count = iter(range(1000))

    def copy() -> Workspace:
        folder = tmp_path / f"work{next(count)}"
        shutil.copytree(extracted, folder)
        return Workspace.open(folder)

    return copy


def steps_of(run: Callable[[StopRequest], object], folder: Path) -> list[tuple[dict, dict]]:
    """The state on disk, tensors and plain values, after every single step of a run that is stopped there."""
    found = []
    for _ in range(100):
        try:
            run(StopAfter(1))
        except Stopped:
            state = checkpoint.load_state(folder)
            assert state is not None
            found.append(state)
        else:
            return found
    raise AssertionError("it never ends")


def config_of(probe, *added: Method, **options: object) -> DistillConfig:
    return DistillConfig("resnet8", (probe.Probe(**options), *added), PLAN, name="run", precision="float32", seed=3)


def make_job(workspace: Workspace, config: DistillConfig) -> Job:
    """The job that `distill` would run, before it runs."""
    cache = open_cache(workspace.cache)
    facts = stage.facts_of(cache, config)
    with seeded(config.seed):
        student = create("resnet8", cache.layout.classes)
    shapes = tap_shapes(student, (3, 16, 16))
    needs = stage.needs_of(config.methods, shapes, cache.layout.tap_shapes, facts)
    stages, bound = stage.staged(config.methods, needs, shapes, cache.layout.tap_shapes, facts, cache.fitted)
    dataset = stage.data_of(workspace, cache, None, Silent())
    return stage.make_job(cache, dataset, student, stages, bound, needs, config, 2, CPU, "float32")


# What is stored


def test_two_taps_two_arrays_and_a_shared_fit_are_stored(extracted: Path) -> None:
    cache = open_cache(Workspace.open(extracted).cache)
    assert cache.contents.keys() >= PROBE_KEYS
    nearest = cache.contents["stage2.nearest6x8"]
    assert {name: (spec.dtype, spec.shape) for name, spec in nearest.arrays.items()} == {
        "nearest": ("uint16", (8, 8)),
        "relation": ("float32", (64, 32)),
    }
    assert nearest.taps == ("stage2", "stage3")
    assert nearest.fit == cache.contents["stage2.share6x8"].fit == "atoms6.stage2"
    assert cache.fitted("atoms6.stage2")["atoms"].shape == (6, 32)
    assert "stage2.map" not in cache.contents  # what a fit reads need not be stored


def test_what_a_stage_is_selected_by_is_stored_for_the_validation_part_alone(extracted: Path) -> None:
    """Although the method was not the first that extract was asked for."""
    cache = open_cache(Workspace.open(extracted).cache)
    for key in PROBE_KEYS:
        assert cache.views(key, "validation") == 1
        assert cache.views(key, "train") == 2
        assert cache.views(key, "test") == (key == "before_fc")


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("resident", [0, 2**31])
def test_stored_rows_are_the_teachers_answers(part: str, resident: int, extracted: Path, probe) -> None:
    workspace = Workspace.open(extracted)
    cache, job = open_cache(workspace.cache), make_job(workspace, config_of(probe))
    targets = probe.Probe().targets(cache.layout.tap_shapes, cache.layout.tap_shapes)
    teacher = read_teacher(workspace.teacher, read_record(workspace.teacher), CPU)
    fitted = {"atoms6.stage2": as_tensors(cache.fitted("atoms6.stage2"), CPU)}
    images = job.train.images if part == "train" else job.validation.images
    answer = Teller(teacher, targets, fitted, 16, "float32").answer(
        images.view(np.arange(16), 0 if part == "train" else CLEAN)
    )
    indices = torch.from_numpy(np.random.default_rng(0).permutation(16)[:7])
    batch = Batch(indices, indices, 0, "dictionary", 0, 0, torch.Generator())
    stored = CachedTeacher(cache, targets, CPU, part, resident).read(batch)
    assert stored.keys() == answer.keys() == PROBE_KEYS
    for key, arrays in answer.items():
        for name, rows in arrays.items():
            assert stored[key][name].dtype == rows.dtype
            assert torch.equal(stored[key][name], rows[indices])


# The stages


def moved(before: dict, after: dict, names: list[str]) -> set[str]:
    return {name for name in names if not torch.equal(before[f"student.{name}"], after[f"student.{name}"])}


def test_each_stage_trains_what_it_names_and_leaves_what_it_says(
    work: Callable[[], Workspace], probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "validation_loss", lambda job, stage, running: float(running.epoch))  # first is best
    workspace, config = work(), config_of(probe)
    begun: dict[int, dict] = {}  # stage -> what it began from, when it was first begun

    def begin(job, number, before=None):
        running = state.begin(job, number, before)
        parts = {"student": job.student, "adapters": running.adapters}
        kept = {f"{owner}.{name}": v.clone() for owner, part in parts.items() for name, v in part.state_dict().items()}
        begun.setdefault(number, kept)
        return running

    monkeypatch.setattr(loop, "begin", begin)
    states = steps_of(lambda stop: distill(workspace, config, Silent(), stop), workspace.runs / "run")
    assert [plain["stage"] for _, plain in states] == [0] * 8 + [1] * 2 + [2] * 6
    assert [plain["epoch"] for _, plain in states] == [0] * 4 + [1] * 4 + [0] * 2 + [0, 0, 1, 1, 2, 2]
    names = [name for name, _ in create("resnet8", 4).named_parameters()]

    dictionary, relation, main = states[:8], states[8:10], states[10:]
    first = {name for name in names if name.startswith(("stem", "stage1", "stage2"))}
    assert moved(dictionary[0][0], dictionary[-1][0], names) == first
    whole = {name for name in names if name.startswith(("stem", "stage"))}
    assert moved(relation[0][0], relation[1][0], names) == whole
    assert moved(main[0][0], main[-1][0], names) == set(names)

    def buffers(stage: str) -> list[str]:
        return [f"student.{name}" for name, _ in create("resnet8", 4).named_buffers() if name.startswith(stage)]

    for name in buffers("stage3"):  # what a stage does not train is in eval mode
        assert torch.equal(begun[1][name], begun[0][name])
    assert not any(torch.equal(begun[1][name], begun[0][name]) for name in buffers("stage2"))
    assert not any(torch.equal(begun[2][name], begun[1][name]) for name in buffers("stage3"))

    best = dictionary[4][0]  # a step after the first epoch, whose validation loss was the lowest
    for name in first:
        assert torch.equal(begun[1][f"student.{name}"], best[f"best.student.{name}"])
        assert not torch.equal(begun[1][f"student.{name}"], dictionary[-1][0][f"student.{name}"])

    atoms = torch.from_numpy(open_cache(workspace.cache).fitted("atoms6.stage2")["atoms"])[..., None, None]
    weight = "adapters.probe.dictionary.weight"
    assert not torch.equal(dictionary[-1][0][weight], atoms)
    assert torch.equal(begun[1][weight], atoms)  # discarded: the next stage starts afresh
    epochs = [int(tensors["adapters.probe.epochs"]) for tensors, _ in states]
    assert epochs == [0] * 4 + [1] * 4 + [0] * 2 + [1, 1, 2, 2, 3, 3]  # kept from relation to main


def test_the_step_between_stages_is_told_and_kept(
    work: Callable[[], Workspace], probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that was stopped in every stage."""
    monkeypatch.setattr(loop, "validation_loss", lambda job, stage, running: 2.5 + running.epoch)
    workspace, config, told = work(), config_of(probe), Told()
    result = None
    while result is None:
        with suppress(Stopped):
            result = distill(workspace, config, told, StopAfter(3))
    kept = {row["stage"]: row.pop("weights_sha256", None) for row in result["stages"]}
    for name in ("dictionary", "relation"):
        assert kept[name] == files.sha256_file(workspace.runs / "run" / f"stage-{name}.safetensors")
    assert kept["main"] is None
    assert result["stages"] == [
        {"stage": "dictionary", "epochs": 2, "kept_epoch": 1, "validation_loss": 2.5, "discard": True},
        {"stage": "relation", "epochs": 1, "kept_epoch": 1, "validation_loss": None, "discard": False},
        {"stage": "main", "epochs": 3, "kept_epoch": 3, "validation_loss": None, "discard": False},
    ]
    first = "stage dictionary ends with the weights of epoch 1 of the lowest validation loss, 2.5000"
    assert [line for line in told.notes if line.startswith("stage ")] == [
        f"{first}, without its adapters; stage relation begins",
        "stage relation ends with the weights of epoch 1; stage main begins",
        "stage main ends with the weights of epoch 3",
    ]
    rows = RunFolder(workspace.runs / "run", replace(config, views=2).plain()).rows()
    assert len(result["test_accuracy"]) == 3
    assert result["test_accuracy"]["best"] == max(row["test_accuracy"] for row in rows[3:])
    best = max(rows[3:], key=lambda row: row["validation_accuracy"])
    assert result["test_accuracy"]["selected"] == best["test_accuracy"]


def test_orders_and_views_go_on_from_stage_to_stage(
    work: Callable[[], Workspace], probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def order(seed: int, epoch: int, *rest: object) -> np.ndarray:
        asked.append(epoch)
        return order_of_epoch(seed, epoch, *rest)

    monkeypatch.setattr(loop, "order_of_epoch", order)
    distill(work(), config_of(probe), Silent(), StopRequest())
    assert asked == list(range(6))


def test_what_is_selected_at_the_ends_of_phases_is_not_the_best_epoch(
    work: Callable[[], Workspace], probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `resets` the first epoch, the best here, ends no phase; the second does, and the adapters are its too."""

    @dataclass(frozen=True)
    class Phases(probe.Probe):
        def stages(self, student, teacher, facts):
            first, _, last = super().stages(student, teacher, facts)
            plan = {**first.recipe, "schedule": "step", "milestones": (2 / 4,), "resets": True}
            return replace(first, epochs=4, recipe=plan, discard=False), last

    seen = []

    def loss(job: Job, stage: object, running: object) -> float:
        seen.append((running.epoch, int(running.adapters["probe"].norm.num_batches_tracked)))
        return float(running.epoch)

    monkeypatch.setattr(loop, "validation_loss", loss)
    workspace = work()
    config = replace(config_of(probe), methods=(Phases(),))
    result = distill(workspace, config, Silent(), StopRequest())
    assert seen == [(1, 8), (3, 16)]
    assert result["stages"][0]["kept_epoch"] == 2
    assert result["stages"][0]["validation_loss"] == 1.0


def test_a_last_stage_that_chooses_tells_the_accuracy_of_its_choice(
    work: Callable[[], Workspace], probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Last(probe.Probe):
        def stages(self, student, teacher, facts):
            return (replace(super().stages(student, teacher, facts)[-1], select="validation_loss"),)

    monkeypatch.setattr(loop, "validation_loss", lambda job, stage, running: float(running.epoch))  # first is best
    workspace = work()
    result = distill(workspace, replace(config_of(probe), methods=(Last(),)), Silent(), StopRequest())
    rows = [json.loads(line) for line in (workspace.runs / "run/metrics.jsonl").read_text().splitlines()]
    assert len({row["test_accuracy"] for row in rows}) > 1
    assert result["stages"][0]["kept_epoch"] == 1
    assert result["test_accuracy"]["last"] == rows[0]["test_accuracy"]
    assert result["validation_accuracy"]["last"] == rows[0]["validation_accuracy"]


def test_terms_are_used_as_the_stages_say(work: Callable[[], Workspace], probe) -> None:
    workspace, config = work(), config_of(probe, KD(weight=1.0))
    distill(workspace, config, Silent(), StopRequest())
    rows = RunFolder(workspace.runs / "run", replace(config, views=2).plain()).rows()
    used = [(row["stage"], row["steps"], sorted(row["terms"])) for row in rows]
    assert used == [
        ("dictionary", 4, ["image", "pixel"]),
        ("dictionary", 4, ["image", "pixel"]),
        ("relation", 2, ["relation"]),
        ("main", 2, ["kd", "task"]),
        ("main", 2, ["contrast", "kd", "task"]),
        ("main", 2, ["contrast", "kd", "task"]),
    ]
    assert [row["learning_rate"] for row in rows[:3]] == [1e-3, 1e-3, 0.01]
    first, second = rows[0], rows[1]
    for row in (first, second):
        assert row["loss"] == pytest.approx(row["terms"]["pixel"] + 2 * row["terms"]["image"], rel=1e-6)
    assert rows[4]["loss"] == pytest.approx(
        rows[4]["terms"]["task"] + 0.8 * rows[4]["terms"]["contrast"] + rows[4]["terms"]["kd"], rel=1e-6
    )


def test_the_validation_loss_is_the_weighted_mean_and_leaves_no_trace(extracted: Path, probe) -> None:
    workspace, config = Workspace.open(extracted), config_of(probe)
    job = make_job(workspace, config)
    running = loop.begin(job, 0)
    with torch.no_grad():  # buffers that are not those of a fresh BatchNorm
        running.adapters["probe"].norm.running_mean += 1
        job.student.train()(job.train.images.view(np.arange(16), 0))
    before = {
        name: value.clone() for module in (job.student, running.adapters) for name, value in module.state_dict().items()
    }
    found = loop.validation_loss(job, job.stages[0], running)
    after = {name: value for module in (job.student, running.adapters) for name, value in module.state_dict().items()}
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert job.student.training
    assert running.adapters.training

    job.student.eval()
    running.adapters.eval()
    indices = torch.arange(16)
    batch = Batch(indices, indices % 4, 0, "dictionary", 0, 0, torch.Generator())
    with loop.TapReader(job.student, ("stage2", "stage3", "before_fc")) as reader, torch.no_grad():
        _, taps = reader(job.validation.images.view(np.arange(16), CLEAN))
        terms = config.methods[0].terms(taps, job.validation_source.read(batch), batch, running.adapters["probe"])
    assert found == pytest.approx(float(terms["pixel"] + 2 * terms["image"]), rel=1e-6)


# Stopped and resumed


@pytest.mark.parametrize("added", [(), (KD(weight=1.0),)], ids=["probe", "probe+kd"])
@pytest.mark.parametrize("stops", [(1,), (3,), (5, 1, 2, 4)], ids=str)
def test_stopped_anywhere_the_weights_are_the_same_to_the_bit(
    stops: tuple[int, ...], added: tuple[Method, ...], work: Callable[[], Workspace], probe
) -> None:
    config, undisturbed, stopped = config_of(probe, *added), work(), work()
    wanted = distill(undisturbed, config, Silent(), StopRequest())
    count, found = 0, None
    while found is None:
        try:
            found = distill(stopped, config, Silent(), StopAfter(stops[count % len(stops)]))
        except Stopped:
            count += 1
    assert count >= 16 // max(stops)
    assert found["weights_sha256"] == wanted["weights_sha256"]
    for name in ("student.safetensors", "student-best.safetensors"):
        digests = [files.sha256((space.runs / "run" / name).read_bytes()) for space in (undisturbed, stopped)]
        assert digests[0] == digests[1]


def test_a_stop_inside_a_fit_changes_no_bit(taught: Path, tmp_path: Path, extracted: Path, probe) -> None:
    shutil.copytree(taught, tmp_path / "work")
    workspace = Workspace.open(tmp_path / "work")
    asked = ExtractConfig((KD(), probe.Probe()), ("resnet8",), batch=16, block=32, dtypes={"": "float32"}, fit_views=2)
    stops = 0
    for _ in range(200):
        try:
            extract(workspace.cache, prepare(workspace, asked), Silent(), StopAfter(1))
        except Stopped:
            stops += 1
        else:
            break
    assert stops > 16
    once, often = (open_cache(Workspace.open(folder).cache) for folder in (extracted, workspace.folder))
    assert once.manifest.files == often.manifest.files


@pytest.mark.parametrize("kept", ["all", "none", "until little room is left", "until a quota is full"])
def test_what_fits_read_again_gives_the_same_bytes(
    kept: str, taught: Path, tmp_path: Path, extracted: Path, probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"teacher": 0, "spool": 0}
    read, write, tell = Spool.read, Spool.write, fitting.FitSource._told

    def counted_read(self, view, key, start):
        found = read(self, view, key, start)
        asked["spool"] += found is not None
        return found

    def counted_tell(self, targets, view, start, again):
        asked["teacher"] += 1
        return tell(self, targets, view, start, again)

    def no_place(*_: object) -> Path:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def short_of_space(self, view, key, start, arrays):
        if start >= 32:
            self._path = no_place
        write(self, view, key, start, arrays)

    monkeypatch.setattr(fitting, "pays", lambda seconds, size: kept != "none")
    monkeypatch.setattr(Spool, "read", counted_read)
    monkeypatch.setattr(fitting.FitSource, "_told", counted_tell)
    if kept == "until little room is left":
        room = iter([spool.MARGIN + 10**6] * 2 + [spool.MARGIN])
        monkeypatch.setattr(files, "free_bytes", lambda path: next(room) if path.name == "spool" else 10**12)
    if kept == "until a quota is full":
        monkeypatch.setattr(Spool, "write", short_of_space)
    shutil.copytree(taught, tmp_path / "work")
    workspace = run_extract(tmp_path / "work", KD(), probe.Probe())
    once, again = (open_cache(space.cache) for space in (Workspace.open(extracted), workspace))
    assert once.manifest.files == again.manifest.files
    # 64 samples are 4 batches; the atoms are fitted in 3 turns, over views 0, 1 and 0, and once over the clean images
    assert (
        asked
        == {
            "all": {"teacher": 12, "spool": 4},
            "none": {"teacher": 16, "spool": 0},
            "until little room is left": {"teacher": 14, "spool": 2},
            "until a quota is full": {"teacher": 16, "spool": 0},
        }[kept]
    )
    assert not list(workspace.cache.rglob("*spool*"))


# What is lacking


def test_a_cache_without_validation_targets_is_refused_with_the_command(taught: Path, tmp_path: Path, probe) -> None:
    @dataclass(frozen=True)
    class TakesTheLast(probe.Probe):
        def stages(self, student, teacher, facts):
            return tuple(replace(item, select="last") for item in super().stages(student, teacher, facts))

    shutil.copytree(taught, tmp_path / "work")
    workspace = run_extract(tmp_path / "work", TakesTheLast())
    with pytest.raises(DamageError, match=r"of the validation part.*kdtool extract .*--for \S+:Probe --student res"):
        distill(workspace, config_of(probe), Silent(), StopRequest())
    assert not (workspace.runs / "run").exists()
    before = open_cache(workspace.cache).manifest.files
    run_extract(workspace.folder, probe.Probe())
    added = open_cache(workspace.cache).manifest.files.keys() - before.keys()
    assert {name.split("/")[0] for name in added} == {"validation"}
    distill(workspace, config_of(probe), Silent(), StopRequest())


def test_targets_for_students_of_another_size_are_other_targets(probe) -> None:
    teacher = tap_shapes(create("resnet8", 4), (3, 16, 16))
    half = {tap: (shape[0], *(side // 2 for side in shape[1:])) for tap, shape in teacher.items()}
    keys = [{target.key for target in probe.Probe().targets(student, teacher)} for student in (teacher, half)]
    assert keys == [PROBE_KEYS, {"stage2.nearest6x4", "stage2.share6x4", "before_fc"}]
