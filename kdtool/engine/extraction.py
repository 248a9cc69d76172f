"""What an extract is: a frozen teacher over one split, what is to be stored of it, and the rows as they are stored.

Left out: the order of the work (kdtool.engine.extract) and the blocks of it (kdtool.engine.blocks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from kdtool.cache import ArraySpec, Cache, Contents, Layout
from kdtool.data.images import Images
from kdtool.engine.sources import Teller
from kdtool.errors import IdentityError, UsageError
from kdtool.targets import CLEAN, Fit, Target

ALWAYS_CLEAN = ("logits", "before_fc")  # keys that train_clean, validation and test always hold
FLOATS = ("float16", "float32")

Stored = dict[str, dict[str, np.ndarray[Any, Any]]]  # target key -> array -> (b, ...), in the stored type


@dataclass(frozen=True)
class Extraction:
    """A frozen teacher over one split of a data set, and what is to be stored of it.

    parts: train_clean, validation and test images (un-augmented) beside `train`; labels: part -> (n,); rows: part ->
    the data set's rows. clean: keys that the un-augmented parts hold too. dtypes: key -> dtype of the floating arrays
    ("" for all keys that are not named). allow_mixed: another type of device or torch may write into the cache.
    """

    model: nn.Module
    train: Images
    parts: Mapping[str, Images]
    labels: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]]
    rows: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]]
    identity: Mapping[str, Any]
    layout: Layout
    targets: tuple[Target, ...]
    fits: tuple[Fit, ...]
    views: int
    seed: int
    clean: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()  # keys that a stage selects by, on validation
    dtypes: Mapping[str, str] = field(default_factory=dict)
    precision: str = "float32"
    allow_mixed: bool = False

    def images(self, part: str) -> Images:
        """The images of a part."""
        return self.train if part == "train" else self.parts[part]

    def part_keys(self, part: str) -> tuple[str, ...]:
        """The keys that a part holds."""
        if part == "train":
            return tuple(target.key for target in self.targets)
        wanted = {*ALWAYS_CLEAN, *self.clean, *(self.validated if part == "validation" else ())}
        return tuple(target.key for target in self.targets if target.key in wanted)

    def dtype(self, target: Target, contents: Mapping[str, Contents]) -> str:
        """The dtype of a key's floating arrays: the cache's where it holds the key, else as asked, else the default."""
        chosen = self.dtypes.get(target.key, self.dtypes.get("", ""))
        held = stored_dtype(target.key, contents)
        if held and chosen and held != chosen:
            raise IdentityError(
                f"the cache holds {target.key} as {held} and --dtype asks for {chosen}; a key has one dtype: leave "
                "--dtype out, or extract into another --cache"
            )
        return held or chosen or target.dtype


def stored_dtype(key: str, contents: Mapping[str, Contents]) -> str:
    """The dtype of a key's floating arrays in a cache; empty where it holds none of them."""
    known = contents.get(key)
    return next((spec.dtype for spec in known.arrays.values() if spec.dtype in FLOATS), "") if known else ""


def held_dtypes(cache: Cache, fits: Iterable[str]) -> dict[str, str]:
    """key -> dtype of its floating arrays: as the cache holds it, else as one of these of its fits has read it."""
    records = [cache.fits[name].record for name in fits if name in cache.fits]
    read = {key: dtype for record in records for key, dtype in record.get("reads", {}).items()}
    return {**read, **{key: dtype for key in cache.contents if (dtype := stored_dtype(key, cache.contents))}}


def stored_specs(
    job: Extraction,
    targets: Sequence[Target],
    fitted: Mapping[str, Mapping[str, torch.Tensor]],
    contents: Mapping[str, Contents],
) -> dict[str, dict[str, ArraySpec]]:
    """target key -> array -> dtype as stored and shape of one sample, from the teacher's answer to one image."""
    if not targets:
        return {}
    answer = Teller(job.model, tuple(targets), fitted, 2, job.precision).answer(job.train.view(np.arange(1), CLEAN))
    specs: dict[str, dict[str, ArraySpec]] = {}
    for target in targets:
        specs[target.key] = {}
        for name, rows in answer[target.key].items():
            kept = job.dtype(target, contents) if rows.is_floating_point() else str(rows.dtype).split(".")[1]
            specs[target.key][name] = ArraySpec(kept, tuple(rows.shape[1:]))
    return specs


@dataclass(frozen=True)
class Landing:
    """The arrays of a batch on their way from the device to memory.

    rows: (target key, array) -> (b, ...) in the stored type; finite: whether all of its values are; exact: as it was
    answered. `event` has come when they are there; None where they are there already.
    """

    rows: Mapping[tuple[str, str], torch.Tensor]
    finite: Mapping[tuple[str, str], torch.Tensor]
    exact: Mapping[tuple[str, str], torch.Tensor]
    event: torch.cuda.Event | None = None

    def landed(self) -> Stored:
        """target key -> array -> rows. UsageError for a value that the stored type cannot hold."""
        if self.event is not None:
            self.event.synchronize()
        for name, finite in self.finite.items():
            if not bool(finite):
                _explain("/".join(name), name[0], self.exact[name], str(self.rows[name].dtype).split(".")[1])
        found: Stored = {}
        for (key, array), rows in self.rows.items():
            found.setdefault(key, {})[array] = rows.numpy()
        return found


def answered(
    job: Extraction, contents: Mapping[str, Contents], targets: Sequence[Target], teller: Teller, images: torch.Tensor
) -> Landing:
    """What the teacher says of at most a batch of images, as it is stored.

    On CUDA nothing is waited for, except where an encoder looks at its values, as SRM's does for ties.
    """
    answer = teller.answer(images)
    exact = {(target.key, name): value for target in targets for name, value in answer[target.key].items()}
    dtypes = {target.key: getattr(torch, job.dtype(target, contents)) for target in targets}
    rows = {name: value.to(dtypes[name[0]]) if value.is_floating_point() else value for name, value in exact.items()}
    finite = {name: _finite(value) for name, value in rows.items() if value.is_floating_point()}
    if not images.is_cuda:
        return Landing(rows, finite, exact)
    there, known = ({name: _leaving(value) for name, value in values.items()} for values in (rows, finite))
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(images.device))
    return Landing(there, known, exact, event)


def _finite(rows: torch.Tensor) -> torch.Tensor:
    """Whether all values are; by the smallest and the largest, which a NaN becomes: a 20th of the time of each one."""
    return torch.isfinite(torch.stack(torch.aminmax(rows))).all()


def _leaving(rows: torch.Tensor) -> torch.Tensor:
    """A copy in memory into which a CUDA device writes by itself."""
    return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)


def _explain(what: str, key: str, exact: torch.Tensor, dtype: str) -> None:
    if bool(torch.isfinite(exact).all()):
        error = UsageError(
            f"{what} reaches {float(exact.abs().max()):.3g}, which {dtype} cannot hold; extract it with "
            f"--dtype {key}=float32"
        )
    else:
        error = UsageError(
            f"the teacher gives infinite or NaN values for {what}; it cannot be distilled: train it again"
        )
    error.apart = True  # the other ranks have other samples
    raise error
