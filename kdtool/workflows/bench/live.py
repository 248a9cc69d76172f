"""What the cache saves: a step with the living teacher beside one from the cache, for pairs of networks of the papers.

Running the teacher costs its forward pass; the cache should save all of it: live / cached over (forward + plain) /
plain is to be 1. All four take turns in one run, reading of images and targets included.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from kdtool.engine.device import autocast, exact
from kdtool.engine.sources import LiveTeacher
from kdtool.methods import method
from kdtool.models import create, multiply_adds
from kdtool.workflows.bench.jobs import BATCH, CLASSES, Steps, alive, filled, make_job
from kdtool.workflows.bench.made_up import SHAPE
from kdtool.workflows.bench.measured import Figure, Setting, Work, alternating, medians, ratio
from kdtool.workflows.bench.steps import in_a_row

GOAL = 0.95
PAIRS = (
    ("wrn_40_2", "wrn_16_2"),
    ("resnet32x4", "resnet8x4"),
    ("resnet34", "resnet18"),
    ("vgg13", "vgg8"),
    ("resnet50", "mobilenetv2"),
    ("wrn_40_2", "shufflev1"),
)
SHORT = PAIRS[:1]
ROUNDS = 5, 9  # in the short form and in the full one


def figures(setting: Setting) -> Iterator[Figure]:
    """Two figures for each pair: how often the cached step fits into the live one, and the share of the saving."""
    for teacher, student in setting.pick(SHORT, PAIRS):
        yield from compared(setting, teacher, student)


def compared(setting: Setting, teacher: str, student: str) -> Iterator[Figure]:
    """The figures of one pair, with KD."""
    kd, count = method("kd"), in_a_row(setting)
    made = filled(setting.folder / f"{teacher}-{student}", teacher, student, (kd,))
    job = make_job(made, student, (kd,), setting.device, setting.precision)
    other = alive(made, make_job(made, student, (kd,), setting.device, setting.precision))
    assert isinstance(other.source, LiveTeacher)
    forward = Forward(other.source, torch.arange(BATCH, device=setting.device), count)
    plain = Steps(make_job(made, student, (), setting.device, setting.precision), count=count)
    work: dict[str, Work] = {
        "plain": plain,
        "cached": Steps(job, count=count),
        "live": Steps(other, count=count),
        "forward": forward,
    }
    times = alternating(work, setting.pick(*ROUNDS), setting.device, warm=2)
    whole = ratio(times, "live", "cached")
    ideal = statistics.median((f + p) / p for f, p in zip(times["forward"], times["plain"], strict=True))
    adds = {name: multiply_adds(create(name, CLASSES), SHAPE) for name in (teacher, student)}
    details = {
        "seconds": {name: value / count for name, value in medians(times).items()},
        "batch": BATCH,
        "forward_and_plain_over_plain": ideal,
        "multiply_adds": adds,
        "multiply_adds_live_over_cached": 1 + adds[teacher] / (3 * adds[student]),
    }
    pair = f"{teacher} to {student}"
    yield Figure("live", f"{pair}: live / cached", whole, details=details)
    yield Figure("live", f"{pair}: over the ideal", whole / ideal, goal=GOAL, at_least=True)


class Forward:
    """The teacher's forward pass over a batch in memory, and nothing else."""

    def __init__(self, source: LiveTeacher, indices: torch.Tensor, count: int) -> None:
        self.teller, self.count = source.teller, count
        self.images = source.images.view(indices, 0)
        self.teller.model.eval()

    @torch.no_grad()
    def __call__(self) -> None:
        """As many passes as there are steps."""
        for _ in range(self.count):
            with exact(), autocast(self.images.device, self.teller.precision):
                self.teller.model(self.images)
