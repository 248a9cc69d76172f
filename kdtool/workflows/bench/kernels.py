"""The kernel transfer loss over all images: d x d moments beside the kernels' entries, and how they grow with n and d.

Everything runs on the processor. Left out: features in a cache of the size of ImageNet
(benchmarks/gram_gap_large.py), and other kernels than the linear one, which have no moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdtool.analysis.gram import gram_gap
from kdtool.workflows.bench.measured import Figure, Setting, Work, alternating, medians, ratio

SHORT = 4_000, 256, 9  # images, width of their features, rounds
FULL = 20_000, 512, 5
TWICE_THE_IMAGES, TWICE_THE_WIDTH = 2.2, 4.4  # of O(n d^2): 2 and 4, and a tenth for what does not grow


def figures(setting: Setting) -> Iterator[Figure]:
    """The speed-up over all n^2 entries (symmetric, by blocks), and the growth as n doubles twice and d once.

    The moments take 3 n d^2 multiplications where the entries take n^2 d, so n / (3 d) is what they can win.
    """
    images, width, rounds = setting.pick(SHORT, FULL)
    student, teacher = features(4 * images, width, 0), features(4 * images, width, 1)
    wide = features(images, 2 * width, 2), features(images, 2 * width, 3)
    work = {
        "moments": loss_of("moments", student[:images], teacher[:images]),
        "entries": loss_of("blocked", student[:images], teacher[:images]),
        "2 n": loss_of("moments", student[: 2 * images], teacher[: 2 * images]),
        "4 n": loss_of("moments", student, teacher),
        "2 d": loss_of("moments", *wide),
    }
    times = alternating(work, rounds, torch.device("cpu"))
    size = f"n {images:,}, d {width}"
    details = {"images": images, "width": width, "rounds": rounds, "seconds": medians(times)}
    wanted = 0.8 * images / (3 * width)
    won = ratio(times, "entries", "moments")
    yield Figure("kernels", f"speed-up over entries, {size}", won, "ratio", wanted, at_least=True, details=details)
    for name, beside, what, goal in (
        ("2 n", "moments", "twice the images", TWICE_THE_IMAGES),
        ("4 n", "2 n", "twice as many again", TWICE_THE_IMAGES),
        ("2 d", "moments", "twice the width", TWICE_THE_WIDTH),
    ):
        yield Figure("kernels", f"{what}: time", ratio(times, name, beside), "ratio", goal, details=details)


def features(images: int, width: int, seed: int) -> npt.NDArray[np.float64]:
    """Non-negative ones (images, width), like those behind a ReLU."""
    return np.maximum(np.random.default_rng(seed).standard_normal((images, width)), 0)


def loss_of(algorithm: str, student: npt.NDArray[Any], teacher: npt.NDArray[Any]) -> Work:
    """One loss."""
    return lambda: gram_gap(student, teacher, algorithm=algorithm)
