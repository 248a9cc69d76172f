"""Boxes against the drawing written out in a loop, pixels against torchvision's own functions."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdtool import philox
from kdtool.data.resized_crop import ATTEMPTS, ResizedCrop
from kdtool.errors import UsageError
from kdtool.targets import CLEAN, describe, rebuild

rows = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)
sides = st.integers(1, 600)
rules = st.builds(
    ResizedCrop,
    size=st.integers(1, 64),
    scale=st.sampled_from([(0.08, 1.0), (0.25, 1.0), (1.0, 1.0), (0.5, 0.6)]),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (2.0, 3.0)]),
    flip=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


def naive(rule: ResizedCrop, row: int, view: int, height: int, width: int) -> list[int]:
    """torchvision's get_params, with the numbers of the counter-based generator."""
    words = [int(word) for word in philox.words(rule.seed, philox.AUGMENT, view, [row], 2 * ATTEMPTS + 3)[0]]
    mirrored = int(rule.flip and words[-1] >= 2**31)
    for attempt in range(ATTEMPTS):
        share, form = ((word + 0.5) / 2**32 for word in words[2 * attempt : 2 * attempt + 2])
        area = height * width * (rule.scale[0] + share * (rule.scale[1] - rule.scale[0]))
        low, high = math.log(rule.ratio[0]), math.log(rule.ratio[1])
        ratio = math.exp(low + form * (high - low))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (words[2 * ATTEMPTS] * (height - h + 1)) >> 32, (words[-2] * (width - w + 1)) >> 32
            return [top, left, h, w, mirrored]
    h, w = height, width
    if width / height < rule.ratio[0]:
        h = round(width / rule.ratio[0])
    elif width / height > rule.ratio[1]:
        w = round(height * rule.ratio[1])
    return [(height - h) // 2, (width - w) // 2, h, w, mirrored]


@given(rule=rules, items=rows, view=st.integers(0, 1000), height=sides, width=sides)
def test_boxes_are_drawn_as_torchvision_draws_them(
    rule: ResizedCrop, items: Sequence[int], view: int, height: int, width: int
) -> None:
    sizes = np.tile([height, width], (len(items), 1))
    found = rule.parameters(items, view, sizes)
    assert found.tolist() == [naive(rule, row, view, height, width) for row in items]
    top, left, high, wide, mirrored = found.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + high <= height).all()
    assert (left + wide <= width).all()
    assert set(mirrored.tolist()) <= ({0, 1} if rule.flip else {0})


def test_boxes_do_not_depend_on_who_asks_for_them_together() -> None:
    rule = ResizedCrop(seed=7)
    sizes = np.random.default_rng(0).integers(20, 500, (50, 2))
    together = rule.parameters(np.arange(50), 3, sizes)
    for row in (0, 17, 49):
        assert rule.parameters([row], 3, sizes[row : row + 1]).tolist() == [together[row].tolist()]
    assert not np.array_equal(rule.parameters(np.arange(50), 4, sizes), together)
    assert not np.array_equal(ResizedCrop(seed=8).parameters(np.arange(50), 3, sizes), together)


def test_shares_ratios_and_places_cover_their_ranges() -> None:
    rule = ResizedCrop()
    boxes = rule.parameters(np.arange(20_000), 0, np.full((20_000, 2), 1000)).astype(float)
    share = boxes[:, 2] * boxes[:, 3] / 1e6
    assert share.min() == pytest.approx(0.08, abs=0.01)
    assert np.quantile(share, 0.5) == pytest.approx(0.5, abs=0.05)  # not all large boxes of an odd ratio lie inside
    ratio = np.log(boxes[:, 3] / boxes[:, 2])
    assert ratio.min() == pytest.approx(math.log(3 / 4), abs=0.01)
    assert ratio.max() == pytest.approx(math.log(4 / 3), abs=0.01)
    assert ratio.mean() == pytest.approx(0, abs=0.01)
    assert boxes[:, 4].mean() == pytest.approx(0.5, abs=0.02)
    free = boxes[:, :2] / np.maximum(1, 1000 - boxes[:, 2:4])
    assert np.abs(free.mean(0) - 0.5).max() < 0.02


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise over a gradient, so that neither filter nor place can be wrong unseen."""
    noise = np.random.default_rng(seed).integers(0, 64, (height, width, 3))
    slope = np.linspace(0, 191, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    return Image.fromarray((noise + slope).astype(np.uint8))


@pytest.mark.parametrize(("height", "width"), [(50, 71), (224, 160), (9, 300), (31, 31)])
@pytest.mark.parametrize("size", [32, 24])
def test_pixels_are_torchvisions(height: int, width: int, size: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    rule, whole = ResizedCrop(size=size, seed=3), picture(height, width)
    for view in range(12):
        box = rule.parameters([5], view, np.array([[height, width]]))[0]
        top, left, high, wide, mirrored = box.tolist()
        wanted = functional.resized_crop(whole, top, left, high, wide, [size, size])
        wanted = functional.hflip(wanted) if mirrored else wanted
        found = rule.apply(whole, box)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        assert np.array_equal(found, np.asarray(wanted).transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(50, 71), (71, 50), (300, 299), (33, 33), (1, 5)])
@pytest.mark.parametrize("size", [224, 64, 7])
def test_without_a_box_pixels_are_those_of_resize_and_central_crop(height: int, width: int, size: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    rule, whole = ResizedCrop(size=size), picture(height, width)
    box = rule.parameters([5], CLEAN, np.array([[height, width]]))[0]
    wanted = functional.center_crop(functional.resize(whole, round(size * 8 / 7)), [size, size])
    assert np.array_equal(rule.apply(whole, box), np.asarray(wanted).transpose(2, 0, 1))


def test_a_rule_is_made_again_from_its_record() -> None:
    rule = ResizedCrop(size=96, scale=(0.3, 0.9), seed=11)
    record = rule.rule()
    assert record.pop("scheme") == philox.SCHEME
    assert record == describe(rule)
    assert rebuild(record, {"ResizedCrop": ResizedCrop}) == rule


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"scale": (0.0, 1.0)}, {"scale": (0.5, 0.4)}, {"scale": (0.5, 1.1)}, {"ratio": (-1.0, 1.0)}]
)
def test_impossible_rules_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ResizedCrop(**wrong)  # type: ignore[arg-type]


def test_a_view_before_the_first_is_refused() -> None:
    with pytest.raises(UsageError, match="no view -2"):
        ResizedCrop().check(-2)
