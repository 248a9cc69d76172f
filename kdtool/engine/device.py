"""Where networks run, and in which precision."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from kdtool.errors import ResourceError, unknown

PRECISIONS = ("auto", "float32", "bfloat16")


def choose_device(name: str) -> torch.device:
    """`auto` takes the first CUDA device where there is one; a device that is not there is refused.

    Each process of a `torchrun` has a CUDA device of its own, as far as there are as many. A device that is named by
    its number becomes torch's current one, on which events are recorded and whose generator layers draw from.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:1")) from None
    if device.type not in ("cpu", "cuda"):
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:1"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices; take another, or --device cpu"
        )
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` takes bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if name != "auto":
        return name
    return "bfloat16" if _native_bfloat16(device) else "float32"


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # The queries are private in torch 2.10 to 2.15; where they are missing, float32 is the safe answer.
    queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, query, bool)() for query in queries)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which networks run forward."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """The order of a network's maps in memory: channels last on CPUs, and on CUDA in bfloat16.

    The fastest for convolutions there: on CPUs a step takes 0.7 to 0.95 of the time (docs/performance.md), and tensor
    cores read their operands so.
    """
    fastest = device.type == "cpu" or precision == "bfloat16"
    return torch.channels_last if fastest else torch.contiguous_format


def placed(model: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """The network on a device, in the memory format of its precision there."""
    return model.to(device=device, memory_format=memory_format(device, precision))  # type: ignore[call-overload, no-any-return]


@contextmanager
def exact() -> Iterator[None]:
    """The context in which targets and features are computed: no TF32 or bfloat16 in convolutions or products of
    float32, whatever a program or the environment has asked torch for, and algorithms that give the same bits.
    """
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, mkldnn.matmul, mkldnn.conv, cudnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    modes = {"enabled": True, "benchmark": False, "deterministic": True}
    held = {name: getattr(cudnn, name) for name in modes}
    try:
        asked = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was asked for by backend, and torch gives no common answer
        asked = "highest"
    torch.set_float32_matmul_precision("highest")
    for backend in backends:
        backend.fp32_precision = "ieee"
    for name, mode in modes.items():
        setattr(cudnn, name, mode)
    try:
        yield
    finally:
        for name, mode in held.items():
            setattr(cudnn, name, mode)
        torch.set_float32_matmul_precision(asked)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def synchronize(device: torch.device) -> None:
    """Waits for the device, so that clocks mean something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
