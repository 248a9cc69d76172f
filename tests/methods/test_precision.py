"""Half-precision inputs: every loss computes in float32, as if it had been given the same values in float32."""

import importlib
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ROWS = (draw(6, 8), draw(6, 8, seed=1))
MAPS = (draw(4, 8, 5, 3), draw(4, 8, 5, 3, seed=1))
ZERO = (torch.zeros(4, 8, 5, 3), MAPS[1])
SHARES = (torch.softmax(draw(3, 6, 2, 2), 1), torch.tensor([[[0, 1], [2, 3]]] * 3))

# module, function, arguments that are tensors or lists of them, arguments behind them
CASES: list[tuple[str, str, Sequence[object], Sequence[object]]] = [
    ("kd", "kd_loss", ROWS, ()),
    ("kd", "kd_loss", (ROWS[0] * 1e4, ROWS[1] * 1e4), ()),
    ("logits", "logit_loss", ROWS, ()),
    ("kda", "kda_loss", (ROWS[0] * 10, ROWS[1] * 10, ROWS[0], ROWS[1]), ()),
    ("icd", "icd_loss", ROWS, (1.0, 0.0)),
    ("icd", "icd_loss", (torch.zeros(6, 8), ROWS[1]), (1.0, 0.0)),
    *[(name, "", MAPS, ()) for name in ("at", "nst", "sp", "ft", "fitnet")],
    *[(name, "", ZERO, ()) for name in ("at", "nst", "sp", "ft")],
    *[(name, f"{name}_loss", ROWS, ()) for name in ("cc", "rkd", "pkt")],
    ("rkd", "rkd_loss", (ROWS[0][:1], ROWS[1][:1]), ()),
    ("ab", "ab_loss", ([MAPS[0]], [MAPS[1]]), ()),
    ("fsp", "fsp_loss", ([MAPS[0], MAPS[0]], [MAPS[1], MAPS[1]]), ()),
    ("vid", "vid_loss", (*MAPS, draw(8)), ()),
    ("crd", "contrast_loss", (draw(6, 9).exp(), 1000), ()),
    ("srm", "pixel_loss", SHARES, ()),
    ("srm", "image_loss", (SHARES[0], torch.full((3, 6), 0.25)), ()),
    ("srm", "similarity", (MAPS[0], draw(8, 12), 0.5), ()),
    ("srm", "sparse_code", (MAPS[0], draw(8, 12), 0.5, 3), ()),
    ("srm", "reconstruct", (draw(2, 12, 3, 3), draw(8, 12)), ()),
]
NAMES = {"at": "attention_loss", "nst": "nst_loss", "sp": "sp_loss", "ft": "factor_loss", "fitnet": "hint_loss"}


def turned(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, list):
        return [turned(item, dtype) for item in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize(("module", "name", "tensors", "others"), CASES)
def test_half_precision_is_widened_before_anything_else(
    module: str, name: str, tensors: Sequence[object], others: Sequence[object], half: torch.dtype
) -> None:
    function: Callable[..., Tensor] = getattr(
        importlib.import_module(f"kdtool.methods.{module}"), name or NAMES[module]
    )
    short = [turned(value, half) for value in tensors]
    long = [turned(value, torch.float32) for value in short]
    found, gradient = value_and_gradient(function, short, others)
    wanted, exact = value_and_gradient(function, long, others)
    assert found.dtype == wanted.dtype == torch.float32
    assert bool(torch.isfinite(wanted).all())
    assert torch.equal(found, wanted)
    assert bool(torch.isfinite(exact).all())
    assert torch.equal(gradient, exact.to(half))


def value_and_gradient(
    function: Callable[..., Tensor], tensors: list[object], others: Sequence[object]
) -> tuple[Tensor, Tensor]:
    """The value, and the gradient with respect to the first tensor."""
    first = tensors[0][0] if isinstance(tensors[0], list) else tensors[0]
    assert isinstance(first, Tensor)
    first.requires_grad_()
    value = function(*tensors, *others)
    value.sum().backward()
    assert first.grad is not None
    return value.detach(), first.grad
