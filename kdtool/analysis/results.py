"""Finished runs, read from their folders for a report: checked, labelled, and grouped over seeds.

Left out: unfinished runs, which are named with the reason, and everything that is drawn or written from the results.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kdtool import files
from kdtool.analysis.analysed import Analysed, read_analysed
from kdtool.analysis.checked import HUGE
from kdtool.analysis.kept import exact_gaps
from kdtool.engine.runs import LATER, PLACES, read_toml
from kdtool.errors import DamageError, KdtoolError, UsageError

T = TypeVar("T")

ORDER = ("", "kd", "kda")  # of students: no teacher, then these; other methods follow by name


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl: the weighted training loss and the accuracies in percent.

    stage: its name; taught: whether a term of a method was active.
    """

    loss: float
    train_accuracy: float
    test_accuracy: float
    stage: str = ""
    taught: bool = False


@dataclass(frozen=True)
class Run:
    """One finished run.

    data, data_digest: name and content of the data set. last, best, selected: test accuracy in percent after the last
    epoch, the highest of all, and that of the weights which are best on validation. seconds: by part, "total" among
    them. analysed: what analyses found. cache_options: of the extract that gives the cache this identity, in the words
    of its command line. samples: training images; teacher_seconds: what an answer of the teacher took when the cache
    was filled; cache_bytes and tap_bytes: of the targets, and of the float32 maps that they stand for, in all views;
    each None where a result does not say so.
    """

    folder: Path
    command: str
    data: str
    data_digest: str
    network: str
    methods: tuple[str, ...]
    options: dict[str, Any]
    seed: int
    views: int
    parameters: int
    last: float
    best: float
    selected: float | None
    seconds: dict[str, float]
    teacher_network: str
    teacher_sha256: str
    teacher_accuracy: float
    cache_identity: str | None
    cache_options: tuple[str, ...]
    cache_bytes: int | None
    tap_bytes: int | None
    samples: int | None
    teacher_seconds: float | None
    weights_sha256: str
    config: dict[str, Any]
    environment: dict[str, Any]
    epochs: tuple[Epoch, ...]
    analysed: Analysed

    @property
    def gaps(self) -> dict[tuple[str, str], float]:
        """(layer, part) -> kernel transfer loss of the linear kernel, the one over the most images."""
        return {place: gap["loss"] for place, gap in exact_gaps(self.analysed.results.get("gram-gap", ())).items()}

    @property
    def answers(self) -> int | None:
        """How often the training looked at the teacher's answer to an image; None where that is not known.

        Those are the epochs of all stages that have a term of a method, each over all training images.
        """
        taught = {epoch.stage for epoch in self.epochs if epoch.taught}
        if not taught or not self.cache_bytes:
            return 0
        return None if self.samples is None else self.samples * sum(epoch.stage in taught for epoch in self.epochs)

    @property
    def live_seconds(self) -> float | None:
        """What those answers would have taken from a live teacher, in seconds; None where that is not known."""
        if self.answers == 0:
            return 0.0
        return None if self.answers is None or self.teacher_seconds is None else self.answers * self.teacher_seconds

    @property
    def label(self) -> str:
        """What was trained, in words: "teacher", "no teacher", or the methods with their layers."""
        if self.command == "teach":
            return "teacher"
        names = []
        for name in self.methods:
            layers = self.options.get(f"{name}.layers")
            names.append(f"{name} {', '.join(map(str, layers))}" if isinstance(layers, list) and layers else name)
        return " + ".join(names) or "no teacher"

    @property
    def settings(self) -> dict[str, Any]:
        """All that makes the run what it is, save its seed, as one flat dictionary; not what changes no result."""
        flat = {
            "data": self.data,
            "images": self.data_digest,
            "cache": self.cache_identity,
            "teacher": self.teacher_sha256 if self.command != "teach" else None,
        }
        for key, value in ((key, value) for key, value in self.config.items() if key not in PLACES):
            flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        if "initial" in flat:
            path = Path(str(flat.pop("initial")))
            flat["from"] = f"{path.name} in {path.parent}"  # labels have room for the name
        left = ("seed", "keep_weights", *(LATER if self.command == "teach" else ()))
        return {key: value for key, value in flat.items() if key not in left}


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    runs: tuple[Run, ...]

    @property
    def is_teacher(self) -> bool:
        """Whether these are runs of `kdtool teach`."""
        return self.runs[0].command == "teach"

    def values(self, of: Callable[[Run], float | None]) -> list[float]:
        """One value of every run that has it."""
        return [value for run in self.runs if (value := of(run)) is not None]


@dataclass(frozen=True)
class Skipped:
    """A run folder that cannot be shown, and why."""

    name: str
    reason: str


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for the latter where there is one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def read_runs(paths: Iterable[Path | str] | Path | str) -> tuple[list[Run], list[Skipped]]:
    """Every finished run in the given run folders and folders of run folders, and what had to be left out.

    Raises UsageError where there is no run at all; with nothing but damaged runs, the first one's error.
    """
    named = [paths] if isinstance(paths, str | Path) else list(paths)
    folders = list(dict.fromkeys(folder for path in named for folder in run_folders(Path(path))))
    runs, skipped, errors = [], [], []
    for folder in folders:
        try:
            if (folder / "result.json").exists():
                runs.append(read_run(folder))
            else:
                skipped.append(Skipped(folder.name, "not finished: it has no result.json"))
        except KdtoolError as error:
            errors.append(error)
            skipped.append(Skipped(folder.name, str(error).replace(f"{folder}/", "")))
    if not runs and errors:
        raise errors[0]
    if not runs:
        where = ", ".join(map(str, named))
        raise UsageError(f"no finished run in {where}; name a run folder or a folder of runs, such as runs")
    return runs, skipped


