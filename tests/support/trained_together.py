"""Trainings by several processes, or by one: what each of them ends with, as .npz files."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from made_up import PLAN, made_up
from torch import distributed, nn

from kdtool import data
from kdtool.engine import cached
from kdtool.engine import distill as distillation
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.folder import Workspace
from kdtool.engine.ranks import own_rank
from kdtool.engine.sources import widened
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.train import train
from kdtool.methods import METHODS, method
from kdtool.methods.at import AT
from kdtool.methods.protocol import Method
from kdtool.models import MODELS
from kdtool.progress import Silent, StopRequest
from kdtool.targets import Stage

SMALL = {"srm": {"passes": "2"}, "ft": {"passes": "2"}, "crd": {"negatives": "20"}}
BATCH = replace(PLAN, epochs=2, batch=17, learning_rate=0.01)  # 17, 17, 17, 17 and 12 of 80: shares of 9 and 8, and 6


def without_batchnorm(classes: int) -> nn.Module:
    """resnet8 whose normalisation looks at each image alone, so that its result does not depend on the shares.

    In the default dtype, whatever that of the images is.
    """
    network = MODELS["resnet8"](classes)
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            owner, _, name = path.rpartition(".")
            setattr(network.get_submodule(owner), name, nn.GroupNorm(4, module.num_features))
    network.register_forward_pre_hook(lambda _, images: images[0].to(torch.get_default_dtype()))
    return network


@contextmanager
def registered() -> Iterator[None]:
    """A block in which the data set and the network are found by name."""
    data.DATASETS["made_up"] = made_up
    MODELS["groupnorm8"] = without_batchnorm
    try:
        yield
    finally:
        del MODELS["groupnorm8"]


@contextmanager
def exactly() -> Iterator[None]:
    """A block that computes in float64: in float32 last bits grow within an epoch, by ReLUs, however work is shared."""
    cached.widened = lambda rows: rows.double() if rows.is_floating_point() else rows
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        cached.widened = widened
        torch.set_default_dtype(torch.float32)


@dataclass(frozen=True)
class MapsAlone(AT):
    """Attention maps without the task, so that the classifier has no gradient and is not to move."""

    def stages(self, *given: object) -> tuple[Stage, ...]:
        return (Stage(task=0.0),)


def cases() -> dict[str, tuple[Method, ...]]:
    """Every method, with KD where that can be, and stages whose losses reach only a part of the network."""
    small = {name: method(name).with_options(SMALL.get(name, {})) for name in METHODS}
    return {
        **{name: (item, method("kd")) if item.combines else (item,) for name, item in small.items()},
        "hint": (method("fitnet").with_options({"two_stage": "true"}),),
        "logits-alone": (method("logits").with_options({"task": "0"}),),
        "maps-alone": (MapsAlone(),),
    }


def distilled(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Losses of all epochs, weights and the state of the adapters after a case."""
    ended: dict[str, np.ndarray] = {}

    def watched(job, *given):
        running = train(job, *given)
        for owner, module in (("student", job.student), ("adapters", running.adapters)):
            ended.update({f"{owner}.{key}": value.numpy().copy() for key, value in module.state_dict().items()})
        for row in running.rows:
            place = f"{row['stage']}.{row['epoch']}"
            ended.update({f"loss.{place}.{key}": np.float64(value) for key, value in row["terms"].items()})
            ended[f"accuracy.{place}"] = np.array([row[f"{part}_accuracy"] for part in ("train", "test", "validation")])
        return running

    config = DistillConfig("groupnorm8", cases()[name], BATCH, name=name, precision="float32", seed=3)
    distillation.train = watched
    try:
        with exactly():
            result = distill(Workspace.open(folder), config, Silent(), StopRequest())
    finally:
        distillation.train = train
    return ended | {"accuracy": np.float64(result["test_accuracy"]["last"])}


def taught(folder: Path) -> None:
    """A teacher in a folder of its own."""
    config = TeachConfig("made_up", "groupnorm8", BATCH, student="resnet8", views=2, precision="float32", validation=16)
    with exactly():
        teach(Workspace(folder), config, Silent(), StopRequest())


def everything(folder: Path) -> None:
    """What this process ends with after every method, and the teacher."""
    with registered():
        for name in cases():
            np.savez(folder / f"{name}.{own_rank()}.npz", **distilled(folder, name))
        taught(folder / "taught")


@contextmanager
def ranks_started(size: int, *words: object) -> Iterator[list[subprocess.Popen[str]]]:
    """`python <words>` in so many processes that find one another as under torchrun; none is left at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    command, pipe = [sys.executable, *map(str, words)], subprocess.PIPE
    environments = [{**os.environ, **known, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    processes = [subprocess.Popen(command, env=one, stdout=pipe, stderr=pipe, text=True) for one in environments]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ranks_ended(size: int, *words: object) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each of them."""
    with ranks_started(size, *words) as processes:
        said = [process.communicate(timeout=900) for process in processes]
        return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


if __name__ == "__main__":
    distributed.init_process_group("gloo")  # once for all trainings
    everything(Path(sys.argv[1]))
    distributed.destroy_process_group()
