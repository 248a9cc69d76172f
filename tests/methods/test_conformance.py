"""Every method of the table passes the checks that ship with kdtool, and each check refuses what it is there for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from kdtool.methods import METHODS, method
from kdtool.methods.kd import KD, kd_loss
from kdtool.methods.kda import KDA, kda_loss
from kdtool.methods.protocol import Method, need
from kdtool.methods.vectors import VALUES, ClassCentres, Pooled
from kdtool.targets import Stage, Target, Weight
from kdtool.workflows.testing import check_compact, check_fit, check_keys, check_method
from kdtool.workflows.trial import PAIRS

# Methods whose loss depends on the order of the batch, or draws for each sample.
ORDERED = {"cc", "crd"}

KDA_OPTIONS = [
    {"landmarks": "kmeans"},
    {"landmarks": "kmeans", "centres": "3", "teacher_landmarks": "fixed"},
    {"landmarks": "random"},
    {"landmarks": "random", "count": "7"},
    {"teacher_landmarks": "fixed"},
    {"whiten": "true"},
    {"whiten": "true", "rank": "2", "landmarks": "kmeans"},
    {"layers": "after_fc"},
    {"layers": "before_fc,after_fc"},
    {"layers": "conv3_x,conv4_x"},
    {"layers": "stage1,stage2.preact,stage3,before_fc,after_fc", "whiten": "true", "teacher_landmarks": "fixed"},
    {"start": "3", "weight": "1"},
]
CHOSEN = [
    *(method(name) for name in METHODS),
    *(method("kda").with_options(options) for options in KDA_OPTIONS),
    method("kd").with_options({"temperature": "1.5", "task": "0"}),
]


def options_of(item: Method) -> str:
    changed = [f"{name}={value}" for name, value in vars(item).items() if value != item.options()[name]]
    return " ".join([item.name, *changed])


@pytest.mark.parametrize("item", CHOSEN, ids=options_of)
def test_a_method_conforms(item: Method) -> None:
    check_method(item, permutable=item.name not in ORDERED)


def test_equal_keys_mean_equal_definitions_across_all_methods(probe) -> None:
    check_keys([*CHOSEN, probe.Probe(), probe.Probe(atoms=4)])


def test_the_made_up_method_conforms(probe) -> None:
    check_method(probe.Probe(), permutable=False)
    check_method(probe.Probe(atoms=3, negatives=9, width=2), permutable=False)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_stored_vectors_give_the_loss_of_whole_maps(pair) -> None:
    """KDA with landmarks that are still zero has no value to compare, so its loss is taken on fixed ones."""

    @dataclass(frozen=True)
    class OnOnes(KDA):
        def terms(self, student, cached, batch, adapters):
            rows, wanted = student["stage2"].flatten(2).mean(2), cached["stage2.pooled"][VALUES]
            ones = [torch.ones(2, side.shape[1], dtype=torch.float64) for side in (rows, wanted)]
            return {"kda_stage2": kda_loss(rows, wanted, *ones)}

    def full(student, teacher):
        return {"kda_stage2": whole_map_loss(student["stage2"].numpy(), teacher["stage2"].numpy())}

    check_compact(OnOnes(layers=("stage2",)), full, pair)
    check_compact(KD(), lambda student, teacher: {"kd": kd_loss(student["after_fc"], teacher["after_fc"])}, pair)
    with pytest.raises(AssertionError, match="differs by"):
        check_compact(KD(), lambda student, teacher: {"kd": kd_loss(student["after_fc"], teacher["after_fc"], 3)}, pair)
    with pytest.raises(AssertionError, match="no term of kd"):
        check_compact(KD(), lambda student, teacher: {"other": kd_loss(student["after_fc"], teacher["after_fc"])}, pair)


def whole_map_loss(student: np.ndarray, teacher: np.ndarray) -> torch.Tensor:
    ours, theirs = ((side.sum((2, 3)) / side[0, 0].size).sum(1) for side in (student, teacher))
    apart = np.abs(ours - theirs)
    total = 2 * np.where(apart < 1, 0.5 * apart**2, apart - 0.5).sum()
    return torch.tensor(total / np.sqrt(2 * (theirs**2).sum()))


# Methods with one fault each


class Counter(nn.Module):
    """A parameter, a buffer, and a number that no state holds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()) + 0.5)
        self.register_buffer("steps", torch.zeros(()))
        self.hidden = 0


