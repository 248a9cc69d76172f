"""What a recipe asks for, told before its teachers are there; what cannot be done is refused before hours of training.

Left out: what it would take (plans), and doing it (work).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdtool import files
from kdtool.analysis.probe import ProbeConfig, lesson_of, probe_config
from kdtool.data import DATASETS
from kdtool.engine.configuration import Values, extract_config, teach_config
from kdtool.engine.device import choose_precision
from kdtool.engine.distill import needs_of, seen_in, staged
from kdtool.engine.extraction import Extraction
from kdtool.engine.folder import Workspace
from kdtool.engine.job import check_schedule, stage_recipe
from kdtool.engine.prepare import ExtractConfig, check_keys, prepare, read_keys
from kdtool.engine.teach import TeachConfig, about, check_names, defaults, first_weights, read_lesson
from kdtool.engine.workspace import write_teacher
from kdtool.errors import UsageError, unknown
from kdtool.models import check_name, create, tap_shapes
from kdtool.progress import Progress
from kdtool.targets import Facts, by_key
from kdtool.workflows.reproduce.measures import ANALYSES
from kdtool.workflows.reproduce.recipe import Group, Recipe
from kdtool.workflows.reproduce.tasks import Task, basis_of, last, tasks

NEXT = 10_000  # seed of a student that becomes a teacher: no cell has it, whose student would begin where this one did
SHARED = (
    *("data", "data_folder", "validation", "few_shot", "image_size", "crop", "pad", "flip", "mean", "std", "seed"),
    *("student", "views"),
)  # keys of [teach] that hold for whoever takes over a teacher or its student


def check(recipe: Recipe) -> None:
    """Refuses everything that a recipe itself says wrongly."""
    for name in recipe.analyze:
        if name not in ANALYSES:
            raise unknown(f"analysis in recipe {recipe.name}", name, ANALYSES)
    for group in recipe.groups.values():
        found = teach_config(Values("teach", teaching(recipe, group), f"[teach] of group {group.name}"))
        taken = extract_config(Values("extract", group.extract, f"[extract] of group {group.name}"), "")
        for precision in (found.precision, taken.precision):
            choose_precision(precision, torch.device("cpu"))
        if group.early:
            check_early(recipe, group)
        check_names(found)
        if group.after:
            check_student(recipe, after(recipe, group))
    for cell in recipe.cells:
        for task in [*tasks(recipe, cell, 1, []), *(last(recipe, cell) if cell.search and not cell.skip else ())]:
            check_student(recipe, task)
            if task.probe:
                probing(task)


def check_student(recipe: Recipe, task: Task) -> None:
    """Refuses a student that there is not, one from a file, of which a row's configuration does not hold the content,
    and one that does not keep the weights that are analysed.
    """
    config = task.config
    if config is None:
        return
    check_name(config.student)
    choose_precision(config.precision, torch.device("cpu"))
    if config.initial:
        raise UsageError(f"recipe {recipe.name}: students begin from drawn weights; take `initial` out of [distill]")
    if "landmarks" in task.analyze and not config.keep_weights:
        raise UsageError(
            f"recipe {recipe.name}: landmarks are analysed over the training, of which nothing is kept; add "
            "keep_weights = 1 (every epoch) to [distill]"
        )


def probing(task: Task) -> ProbeConfig:
    """What `kdtool analyze probe` is asked for; refuses a data set that there is not."""
    found = probe_config(Values("probe", task.probe, f"[probe] of group {task.group}"), Path())
    choose_precision(found.precision, torch.device("cpu"))
    if found.data not in DATASETS:
        raise unknown(f"data set in [probe] of group {task.group}", found.data, DATASETS)
    return found


def check_early(recipe: Recipe, group: Group) -> None:
    """Refuses an early teacher whose weights the training of the other one would not keep."""
    assert group.early is not None
    epoch, before = group.early["epoch"], recipe.groups[group.before]
    training = teach_config(Values("teach", teaching(recipe, before), f"[teach] of group {before.name}"))
    every, last = training.keep_weights, training.recipe.epochs
    if before.teach is None or not every or not 0 <= epoch <= last or (epoch % every and epoch != last):
        kept = f"every {every} of {last} epochs" if every else "none on the way"
        raise UsageError(
            f"group {group.name} takes the teacher of {before.name} after epoch {epoch}, whose training keeps weights "
            f"of {kept}: keep_weights in its [teach] says so"
        )


def teaching(recipe: Recipe, group: Group) -> dict[str, Any]:
    """The [teach] of a group; of one that takes weights as they are, on the images of the group they come from."""
    if group.teach is not None:
        return dict(group.teach)
    source = teaching(recipe, recipe.groups[group.before])
    own = {"network": source.get("network", "resnet34"), "taps": source.get("taps", {})}
    if group.after and (config := after(recipe, group).config):
        own = {"network": config.student, "taps": dict(config.taps)}
    return {**{key: source[key] for key in SHARED if key in source}, **own}


def after(recipe: Recipe, group: Group) -> Task:
    """The student that becomes the teacher of a group."""
    assert group.after is not None
    return Task(group.before, basis_of(recipe, group.before), group.after["distill"], {}, (), NEXT)


def merged(workspace: Workspace, base: ExtractConfig, todo: Sequence[Task], progress: Progress) -> Extraction:
    """One extract of what all tasks need, of all of their students; of those beside a living teacher only the fits.

    Of `clean` and `dtypes` of the base, what these tasks store: other tasks of the group may be done.
    """
    plain = replace(base, clean=(), dtypes={})
    asked: dict[tuple[str, bool], ExtractConfig] = {}
    for task in todo:
        config = task.config
        if config is not None and config.methods:
            name = (files.canonical([config.student, dict(config.taps)]), task.live)
            known = asked.get(name, replace(plain, students=(config.student,), taps=config.taps))
            asked[name] = replace(known, methods=tuple(dict.fromkeys((*known.methods, *config.methods))))
    jobs = {name: prepare(workspace, config, progress) for name, config in asked.items()}
    stored = [job for (_, live), job in jobs.items() if not live]
    stored = stored or [prepare(workspace, replace(plain, without=("srm",)), progress)]
    together = [*stored, *jobs.values()]
    needed = [target.fit for job in together for target in job.targets if target.fit is not None]
    targets = by_key([target for job in stored for target in job.targets])
    fits = {fit.key: fit for fit in [*(fit for job in together for fit in job.fits), *needed]}
    named = {*targets, *read_keys(tuple(targets.values()), tuple(fits.values()))}
    return replace(
        stored[0],
        targets=tuple(targets.values()),
        fits=tuple(fits.values()),
        validated=tuple(dict.fromkeys(key for job in stored for key in job.validated)),
        clean=tuple(key for key in base.clean if key in targets),
        dtypes={key: dtype for key, dtype in base.dtypes.items() if not key or key in named},
    )


def foreseen(
    workspace: Workspace | None,
    lesson: TeachConfig,
    base: ExtractConfig,
    todo: Sequence[Task],
    every: Sequence[Task],
    progress: Progress,
) -> Extraction:
    """The extract of what a group's tasks need, of its teacher; for None of one that nobody has trained.

    every: all tasks of the group, one of which has to store what `clean` and `dtypes` name. UsageError for a student
    that does not fit this teacher or its schedule, and for weights that do not fit the teacher.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = workspace or untrained(lesson, Path(folder), progress)
        if base.clean or base.dtypes:
            found = merged(place, base, every, progress)
            check_keys(base, found.targets, found.fits)
        job = merged(place, base, todo, progress)
    trained_epochs(todo, job)
    return job


