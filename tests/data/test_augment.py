"""Augmentation: every placement against a loop over pixels; parameters depend on seed, view and image alone."""

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdtool import files, philox
from kdtool.data.augment import CHUNK, Augmentation, normalise
from kdtool.errors import UsageError
from kdtool.targets import CLEAN

Pixels = npt.NDArray[np.uint8]
seeds = st.integers(0, 2**64 - 1)


def random_images(*shape: int) -> Pixels:
    return np.random.default_rng(11).integers(0, 256, shape, dtype=np.uint8)


def placed(image: Pixels, pad: int, top: int, left: int, mirrored: int) -> Pixels:
    """One image (C, H, W) after zero-padding, cropping at (top, left) and mirroring, pixel by pixel."""
    _, height, width = image.shape
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y = y + top - pad
            source_x = (width - 1 - x if mirrored else x) + left - pad
            if 0 <= source_y < height and 0 <= source_x < width:
                result[:, y, x] = image[:, source_y, source_x]
    return result


def all_placements(augmentation: Augmentation) -> list[tuple[int, int, int]]:
    side = range(2 * augmentation.pad + 1)
    return [(top, left, mirrored) for top in side for left in side for mirrored in range(1 + augmentation.flip)]


@pytest.mark.parametrize(("pad", "flip", "shape"), [(4, True, (3, 6, 5)), (4, False, (1, 3, 8)), (0, True, (2, 4, 4))])
def test_every_placement_gives_the_pixels_of_the_loop(pad: int, flip: bool, shape: tuple[int, ...]) -> None:
    augmentation = Augmentation(pad=pad, flip=flip)
    parameters = all_placements(augmentation)
    images = random_images(len(parameters), *shape)
    untouched = images.copy()
    found = augmentation.apply(torch.from_numpy(images), np.array(parameters))
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    for image, row, result in zip(images, parameters, found.numpy(), strict=True):
        assert np.array_equal(placed(image, pad, *row), result)
    assert np.array_equal(images, untouched)


def test_the_clean_view_is_the_image_itself() -> None:
    images = torch.from_numpy(random_images(5, 3, 8, 8))
    for augmentation in (Augmentation(), Augmentation(pad=2, flip=False), Augmentation(pad=0)):
        parameters = augmentation.parameters([3, 1, 4, 1, 5], CLEAN)
        assert parameters.tolist() == [[augmentation.pad, augmentation.pad, 0]] * 5
        assert torch.equal(augmentation.apply(images, parameters), images)


@pytest.mark.parametrize(
    ("pad", "flip", "placements"), [(4, True, 162), (4, False, 81), (0, False, 1), (0, True, 2), (8, True, 578)]
)
def test_the_views_of_an_image_are_all_placements_each_once(pad: int, flip: bool, placements: int) -> None:
    augmentation = Augmentation(pad=pad, flip=flip, seed=3)
    assert augmentation.placements == placements
    rows = np.stack([augmentation.parameters([0, 77, 49_999], view) for view in range(placements)], axis=1)
    for image in rows.tolist():
        assert sorted(map(tuple, image)) == sorted(all_placements(augmentation))


def test_the_162_views_of_an_image_are_162_different_images() -> None:
    augmentation = Augmentation()
    image = torch.from_numpy(random_images(1, 3, 32, 32))
    views = {augmentation.apply(image, augmentation.parameters([5], view)).numpy().tobytes() for view in range(162)}
    assert len(views) == 162


@given(
    seed=seeds,
    view=st.integers(0, 49),
    images=st.lists(st.integers(0, 2**31), min_size=1, max_size=12, unique=True),
    data=st.data(),
)
def test_parameters_do_not_depend_on_batch_order_or_subset(
    seed: int, view: int, images: list[int], data: st.DataObject
) -> None:
    augmentation = Augmentation(pad=2, seed=seed)
    whole = augmentation.parameters(images, view)
    order = data.draw(st.permutations(range(len(images))))
    subset = order[: data.draw(st.integers(1, len(images)))]
    assert np.array_equal(augmentation.parameters(np.array(images)[subset], view), whole[subset])
    alone = [augmentation.parameters([image], view)[0].tolist() for image in images]
    assert alone == whole.tolist()


