"""`kdtool models`: the list, one network, a user's own with its bugs, and libraries that are not there."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdtool.errors import ResourceError
from kdtool.models import MODELS
from kdtool.workflows import networks

Typed = Callable[..., Any]


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes the user's module nets.py into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> None:
        sys.modules.pop("nets", None)
        (tmp_path / "nets.py").write_text("from torch import nn\n" + text)

    yield write
    sys.modules.pop("nets", None)


def test_the_list(typed: Typed) -> None:
    pytest.importorskip("torchvision")
    found = typed("models")
    assert (found.code, found.err) == (0, "")
    assert max(map(len, found.out.splitlines())) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in found.out.splitlines()}
    assert set(MODELS) <= set(rows)
    assert rows["resnet8"] == ["83,892", "32", "12.5", "stem", "stage1-3", "preact"]
    assert rows["tv:resnet18"][1:3] == ["224", "1,813.6"]
    assert rows["tv:densenet121"][3:] == ["stem", "stage1-4"]


def test_a_part_of_the_list(typed: Typed) -> None:
    found = json.loads(typed("models --filter wrn_16 --classes 10 --json").out)
    assert [(row["network"], row["parameters"]) for row in found] == [("wrn_16_1", 175_066), ("wrn_16_2", 691_674)]
    assert found[0]["taps"] == [
        *("stem", "stage1", "stage2", "stage3", "stage1.preact", "stage2.preact", "stage3.preact"),
        *("before_fc", "after_fc"),
    ]


def test_a_list_without_torchvision(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ResourceError("torchvision cannot be imported; `kdtool doctor`")

    monkeypatch.setattr(networks, "library", broken)
    found = typed("models --filter resnet18")
    assert found.code == 0
    assert "resnet18x0.5" in found.out
    assert "tv:" not in found.out
    assert found.err == "kdtool: torchvision cannot be imported; `kdtool doctor`\n"
    assert typed("models --filter wrn").err == ""


def test_one_network(typed: Typed) -> None:
    found = typed("models resnet8 --classes 10")
    lines = [line.split() for line in found.out.splitlines()]
    assert found.out.startswith("resnet8: 78,042 parameters for 10 classes, 12,501,632 multiply-adds for 32x32\n")
    assert ["stage3.preact", "64x8x8", "stage3.0.relu2:input"] in lines
    assert ["after_fc", "10", "the", "output"] in lines


def test_one_of_torchvision_at_another_size(typed: Typed) -> None:
    pytest.importorskip("torchvision")
    found = json.loads(typed("models tv:resnet18 --image-size 64 --json").out)
    assert found["image_width"] == 64
    taps = {row["tap"]: (tuple(row["shape"]), row["module"]) for row in found["taps"]}
    assert taps["stem"] == ((64, 16, 16), "maxpool")
    assert taps["before_fc"] == ((512,), "fc:input")


def test_every_module_of_a_network(typed: Typed) -> None:
    found = json.loads(typed("models resnet8 --modules --json").out)
    modules = {row["module"]: row["shape"] for row in found["taps"] if not row["tap"]}
    assert modules["stage2.0.conv1"] == [32, 16, 16]
    assert "" not in modules


def test_of_timm(typed: Typed) -> None:
    pytest.importorskip("timm")
    found = json.loads(typed("models timm:test_resnet --image-size 32 --json").out)
    assert {"stem", "stage1", "stage4", "before_fc"} <= {row["tap"] for row in found["taps"]}


OWN = """
class Small(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.out = nn.Linear(4, classes)

    def forward(self, images):
        return self.out(self.body(images).mean((2, 3)))
"""


def test_a_network_of_ones_own(nets: Callable[[str], None], typed: Typed) -> None:
    nets(OWN)
    found = typed("models nets:Small --modules")
    assert (found.code, found.err) == (0, "")
    lines = [line.split() for line in found.out.splitlines()]
    assert ["before_fc", "4", "out:input"] in lines
    assert ["4x30x30", "body"] in lines


BUGS = {
    "in the factory": (OWN.replace("3, 4, 3", "3, 4, 'x'") + "\n", "nets:Small", ("nets.py, line 6, in __init__",)),
    "in forward": (OWN.replace("(2, 3)", "(2, 9)"), "nets:Small", ("nets.py, line 10, in forward: IndexError",)),
    "shapes": (OWN.replace("Linear(4", "Linear(5"), "nets:Small", ("nets.py, line 10, in forward: RuntimeError",)),
    "on import": ("\n1 / 0\n", "nets:Small", ("ZeroDivisionError", "nets.py, line 3")),
    "no network": ("\ndef none(classes):\n    return None\n", "nets:none", ("NoneType", "an nn.Module is expected")),
    "no such name": (OWN, "nets:Smal", ("unknown network in nets 'Smal'", "did you mean 'Small'?")),
    "no such module": (OWN, "mets:Small", ("there is no module mets", "path.to:factory")),
    "two outputs": (
        OWN.replace("return self.out", "return 1, self.out"),
        "nets:Small",
        ("(the output of the network) is not one tensor", "tuple"),
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_of_the_users(name: str, nets: Callable[[str], None], refused: Typed) -> None:
    text, asked, texts = BUGS[name]
    nets(text)
    refused(2, texts, f"models {asked}")


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("models resnet9", ("unknown network 'resnet9'", "did you mean 'resnet8'?")),
        ("models resnet8 --classes 1", ("tells 2 to 1,000,000 apart",)),
        ("models --modules", ("--modules is about one network",)),
        ("models --image-size 64", ("--image-size is about one network",)),
        ("models resnet8 --filter x", ("--filter is for the list",)),
        ("models resnet8 --image-size 0", ("--image-size",)),
    ],
)
def test_what_does_not_go_together(line: str, texts: tuple[str, ...], refused: Typed) -> None:
    refused(2, texts, line)


def test_images_too_small_for_a_network_are_refused(refused: Typed) -> None:
    refused(2, ("vgg8 cannot read images of 3x4x4", "--image-size"), "models vgg8 --image-size 4")


def test_of_libraries(refused: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    refused(2, ("did you mean 'resnet18'?",), "models tv:resnet19")
    refused(2, ("cannot read images of 3x32x32", "--image-size"), "models tv:vit_b_32 --image-size 32")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(2, ('pip install "kdtool[timm]"',), "models timm:resnet18")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    refused(5, ("torchvision cannot be imported", "`kdtool doctor`"), "models tv:resnet18")
