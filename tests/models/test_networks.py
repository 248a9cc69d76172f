"""The networks against a table of published sizes and against forward passes written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtool.errors import UsageError
from kdtool.models import MODELS, TapReader, create, parameters, resolve, tap_shapes, torchvision_networks

THREE = ("stem", "stage1", "stage2", "stage3", "before_fc")
FOUR = ("stem", "stage1", "stage2", "stage3", "stage4", "before_fc")
NARROW = "16@32 16@32 32@16 64@8 64"
WIDE = "16@32 32@32 64@16 128@8 128"
TIMES_FOUR = "32@32 64@32 128@16 256@8 256"

# name: parameters for 100, 10 and 200 classes, million multiply-adds at 32x32, BatchNorm layers, channels@width of taps
TABLE: dict[str, tuple[int, int, int, float, int, str]] = {
    "resnet8": (83_892, 78_042, 90_392, 12.51, 9, NARROW),
    "resnet14": (181_108, 175_258, 187_608, 26.66, 15, NARROW),
    "resnet20": (278_324, 272_474, 284_824, 40.82, 21, NARROW),
    "resnet32": (472_756, 466_906, 479_256, 69.13, 33, NARROW),
    "resnet44": (667_188, 661_338, 673_688, 97.44, 45, NARROW),
    "resnet56": (861_620, 855_770, 868_120, 125.75, 57, NARROW),
    "resnet110": (1_736_564, 1_730_714, 1_743_064, 253.16, 111, NARROW),
    "resnet8x4": (1_233_540, 1_210_410, 1_259_240, 177.07, 10, TIMES_FOUR),
    "resnet32x4": (7_433_860, 7_410_730, 7_459_560, 1083.04, 34, TIMES_FOUR),
    "wrn_16_1": (180_916, 175_066, 187_416, 26.66, 13, NARROW),
    "wrn_16_2": (703_284, 691_674, 716_184, 101.12, 13, WIDE),
    "wrn_40_1": (569_780, 563_930, 576_280, 83.29, 37, NARROW),
    "wrn_40_2": (2_255_156, 2_243_546, 2_268_056, 327.61, 37, WIDE),
    "resnet18": (11_220_132, 11_173_962, 11_271_432, 555.47, 20, "64@32 64@32 128@16 256@8 512@4 512"),
    "resnet34": (21_328_292, 21_282_122, 21_379_592, 1159.45, 36, "64@32 64@32 128@16 256@8 512@4 512"),
    "resnet18x0.5": (2_820_740, 2_797_610, 2_846_440, 139.32, 20, "32@32 32@32 64@16 128@8 256@4 256"),
}
ELSEWHERE = {
    *("allcnn", "allcnn_transfer", "densenet121"),  # test_srm_networks.py
    *(
        "vgg8",
        "vgg11",
        "vgg13",
        "vgg16",
        "vgg19",
        "mobilenetv2",
        "shufflev1",
        "shufflev2",
        "resnet50",
    ),  # test_repdistiller_networks.py
    *torchvision_networks.NETWORKS,  # test_torchvision_networks.py
}
ONE_PER_FAMILY = ("resnet14", "resnet8x4", "resnet18x0.5", "wrn_16_2")


def sizeless(name: str, classes: int = 100) -> nn.Module:
    """The network without memory for its weights: counts and shapes cost nothing."""
    with torch.device("meta"):
        return create(name, classes)


def images(count: int = 4, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, width, width, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def random_network(request: pytest.FixtureRequest) -> nn.Module:
    """A network whose BatchNorms do something: random weights, biases and running statistics."""
    torch.manual_seed(3)
    model = create(request.param, 7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def test_the_table_holds_every_network() -> None:
    assert set(TABLE) | ELSEWHERE == set(MODELS)


@pytest.mark.parametrize("name", TABLE)
def test_parameters_are_exactly_those_published(name: str) -> None:
    hundred, ten, two_hundred, *_ = TABLE[name]
    assert parameters(sizeless(name)) == hundred
    assert parameters(sizeless(name, 10)) == ten
    assert parameters(sizeless(name, 200)) == two_hundred


@pytest.mark.parametrize("name", TABLE)
def test_taps_have_the_published_shapes(name: str) -> None:
    *maps, vector = TABLE[name][5].split()
    expected: dict[str, tuple[int, ...]] = {"before_fc": (int(vector),), "after_fc": (100,)}
    for number, text in enumerate(maps):
        channels, width = map(int, text.split("@"))
        expected[f"stage{number}" if number else "stem"] = (channels, width, width)
        if number:
            expected[f"stage{number}.preact"] = (channels, width, width)
    assert tap_shapes(sizeless(name), (3, 32, 32)) == expected


@pytest.mark.parametrize("name", TABLE)
def test_cost_and_depth_are_those_published(name: str) -> None:
    model = sizeless(name)
    cost = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = module.get_parameter("weight")
        cost.append(weight[0].numel() * output[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 32, 32, device="meta"))
    assert round(sum(cost) / 1e6, 2) == TABLE[name][3]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == TABLE[name][4]


@pytest.mark.parametrize("name", ["resnet8", "resnet18x0.5", "wrn_16_1"])
@pytest.mark.parametrize("width", [8, 28, 64])
def test_any_image_size_works(name: str, width: int) -> None:
    assert create(name, 5)(images(2, width)).shape == (2, 5)


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, 5)
    F.cross_entropy(model(images()), torch.tensor([0, 1, 2, 3])).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.abs().sum() > 0, path


def normalised(block: nn.Module, number: int, value: torch.Tensor) -> torch.Tensor:
    """BatchNorm in eval mode, from its formula."""
    norm = block.get_submodule(f"bn{number}") if number else block
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = norm.get_parameter("weight") / torch.sqrt(variance + 1e-5)
    return (value - mean[:, None, None]) * scale[:, None, None] + norm.get_parameter("bias")[:, None, None]


def convolved(block: nn.Module, path: str, value: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight = block.get_submodule(path).get_parameter("weight")
    return F.conv2d(value, weight, stride=stride, padding=weight.shape[-1] // 2)


def classified(model: nn.Module, taps: dict[str, torch.Tensor], last: torch.Tensor) -> dict[str, torch.Tensor]:
    fc = model.get_submodule("fc")
    taps["before_fc"] = last.flatten(2).sum(2) / last[0, 0].numel()
    taps["after_fc"] = taps["before_fc"] @ fc.get_parameter("weight").T + fc.get_parameter("bias")
    return taps


def resnet_by_hand(model: nn.Module, value: torch.Tensor) -> dict[str, torch.Tensor]:
    stem = model.get_submodule("stem")
    value = normalised(stem.get_submodule("1"), 0, convolved(stem, "0", value)).relu()
    taps = {"stem": value}
    stages = [(path, stage) for path, stage in model.named_children() if path.startswith("stage")]
    for path, stage in stages:
        for position, block in enumerate(stage.children()):
            stride = 2 if position == 0 and path != "stage1" else 1
            inner = normalised(block, 1, convolved(block, "conv1", value, stride)).relu()
            total = normalised(block, 2, convolved(block, "conv2", inner))
            if stride == 2 or total.shape[1] != value.shape[1]:
                projection = convolved(block, "shortcut.0", value, stride)
                value = normalised(block.get_submodule("shortcut.1"), 0, projection)
            taps[f"{path}.preact"] = total + value
            value = taps[path] = (total + value).relu()
    return classified(model, taps, value)


def wide_resnet_by_hand(model: nn.Module, value: torch.Tensor) -> dict[str, torch.Tensor]:
    value = convolved(model, "stem", value)
    taps = {"stem": value}
    for number in (1, 2, 3):
        for position, block in enumerate(model.get_submodule(f"stage{number}").children()):
            stride = 2 if position == 0 and number > 1 else 1
            active = normalised(block, 1, value)
            if position == 0 and number > 1:
                taps[f"stage{number - 1}.preact"] = active
            active = active.relu()
            inner = normalised(block, 2, convolved(block, "conv1", active, stride)).relu()
            total = convolved(block, "conv2", inner)
            widens = total.shape[1] != value.shape[1]
            value = total + (convolved(block, "shortcut", active, stride) if widens else value)
        taps[f"stage{number}"] = value
    taps["stage3.preact"] = normalised(model.get_submodule("bn"), 0, value)
    return classified(model, taps, taps["stage3.preact"].relu())


@pytest.mark.parametrize("random_network", ONE_PER_FAMILY, indirect=True)
def test_taps_equal_a_forward_pass_by_hand(random_network: nn.Module, request: pytest.FixtureRequest) -> None:
    by_hand = wide_resnet_by_hand if "wrn" in request.node.name else resnet_by_hand
    expected = by_hand(random_network, images().double())
    with TapReader(random_network, list(expected)) as read, torch.no_grad():
        logits, taps = read(images().double())
    assert set(expected) == set(tap_shapes(random_network, (3, 32, 32)))
    torch.testing.assert_close(taps, {name: expected[name] for name in taps}, rtol=1e-10, atol=1e-10)
    assert logits is taps["after_fc"]


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn_16_2"])
def test_convolutions_start_with_the_stated_variance(name: str) -> None:
    torch.manual_seed(0)
    model = create(name)
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            count = module.weight.numel()  # the standard error of a deviation is expected / sqrt(2 count)
            assert abs(module.weight.std().item() - expected) < 4 * expected / math.sqrt(2 * count), path
            assert abs(module.weight.mean().item()) < 4 * expected / math.sqrt(count), path


def test_the_classifier_of_a_wide_resnet_starts_without_bias() -> None:
    model = create("wrn_16_1")
    assert model.get_parameter("fc.bias").abs().max() == 0
    assert create("resnet8").get_parameter("fc.bias").abs().max() > 0


def test_kda_networks_start_as_pytorch_does() -> None:
    torch.manual_seed(0)
    model = create("resnet18x0.5")
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.9 * bound < module.weight.abs().max() <= bound, path


def test_equal_seeds_give_equal_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(11)
        states.append(create("wrn_16_1", 3).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_no_layer_works_in_place() -> None:
    for name in MODELS:
        assert not any(getattr(module, "inplace", False) for module in sizeless(name).modules()), name


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown network 'resnet-18'; did you mean 'resnet18'"):
        create("resnet-18")


@pytest.mark.parametrize("classes", [-1, 0, 1])
def test_fewer_than_two_classes_are_refused(classes: int) -> None:
    with pytest.raises(UsageError, match="tells 2 to 1,000,000 apart"):
        create("resnet8", classes)


def test_kda_names_of_stages_stand_for_stages() -> None:
    model = sizeless("resnet34")
    names = ("conv3_x", "conv4_x", "conv5_x")
    assert resolve(model, names) == {"conv3_x": "stage2", "conv4_x": "stage3", "conv5_x": "stage4"}
    shapes = tap_shapes(model, (3, 32, 32), names)
    assert [shapes[name] for name in names] == [(128, 16, 16), (256, 8, 8), (512, 4, 4)]
