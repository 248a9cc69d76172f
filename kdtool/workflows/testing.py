"""Conformance checks for a `Method`, one's own too: what extract and distill rely on, tried on made-up taps.

    from kdtool.workflows.testing import check_method
    check_method(MyMethod())

A check raises AssertionError and says what is wrong. The method is led through a small life: its fits learn from a
made-up teacher, its adapters are built, an epoch of its hooks runs, its terms are taken, for every pair of networks in
PAIRS that it does not refuse. Left out: whether a loss is the one of its paper. `check_compact` compares it with one
that is written down naively on whole taps; golden values and the like belong to the method's own tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from kdtool.cache.arrays import DTYPES, check_name
from kdtool.engine.job import stage_recipe
from kdtool.engine.lacking import option_text
from kdtool.engine.optim import Recipe
from kdtool.engine.train import RESERVED
from kdtool.errors import UsageError
from kdtool.methods.protocol import Method
from kdtool.targets import CLEAN, Fit, Stage, Target, by_key, describe
from kdtool.workflows.trial import (
    FACTS,
    FIT_VIEWS,
    PAIRS,
    SAMPLES,
    Pair,
    Trial,
    batch_of,
    chosen,
    extreme,
    fits_of,
    fitted_of,
    identical,
    learn,
    made_up,
    once,
    some_positions,
    starts,
    teacher_taps,
    trial,
    zero,
)

if TYPE_CHECKING:
    from kdtool.targets import Taps


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
    inert: set[str] = set()
    for pair in accepted:
        usual = trial(method, pair)
        for target in usual.targets:
            check_target(target, usual)
        for fit in fits_of(method, pair):
            check_fit(fit, pair)
        check_stages(usual)
        check_finite(usual, "ordinary")
        inert |= check_gradients(usual)
        check_deterministic(usual)
        check_state(usual)
        if exact_gradient:
            check_differences(usual)
        if permutable:
            check_permutation(usual)
        for change in (identical, extreme, zero):
            check_finite(trial(method, pair, change), change.__name__)
    for end in method.inert:
        found = any(name.endswith(f".{end}") for name in inert)
        assert found, f"{method.name} declares a parameter inert that it has not: {end}"


def check_keys(methods: Iterable[Method], pairs: Sequence[Pair] = PAIRS) -> None:
    """Equal keys of targets and of fits mean equal definitions, across methods and for every student they are for."""
    tried = [(method, pair) for method in methods for pair in pairs if _accepts(method, pair)]
    for teacher in (pair.teacher for _, pair in tried):
        meant = [(method, pair) for method, pair in tried if pair.teacher == teacher]  # what one cache may hold
        by_key([target for method, pair in meant for target in method.targets(pair.student, teacher)])
        once([fit for method, pair in meant for fit in fits_of(method, pair)])


def check_options(method: Method) -> None:
    """The options survive as the text of `--set` and as JSON, which is how a run records them."""
    values = vars(method)
    assert values.keys() == method.options().keys(), f"{method.name}: its fields are not its options"
    text = {name: option_text(value) for name, value in values.items()}
    assert method.with_options(text) == method, f"{method.name}: another method comes back from {text}"
    plain = json.loads(json.dumps(values))
    again = type(method)(**{name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()})
    assert again == method, f"{method.name}: another method comes back from the JSON {plain}"


def check_target(target: Target, of: Trial) -> None:
    """Keys and names can be stored, and a sample's arrays depend on that sample alone."""
    check_name("key", target.key)
    assert target.taps, f"{target.key} reads no tap"
    assert target.dtype in ("float16", "float32"), f"{target.key}: a default dtype {target.dtype} is not stored"
    json.dumps(describe(target.encode))
    fitted = fitted_of(target, of.fitted, double=True)
    taps = {tap: rows.double() for tap, rows in teacher_taps(of.pair, 0).items() if tap in target.taps}
    together = target.encode(taps, fitted)
    for name, rows in together.items():
        check_name("array", name)
        kind = str(rows.dtype).removeprefix("torch.")
        assert kind in DTYPES, f"{target.key}/{name}: dtype {kind} cannot be stored"
        assert len(rows) == SAMPLES, f"{target.key}/{name}: {tuple(rows.shape)} for {SAMPLES} samples"
    for place in (0, SAMPLES - 1):
        alone = target.encode({tap: rows[place : place + 1] for tap, rows in taps.items()}, fitted)
        assert alone.keys() == together.keys(), f"{target.key}: which arrays there are depends on the batch"
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
    assert wanted.keys() == found.keys(), f"{fit.key}: which arrays there are depends on where it was stopped"
    for name, value in wanted.items():
        check_name("array", name)
        assert isinstance(value, np.ndarray), f"{fit.key}/{name} is a {type(value).__name__}, not a numpy array"
        assert str(value.dtype) in DTYPES, f"{fit.key}/{name}: dtype {value.dtype} cannot be stored"
        equal = value.dtype == found[name].dtype and value.tobytes() == found[name].tobytes()
        assert equal, f"{fit.key}/{name} changes when the fit is stopped and resumed"