def check_probes(todo: Sequence[Task], job: Extraction, data: str | None, progress: Progress) -> None:
    """Reads the data of all probes once, as they will be read; refuses what is not there, and what they cannot be."""
    seen = seen_in(job.identity, job.layout.classes)
    asked = {files.canonical(dict(task.probe)): probing(task) for task in todo if task.probe}
    for config in asked.values():
        lesson_of(replace(config, data_folder=data or config.data_folder), seen, progress)


def trained_epochs(todo: Iterable[Task], job: Extraction) -> dict[str, int]:
    """The epochs of all stages of every student, by the name of its run.

    UsageError for a task whose training `distill` would refuse for its methods, its schedule or its views, and for a
    probe after a stage that it has not.
    """
    labels, image_shape = job.labels["train"], tuple(job.identity["data"]["image_shape"])
    known, found = {}, {}
    for task in todo:
        if (config := task.config) is None:
            continue
        name = (config.student, *sorted(config.taps.items()))
        if name not in known:
            known[name] = tap_shapes(create(config.student, job.layout.classes, config.taps), image_shape)
        facts = Facts(len(labels), job.layout.classes, labels, config.recipe.batch, config.recipe.epochs, config.seed)
        both = (known[name], job.layout.tap_shapes)
        try:
            stages, bound = staged(config.methods, needs_of(config.methods, *both, facts), *both, facts, lambda _: {})
            check_schedule(stages, bound, config.recipe, len(labels))
            if not task.live and config.views > job.views:
                raise UsageError(f"it walks {config.views} views, and [extract] makes {job.views}")
            ended, probed = [one.name for one in stages[:-1]], str(task.probe.get("stage", ""))
            if probed and probed not in ended:
                raise unknown("stage that is probed", probed, ended)
        except UsageError as error:
            raise UsageError(f"group {task.group}, {config.title}: {error}") from None
        found[task.name] = sum(stage_recipe(config.recipe, one).epochs for one in stages)
    return found


def untrained(lesson: TeachConfig, folder: Path, progress: Progress) -> Workspace:
    """A working folder with the teacher's network as its training begins: what is stored of it takes as much."""
    found = read_lesson(lesson, progress)
    model, _, _ = first_weights(lesson, found)
    workspace = Workspace(folder)
    record = write_teacher(workspace.teacher, model, found.split, about(lesson, found, model, 0.0))
    workspace.write(defaults(workspace, lesson, found, record))
    return Workspace.open(folder)
