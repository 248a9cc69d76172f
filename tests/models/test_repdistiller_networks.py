"""RepDistiller's other CIFAR networks against a table of published sizes and forward passes written out by hand."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtool.models import (
    TapReader,
    bottleneck,
    mobilenet,
    multiply_adds,
    parameters,
    shufflenet_v1,
    shufflenet_v2,
    tap_shapes,
    vgg,
)

State = dict[str, torch.Tensor]
Taps = dict[str, torch.Tensor]

NETWORKS = {
    **vgg.NETWORKS,
    **mobilenet.NETWORKS,
    **shufflenet_v1.NETWORKS,
    **shufflenet_v2.NETWORKS,
    **bottleneck.NETWORKS,
}
VGG = "64@32 128@16 256@8 512@4 512@4 512"

# name: parameters for 100, 10 and 200 classes, million multiply-adds at 32x32, BatchNorm layers, channels@width of taps
TABLE: dict[str, tuple[int, int, int, float, int, str]] = {
    "vgg8": (3_965_028, 3_918_858, 4_016_328, 96.19, 5, VGG),
    "vgg11": (9_277_284, 9_231_114, 9_328_584, 209.44, 8, VGG),
    "vgg13": (9_462_180, 9_416_010, 9_513_480, 284.94, 10, VGG),
    "vgg16": (14_774_436, 14_728_266, 14_825_736, 398.18, 13, VGG),
    "vgg19": (20_086_692, 20_040_522, 20_137_992, 511.43, 16, VGG),
    "mobilenetv2": (812_836, 697_546, 940_936, 6.52, 53, "16@16 12@16 16@8 48@4 160@2 1280"),
    "shufflev1": (949_258, 862_768, 1_045_358, 38.69, 49, "24@32 240@16 480@8 960@4 960"),
    "shufflev2": (1_355_528, 1_263_278, 1_458_028, 44.50, 56, "24@32 116@16 232@8 464@4 1024"),
    "resnet50": (23_705_252, 23_520_842, 23_910_152, 1298.01, 53, "64@32 256@32 512@16 1024@8 2048@4 2048"),
}
ONE_PER_FAMILY = ("vgg11", "mobilenetv2", "shufflev1", "shufflev2", "resnet50")
BY_FAN_OUT = ("vgg11", "mobilenetv2", "resnet50")
SMALL_CLASSIFIER = ("vgg11", "mobilenetv2")


def sizeless(name: str, classes: int = 100) -> nn.Module:
    """The network without memory for its weights: counts and shapes cost nothing."""
    with torch.device("meta"):
        return NETWORKS[name](classes)


def seeded(name: str, classes: int) -> nn.Module:
    torch.manual_seed(3)
    return NETWORKS[name](classes)


def images(count: int, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, width, width, generator=torch.Generator().manual_seed(5))


def published_shapes(text: str, factor: int = 1) -> dict[str, tuple[int, ...]]:
    *maps, vector = text.split()
    expected: dict[str, tuple[int, ...]] = {"before_fc": (int(vector),), "after_fc": (100,)}
    for number, item in enumerate(maps):
        channels, width = map(int, item.split("@"))
        expected[f"stage{number}" if number else "stem"] = (channels, factor * width, factor * width)
        if number:
            expected[f"stage{number}.preact"] = (channels, factor * width, factor * width)
    return expected


def test_the_table_holds_every_network() -> None:
    assert set(TABLE) == set(NETWORKS)


@pytest.mark.parametrize("name", TABLE)
def test_parameters_are_exactly_those_published(name: str) -> None:
    assert tuple(parameters(sizeless(name, classes)) for classes in (100, 10, 200)) == TABLE[name][:3]


@pytest.mark.parametrize("name", TABLE)
def test_taps_have_the_published_shapes(name: str) -> None:
    assert tap_shapes(sizeless(name), (3, 32, 32)) == published_shapes(TABLE[name][5])


@pytest.mark.parametrize("name", TABLE)
def test_taps_of_images_of_64_are_twice_as_wide(name: str) -> None:
    expected = published_shapes(TABLE[name][5], factor=2)
    if name in vgg.NETWORKS:  # these pool once more, behind stage3
        expected |= dict.fromkeys(("stage4", "stage4.preact"), (512, 4, 4))
    assert tap_shapes(sizeless(name), (3, 64, 64)) == expected


@pytest.mark.parametrize("name", TABLE)
def test_cost_and_depth_are_those_published(name: str) -> None:
    model = sizeless(name)
    assert round(multiply_adds(model, (3, 32, 32)) / 1e6, 2) == TABLE[name][3]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == TABLE[name][4]


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
@pytest.mark.parametrize("width", [8, 28, 96])
def test_other_image_sizes_work(name: str, width: int) -> None:
    assert tap_shapes(sizeless(name, 5), (3, width, width))["after_fc"] == (5,)


@pytest.mark.parametrize(("width", "expected"), [(32, 4), (56, 7), (64, 4), (72, 9), (96, 12)])
def test_vgg_pools_behind_stage3_for_images_of_64_alone(width: int, expected: int) -> None:
    shapes = tap_shapes(sizeless("vgg8"), (3, width, width))
    assert shapes["stage3"] == (512, width // 8, width // 8)
    assert shapes["stage4"] == (512, expected, expected)


def test_no_layer_works_in_place() -> None:
    for name in NETWORKS:
        assert not any(getattr(module, "inplace", False) for module in sizeless(name).modules()), name


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    model = seeded(name, 5)
    F.cross_entropy(model(images(4)), torch.tensor([0, 1, 2, 3])).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        # BatchNorm takes the biases of vgg's convolutions out again: their gradient is rounding
        removed = name == "vgg11" and path.endswith("bias") and path.split(".")[-2] in {"0", "3"}
        assert removed or parameter.grad.abs().sum() > 0, path


# Forward passes from the state alone


def normalised(state: State, path: str, value: torch.Tensor) -> torch.Tensor:
    """BatchNorm in eval mode, from its formula."""
    scale = state[f"{path}.weight"] / torch.sqrt(state[f"{path}.running_var"] + 1e-5)
    shifted = (value - state[f"{path}.running_mean"][:, None, None]) * scale[:, None, None]
    return shifted + state[f"{path}.bias"][:, None, None]


def convolved(state: State, path: str, value: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """A convolution with as many groups as its weight's shape says."""
    weight = state[f"{path}.weight"]
    return F.conv2d(
        value,
        weight,
        state.get(f"{path}.bias"),
        stride=stride,
        padding=weight.shape[-1] // 2,
        groups=value.shape[1] // weight.shape[1],
    )