@dataclass(frozen=True)
class Sound(KD):
    """Without a fault; the faulty ones below change one thing of it."""

    name: ClassVar[str] = "sound"
    added: ClassVar[dict[str, str] | None] = None

    def adapters(self, student, teacher, facts, fitted):
        return Counter()

    def terms(self, student, cached, batch, adapters):
        return {"kd": adapters.scale * (1 + adapters.steps) * kd_loss(student["after_fc"], self.wanted(cached))}

    def wanted(self, cached):
        return cached["logits"][VALUES]

    def after_step(self, student, cached, batch, adapters):
        adapters.steps += 1


@dataclass(frozen=True)
class GlobalRandom(Sound):
    def terms(self, student, cached, batch, adapters):
        return {"kd": super().terms(student, cached, batch, adapters)["kd"] * (1 + torch.rand(()))}


@dataclass(frozen=True)
class HiddenState(Sound):
    def terms(self, student, cached, batch, adapters):
        return {"kd": super().terms(student, cached, batch, adapters)["kd"] * (1 + adapters.hidden)}

    def after_step(self, student, cached, batch, adapters):
        adapters.hidden += 1


@dataclass(frozen=True)
class CutGradient(Sound):
    def terms(self, student, cached, batch, adapters):
        return {"kd": adapters.scale * kd_loss(student["after_fc"].detach(), self.wanted(cached))}


@dataclass(frozen=True)
class PartlyCutGradient(Sound):
    def terms(self, student, cached, batch, adapters):
        logits = student["after_fc"]
        return {"kd": adapters.scale * kd_loss(logits, self.wanted(cached)) * (1 + logits.detach().square().mean())}


@dataclass(frozen=True)
class DeadParameter(Sound):
    def terms(self, student, cached, batch, adapters):
        return {"kd": kd_loss(student["after_fc"], self.wanted(cached))}


@dataclass(frozen=True)
class WronglyInert(Sound):
    inert = ("scale",)


@dataclass(frozen=True)
class InertWithoutParameter(Sound):
    inert = ("bias",)


@dataclass(frozen=True)
class OverflowingExponential(Sound):
    def terms(self, student, cached, batch, adapters):
        weight = adapters.scale * student["after_fc"].exp() / student["after_fc"].exp().sum()
        return {"kd": (weight * self.wanted(cached)).sum()}


@dataclass(frozen=True)
class RootOfDistance(Sound):
    def terms(self, student, cached, batch, adapters):
        logits = student["after_fc"]
        difference = logits[:, None] - logits[None]
        return {"kd": adapters.scale * difference.square().sum(2).sqrt().mean() + logits.square().mean()}


@dataclass(frozen=True)
class Ordered(Sound):
    def terms(self, student, cached, batch, adapters):
        logits = adapters.scale * student["after_fc"]
        return {"kd": (logits[1:] * logits[:-1]).sum()}


@dataclass(frozen=True)
class OneAfterAnother(Sound):
    def terms(self, student, cached, batch, adapters):
        return {"kd": adapters.scale * (student["after_fc"] - self.wanted(cached)).square().mean(1)}


@dataclass(frozen=True)
class ReservedName(Sound):
    def stages(self, student, teacher, facts):
        return (Stage(),)

    def terms(self, student, cached, batch, adapters):
        return {"loss": super().terms(student, cached, batch, adapters)["kd"]}


@dataclass(frozen=True)
class MissingTerm(Sound):
    def stages(self, student, teacher, facts):
        return (Stage(weights={"kd": Weight(1.0), "dk": Weight(1.0)}),)


@dataclass(frozen=True)
class AddedWithoutWeights(Sound):
    added: ClassVar[dict[str, str] | None] = {"weight": "1"}

    def stages(self, student, teacher, facts):
        return (Stage(),)


@dataclass(frozen=True)
class TwoStagesOfOneName(Sound):
    def stages(self, student, teacher, facts):
        return (Stage(), Stage())


@dataclass(frozen=True)
class NothingToDo(Sound):
    def stages(self, student, teacher, facts):
        return (Stage("idle", weights={}, task=0.0), Stage())


@dataclass(frozen=True)
class UnknownSelection(Sound):
    def stages(self, student, teacher, facts):
        return (Stage(select="best"),)


