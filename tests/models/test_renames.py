"""Checkpoints of other programs, from networks written out here with the names of their layers: the same logits."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdtool.errors import UsageError
from kdtool.models import create
from kdtool.models.weights import load_initial


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Basic(nn.Module):
    """conv1, bn1, conv2, bn2, downsample."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        changed = stride != 1 or inputs != outputs
        self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changed else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Resnet8x4(nn.Module):
    """conv1, bn1, layer1 to layer3, fc."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 32, 3), nn.BatchNorm2d(32)
        self.layer1 = nn.Sequential(Basic(32, 64, 1))
        self.layer2 = nn.Sequential(Basic(64, 128, 2))
        self.layer3 = nn.Sequential(Basic(128, 256, 2))
        self.fc = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Wide(nn.Module):
    """bn1, conv1, bn2, conv2, convShortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.convShortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = functional.relu(self.bn1(x))
        y = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return y + (x if self.convShortcut is None else self.convShortcut(active))


class Group(nn.Module):
    """layer."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Wrn16x2(nn.Module):
    """conv1, block1 to block3, bn1, fc."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 16, 3)
        self.block1 = Group(Wide(16, 32, 1), Wide(32, 32, 1))
        self.block2 = Group(Wide(32, 64, 2), Wide(64, 64, 1))
        self.block3 = Group(Wide(64, 128, 2), Wide(128, 128, 1))
        self.bn1, self.fc = nn.BatchNorm2d(128), nn.Linear(128, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(functional.relu(self.bn1(x)).mean((2, 3)))


class Residual(nn.Module):
    """residual_function, shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU()
        self.residual_function = nn.Sequential(*first, conv(outputs, outputs, 3), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.residual_function(x) + self.shortcut(x))


class Resnet18(nn.Module):
    """conv1, conv2_x to conv5_x, fc."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        self.conv2_x = nn.Sequential(Residual(64, 64, 1), Residual(64, 64, 1))
        self.conv3_x = nn.Sequential(Residual(64, 128, 2), Residual(128, 128, 1))
        self.conv4_x = nn.Sequential(Residual(128, 256, 2), Residual(256, 256, 1))
        self.conv5_x = nn.Sequential(Residual(256, 512, 2), Residual(512, 512, 1))
        self.fc = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv4_x(self.conv3_x(self.conv2_x(self.conv1(x))))
        return self.fc(self.conv5_x(x).mean((2, 3)))


@pytest.mark.parametrize(("name", "theirs"), [("resnet8x4", Resnet8x4), ("wrn_16_2", Wrn16x2), ("resnet18", Resnet18)])
@pytest.mark.parametrize("classes", [5, 7])
def test_the_same_weights_give_the_same_logits(
    name: str, theirs: type[nn.Module], classes: int, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    other = theirs(5).eval()
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.weight, 0.5, 2)
    torch.save({"model": {f"module.{key}": value for key, value in other.state_dict().items()}}, tmp_path / "w.pth")
    model = create(name, classes).eval()
    loaded = load_initial(tmp_path / "w.pth", model)
    assert set(loaded.new) >= ({"fc.weight", "fc.bias"} if classes != 5 else set())
    assert all(key.startswith("fc.") or key.endswith("num_batches_tracked") for key in loaded.new)
    if classes == 5:
        images = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            assert torch.allclose(model(images), other(images), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_another_depth_is_told_with_its_own_names(tmp_path: Path) -> None:
    torch.save(Resnet8x4(5).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="not of this network: conv1"):
        load_initial(tmp_path / "w.pth", create("resnet20", 5))
