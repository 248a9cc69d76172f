"""What changes while a training runs, and how it is saved and taken up again so that no bit differs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdtool.engine import checkpoint
from kdtool.engine.finetune import idle_modules
from kdtool.engine.job import Job, adapter_seed, seeded, stage_recipe
from kdtool.engine.optim import Recipe, build_optimizer
from kdtool.engine.runs import Row, RunFolder
from kdtool.errors import NonFiniteError, UsageError
from kdtool.models.taps import parameters_behind
from kdtool.targets import Stage

CHECK_STEPS = 50  # how often a loss is looked at for NaN and infinity


@dataclass
class Running:
    """What changes while a stage runs; all of it but `generator` and `frozen` goes into the state on disk.

    generator: of the method's draws, seeded before each step. frozen: the modules of the student that the stage does
    not train. best: the best weights on validation so far, of
    the student and, where the stage selects by its loss, of the adapters; best_score, best_epoch: theirs. sums: term ->
    sum over the epoch. left: what became of the stages before.
    """

    stage: int
    optimizer: torch.optim.Optimizer
    adapters: nn.ModuleDict
    generator: torch.Generator
    frozen: list[nn.Module] = field(default_factory=list)
    epoch: int = 0
    done: int = 0  # steps of the epoch
    rows: list[Row] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    best: checkpoint.Tensors = field(default_factory=dict)
    best_score: float = -math.inf
    best_epoch: int = 0
    left: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "train": 0.0, "evaluate": 0.0})


def begin(job: Job, number: int, before: Running | None = None) -> Running:
    """The state at the start of a stage, whose adapters are seeded by the run's seed and its number."""
    frozen = freeze(job, job.stages[number])
    if before is None or job.stages[number - 1].discard:
        with seeded(adapter_seed(job.seed, number)):
            adapters = nn.ModuleDict({bound.method.name: bound.adapters() for bound in job.bound}).to(job.device)
    else:
        adapters = before.adapters
    optimizer = fresh_optimizer(job, stage_recipe(job.recipe, job.stages[number]), adapters)
    running = Running(number, optimizer, adapters, torch.Generator(job.device), frozen)
    if before is not None:
        running.rows, running.seconds, running.left = before.rows, before.seconds, before.left
    return running


def fresh_optimizer(job: Job, plan: Recipe, adapters: nn.Module) -> torch.optim.Optimizer:
    """An optimiser of all that trains now; the classifier is a group of its own where its learning rate differs."""
    head = job.student.get_submodule(job.head).parameters() if job.head_factor != 1 else ()
    own = {id(parameter) for parameter in head}
    trained = [p for p in [*job.student.parameters(), *adapters.parameters()] if p.requires_grad]
    groups = (1.0, [p for p in trained if id(p) not in own]), (job.head_factor, [p for p in trained if id(p) in own])
    chosen = [{"params": members, "factor": factor} for factor, members in groups if members]
    return build_optimizer(plan, chosen, fused=job.device.type == "cuda")


def freeze(job: Job, stage: Stage) -> list[nn.Module]:
    """Lets train what the stage trains of the student; gives the modules that do not train."""
    shape = job.train.images.image_shape
    names = None if stage.trains is None else parameters_behind(job.student, stage.trains, shape)
    for name, parameter in job.student.named_parameters():
        parameter.requires_grad_(name not in job.fixed and (names is None or name in names))
    idle = idle_modules(job.student, shape) if job.fixed else []
    owned = [(module, list(module.parameters())) for module in job.student.modules()]
    kept = [module for module, parameters in owned if parameters and not any(p.requires_grad for p in parameters)]
    return [*kept, *idle]


def train_mode(job: Job, running: Running) -> None:
    """The student in train mode, what the stage leaves alone in eval mode, so that no BatchNorm there moves."""
    job.student.train()
    running.adapters.train()
    for module in () if job.moving else running.frozen:
        module.eval()


def epochs_before(job: Job, number: int) -> int:
    """The epochs of the stages before one, so that orders and views go on from stage to stage."""
    return sum(stage_recipe(job.recipe, stage).epochs for stage in job.stages[:number])


def check_finite(stage: Stage, running: Running) -> None:
    """Raises NonFiniteError where a sum of losses is not finite; waits for the device."""
    odd = [name for name, total in running.sums.items() if not bool(torch.isfinite(total))]
    if odd:
        low = max(0, running.done - CHECK_STEPS) + 1
        raise NonFiniteError(
            f"{' and '.join(sorted(odd))} became infinite or NaN in epoch {running.epoch + 1}, steps {low} to "
            f"{running.done} of stage {stage.name}; lower --learning-rate or the method's weight"
        )


def check_weights(job: Job, stage: Stage, running: Running) -> None:
    """Raises NonFiniteError where the last steps of an epoch made weights infinite or NaN; waits for the device."""
    values = [value for value in job.student.state_dict().values() if value.is_floating_point()]
    if not bool(torch.stack([torch.isfinite(value).all() for value in values]).all()):
        raise NonFiniteError(
            f"the student's weights became infinite or NaN in epoch {running.epoch + 1} of stage {stage.name}; lower "
            "--learning-rate or the method's weight"
        )


def save(job: Job, running: Running, folder: RunFolder) -> None:
    """Writes all that changes into the run's folder; of several ranks, rank 0 does."""
    check_finite(job.stages[running.stage], running)
    if job.ranks.rank == 0:
        _write(job, running, folder)
    job.ranks.shared(None)  # until it is written no rank ends, or torchrun would end them all


def _write(job: Job, running: Running, folder: RunFolder) -> None:
    moments, numbers = checkpoint.optimizer_tensors(running.optimizer)
    tensors = {
        **checkpoint.prefixed("student", job.student.state_dict()),
        **checkpoint.prefixed("adapters", running.adapters.state_dict()),
        **checkpoint.prefixed("optimizer", moments),
        **checkpoint.prefixed("sums", running.sums),
        **checkpoint.prefixed("best", running.best),
    }
    plain = {
        "stage": running.stage,
        "epoch": running.epoch,
        "done": running.done,
        "rows": running.rows,
        "seconds": running.seconds,
        "optimizer": numbers,
        "best_score": running.best_score if running.best else None,
        "best_epoch": running.best_epoch,
        "left": running.left,
    }
    folder.write_rows(running.rows)
    checkpoint.save_state(folder.path, tensors, plain)


def resume(job: Job, folder: RunFolder) -> Running | None:
    """The state that `save` wrote, the job's student included; None where there is none."""
    state = checkpoint.load_state(folder.path)
    found = job.ranks.gathered(None if state is None else [state[1][key] for key in ("stage", "epoch", "done")])
    if any(place != found[0] for place in found):
        raise UsageError(
            f"the processes of this torchrun do not find one state in {folder.path} (stage, epoch, step: {found}); "
            "name a --folder that all of them share"
        )
    if state is None:
        return None
    tensors, plain = state
    running = begin(job, plain["stage"])
    job.student.load_state_dict(checkpoint.selected("student", tensors))
    running.adapters.load_state_dict(checkpoint.selected("adapters", tensors))
    checkpoint.restore_optimizer(running.optimizer, checkpoint.selected("optimizer", tensors), plain["optimizer"])
    running.sums = {name: value.to(job.device) for name, value in checkpoint.selected("sums", tensors).items()}
    running.best = checkpoint.selected("best", tensors)
    running.best_score = plain["best_score"] if running.best else -math.inf
    running.best_epoch, running.left = plain["best_epoch"], plain["left"]
    running.epoch, running.done = plain["epoch"], plain["done"]
    running.rows, running.seconds = plain["rows"], plain["seconds"]
    return running
