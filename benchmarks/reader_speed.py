"""How many images a second the reader gives, beside torchvision's folder reader with v2 transforms in the same run.

Images of 32x32 from memory (padded, cropped, mirrored) and JPEG files (random boxes, resized to 224, mirrored), both
normalised to float32 batches on the CPU; and what the reader costs a small student that trains on a CPU. Readers are
measured in turn, each once a round; the figures are medians. Left out: GPUs.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import kdtool
from kdtool.data import Part, load
from kdtool.data.augment import Augmentation
from kdtool.data.images import images_of
from kdtool.data.pictures import decoder
from kdtool.data.resized_crop import ResizedCrop
from kdtool.models import create

RESULTS = Path(__file__).parent / "results" / "reader_speed.json"
BATCH, ROUNDS = 128, 7
SMALL, LARGE = 4096, 768  # images of the two sets
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def photograph(draw: np.random.Generator, height: int, width: int) -> Image.Image:
    """Soft shapes with some grain, so that a JPEG of it costs about as much as one of a photograph."""
    coarse = Image.fromarray(draw.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    return Image.fromarray(np.clip(smooth + draw.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8))


def write_sets(folder: Path) -> tuple[Path, Path]:
    """A folder of PNG files of 32x32 and one of JPEG files of 500x375, in two classes."""
    draw = np.random.default_rng(0)
    small, large = folder / "small", folder / "large"
    for root, count, size, ending in ((small, SMALL, (32, 32), "png"), (large, LARGE, (375, 500), "jpg")):
        for number in range(count):
            place = root / "train" / "ab"[number % 2] / f"{number:05}.{ending}"
            place.parent.mkdir(parents=True, exist_ok=True)
            photograph(draw, *size).save(place, quality=90)
        for name in "ab":
            (root / "test" / name).mkdir(parents=True)
            photograph(draw, *size).save(root / "test" / name / f"0.{ending}")
    return small, large


def torchvisions(folder: Path, transforms: list[v2.Transform], workers: int) -> Callable[[], Iterable[torch.Tensor]]:
    """A pass of torchvision's reader, its worker processes kept from pass to pass."""
    whole = v2.Compose([v2.PILToTensor(), *transforms, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]] = DataLoader(
        ImageFolder(folder / "train", whole),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    return lambda: (images for images, _ in loader)


def ours(part: Part, rule: Augmentation | ResizedCrop) -> Callable[[], Iterable[torch.Tensor]]:
    """A pass of kdtool's reader, another view every time."""
    count = len(part.labels)
    images = images_of(part, np.arange(count), rule, MEAN, STD, CPU)
    views = iter(range(1000))

    def once() -> Iterable[torch.Tensor]:
        view, order = next(views), np.random.default_rng(1).permutation(count)
        return images.views((order[start : start + BATCH], view) for start in range(0, count - BATCH + 1, BATCH))

    return once


def rates(readers: dict[str, Callable[[], Iterable[torch.Tensor]]]) -> dict[str, float]:
    """Images a second of each reader: a pass to warm up, then medians of passes in turn."""
    seen: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(ROUNDS + 1):
        for name, read in readers.items():
            begun = time.perf_counter()
            images = sum(len(batch) for batch in read())
            if turn:
                seen[name].append(images / (time.perf_counter() - begun))
    return {name: round(statistics.median(values)) for name, values in seen.items()}


def student_share(part: Part) -> float:
    """The time of training steps of resnet8 with the reader, over that of steps on one batch that is there already."""
    model = create("resnet8", 10).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = images_of(part, np.arange(len(part.labels)), Augmentation(), MEAN, STD, CPU)
    labels = torch.arange(BATCH) % 10

    def steps(batches: Iterable[torch.Tensor]) -> float:
        begun = time.perf_counter()
        for batch in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch), labels).backward()
            optimizer.step()
        return time.perf_counter() - begun

    order, found = np.random.default_rng(2).permutation(len(part.labels)), []
    there = images.view(order[:BATCH], 0)
    for view in range(ROUNDS + 1):
        requests = [(order[start : start + BATCH], view) for start in range(0, len(order) - BATCH + 1, BATCH)]
        with_reader, without = steps(images.views(requests)), steps(there for _ in requests)
        found.append(with_reader / without)
    return round(statistics.median(found[1:]), 3)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=Path, help="a folder train/CLASS/*.jpg to read in place of made-up files")
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        small, large = write_sets(Path(folder))
        large = asked.pictures or large
        files, pixels = load("folder", large), load("folder", small)
        from kdtool.data.preparation import at_size
        from kdtool.progress import Silent

        pixels = at_size(pixels, Augmentation(), (3, 32, 32), Silent())
        flip = v2.RandomHorizontalFlip()
        torch.set_num_threads(cores)
        found = {
            "32x32": rates(
                {
                    "kdtool": ours(pixels.train, Augmentation()),
                    "torchvision": torchvisions(small, [v2.RandomCrop(32, 4), flip], cores),
                }
            ),
            "JPEG at 224": rates(
                {
                    "kdtool": ours(files.train, ResizedCrop(size=224)),
                    "torchvision": torchvisions(large, [v2.RandomResizedCrop(224, antialias=True), flip], cores),
                }
            ),
        }
        share = student_share(pixels.train)
    result = {
        "machine": {"cpu": processor(), "cores": cores},
        "versions": {
            "kdtool": kdtool.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            **decoder(),
        },
        "images_per_second": found,
        "over_torchvision": {name: round(r["kdtool"] / r["torchvision"], 2) for name, r in found.items()},
        "resnet8_step_with_reader_over_without": share,
        "pictures": str(asked.pictures.name) if asked.pictures else "made up, 500x375",
    }
    text = json.dumps(result, indent=1)
    RESULTS.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
