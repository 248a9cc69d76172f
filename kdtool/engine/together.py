"""One training step in several processes of a `torchrun`: each runs the student on its share of the global batch.

The student is wrapped in DistributedDataParallel, which averages the gradients while the backward pass goes on. Logits
and taps are gathered, so that every rank computes the loss of the whole batch, with its memory banks, landmarks and
draws, as one process would: more ranks may change the last bits, never what is computed. BatchNorm in training mode
takes the statistics of a rank's own share, unless the network was converted by `synchronised`.
Left out: how the processes find one another and what they tell on the CPU (kdtool.engine.ranks).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kdtool.data.batches import batch_slices
from kdtool.engine.job import Job, stage_recipe
from kdtool.engine.optim import Recipe
from kdtool.engine.ranks import Ranks
from kdtool.errors import UsageError
from kdtool.models.taps import TapReader, parameters_behind
from kdtool.progress import StopRequest
from kdtool.targets import Stage

Read = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]  # images -> logits and taps

FEWEST = 2  # samples of a share: BatchNorm has no statistics of one
APART = 0x9E3779B97F4A7C15  # between the seeds of two ranks


def shares(count: int, size: int) -> list[slice]:
    """Consecutive shares of a batch, one for each rank; the first have one sample more where it does not divide."""
    whole, rest = divmod(count, size)
    starts = [rank * whole + min(rank, rest) for rank in range(size + 1)]
    return [slice(start, stop) for start, stop in pairwise(starts)]


def share(count: int, ranks: Ranks) -> slice:
    """This rank's share of a batch."""
    return shares(count, ranks.size)[ranks.rank]


def check_shares(stages: Sequence[Stage], plan: Recipe, samples: int, ranks: Ranks) -> None:
    """Refuses more ranks than the smallest batch of an epoch can be divided among."""
    for recipe in (stage_recipe(plan, stage) for stage in stages if ranks.size > 1):
        batches = batch_slices(samples, recipe.batch, recipe.drop_last)
        smallest = min(batch.stop - batch.start for batch in batches)
        if smallest < FEWEST * ranks.size:
            what = "the batch" if smallest >= recipe.batch else f"what is left of {samples:,} for the last batch"
            raise UsageError(
                f"{what} is {smallest} samples, and each of {ranks.size} processes needs {FEWEST}; take another "
                "--batch, a recipe with drop_last, or fewer processes (torchrun --nproc-per-node)"
            )


def check_sync_bn(wanted: bool | None, device: torch.device) -> None:
    """Refuses statistics of all ranks where PyTorch has none."""
    if wanted and device.type != "cuda":
        raise UsageError("--sync-bn needs GPUs, as PyTorch's SyncBatchNorm has no form for the CPU; leave it out")


def synchronised(model: nn.Module) -> nn.Module:
    """The network, its BatchNorms with the statistics of the global batch; parameters and buffers keep their names."""
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def reader_of(job: Job, stage: Stage, reader: TapReader) -> Read:
    """What runs the student in a stage: `reader` itself in one process."""
    return reader if job.ranks.size == 1 else _Shared(job, stage, reader)


class _Whole(nn.Module):
    """The student with its taps as outputs: DistributedDataParallel is to know all that a loss may be made of."""

    def __init__(self, student: nn.Module, reader: TapReader) -> None:
        super().__init__()
        self.student, self.reader = student, reader

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.reader(images)


class _Shared:
    """Runs the student on this rank's share of a batch; the gradients of its parameters will be those of the batch.

    Each rank draws its own numbers in the student (dropout), rank 0 those of one process, and all draw the same in
    what follows.
    """

    def __init__(self, job: Job, stage: Stage, reader: TapReader) -> None:
        self.ranks = job.ranks
        whole: nn.Module = _Whole(job.student, reader)
        trained = {name for name, parameter in job.student.named_parameters() if parameter.requires_grad}
        # A loss of the logits reaches all that lies behind them, the terms of another stage what it trains. Where a
        # parameter may have no gradient, DDP must look for it in every step; it then stays without, as in one process.
        of_logits = stage.task or set(job.bound[0].taps) == {"after_fc"}
        ends = ("after_fc",) if of_logits else stage.trains or ()
        reached = parameters_behind(job.student, ends, job.train.images.image_shape) if ends else set()
        if trained:
            whole = DistributedDataParallel(
                whole,
                device_ids=None if job.device.type == "cpu" else [job.device],
                find_unused_parameters=not trained <= reached,
                gradient_as_bucket_view=True,
            )
        self.whole = whole

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        seed = torch.initial_seed()
        torch.manual_seed((seed + self.ranks.rank * APART) % 2**63)
        found: tuple[Tensor, dict[str, Tensor]] = self.whole(images)
        torch.manual_seed((seed + self.ranks.size * APART) % 2**63)
        return found


def gathered(own: Tensor, count: int, ranks: Ranks) -> Tensor:
    """The rows (B, ...) of a batch of `count`, from the shares (b, ...) of all ranks; what is whole is given back."""
    if len(own) == count:
        return own
    whole: Tensor = _Gather.apply(own, shares(count, ranks.size), ranks.rank)
    return whole


class _Gather(torch.autograd.Function):
    """The shares (b, ...) of all ranks as the batch (B, ...), in every rank.

    Backward: the gradient of the own share times the number of ranks. Every rank computes the same loss, of which its
    share is the part that its network is answerable for; DistributedDataParallel divides the sum of these parts.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, parts: Sequence[slice], rank: int) -> Tensor:
        ctx.part, ctx.size = parts[rank], len(parts)
        counts = [part.stop - part.start for part in parts]
        missing = own.new_zeros(counts[0] - len(own), *own.shape[1:])  # all must give as many rows
        found = own.new_empty(len(parts) * counts[0], *own.shape[1:])
        distributed.all_gather_into_tensor(found, torch.cat([own, missing]) if len(missing) else own.contiguous())
        if counts[0] == counts[-1]:
            return found
        return torch.cat([rows[:count] for rows, count in zip(found.chunk(len(parts)), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.part] * ctx.size, None, None


def average_gradients(module: nn.Module, ranks: Ranks) -> None:
    """The mean over the ranks of gradients that each has computed of the whole batch: they never drift apart."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if ranks.size == 1 or not gradients:
        return
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(whole)
    whole /= ranks.size
    parts = torch.split(whole, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def spread_buffers(modules: Iterable[nn.Module], ranks: Ranks) -> None:
    """Gives every rank the buffers of rank 0: statistics of BatchNorm, memory banks, landmarks."""
    for buffer in (buffer for module in modules for buffer in module.buffers() if ranks.size > 1 and buffer.numel()):
        content = buffer.detach().contiguous()
        distributed.broadcast(content.view(-1).view(torch.uint8), 0)  # bytes, which every backend knows
        if content.data_ptr() != buffer.data_ptr():
            buffer.copy_(content)


def decided(ranks: Ranks, stop: StopRequest, due: bool) -> tuple[bool, bool]:
    """(whether a stop was asked for in one of the ranks, whether rank 0 finds a checkpoint due), alike in all ranks."""
    asked = stop.requested()
    if ranks.size == 1:
        return asked, due
    wanted = (stop.signal or signal.SIGTERM) if asked else 0
    number, saving = ranks.highest([int(wanted), int(due and ranks.rank == 0)])
    stop.signal = number or None
    return number > 0, saving > 0
