"""Reading named layers of kdtool's own networks and of modules that know nothing of taps."""

import copy
import gc
import weakref
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdtool.errors import UsageError
from kdtool.models import TapReader, create, resolve, tap_shapes


def images(count: int = 2, width: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, width, width, generator=torch.Generator().manual_seed(2))


def plain(inplace: bool = False) -> nn.Sequential:
    """A user's own network, without an attribute `taps`."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
            relu=nn.ReLU(inplace=inplace),
            head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)),
        )
    )


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class Branches(nn.Module):
    """Modules that are shared, unused, or give more than one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.twice.weight)
        self.twice.weight.data *= 2
        self.unused = nn.Linear(2, 2)
        self.pair = Pair()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        self.get_buffer("calls").add_(1)
        noise = torch.rand(2, device=value.device)
        return self.twice(self.twice(self.pair(value)[0])) + 0 * noise


class Pair(nn.Module):
    def forward(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return value, value


# Names


def test_extra_names_come_before_the_network_s_own() -> None:
    model = create("resnet8")
    assert resolve(model, ["stage1", "mine"], {"stage1": "stage1.0.bn2", "mine": "fc:input"}) == {
        "stage1": "stage1.0.bn2",
        "mine": "fc:input",
    }
    assert resolve(model, ["conv3_x"], {"stage2": "stem"}) == {"conv3_x": "stem"}
    assert resolve(model, ["conv3_x"], {"conv3_x": "stage1"}) == {"conv3_x": "stage1"}


def test_a_module_path_is_a_tap_of_any_module() -> None:
    assert resolve(plain(), ["norm", "head.3:input", "after_fc"]) == {
        "norm": "norm",
        "head.3:input": "head.3:input",
        "after_fc": "",
    }


def test_a_module_of_that_name_comes_before_nothing_but_taps() -> None:
    model = nn.Sequential(OrderedDict(conv3_x=nn.Identity()))
    assert resolve(model, ["conv3_x"]) == {"conv3_x": "conv3_x"}


def test_a_module_with_two_names_has_both() -> None:
    relu = nn.ReLU()
    assert resolve(nn.Sequential(relu, nn.Linear(2, 2), relu), ["2"]) == {"2": "2"}


def message(*arguments: Any) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(*arguments)
    return str(caught.value)


def test_an_unknown_tap_is_refused_with_the_taps_there_are() -> None:
    text = message(create("resnet8"), ["stage1", "stage4.preact"])
    assert text.startswith("unknown tap 'stage4.preact'; did you mean 'stage")
    listed = "stem, stage1, stage1.preact, stage2, stage2.preact, stage3, stage3.preact, before_fc, after_fc"
    assert text.endswith(f"taps of the network: {listed}")
    assert "did you mean 'stage1.0.conv1'" in message(create("resnet8"), ["stage1.0.con1"])
    assert "unknown tap ''" in message(create("resnet8"), [""])
    assert "unknown tap 'conv5_x'" in message(create("resnet8"), ["conv5_x"])


def test_a_module_without_taps_lists_its_modules_outermost_first() -> None:
    text = message(plain(), ["before_fc"])
    assert text.endswith("modules of the network: conv, norm, relu, head, head.0, head.1, head.2, head.3")
    deep = nn.Sequential(*(nn.Sequential(nn.ReLU()) for _ in range(25)))
    assert message(deep, ["x"]).endswith("24, 0.0, 1.0, 2.0, 3.0, 4.0 and 20 more")


def test_a_wrong_path_of_an_extra_name_is_refused() -> None:
    text = message(plain(), ["before_fc"], {"before_fc": "haed.1"})
    assert text.startswith("the tap 'before_fc' was given as 'haed.1', which is no module of the network; did you mean")
    assert "'head.1'" in text


def test_an_attribute_taps_that_is_no_mapping_is_no_vocabulary() -> None:
    model = nn.Sequential(OrderedDict(taps=nn.Linear(2, 2)))
    assert resolve(model, ["taps"]) == {"taps": "taps"}


# Reading

RESNET = create("resnet8", 5).eval()
NAMES = [*tap_shapes(RESNET, (3, 8, 8)), "conv2_x", *(path for path, _ in RESNET.named_modules() if path)]
NAMES += [f"{path}:input" for path, _ in RESNET.named_modules() if path]
with TapReader(RESNET, NAMES) as read_everything:
    EVERYTHING = read_everything(images())[1]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(NAMES), max_size=6))
def test_any_choice_of_taps_gives_the_same_values(names: list[str]) -> None:
    with TapReader(RESNET, names) as read:
        logits, taps = read(images())
    assert list(taps) == list(dict.fromkeys(names))
    assert torch.equal(logits, EVERYTHING["after_fc"])
    assert all(torch.equal(taps[name], EVERYTHING[name]) for name in names)
    assert hooks(RESNET) == 0


@given(st.text(max_size=12))
def test_any_other_name_is_a_usage_error(name: str) -> None:
    if name not in NAMES:
        message(RESNET, [name])


def test_the_output_alone_needs_no_hook() -> None:
    model = create("resnet8", 5)
    with TapReader(model, ["after_fc"]) as read:
        assert hooks(model) == 0
        logits, taps = read(images())
    assert logits is taps["after_fc"]


