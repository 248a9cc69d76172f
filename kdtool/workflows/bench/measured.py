"""What a part of the benchmark gives: figures with their goals, and how things are timed beside one another.

Seconds belong to a machine and to what else it does at that moment; a ratio of neighbours in one run does not. So
whatever is compared takes turns, and the figure is the median of the ratios of neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdtool.engine.device import synchronize


@dataclass(frozen=True)
class Setting:
    """How a part is measured.

    folder: an empty one for what it writes; full: all pairs and sizes, not the short form.
    """

    device: torch.device
    precision: str
    folder: Path
    full: bool = False

    def pick(self, short: Any, full: Any) -> Any:
        """The value for the short form, or for the full one."""
        return full if self.full else short


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    part: of the benchmark; what: is measured; value in `unit` ("ratio", "s", "MB", "images/s", ...); goal: the bound
    that the project has set itself, None where there is none; at_least: whether the value is to reach it or to stay
    below it. details: what the value was made of, for the JSON record.
    """

    part: str
    what: str
    value: float
    unit: str = "ratio"
    goal: float | None = None
    at_least: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "met": self.met}


Work = Callable[[], object]
Times = dict[str, list[float]]


def alternating(work: Mapping[str, Work], rounds: int, device: torch.device, warm: int = 1) -> Times:
    """name -> seconds of every round, each round one after the other in a new order; `warm` more come before."""
    times: Times = {name: [] for name in work}
    names = list(work)
    for number in range(-warm, rounds):
        for name in names if number % 2 else reversed(names):
            taken = seconds(work[name], device)
            if number >= 0:
                times[name].append(taken)
    return times


def seconds(work: Work, device: torch.device) -> float:
    """How long it takes, what it started on the device included."""
    synchronize(device)
    begun = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begun


def ratio(times: Times, name: str, beside: str) -> float:
    """The median over rounds of the time of one over that of another in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[beside], strict=True))


def medians(times: Times) -> dict[str, float]:
    """name -> median seconds."""
    return {name: statistics.median(taken) for name, taken in times.items()}
