"""Trains a teacher, or any network, on labels alone, and writes what the next stages need of it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdtool import data, files
from kdtool.data.augment import Augmentation
from kdtool.data.splits import make_split
from kdtool.engine import checkpoint
from kdtool.engine.device import choose_device, choose_precision
from kdtool.engine.job import Job, check_schedule, check_seed, seeded
from kdtool.engine.optim import Recipe
from kdtool.engine.runs import RunFolder, environment
from kdtool.engine.state import Running
from kdtool.engine.train import train
from kdtool.engine.workspace import (
    DEFAULT_STUDENT,
    DEFAULT_VIEWS,
    Workspace,
    labelled,
    write_teacher,
)
from kdtool.errors import UsageError, unknown
from kdtool.models import MODELS, create, parameters
from kdtool.progress import Progress, StopRequest
from kdtool.targets import Stage


@dataclass(frozen=True)
class TeachConfig:
    """What `kdtool teach` was asked for.

    validation: images held out of the train part. student, views: defaults that kdtool.toml gives distill and extract.
    """

    data: str
    network: str
    recipe: Recipe
    data_folder: str | None = None
    validation: int = 0
    few_shot: int | None = None
    student: str = DEFAULT_STUDENT
    views: int = DEFAULT_VIEWS
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"


def plain_config(command: str, config: Any) -> dict[str, Any]:
    """A configuration dataclass as the plain values of config.toml, defaults resolved."""
    values = {key: value for key, value in asdict(config).items() if value is not None}
    recipe = values.pop("recipe", {})
    return {"command": command, **values, "recipe": recipe}


def teach(
    workspace: Workspace, config: TeachConfig, progress: Progress, stop: StopRequest, checkpoint_seconds: float = 60.0
) -> dict[str, Any]:
    """Trains and writes teacher.safetensors, its record and kdtool.toml into the workspace; gives the result."""
    for name in (config.network, config.student):
        if name not in MODELS:
            raise unknown("network", name, MODELS)
    if config.data not in data.DATASETS:
        raise unknown("data set", config.data, data.DATASETS)
    if config.views < 1:
        raise UsageError(f"--views is at least 1, not {config.views}")
    check_seed(config.seed)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    found = data.load(config.data, Path(config.data_folder) if config.data_folder else None)
    augmentation = Augmentation(flip=found.flip, seed=config.seed)
    if config.views > augmentation.placements:
        raise UsageError(
            f"--views {config.views}: the augmentation has {augmentation.placements} placements; ask for no more"
        )
    split = make_split(found.train.labels, found.classes, config.validation, config.few_shot, config.seed)
    check_schedule((Stage("teach"),), (), config.recipe, len(split.train))
    path = workspace.runs / "teacher"
    with files.lock(path / "lock", "training in"):
        folder = RunFolder(path, plain_config("teach", replace(config, precision=precision)))
        known = folder.result
        if known is not None and workspace.teacher.exists() and workspace.settings:
            checkpoint.clear_state(folder.path)
            progress.note(f"{folder.path} holds this run already; nothing to do")
            return known
        with seeded(config.seed):
            model = create(config.network, found.classes).to(device)
        job = Job(
            student=model,
            stages=(Stage("teach"),),
            bound=(),
            source=None,
            train=labelled(found.train, split.train, augmentation, found, device),
            test=labelled(found.test, np.arange(len(found.test.labels)), augmentation, found, device),
            validation=labelled(found.train, split.validation, augmentation, found, device)
            if len(split.validation)
            else None,
            validation_source=None,
            recipe=config.recipe,
            views=augmentation.placements,
            seed=config.seed,
            precision=precision,
        )
        files.write_json(folder.path / "environment.json", environment(device, precision))
        running = train(job, folder, progress, stop, checkpoint_seconds)
        about = {
            "network": config.network,
            "classes": found.classes,
            "data": found.name,
            "data_digest": found.digest,
            "image_shape": tuple(found.train.images.shape[1:]),
            "mean": found.mean,
            "std": found.std,
            "flip": found.flip,
            "test_accuracy": running.rows[-1]["test_accuracy"],
        }
        record = write_teacher(workspace.teacher, model, split, about)
        workspace.write(
            {
                "data": config.data,
                "data_folder": str(Path(config.data_folder).resolve()) if config.data_folder else None,
                "teacher": workspace.teacher.name,
                "teacher_sha256": record.sha256,
                "split_digest": record.split_digest,
                "student": config.student,
                "cache": "cache.zarr",
                "views": config.views,
            }
        )
        result = {
            **summary("teach", "teacher", config.network, config.recipe, config.seed, running),
            "views": None,
            "parameters": parameters(model),
            "teacher": {"network": record.network, "sha256": record.sha256, "test_accuracy": record.test_accuracy},
            "cache": None,
            "weights_sha256": record.sha256,
        }
        folder.finish(result, running.rows)
        checkpoint.clear_state(folder.path)
        return result


def summary(command: str, name: str, network: str, recipe: Recipe, seed: int, running: Running) -> dict[str, Any]:
    """The part of a result that teach and distill share; accuracies in percent, of the last stage.

    test_accuracy: after the last epoch, the highest of all epochs, and `selected` that of the weights that are best on
    validation.
    """
    rows = running.rows[-running.epoch :]
    tests = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
    validations = [row["validation_accuracy"] for row in rows if row["validation_accuracy"] is not None]
    selected = rows[running.best_epoch]["test_accuracy"] if running.best else None
    return {
        "command": command,
        "name": name,
        "network": network,
        "method": [],
        "options": {},
        "seed": seed,
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "test_accuracy": {"last": tests[-1], "best": max(tests), "selected": selected},
        "validation_accuracy": {"last": validations[-1], "best": max(validations)} if validations else None,
        "seconds": {"total": sum(running.seconds.values()), **running.seconds},
    }
