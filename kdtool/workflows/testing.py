"""Conformance checks for a `Method`, one's own too: what extract and distill rely on, tried on made-up taps.

    from kdtool.workflows.testing import check_method
    check_method(MyMethod())

A check raises AssertionError and says what is wrong. The method is led through a small life: its fits learn from a
made-up teacher, its adapters are built, an epoch of its hooks runs, its terms are taken, for every pair of networks in
PAIRS that it does not refuse. Left out: whether a loss is the one of its paper. `check_compact` compares it with one
that is written down naively on whole taps; golden values and the like belong to the method's own tests.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from kdtool.cache.arrays import DTYPES, check_name
from kdtool.engine.optim import Recipe
from kdtool.engine.sources import as_tensors
from kdtool.engine.train import seeded, stage_recipe
from kdtool.errors import UsageError
from kdtool.methods.protocol import FittedResults, Method
from kdtool.targets import CLEAN, Batch, Cached, Facts, Fit, FitBatch, Shapes, Stage, Target, by_key, describe

if TYPE_CHECKING:
    from kdtool.targets import State, Taps

SAMPLES, CLASSES, BATCH, FIT_VIEWS = 24, 3, 8, 2
RESERVED = ("task", "loss", "right", "count")  # names that the metrics of a run use beside the terms
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def three_stages(widths: tuple[int, int, int, int], side: int) -> Shapes:
    """The shapes of a small residual network: stem, three stages with their preact taps, vector and logits."""
    sides = (side, side, side // 2, side // 4)
    names = ("stem", "stage1", "stage2", "stage3")
    maps = {name: (width, size, size) for name, width, size in zip(names, widths, sides, strict=True)}
    preact = {f"{name}.preact": shape for name, shape in maps.items() if name != "stem"}
    return {**maps, **preact, "before_fc": (widths[-1],), "after_fc": (CLASSES,)}


@dataclass(frozen=True)
class Pair:
    """A student and a teacher, as the shapes of their taps."""

    name: str
    student: Shapes
    teacher: Shapes


STUDENT = three_stages((4, 4, 6, 8), 8)
PAIRS = (
    Pair("equal sizes", STUDENT, STUDENT),
    Pair("wider teacher", STUDENT, three_stages((6, 6, 9, 12), 8)),
    Pair("teacher with larger maps", STUDENT, three_stages((4, 4, 6, 8), 16)),
    Pair("teacher with smaller maps", three_stages((4, 4, 6, 8), 16), three_stages((6, 6, 9, 12), 8)),
)


@dataclass(frozen=True)
class Trial:
    """A method with all that a run would give it, for n made-up samples.

    student: the taps that it asked for, (n, ...); teacher: all taps of view 0; cached: the targets that were encoded
    from them; fitted: the results of all fits.
    """

    method: Method
    pair: Pair
    facts: Facts
    student: Taps
    teacher: Taps
    fitted: FittedResults
    cached: Cached

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the method asks of the teacher."""
        return self.method.targets(self.pair.student, self.pair.teacher)

    def adapters(self, seed: int = 0) -> nn.Module:
        """The method's module, fresh, as the engine builds it."""
        shapes = (self.pair.student, self.pair.teacher)
        given = {fit.key: self.fitted[fit.key] for fit in self.method.fits(*shapes)}
        with seeded(seed):
            return self.method.adapters(*shapes, self.facts, given)


def check_method(
    method: Method, permutable: bool = True, exact_gradient: bool = True, pairs: Iterable[Pair] = PAIRS
) -> None:
    """Every check below for every pair of networks that the method does not refuse.

    permutable: False for a loss that depends on the order of the batch (CC) or draws for each sample (CRD).
    exact_gradient: False for a loss that holds back a gradient on purpose, so that differences do not agree with it.
    """
    check_options(method)
    accepted = [pair for pair in pairs if _accepts(method, pair)]
    assert accepted, f"{method.name} refuses every pair of networks that it was tried with"
    for pair in accepted:
        usual = trial(method, pair)
        check_targets(usual)
        for fit in _fits(method, pair):
            check_fit(fit, pair)
        check_stages(usual)
        check_gradients(usual)
        check_deterministic(usual)
        check_state(usual)
        if exact_gradient:
            check_differences(usual)
        if permutable:
            check_permutation(usual)
        for change in (identical, extreme, zero):
            check_finite(trial(method, pair, change), change.__name__)


