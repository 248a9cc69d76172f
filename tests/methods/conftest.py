"""The made-up method of probe_method.py, the golden values, and what tests of methods build batches and facts from."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from kdtool.targets import Batch, Facts


@pytest.fixture(scope="session")
def probe() -> ModuleType:
    """The module probe_method, which is no test and lies in no package."""
    name = "kdtool_probe_method"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("probe_method.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, Any]:
    """What the reference implementations give on closed-form inputs."""
    return json.loads((shared / "golden" / "golden_values.json").read_text())


@pytest.fixture(scope="session")
def closed_form():
    """x(shape, phase, scale): scale * (sin(0.37 k + phase) + 0.5 cos(0.11 k + 2 phase)), k = 0, 1, .. in C order."""

    def x(shape: tuple[int, ...], phase: float, scale: float = 1.0) -> torch.Tensor:
        k = np.arange(np.prod(shape), dtype=np.float64)
        return torch.from_numpy(scale * (np.sin(0.37 * k + phase) + 0.5 * np.cos(0.11 * k + 2 * phase))).reshape(shape)

    return x


@pytest.fixture(scope="session")
def make_facts():
    def facts(labels, classes: int, batch: int = 8, epochs: int = 12, seed: int = 0) -> Facts:
        labels = np.asarray(labels, dtype=np.int64)
        return Facts(len(labels), classes, labels, batch, epochs, seed)

    return facts


@pytest.fixture(scope="session")
def make_batch():
    def batch(indices, labels=None, stage: str = "distill", epoch: int = 0, seed: int = 0) -> Batch:
        indices = torch.as_tensor(indices)
        found = torch.zeros_like(indices) if labels is None else torch.as_tensor(labels)[indices]
        return Batch(indices, found, 0, stage, epoch, 0, torch.Generator().manual_seed(seed))

    return batch
