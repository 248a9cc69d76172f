"""torchvision's networks against its own published sizes, and their taps against the layers that compute them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtool.errors import ResourceError, UsageError
from kdtool.models import MODELS, TapReader, check_name, check_output, create, multiply_adds, parameters, tap_shapes
from kdtool.models import torchvision_networks as networks
from kdtool.models.heads import head

models = pytest.importorskip("torchvision.models")

IMAGE = (3, 224, 224)
RESNET = "64@56 64@56 128@28 256@14 512@7"
BOTTLENECK = "64@56 256@56 512@28 1024@14 2048@7"
# name: enum of published weights, billion multiply-adds for 1000 classes, path of the classifier, stem and stages
TABLE = {
    "resnet18": ("ResNet18_Weights", 1.814, "fc", f"{RESNET} 512"),
    "resnet34": ("ResNet34_Weights", 3.664, "fc", f"{RESNET} 512"),
    "resnet50": ("ResNet50_Weights", 4.089, "fc", f"{BOTTLENECK} 2048"),
    "resnext50_32x4d": ("ResNeXt50_32X4D_Weights", 4.230, "fc", f"{BOTTLENECK} 2048"),
    "densenet121": ("DenseNet121_Weights", 2.834, "classifier", "64@56 128@28 256@14 512@7 1024@7 1024"),
    "shufflenet_v2_x1_0": ("ShuffleNet_V2_X1_0_Weights", 0.145, "fc", "24@56 116@28 232@14 464@7 1024"),
    "mobilenet_v2": ("MobileNet_V2_Weights", 0.301, "classifier.1", "32@112 24@56 32@28 96@14 320@7 1280"),
}


def sizeless(name: str, classes: int) -> nn.Module:
    """The network without memory for its weights: counts and shapes cost nothing."""
    with torch.device("meta"):
        return create(f"tv:{name}", classes)


def images(width: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, width, width, generator=torch.Generator().manual_seed(3))


def test_the_seven_are_listed() -> None:
    assert {name for name in MODELS if ":" in name} == {f"tv:{name}" for name in TABLE}


@pytest.mark.parametrize("name", TABLE)
def test_sizes_are_those_that_torchvision_publishes(name: str) -> None:
    enum, billions, *_ = TABLE[name]
    model = sizeless(name, 1000)
    meta = getattr(models, enum).DEFAULT.meta
    assert parameters(model) == meta["num_params"]
    assert round(multiply_adds(model, IMAGE) / 1e9, 3) == billions
    assert meta["_ops"] == pytest.approx(billions, abs=0.01)


def test_sizes_are_those_of_srm_and_kda() -> None:
    assert parameters(sizeless("resnet18", 200)) == 11_279_112
    assert round(multiply_adds(sizeless("resnet18", 200), IMAGE) / 1e9, 3) == 1.814
    assert parameters(sizeless("resnext50_32x4d", 200)) == 23_389_704
    assert parameters(sizeless("resnet34", 1000)) == 21_797_672
    assert parameters(sizeless("resnet18", 67)) == 11_210_883


@pytest.mark.parametrize("name", TABLE)
def test_taps_have_the_shapes_of_their_names(name: str) -> None:
    *maps, vector = TABLE[name][3].split()
    expected: dict[str, tuple[int, ...]] = {"before_fc": (int(vector),), "after_fc": (200,)}
    for number, text in enumerate(maps):
        channels, width = map(int, text.split("@"))
        expected[f"stage{number}" if number else "stem"] = (channels, width, width)
        if number and name.startswith("res"):
            expected[f"stage{number}.preact"] = (channels, width, width)
    assert tap_shapes(sizeless(name, 200), IMAGE) == expected


@pytest.mark.parametrize("name", TABLE)
def test_the_classifier_makes_the_logits_of_the_vector(name: str) -> None:
    model = create(f"tv:{name}", 5).eval()
    assert head(model) == TABLE[name][2]
    layer = model.get_submodule(head(model))
    with TapReader(model, list(tap_shapes(model, (3, 64, 64)))) as read:
        logits, taps = read(images())
    assert torch.equal(layer(taps["before_fc"]), logits)
    assert taps["before_fc"].dim() == 2
    for tap in (tap for tap in taps if tap.endswith(".preact")):
        assert taps[tap].min() < 0
        assert torch.equal(taps[tap].relu(), taps[tap.removesuffix(".preact")])


@pytest.mark.parametrize("name", TABLE)
def test_layers_out_of_place_give_the_same_bits_and_gradients(name: str) -> None:
    results = []
    for build in (lambda: models.get_model(name, weights=None, num_classes=3), lambda: create(f"tv:{name}", 3)):
        torch.manual_seed(4)
        model = build()
        logits = model(images(32))
        F.cross_entropy(logits, torch.tensor([0, 2])).backward()
        results.append([logits, *model.state_dict().values(), *(parameter.grad for parameter in model.parameters())])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(theirs, ours) for theirs, ours in zip(*results, strict=True))
    assert not any(getattr(module, "inplace", False) for module in sizeless(name, 3).modules())


def test_taps_are_not_overwritten_while_training() -> None:
    model = create("tv:resnet18", 3)
    with TapReader(model, ["stage1", "stage1.preact", "layer1.0.bn1", "relu:input"]) as read:
        logits, taps = read(images())
    assert taps["layer1.0.bn1"].min() < 0
    logits.sum().backward()


def test_dropout_is_behind_the_vector() -> None:
    model = create("tv:mobilenet_v2", 3)  # in train mode, where dropout acts
    torch.manual_seed(0)
    with TapReader(model, ["before_fc", "classifier.1:input"]) as read:
        _, taps = read(images())
    assert not torch.equal(taps["before_fc"], taps["classifier.1:input"])


# name: path of the classifier and of the vector
OTHERS = {
    "alexnet": ("classifier.6", "classifier.6:input"),
    "vgg11_bn": ("classifier.6", "classifier.5:input"),
    "efficientnet_b0": ("classifier.1", "classifier.0:input"),
    "mobilenet_v3_small": ("classifier.3", "classifier.2:input"),
    "convnext_tiny": ("classifier.2", "classifier.2:input"),
    "vit_b_32": ("heads.head", "heads.head:input"),
    "googlenet": ("fc", "fc:input"),
    "inception_v3": ("fc", "fc:input"),
    "wide_resnet50_2": ("fc", "fc:input"),
    "squeezenet1_1": ("classifier.1", None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_have_a_vector_where_the_last_layer_is_linear(name: str) -> None:
    model = sizeless(name, 7)
    path, vector = OTHERS[name]
    assert head(model) == path
    shapes = tap_shapes(model, IMAGE)
    assert shapes.pop("after_fc") == (7,)
    assert getattr(model, "taps", {}).get("before_fc") == vector
    assert [len(shape) for shape in shapes.values()] == ([1] if vector else [])


def test_every_module_path_is_a_tap() -> None:
    assert tap_shapes(sizeless("resnet50", 7), IMAGE, ["layer2.1.conv2"])["layer2.1.conv2"] == (128, 28, 28)
    model = create("tv:resnet18", 7, {"stage1": "layer3.0", "deep": "layer4.1.conv1"})
    shapes = tap_shapes(model, (3, 64, 64))
    assert (shapes["stage1"], shapes["deep"], shapes["stage2"]) == ((256, 4, 4), (512, 2, 2), (128, 8, 8))


def test_a_wrong_path_of_a_tap_lists_the_modules() -> None:
    with pytest.raises(UsageError, match=r"the tap 'stage2' was given as 'layer2.7', which is no module.*conv1, bn1"):
        create("tv:resnet18", 7, {"stage2": "layer2.7"})
    with pytest.raises(UsageError, match=r"the tap '../x': a name of small letters"):
        create("tv:resnet18", 7, {"../x": "layer2"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tv:resnet19", "unknown network of torchvision 'resnet19'; did you mean 'resnet18'"),
        ("tv:fasterrcnn_resnet50_fpn", "unknown network of torchvision"),
        ("tv:", "unknown network of torchvision ''; it has"),
        ("resnext50_32x4d", "did you mean 'tv:resnext50_32x4d'"),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest_name(name: str, message: str) -> None:
    for refuse in (check_name, create):
        with pytest.raises(UsageError, match=message):
            refuse(name)


@pytest.mark.parametrize("classes", [1, 0, -5])
def test_fewer_than_two_classes_are_refused(classes: int) -> None:
    with pytest.raises(UsageError, match="tells 2 to 1,000,000 apart"):
        create("tv:resnet18", classes)


def test_images_that_a_network_cannot_read() -> None:
    with pytest.raises(UsageError, match="tv:vit_b_32 cannot read images of 3x32x32"):
        check_output("tv:vit_b_32", sizeless("vit_b_32", 7), 7, (3, 32, 32))
    check_output("tv:vit_b_32", sizeless("vit_b_32", 7), 7, IMAGE)


@pytest.mark.parametrize(
    "failure", [ImportError("no library"), RuntimeError("operator torchvision::nms does not exist\nmore lines")]
)
def test_a_torchvision_that_does_not_fit_is_told_in_a_line(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise failure

    monkeypatch.setattr(networks.importlib, "import_module", broken)
    first = str(failure).splitlines()[0]
    for ask in (check_name, create):
        with pytest.raises(ResourceError, match=rf"cannot be imported \({first}\).*`kdtool doctor`") as error:
            ask("tv:resnet18")
        assert "\n" not in str(error.value)
    assert create("resnet8", 3).taps["before_fc"] == "pool"


def test_our_networks_need_neither_torchvision_nor_timm(tmp_path: Path) -> None:
    program = (
        "import sys, kdtool.models as models, kdtool.models.weights\n"
        "models.create('resnet8', 3); models.check_name('resnet20')\n"
        "print({'torchvision', 'timm', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr
