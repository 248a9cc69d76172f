"""A run's metrics as TensorBoard reads them: an event file in the run's folder, beside the table that it repeats.

`tensorboard --logdir runs` shows all runs under their names. The metrics are what counts and what a stopped run goes on
with; the events are written anew from them by every process, so nothing is told twice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtool.errors import UsageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "events.out.tfevents.*"


class Events:
    """The event file of one run. UsageError where TensorBoard is not installed."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UsageError('--tensorboard needs TensorBoard; install it with pip install "kdtool[tensorboard]"')
        self.folder = folder
        self.writer: SummaryWriter | None = None
        self.told = 0

    def follow(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes what is new in a run's metrics, all of them at first; epochs count on from stage to stage."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds

            for old in self.folder.glob(EVENTS):
                old.unlink()
            self.writer = SummaryWriter(str(self.folder))
        for number in range(self.told, len(rows)):
            for name, value in _scalars(rows[number]):
                self.writer.add_scalar(name, value, number + 1)
        self.writer.flush()
        self.told = len(rows)

    def close(self) -> None:
        """Closes the file."""
        if self.writer is not None:
            self.writer.close()


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if row["loss"] is not None:  # a teacher that is taken as it is has none
        yield "loss", row["loss"]
    yield "learning_rate", row["learning_rate"]
    for part in ("train", "validation", "test"):
        if row[f"{part}_accuracy"] is not None:
            yield f"accuracy/{part}", row[f"{part}_accuracy"]
    for term, value in row["terms"].items():
        yield f"terms/{term}", value
