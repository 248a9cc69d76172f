"""Top-1 accuracy and features of a network on un-augmented images."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdtool.data.images import Images
from kdtool.engine.device import autocast, exact
from kdtool.methods.vectors import pooled
from kdtool.models.taps import TapReader
from kdtool.targets import CLEAN


def clean_batches(images: Images, samples: int, batch: int) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
    """((start, stop), un-augmented images) of consecutive batches."""
    bounds = [(start, min(start + batch, samples)) for start in range(0, samples, batch)]
    yield from zip(bounds, images.views((np.arange(*bound), CLEAN) for bound in bounds), strict=True)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, labels: torch.Tensor, precision: str, batch: int = 500) -> float:
    """Share of images whose largest logit is the label's, in percent. The network's mode is put back."""
    training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=labels.device)
    for (start, stop), pixels in clean_batches(images, len(labels), batch):
        with autocast(labels.device, precision):
            logits = model(pixels)
        right += (logits.argmax(1) == labels[start:stop]).sum()
    model.train(training)
    return 100.0 * int(right) / len(labels)


@torch.no_grad()
def vectors(
    model: nn.Module, images: Images, samples: int, taps: Sequence[str], batch: int = 256
) -> dict[str, npt.NDArray[np.float32]]:
    """The vectors (n, d) of taps over `samples` un-augmented images, in float32; maps are averaged over space."""
    model.eval()
    found: dict[str, npt.NDArray[np.float32]] = {}
    with TapReader(model, taps) as reader:
        for (start, stop), pixels in clean_batches(images, samples, batch):
            with exact():
                _, outputs = reader(pixels)
            for tap, value in outputs.items():
                rows = pooled(value).cpu().numpy()
                room = found.setdefault(tap, np.empty((samples, rows.shape[1]), dtype=np.float32))
                room[start:stop] = rows
    return found
