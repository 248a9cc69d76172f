"""What every method shares: options from text, the table, keys, records of what is stored."""

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from kdtool.errors import UsageError
from kdtool.methods import DEFAULT_FITS, DEFAULT_TARGETS, METHODS, method
from kdtool.methods.kda import KDA
from kdtool.methods.protocol import Method, parse
from kdtool.methods.vectors import Pooled, vector
from kdtool.targets import Stage, Target, Weight, by_key, canonical_tap, describe


@dataclass(frozen=True)
class Optioned(Method):
    """A method with an option of every type."""

    name: ClassVar[str] = "optioned"
    paper: ClassVar[str] = "made up"

    text: str = "a"
    number: int = 1
    real: float = 0.5
    flag: bool = False
    names: tuple[str, ...] = ("x",)
    numbers: tuple[int, ...] = (1, 2)
    reals: tuple[float, ...] = ()
    maybe: int | None = None
    maybe_real: float | None = 1.5

    def student_taps(self, student, teacher):
        return ()

    def targets(self, student, teacher):
        return ()

    def terms(self, student, cached, batch, adapters):
        return {"nothing": torch.zeros(())}


def written(value: object) -> str:
    return ",".join(map(written, value)) if isinstance(value, tuple) else str(value)


words = st.text("abcdefgh_.0123456789", min_size=1, max_size=8)
reals = st.floats(allow_nan=False, allow_infinity=False)


@given(
    values=st.fixed_dictionaries(
        {
            "text": words,
            "number": st.integers(),
            "real": reals,
            "flag": st.booleans(),
            "names": st.lists(words, min_size=1).map(tuple),
            "numbers": st.lists(st.integers(), min_size=1).map(tuple),
            "reals": st.lists(reals, min_size=1).map(tuple),
            "maybe": st.none() | st.integers(),
            "maybe_real": st.none() | reals,
        }
    )
)
def test_options_come_back_from_their_text(values: dict) -> None:
    wanted = Optioned(**values)
    found = Optioned().with_options({name: written(value) for name, value in values.items()})
    assert found == wanted
    assert {name: type(value) for name, value in vars(found).items()} == {
        name: type(value) for name, value in vars(wanted).items()
    }


def test_options_that_are_not_named_keep_their_values() -> None:
    changed = Optioned(number=7).with_options({"flag": "TRUE", "names": " p , q "})
    assert changed == Optioned(number=7, flag=True, names=("p", "q"))
    assert Optioned().with_options({}) == Optioned()
    assert Optioned.options() == dict(vars(Optioned()))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("number", "1.5"),
        ("number", ""),
        ("number", "none"),
        ("real", "half"),
        ("real", "nan"),
        ("real", "-inf"),
        ("flag", "1"),
        ("flag", "yes"),
        ("numbers", "1,x"),
        ("reals", "1,inf"),
        ("maybe", "some"),
        ("maybe_real", "nan"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"option optioned\.{name} ") as error:
        Optioned().with_options({name: text})
    assert error.value.exit_code == 2


def test_an_unknown_option_is_refused_with_the_nearest_right_name() -> None:
    with pytest.raises(UsageError, match=r"option of method optioned 'numbr'.*did you mean 'number'"):
        Optioned().with_options({"numbr": "1"})
    with pytest.raises(UsageError, match="kd 'layers'"):
        method("kd").with_options({"layers": "stage1"})


def test_parse_tells_what_it_was_given() -> None:
    assert parse("kda.rank", "3", int) == 3
    with pytest.raises(UsageError, match=r"option kda\.rank is of type int, and 'three' is not"):
        parse("kda.rank", "three", int)


def test_the_table_names_every_method() -> None:
    for name, kind in METHODS.items():
        assert kind.name == name
        assert kind.paper
        assert method(name) == kind()
        assert dataclasses.fields(kind)
        assert all(default is not dataclasses.MISSING for default in kind.options().values())
    with pytest.raises(UsageError, match="unknown method 'kdaa'; did you mean 'kda'"):
        method("kdaa")


def test_a_method_is_a_value() -> None:
    kda = method("kda").with_options({"layers": "before_fc,after_fc"})
    assert kda == KDA(layers=("before_fc", "after_fc"))
    assert hash(kda) == hash(KDA(layers=("before_fc", "after_fc")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        kda.layers = ()


def test_a_method_without_adapters_stages_and_hooks_of_its_own(make_facts, make_batch) -> None:
    plain = Optioned()
    adapters = plain.adapters({}, {}, make_facts([0], 1), {})
    assert not adapters.state_dict()
    assert plain.fits({}, {}) == ()
    assert plain.stages({}, {}, make_facts([0], 1)) == (Stage(),)
    plain.after_step({}, {}, make_batch([0]), adapters)
    plain.after_epoch(adapters)
    assert isinstance(adapters, nn.Module)


def test_what_a_plain_extract_stores() -> None:
    assert [target.key for target in DEFAULT_TARGETS] == ["logits", "before_fc"]
    assert [fit.key for fit in DEFAULT_FITS] == ["centres.logits", "centres.before_fc"]


def test_equal_targets_are_one_and_different_ones_under_one_key_a_bug() -> None:
    first, second = vector("before_fc"), vector("after_fc")
    assert list(by_key([first, second, vector("before_fc")])) == ["before_fc", "logits"]
    other = Target("before_fc", ("stage3",), Pooled("stage3"))
    with pytest.raises(AssertionError, match="two definitions of the target 'before_fc'"):
        by_key([first, other])


@dataclass(frozen=True)
class Nested:
    inner: Pooled
    sizes: tuple[int, ...]


def test_a_record_is_plain_data() -> None:
    record = describe(Nested(Pooled("stage2"), (3, 4)))
    assert record == {"name": "Nested", "inner": {"name": "Pooled", "tap": "stage2"}, "sizes": [3, 4]}
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("name", "tap"),
    [("conv2_x", "stage1"), ("conv5_x", "stage4"), ("conv1_x", "conv1_x"), ("conv6_x", "conv6_x"), ("stem", "stem")],
)
def test_one_vocabulary_of_taps(name: str, tap: str) -> None:
    assert canonical_tap(name) == tap


def test_weights_start_at_once_unless_they_say_otherwise() -> None:
    assert Weight(2.0) == Weight(2.0, start=0)
