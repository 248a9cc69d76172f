"""Weights that are kept while a student learns: which epochs, the right bits, the same after an interruption."""

import json

import pytest
import torch

from kdtool import files
from kdtool.engine import checkpoint
from kdtool.engine.keeping import keep, kept
from kdtool.errors import DamageError


def test_what_is_kept_is_listed_and_comes_back(tmp_path):
    models = [torch.nn.Linear(2, 3) for _ in range(3)]
    for epoch, model in enumerate(models):
        keep(tmp_path, "train", epoch, model)
    keep(tmp_path, "train", 1, models[1])
    found = kept(tmp_path)
    assert [(known.stage, known.epoch) for known in found] == [("train", 0), ("train", 1), ("train", 2)]
    for known in found:
        other = torch.nn.Linear(2, 3)
        checkpoint.load_weights(tmp_path / known.file, other, known.sha256)
        assert torch.equal(other.weight, models[known.epoch].weight)


def test_a_run_that_kept_nothing(tmp_path):
    assert kept(tmp_path) == []


@pytest.mark.parametrize("file", ["../student.safetensors", "weights/train-0002.safetensors", "/etc/passwd"])
def test_files_elsewhere_are_refused(tmp_path, file):
    keep(tmp_path, "train", 1, torch.nn.Linear(1, 1))
    path = tmp_path / "weights/index.json"
    record = json.loads(path.read_text())
    record["weights"][0]["file"] = file
    files.write_json(path, record)
    with pytest.raises(DamageError, match="not where kdtool writes it"):
        kept(tmp_path)
