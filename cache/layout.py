"""What a cache is laid out for: its parts, samples, batch grid and blocks; and what each key and each fit holds.

A batch is `batch` consecutive samples of a part; a block, the unit of commits, is a whole number of batches of one
view. Both are fixed when the cache is created. Left out: which blocks are there (kdtool.cache.manifest).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdtool.cache.arrays import ArraySpec, Grid, check_name, chunk_rows, whole
from kdtool.errors import UsageError

PARTS = ("train", "train_clean", "validation", "test")
BLOCK_ROWS = 4096  # the default block is the smallest multiple of the batch that has at least as many samples


def default_block(samples: int, batch: int) -> int:
    """Samples in a block: the smallest multiple of `batch` of at least 4096, at most all samples rounded up."""
    return min(_round_up(BLOCK_ROWS, batch), _round_up(samples, batch))


@dataclass(frozen=True)
class Layout:
    """What is fixed when a cache is created, beside its identity.

    samples: part -> number of samples, n. classes: of the data set. batch: B. fit_views: F, the views that fits pass
    over. tap_shapes: tap of the teacher -> shape of one sample. block: S, a multiple of B that replaces the default
    (every part has at most its n rounded up to B).
    """

    samples: Mapping[str, int]
    classes: int
    batch: int
    fit_views: int
    tap_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    block: int | None = None

    def __post_init__(self) -> None:
        wrong = sorted(set(self.samples) - set(PARTS))
        if wrong or "train" not in self.samples:
            raise ValueError(f"parts {sorted(self.samples)}: train is needed, known are {', '.join(PARTS)}")
        numbers = {**self.samples, "classes": self.classes, "batch": self.batch, "fit_views": self.fit_views}
        for name, number in numbers.items():
            if not whole(number, 1):
                raise UsageError(f"{name} of a cache is {number!r}; it must be at least 1")
        if self.block is not None and (not whole(self.block, 1) or self.block % self.batch):
            raise UsageError(f"block {self.block} of a cache is not a multiple of its batch, {self.batch}")
        if not all(whole(size, 1) for shape in self.tap_shapes.values() for size in shape):
            raise ValueError(f"shapes of taps {self.tap_shapes}: every size must be at least 1")

    def block_rows(self, part: str) -> int:
        """Samples in a block of `part`, S."""
        if self.block is None:
            return default_block(self.samples[part], self.batch)
        return min(self.block, _round_up(self.samples[part], self.batch))

    def blocks(self, part: str) -> int:
        """Number of blocks in a view of `part`; the last may hold fewer samples."""
        return -(-self.samples[part] // self.block_rows(part))

    def grid(self, part: str, key: str, name: str, spec: ArraySpec, views: int = 0) -> Grid:
        """Where the array `name` of `key` lies in `part`, with `views` complete views."""
        rows = chunk_rows(self.block_rows(part), spec.row_bytes)
        return Grid(f"{part}/{key}/{name}", spec.dtype, (self.samples[part], *spec.shape), rows, views)

    def chunks(self, grid: Grid, part: str, block: int) -> range:
        """The chunks that a block of `part` has in an array; none lies wholly past the last sample."""
        per_block = self.block_rows(part) // grid.rows
        return range(block * per_block, min((block + 1) * per_block, grid.chunks))

    def to_json(self) -> dict[str, Any]:
        """As plain values, the default block resolved."""
        shapes = {tap: list(shape) for tap, shape in self.tap_shapes.items()}
        numbers = {"classes": self.classes, "batch": self.batch, "fit_views": self.fit_views}
        block = self.block or _round_up(BLOCK_ROWS, self.batch)
        return {"samples": dict(self.samples), **numbers, "tap_shapes": shapes, "block": block}

    @classmethod
    def from_json(cls, value: Any) -> "Layout":
        """From plain values; ValueError, TypeError, KeyError or UsageError where they are none of ours."""
        shapes = {tap: tuple(shape) for tap, shape in value["tap_shapes"].items()}
        numbers = {name: value[name] for name in ("classes", "batch", "fit_views", "block")}
        return cls(samples=dict(value["samples"]), tap_shapes=shapes, **numbers)


@dataclass(frozen=True)
class Contents:
    """The definition of a key: what its arrays are. Equal keys with other definitions do not share a cache.

    version: of the definition. taps: of the teacher. encoder: record of the encoder as plain values. fit: key of the
    fit that it was encoded with. arrays: name -> dtype and shape of one sample.
    """

    version: int
    taps: tuple[str, ...]
    encoder: Mapping[str, Any]
    fit: str | None
    arrays: Mapping[str, ArraySpec]

    def __post_init__(self) -> None:
        _check_definition(self.version, self.arrays)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        arrays = {name: spec.to_json() for name, spec in self.arrays.items()}
        record = {"version": self.version, "taps": list(self.taps), "encoder": dict(self.encoder), "fit": self.fit}
        return {**record, "arrays": arrays}

    @classmethod
    def from_json(cls, value: Any) -> "Contents":
        """From plain values; ValueError, TypeError or KeyError where they are none of ours."""
        arrays = {name: ArraySpec.from_json(spec) for name, spec in value["arrays"].items()}
        return cls(value["version"], tuple(value["taps"]), dict(value["encoder"]), value["fit"], arrays)


@dataclass(frozen=True)
class FitContents:
    """The result of a fit: version and record of its definition, and its arrays with their whole shapes."""

    version: int
    record: Mapping[str, Any]
    arrays: Mapping[str, ArraySpec]

    def __post_init__(self) -> None:
        _check_definition(self.version, self.arrays)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        arrays = {name: spec.to_json() for name, spec in self.arrays.items()}
        return {"version": self.version, "record": dict(self.record), "arrays": arrays}

    @classmethod
    def from_json(cls, value: Any) -> "FitContents":
        """From plain values; ValueError, TypeError or KeyError where they are none of ours."""
        arrays = {name: ArraySpec.from_json(spec) for name, spec in value["arrays"].items()}
        return cls(value["version"], dict(value["record"]), arrays)


def _check_definition(version: int, arrays: Mapping[str, ArraySpec]) -> None:
    if not whole(version, 0):
        raise ValueError(f"the version of a definition is {version!r}, which is no number")
    if not arrays:
        raise ValueError("a key or a fit without arrays holds nothing")
    for name in arrays:
        check_name("array", name)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