def check_keys(methods: Iterable[Method], pairs: Sequence[Pair] = PAIRS) -> None:
    """Equal keys of targets and of fits mean equal definitions, across methods and for every student they are for."""
    tried = [(method, pair) for method in methods for pair in pairs if _accepts(method, pair)]
    for teacher in (pair.teacher for _, pair in tried):
        meant = [(method, pair) for method, pair in tried if pair.teacher == teacher]  # what one cache may hold
        by_key([target for method, pair in meant for target in method.targets(pair.student, teacher)])
        fits: dict[str, Fit] = {}
        for fit in (fit for method, pair in meant for fit in _fits(method, pair)):
            known = fits.setdefault(fit.key, fit)
            assert known == fit, f"two definitions of the fit {fit.key!r}: {known} and {fit}"


def check_options(method: Method) -> None:
    """The options survive as the text of `--set` and as JSON, which is how a run records them."""
    values = vars(method)
    assert values.keys() == method.options().keys(), f"{method.name}: its fields are not its options"
    text = {name: _text(value) for name, value in values.items()}
    assert method.with_options(text) == method, f"{method.name}: another method comes back from {text}"
    plain = json.loads(json.dumps(values))
    again = type(method)(**{name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()})
    assert again == method, f"{method.name}: another method comes back from the JSON {plain}"


def check_targets(of: Trial) -> None:
    """Keys and names can be stored, and a sample's arrays depend on that sample alone."""
    by_key(of.targets)
    exact = {tap: rows.double() for tap, rows in of.teacher.items()}
    for target in of.targets:
        check_name("key", target.key)
        assert target.dtype in ("float16", "float32"), f"{target.key}: a default dtype {target.dtype} is not stored"
        assert target.taps, f"{target.key} reads no tap"
        json.dumps(describe(target.encode))
        fitted = _fitted_of(target, of.fitted, double=True)
        taps = {tap: exact[tap] for tap in target.taps}
        together = target.encode(taps, fitted)
        for name, rows in together.items():
            check_name("array", name)
            kind = str(rows.dtype).removeprefix("torch.")
            assert kind in DTYPES, f"{target.key}/{name}: dtype {kind} cannot be stored"
            assert len(rows) == SAMPLES, f"{target.key}/{name}: {tuple(rows.shape)} for {SAMPLES} samples"
        for place in (0, SAMPLES - 1):
            alone = target.encode({tap: rows[place : place + 1] for tap, rows in taps.items()}, fitted)
            assert alone.keys() == together.keys(), f"{target.key}: the arrays depend on the batch"
            for name, rows in alone.items():
                wanted = together[name][place : place + 1]
                assert torch.allclose(rows.double(), wanted.double(), rtol=1e-9, atol=1e-9), (
                    f"{target.key}/{name} of a sample depends on the others in its batch"
                )


def check_fit(fit: Fit, pair: Pair) -> None:
    """A fit that is stopped after any batch, its state written and read, gives the bits of an undisturbed one."""
    for kind, key in (("fit", fit.key), *(("key", target.key) for target in fit.reads)):
        check_name(kind, key)
    json.dumps(describe(fit))
    for view in fit.passes(FIT_VIEWS):
        assert view in (*range(FIT_VIEWS), CLEAN), f"{fit.key} asks for view {view}; there are {FIT_VIEWS} and CLEAN"
    wanted = learn(fit, pair)
    found = learn(fit, pair, kept=_through_bytes)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        check_name("array", name)
        assert isinstance(value, np.ndarray), f"{fit.key}/{name} is a {type(value).__name__}, not a numpy array"
        assert str(value.dtype) in DTYPES, f"{fit.key}/{name}: dtype {value.dtype} cannot be stored"
        assert value.dtype == found[name].dtype
        assert value.tobytes() == found[name].tobytes(), f"{fit.key}/{name} changes when the fit is stopped and resumed"


