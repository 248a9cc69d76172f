"""Where networks run: what is computed exactly is so whatever torch was asked for before."""

from collections.abc import Callable

import pytest
import torch

from kdtool.engine.device import exact

BACKENDS = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,
    torch.backends.mkldnn.conv,
    torch.backends.cudnn.conv,
)


def by_the_common_name(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)


def by_backend(precision: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision


def by_convolution(precision: str) -> None:
    torch.backends.mkldnn.conv.fp32_precision = torch.backends.cudnn.conv.fp32_precision = precision


@pytest.mark.parametrize(
    ("ask", "precision"),
    [
        (by_the_common_name, "highest"),
        (by_the_common_name, "high"),
        (by_backend, "tf32"),
        (by_backend, "none"),
        (by_convolution, "tf32"),
        (by_convolution, "ieee"),
    ],
)
def test_nothing_is_rounded_to_tf32_and_what_was_asked_for_is_put_back(
    ask: Callable[[str], None], precision: str
) -> None:
    held = [backend.fp32_precision for backend in BACKENDS]
    try:
        ask(precision)
        before = state()
        with exact():
            assert torch.get_float32_matmul_precision() == "highest"
            assert [backend.fp32_precision for backend in BACKENDS] == ["ieee"] * len(BACKENDS)
            assert torch.backends.cudnn.deterministic
        with pytest.raises(ZeroDivisionError), exact():
            _ = 1 / 0
        assert state() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, precision_before in zip(BACKENDS, held, strict=True):
            backend.fp32_precision = precision_before


def state() -> list[str]:
    """All that torch says of products; where it gives no common answer, that it gives none."""
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:
        common = "none in common"
    cudnn = torch.backends.cudnn
    modes = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    return [common, *(backend.fp32_precision for backend in BACKENDS), *map(str, modes)]
