"""Losses in float32 or better, whatever they are given: shorter numbers overflow in squares and vanish in ratios."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def at_least_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function see float16 and bfloat16 tensors, also those in lists and tuples, as float32."""

    @functools.wraps(function)
    def widened(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})

    return widened


def wide(value: Any) -> Any:
    """A tensor of float16 or bfloat16, or a list or tuple of them, as float32; everything else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(wide(item) for item in value)
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
