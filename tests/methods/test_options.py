"""Options reach the loss: another value gives other terms, and a weight is the weight of its term."""

from dataclasses import replace

import pytest

from kdtool.methods import METHODS, method
from kdtool.workflows.trial import FACTS, PAIRS, trial


def life(name: str, options: dict[str, str]) -> list[float]:
    """The terms of every stage after an epoch of it."""
    of = trial(method(name).with_options(options))
    return [term.item() for stage in of.stages for term in of.answer(stage, of.lived(stage), double=True)[0].values()]


@pytest.mark.parametrize(
    ("name", "base", "option", "value"),
    [
        ("kd", {}, "temperature", "2"),
        ("icd", {}, "alpha", "2"),
        ("icd", {}, "max_scale", "1.5"),
        ("srm", {"passes": "2"}, "temperature", "2"),
        ("crd", {"negatives": "5"}, "temperature", "0.5"),
        ("crd", {"negatives": "5"}, "momentum", "0.9"),
        ("rkd", {}, "distance_weight", "3"),
        ("rkd", {}, "angle_weight", "3"),
    ],
)
def test_an_option_changes_the_terms(name: str, base: dict[str, str], option: str, value: str) -> None:
    assert life(name, base) == life(name, base)
    assert life(name, {**base, option: value}) != life(name, base)


WEIGHED = [name for name, kind in METHODS.items() if "weight" in kind.options()]


@pytest.mark.parametrize("name", WEIGHED)
def test_a_weight_is_that_of_its_terms(name: str) -> None:
    def weights(value: float) -> dict[str, float]:
        stages = replace(METHODS[name](), weight=value).stages(PAIRS[0].student, PAIRS[0].teacher, FACTS)
        return {
            f"{stage.name} {term}": weight.value for stage in stages for term, weight in (stage.weights or {}).items()
        }

    once, twice = weights(1.0), weights(2.0)
    assert once
    assert twice == pytest.approx({term: 2 * weight for term, weight in once.items()})


def test_most_methods_have_a_weight() -> None:
    assert {"kd", "kda", "icd", "fitnet", "at", "crd"} <= set(WEIGHED)