def check_stages(of: Trial) -> None:
    """Stages have names, recipes and selections that exist; every weight has its term, a scalar."""
    names = [stage.name for stage in of.stages]
    assert names, f"{of.method.name} has no stage"
    assert len(set(names)) == len(names), f"{of.method.name}: two stages have one name: {names}"
    if of.method.added is not None:
        weights = of.method.with_options(of.method.added).stages(of.pair.student, of.pair.teacher, FACTS)[0].weights
        assert weights, f"{of.method.name} can be added to others and does not name the weights of its terms"
    for stage in of.stages:
        stage_recipe(Recipe(), stage)
        assert stage.select in ("last", "validation_loss"), f"stage {stage.name} selects {stage.select!r}"
        assert stage.task or stage.weights is None or stage.weights, f"stage {stage.name} has neither task nor terms"
        terms = of.answer(stage, of.lived(stage))[0]
        lacking = set(stage.weights or ()) - set(terms)
        assert not lacking, f"stage {stage.name} has weights for {sorted(lacking)}, and its terms are {sorted(terms)}"
        for name, value in terms.items():
            assert re.fullmatch(r"[A-Za-z0-9_.]+", name), f"{name!r} is no name for a term"
            assert name not in RESERVED, f"{name!r} is no name for a term: the metrics use it"
            assert value.shape == (), f"the term {name} has shape {tuple(value.shape)}; it must be a scalar"


def check_gradients(of: Trial) -> set[str]:
    """Over its stages the gradient reaches every tap that the method reads and every parameter that is not inert.

    Gives the names of the inert ones.
    """
    reached: dict[str, float] = {}
    for stage in of.stages:
        for name, value in _gradients(stage, *of.answer(stage, of.lived(stage), double=True)).items():
            reached[name] = max(reached.get(name, 0.0), 0.0 if value is None else float(value.abs().max()))
    highest = max(reached.values(), default=0.0)
    inert = {name for name in reached for end in of.method.inert if name.endswith(f".{end}")}
    for name, size in reached.items():
        if name in inert:
            assert size <= 1e-9 * highest, f"{name} is declared inert and has a gradient of {size:.3g}"
        else:
            assert size > 0, f"{of.method.name}: no gradient reaches {name} in any stage"
    return inert


def check_deterministic(of: Trial) -> None:
    """Equal state gives equal bits: chance comes from `batch.generator` alone."""
    for stage in of.stages:
        first, second = of.lived(stage), of.lived(stage)
        _assert_equal(first.state_dict(), second.state_dict(), "the states after two equal epochs")
        _assert_equal(of.answer(stage, first)[0], of.answer(stage, second)[0], "the terms of two equal batches")


def check_state(of: Trial) -> None:
    """The adapters' parameters and buffers are all of the state: through safetensors and into a fresh module."""
    for stage in of.stages:
        known, fresh = of.lived(stage), of.adapters(seed=1)
        fresh.load_state_dict(_through_bytes(known.state_dict()))
        _assert_equal(of.answer(stage, known)[0], of.answer(stage, fresh)[0], "the terms with and without a resume")
        for adapters in (known, fresh):
            of.run_epoch(stage, adapters, epoch=1)
        _assert_equal(known.state_dict(), fresh.state_dict(), "the states with and without a resume an epoch before")


def check_permutation(of: Trial) -> None:
    """The order of the samples in a batch changes no term by more than rounding."""
    for stage in of.stages:
        adapters, positions = of.lived(stage), some_positions()
        terms = of.answer(stage, adapters, positions, double=True)[0]
        for name, value in of.answer(stage, adapters, positions.sort().values, double=True)[0].items():
            assert torch.allclose(value, terms[name], rtol=1e-9, atol=1e-9), (
                f"the term {name} of stage {stage.name} is {terms[name].item()}, and {value.item()} for the batch in "
                "another order"
            )