def test_closing_removes_the_hooks_and_nothing_else() -> None:
    model = plain()
    model.register_forward_hook(lambda *_: None)
    read = TapReader(model, ["conv", "norm", "relu:input", "again"], {"again": "conv"})
    assert hooks(model) == 1 + 3
    read.close()
    read.close()
    assert hooks(model) == 1


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "resnet18x0.5"])
def test_taps_relate_to_each_other_as_the_vocabulary_says(name: str) -> None:
    model = create(name, 5)  # in train mode
    names = list(tap_shapes(model, (3, 8, 8)))
    with TapReader(model, [*names, "fc:input"]) as read:
        logits, taps = read(images())
    assert torch.equal(logits, model.get_submodule("fc")(taps["before_fc"]))
    assert torch.equal(taps["before_fc"], taps["fc:input"])
    for stage in (tap for tap in names if tap.startswith("stage") and "." not in tap):
        before = taps[f"{stage}.preact"]
        assert before.min() < 0
        if not name.startswith("wrn"):
            assert torch.equal(before.relu(), taps[stage])


def test_train_mode_updates_statistics_once_and_keeps_the_graph() -> None:
    model = plain()
    with TapReader(model, ["conv", "norm:input"]) as read:
        _, taps = read(images())
    assert model.get_buffer("norm.num_batches_tracked") == 1
    assert taps["conv"] is taps["norm:input"]
    taps["conv"].sum().backward()
    gradient = model.get_parameter("conv.bias").grad
    assert gradient is not None
    torch.testing.assert_close(gradient, torch.full((4,), 2 * 6 * 6.0))


def test_nothing_is_kept_after_a_call() -> None:
    model = plain()
    with TapReader(model, ["conv", "relu:input"]) as read:
        logits, taps = read(images())
        kept = [weakref.ref(value) for value in (logits, *taps.values())]
        del logits, taps
        model(images())  # a pass that is not the reader's
        gc.collect()
        assert [reference() for reference in kept] == [None] * 3
        assert not any(isinstance(value, torch.Tensor) for value in gc.get_referents(read.__dict__))
        assert read._seen is None


def test_a_failing_pass_leaves_nothing_behind() -> None:
    with TapReader(plain(), ["conv"]) as read:
        with pytest.raises(RuntimeError):
            read(torch.zeros(1, 2, 8, 8))
        assert read._seen is None
        assert read(images())[1]["conv"].shape == (2, 4, 6, 6)


def test_the_wrapped_model_is_called_and_the_inner_one_is_hooked() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.module(value) + 1

    inner = plain().eval()
    outer = Wrapper(inner)
    with TapReader(inner, ["norm", "after_fc"], call=outer) as read:
        logits, taps = read(images())
    assert outer.calls == 1
    assert torch.equal(logits, inner(images()) + 1)
    assert taps["after_fc"] is logits
    assert torch.equal(taps["norm"], inner[:2](images()))


def test_two_readers_of_one_model_do_not_meet() -> None:
    model = plain().eval()
    with TapReader(model, ["conv"]) as first, TapReader(model, ["conv", "norm"]) as second:
        assert list(first(images())[1]) == ["conv"]
        assert list(second(images())[1]) == ["conv", "norm"]
        assert first._seen is second._seen is None


@pytest.mark.parametrize("tap", ["norm", "relu:input"])
def test_a_tap_that_a_later_layer_overwrites_is_refused(tap: str) -> None:
    with (
        TapReader(plain(inplace=True), [tap]) as read,
        pytest.raises(UsageError, match=f"{tap!r} .* in place; set inplace=False"),
    ):
        read(images())


def test_inference_mode_gives_what_was_there_before_it_was_overwritten() -> None:
    model = plain(inplace=True).eval()
    expected = copy.deepcopy(model)[:2](images())
    with TapReader(model, ["norm", "relu:input", "relu"]) as read, torch.inference_mode():
        _, taps = read(images())
    assert torch.equal(taps["norm"], expected)
    assert torch.equal(taps["relu:input"], expected)
    assert torch.equal(taps["relu"], expected.relu())


def test_a_module_that_runs_twice_gives_its_last_run() -> None:
    with TapReader(Branches(), ["twice", "twice:input"]) as read:
        _, taps = read(torch.ones(1, 2))
    assert taps["twice"].tolist() == [[4.0, 4.0]]
    assert taps["twice:input"].tolist() == [[2.0, 2.0]]


def test_a_module_that_does_not_run_or_gives_no_tensor_is_refused() -> None:
    with TapReader(Branches(), ["unused"]) as read, pytest.raises(UsageError, match=r"'unused'.*did not run"):
        read(torch.ones(1, 2))
    with TapReader(Branches(), ["pair"]) as read, pytest.raises(UsageError, match=r"'pair'.*tuple"):
        read(torch.ones(1, 2))
    with TapReader(Pair(), []) as read, pytest.raises(UsageError, match=r"output of the network.*tuple"):
        read(torch.ones(1, 2))


# Shapes


def test_shapes_of_a_plain_module() -> None:
    assert tap_shapes(plain(), (3, 8, 8)) == {"after_fc": (3,)}
    assert tap_shapes(plain(), (3, 8, 10), ["conv", "head.1"], {"before_fc": "head.3:input"}) == {
        "after_fc": (3,),
        "before_fc": (4,),
        "conv": (4, 6, 8),
        "head.1": (4,),
    }


def test_shapes_of_half_precision_and_of_modules_without_parameters() -> None:
    assert tap_shapes(plain().bfloat16(), (3, 8, 8), ["conv"])["conv"] == (4, 6, 6)
    assert tap_shapes(nn.Flatten(), (3, 8, 8)) == {"after_fc": (192,)}


def test_finding_shapes_changes_nothing() -> None:
    model = nn.Sequential(plain(), nn.Linear(3, 2), Branches())
    model.get_submodule("0.norm").eval()  # modes that differ, as in a network that is partly frozen
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    tap_shapes(model, (3, 8, 8), ["0.conv", "2.twice"])
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_shapes_put_everything_back_when_the_pass_fails() -> None:
    model = plain()
    with pytest.raises(RuntimeError):
        tap_shapes(model, (5, 8, 8))
    assert all(module.training for module in model.modules())
    assert hooks(model) == 0
