"""Streamed pictures against one that are decoded one by one; sizes and memory of a data set that is prepared."""

import os
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdtool.data import images as module
from kdtool.data import preparation
from kdtool.data.augment import Augmentation, normalise
from kdtool.data.dataset import Dataset, Part, Pixels, Rows, content_digest
from kdtool.data.images import Resident, Streamed, images_of
from kdtool.data.pictures import Pictures, decoder, stamp
from kdtool.data.preparation import all_views, at_size, check_views, rule_for, rule_from
from kdtool.data.resized_crop import ResizedCrop
from kdtool.errors import DamageError, UsageError
from kdtool.progress import Silent
from kdtool.targets import CLEAN

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
CPU = torch.device("cpu")
RULE = ResizedCrop(size=12, seed=5)
ROWS = np.array([7, 0, 3, 29, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 2])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Thirty pictures of many sizes."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    sizes = draw.integers(8, 40, (30, 2))
    names = [f"{row}.png" for row in range(30)]
    for name, (height, width) in zip(names, sizes, strict=True):
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    stamps = np.array([stamp(folder / name) for name in names])
    return Pictures(folder, names, sizes, np.zeros((30, 32), np.uint8), stamps)


def naive(pictures: Pictures, row: int, view: int) -> torch.Tensor:
    """One picture in one view, decoded alone."""
    box = RULE.parameters([row], view, pictures.sizes[row : row + 1])[0]
    with Image.open(pictures.root / pictures.names[row]) as picture:
        return normalise(torch.from_numpy(RULE.apply(picture, box))[None], MEAN, STD)[0]


@pytest.mark.parametrize("view", [CLEAN, 0, 9])
@pytest.mark.parametrize("threads", [1, 3])
def test_streamed_batches_are_the_pictures_decoded_alone(
    pictures: Pictures, view: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "workers", lambda: threads)
    streamed = Streamed(pictures, ROWS, RULE, MEAN, STD, CPU)
    assert streamed.image_shape == (3, 12, 12)
    parts = [np.array([4, 1, 14]), np.arange(15), np.array([2]), np.arange(9)]
    for positions, found in zip(parts, streamed.views((p, view) for p in parts), strict=True):
        assert torch.equal(found, torch.stack([naive(pictures, int(ROWS[p]), view) for p in positions]))
        assert torch.equal(streamed.view(torch.from_numpy(positions), view), found)


def test_requests_of_several_views_come_in_their_order(pictures: Pictures) -> None:
    streamed = Streamed(pictures, ROWS, RULE, MEAN, STD, CPU)
    asked = [(np.arange(3), 1), (np.arange(3), CLEAN), (np.arange(3), 0)]
    for (positions, view), found in zip(asked, streamed.views(asked), strict=True):
        assert torch.equal(found, streamed.view(positions, view))


