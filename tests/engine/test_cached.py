"""Reading ahead changes nothing: whatever was expected, a batch gets the rows that the cache holds for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdtool.cache import open_cache
from kdtool.engine.cached import CachedTeacher
from kdtool.engine.folder import Workspace
from kdtool.errors import DamageError
from kdtool.methods import method
from kdtool.targets import CLEAN, Batch

CPU = torch.device("cpu")
KEYS = ("logits", "before_fc")
SAMPLES = 80

Pair = tuple[torch.Tensor, np.ndarray]  # type: ignore[type-arg]


@pytest.fixture
def workspace(work: Callable[[], Workspace]) -> Workspace:
    return work()


def source(workspace: Workspace, resident: int = 2**31) -> CachedTeacher:
    cache = open_cache(workspace.cache)
    both = method("kda").with_options({"layers": "before_fc,after_fc"})
    return CachedTeacher(cache, both.targets(cache.layout.tap_shapes, cache.layout.tap_shapes), CPU, "train", resident)


def batches(random: np.random.Generator, size: int) -> list[Pair]:
    order = random.permutation(SAMPLES)
    parts = [order[start : start + size] for start in range(0, SAMPLES, size)]
    return [(torch.from_numpy(part), part) for part in parts]


def batch_of(indices: torch.Tensor, view: int) -> Batch:
    return Batch(indices, indices % 4, view, "distill", 0, 0, torch.Generator())


@pytest.mark.parametrize("resident", [2**31, 0, 300])  # 300: more than a view of one key, less than of both
@pytest.mark.parametrize("told", ["all", "nothing", "others", "the first", "another view"])
def test_rows_are_those_of_the_cache(workspace: Workspace, resident: int, told: str) -> None:
    cache, random = open_cache(workspace.cache), np.random.default_rng(0)
    found = source(workspace, resident * SAMPLES * 4)
    views = [0, 1, 1, 2, 0]
    for view, following in zip(views, [*views[1:], 2], strict=True):
        todo = batches(random, 17)
        if told != "nothing":
            right = {"others": 0, "the first": 1}.get(told, len(todo))  # of the batches that are then read
            found.expect([*todo[:right], *batches(random, 17)[right:]], 2 if told == "another view" else following)
        for number, (indices, positions) in enumerate(todo):
            rows = found.read(batch_of(indices, view))
            for key in KEYS if number % 3 else KEYS[:1]:  # a term may rest for some time
                wanted = cache.array("train", key, "values").rows(view, positions)
                assert torch.equal(rows[key]["values"], torch.from_numpy(wanted))


def test_what_is_expected_is_there_when_it_is_asked_for(workspace: Workspace) -> None:
    found, random = source(workspace), np.random.default_rng(0)
    todo = batches(random, 16)
    found.expect(todo, 2)
    for indices, _ in todo:
        rows = found.read(batch_of(indices, 0))
        assert rows["logits"]["values"].shape[0] == len(indices)
    found.read(batch_of(todo[0][0], 2))
    assert set(found.held) == {("logits", "values")}, "the slice of the next view was read ahead, of what was asked for"


def test_what_an_epoch_asks_for_no_more_is_let_go_of(workspace: Workspace) -> None:
    """A stage that uses other targets, or none, neither holds nor reads those of the stage before."""
    found, random = source(workspace), np.random.default_rng(0)
    for number, asked in enumerate([KEYS, KEYS, KEYS[:1], KEYS[:1], (), ()]):
        todo = batches(random, 16)
        found.expect(todo, (number + 1) % 3)
        for indices, _ in todo if asked else ():
            rows = found.read(batch_of(indices, number % 3))
            for key in asked:
                assert len(rows[key]["values"]) == len(indices)
        ahead = found._slices[1].result() if found._slices else {}
        if number % 2:  # what was read ahead for the first epoch is let go of with the second
            assert {key for key, _ in found.held} == set(asked)
        if asked or number % 2:
            assert {key for key, _ in ahead} == set(asked)


def test_images_as_they_are_have_the_targets_of_parts_other_than_train(workspace: Workspace) -> None:
    cache = open_cache(workspace.cache)
    targets = method("kd").targets(cache.layout.tap_shapes, cache.layout.tap_shapes)
    rows = CachedTeacher(cache, targets, CPU, "validation").read(batch_of(torch.arange(16), CLEAN))
    wanted = cache.array("validation", "logits", "values").read(0)
    assert torch.equal(rows["logits"]["values"], torch.from_numpy(wanted).float())


def test_rows_that_were_read_ahead_stay_as_they_are(workspace: Workspace) -> None:
    found, random = source(workspace), np.random.default_rng(0)
    todo = batches(random, 16)
    found.expect(todo, 1)
    kept = [found.read(batch_of(indices, 0))["logits"]["values"] for indices, _ in todo]
    wanted = open_cache(workspace.cache).array("train", "logits", "values")
    for rows, (_, positions) in zip(kept, todo, strict=True):
        assert torch.equal(rows, torch.from_numpy(wanted.rows(0, positions)))


def chunk(workspace: Workspace, view: int) -> Path:
    (name,) = workspace.cache.glob(f"train/logits/values/c/{view}/0/*")
    return name


@pytest.mark.parametrize("resident", [2**31, 0])
def test_damage_that_a_thread_meets_is_told_of(workspace: Workspace, resident: int) -> None:
    path = chunk(workspace, 1)
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    found, todo = source(workspace, resident), batches(np.random.default_rng(0), 16)
    found.expect(todo, 1)
    for indices, _ in todo:
        assert len(found.read(batch_of(indices, 0))["logits"]["values"])
    with pytest.raises(DamageError, match="is damaged or another chunk"):
        found.read(batch_of(todo[0][0], 1))["logits"]