def check_differences(of: Trial, step: float = 1e-6, bound: float = 1e-5) -> None:
    """The gradient along a random direction is that of central differences, in float64; float64 gives float64.

    Taken a little beside the made-up taps: where a whole pixel is 0 a ReLU behind a convolution has its kink.
    """
    for stage in of.stages:
        adapters, away = of.lived(stage), _beside(of, stage)
        terms, leaves = of.answer(stage, adapters, moves=away, double=True)
        for name, value in terms.items():
            assert value.dtype == torch.float64, f"the term {name} of float64 taps is {value.dtype}"
        generator = torch.Generator().manual_seed(3)
        ways = {name: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for name, leaf in leaves.items()}
        gradients = _gradients(stage, terms, leaves)
        slope = sum((g * ways[name]).sum().item() for name, g in gradients.items() if g is not None)
        ends = []
        for sign in (1, -1):
            moves = {name: sign * step * way + away.get(name, 0.0) for name, way in ways.items()}
            ends.append(_total(stage, of.answer(stage, adapters, moves=moves, double=True)[0]).item())
        measured = (ends[0] - ends[1]) / (2 * step)
        assert abs(slope - measured) <= bound * max(1.0, abs(slope)), (
            f"stage {stage.name} of {of.method.name}: the gradient gives {slope}, differences give {measured}"
        )


def _beside(of: Trial, stage: Stage) -> dict[str, Tensor]:
    """A small move of every tap of the student."""
    generator = torch.Generator().manual_seed(4)
    leaves = of.answer(stage, of.adapters())[1]
    return {
        name: 0.1 * torch.rand(leaf.shape, generator=generator, dtype=torch.float64)
        for name, leaf in leaves.items()
        if name.startswith("student.")
    }


def check_finite(of: Trial, what: str) -> None:
    """Results of fits, terms and gradients are finite for odd inputs, which are named by `what`."""
    for key, fitted in of.fitted.items():
        for name, array in fitted.items():
            assert np.isfinite(array).all(), f"the fit {key} gives {name} that is not finite for {what} inputs"
    for stage in of.stages:
        terms, leaves = of.answer(stage, of.lived(stage))
        for name, value in terms.items():
            assert bool(torch.isfinite(value)), f"{name} of stage {stage.name} is {value.item()} for {what} inputs"
        for name, gradient in _gradients(stage, terms, leaves).items():
            assert gradient is None or bool(torch.isfinite(gradient).all()), (
                f"stage {stage.name}: the gradient of {name} is not finite for {what} inputs"
            )


def check_compact(
    method: Method, full: Callable[[Taps, Taps], Mapping[str, Tensor]], pair: Pair = PAIRS[0], bound: float = 1e-12
) -> None:
    """What is stored is enough: the terms from the encoded targets equal those of `full`, which sees whole taps.

    full(student taps, teacher taps) gives terms by name, all taps of both networks in float64, for methods whose terms
    need no state; nothing is rounded to a stored type. `bound` is relative.
    """
    of, positions = trial(method, pair), some_positions()
    student = chosen(made_up(pair.student, 0), positions, double=True)
    teacher = chosen(teacher_taps(pair, 0), positions, double=True)
    cached = {
        target.key: target.encode({tap: teacher[tap] for tap in target.taps}, fitted_of(target, of.fitted, True))
        for target in of.targets
    }
    wanted, compared = full(student, teacher), set()
    for stage in of.stages:
        batch = batch_of(stage, positions, max(starts(stage)))
        for name, value in method.terms(student, cached, batch, of.adapters().double()).items():
            if name not in wanted:
                continue
            error = ((value - wanted[name]).abs() / wanted[name].abs().clamp(min=1e-300)).item()
            assert error <= bound, f"{name} from what is stored differs by {error:.3g} from that of the whole taps"
            compared.add(name)
    assert compared, f"the full form gives {sorted(wanted)}, no term of {method.name}"
    assert compared == set(wanted), f"the full form gives {sorted(wanted)}, the method {sorted(compared)}"


def _accepts(method: Method, pair: Pair) -> bool:
    try:
        method.student_taps(pair.student, pair.teacher)
        method.targets(pair.student, pair.teacher)
        method.stages(pair.student, pair.teacher, FACTS)
    except UsageError:
        return False
    return True


def _total(stage: Stage, terms: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of a stage's terms; zero where it has none."""
    weights = dict.fromkeys(terms, 1.0) if stage.weights is None else {n: w.value for n, w in stage.weights.items()}
    parts = [weights[name] * value for name, value in terms.items() if weights.get(name)]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def _gradients(stage: Stage, terms: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """The gradient of the weighted sum with respect to every tap and parameter, None where none arrives."""
    total = _total(stage, terms)
    if not total.requires_grad:
        return dict.fromkeys(leaves)
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True))


def _through_bytes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state as it comes back from disk."""
    assert not any("/" in name for name in state), f"a name in a state holds a '/': {sorted(state)}"
    return dict(load(save({name: value.detach().cpu().contiguous() for name, value in state.items()})))


def _assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    assert found.keys() == wanted.keys(), f"{what}: {sorted(found)} and {sorted(wanted)}"
    odd = [name for name, value in found.items() if not torch.equal(value, wanted[name])]
    assert not odd, f"{what} differ in {odd}"
