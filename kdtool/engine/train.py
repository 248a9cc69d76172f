"""The training loop of teach and distill: stages, epochs, steps, and a state from which any step can be resumed.

A step is a pure function of the state and of (seed, epoch, position), so a resumed run gives the bits of an undisturbed
one, if the device computes the same twice, as CPUs do. The loop never waits for the device inside a step; sums of
losses stay there until an epoch ends or a check is due. Several ranks of a `torchrun` take the same steps together
(kdtool.engine.together); rank 0 alone writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from kdtool import philox
from kdtool.data.batches import batch_slices, order_of_epoch, view_of_epoch
from kdtool.data.dataset import NO_LABEL
from kdtool.engine import checkpoint, keeping
from kdtool.engine.device import autocast, synchronize
from kdtool.engine.evaluate import accuracy
from kdtool.engine.job import Bound, Job, Labelled, check_schedule, epoch_steps, loss_text, stage_recipe
from kdtool.engine.optim import Recipe, learning_rate, milestone_epochs
from kdtool.engine.ranks import working
from kdtool.engine.runs import Row, RunFolder
from kdtool.engine.sources import Plain
from kdtool.engine.state import (
    CHECK_STEPS,
    Running,
    begin,
    check_finite,
    check_weights,
    epochs_before,
    fresh_optimizer,
    resume,
    save,
    train_mode,
)
from kdtool.engine.together import (
    Read,
    average_gradients,
    check_shares,
    decided,
    gathered,
    reader_of,
    share,
    spread_buffers,
)
from kdtool.errors import UsageError
from kdtool.methods.precision import wide
from kdtool.models.taps import TapReader
from kdtool.progress import Progress, StopRequest, counted
from kdtool.targets import CLEAN, Batch, Cached, Stage, Weight

RESERVED = ("task", "loss", "right", "count")  # names that the metrics of a run use beside the terms


def train(
    job: Job, folder: RunFolder, progress: Progress, stop: StopRequest, checkpoint_seconds: float = 60.0
) -> Running:
    """Runs all stages, from the state in `folder` where there is one; the job's student holds the result."""
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []), working(), stop.deferring():
        return _train(job, folder, progress, stop, checkpoint_seconds)


def _train(job: Job, folder: RunFolder, progress: Progress, stop: StopRequest, checkpoint_seconds: float) -> Running:
    check_schedule(job.stages, job.bound, job.recipe, len(job.train.labels))
    check_shares(job.stages, job.recipe, len(job.train.labels), job.ranks)
    running = resume(job, folder) or begin(job, 0)
    _keep(job, running, folder)
    if running.epoch or running.done:
        progress.note(f"resumed at stage {job.stages[running.stage].name}, epoch {running.epoch + 1}")
    while True:
        if not (running.epoch or running.done):
            progress.note(_stage_text(job, running.stage))
        _run_stage(job, running, folder, progress, stop, checkpoint_seconds)
        _leave_stage(job, running, folder, progress)
        if running.stage + 1 == len(job.stages):
            return running
        running = begin(job, running.stage + 1, running)
        save(job, running, folder)


def _stage_text(job: Job, number: int) -> str:
    """A stage before its first step: how long it is, and its loss."""
    stage = job.stages[number]
    plan = stage_recipe(job.recipe, stage)
    length = f"{counted(plan.epochs, 'epoch')} of {counted(epoch_steps(job, plan), 'step')}"
    return f"{stage.name}: {length} on {job.device} in {job.precision}; loss: {loss_text(stage, job.bound)}"


