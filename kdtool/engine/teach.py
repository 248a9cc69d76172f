"""Trains a teacher, or any network, on labels alone, and writes what the next stages need of it.

It may begin from weights in a file, of which the classifier may be for other classes; and it may take them as they are.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdtool import data, files
from kdtool.data.dataset import NO_LABEL, Channels, Rows
from kdtool.data.images import Rule
from kdtool.data.preparation import PAD, at_size, check_views, rule_for
from kdtool.data.splits import Split, make_split
from kdtool.engine import checkpoint
from kdtool.engine.device import choose_device, choose_precision, placed
from kdtool.engine.evaluate import accuracy
from kdtool.engine.finetune import fixed_parameters, head_rate
from kdtool.engine.folder import DEFAULT_STUDENT, DEFAULT_VIEWS, Workspace
from kdtool.engine.job import (
    Job,
    Labelled,
    check_head_rate,
    check_keep,
    check_schedule,
    check_seed,
    seeded,
    teacher_seed,
)
from kdtool.engine.optim import Recipe
from kdtool.engine.ranks import Ranks, alike, ranks
from kdtool.engine.runs import LATER, RunFolder, environment
from kdtool.engine.state import Running, begin
from kdtool.engine.together import check_shares, check_sync_bn, synchronised
from kdtool.engine.train import train
from kdtool.engine.workspace import (
    TeacherRecord,
    answer,
    architecture,
    labelled,
    read_record,
    read_split,
    write_teacher,
)
from kdtool.errors import DamageError, IdentityError, UsageError, unknown
from kdtool.models import check_name, check_output, create, large_for, parameters
from kdtool.models.weights import Loaded, load_initial
from kdtool.progress import Progress, Silent, StopRequest
from kdtool.targets import Stage
from kdtool.typed import check_types


@dataclass(frozen=True)
class TeachConfig:
    """What is asked of `teach`.

    data: name of a data set, one of `kdtool.data.DATASETS`; data_folder: where its files lie, None for ./data. network:
    its name, as `kdtool.models.create` takes it. recipe: optimiser, schedule, batch, epochs. seed: of first weights,
    order, crops and split. device, precision: "auto" takes a CUDA device where there is one, and bfloat16 where the
    hardware multiplies it. validation: images held out of the train part, None for those that the data set itself holds
    out; few_shot: images of each class that are trained on, None for all. image_size: width that images are brought to;
    crop: "pad" or "resized" (None: by the data set), with `pad` pixels around the image; flip: whether it may be
    mirrored (None: by the data set). mean, std: of each channel, in place of the data set's. taps: layers that the user
    names in the network, tap -> module path. initial: file of weights that the training begins from, or that are taken
    as they are (as_is). freeze: what does not train (`finetune.fixed_parameters`); batchnorm: whether BatchNorms there
    keep their statistics ("eval") or follow the data ("train"). head_learning_rate: of the classifier, where it has one
    of its own. student, views: defaults that kdtool.toml gives distill and extract. keep_weights: those of every so
    many epochs stay in the run's folder. selected: the teacher is as in the epoch that was best on the validation part,
    not as in the last one. sync_bn: BatchNorms take the statistics of all ranks.
    """

    data: str
    network: str
    recipe: Recipe
    data_folder: str | None = None
    validation: int | None = None
    few_shot: int | None = None
    student: str = DEFAULT_STUDENT
    views: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    image_size: int | None = None
    crop: str | None = None
    pad: int = PAD
    flip: bool | None = None
    mean: Channels | None = None
    std: Channels | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    initial: str | None = None
    as_is: bool = False
    freeze: tuple[str, ...] = ()
    batchnorm: str = "eval"
    head_learning_rate: float | None = None
    keep_weights: int | None = None
    selected: bool | None = None
    sync_bn: bool | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_seed(self.seed)
        check_keep(self.keep_weights)
        if self.views is not None and self.views < 1:
            raise UsageError(f"--views is at least 1, not {self.views}")
        if self.batchnorm not in ("eval", "train"):
            raise unknown("mode of BatchNorm", self.batchnorm, ("eval", "train"))
        if self.batchnorm == "train" and not self.freeze:
            raise UsageError("--batchnorm train is about what --freeze keeps, and nothing is kept")
        check_head_rate(self.head_learning_rate)
        if self.as_is and not self.initial:
            raise UsageError("--as-is takes the weights of --from as they are, and --from names none")
        training = (self.freeze, self.head_learning_rate, self.keep_weights, self.selected, self.sync_bn)
        if self.as_is and any(training):
            raise UsageError(
                "--as-is trains nothing: --freeze, --head-lr, --keep-weights, --selected and --sync-bn do not apply"
            )


def plain_config(command: str, config: Any) -> dict[str, Any]:
    """A configuration dataclass as the plain values of config.toml, defaults resolved."""
    values = {key: value for key, value in asdict(config).items() if value is not None}
    recipe = values.pop("recipe", {})
    return {"command": command, **values, "recipe": recipe}


@dataclass(frozen=True, eq=False)
class Lesson:
    """The data of a teacher as it sees them. rows: of the split's train part, those that have a label. views: default
    of extract.
    """

    data: data.Dataset
    rule: Rule
    image_shape: tuple[int, int, int]
    split: Split
    rows: Rows
    views: int

    def part(self, name: str, device: torch.device) -> Labelled | None:
        """The images of train, validation or test; None for a part that has none."""
        held = self.data.test if name == "test" else self.data.train
        rows = {"train": self.rows, "validation": self.split.validation, "test": np.arange(len(held.labels))}[name]
        return labelled(held, rows, self.rule, self.data, device) if len(rows) else None


def read_lesson(config: TeachConfig, progress: Progress) -> Lesson:
    """Reads the data set and divides it; refuses what does not fit before anything is decoded."""
    return lesson_on(
        data.load(config.data, Path(config.data_folder) if config.data_folder else None, progress), config, progress
    )


def lesson_on(found: data.Dataset, config: TeachConfig, progress: Progress) -> Lesson:
    """The lesson on a data set that has been read."""
    rule, shape = rule_for(found, config.image_size, config.crop, config.pad, config.flip, config.seed)
    views = config.views or min(DEFAULT_VIEWS, rule.placements or DEFAULT_VIEWS)
    check_views(rule, views)
    labels = found.train.labels
    split = make_split(labels, found.classes, config.validation, config.few_shot, config.seed, found.validation)
    if config.selected and not len(split.validation):
        raise UsageError(
            "--selected takes the epoch that is best on images held out of the training, and none are: --validation N"
        )
    rows = split.train[labels[split.train] != NO_LABEL]
    check_schedule((Stage("teach"),), (), config.recipe, len(rows))
    found = replace(found, mean=config.mean or found.mean, std=config.std or found.std)
    return Lesson(at_size(found, rule, shape, progress), rule, shape, split, rows, views)


def teach(
    workspace: Workspace,
    config: TeachConfig,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    stop: StopRequest | None = None,
    checkpoint_seconds: float = 60.0,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Trains and writes teacher.safetensors, its record and kdtool.toml into the workspace; gives the result.

    The result is what runs/teacher/result.json holds; accuracies in percent. The workspace takes over the
    settings that are written, for the stages that follow. stop: asked at every safe point; without one only an
    exception ends it. Whatever stops it, the next call goes on from the last checkpoint, at most `checkpoint_seconds`
    before. tensorboard: the metrics are written for TensorBoard too. All ranks of a `torchrun` train together, and rank
    0 writes.
    """
    stop = stop or StopRequest()
    check_names(config)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    path = workspace.runs / "teacher"
    with ranks(device) as group, ExitStack() as held:
        with alike(group):
            lesson = made_ready(config, group, device, progress)
            whole = whole_teacher(workspace, progress)
            # what does not fit is refused before anything is written
            start = None if whole else first_weights(config, lesson)
            resolved = plain_config("teach", replace(config, precision=precision, views=lesson.views))
            if group.rank == 0:
                held.enter_context(files.lock(path / "lock", "training in"))
                check_basis(RunFolder(path, resolved, events=tensorboard), basis(lesson, config.initial))
        folder = RunFolder(path, resolved, events=tensorboard)
        known: dict[str, Any] | None = group.shared(folder.result if whole else None)
        if known is not None:
            if group.rank == 0:
                checkpoint.clear_state(folder.path)
            progress.note(f"{folder.path} holds this run already; nothing to do")
            kept = {name: workspace.settings[name] for name in LATER if name in workspace.settings}
            if any(resolved[name] != value for name, value in kept.items()):
                named = ", ".join(f"{name} = {value}" for name, value in kept.items())
                progress.note(f"{workspace.folder / 'kdtool.toml'} keeps {named}; edit it for other defaults")
            return known
        with alike(group):
            assert start is not None
            model, begun_from, fixed = start
            if begun_from:
                progress.note(f"begins from {begun_from.remark}")
            if group.rank == 0:
                note_environment(folder, device, precision, group)
            job = replace(make_job(config, lesson, model, fixed, device, precision), ranks=group)
        running = as_it_is(job, progress) if config.as_is else train(job, folder, progress, stop, checkpoint_seconds)
        result = _finish(workspace, folder, job, model, running, config, lesson, begun_from) if group.rank == 0 else {}
        return dict(group.shared(result))


