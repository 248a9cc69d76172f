"""Descent on a flat state gives the bits of torch's own loop, wherever the state was written and read."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from kdtool.methods.learning import descend, forget_moments

STEPS = 12
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
}


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"matrix": torch.randn(4, 3, generator=generator), "matrix_bias": torch.randn(4, generator=generator)}


def loss(parameters, step: int) -> Tensor:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    return (inputs @ parameters["matrix"].T + parameters["matrix_bias"] - 1).square().mean()


def by_torch(make, resets: int | None) -> tuple[dict[str, Tensor], list[float]]:
    leaves = {name: nn.Parameter(value) for name, value in start().items()}
    optimizer, values = make(list(leaves.values())), []
    for step in range(STEPS):
        if step == resets:
            optimizer = make(list(leaves.values()))
        optimizer.zero_grad()
        value = loss(leaves, step)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return {name: leaf.detach() for name, leaf in leaves.items()}, values


@pytest.mark.parametrize("resets", [None, 5])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_bits_of_torchs_loop(make, resets: int | None) -> None:
    wanted, losses = by_torch(make, resets)
    state, values = {**start(), "other": torch.ones(2)}, []
    with torch.no_grad():  # as in extract
        for step in range(STEPS):
            if step == resets:
                forget_moments(state, ["matrix", "matrix_bias"])
                assert state.keys() == {"matrix", "matrix_bias", "other"}
            values.append(descend(state, ["matrix", "matrix_bias"], make, lambda p, step=step: loss(p, step)).item())
            state = load(save({name: value.contiguous() for name, value in state.items()}))
    assert values == losses
    for name, value in wanted.items():
        assert torch.equal(state[name], value)
    assert torch.equal(state["other"], torch.ones(2))


def test_the_tensors_that_were_given_are_not_written_to() -> None:
    state = start()
    before = {name: (value, value.clone()) for name, value in state.items()}
    for step in range(2):
        descend(state, ["matrix"], OPTIMIZERS["adam"], lambda p, step=step: loss({**state, **p}, step))
    assert all(torch.equal(value, copy) for value, copy in before.values())
    assert not torch.equal(state["matrix"], before["matrix"][1])
    assert torch.equal(state["matrix_bias"], before["matrix_bias"][1])
    assert not state["matrix"].requires_grad