def _run_stage(
    job: Job, running: Running, folder: RunFolder, progress: Progress, stop: StopRequest, checkpoint_seconds: float
) -> None:
    stage = job.stages[running.stage]
    plan = stage_recipe(job.recipe, stage)
    slices = batch_slices(len(job.train.labels), plan.batch, plan.drop_last)
    taps = tuple(dict.fromkeys(tap for bound in _active(job, stage) for tap in bound.taps))
    saved, before = time.monotonic(), epochs_before(job, running.stage)
    with TapReader(job.student, taps) as taps_reader:
        reader = reader_of(job, stage, taps_reader)
        while running.epoch < plan.epochs:
            progress.begin(stage.name, plan.epochs * len(slices), running.epoch * len(slices) + running.done)
            view = view_of_epoch(job.seed, before + running.epoch, job.views)
            order = order_of_epoch(job.seed, before + running.epoch, len(job.train.labels), job.shuffle_block)
            if plan.resets and running.done == 0 and running.epoch in milestone_epochs(plan):
                running.optimizer = fresh_optimizer(job, plan, running.adapters)
            train_mode(job, running)
            there = torch.from_numpy(order).to(job.device)
            seeds = step_seeds(job.seed, running.stage, running.epoch * len(slices), len(slices))
            todo = [(there[part], order[part]) for part in slices[running.done :]]
            if job.source:
                job.source.expect(todo, view_of_epoch(job.seed, before + running.epoch + 1, job.views))
            own = [positions[share(len(positions), job.ranks)] for _, positions in todo]
            with closing(job.train.images.views((positions, view) for positions in own)) as images:
                for indices, _ in todo:
                    reseed(job.device, running.generator, *seeds[running.done])
                    step(job, stage, plan, running, reader, indices, view, len(slices), images)
                    running.done += 1
                    progress.advance(1)
                    if running.done % CHECK_STEPS == 0:
                        check_finite(stage, running)
                    stopping, due = decided(job.ranks, stop, time.monotonic() - saved > checkpoint_seconds)
                    if stopping or due:
                        save(job, running, folder)
                        saved = time.monotonic()
                    if stopping:
                        raise stop.stopped(f"in epoch {running.epoch + 1} of {plan.epochs}, after step {running.done}")
            _end_epoch(job, stage, plan, running, slices, progress)
            _keep(job, running, folder)
            if job.ranks.rank == 0:
                folder.write_rows(running.rows)
            if job.ranks.shared(time.monotonic() - saved > checkpoint_seconds):
                save(job, running, folder)
                saved = time.monotonic()


def _active(job: Job, stage: Stage) -> tuple[Bound, ...]:
    """The method of the run where the stage has terms of it, and in stages with a task term what `--with` adds."""
    own = job.bound[:1] if stage.weights is None or stage.weights else ()
    return (*own, *job.bound[1:]) if stage.task else own


def step(
    job: Job,
    stage: Stage,
    plan: Recipe,
    running: Running,
    reader: Read,
    indices: Tensor,
    view: int,
    steps: int,
    images: Iterator[Tensor],
) -> None:
    """One step of the optimiser on the samples at `indices` (B,); `steps` are an epoch's.

    images: their pixels are the next of these, or of several ranks each one's share of them.
    """
    begun = time.perf_counter()
    number = running.epoch * steps + running.done
    for group in running.optimizer.param_groups:
        group["lr"] = learning_rate(plan, number, steps) * group["factor"]
    batch = Batch(indices, job.train.labels[indices], view, stage.name, running.epoch, number, running.generator)
    pixels = next(images)
    bounds = _active(job, stage)
    cached = job.source.read(batch) if job.source and bounds else {}
    loaded = time.perf_counter()
    losses, logits, taps = _losses(job, stage, running, reader, pixels, cached, batch)
    total = _weighted(losses)
    running.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    average_gradients(running.adapters, job.ranks)
    running.optimizer.step()
    with torch.no_grad():
        for bound in bounds:
            bound.method.after_step(taps, cached, batch, running.adapters[bound.method.name])
        _add(running, "loss", total, len(indices))
        for name, (_, value) in losses.items():
            _add(running, name, value, len(indices))
        _add(running, "right", (logits.argmax(1) == batch.labels).sum(), 1)
    running.seconds["data"] += loaded - begun
    running.seconds["train"] += time.perf_counter() - loaded


def step_seeds(seed: int, stage: int, first: int, count: int) -> list[tuple[int, int]]:
    """For each of `count` steps from `first` on the seeds of what layers such as dropout draw, and methods.

    Pure functions of the run's seed, the stage and the step: nothing of them has to be kept.
    """
    steps = np.arange(first, first + count)
    return list(zip(*(_seeds(seed, purpose, stage, steps) for purpose in (philox.LAYERS, philox.DRAWS)), strict=True))


def _seeds(seed: int, purpose: int, stage: int, items: npt.ArrayLike) -> list[int]:
    high, low = philox.words(seed, purpose, stage, items, 2).astype(np.int64).T
    found: list[int] = ((high >> 1 << 32) + low).tolist()  # below 2^63; on the CPU torch takes the lower 32 bits
    return found


def reseed(device: torch.device, generator: torch.Generator, layers: int, draws: int) -> None:
    """Seeds torch's global generators, which layers draw from, and that of the methods."""
    torch.default_generator.manual_seed(layers)
    if device.type == "cuda":
        torch.cuda.manual_seed(layers)
    generator.manual_seed(draws)


