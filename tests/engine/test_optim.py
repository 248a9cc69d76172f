"""The recipes' constants and their learning rates, against the references' own (methods.md 1.3, 2.2, 3.3 and 5)."""

import math

import pytest

from kdtool.engine.job import stage_recipe
from kdtool.engine.optim import RECIPES, Recipe, learning_rate, milestone_epochs, recipe
from kdtool.methods.initialisation import adam_phases
from kdtool.targets import Stage


@pytest.mark.parametrize(
    ("name", "constants", "drops", "resets", "drop_last"),
    [
        ("kda", (120, 256, "sgd", 0.1, 5e-4, "cosine"), [], False, False),
        ("crd", (240, 64, "sgd", 0.05, 5e-4, "step"), [150, 180, 210], False, False),
        ("icd", (240, 64, "sgd", 0.05, 5e-4, "step"), [150, 180, 210], False, True),
        ("srm", (200, 128, "adam", 1e-3, 1e-4, "step"), [30, 130], True, False),
    ],
)
def test_the_constants_of_the_papers(
    name: str, constants: tuple[object, ...], drops: list[int], resets: bool, drop_last: bool
) -> None:
    of = recipe(name)
    assert (of.epochs, of.batch, of.optimizer, of.learning_rate, of.weight_decay, of.schedule) == constants
    assert (milestone_epochs(of), of.resets, of.drop_last, of.gamma) == (drops, resets, drop_last, 0.1)
    assert (of.momentum, of.nesterov) == (0.9, False)


def test_these_are_all_recipes() -> None:
    assert set(RECIPES) == {"kda", "crd", "icd", "srm", "probe-icd", "probe-crd", "probe-srm"}


@pytest.mark.parametrize("step", [0, 1, 7, 979, 980, 981, 5000, 23_518, 23_519])
def test_a_linear_warm_up_and_then_a_cosine_to_zero(step: int) -> None:
    warm, total = 5 * 196, 120 * 196
    cosine = 0.05 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
    wanted = 0.1 * max(1, step) / warm if step < warm else cosine
    assert learning_rate(recipe("kda"), step, 196) == pytest.approx(wanted, rel=1e-12)


def test_drops_come_at_the_start_of_their_epochs() -> None:
    rates = [learning_rate(recipe("crd"), epoch * 782, 782) for epoch in range(240)]
    wanted = [0.05 * 0.1 ** sum(epoch >= drop for drop in (150, 180, 210)) for epoch in range(240)]
    assert rates == pytest.approx(wanted, rel=1e-12)
    assert learning_rate(recipe("crd"), 150 * 782 - 1, 782) == 0.05


def test_a_constant_rate() -> None:
    plan = Recipe(epochs=3, schedule="constant", warmup=0.0, milestones=(0.5,))
    assert {learning_rate(plan, step, 10) for step in range(30)} == {0.1}


def test_srms_first_stage_has_three_phases_of_adam() -> None:
    plan = stage_recipe(recipe("kda"), Stage("pretrain", epochs=160, recipe=adam_phases(384)))
    rates = [learning_rate(plan, epoch, 1) for epoch in (0, 29, 30, 129, 130, 159)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rel=1e-12)
    assert (plan.optimizer, plan.weight_decay, plan.resets, plan.batch) == ("adam", 1e-4, True, 384)
