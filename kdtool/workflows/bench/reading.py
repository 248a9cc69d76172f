"""The path of the data alone: views of images a second, and rows of a cache beside a memory map and memory.

Left out: what a network does with them, save for the smallest student in the full form.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from kdtool.cache import ArraySpec, Contents, Layout, create_or_open, open_cache, verify
from kdtool.data import Part, load
from kdtool.data.augment import Augmentation
from kdtool.data.dataset import IMAGENET, Rows
from kdtool.data.images import Rule, images_of
from kdtool.data.resized_crop import ResizedCrop
from kdtool.models import create
from kdtool.workflows.bench import made_up
from kdtool.workflows.bench.measured import Figure, Setting, Times, Work, alternating, medians, ratio

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 128
IMAGES = 10_000, 50_000  # in the short form and in the full one
ROUNDS = 5, 9
PICTURES = 256, 768
ROWS = 20_000, 50_000
WIDTH, GATHERED, SLICE = 512, 256, 4096  # float16 values of a row, rows of a gather, rows of a slice
CPU = torch.device("cpu")

Pass = Callable[[], Iterable[torch.Tensor]]


def figures(setting: Setting) -> Iterator[Figure]:
    """Images and rows a second, and times over those of what a user would take instead."""
    yield from views(setting)
    if setting.full:
        yield from beside_torchvision(setting)
        yield from student_share(setting)
    yield from cached(setting)


def views(setting: Setting) -> Iterator[Figure]:
    """Images of 32x32 a second, view after view, on the device."""
    part = made_up.dataset(setting.pick(*IMAGES), 10, 1).train
    times = alternating({"views": over(ours(part, Augmentation(), setting.device))}, setting.pick(*ROUNDS), CPU)
    details = {"images": len(part.labels), "batch": BATCH, "device": str(setting.device)}
    yield Figure("reading", "views of 32x32", full_batches(part) / medians(times)["views"], "images/s", details=details)


def ours(part: Part, rule: Rule, device: torch.device) -> Pass:
    """A pass over all images in a random order, another view every time."""
    images = images_of(part, np.arange(len(part.labels)), rule, *IMAGENET, device)
    numbers = count()

    def batches() -> Iterable[torch.Tensor]:
        view = next(numbers) % (rule.placements or 1000)
        return images.views((order, view) for order in orders(part, view))

    return batches


def orders(part: Part, seed: int) -> Iterator[Rows]:
    """The positions of every full batch of a random order."""
    order = np.random.default_rng(seed).permutation(len(part.labels))
    return (order[start : start + BATCH] for start in range(0, full_batches(part), BATCH))


def full_batches(part: Part) -> int:
    """Images that a pass gives: a rest that fills no batch is left out."""
    return len(part.labels) // BATCH * BATCH


def over(batches: Pass, device: torch.device = CPU) -> Work:
    """Asks for every batch of a pass, keeps none, and waits for the last one."""

    def work() -> None:
        last = torch.empty(0)
        for batch in batches():
            last = batch.to(device)
        last.sum().item()

    return work


def beside_torchvision(setting: Setting) -> Iterator[Figure]:
    """Both kinds of images beside torchvision's folder reader with v2 transforms and a worker for each core."""
    from torchvision.transforms import v2

    small, large = write_sets(setting.folder, setting.pick(*PICTURES))
    flip = v2.RandomHorizontalFlip()
    cropped, boxes = [v2.RandomCrop(32, 4), flip], [v2.RandomResizedCrop(224, antialias=True), flip]
    for what, folder, rule, transforms in (
        ("views of 32x32", small, Augmentation(), cropped),
        ("boxes of 224", large, ResizedCrop(size=224), boxes),
    ):
        part = pictures(folder)
        if isinstance(rule, Augmentation):
            part = made_up.dataset(len(part.labels), 2, 1).train  # pixels in memory, as those of every such data set
        work = {
            "kdtool": over(ours(part, rule, setting.device)),
            "torchvision": over(torchvisions(folder, transforms), setting.device),
        }
        times = alternating(work, setting.pick(*ROUNDS), CPU)
        details = {name: full_batches(part) / taken for name, taken in medians(times).items()}
        yield Figure(
            "reading", f"{what}: speed over torchvision's", ratio(times, "torchvision", "kdtool"), details=details
        )


def pictures(folder: Path) -> Part:
    """The train part of pictures in folders, as `kdtool.data.load` gives it; what is noted of them stays there."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "notes")
    try:
        return load("folder", folder).train
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def torchvisions(folder: Path, transforms: list[Any]) -> Pass:
    """A pass of torchvision's reader, its worker processes kept from pass to pass."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    scaled = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET)]
    whole = v2.Compose([v2.PILToTensor(), *transforms, *scaled])
    loader: DataLoader[Any] = DataLoader(
        ImageFolder(folder / "train", whole),
        BATCH,
        shuffle=True,
        num_workers=cores(),
        persistent_workers=cores() > 0,
        drop_last=True,
    )
    return lambda: (images for images, _ in loader)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def write_sets(folder: Path, large: int) -> tuple[Path, Path]:
    """A folder of PNG files of 32x32 and one of so many JPEG files of 500x375, in two classes."""
    draw = np.random.default_rng(0)
    places = folder / "small", folder / "large"
    sizes = (4 * large, (32, 32), "png"), (large, (375, 500), "jpg")
    for root, (number, size, ending) in zip(places, sizes, strict=True):
        for part, images in (("train", number), ("test", 2)):
            for name in "ab":
                (root / part / name).mkdir(parents=True)
            for image in range(images):
                photograph(draw, *size).save(root / part / "ab"[image % 2] / f"{image:05}.{ending}", quality=90)
    return places


