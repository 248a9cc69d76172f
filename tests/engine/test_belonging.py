"""Images, labels, splits and seeds belong together, held against the data set itself and not against the cache."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import PLAN, made_up, run_extract

from kdtool import files
from kdtool.cache import open_cache
from kdtool.data import splits
from kdtool.data.batches import order_of_epoch, view_of_epoch
from kdtool.engine import state
from kdtool.engine import train as loop
from kdtool.engine.distill import DistillConfig, distill, made_ready
from kdtool.engine.folder import Workspace
from kdtool.engine.job import Labelled, adapter_seed, seeded, teacher_seed
from kdtool.engine.ranks import Alone
from kdtool.engine.teach import TeachConfig, read_lesson
from kdtool.engine.train import step_seeds
from kdtool.engine.trained import load_network
from kdtool.engine.workspace import read_record, read_split, split_path
from kdtool.errors import DamageError
from kdtool.methods import method
from kdtool.progress import Silent, StopRequest
from kdtool.targets import CLEAN

CPU = torch.device("cpu")
TEACH = TeachConfig("made_up", "resnet14", PLAN, student="resnet8", views=3, precision="float32", validation=16)
KD = DistillConfig("resnet8", (method("kd"),), PLAN, precision="float32")


@pytest.fixture(scope="module")
def workspace(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A cache in float16, as a living teacher's answers are rounded."""
    folder = shutil.copytree(taught, tmp_path_factory.mktemp("belonging") / "work")
    return run_extract(folder, without=("srm",))


def belongs(held: Labelled | None, images: np.ndarray, labels: np.ndarray) -> None:
    """Whether un-augmented images and labels are those of the data set; its mean and deviation are 0.5."""
    assert held is not None
    assert held.labels.tolist() == labels.tolist()
    seen = held.images.view(torch.arange(len(labels)), CLEAN)
    assert torch.allclose(seen, (torch.from_numpy(images).float() / 255 - 0.5) / 0.5, atol=1e-6)


def test_labels_are_those_of_their_images(workspace: Workspace) -> None:
    whole, cache = made_up(Path()), open_cache(workspace.cache)
    split = read_split(workspace.teacher, read_record(workspace.teacher))
    job = made_ready(workspace, KD, Alone(), CPU, "float32", Silent()).job(KD, CPU, "float32")
    parts = {
        "train": (split.train, whole.train, job.train),
        "train_clean": (split.train, whole.train, job.train),
        "validation": (split.validation, whole.train, job.validation),
        "test": (np.arange(len(whole.test.labels)), whole.test, job.test),
    }
    assert sorted([*split.train, *split.validation]) == list(range(len(whole.train.labels)))
    for name, (rows, part, held) in parts.items():
        assert cache.index(name).tolist() == rows.tolist(), name
        assert cache.labels(name).tolist() == part.labels[rows].tolist(), name
        belongs(held, part.images[rows], part.labels[rows])  # type: ignore[index]


def test_a_teacher_validates_on_images_that_it_does_not_train_on() -> None:
    lesson, whole = read_lesson(TEACH, Silent()), made_up(Path())
    split = splits.make_split(whole.train.labels, whole.classes, 16, None, 0, None)
    for name, rows in (("train", split.train), ("validation", split.validation)):
        belongs(lesson.part(name, CPU), whole.train.images[rows], whole.train.labels[rows])  # type: ignore[index]
    assert not set(split.train) & set(split.validation)


def test_the_split_of_another_teacher_is_refused(workspace: Workspace) -> None:
    path = split_path(workspace.teacher)
    own = path.read_bytes()
    other = splits.make_split(made_up(Path()).train.labels, 4, 16, None, 1, None)
    try:
        path.write_text(files.canonical(splits.to_plain(other)))
        with pytest.raises(DamageError, match="is not the split of this teacher"):
            read_split(workspace.teacher, read_record(workspace.teacher))
    finally:
        path.write_bytes(own)


