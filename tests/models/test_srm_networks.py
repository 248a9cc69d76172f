"""The networks of SRM against the sizes of its paper and code, and against forward passes written out by hand."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtool.models import TapReader, create, parameters, tap_shapes

# name and classes: parameters of the whole, and of its parts by path
PARAMETERS: dict[tuple[str, int], tuple[int, dict[str, int]]] = {
    ("allcnn", 100): (
        2_182_413,
        {"stage1": 73_710, "stage2": 358_344, "stage3": 700_056, "stage4": 1_024_903, "fc": 25_400},
    ),
    ("densenet121", 100): (
        7_058_788,
        {
            "stem": 1_792,
            "stage1.0": 336_000,
            "stage1.1": 33_408,
            "stage2.0": 921_600,
            "stage2.1": 132_352,
            "stage3.0": 2_841_600,
            "stage3.1": 526_848,
            "stage4": 2_160_640,
            "bn": 2_048,
            "fc": 102_500,
        },
    ),
    ("allcnn_transfer", 102): (5_072_934, {}),
    ("allcnn_transfer", 200): (5_110_664, {}),
    ("allcnn_transfer", 196): (5_109_124, {}),
    ("allcnn_transfer", 67): (5_059_459, {}),
    ("allcnn_transfer", 83): (5_065_619, {}),
}
# name: width of the image, million multiply-adds and half of their last known digit, channels@width of taps
TAPS = {
    "allcnn": (32, 160.4, 0.05, "stage1=63@16 stage2=126@8 stage3=168@4 stage4=253@4 before_fc=253"),
    "densenet121": (
        32,
        888.4,
        0.05,
        "stem=64@32 stage1=128@16 stage2=256@8 stage3=512@4 stage4=1024@4 before_fc=1024",
    ),
    "allcnn_transfer": (
        224,
        1346.0,
        0.5,
        "stem=48@56 stage1=96@28 stage2=192@14 stage3=256@7 stage4=384@7 before_fc=384",
    ),
}


def sizeless(name: str, classes: int = 100) -> nn.Module:
    """The network without memory for its weights: counts and shapes cost nothing."""
    with torch.device("meta"):
        return create(name, classes)


def images(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, 3, width, width, generator=torch.Generator().manual_seed(5))


def weighted(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield path, module


def biases_of_convolutions(model: nn.Module) -> set[str]:
    return {f"{path}.bias" for path, module in weighted(model) if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize(("name", "classes"), PARAMETERS)
def test_parameters_are_exactly_those_published(name: str, classes: int) -> None:
    model = sizeless(name, classes)
    whole, parts = PARAMETERS[name, classes]
    assert parameters(model) == whole
    assert {path: parameters(model.get_submodule(path)) for path in parts} == parts


@pytest.mark.parametrize(("name", "expected"), [("allcnn", 2_180_583), ("densenet121", 7_048_548)])
def test_every_convolution_has_a_bias(name: str, expected: int) -> None:
    model = sizeless(name)
    biases = sum(model.get_parameter(path).numel() for path in biases_of_convolutions(model))
    assert parameters(model) - biases == expected


@pytest.mark.parametrize("name", TAPS)
def test_taps_have_the_published_shapes(name: str) -> None:
    width, _, _, text = TAPS[name]
    expected: dict[str, tuple[int, ...]] = {"after_fc": (100,)}
    for tap, shape in (item.split("=") for item in text.split()):
        channels, *size = map(int, shape.split("@"))
        expected[tap] = (channels, *size, *size)
        if "allcnn" in name and "stage" in tap:
            expected[f"{tap}.preact"] = expected[tap]
    assert tap_shapes(sizeless(name), (3, width, width)) == expected


@pytest.mark.parametrize("name", TAPS)
def test_cost_is_that_published(name: str) -> None:
    width, expected, rounding, _ = TAPS[name]
    model = sizeless(name)
    cost = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        cost.append(module.get_parameter("weight")[0].numel() * output[0].numel())

    for _, module in weighted(model):
        module.register_forward_hook(count)
    model(torch.zeros(1, 3, width, width, device="meta"))
    assert sum(cost) / 1e6 == pytest.approx(expected, abs=rounding, rel=0)


@pytest.mark.parametrize(
    ("name", "width"),
    [("allcnn", 16), ("allcnn", 27), ("densenet121", 8), ("densenet121", 21), ("allcnn_transfer", 96)],
)
def test_other_image_sizes_work(name: str, width: int) -> None:
    logits = create(name, 5).eval()(images(1, width))
    assert logits.shape == (1, 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", TAPS)
def test_a_training_step_of_the_size_it_is_made_for_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, 5)
    F.cross_entropy(model(images(2, TAPS[name][0])), torch.tensor([0, 4])).backward()
    removed = biases_of_convolutions(model)  # by the BatchNorm that follows: their gradient is rounding
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert path in removed or parameter.grad.abs().sum() > 0, path


@pytest.mark.parametrize("name", TAPS)
def test_initialisation_has_the_stated_distribution(name: str) -> None:
    torch.manual_seed(0)
    model = create(name)
    standardised, biases = [], []
    for path, module in weighted(model):
        values = module.weight.detach().flatten() / math.sqrt(2 / module.weight[0].numel())
        assert abs(values.std().item() - 1) < 4.5 / math.sqrt(2 * len(values)), path
        assert abs(values.mean().item()) < 4.5 / math.sqrt(len(values)), path
        standardised.append(values)
        biases.append(module.get_parameter("bias").detach())
    for values in (torch.cat(standardised), torch.cat(biases)):
        error = 1 / math.sqrt(len(values))
        assert abs(values.double().mean().item()) < 4 * error
        assert abs(values.double().std().item() - 1) < 4 * error
        inside = (values.abs() < 1).double().mean().item()  # 0.577 of a uniform distribution of deviation 1
        assert abs(inside - math.erf(math.sqrt(0.5))) < 4 * error
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


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


def normalised(model: nn.Module, path: str, value: torch.Tensor) -> torch.Tensor:
    """BatchNorm in eval mode, from its formula."""
    norm = model.get_submodule(path)
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = norm.get_parameter("weight") / torch.sqrt(variance + 1e-5)
    return (value - mean[:, None, None]) * scale[:, None, None] + norm.get_parameter("bias")[:, None, None]


def convolved(model: nn.Module, path: str, value: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight, bias = model.get_parameter(f"{path}.weight"), model.get_parameter(f"{path}.bias")
    return F.conv2d(value, weight, stride=stride, padding=weight.shape[-1] // 2) + bias[:, None, None]


def classified(model: nn.Module, taps: dict[str, torch.Tensor], last: torch.Tensor) -> dict[str, torch.Tensor]:
    taps["before_fc"] = last.flatten(2).sum(2) / last[0, 0].numel()
    taps["after_fc"] = taps["before_fc"] @ model.get_parameter("fc.weight").T + model.get_parameter("fc.bias")
    return taps


def pooled_by_maximum(value: torch.Tensor) -> torch.Tensor:
    """Windows of 3x3 around every second position; what lies outside does not count."""
    size = value.shape[-1]
    rows = [value[:, :, max(0, at - 1) : at + 2].amax(2) for at in range(0, size, 2)]
    columns = torch.stack(rows, 2)
    return torch.stack([columns[..., max(0, at - 1) : at + 2].amax(3) for at in range(0, size, 2)], 3)


def allcnn_by_hand(model: nn.Module, value: torch.Tensor) -> dict[str, torch.Tensor]:
    taps = {}
    if hasattr(model, "stem"):
        active = normalised(model, "stem.1", convolved(model, "stem.0", value, stride=2)).clamp(min=0)
        value = taps["stem"] = pooled_by_maximum(active)
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        for layer in range(3):
            stride = 2 if layer == 2 and stage != "stage4" else 1
            value = normalised(model, f"{stage}.{layer}.1", convolved(model, f"{stage}.{layer}.0", value, stride))
            taps[f"{stage}.preact"] = value
            value = torch.where(value > 0, value, 0.1 * value)
        taps[stage] = value
    return classified(model, taps, value)


def densenet_by_hand(model: nn.Module, value: torch.Tensor) -> dict[str, torch.Tensor]:
    value = convolved(model, "stem", value)
    taps = {"stem": value}
    for stage, layers in {"stage1": 6, "stage2": 12, "stage3": 24, "stage4": 16}.items():
        block = stage if stage == "stage4" else f"{stage}.0"
        for layer in (f"{block}.{position}" for position in range(layers)):
            narrow = convolved(model, f"{layer}.conv1", normalised(model, f"{layer}.bn1", value).relu())
            new = convolved(model, f"{layer}.conv2", normalised(model, f"{layer}.bn2", narrow).relu())
            value = torch.cat([new, value], 1)
        if stage != "stage4":
            value = convolved(model, f"{stage}.1.2", normalised(model, f"{stage}.1.0", value).relu())
            value = sum(value[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)) / 4
        taps[stage] = value
    return classified(model, taps, normalised(model, "bn", value).relu())


@pytest.mark.parametrize(
    ("random_network", "width"),
    [("allcnn", 16), ("densenet121", 16), ("allcnn_transfer", 32)],
    indirect=["random_network"],
)
def test_taps_equal_a_forward_pass_by_hand(
    random_network: nn.Module, width: int, request: pytest.FixtureRequest
) -> None:
    by_hand = densenet_by_hand if "densenet" in request.node.name else allcnn_by_hand
    batch = images(2, width).double()
    with torch.no_grad(), TapReader(random_network, list(tap_shapes(random_network, (3, width, width)))) as read:
        expected = by_hand(random_network, batch)
        logits, taps = read(batch)
    assert set(expected) == set(taps)
    torch.testing.assert_close(taps, {name: expected[name] for name in taps}, rtol=1e-10, atol=1e-10)
    assert logits is taps["after_fc"]
