"""Where networks run: what is computed exactly is so whatever torch was asked for before."""

from collections.abc import Callable

import pytest
import torch

from kdtool.engine.device import exact


def by_the_common_name(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)


def by_backend(precision: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision


@pytest.mark.parametrize(
    ("ask", "precision"),
    [(by_the_common_name, "highest"), (by_the_common_name, "high"), (by_backend, "tf32"), (by_backend, "none")],
)
def test_nothing_is_rounded_to_tf32_and_what_was_asked_for_is_put_back(
    ask: Callable[[str], None], precision: str
) -> None:
    held = [backend.fp32_precision for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)]
    try:
        ask(precision)
        before = state()
        with exact():
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert not torch.backends.cudnn.allow_tf32
        with pytest.raises(ZeroDivisionError), exact():
            _ = 1 / 0
        assert state() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = held


def state() -> list[str]:
    """All that torch says of products; where it gives no common answer, that it gives none."""
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:
        common = "none in common"
    return [common, torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]