def layer(state: State, path: str, value: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """Convolution PATH.0 and BatchNorm PATH.1."""
    return normalised(state, f"{path}.1", convolved(state, f"{path}.0", value, stride))


def numbered(state: State, unit: str, number: int, value: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """Convolution UNIT.convN and BatchNorm UNIT.bnN."""
    return normalised(state, f"{unit}.bn{number}", convolved(state, f"{unit}.conv{number}", value, stride))


def shuffled(value: torch.Tensor, groups: int) -> torch.Tensor:
    """The first channel of each group, then the second of each.."""
    size = value.shape[1] // groups
    return value[:, [group * size + position for position in range(size) for group in range(groups)]]


def classified(state: State, taps: Taps, last: torch.Tensor) -> Taps:
    taps["before_fc"] = last.flatten(2).sum(2) / last[0, 0].numel()
    taps["after_fc"] = taps["before_fc"] @ state["fc.weight"].T + state["fc.bias"]
    return taps


def vgg11_by_hand(state: State, value: torch.Tensor) -> Taps:
    taps = {}
    width = value.shape[-1]
    for number, layers in enumerate((1, 1, 2, 2, 2)):
        name = f"stage{number}" if number else "stem"
        for position in range(layers):
            convolution = convolved(state, f"{name}.{3 * position}", value)
            before = normalised(state, f"{name}.{3 * position + 1}", convolution)
            value = before.relu()
        if number:
            taps[f"{name}.preact"] = before
        taps[name] = value
        if number < 3 or (number == 3 and width == 64):
            value = F.max_pool2d(value, 2, 2)
    return classified(state, taps, value)


def mobilenetv2_by_hand(state: State, value: torch.Tensor) -> Taps:
    value = layer(state, "stem", value, 2).relu()
    taps = {"stem": value}
    #         (group of blocks, its number of blocks, stride of the first)
    stages = {"stage1": ((0, 1, 1), (1, 2, 1)), "stage2": ((0, 3, 2),)}
    stages |= {"stage3": ((0, 4, 2), (1, 3, 1)), "stage4": ((0, 3, 2), (1, 1, 1))}
    for name, groups in stages.items():
        for group, blocks, first in groups:
            for position in range(blocks):
                block = f"{name}.{group}.{position}"
                wide = layer(state, f"{block}.expand", value).relu()
                wide = layer(state, f"{block}.depthwise", wide, 1 if position else first).relu()
                narrow = layer(state, f"{block}.narrow", wide)
                value = value + narrow if value.shape == narrow.shape else narrow
        taps[name] = taps[f"{name}.preact"] = value
    return classified(state, taps, layer(state, "last", value).relu())


def shufflev1_by_hand(state: State, value: torch.Tensor) -> Taps:
    value = layer(state, "stem", value).relu()
    taps = {"stem": value}
    for name, units in {"stage1": 4, "stage2": 8, "stage3": 4}.items():
        for position in range(units):
            unit = f"{name}.{position}"
            inner = shuffled(numbered(state, unit, 1, value).relu(), 1 if unit == "stage1.0" else 3)
            inner = numbered(state, unit, 2, inner, 1 if position else 2).relu()
            new = numbered(state, unit, 3, inner)
            taps[f"{name}.preact"] = value + new if position else torch.cat([new, F.avg_pool2d(value, 3, 2, 1)], 1)
            value = taps[name] = taps[f"{name}.preact"].relu()
    return classified(state, taps, value)


def shufflev2_by_hand(state: State, value: torch.Tensor) -> Taps:
    """The half that passes a unit meets no ReLU here."""
    value = layer(state, "stem", value).relu()
    taps = {"stem": value}
    for name, units in {"stage1": 4, "stage2": 8, "stage3": 4}.items():
        for position in range(units):
            unit = f"{name}.{position}"
            half = value.shape[1] // 2
            enters, stride = (value[:, half:], 1) if position else (value, 2)
            inner = layer(state, f"{unit}.branch.0", enters).relu()
            before = layer(state, f"{unit}.branch.3", layer(state, f"{unit}.branch.2", inner, stride))
            if position:
                passes = value[:, :half]
            else:
                passes = layer(state, f"{unit}.short.1", layer(state, f"{unit}.short.0", value, 2)).relu()
            taps[f"{name}.preact"] = torch.cat([passes, before], 1)
            value = taps[name] = shuffled(torch.cat([passes, before.relu()], 1), 2)
    return classified(state, taps, layer(state, "last", value).relu())


def resnet50_by_hand(state: State, value: torch.Tensor) -> Taps:
    value = layer(state, "stem", value).relu()
    taps = {"stem": value}
    for name, blocks in {"stage1": 3, "stage2": 4, "stage3": 6, "stage4": 3}.items():
        for position in range(blocks):
            block = f"{name}.{position}"
            stride = 2 if position == 0 and name != "stage1" else 1
            inner = numbered(state, block, 1, value).relu()
            inner = numbered(state, block, 2, inner, stride).relu()
            shortcut = value if position else layer(state, f"{block}.shortcut", value, stride)
            taps[f"{name}.preact"] = numbered(state, block, 3, inner) + shortcut
            value = taps[name] = taps[f"{name}.preact"].relu()
    return classified(state, taps, value)


BY_HAND: dict[str, Callable[[State, torch.Tensor], Taps]] = {
    "vgg11": vgg11_by_hand,
    "mobilenetv2": mobilenetv2_by_hand,
    "shufflev1": shufflev1_by_hand,
    "shufflev2": shufflev2_by_hand,
    "resnet50": resnet50_by_hand,
}


@pytest.fixture
def random_network(request: pytest.FixtureRequest) -> nn.Module:
    """A network whose BatchNorms and biases do something: random weights, biases and running statistics."""
    model = seeded(request.param, 7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for path, parameter in model.named_parameters():
        if path.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.3)
    return model.double().eval()


@pytest.mark.parametrize(
    ("random_network", "width"),
    [
        ("vgg11", 32),
        ("vgg11", 64),
        ("mobilenetv2", 32),
        ("mobilenetv2", 64),
        ("shufflev1", 32),
        ("shufflev2", 32),
        ("shufflev2", 64),
        ("resnet50", 16),
    ],
    indirect=["random_network"],
)
def test_taps_and_gradients_equal_a_forward_pass_by_hand(
    random_network: nn.Module, width: int, request: pytest.FixtureRequest
) -> None:
    (by_hand,) = (function for name, function in BY_HAND.items() if f"[{name}-" in request.node.name)
    ours, theirs = (images(2, width).double().requires_grad_() for _ in range(2))
    expected = by_hand(dict(random_network.state_dict()), theirs)
    with TapReader(random_network, list(expected)) as read:
        logits, taps = read(ours)
    assert set(expected) == set(tap_shapes(random_network, (3, width, width)))
    assert logits is taps["after_fc"]
    torch.testing.assert_close(taps, {name: expected[name] for name in taps}, rtol=1e-10, atol=1e-10)
    gradient, wanted = (
        torch.autograd.grad(sum(values[name].square().mean() for name in taps), batch)[0]
        for values, batch in ((taps, ours), (expected, theirs))
    )
    torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-12 * wanted.abs().max().item())


# Initialisation


def weighted(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield path, module


def check_normal(values: torch.Tensor) -> None:
    """Four standard errors around a standard normal distribution's mean, deviation and share within one deviation."""
    error = 1 / math.sqrt(len(values))
    assert abs(values.double().mean().item()) < 4 * error
    assert abs(values.double().std().item() - 1) < 4 * error
    inside = (values.abs() < 1).double().mean().item()  # 0.577 of a uniform distribution of deviation 1
    assert abs(inside - math.erf(math.sqrt(0.5))) < 4 * error


@pytest.mark.parametrize("name", BY_FAN_OUT)
def test_convolutions_start_normal_by_their_fan_out(name: str) -> None:
    standardised = []
    for path, module in weighted(seeded(name, 100)):
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            values = module.weight.detach().flatten() / deviation
            assert abs(values.std().item() - 1) < 4.5 / math.sqrt(2 * len(values)), path
            assert abs(values.mean().item()) < 4.5 / math.sqrt(len(values)), path
            standardised.append(values)
            assert module.bias is None or (module.bias == 0).all(), path
    check_normal(torch.cat(standardised))


@pytest.mark.parametrize("name", SMALL_CLASSIFIER)
def test_some_classifiers_start_small_and_without_bias(name: str) -> None:
    classifier = seeded(name, 100).get_submodule("fc")
    check_normal(classifier.get_parameter("weight").detach().flatten() / 0.01)
    assert (classifier.get_parameter("bias") == 0).all()


@pytest.mark.parametrize("name", ["shufflev1", "shufflev2", "resnet50"])
def test_the_rest_starts_as_pytorch_does(name: str) -> None:
    for path, module in weighted(seeded(name, 100)):
        if name in BY_FAN_OUT and isinstance(module, nn.Conv2d):
            continue
        bound = 1 / math.sqrt(module.weight[0].numel())
        values = module.weight.detach().flatten() / bound
        assert values.abs().max() <= 1, path
        assert abs(values.std().item() - 1 / math.sqrt(3)) < 4.5 * math.sqrt(1 / 15 / len(values)), path
        if module.bias is not None:
            assert 0.8 * bound < module.bias.abs().max() <= bound, path


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_batchnorms_start_neutral(name: str) -> None:
    for module in seeded(name, 2).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