def _losses(
    job: Job,
    stage: Stage,
    running: Running,
    reader: Read,
    images: Tensor,
    cached: Cached,
    batch: Batch,
) -> tuple[dict[str, tuple[float, Tensor]], Tensor, Mapping[str, Tensor]]:
    """(term -> weight and value, logits, taps) of the student on a batch."""
    with autocast(job.device, job.precision):
        found, outputs = reader(images)
    logits = wide(gathered(found, len(batch.indices), job.ranks))
    taps = Plain(outputs, lambda value: gathered(value, len(batch.indices), job.ranks))
    losses = {"task": (stage.task, cross_entropy(logits, batch.labels, job.train.share < 1))} if stage.task else {}
    for bound in _active(job, stage):
        terms = _terms(bound, stage, running, taps, cached, batch)
        taken = [name for name in terms if name in losses or name in RESERVED]
        if taken:
            raise UsageError(f"method {bound.method.name} calls a term {taken[0]}, as another one is called already")
        losses |= terms
    return losses, logits, taps


def cross_entropy(logits: Tensor, labels: Tensor, partly: bool = False) -> Tensor:
    """The mean over the samples that have a label, 0 where none has; partly: whether some may have none."""
    if not partly:
        return functional.cross_entropy(logits, labels)
    total = functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
    return total / (labels != NO_LABEL).sum().clamp(min=1)


def _terms(
    bound: Bound,
    stage: Stage,
    running: Running,
    taps: Mapping[str, Tensor],
    cached: Cached,
    batch: Batch,
) -> dict[str, tuple[float, Tensor]]:
    weights = stage.weights if bound.weights is None else bound.weights
    if weights is not None and not any(running.epoch >= weight.start for weight in weights.values()):
        return {}
    found = bound.method.terms(taps, cached, batch, running.adapters[bound.method.name])
    _check_terms(bound.method.name, stage, weights, found)
    if weights is None:
        return {name: (1.0, value) for name, value in found.items()}
    return {
        name: (weights[name].value, value)
        for name, value in found.items()
        if name in weights and running.epoch >= weights[name].start
    }


def _check_terms(method: str, stage: Stage, weights: Mapping[str, Weight] | None, found: Mapping[str, Any]) -> None:
    """Refuses what only a method of the user's own can give: it would train on less than it seems to."""
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.dim() != 0:
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"the term {name} of method {method} is {what}; a tensor of one number is expected")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise UsageError(f"the term {name} of method {method} has no gradient: it does not depend on the student")
    for name, weight in (weights or {}).items():
        if weight.value and name not in found:
            raise UsageError(
                f"stage {stage.name} of method {method} has a weight for {name}, and its terms are {', '.join(found)}"
            )


def _weighted(losses: Mapping[str, tuple[float, Tensor]]) -> Tensor:
    values = [value if weight == 1 else weight * value for weight, value in losses.values()]
    if not values:
        raise UsageError("no term of this stage is active: it has no task term and no method term")
    return torch.stack(values).sum() if len(values) > 1 else values[0]


def _add(running: Running, name: str, value: Tensor, count: int) -> None:
    if name not in running.sums:
        running.sums[name] = torch.zeros((), dtype=torch.float64, device=value.device)
    running.sums[name].add_(value.detach(), alpha=count)


def _end_epoch(
    job: Job, stage: Stage, plan: Recipe, running: Running, slices: Sequence[slice], progress: Progress
) -> None:
    check_finite(stage, running)
    steps = len(slices)
    for bound in _active(job, stage):
        bound.method.after_epoch(running.adapters[bound.method.name])
    spread_buffers((job.student, running.adapters), job.ranks)
    check_weights(job, stage, running)
    synchronize(job.device)
    begun = time.perf_counter()
    test = _accuracy(job, job.test, progress)
    validation = None
    if job.validation is not None:
        validation = _accuracy(job, job.validation, progress)
        if not plan.resets or running.epoch + 1 in (*milestone_epochs(plan), plan.epochs):
            _select(job, stage, running, validation)
    running.seconds["evaluate"] += time.perf_counter() - begun
    means = {name: float(total) / slices[-1].stop for name, total in sorted(running.sums.items())}
    row: Row = {
        "stage": stage.name,
        "epoch": running.epoch,
        "steps": steps,
        "learning_rate": learning_rate(plan, running.epoch * steps + steps - 1, steps),
        "loss": means.pop("loss"),
        "train_accuracy": 100 * means.pop("right") / job.train.share,
        "validation_accuracy": validation,
        "test_accuracy": test,
        "seconds": sum(running.seconds.values()),
        "terms": means,
    }
    running.rows.append(row)
    running.sums, running.epoch, running.done = {}, running.epoch + 1, 0
    shown = "" if validation is None else f", validation {validation:.2f} %"
    progress.note(
        f"{stage.name} epoch {running.epoch}/{plan.epochs}: loss {row['loss']:.4f}, train {row['train_accuracy']:.2f} %"
        f"{shown}, test {test:.2f} %"
    )


