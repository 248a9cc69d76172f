"""Top-1 accuracy and features of a network on un-augmented images."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdtool.data.images import Images
from kdtool.engine.device import autocast, exact, placed
from kdtool.engine.ranks import Alone, Ranks
from kdtool.methods.vectors import pooled
from kdtool.models.taps import TapReader
from kdtool.progress import Progress, Silent
from kdtool.targets import CLEAN

BATCH = 256  # images that are asked for their features at a time; a last batch may be smaller


def clean_batches(
    images: Images, stop: int, batch: int, start: int = 0, which: slice = slice(None)
) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
    """((first, end), un-augmented images) of consecutive batches of the images start..stop-1, or `which` of them."""
    bounds = [(first, min(first + batch, stop)) for first in range(start, stop, batch)][which]
    yield from zip(bounds, images.views((np.arange(*bound), CLEAN) for bound in bounds), strict=True)


@torch.no_grad()
def accuracy(
    model: nn.Module,
    images: Images,
    labels: torch.Tensor,
    precision: str,
    batch: int = 500,
    ranks: Ranks = Alone(),  # noqa: B008 - it has no state
    progress: Progress = Silent(),  # noqa: B008 - it has no state
) -> float:
    """Share of images whose largest logit is the label's, in percent. The network's mode is put back.

    Several ranks with the same network take the batches in turns; the answer is that of one.
    """
    training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=labels.device)
    progress.begin("evaluate", len(labels))
    for (start, stop), pixels in clean_batches(images, len(labels), batch, which=slice(ranks.rank, None, ranks.size)):
        with autocast(labels.device, precision):
            logits = model(pixels)
        right += (logits.argmax(1) == labels[start:stop]).sum()
        progress.advance(min((stop - start) * ranks.size, len(labels) - start))
    model.train(training)
    return 100.0 * int(ranks.summed(np.array([float(right)]))[0]) / len(labels)


@torch.no_grad()
def vectors(
    model: nn.Module, images: Images, taps: Sequence[str], start: int, stop: int, batch: int = BATCH
) -> Iterator[tuple[int, dict[str, npt.NDArray[np.float32]]]]:
    """(first, tap -> (rows, d)) of the un-augmented images start..stop-1, in float32; maps are averaged over space."""
    placed(model, images.device, "float32").eval()
    with TapReader(model, taps) as reader:
        for (first, _), pixels in clean_batches(images, stop, batch, start):
            with exact():
                _, outputs = reader(pixels)
            yield first, {tap: pooled(value).cpu().numpy() for tap, value in outputs.items()}