def whole_teacher(workspace: Workspace, progress: Progress) -> bool:
    """Whether there is a finished teacher with weights, record, split and kdtool.toml; a word about one that is not."""
    if not workspace.settings or not (workspace.runs / "teacher/result.json").exists():
        return False
    try:
        record = read_record(workspace.teacher)
        read_split(workspace.teacher, record)
    except (DamageError, UsageError) as error:
        progress.note(f"the teacher is trained again: {error}")
        return False
    if checkpoint.holds(workspace.teacher, record.sha256):
        return True
    progress.note(f"the teacher is trained again: {workspace.teacher} is gone or damaged")
    return False


def check_names(config: TeachConfig) -> None:
    """Refuses names of networks and data sets that there are not."""
    for name in (config.network, config.student):
        check_name(name)
    if config.data not in data.DATASETS:
        raise unknown("data set", config.data, data.DATASETS)


def made_ready(config: TeachConfig, group: Ranks, device: torch.device, progress: Progress) -> Lesson:
    """Reads the data of a teacher; refuses what does not fit, and writes nothing."""
    check_sync_bn(config.sync_bn, device)
    lesson = read_lesson(config, progress)
    check_shares((Stage("teach"),), config.recipe, len(lesson.rows), group)
    for name in dict.fromkeys((config.network, config.student)):
        if said := large_for(name, lesson.image_shape):
            progress.note(said)
    return lesson


