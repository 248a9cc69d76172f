"""From a working folder to the job of `extract`: the teacher, its data and split, the identity, the keys to store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdtool.cache import FORMAT, Layout, open_cache
from kdtool.cache.journal import holds_cache
from kdtool.data import Dataset, splits
from kdtool.data.images import Rule
from kdtool.data.preparation import all_views, check_views
from kdtool.engine.device import choose_device
from kdtool.engine.distill import needs_of
from kdtool.engine.extraction import FLOATS, Extraction
from kdtool.engine.folder import DEFAULT_BATCH, DEFAULT_VIEWS, Workspace, default_fit_views
from kdtool.engine.job import check_seed
from kdtool.engine.workspace import TeacherRecord, labelled, load_data, read_record, read_split, read_teacher
from kdtool.errors import UsageError
from kdtool.methods import DEFAULT_FITS, DEFAULT_TARGETS, plain_targets
from kdtool.methods.protocol import Method
from kdtool.models import create, tap_shapes
from kdtool.progress import Progress, Silent
from kdtool.targets import Facts, Fit, Shape, Target, by_key
from kdtool.typed import check_types


@dataclass(frozen=True)
class ExtractConfig:
    """What is asked of `extract`.

    methods: whose targets are stored beside the default ones. students: names of the networks that the targets are made
    for. taps: layers that the user names in them, tap -> module path. without: names of methods whose share of a plain
    extract is left out; an extract for `methods` is not plain. views: augmented versions of every image; 0 takes the
    workspace's default, -1 all placements. batch, block, fit_views: samples that the teacher answers at a time, samples
    in a commit, views that fits pass over; fixed when the cache is created, None takes what it has, or 256, its default
    and 4. clean: keys that are stored for un-augmented images too, beside logits and before_fc. dtypes: key -> float16
    or float32 ("" for all keys that are not named). validation, few_shot: narrow the teacher's split. seed: of crops
    and flips. precision: float32 or bfloat16, in which the teacher runs. device: "auto" takes a CUDA device where there
    is one. data_folder: where the files of the data set lie, None for where `teach` found them. allow_mixed: lets
    several types of device and versions of torch write into one cache.
    """

    methods: tuple[Method, ...] = ()
    students: tuple[str, ...] = ()
    taps: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    views: int = 0
    batch: int | None = None
    block: int | None = None
    fit_views: int | None = None
    clean: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    validation: int | None = None
    few_shot: int | None = None
    seed: int = 0
    precision: str = "float32"
    device: str = "auto"
    data_folder: str | None = None
    allow_mixed: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.precision not in ("float32", "bfloat16"):
            raise UsageError(
                f"--precision of extract is float32 or bfloat16, not {self.precision!r}: it is part of the cache's "
                "identity"
            )


def prepare(
    workspace: Workspace,
    config: ExtractConfig,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    known: Layout | None = None,
) -> Extraction:
    """Everything that `extract` needs, from the teacher of a workspace; refuses what does not fit, writes nothing.

    known: the layout of the cache where its files do not say it.
    """
    check_seed(config.seed)
    if config.methods and config.without:
        raise UsageError("--no-srm leaves SRM out of a plain extract; with --for, nothing is stored that is not named")
    record = read_record(workspace.teacher)
    device = choose_device(config.device)
    model = read_teacher(workspace.teacher, record, device, config.precision)
    folder = config.data_folder or workspace.settings.get("data_folder")
    data = load_data(record.seen, folder, progress)
    split = read_split(workspace.teacher, record)
    if config.validation is not None or config.few_shot is not None:
        split = splits.narrow(split, data.train.labels, data.classes, config.validation, config.few_shot)
    augmentation = record.seen.rule(config.seed)
    views = view_count(workspace, config, augmentation, known)
    rows = part_rows(data, split)
    layout = make_layout(
        workspace,
        config,
        samples={part: len(index) for part, index in rows.items()},
        classes=data.classes,
        tap_shapes=tap_shapes(model, record.image_shape),
        placements=augmentation.placements,
        known=known,
    )
    targets, fits, validated = contents(config, record, layout, data.train.labels[split.train])
    check_keys(config, targets, fits)
    parts = {
        part: labelled(data.test if part == "test" else data.train, index, augmentation, data, device)
        for part, index in rows.items()
        if part != "train_clean"
    }
    parts["train_clean"] = parts["train"]  # the same images, which lie on the device once
    return Extraction(
        model=model,
        train=parts["train"].images,
        parts={part: value.images for part, value in parts.items()},
        labels={part: value.labels.cpu().numpy() for part, value in parts.items()},
        rows=rows,
        identity=identity(record, data, split, augmentation, config),
        layout=layout,
        targets=targets,
        fits=fits,
        views=views,
        seed=config.seed,
        clean=config.clean,
        validated=validated,
        dtypes=config.dtypes,
        precision=config.precision,
        allow_mixed=config.allow_mixed,
    )


def check_keys(config: ExtractConfig, targets: Sequence[Target], fits: Sequence[Fit]) -> None:
    """Refuses options that are about keys which this extract does not store, and dtypes that it cannot store."""
    stored = [target.key for target in targets]
    for key in config.clean:
        if key not in stored:
            raise UsageError(f"--clean {key}: this extract stores no such key, but {', '.join(stored)}")
    known = {*stored, *read_keys(targets, fits)}
    for key, dtype in config.dtypes.items():
        if dtype not in FLOATS:
            raise UsageError(f"--dtype {dtype!r} is not one of {', '.join(FLOATS)}")
        if key and key not in known:
            raise UsageError(f"--dtype {key}={dtype}: this extract stores no {key}, but {', '.join(sorted(known))}")


def read_keys(targets: Sequence[Target], fits: Sequence[Fit]) -> set[str]:
    """The keys of what fits read, which are rounded as if they were stored."""
    own = [target.fit for target in targets if target.fit is not None]
    return {read.key for fit in (*fits, *own) for read in fit.reads}


def view_count(workspace: Workspace, config: ExtractConfig, augmentation: Rule, known: Layout | None = None) -> int:
    """How many views the cache shall hold: those that are asked for, else the default, or its own where it has more."""
    asked = config.views or int(workspace.settings.get("views", DEFAULT_VIEWS))
    if not config.views and known is None and holds_cache(workspace.cache):
        held = open_cache(workspace.cache)
        asked = max([asked, *(held.views(key) for key in held.contents)])
    if asked == -1:
        asked = all_views(augmentation)
    check_views(augmentation, asked)
    return asked


def make_layout(
    workspace: Workspace,
    config: ExtractConfig,
    samples: Mapping[str, int],
    classes: int,
    tap_shapes: Mapping[str, Shape],
    placements: int | None,
    known: Layout | None,
) -> Layout:
    """The grid of the cache: what was asked for, else that of the cache that is there, else the defaults."""
    if known is None and holds_cache(workspace.cache):
        known = open_cache(workspace.cache).layout
    batch = _first(config.batch, known.batch if known else DEFAULT_BATCH)
    fit_views = _first(config.fit_views, known.fit_views if known else default_fit_views(placements))
    if placements is not None and fit_views > placements:
        raise UsageError(f"--fit-views {fit_views}: this augmentation has {placements} views; ask for no more")
    block = config.block
    if block is None and known is not None and batch == known.batch:
        block = known.block
    return Layout(samples, classes, batch, fit_views, tap_shapes, block)


def _first(asked: int | None, other: int) -> int:
    return other if asked is None else asked


def part_rows(data: Dataset, split: splits.Split) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """part -> rows of the data set; a validation part only where the split holds images out."""
    held = {"validation": split.validation} if len(split.validation) else {}
    return {"train": split.train, "train_clean": split.train, **held, "test": np.arange(len(data.test.labels))}


def identity(
    record: TeacherRecord, data: Dataset, split: splits.Split, augmentation: Rule, config: ExtractConfig
) -> dict[str, Any]:
    """What a cache depends on; a cache with another identity is refused."""
    return {
        "format": FORMAT,
        "teacher": {
            "network": record.network,
            "sha256": record.sha256,
            "split_digest": record.split_digest,
            **({"taps": record.taps} if record.taps else {}),
            **({"architecture": record.architecture} if record.architecture else {}),
        },
        "data": {"name": data.name, "digest": data.digest, "image_shape": list(record.image_shape)},
        "split": {"rule": split.rule, "digest": split.digest},
        "preprocessing": {"scale": 255, "mean": list(record.mean), "std": list(record.std), **data.prepared},
        "augmentation": augmentation.rule(),
        "numeric": {"precision": config.precision, "tf32": False},
    }


def contents(
    config: ExtractConfig, record: TeacherRecord, layout: Layout, labels: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[tuple[Target, ...], tuple[Fit, ...], tuple[str, ...]]:
    """(targets, fits, keys that validation needs) of the plain extract and of every method for every student."""
    targets, fits = list(DEFAULT_TARGETS), list(DEFAULT_FITS)
    validated: list[str] = []
    if not config.methods:
        plain = plain_targets(layout.tap_shapes, config.without)
        targets += plain
        validated += [target.key for target in plain]  # one of its stages may select by them
    facts = Facts(layout.samples["train"], layout.classes, labels, layout.batch, 1, config.seed)
    for name in config.students:
        shapes = tap_shapes(create(name, record.classes, config.taps), record.image_shape)
        for method in config.methods:  # each may be the one whose stages a run has
            needs = needs_of((method,), shapes, layout.tap_shapes, facts)
            targets += needs.targets
            validated += needs.validated
            fits += method.fits(shapes, layout.tap_shapes)
    return tuple(by_key(targets).values()), tuple({fit.key: fit for fit in fits}.values()), tuple(validated)