def test_what_waits_is_bounded(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(module, "workers", lambda: 2)
    monkeypatch.setattr(module, "AHEAD_BYTES", 6 * module.TOGETHER * 3 * 12**2)
    decoded = Streamed._decoded

    def counted(self: Streamed, group: module.Group) -> tuple[Pixels, bool]:
        begun.append(len(group[0]))
        return decoded(self, group)

    monkeypatch.setattr(Streamed, "_decoded", counted)
    streamed = Streamed(pictures, ROWS, RULE, MEAN, STD, CPU)
    found = streamed.views((np.arange(8), view) for view in range(1000))
    next(found)
    assert len(begun) <= 8
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kdtool-pictures")]


def test_a_picture_that_is_gone_or_another_one_is_damage(pictures: Pictures, tmp_path: Path) -> None:
    gone = replace(pictures, root=tmp_path)
    with pytest.raises(DamageError, match=r"7\.png cannot be read any more.*restore it"):
        Streamed(gone, ROWS, RULE, MEAN, STD, CPU).view(np.arange(2), 0)
    Image.new("RGB", (3, 3)).save(tmp_path / "7.png")
    with pytest.raises(DamageError, match=r"7\.png has changed since it was examined"):
        Streamed(gone, ROWS, RULE, MEAN, STD, CPU).view(np.arange(1), 0)


def test_arrays_can_be_streamed_too() -> None:
    held = np.random.default_rng(2).integers(0, 256, (4, 3, 20, 30), dtype=np.uint8)
    part = Part(held, np.zeros(4, np.int64))
    found = images_of(part, np.array([2, 0]), RULE, MEAN, STD, CPU)
    assert isinstance(found, Streamed)
    box = RULE.parameters([0], 3, np.array([[20, 30]]))[0]
    wanted = RULE.apply(Image.fromarray(held[0].transpose(1, 2, 0)), box)
    assert torch.equal(found.view(np.array([1]), 3), normalise(torch.from_numpy(wanted)[None], MEAN, STD))


def dataset(images: Pixels | Pictures) -> Dataset:
    labels: Rows = np.arange(len(images)) % 3
    part = Part(images, labels)
    return Dataset("made_up", part, part, 3, ("a", "b", "c"), MEAN, STD, True, content_digest(part, part))


def test_the_size_and_the_rule_follow_from_the_data_set(pictures: Pictures) -> None:
    array, many = dataset(np.zeros((3, 3, 20, 30), np.uint8)), dataset(pictures)
    assert array.image_shape == (3, 20, 30)
    assert many.image_shape is None
    assert rule_for(array, seed=4) == (Augmentation(seed=4), (3, 20, 30))
    assert rule_for(array, size=8, pad=1) == (Augmentation(pad=1), (3, 8, 8))
    assert rule_for(array, crop="resized") == (ResizedCrop(size=30), (3, 30, 30))
    assert rule_for(many) == (ResizedCrop(size=224), (3, 224, 224))
    assert rule_for(many, size=64, seed=1) == (ResizedCrop(size=64, seed=1), (3, 64, 64))
    assert rule_for(many, size=16, crop="pad") == (Augmentation(), (3, 16, 16))
    assert rule_for(array, flip=False)[0] == Augmentation(flip=False)
    assert rule_for(many, flip=False)[0] == ResizedCrop(size=224, flip=False)
    assert rule_for(replace(array, flip=False))[0] == Augmentation(flip=False)
    assert rule_for(replace(array, flip=False), flip=True)[0] == Augmentation(flip=True)
    for wrong in ({"crop": "pad"}, {"crop": "random"}, {"size": 0}, {"size": 8, "pad": -1, "crop": "pad"}, {"pad": 2}):
        with pytest.raises(UsageError):
            rule_for(many, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [Augmentation(pad=2, flip=False, seed=3), ResizedCrop(size=9, seed=3)])
def test_rules_come_back_from_their_records(rule: Augmentation | ResizedCrop) -> None:
    assert rule_from(rule.rule()) == rule
    assert rule_from(rule.rule(), 8).seed == 8
    with pytest.raises(KeyError):
        rule_from({**rule.rule(), "name": "Mixing"})
    with pytest.raises(ValueError, match="other fields"):
        rule_from({**rule.rule(), "more": 1})


def test_views_are_counted_where_they_can_be() -> None:
    assert all_views(Augmentation()) == 162
    check_views(Augmentation(), 162)
    check_views(ResizedCrop(), 10**6)
    for rule, views in ((Augmentation(), 163), (Augmentation(), 0), (ResizedCrop(), 0)):
        with pytest.raises(UsageError, match=f"--views {views}"):
            check_views(rule, views)
    with pytest.raises(UsageError, match="no end"):
        all_views(ResizedCrop())


def test_arrays_of_the_right_shape_stay_what_they_are() -> None:
    data = dataset(np.zeros((3, 3, 20, 30), np.uint8))
    assert at_size(data, Augmentation(), (3, 20, 30), Silent()) is data
    assert isinstance(images_of(data.train, np.arange(3), Augmentation(), MEAN, STD, CPU), Resident)


def test_pictures_are_brought_to_one_size_in_memory(pictures: Pictures) -> None:
    found = at_size(dataset(pictures), Augmentation(), (3, 10, 14), Silent())
    assert isinstance(found.train.images, np.ndarray)
    assert found.train.images.shape == (30, 3, 10, 14)
    for row in (0, 17, 29):
        with Image.open(pictures.root / pictures.names[row]) as picture:
            wanted = np.asarray(picture.resize((14, 10), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(found.train.images[row], wanted)
    assert found.digest == dataset(pictures).digest
    assert found.prepared == {"decoder": decoder(), "filter": "bilinear", "resize": "squash"}
    streamed = at_size(dataset(pictures), RULE, (3, 12, 12), Silent())
    assert streamed.train.images is pictures or isinstance(streamed.train.images, Pictures)
    assert streamed.prepared["resize"] == "crop"


def test_more_than_the_memory_is_refused_before_it_is_asked_for(pictures: Pictures) -> None:
    with pytest.raises(UsageError, match=r"keeps all 60 images of made_up in memory.*--crop resized decodes"):
        at_size(dataset(pictures), Augmentation(), (3, 10**6, 10**6), Silent())


@pytest.mark.parametrize(("said", "fits"), [("7000\n", False), ("max\n", True), ("90000\n", True)])
def test_a_container_has_the_memory_that_it_was_given(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, fits: bool
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(said)
    monkeypatch.setattr(preparation, "LIMITS", (tmp_path / "none", limit))
    with nullcontext() if fits else pytest.raises(UsageError, match="and there are 0 GB"):
        at_size(dataset(pictures), Augmentation(), (3, 10, 14), Silent())


def test_half_of_an_image_is_the_most_that_is_padded() -> None:
    data = dataset(np.zeros((3, 3, 20, 30), np.uint8))
    assert rule_for(data, pad=10)[0] == Augmentation(pad=10)
    with pytest.raises(UsageError, match="--pad 11 is more than half"):
        rule_for(data, pad=11)


def test_a_picture_that_is_overwritten_is_noticed_though_its_size_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    Image.new("RGB", (8, 8), "red").save(path)
    held = Pictures(tmp_path, ["a.bmp"], np.array([[8, 8]]), np.zeros((1, 32), np.uint8), np.array([stamp(path)]))
    assert held[0].getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (8, 8), "blue").save(path)
    os.utime(path, ns=(0, stamp(path)[1] + 10**9))
    with pytest.raises(DamageError, match="has changed since it was examined"):
        held[0]
