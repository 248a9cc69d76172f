"""What `evaluate` says of a network, against loops over what the network says of every image."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from telling import Told

from kdtool import data
from kdtool.analysis import evaluation
from kdtool.analysis.evaluation import Images, evaluate, evaluate_all
from kdtool.data.dataset import NO_LABEL, Dataset
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import Recipe
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.trained import load_network
from kdtool.errors import IdentityError, UsageError
from kdtool.workflows.bench import made_up

CLASSES = 8


@pytest.fixture(scope="module")
def noise() -> Dataset:
    """Images of 8 classes; the last class has no image in the test part, and three test images have no label."""
    found = made_up.dataset(64, CLASSES, 32)
    labels = np.arange(len(found.test.labels)) % (CLASSES - 1)
    labels[:3] = NO_LABEL
    return replace(found, test=replace(found.test, labels=labels))


@pytest.fixture(scope="module")
def weights(noise: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("evaluated")
    with made_up.registry_kept():
        made_up.offer(noise)
        asked = TeachConfig(
            noise.name, "resnet8", Recipe(epochs=1, batch=32), precision="float32", mean=(0.1, 0.5, 0.6)
        )
        teach(Workspace.open(folder), asked)
        yield folder / "teacher.safetensors"


@pytest.mark.parametrize("part", ["test", "train", "all"])
def test_against_a_loop(part: str, noise: Dataset, weights: Path) -> None:
    found, parts = evaluate(weights, Images(part)), {"test": [noise.test], "train": [noise.train]}
    asked = parts.get(part, [noise.train, noise.test])
    images = [image for of in asked for image in zip(of.images, of.labels, strict=True)]
    network = load_network(weights)
    right, seen, top5, entropy, sure = [0] * CLASSES, [0] * CLASSES, 0, 0.0, 0.0
    for pixels, label in images:
        if label == NO_LABEL:
            continue
        with torch.no_grad():
            logits = network(torch.from_numpy(pixels)[None])[0].double().tolist()
        total = math.fsum(math.exp(value) for value in logits)
        seen[label] += 1
        right[label] += max(range(CLASSES), key=logits.__getitem__) == label
        top5 += sorted(logits, reverse=True).index(logits[label]) < 5
        entropy += math.log(total) - logits[label]
        sure += math.exp(max(logits)) / total
    n = sum(seen)
    assert (found.images, found.part) == (n, part)
    assert found.top1 == pytest.approx(100 * sum(right) / n)
    assert found.top5 == pytest.approx(100 * top5 / n)
    assert found.quality.cross_entropy == pytest.approx(entropy / n, rel=1e-5)
    assert found.quality.confidence == pytest.approx(sure / n, rel=1e-5)
    assert [one.images for one in found.classes] == seen
    assert [one.accuracy for one in found.classes] == [
        pytest.approx(100 * good / count) if count else None for good, count in zip(right, seen, strict=True)
    ]
    assert [one.name for one in found.classes] == list(noise.class_names)


def test_networks_that_saw_their_data_alike_share_its_reading(
    noise: Dataset, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = TeachConfig(noise.name, "resnet8", Recipe(epochs=1, batch=32), precision="float32", mean=(0.5, 0.5, 0.5))
    teach(Workspace.open(tmp_path), asked)
    other, reads = tmp_path / "teacher.safetensors", []
    one, two = evaluate(weights), evaluate(other)
    load = evaluation.load_data
    monkeypatch.setattr(evaluation, "load_data", lambda *given: reads.append(given) or load(*given))
    assert evaluate_all([weights, weights, other]) == [one, one, two]
    assert len(reads) == 2
    assert one != two


def test_five_classes_are_too_few_for_five_guesses(tmp_path: Path) -> None:
    with made_up.registry_kept():
        few = made_up.dataset(32, 5, 32)
        made_up.offer(few)
        teach(Workspace.open(tmp_path), TeachConfig(few.name, "resnet8", Recipe(epochs=1, batch=32)))
        assert evaluate(tmp_path / "teacher.safetensors").top5 is None


def test_other_images_of_the_same_classes(noise: Dataset, weights: Path) -> None:
    """Named as another data set they are taken; as its own they are refused."""
    small = made_up.dataset(32, CLASSES, 16)
    with made_up.registry_kept():
        data.DATASETS[noise.name] = lambda *_: small
        with pytest.raises(IdentityError, match="other content"):
            evaluate(weights)
        found = evaluate(weights, Images(data=noise.name))
    assert found.images == len(small.test.labels)


def test_classes_in_another_order_are_refused_and_other_names_are_told_of(noise: Dataset, weights: Path) -> None:
    names = noise.class_names
    swapped = replace(noise, class_names=(names[1], names[0], *names[2:]))
    renamed = replace(noise, class_names=("another", *names[1:]))
    with made_up.registry_kept():
        data.DATASETS[noise.name] = lambda *_: swapped
        with pytest.raises(UsageError, match=f"{names[0]} is class 0 of the network and class 1 of {noise.name}"):
            evaluate(weights, Images(data=noise.name))
        data.DATASETS[noise.name] = lambda *_: renamed
        said = Told()
        assert evaluate(weights, Images(data=noise.name), progress=said).top1 == evaluate(weights).top1
    assert said.notes == [f"1 classes have other names in {noise.name}: another is taken for {names[0]}"]


def test_what_cannot_be_evaluated_is_refused(noise: Dataset, weights: Path) -> None:
    with pytest.raises(UsageError, match="unknown part 'tests'; did you mean 'test'"):
        evaluate(weights, Images("tests"))
    unlabelled = replace(noise, test=replace(noise.test, labels=np.full_like(noise.test.labels, NO_LABEL)))
    for other, words in (
        (unlabelled, "has a label"),
        (made_up.dataset(32, 3, 32), "has 3 classes and the network tells 8"),
    ):
        with made_up.registry_kept():
            data.DATASETS[noise.name] = lambda *_, other=other: other
            with pytest.raises(UsageError, match=words):
                evaluate(weights, Images(data=noise.name))
