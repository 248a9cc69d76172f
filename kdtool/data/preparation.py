"""How a network sees a data set: the size of its images and the augmentation.

Either all images are brought to one size and held in memory, and views are crops of the padded image (`Augmentation`);
or a view is a box of the picture, resized (`ResizedCrop`), and pictures are decoded as they are needed.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdtool.data.augment import Augmentation
from kdtool.data.dataset import Dataset, Part, Pixels
from kdtool.data.pictures import Pictures, decoder, picture
from kdtool.data.resized_crop import ResizedCrop, pixels
from kdtool.data.workers import in_order, workers
from kdtool.errors import UsageError, unknown
from kdtool.progress import Progress
from kdtool.targets import rebuild

if TYPE_CHECKING:
    from PIL.Image import Image

    from kdtool.data.images import Rule

CROPS = ("pad", "resized")
PAD = 4  # pixels around an image that is cropped, where nobody says how many
SIZE = 224  # of large pictures, where nobody names one
TOGETHER = 16  # pictures that a thread brings to size at a time
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container

Shape = tuple[int, int, int]


def rule_for(
    data: Dataset,
    size: int | None = None,
    crop: str | None = None,
    pad: int = PAD,
    flip: bool | None = None,
    seed: int = 0,
) -> tuple[Rule, Shape]:
    """(augmentation, (C, H, W) of the images that a network sees).

    Without `crop`, a data set whose images share a shape keeps it (or takes size x size) and is padded and cropped; one
    of pictures of many sizes gets random boxes, resized to `size` or 224. flip: whether views may be mirrored, None
    for what the data set says. UsageError where they do not go together.
    """
    native = data.image_shape
    chosen = crop or ("resized" if native is None else "pad")
    if chosen not in CROPS:
        raise unknown("crop", chosen, CROPS)
    if size is not None and size < 1:
        raise UsageError(f"--image-size is at least 1, not {size}")
    flip = data.flip if flip is None else flip
    if chosen == "resized":
        if pad != PAD:
            raise UsageError(f"--pad {pad} belongs to --crop pad; --crop resized, as of {data.name} here, has none")
        width = size or (native[2] if native else SIZE)
        return ResizedCrop(size=width, flip=flip, seed=seed), (3, width, width)
    shape = (3, size, size) if size else native
    if shape is None:
        raise UsageError(
            f"--crop pad holds all images of {data.name} in one size, and theirs differ; name it, as in --image-size 32"
        )
    if pad > min(shape[1:]) // 2:
        raise UsageError(f"--pad {pad} is more than half of the images' {min(shape[1:])} pixels")
    return Augmentation(pad=pad, flip=flip, seed=seed), shape


def rule_from(record: Mapping[str, Any], seed: int | None = None) -> Rule:
    """The augmentation of a record that `rule()` gave, under another seed where one is given.

    KeyError, ValueError or TypeError for records of something else.
    """
    fields = {name: value for name, value in record.items() if name != "scheme"}
    found: Rule = rebuild(fields, {"Augmentation": Augmentation, "ResizedCrop": ResizedCrop})
    return found if seed is None else replace(found, seed=seed)


def all_views(rule: Rule) -> int:
    """As many views as there are; UsageError where there is no end of them."""
    if rule.placements is None:
        raise UsageError("--views all: there is no end of random boxes of a picture; ask for a number of views")
    return rule.placements


def check_views(rule: Rule, views: int) -> None:
    """Refuses more views than there are different ones, and less than one."""
    most = rule.placements
    if views < 1 or (most is not None and views > most):
        raise UsageError(
            f"--views {views}: this augmentation has {most or 'any number of'} different placements of a sample; "
            f"ask for {f'1 to {most}, or all' if most else '1 or more'}"
        )


def at_size(data: Dataset, rule: Rule, shape: Shape, progress: Progress) -> Dataset:
    """The data set as `images_of` takes it under this augmentation: in memory at `shape` (C, H, W), or as it is."""
    pictures = isinstance(data.train.images, Pictures)
    if not isinstance(rule, ResizedCrop) and data.image_shape == shape and not pictures:
        return data
    prepared = {"decoder": decoder(), "filter": "bilinear"}
    if isinstance(rule, ResizedCrop):
        return replace(data, prepared={**prepared, "resize": "crop"})
    _check_room(data, shape)
    progress.begin(f"reading pictures at {shape[2]} pixels", len(data.train.labels) + len(data.test.labels))
    train, test = (_squashed(part, rule, shape, progress) for part in (data.train, data.test))
    return replace(data, train=train, test=test, prepared={**prepared, "resize": "squash"})


def _check_room(data: Dataset, shape: Shape) -> None:
    images = len(data.train.labels) + len(data.test.labels)
    need, room = images * math.prod(shape), memory()
    if need > room // 2:
        raise UsageError(
            f"--crop pad keeps all {images:,} images of {data.name} in memory, {need / 1e9:.0f} GB at {shape[2]} "
            f"pixels, and there are {room / 1e9:.0f} GB; --crop resized decodes them as they are needed"
        )


def memory() -> int:
    """The bytes of memory that this process may fill: of the machine, or of the container that it runs in."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            found.append(int(limit.read_text()))
    return min(found)


def unaugmented(picture: Image, rule: Rule, shape: Shape) -> Pixels:
    """An RGB picture of any size as (C, H, W) of uint8, the way the test part is seen (bilinear, with antialiasing)."""
    from PIL import Image

    if isinstance(rule, ResizedCrop):
        return rule.apply(picture, np.zeros(5, np.int64))
    return pixels(picture.resize((shape[2], shape[1]), Image.Resampling.BILINEAR))


def _squashed(part: Part, rule: Rule, shape: Shape, progress: Progress) -> Part:
    """Every image resized to one shape (C, H, W), whatever its own was."""
    count, threads = len(part.labels), workers()
    found: Pixels = np.empty((count, *shape), np.uint8)

    def fill(start: int) -> int:
        stop = min(start + TOGETHER, count)
        for row in range(start, stop):
            found[row] = unaugmented(picture(part.images, row), rule, shape)
        return stop - start

    for done in in_order(fill, range(0, count, TOGETHER), threads, ahead=4 * threads):
        progress.advance(done)
    return Part(found, part.labels)