def test_the_seed_of_a_student_decides_its_order_its_views_and_its_first_weights(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, views = [], []
    monkeypatch.setattr(loop, "order_of_epoch", lambda *given: orders.append(given) or order_of_epoch(*given))
    monkeypatch.setattr(loop, "view_of_epoch", lambda *given: views.append(given) or view_of_epoch(*given))
    first = {}
    for seed in (0, 3):
        config = replace(KD, seed=seed, shuffle_block=16, keep_weights=1, name=f"seed{seed}")
        distill(workspace, config, Silent(), StopRequest())
        (path,) = (workspace.runs / f"seed{seed}/weights").glob("*-0000.safetensors")
        first[seed] = path.read_bytes()
    samples = len(open_cache(workspace.cache).labels("train"))
    assert {given[:2] for given in views} >= {(seed, epoch) for seed in (0, 3) for epoch in range(PLAN.epochs)}
    assert {given for given in orders if given[0] == 3} == {(3, epoch, samples, 16) for epoch in range(PLAN.epochs)}
    assert {given[0] for given in orders} == {given[0] for given in views} == {0, 3}
    assert first[0] != first[3]


def test_the_targets_of_parts_other_than_train_are_of_images_as_they_are(workspace: Workspace) -> None:
    whole, cache = made_up(Path()), open_cache(workspace.cache)
    teacher = load_network(workspace.folder / "teacher.safetensors")
    for part, source in (("train_clean", whole.train), ("validation", whole.train), ("test", whole.test)):
        with torch.no_grad():
            wanted = teacher(torch.from_numpy(source.images[cache.index(part)]))
        held = torch.from_numpy(cache.array(part, "logits", "values").read(0).astype(np.float32))
        assert torch.allclose(held, wanted, rtol=2e-3, atol=2e-3), part


def test_adapters_and_draws_of_a_method_follow_the_seed(workspace: Workspace) -> None:
    config = replace(KD, methods=(method("crd"),))
    begun = {}
    for seed in (0, 0, 3):
        chosen = replace(config, seed=seed)
        job = made_ready(workspace, chosen, Alone(), CPU, "float32", Silent()).job(chosen, CPU, "float32")
        running = state.begin(job, 0)
        weights = torch.cat([value.flatten() for value in running.adapters.parameters()])
        assert len(weights)
        begun.setdefault(seed, []).append((weights, step_seeds(job.seed, 0, 0, 1)))
    (first, again), (other,) = begun[0], begun[3]
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])
    assert first[1] != other[1]
    with seeded(0):  # what the student's first weights are drawn from
        students = torch.cat([value.flatten() for bound in job.bound for value in bound.adapters().parameters()])
    assert not torch.equal(first[0], students)


def test_stages_and_seeds_have_adapters_of_their_own() -> None:
    seeds = [adapter_seed(seed, stage) for seed in range(100) for stage in range(3)]
    assert len({*seeds, *range(100), *map(teacher_seed, range(100))}) == 500


def test_a_student_beside_the_living_teacher_is_the_one_from_the_cache(workspace: Workspace) -> None:
    cached, alive = (
        distill(workspace, replace(KD, views=2, name=name), Silent(), StopRequest(), live=name == "alive")
        for name in ("cached", "alive")
    )
    assert cached["views"] == alive["views"] == 2
    assert cached["weights_sha256"] == alive["weights_sha256"]


def test_a_stage_is_chosen_alike_beside_the_living_teacher(workspace: Workspace) -> None:
    """SRM's first stage ends with the weights of the lowest loss on validation images as they are."""
    srm = method("srm").with_options({"passes": "2", "layers": "stage3"})
    run_extract(workspace.folder, methods=(srm,), students=("resnet8",), views=2)
    cached, alive = (
        distill(workspace, replace(KD, methods=(srm,), views=2, name=name), live=name == "srm-alive")
        for name in ("srm-cached", "srm-alive")
    )
    assert cached["stages"][0]["validation_loss"] is not None
    assert cached["stages"] == alive["stages"]
    assert cached["weights_sha256"] == alive["weights_sha256"]