def check_stages(of: Trial) -> None:
    """Stages have names, recipes and selections that exist; every weight has its term, a finite scalar."""
    stages = of.method.stages(of.facts)
    names = [stage.name for stage in stages]
    assert names, f"{of.method.name} has no stage"
    assert len(set(names)) == len(names), f"{of.method.name}: two stages have one name: {names}"
    for stage in stages:
        stage_recipe(Recipe(), stage)
        assert stage.select in ("last", "validation_loss"), f"stage {stage.name} selects {stage.select!r}"
        assert stage.task or stage.weights is None or stage.weights, f"stage {stage.name} has neither task nor terms"
        terms = _answer(of, stage, _lived(of, stage))[0]
        lacking = set(stage.weights or ()) - set(terms)
        assert not lacking, f"stage {stage.name} has weights for {sorted(lacking)}, and its terms are {sorted(terms)}"
        for name, value in terms.items():
            assert re.fullmatch(r"[A-Za-z0-9_.]+", name), f"{name!r} is no name for a term"
            assert name not in RESERVED, f"{name!r} is no name for a term: the metrics use it"
            assert value.shape == (), f"the term {name} has shape {tuple(value.shape)}; it must be a scalar"


def check_gradients(of: Trial) -> None:
    """Over its stages the gradient reaches every tap that the method reads and every parameter that is not inert."""
    reached: dict[str, float] = {}
    for stage in of.method.stages(of.facts):
        for name, value in _gradients(of, stage).items():
            reached[name] = max(reached.get(name, 0.0), 0.0 if value is None else float(value.abs().max()))
    highest = max(reached.values(), default=0.0)
    inert = {f"adapters.{name}" for name in of.method.inert}
    assert inert <= reached.keys(), f"{of.method.name}: inert parameters that it has not: {inert - reached.keys()}"
    for name, size in reached.items():
        if name in inert:
            assert size <= 1e-6 * highest, f"{name} is declared inert and has a gradient of {size:.3g}"
        else:
            assert size > 0, f"{of.method.name}: no gradient reaches {name} in any stage"


def check_deterministic(of: Trial) -> None:
    """Equal state gives equal bits; chance comes from `batch.generator` alone; the inputs are left as they were."""
    for stage in of.method.stages(of.facts):
        before = {tap: rows.clone() for tap, rows in of.student.items()}
        first, second = _lived(of, stage), _lived(of, stage)
        _assert_equal(first.state_dict(), second.state_dict(), "the state after an epoch")
        terms = [_answer(of, stage, adapters)[0] for adapters in (first, second)]
        _assert_equal(terms[0], terms[1], "the terms")
        _assert_equal(before, of.student, "the student's taps before and after")


def check_state(of: Trial) -> None:
    """The adapters' parameters and buffers are all of the state: through safetensors and into a fresh module."""
    for stage in of.method.stages(of.facts):
        known = _lived(of, stage)
        fresh = of.adapters(seed=1)
        fresh.load_state_dict(_through_bytes(known.state_dict()))
        _assert_equal(_answer(of, stage, known)[0], _answer(of, stage, fresh)[0], "the terms after a resume")
        for adapters in (known, fresh):
            _run_epoch(of, stage, adapters, epoch=1)
        _assert_equal(known.state_dict(), fresh.state_dict(), "the state an epoch after a resume")


def check_permutation(of: Trial) -> None:
    """The order of the samples in a batch changes no term by more than rounding."""
    for stage in of.method.stages(of.facts):
        adapters, chosen = _lived(of, stage), _positions()
        terms = _answer(of, stage, adapters, chosen, double=True)[0]
        for name, value in _answer(of, stage, adapters, chosen.flip(0), double=True)[0].items():
            assert torch.allclose(value, terms[name], rtol=1e-9, atol=1e-9), (
                f"the term {name} of stage {stage.name} is {float(terms[name])}, and {float(value)} for the batch in "
                "another order"
            )