def note_environment(folder: RunFolder, device: torch.device, precision: str, group: Ranks) -> None:
    """Writes what a result may depend on beside its configuration, which is the same for any number of processes."""
    files.write_json(folder.path / "environment.json", {**environment(device, precision), "ranks": group.size})


def _finish(
    workspace: Workspace,
    folder: RunFolder,
    job: Job,
    model: nn.Module,
    running: Running,
    config: TeachConfig,
    lesson: Lesson,
    begun_from: Loaded | None,
) -> dict[str, Any]:
    """Writes the teacher, the defaults and, last, the result of a training that has ended.

    model: the network as `create` gives it, which the job trained or of which it trained a copy.
    """
    found = summary("teach", "teacher", config.network, config.recipe, config.seed, running)
    if config.selected:
        job.student.load_state_dict(checkpoint.selected("student", running.best))
    accuracy = found["test_accuracy"]["selected" if config.selected else "last"]
    model.cpu().load_state_dict(job.student.state_dict())
    record = write_teacher(workspace.teacher, model, lesson.split, about(config, lesson, model, accuracy))
    workspace.write(defaults(workspace, config, lesson, record))
    result = {
        **found,
        **({"epochs": 0} if config.as_is else {}),
        "from": begun_from.record if begun_from else None,
        "taps": dict(config.taps),
        "seen": record.seen.plain(),
        "views": None,
        "parameters": parameters(model),
        "teacher": {"network": record.network, "sha256": record.sha256, "test_accuracy": record.test_accuracy},
        "cache": None,
        "weights_sha256": record.sha256,
    }
    folder.finish(result, running.rows)
    checkpoint.clear_state(folder.path)
    return result


def basis(lesson: Lesson, initial: str | None) -> dict[str, Any]:
    """What a training is made of beside its configuration: digests of data, split and first weights."""
    weights = files.sha256_file(Path(initial)) if initial and Path(initial).is_file() else None
    return {"data": lesson.data.digest, "split": lesson.split.digest, "initial": weights}


def check_basis(folder: RunFolder, found: Mapping[str, Any]) -> None:
    """Refuses to go on with a run, or to give the result of one, that was made of something else.

    A file of first weights that is gone is no other one.
    """
    path, repair = folder.path / "basis.json", f"remove {folder.path} and run again"
    if not folder.begun:
        if not folder.dry:
            files.write_json(path, dict(found))
        return
    held = files.read_json(path, repair, {"data": str, "split": str}) if path.exists() else {}
    for name, value in found.items():
        if value is not None and held.get(name) != value:
            raise IdentityError(
                f"{folder.path} holds a run with another {WORDS[name]} (SHA-256 {str(held.get(name))[:12]} there, "
                f"{value[:12]} here); {repair}, or name another folder"
            )


WORDS = {"data": "content of the data set", "split": "split", "initial": "file of first weights"}


