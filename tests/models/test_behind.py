"""Which parameters a tap is computed from, against what the architectures say."""

import pytest
import torch
from torch import nn

from kdtool.models import create
from kdtool.models.taps import parameters_behind

IMAGE = (3, 16, 16)


def prefixes(name: str, *taps: str) -> tuple[set[str], set[str]]:
    """Top-level modules of which all parameters, and of which some, lie behind taps."""
    model = create(name, 4)
    behind = parameters_behind(model, taps, IMAGE)
    of = {
        part: [name for name, _ in model.named_parameters() if name.startswith(f"{part}.")] for part in children(model)
    }
    whole = {part for part, names in of.items() if behind >= set(names)}
    return whole, {part for part, names in of.items() if behind & set(names)} - whole


def children(model: nn.Module) -> list[str]:
    return [name for name, child in model.named_children() if list(child.parameters())]


def test_stages_of_a_residual_network() -> None:
    assert prefixes("resnet8", "stage2") == ({"stem", "stage1", "stage2"}, set())
    assert prefixes("resnet8", "stage1", "stage3") == ({"stem", "stage1", "stage2", "stage3"}, set())
    assert prefixes("resnet8", "after_fc") == (set(children(create("resnet8", 4))), set())
    assert prefixes("resnet8", "stage3.preact") == ({"stem", "stage1", "stage2", "stage3"}, set())


def test_the_last_norm_of_a_wide_network_is_not_behind_its_last_stage() -> None:
    assert prefixes("wrn_16_1", "stage3") == ({"stem", "stage1", "stage2", "stage3"}, set())
    assert prefixes("wrn_16_1", "stage3.preact") == ({"stem", "stage1", "stage2", "stage3", "bn"}, set())
    assert prefixes("wrn_16_1", "stage1.preact") == ({"stem", "stage1"}, {"stage2"})


def test_the_last_norm_of_a_densenet_is_not_behind_its_last_stage() -> None:
    stages = {"stem", "stage1", "stage2", "stage3", "stage4"}
    assert prefixes("densenet121", "stage4") == (stages, set())
    assert prefixes("densenet121", "before_fc") == (stages | {"bn"}, set())


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_network_changes(training: bool) -> None:
    model = create("resnet8", 4).train(training)
    model.stem.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert any(name.startswith("stem") for name in parameters_behind(model, ["stage1"], IMAGE))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.stem.parameters())
    assert torch.equal(generator, torch.get_rng_state())