def check_differences(of: Trial, step: float = 1e-6, bound: float = 1e-5) -> None:
    """The gradient along a random direction is that of central differences, in float64; float64 gives float64."""
    for stage in of.method.stages(of.facts):
        adapters = _lived(of, stage).double()
        terms, leaves = _answer(of, stage, adapters, double=True)
        assert all(value.dtype == torch.float64 for value in terms.values()), (
            f"stage {stage.name}: a term of float64 taps is less than float64: {terms}"
        )
        gradients = _gradients_of(stage, terms, leaves)
        generator = torch.Generator().manual_seed(3)
        ways = {name: torch.randn(leaf.shape, generator=generator).double() for name, leaf in leaves.items()}
        slope = sum(float((g * ways[name]).sum()) for name, g in gradients.items() if g is not None)
        ends = []
        for sign in (1, -1):
            moves = {name: sign * step * way for name, way in ways.items()}
            ends.append(float(_total(stage, _answer(of, stage, adapters, moves=moves, double=True)[0]).detach()))
        measured = (ends[0] - ends[1]) / (2 * step)
        assert abs(slope - measured) <= bound * max(1.0, abs(slope)), (
            f"stage {stage.name} of {of.method.name}: the gradient gives {slope}, differences give {measured}"
        )


def check_finite(of: Trial, what: str) -> None:
    """Results of fits, terms and gradients are finite for odd inputs, which are named by `what`."""
    for key, fitted in of.fitted.items():
        for name, value in fitted.items():
            assert np.isfinite(value).all(), f"the fit {key} gives {name} that is not finite for {what} inputs"
    for stage in of.method.stages(of.facts):
        terms, _ = _answer(of, stage, _lived(of, stage))
        for name, value in terms.items():
            assert bool(torch.isfinite(value)), f"{name} of stage {stage.name} is {float(value)} for {what} inputs"
        for name, gradient in _gradients(of, stage).items():
            assert gradient is None or bool(torch.isfinite(gradient).all()), (
                f"stage {stage.name}: the gradient of {name} is not finite for {what} inputs"
            )


def check_compact(
    method: Method, full: Callable[[Taps, Taps], Mapping[str, Tensor]], pair: Pair = PAIRS[0], bound: float = 1e-12
) -> None:
    """What is stored is enough: the terms from the encoded targets equal those of `full`, which sees whole taps.

    full(student taps, teacher taps) gives terms by name, for methods whose terms need no state; in float64, before any
    rounding to a stored type; `bound` is relative.
    """
    of = trial(method, pair)
    chosen = _positions()
    student = {tap: rows[chosen].double() for tap, rows in of.student.items()}
    teacher = {tap: rows[chosen].double() for tap, rows in of.teacher.items()}
    cached = {t.key: t.encode(teacher, _fitted_of(t, of.fitted, double=True)) for t in of.targets}
    wanted, compared = full(student, teacher), set()
    for stage in method.stages(of.facts):
        terms = method.terms(student, cached, _batch(of, stage, chosen, max(_starts(stage))), of.adapters().double())
        for name in terms.keys() & wanted.keys():
            error = float((terms[name] - wanted[name]).abs() / wanted[name].abs().clamp(min=1e-300))
            assert error <= bound, f"{name} from what is stored differs by {error:.3g} from that of the whole taps"
            compared.add(name)
    assert wanted and compared == set(wanted), f"the full form gives {sorted(wanted)}, the method {sorted(compared)}"


