"""The stage before the training in which FitNet's two-stage form, AB, FSP and SRM prepare the student's layers.

As RepDistiller runs it (Tian et al. 2020, arXiv 1910.10699): 30 of 240 epochs of SGD at a constant learning rate, on
the loss of the method alone. What that is not computed from, the classifier above all, stays as it is, in eval mode.
Or as SRM's code runs it (Tran et al. 2021, arXiv 2103.17012): Adam in three phases.
"""

from __future__ import annotations

from typing import Any

from kdtool.methods.protocol import need
from kdtool.targets import Facts, Stage, Weight

SHARE = 30 / 240  # of the run's epochs
LEARNING_RATE = 0.05  # RepDistiller takes 0.01 for MobileNetV2 and ShuffleNet students


def check_init(method: str, epochs: int | None, learning_rate: float) -> None:
    """Refuses a stage of no epoch or without a step."""
    need(epochs is None or epochs >= 1, f"option {method}.init_epochs is at least 1, not {epochs}")
    need(learning_rate > 0, f"option {method}.init_learning_rate is above 0, not {learning_rate}")


def adam_phases(batch: int) -> dict[str, Any]:
    """The recipe of SRM's first stage, 1e-3, 1e-4 and 1e-5 with a new optimiser at each; epochs apart."""
    return {
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "schedule": "step",
        "milestones": (30 / 160, 130 / 160),
        "gamma": 0.1,
        "resets": True,
        "warmup": 0.0,
        "batch": batch,
    }


def init_stage(
    name: str, term: str, weight: float, trains: tuple[str, ...], facts: Facts, epochs: int | None, learning_rate: float
) -> Stage:
    """A stage of one term, without the task, after which the adapters are dropped.

    trains: the taps of the student whose layers train. epochs: none takes 30 / 240 of the run's, at least one.
    """
    return Stage(
        name,
        epochs=max(1, round(facts.epochs * SHARE)) if epochs is None else epochs,
        recipe={
            "optimizer": "sgd",
            "learning_rate": learning_rate,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 5e-4,
            "schedule": "constant",
            "warmup": 0.0,
            "resets": False,
        },
        trains=trains,
        weights={term: Weight(weight)},
        task=0.0,
        discard=True,
    )
