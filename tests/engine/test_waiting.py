"""No step waits for its device: a method whose terms look at a value would stop the host until it is computed.

Fake tensors have shapes and no values, so whoever looks at one is told. Left out: copies between host and device,
which `test_a_step_on_a_gpu_waits_for_nothing` sees where there is one.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from distilling import make_job
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from kdtool.engine.folder import Workspace
from kdtool.engine.optim import Recipe
from kdtool.engine.state import begin
from kdtool.methods import METHODS
from kdtool.methods.protocol import Method
from kdtool.models import tap_shapes
from kdtool.targets import Batch
from kdtool.workflows.bench.jobs import Steps

CPU = torch.device("cpu")


def without_values(module: nn.Module, mode: FakeTensorMode) -> None:
    """Makes all tensors of a module fake ones."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(mode.from_tensor(value.detach()), value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer)


@pytest.mark.parametrize("name", METHODS)
def test_terms_look_at_no_value(
    name: str, whole: Callable[[], Workspace], small: Callable[[str], Method], plan: Recipe
) -> None:
    job = make_job(whole(), (small(name),), replace(plan, epochs=9))
    bound, mode, running = job.bound[0], FakeTensorMode(), None
    positions = np.arange(16)
    for place, stage in enumerate(job.stages):
        running = begin(job, place, running)
        adapters = bound.adapters()
        shapes = tap_shapes(job.student, job.train.images.image_shape)
        assert job.source is not None
        indices = torch.from_numpy(positions)
        real = job.source.read(Batch(indices, indices % 4, 0, stage.name, 8, 100, running.generator))
        answers = {key: dict(arrays) for key, arrays in real.items()}
        without_values(adapters, mode)
        with mode:
            cached = {k: {array: mode.from_tensor(v) for array, v in a.items()} for k, a in answers.items()}
            taps = {tap: torch.randn(16, *shapes[tap], requires_grad=True) for tap in bound.taps}
            there = mode.from_tensor(indices)
            batch = Batch(there, there % 4, 0, stage.name, 8, 100, running.generator)
            terms = bound.method.terms(taps, cached, batch, adapters)
            torch.stack([value for value in terms.values() if value.requires_grad]).sum().backward()
            with torch.no_grad():
                bound.method.after_step(taps, cached, batch, adapters)


def test_a_look_at_a_value_is_found() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        bool(torch.randn(3).sum() > 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_a_gpu_waits_for_nothing(
    name: str, whole: Callable[[], Workspace], small: Callable[[str], Method], plan: Recipe
) -> None:
    steps = Steps(make_job(whole(), (small(name),), replace(plan, epochs=99, batch=16), torch.device("cuda")))
    steps.epoch([np.arange(number, number + 16) for number in range(8)])
    steps.take(4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.take(4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
