"""Images of which nobody says what they show: the teacher trains without them, the students learn from all."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import PLAN, made_up, run_extract

from kdtool import data
from kdtool.data import Dataset, Part, content_digest
from kdtool.data.dataset import NO_LABEL
from kdtool.data.splits import make_split, narrow
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.folder import Workspace
from kdtool.engine.runs import RunFolder
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.train import cross_entropy
from kdtool.engine.workspace import open_teacher_cache
from kdtool.errors import UsageError
from kdtool.methods import METHODS, method
from kdtool.progress import Silent, StopRequest

CONFIG = TeachConfig("partly", "resnet8", PLAN, student="resnet8", views=2, precision="float32")


def partly(folder: Path) -> Dataset:
    """The made-up data set, two thirds of its train part without labels."""
    whole = made_up(folder)
    labels = np.where(np.arange(96) < 32, whole.train.labels, NO_LABEL)
    train = Part(whole.train.images, labels)
    return replace(whole, name="partly", train=train, digest=content_digest(train, whole.test))


@pytest.fixture(autouse=True)
def _data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATASETS, "partly", partly)
    monkeypatch.setitem(data.DATASETS, "made_up", made_up)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("work")
    kda = method("kda").with_options({"landmarks": "kmeans"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "partly", partly)
        teach(Workspace(folder), CONFIG, Silent(), StopRequest())
        return run_extract(folder, methods=(method("kd"), method("kda"), kda), students=("resnet8",), views=2)


def test_the_teacher_trains_on_what_has_a_label(workspace: Workspace) -> None:
    rows = RunFolder.rows(type("Folder", (), {"path": workspace.runs / "teacher"})())  # type: ignore[arg-type]
    assert rows[0]["steps"] == 1  # 32 images in a batch of 32


def test_the_cache_holds_all_images(workspace: Workspace) -> None:
    cache = open_teacher_cache(workspace.cache)
    assert cache.layout.samples["train"] == 96
    assert cache.labels("train").tolist().count(NO_LABEL) == 64


def test_centres_and_clusters_are_those_of_labelled_images(workspace: Workspace) -> None:
    cache = open_teacher_cache(workspace.cache)
    labels = cache.labels("train")
    rows = cache.array("train", "before_fc", "values").read(0).astype(np.float64)
    views = cache.fitted("centres.before_fc")["views"][0]
    for label in range(4):
        assert np.allclose(views[label], rows[labels == label].mean(0), atol=1e-3)
    assignment = next(cache.fitted(key)["assignment"] for key in cache.fits if "kmeans" in key)
    assert ((assignment == -1) == (labels == NO_LABEL)).all()


@pytest.mark.parametrize("landmarks", ["class", "kmeans", "random"])
def test_students_learn_from_all(workspace: Workspace, landmarks: str) -> None:
    kda = method("kda").with_options({"landmarks": landmarks, **({"count": "4"} if landmarks == "random" else {})})
    result = distill(workspace, DistillConfig("resnet8", (kda, method("kd")), PLAN), Silent(), StopRequest())
    rows = RunFolder.rows(type("Folder", (), {"path": workspace.runs / result["name"]})())  # type: ignore[arg-type]
    assert rows[0]["steps"] == 3
    for row in rows:
        assert math.isfinite(row["loss"])
        assert 0 <= row["train_accuracy"] <= 100


def test_the_cross_entropy_is_that_of_labelled_images() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, NO_LABEL, 0, NO_LABEL, NO_LABEL, 1])
    wanted = sum(-math.log(math.exp(logits[i, y]) / sum(map(math.exp, logits[i]))) for i, y in ((0, 2), (2, 0), (5, 1)))
    assert float(cross_entropy(logits, labels, partly=True)) == pytest.approx(wanted / 3, rel=1e-12)
    none = torch.full((6,), NO_LABEL)
    assert float(cross_entropy(logits, none, partly=True)) == 0
    assert float(cross_entropy(logits, labels.clamp(min=0), partly=True)) == pytest.approx(
        float(cross_entropy(logits, labels.clamp(min=0))), rel=1e-12
    )


def test_a_method_that_needs_all_labels_says_so(workspace: Workspace) -> None:
    work = run_extract(workspace.folder, methods=(METHODS["crd"](),), students=("resnet8",), views=2)
    with pytest.raises(UsageError, match="some training images have no label"):
        distill(work, DistillConfig("resnet8", (METHODS["crd"](),), PLAN), Silent(), StopRequest())


def test_splits_leave_unlabelled_images_in_the_train_part() -> None:
    labels = partly(Path()).train.labels
    split = make_split(labels, 4, validation=8, few_shot=2, seed=3)
    assert set(np.flatnonzero(labels == NO_LABEL)) <= set(split.train)
    assert (labels[split.validation] != NO_LABEL).all()
    assert np.bincount(labels[split.train][labels[split.train] != NO_LABEL]).tolist() == [2] * 4
    fewer = narrow(split, labels, 4, few_shot=1)
    assert set(np.flatnonzero(labels == NO_LABEL)) <= set(fewer.train)
    with pytest.raises(UsageError, match="33 more validation images were asked for, and 32 are left"):
        make_split(labels, 4, validation=33)
