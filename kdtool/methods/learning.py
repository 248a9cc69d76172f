"""Gradient descent inside a `Fit`: torch's optimisers on a state that is a flat dictionary of tensors.

The moments lie in the state beside the parameters, as `<parameter>.<moment>`, so that a fit can be saved after any
step and goes on bit for bit. Left out: learning-rate schedules, which are the fit's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from kdtool.targets import State

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def descend(
    state: State,
    names: Sequence[str],
    make_optimizer: MakeOptimizer,
    loss: Callable[[Mapping[str, Tensor]], Tensor],
) -> Tensor:
    """One optimiser step on the tensors `names` of the state, which is changed; gives the loss before the step.

    make_optimizer: builds the optimiser of a list of parameters; its moments are taken from the state where there are
    any and begin at zero otherwise. loss: parameter name -> tensor to a scalar. Works where gradients are switched off.
    """
    with torch.enable_grad():
        leaves = {name: nn.Parameter(state[name].detach().clone()) for name in names}
        optimizer = make_optimizer(list(leaves.values()))
        for name, leaf in leaves.items():
            kept = {key.removeprefix(f"{name}."): value.clone() for key, value in _moments(state, name).items()}
            if kept:
                optimizer.state[leaf] = kept
        value = loss(leaves)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, leaf in leaves.items():
        state[name] = leaf.detach()
        for moment, kept_value in optimizer.state[leaf].items():
            if isinstance(kept_value, Tensor):
                state[f"{name}.{moment}"] = kept_value
    return value.detach()


def forget_moments(state: State, names: Sequence[str]) -> None:
    """Drops the moments of the tensors `names`, as a new optimiser would."""
    for name in names:
        for key in _moments(state, name):
            del state[key]


def _moments(state: State, name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.startswith(f"{name}.")}
