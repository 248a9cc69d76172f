"""What a training would do, after everything that it does before its first write: for `--dry-run`.

Data are read, configurations resolved and networks built as by `teach` and `distill` themselves, so that errors are
theirs; locks are not taken. Left out: what an extract would do (kdtool.workflows.plan).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from kdtool import files
from kdtool.engine import distill as distilling
from kdtool.engine import teach as teaching
from kdtool.engine.device import choose_device, choose_precision
from kdtool.engine.job import Job, epoch_steps, loss_text, stage_recipe, weights_of
from kdtool.engine.ranks import alike, ranks
from kdtool.engine.runs import RunFolder
from kdtool.engine.state import begin, resume
from kdtool.models import parameters

if TYPE_CHECKING:
    from torch import nn

    from kdtool.engine.distill import DistillConfig
    from kdtool.engine.folder import Workspace
    from kdtool.engine.teach import TeachConfig
    from kdtool.progress import Progress

Plain = dict[str, Any]

WIDTH = 4  # bytes of a weight; buffers of other types are few


def teach(workspace: Workspace, config: TeachConfig, progress: Progress, config_alone: bool = False) -> Plain:
    """What `kdtool.engine.teach.teach` would do. Errors are its own, and nothing is written.

    config_alone: the resolved configuration, whatever the run's folder holds.
    """
    teaching.check_names(config)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    with ranks(device) as group, alike(group):
        lesson = teaching.made_ready(config, group, device, progress)
        path = workspace.runs / "teacher"
        start = None if teaching.whole_teacher(workspace, progress) else teaching.first_weights(config, lesson)
        resolved = teaching.plain_config("teach", replace(config, precision=precision, views=lesson.views))
        if config_alone:
            return {"config": resolved}
        folder = RunFolder(path, resolved, dry=True)
        teaching.check_basis(folder, teaching.basis(lesson, config.initial))
        if start is None:
            return finished(folder, resolved)
        model, begun_from, fixed = start
        job = teaching.make_job(config, lesson, model, fixed, device, precision)
        found = about(job, folder, config.network, trains=not config.as_is)
    return {
        **found,
        "data": lesson.data.name,
        "classes": lesson.data.classes,
        "image_shape": list(lesson.image_shape),
        "begins_from": begun_from.remark if begun_from else None,
        "writes": [str(workspace.teacher), str(workspace.folder / "kdtool.toml")],
        "config": resolved,
    }


def distill(workspace: Workspace, config: DistillConfig, progress: Progress, config_alone: bool = False) -> Plain:
    """What `kdtool.engine.distill.distill` would do; see `teach`."""
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    with ranks(device) as group, alike(group):
        ready = distilling.made_ready(workspace, config, group, device, precision, progress)
        if config_alone:
            return {"config": ready.resolved}
        folder = RunFolder(ready.path, ready.resolved, dry=True)
        distilling.check_basis(folder, ready)
        if distilling.whole_result(folder, progress):
            return finished(folder, ready.resolved)
        found = about(ready.job(config, device, precision), folder, config.student, selects=True)
    seen = distilling.seen_by(ready.cache)
    return {
        **found,
        "data": seen.name,
        "classes": seen.classes,
        "image_shape": list(seen.image_shape),
        "begins_from": ready.begun_from.remark if ready.begun_from else None,
        "method": [method.name for method in config.methods],
        "options": ready.resolved["set"],
        "cache": str(ready.cache.path),
        "teacher": ready.cache.identity["teacher"]["network"],
        "config": ready.resolved,
    }


def finished(folder: RunFolder, resolved: Plain) -> Plain:
    """Of a run that has ended, and is not trained again."""
    return {"folder": str(folder.path), "state": "finished", "steps_left": 0, "config": resolved}


def about(job: Job, folder: RunFolder, network: str, trains: bool = True, selects: bool = False) -> Plain:
    """What both have in common. bytes: of the weights that stay; scratch_bytes: of states while it runs.

    selects: those that are best on validation stay beside the last ones.
    """
    running = resume(job, folder) or begin(job, 0)
    stages = [stage_plan(job, number) for number in range(len(job.stages))] if trains else []
    steps = [stage["epochs"] * stage["steps"] for stage in stages]
    done = sum(steps[: running.stage]) + running.epoch * (stages[running.stage]["steps"] if stages else 0)
    begun = bool(running.stage or running.epoch or running.done)
    kept = sum(kept_weights(stage["epochs"], job.keep, number == 0) for number, stage in enumerate(stages))
    student = tensor_bytes(job.student)
    return {
        "folder": str(folder.path),
        "state": "resumes" if begun else "new",
        "network": network,
        "parameters": parameters(job.student),
        "images": {
            name: len(part.labels)
            for name, part in (("train", job.train), ("validation", job.validation), ("test", job.test))
            if part is not None
        },
        "views": job.views,
        "device": str(job.device),
        "precision": job.precision,
        "recipe": asdict(job.recipe),
        "stages": stages,
        "steps": sum(steps),
        "steps_left": sum(steps) - done - running.done,
        "at": {"stage": job.stages[running.stage].name, "epoch": running.epoch + 1, "step": running.done}
        if begun
        else None,
        "bytes": student * (1 + kept + len(job.stages[1:]) + (selects and job.validation is not None)),
        "scratch_bytes": 2 * max(state_bytes(job, number) for number in range(len(stages))) if trains else 0,
        "free_bytes": files.free_bytes(folder.path),
    }


def stage_plan(job: Job, number: int) -> Plain:
    """A stage: epochs, steps of each, and its terms with their weights and the first epoch (from 1) of each."""
    stage = job.stages[number]
    recipe = stage_recipe(job.recipe, stage)
    terms = {name: weight for name, weight in weights_of(stage, job.bound).items() if weight.value}
    return {
        "name": stage.name,
        "epochs": recipe.epochs,
        "steps": epoch_steps(job, recipe),
        "batch": recipe.batch,
        "optimizer": recipe.optimizer,
        "learning_rate": recipe.learning_rate,
        "loss": loss_text(stage, job.bound),
        "cross_entropy": stage.task,
        "terms": {name: {"weight": weight.value, "from_epoch": weight.start + 1} for name, weight in terms.items()},
    }


def kept_weights(epochs: int, every: int | None, first: bool) -> int:
    """How often a stage keeps weights: before its first epoch where it is the first, every so many, after the last."""
    return 0 if every is None else int(first) + epochs // every + bool(epochs % every)


def tensor_bytes(module: nn.Module) -> int:
    """The bytes of a network's parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def state_bytes(job: Job, number: int) -> int:
    """The bytes of a state in a stage: student, adapters, what the optimiser keeps, the best weights."""
    stage, running = job.stages[number], begin(job, number)
    recipe = stage_recipe(job.recipe, stage)
    student, adapters = tensor_bytes(job.student), tensor_bytes(running.adapters)
    trained = sum(int(value.numel()) for group in running.optimizer.param_groups for value in group["params"])
    moments = (2 if recipe.optimizer == "adam" else bool(recipe.momentum)) * WIDTH * trained
    best = student + (adapters if stage.select == "validation_loss" else 0) if job.validation is not None else 0
    return student + adapters + moments + best