def photograph(draw: np.random.Generator, height: int, width: int) -> Image:
    """Soft shapes with some grain, so that a JPEG of it costs about as much as one of a photograph."""
    from PIL import Image

    coarse = Image.fromarray(draw.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    return Image.fromarray(np.clip(smooth + draw.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8))


def student_share(setting: Setting) -> Iterator[Figure]:
    """Training steps of resnet8, the smallest student, with views over those on one batch that is there already."""
    part = made_up.dataset(32 * BATCH, 10, 1).train
    model = create("resnet8", 10).to(setting.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    labels = torch.arange(BATCH, device=setting.device) % 10
    batches = ours(part, Augmentation(), setting.device)
    there = next(iter(batches()))

    def steps(images: Iterable[torch.Tensor]) -> None:
        for batch in images:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    work: dict[str, Work] = {"views": lambda: steps(batches()), "there": lambda: steps(there for _ in range(32))}
    times = alternating(work, setting.pick(*ROUNDS), setting.device)
    yield Figure("reading", "resnet8's steps: with views over without", ratio(times, "views", "there"))


def cached(setting: Setting) -> Iterator[Figure]:
    """Rows of a cache, every chunk of which was checked and is warm: at random, and in slices in order."""
    size = setting.pick(*ROWS)
    rows = np.random.default_rng(0).standard_normal((size, WIDTH), dtype=np.float32).astype(np.float16)
    path = write_cache(setting.folder / "cache.zarr", rows)
    rows.tofile(setting.folder / "plain")
    mapped = np.memmap(setting.folder / "plain", np.float16, "r", shape=rows.shape)
    array = open_cache(path).array("train", "before_fc", "values")
    assert np.array_equal(array.read(0), rows)  # every chunk is checked once, and warm
    draw = np.random.default_rng(1)
    batches = [draw.integers(0, size, GATHERED) for _ in range(100)]
    slices = [slice(start, min(start + SLICE, size)) for start in range(0, size, SLICE)]
    gathers: dict[str, Work] = {
        "cache": lambda: each(lambda batch: array.rows(0, batch), batches),
        "np.memmap": lambda: each(lambda batch: mapped[batch], batches),
        "memory": lambda: each(lambda batch: rows[batch], batches),
    }
    in_order: dict[str, Work] = {
        "cache": lambda: each(lambda part: array.read(0, part.start, part.stop), slices),
        "np.memmap": lambda: each(lambda part: np.array(mapped[part]), slices),
        "memory": lambda: each(lambda part: rows[part].copy(), slices),
    }
    rounds = setting.pick(*ROUNDS)
    yield from compared("gather", alternating(gathers, rounds, CPU), len(batches) * GATHERED)
    yield from compared("slices", alternating(in_order, rounds, CPU), size)
    if setting.full:
        yield beside_zarr(path, gathers["cache"], batches, rounds)


def compared(what: str, times: Times, size: int) -> Iterator[Figure]:
    """Rows of the cache a second, and its time over that of a memory map and of memory."""
    speeds = {name: size / taken for name, taken in medians(times).items()}
    yield Figure("reading", f"{what} from the cache", speeds["cache"], "rows/s", details={"rows/s": speeds})
    for name in ("np.memmap", "memory"):
        yield Figure("reading", f"{what}: time over {name}'s", ratio(times, "cache", name))


def beside_zarr(path: Path, gather: Work, batches: list[npt.NDArray[Any]], rounds: int) -> Figure:
    """How many times faster a gather is than plain zarr-python's, of which few are enough."""
    import zarr

    other: Any = zarr.open_array(path / "train/before_fc/values", mode="r")
    few = batches[:5]
    times = alternating({"cache": gather, "zarr": lambda: each(lambda batch: other.oindex[0, batch], few)}, rounds, CPU)
    return Figure(
        "reading", "gather: speed over zarr-python's", ratio(times, "zarr", "cache") * len(batches) / len(few)
    )


def write_cache(path: Path, rows: npt.NDArray[np.float16]) -> Path:
    """A cache of one view of one key, verified."""
    layout = Layout({"train": len(rows)}, 10, batch=256, fit_views=1)
    contents = Contents(1, ("before_fc",), {"name": "Whole"}, None, {"values": ArraySpec("float16", rows.shape[1:])})
    with create_or_open(path, {}, layout) as writer:
        writer.declare("before_fc", contents)
        size = layout.block_rows("train")
        for block in range(layout.blocks("train")):
            writer.commit("train", 0, block, {"before_fc": {"values": rows[block * size : (block + 1) * size]}})
    assert verify(path) == []
    return path


def each(read: Callable[[Any], object], places: Iterable[Any]) -> None:
    """Reads one place after the other, and keeps nothing, as a training does."""
    for place in places:
        read(place)