def same(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Taps as they are."""
    return taps


def identical(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every sample is the first one."""
    return {tap: rows[:1].expand_as(rows).clone() for tap, rows in taps.items()}


def extreme(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits of the size of 10,000, everything else of 100."""
    return {tap: rows * (1e4 if tap == "after_fc" else 1e2) for tap, rows in taps.items()}


def zero(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network in which every ReLU is dead."""
    return {tap: torch.zeros_like(rows) for tap, rows in taps.items()}


def made_up(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Normal values for every tap, (n, ...); those after a ReLU are not negative."""
    generator = torch.Generator().manual_seed(seed)
    taps = {tap: torch.randn(SAMPLES, *shape, generator=generator) for tap, shape in shapes.items()}
    signed = re.compile(r"after_fc|.*\.preact")
    return {tap: rows if signed.fullmatch(tap) else rows.relu() for tap, rows in taps.items()}


def made_up_facts() -> Facts:
    """A train part of n = 24 samples in 3 classes."""
    labels = np.arange(SAMPLES, dtype=np.int64) % CLASSES
    return Facts(samples=SAMPLES, classes=CLASSES, labels=labels, batch=BATCH, epochs=240, seed=0)


def trial(method: Method, pair: Pair = PAIRS[0], change: Change = same) -> Trial:
    """A method with made-up taps of both networks, its fits learned and its targets encoded."""
    asked = method.student_taps(pair.student, pair.teacher)
    for tap in asked:
        assert tap in pair.student, f"{method.name} asks for the tap {tap!r}, which the student has not"
    student, teacher = change(made_up(pair.student, 1)), change(made_up(pair.teacher, 2))
    fitted = {fit.key: learn(fit, pair, change=change) for fit in _fits(method, pair)}
    cached = {}
    for target in method.targets(pair.student, pair.teacher):
        for tap in target.taps:
            assert tap in pair.teacher, f"{target.key} reads the tap {tap!r}, which the teacher has not"
        seen = {tap: teacher[tap] for tap in target.taps}
        cached[target.key] = target.encode(seen, _fitted_of(target, fitted))
    return Trial(method, pair, made_up_facts(), {tap: student[tap] for tap in asked}, teacher, fitted, cached)


@torch.no_grad()
def learn(
    fit: Fit, pair: Pair, change: Change = same, kept: Callable[[State], State] = lambda state: state
) -> dict[str, np.ndarray[Any, Any]]:
    """The result of a fit on a made-up teacher; `kept` is applied to the state after every batch."""
    facts = made_up_facts()
    told = {view: change(made_up(pair.teacher, 2 + max(view, CLEAN))) for view in (CLEAN, *range(FIT_VIEWS))}
    arrays = {
        view: {target.key: target.encode({tap: taps[tap] for tap in target.taps}, {}) for target in fit.reads}
        for view, taps in told.items()
    }
    shapes = {key: {name: tuple(rows.shape[1:]) for name, rows in a.items()} for key, a in arrays[CLEAN].items()}
    state = fit.begin(facts, shapes, FIT_VIEWS)
    for turn, view in enumerate(fit.passes(FIT_VIEWS)):
        for positions in torch.arange(SAMPLES).split(BATCH):
            rows = {key: {name: value[positions] for name, value in a.items()} for key, a in arrays[view].items()}
            labels = torch.from_numpy(facts.labels)[positions]
            state = kept(fit.step(state, FitBatch(rows, labels, positions, turn, view)))
    return fit.result(state, facts)


def _accepts(method: Method, pair: Pair) -> bool:
    try:
        method.student_taps(pair.student, pair.teacher)
        method.targets(pair.student, pair.teacher)
    except UsageError:
        return False
    return True


def _fits(method: Method, pair: Pair) -> tuple[Fit, ...]:
    """Every fit of a method, those of its targets first, equal keys once."""
    shapes = (pair.student, pair.teacher)
    found = [target.fit for target in method.targets(*shapes) if target.fit is not None]
    return tuple({fit.key: fit for fit in (*found, *method.fits(*shapes))}.values())


def _fitted_of(target: Target, fitted: FittedResults, double: bool = False) -> dict[str, Tensor]:
    found = as_tensors(fitted[target.fit.key], torch.device("cpu")) if target.fit else {}
    return {name: _double(value) if double else value for name, value in found.items()}


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _positions() -> Tensor:
    """The samples of the batch on which terms are compared."""
    return torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(5))[:BATCH]


def _batch(of: Trial, stage: Stage, positions: Tensor, epoch: int) -> Batch:
    labels = torch.from_numpy(of.facts.labels)[positions]
    generator = torch.Generator().manual_seed(1000 * epoch + int(positions[0]))
    return Batch(positions, labels, 0, stage.name, epoch, epoch * SAMPLES // BATCH, generator)


def _starts(stage: Stage) -> list[int]:
    return [weight.start for weight in (stage.weights or {}).values()] or [0]


def _lived(of: Trial, stage: Stage) -> nn.Module:
    """Adapters after one epoch of the stage."""
    adapters = of.adapters()
    _run_epoch(of, stage, adapters, 0)
    return adapters


def _run_epoch(of: Trial, stage: Stage, adapters: nn.Module, epoch: int) -> None:
    """What the engine calls in an epoch, without the optimiser."""
    for positions in torch.arange(SAMPLES).split(BATCH):
        batch = _batch(of, stage, positions, epoch)
        student = {tap: rows[positions] for tap, rows in of.student.items()}
        cached = {key: {name: rows[positions] for name, rows in arrays.items()} for key, arrays in of.cached.items()}
        if epoch >= min(_starts(stage)) and (stage.weights is None or stage.weights):
            of.method.terms(student, cached, batch, adapters)
        with torch.no_grad():
            of.method.after_step(student, cached, batch, adapters)
    of.method.after_epoch(adapters)


def _answer(
    of: Trial,
    stage: Stage,
    adapters: nn.Module,
    positions: Tensor | None = None,
    moves: Mapping[str, Tensor] | None = None,
    double: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(terms, leaves by name) of one batch in an epoch in which all terms are active; the adapters stay as they are.

    moves: added to the leaves of that name.
    """
    chosen = _positions() if positions is None else positions
    used = copy.deepcopy(adapters).double() if double else copy.deepcopy(adapters)
    student = {tap: (_double(rows[chosen]) if double else rows[chosen]).clone() for tap, rows in of.student.items()}
    cached = {
        key: {name: _double(rows[chosen]) if double else rows[chosen] for name, rows in arrays.items()}
        for key, arrays in of.cached.items()
    }
    leaves = {f"student.{tap}": rows.requires_grad_() for tap, rows in student.items()}
    leaves |= {f"adapters.{name}": parameter for name, parameter in used.named_parameters()}
    with torch.no_grad():
        for name, move in (moves or {}).items():
            leaves[name] += move
    if stage.weights is not None and not stage.weights:
        return {}, leaves
    return of.method.terms(student, cached, _batch(of, stage, chosen, max(_starts(stage))), used), leaves


def _total(stage: Stage, terms: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of a stage's terms; zero where it has none."""
    weights = {name: 1.0 for name in terms} if stage.weights is None else {n: w.value for n, w in stage.weights.items()}
    parts = [weights[name] * value for name, value in terms.items() if weights.get(name)]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def _gradients_of(
    stage: Stage, terms: Mapping[str, Tensor], leaves: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    total = _total(stage, terms)
    if not total.requires_grad:
        return dict.fromkeys(leaves)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def _gradients(of: Trial, stage: Stage) -> dict[str, Tensor | None]:
    """The gradient of a stage's weighted sum with respect to every tap and parameter, None where none arrives."""
    terms, leaves = _answer(of, stage, _lived(of, stage))
    return _gradients_of(stage, terms, leaves)


def _through_bytes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state as it comes back from disk."""
    assert not any("/" in name for name in state), f"names of a state have no '/': {sorted(state)}"
    return dict(load(save({name: value.detach().cpu().contiguous() for name, value in state.items()})))


def _assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    assert found.keys() == wanted.keys(), f"{what}: {sorted(found)} and {sorted(wanted)}"
    odd = [name for name, value in found.items() if not torch.equal(value, wanted[name])]
    assert not odd, f"{what} differ: {odd}"


def _text(value: object) -> str:
    """An option as a user writes it after `--set name=`."""
    if isinstance(value, tuple):
        return ",".join(_text(item) for item in value)
    return str(value)