def test_the_chunks_of_the_table_do_not_show() -> None:
    augmentation = Augmentation(pad=1, seed=8)
    images = np.random.default_rng(0).permutation(2 * CHUNK + 3)
    assert np.array_equal(
        augmentation.table(images), philox.permutations(8, philox.AUGMENT, 0, images, augmentation.placements)
    )
    assert augmentation.table([]).shape == (0, 18)


def test_placements_are_evenly_used_in_a_view_and_unlike_those_of_another_view_or_seed() -> None:
    images = np.arange(16_200)
    first = Augmentation().table(images)
    counts = np.bincount(first[:, 0], minlength=162)
    assert np.sum((counts - 100.0) ** 2 / 100) < 221  # chi-square, 161 degrees of freedom, one in a thousand
    other = Augmentation(seed=1).table(images)
    for column in (other[:, 0], np.roll(first[:, 0], 1)):
        assert abs(np.mean(first[:, 0] == column) - 1 / 162) < 0.003
    assert not np.any(first[:, 0] == first[:, 1])


def test_the_parameters_never_change() -> None:
    augmentation = Augmentation(seed=2026)
    assert augmentation.parameters([0, 1, 49_999], 0).tolist() == [[4, 2, 0], [7, 7, 0], [4, 8, 1]]
    parameters = np.stack([augmentation.parameters(np.arange(1000), view) for view in (0, 1, 161)])
    assert (
        files.sha256(parameters.astype("<i8").tobytes())
        == "f79aa03269cc46085dec1a4c392978d71d43bf14df2f0bcba17ab04912844bf7"
    )


@pytest.mark.parametrize("view", [-2, 162, 10**6])
def test_a_view_that_does_not_exist_is_refused(view: int) -> None:
    with pytest.raises(UsageError, match=rf"no view {view}: padding 4 with mirroring has 162 placements"):
        Augmentation().parameters([0], view)
    with pytest.raises(UsageError, match="without mirroring has 81 placements, so views are 0 to 80"):
        Augmentation(flip=False).parameters([0], 81)


def test_negative_padding_is_refused() -> None:
    with pytest.raises(UsageError, match="padding is -1"):
        Augmentation(pad=-1)


def test_the_rule_is_plain_and_tells_every_field() -> None:
    rule = Augmentation().rule()
    assert rule == {"name": "Augmentation", "pad": 4, "flip": True, "seed": 0, "scheme": "philox4x32-10/1"}
    assert json.loads(files.canonical(rule)) == rule
    others = [Augmentation(pad=3), Augmentation(flip=False), Augmentation(seed=1), Augmentation()]
    assert len({files.canonical(other.rule()) for other in others}) == 4


MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def test_normalised_pixels_are_rounded_three_times_in_this_order() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    found = normalise(torch.from_numpy(pixels), MEAN, STD).numpy()
    assert found.dtype == np.float32
    for channel in range(3):
        for value in range(256):
            exact = (value / 255 - MEAN[channel]) / STD[channel]
            rounded = (np.float32(value) / np.float32(255) - np.float32(MEAN[channel])) / np.float32(STD[channel])
            assert found[0, channel, value // 16, value % 16] == rounded
            assert math.isclose(rounded, exact, abs_tol=5e-7, rel_tol=5e-7)


def test_padding_is_black_before_it_is_normalised() -> None:
    augmentation = Augmentation()
    images = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    found = normalise(augmentation.apply(images, np.array([[0, 0, 0]])), MEAN, STD)
    for channel in range(3):
        assert float(found[0, channel, 0, 0]) == pytest.approx(-MEAN[channel] / STD[channel], rel=1e-6)
        assert float(found[0, channel, 7, 7]) == pytest.approx((1 - MEAN[channel]) / STD[channel], rel=1e-6)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_pixels_and_the_same_normalised_values() -> None:
    augmentation = Augmentation()
    parameters = np.array(all_placements(augmentation))
    images = torch.from_numpy(random_images(len(parameters), 3, 32, 32))
    pixels = augmentation.apply(images, parameters)
    on_gpu = augmentation.apply(images.cuda(), parameters)
    assert torch.equal(on_gpu.cpu(), pixels)
    assert torch.equal(normalise(on_gpu, MEAN, STD).cpu(), normalise(pixels, MEAN, STD))