def run_folders(path: Path) -> list[Path]:
    """The path itself where it is a run folder, else those directly in it or in its runs/."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder; name a run folder or a folder of runs")

    def is_run(folder: Path) -> bool:
        return (folder / "config.toml").exists() or (folder / "result.json").exists()

    if is_run(path):
        return [path.resolve()]
    return [child.resolve() for base in (path, path / "runs") for child in sorted(base.glob("*/")) if is_run(child)]


def read_run(folder: Path) -> Run:
    """A finished run; DamageError or UsageError names the file that cannot be read."""
    repair = "run it again into another folder"
    for name in ("config.toml", "environment.json", "metrics.jsonl", "result.json"):
        if not (folder / name).exists():
            raise DamageError(f"{folder / name} is missing; {repair}")
    config = read_toml(folder / "config.toml")
    environment = files.read_json(folder / "environment.json", repair)
    result = files.read_json(folder / "result.json", repair)
    name = "metrics.jsonl"
    try:
        epochs = tuple(read_epoch(line) for line in (folder / name).read_text(encoding="utf-8").splitlines())
        name = "result.json"
        weights = str(result["weights_sha256"])
        left = [stage for stage in result.get("stages") or () if "weights_sha256" in stage]
        stages = {str(stage["stage"]): str(stage["weights_sha256"]) for stage in left}
        return make_run(folder, result, config, environment, epochs, read_analysed(folder, weights, stages))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is not as kdtool writes it ({error})"
        raise DamageError(f"{folder / name} {what}; {repair}") from None


def read_epoch(line: str) -> Epoch:
    """One line of metrics.jsonl; what was not measured or is not finite becomes NaN."""
    row = json.loads(line)

    def number(name: str) -> float:
        value = math.nan if row[name] is None else float(row[name])
        return value if abs(value) < HUGE else math.nan

    measured = number("loss"), number("train_accuracy"), number("test_accuracy")
    return Epoch(*measured, stage=str(row["stage"]), taught=bool(set(row["terms"]) - {"task"}))


def finite(value: Any) -> float:
    """A number that can be shown."""
    if not 0 <= value < HUGE:
        raise ValueError(f"{value} where a finite number of at least 0 is expected")
    return float(value)


def optional(value: Any, kind: Callable[[Any], T]) -> T | None:
    """The value, or None where there is none."""
    return None if value is None else kind(value)


def make_run(
    folder: Path,
    result: dict[str, Any],
    config: dict[str, Any],
    environment: dict[str, Any],
    epochs: tuple[Epoch, ...],
    analysed: Analysed,
) -> Run:
    """A run from the plain values of its files."""
    selected, cache, teacher = result["test_accuracy"]["selected"], result["cache"] or {}, result["teacher"]
    seen = result.get("seen") or {}
    return Run(
        folder=folder,
        command=str(result["command"]),
        data=str(seen.get("name", config.get("data", ""))),
        data_digest=str(seen.get("digest", "")),
        network=str(result["network"]),
        methods=tuple(str(name) for name in result["method"]),
        options=dict(result["options"]),
        seed=int(result["seed"]),
        views=int(result["views"] or 0),
        parameters=int(result["parameters"]),
        last=finite(result["test_accuracy"]["last"]),
        best=finite(result["test_accuracy"]["best"]),
        selected=None if selected is None else finite(selected),
        seconds={str(part): float(value) for part, value in {"total": math.nan, **result["seconds"]}.items()},
        teacher_network=str(teacher["network"]),
        teacher_sha256=str(teacher["sha256"]),
        teacher_accuracy=finite(teacher["test_accuracy"]),
        cache_identity=str(cache["identity"]) if cache else None,
        cache_options=tuple(str(word) for word in cache.get("options", ())),
        cache_bytes=int(cache["bytes"]) if cache else None,
        tap_bytes=optional(cache.get("tap_bytes"), int),
        samples=optional(result.get("samples"), int),
        teacher_seconds=optional(teacher.get("seconds_per_image"), finite),
        weights_sha256=str(result["weights_sha256"]),
        config=config,
        environment=environment,
        epochs=epochs,
        analysed=analysed,
    )


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in the seed only, together: teachers first, then students without a teacher, kd, kda, others."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(setting(run), []).append(run)
    groups = [Group(members[0].label, tuple(sorted(members, key=lambda run: run.seed))) for members in found.values()]
    return sorted((replace(group, label=full_label(group, groups)) for group in groups), key=place)


def setting(run: Run) -> str:
    """What runs that differ in the seed only have in common."""
    return files.canonical([run.command, plain(run.settings)])


def plain(settings: dict[str, Any]) -> dict[str, str]:
    """Settings as text, so that any two compare."""
    return {key: str(value) for key, value in settings.items()}


def full_label(group: Group, groups: Sequence[Group]) -> str:
    """The group's label, with the settings that tell it from groups that would be called the same."""
    alike = [
        plain(other.runs[0].settings)
        for other in groups
        if (other.label, other.runs[0].network) == (group.label, group.runs[0].network)
    ]
    own = plain(group.runs[0].settings)
    differing = [key for key in own if len({other.get(key) for other in alike}) > 1]
    told = [f"{key.rpartition('.')[2]} {own[key][:12]}" for key in differing[:3]]
    return f"{group.label} ({', '.join(told)})" if told else group.label


def place(group: Group) -> tuple[bool, str, int, str, str]:
    """Where a group stands in the report."""
    run = group.runs[0]
    first = run.methods[0] if run.methods else ""
    rank = ORDER.index(first) if first in ORDER else len(ORDER)
    return run.command != "teach", run.network, rank, " + ".join(run.methods), group.label
