"""timm's networks: their taps by timm's own list of layers, the vector before the classifier, what is refused."""

import importlib.util

import pytest
import torch
from torch import nn

from kdtool.errors import UsageError
from kdtool.models import TapReader, check_name, create, tap_shapes
from kdtool.models import timm_networks as networks
from kdtool.models.heads import head

timm = pytest.importorskip("timm")

IMAGE = (3, 64, 64)
STAGES = ("stage1", "stage2", "stage3", "stage4")
# name: taps besides before_fc and after_fc, path of the classifier
TABLE = {
    "test_resnet": (("stem", *STAGES), "fc"),
    "test_efficientnet": (("stem", *STAGES), "classifier"),
    "test_convnext": (STAGES, "head.fc"),  # its first layer lies at stride 4
    "test_mambaout": ((), "head.fc"),  # channels last
}


@pytest.mark.parametrize("name", TABLE)
def test_taps_are_the_layers_that_timm_lists(name: str) -> None:
    model = create(f"timm:{name}", 7).eval()
    stages, path = TABLE[name]
    assert set(model.taps) == {*stages, "before_fc", "after_fc"}
    assert head(model) == path
    assert model.get_submodule(path) is model.get_classifier()
    features = timm.create_model(name, features_only=True).eval()
    shapes = tap_shapes(model, IMAGE)
    if stages:
        sizes = [tuple(value.shape[1:]) for value in features(torch.zeros(1, *IMAGE))]
        assert [shapes[stage] for stage in stages] == sizes
    assert shapes["after_fc"] == (7,)
    assert shapes["before_fc"] == (model.get_submodule(path).in_features,)


@pytest.mark.parametrize("name", TABLE)
def test_the_classifier_makes_the_logits_of_the_vector(name: str) -> None:
    model = create(f"timm:{name}", 7).eval()
    with TapReader(model, ["before_fc"]) as read:
        logits, taps = read(torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(model.get_submodule(head(model))(taps["before_fc"]), logits)


def test_layers_out_of_place_give_the_same_bits_and_gradients() -> None:
    results = []
    images = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(1))
    for build in (lambda: timm.create_model("test_resnet", num_classes=3), lambda: create("timm:test_resnet", 3)):
        torch.manual_seed(4)
        model: nn.Module = build()
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(theirs, ours) for theirs, ours in zip(*results, strict=True))


def test_taps_are_not_overwritten_while_training() -> None:
    model = create("timm:test_resnet", 3)
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    with TapReader(model, [*model.taps, "bn1"]) as read:
        logits, taps = read(torch.randn(2, *IMAGE))
    assert taps["bn1"].min() < 0
    logits.sum().backward()


def test_a_transformer_has_a_vector_and_no_maps() -> None:
    model = create("timm:test_vit", 7)
    assert set(model.taps) == {"before_fc", "after_fc"}
    assert tap_shapes(model, (3, 160, 160), ["blocks.5"])["blocks.5"] == (101, 64)


def test_of_several_layers_at_one_stride_the_last_is_the_stage() -> None:
    class Listed(nn.Sequential):
        feature_info = [  # noqa: RUF012 - as timm writes it
            {"module": path, "num_chs": 4, "reduction": stride}
            for path, stride in (("0", 4), ("1", 4), ("2", 8), ("3", 8), ("absent", 16))
        ]
        default_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    layers = [nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Conv2d(4, 4, 2, 2), nn.Flatten(2)]
    assert networks.stages(Listed(*layers)) == {"stage1": "1", "stage2": "2"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet17", "unknown network of timm 'resnet17'; did you mean 'resnet1"),
        ("timm:resnet18.a1_in1k", "did you mean 'resnet18'"),
        ("timm:hf-hub:somebody/something", r"it has [\d,]+, as "),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest_name(name: str, message: str) -> None:
    for refuse in (check_name, create):
        with pytest.raises(UsageError, match=message):
            refuse(name)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "kdtool\[timm\]"'):
        check_name("timm:resnet18")