def first_weights(config: TeachConfig, lesson: Lesson) -> tuple[nn.Module, Loaded | None, frozenset[str]]:
    """(the network as its training begins, what was loaded of a file, the parameters that do not train)."""
    with seeded(teacher_seed(config.seed)):
        model = create(config.network, lesson.data.classes, config.taps)
    check_output(config.network, model, lesson.data.classes, lesson.image_shape)
    loaded = load_initial(Path(config.initial), model) if config.initial else None
    if config.as_is and loaded and loaded.new:
        raise UsageError(
            f"--as-is: in {config.initial} {loaded.new[0]} is missing or the classifier is for other classes than the "
            f"{lesson.data.classes} of {lesson.data.name}; train it, without --as-is"
        )
    return model, loaded, fixed_parameters(model, config.freeze, lesson.image_shape) if config.freeze else frozenset()


def make_job(
    config: TeachConfig, lesson: Lesson, model: nn.Module, fixed: frozenset[str], device: torch.device, precision: str
) -> Job:
    """The training that a configuration describes."""
    train_part, test = lesson.part("train", device), lesson.part("test", device)
    assert train_part is not None
    assert test is not None
    head, head_factor = head_rate(model, lesson.image_shape, config.head_learning_rate, config.recipe.learning_rate)
    network = synchronised(deepcopy(model)) if config.sync_bn else model
    return Job(
        student=placed(network, device, precision),
        stages=(Stage("teach"),),
        bound=(),
        source=None,
        train=train_part,
        test=test,
        validation=lesson.part("validation", device),
        validation_source=None,
        recipe=config.recipe,
        views=lesson.rule.placements or config.recipe.epochs,
        seed=config.seed,
        precision=precision,
        fixed=fixed,
        moving=config.batchnorm == "train",
        head=head,
        head_factor=head_factor,
        keep=config.keep_weights,
    )


def about(config: TeachConfig, lesson: Lesson, model: nn.Module, test_accuracy: float) -> dict[str, Any]:
    """What the teacher's record says beside the digests of weights and split."""
    return {
        "network": config.network,
        "classes": lesson.data.classes,
        "data": lesson.data.name,
        "data_digest": lesson.data.digest,
        "image_shape": lesson.image_shape,
        "mean": lesson.data.mean,
        "std": lesson.data.std,
        "augmentation": lesson.rule.rule(),
        "taps": dict(config.taps),
        "architecture": architecture(config.network, model),
        "seed": config.seed,
        "answer": answer(model, lesson.image_shape),
        "test_accuracy": test_accuracy,
        "class_names": lesson.data.class_names,
    }


def defaults(workspace: Workspace, config: TeachConfig, lesson: Lesson, record: TeacherRecord) -> dict[str, Any]:
    """What kdtool.toml says to the commands that follow."""
    folder = Path(config.data_folder or data.DEFAULT_FOLDER)
    return {
        "data": config.data,
        "data_folder": str(folder.resolve()) if config.data_folder or folder.is_dir() else None,
        "teacher": workspace.teacher.name,
        "teacher_sha256": record.sha256,
        "split_digest": record.split_digest,
        "student": config.student,
        "cache": "cache.zarr",
        "views": lesson.views,
    }


def as_it_is(job: Job, progress: Progress = Silent()) -> Running:  # noqa: B008 - it has no state
    """What a training without a step would give: one row with the accuracies of the network's weights."""
    running = begin(job, 0)
    score = {
        name: accuracy(job.student, part.images, part.labels, job.precision, ranks=job.ranks, progress=progress)
        if part
        else None
        for name, part in (("validation_accuracy", job.validation), ("test_accuracy", job.test))
    }
    fixed = {"stage": "as it is", "epoch": 0, "steps": 0, "learning_rate": 0.0, "loss": None, "train_accuracy": None}
    running.rows.append({**fixed, **score, "seconds": 0.0, "terms": {}})
    running.epoch = 1
    return running


def summary(command: str, name: str, network: str, recipe: Recipe, seed: int, running: Running) -> dict[str, Any]:
    """The part of a result that teach and distill share; accuracies in percent, of the last stage.

    test_accuracy: `last` of the weights that the run ends with (of the last epoch, or of that which a stage chose), the
    highest of all epochs, and `selected` of the weights that are best on validation.
    """
    rows = running.rows[-running.epoch :]
    tests = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
    validations = [row["validation_accuracy"] for row in rows if row["validation_accuracy"] is not None]
    selected = rows[running.best_epoch] if running.best else {}
    left = rows[running.left[-1]["kept_epoch"] - 1] if running.left else rows[-1]
    return {
        "command": command,
        "name": name,
        "network": network,
        "method": [],
        "options": {},
        "seed": seed,
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "test_accuracy": {"last": left["test_accuracy"], "best": max(tests), "selected": selected.get("test_accuracy")},
        "validation_accuracy": {
            "last": left["validation_accuracy"],
            "best": max(validations),
            "selected": selected.get("validation_accuracy"),
        }
        if validations
        else None,
        "seconds": {"total": sum(running.seconds.values()), **running.seconds},
    }