@dataclass(frozen=True)
class ChangesItsInput(Sound):
    def after_step(self, student, cached, batch, adapters):
        student["after_fc"].mul_(2)


@dataclass(frozen=True)
class Single(Sound):
    """Gives float32 whatever it is given."""

    def terms(self, student, cached, batch, adapters):
        return {"kd": super().terms(student, cached, batch, adapters)["kd"].float()}


@dataclass(frozen=True)
class BatchStatistics:
    tap: str

    def __call__(self, taps, fitted):
        return {VALUES: taps[self.tap] - taps[self.tap].mean(0)}


@dataclass(frozen=True)
class EncodesTheBatch(Sound):
    def targets(self, student, teacher):
        return (Target("logits", ("after_fc",), BatchStatistics("after_fc")),)


@dataclass(frozen=True)
class NoName(Sound):
    def targets(self, student, teacher):
        return (Target("Logits of T", ("after_fc",), Pooled("after_fc")),)

    def wanted(self, cached):
        return cached["Logits of T"][VALUES]


@dataclass(frozen=True)
class RefusesAll(Sound):
    def targets(self, student, teacher):
        need(False, "never")
        return ()


@dataclass(frozen=True)
class NoText(Sound):
    places: tuple[tuple[int, int], ...] = ((1, 2),)


FAULTS: list[tuple[Callable[[], Method], str]] = [
    (GlobalRandom, "two equal batches differ"),
    (HiddenState, "with and without a resume"),
    (CutGradient, "no gradient reaches student.after_fc"),
    (PartlyCutGradient, "differences give"),
    (DeadParameter, "no gradient reaches adapters.scale"),
    (WronglyInert, "declared inert"),
    (InertWithoutParameter, "inert that it has not"),
    (OverflowingExponential, "for extreme inputs"),
    (RootOfDistance, "is not finite for ordinary inputs"),
    (Ordered, "another order"),
    (OneAfterAnother, "must be a scalar"),
    (ReservedName, "the metrics use it"),
    (MissingTerm, "weights for .'dk'."),
    (AddedWithoutWeights, "does not name the weights"),
    (TwoStagesOfOneName, "two stages have one name"),
    (NothingToDo, "neither task nor terms"),
    (UnknownSelection, "selects 'best'"),
    (ChangesItsInput, "writes into the tap after_fc"),
    (Single, "of float64 taps is torch.float32"),
    (EncodesTheBatch, "depends on the others in its batch"),
    (RefusesAll, "refuses every pair"),
]


def test_the_method_that_the_faulty_ones_change_is_sound() -> None:
    check_method(Sound())


@pytest.mark.parametrize(("faulty", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_found(faulty: Callable[[], Method], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(faulty())


def test_a_key_that_cannot_be_stored_is_found() -> None:
    with pytest.raises(ValueError, match="no name for a key"):
        check_method(NoName())


def test_options_that_have_no_text_are_found() -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_method(NoText())


def test_two_meanings_of_one_key_are_found() -> None:
    with pytest.raises(AssertionError, match="two definitions of the target 'logits'"):
        check_keys([KD(), EncodesTheBatch()])


def test_two_meanings_of_one_fit_are_found(probe) -> None:
    @dataclass(frozen=True)
    class OtherAtoms(probe.Atoms):
        rate: float = 0.1

    class Other(probe.Probe):
        def fits(self, student, teacher):
            return (OtherAtoms("stage2", self.atoms),)

    with pytest.raises(AssertionError, match=r"two definitions of the fit 'atoms6\.stage2'"):
        check_keys([Other()])


def test_a_fit_that_remembers_outside_its_state_is_found() -> None:
    seen: list[int] = []

    @dataclass(frozen=True)
    class Forgetful(ClassCentres):
        def step(self, state, batch):
            seen.append(len(batch.labels))
            state["sums"] += len(seen)
            return super().step(state, batch)

    with pytest.raises(AssertionError, match="changes when the fit is stopped"):
        check_fit(Forgetful("before_fc"), PAIRS[0])
    check_fit(ClassCentres("before_fc"), PAIRS[0])


def test_a_fit_that_asks_for_a_view_that_there_is_not_is_found() -> None:
    @dataclass(frozen=True)
    class Greedy(ClassCentres):
        def passes(self, fit_views):
            return (fit_views,)

    with pytest.raises(AssertionError, match="asks for view 2"):
        check_fit(Greedy("before_fc"), PAIRS[0])