def _accuracy(job: Job, part: Labelled, progress: Progress) -> float:
    return accuracy(job.student, part.images, part.labels, job.precision, ranks=job.ranks, progress=progress)


def _keep(job: Job, running: Running, folder: RunFolder) -> None:
    """Keeps the weights before the first epoch, after every `job.keep` epochs of a stage and after its last."""
    stage = job.stages[running.stage]
    last = running.epoch == stage_recipe(job.recipe, stage).epochs
    first = running.epoch == 0 and running.stage > 0
    if job.ranks.rank == 0 and job.keep and not running.done and not first and (last or running.epoch % job.keep == 0):
        keeping.keep(folder.path, stage.name, running.epoch, job.student)


def _select(job: Job, stage: Stage, running: Running, validation: float) -> None:
    """Keeps the weights that are best on validation: by accuracy, or by the stage's own loss where it says so."""
    by_loss = stage.select == "validation_loss"
    score = job.ranks.shared(-validation_loss(job, stage, running) if by_loss else validation)
    if score > running.best_score:
        running.best_score, running.best_epoch = score, running.epoch
        kept = {"student": job.student, **({"adapters": running.adapters} if by_loss else {})}
        running.best = {
            f"{owner}.{name}": value.detach().cpu().clone()
            for owner, module in kept.items()
            for name, value in module.state_dict().items()
        }


@torch.no_grad()
def validation_loss(job: Job, stage: Stage, running: Running) -> float:
    """The stage's weighted loss over the validation part, un-augmented, in eval mode; each rank takes it whole."""
    assert job.validation is not None
    job.student.eval()
    running.adapters.eval()
    bounds, total = _active(job, stage), 0.0
    taps_needed = tuple(dict.fromkeys(tap for bound in bounds for tap in bound.taps))
    labels = job.validation.labels
    running.generator.manual_seed(_seeds(job.seed, philox.SELECTION, running.stage, [running.epoch])[0])
    with TapReader(job.student, taps_needed) as reader:
        for part in batch_slices(len(labels), stage_recipe(job.recipe, stage).batch, False):
            positions = np.arange(part.start, part.stop)
            indices = torch.from_numpy(positions).to(job.device)
            batch = Batch(indices, labels[indices], CLEAN, stage.name, running.epoch, 0, running.generator)
            cached = job.validation_source.read(batch) if job.validation_source and bounds else {}
            images = job.validation.images.view(positions, CLEAN)
            losses, _, _ = _losses(job, stage, running, reader, images, cached, batch)
            total += float(_weighted(losses)) * len(indices)
    train_mode(job, running)
    return total / len(labels)


def _leave_stage(job: Job, running: Running, folder: RunFolder, progress: Progress) -> None:
    """Takes the weights that leave the stage, keeps them where another one follows, and tells what becomes of it."""
    stage = job.stages[running.stage]
    by_loss = stage.select == "validation_loss" and bool(running.best)
    if by_loss:
        job.student.load_state_dict(checkpoint.selected("student", running.best))
        running.adapters.load_state_dict(checkpoint.selected("adapters", running.best))
    kept = running.best_epoch + 1 if by_loss else running.epoch
    loss = -running.best_score if by_loss else None
    running.left.append(
        {
            "stage": stage.name,
            "epochs": running.epoch,
            "kept_epoch": kept,
            "validation_loss": loss,
            "discard": stage.discard,
        }
    )
    if running.stage + 1 < len(job.stages) and job.ranks.rank == 0:
        path = folder.path / f"stage-{stage.name}.safetensors"
        running.left[-1]["weights_sha256"] = checkpoint.save_weights(path, job.student)
    if len(job.stages) > 1:
        why = f" of the lowest validation loss, {loss:.4f}" if loss is not None else ""
        fate = ", without its adapters" if stage.discard else ""
        following = job.stages[running.stage + 1 : running.stage + 2]
        after = f"; stage {following[0].name} begins" if following else ""
        progress.note(f"stage {stage.name} ends with the weights of epoch {kept}{why}{fate}{after}")
