"""A user's own networks: found by module and function, with the taps that they declare or that can be found."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from kdtool import imports
from kdtool.errors import UsageError
from kdtool.models import TapReader, check_name, check_output, create, multiply_adds, tap_shapes
from kdtool.models.foreign import before_head
from kdtool.models.heads import head

Write = Callable[..., None]

NETWORK = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, 2))
        self.out = nn.Linear(6, classes)

    def forward(self, images):
        return self.out(self.body(images).mean((2, 3)))

def small(classes):
    return Small(classes)
"""
IMAGE = (3, 16, 16)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def write(text: str = NETWORK, path: str = "nets.py") -> None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)

    yield write
    imports.FILES.clear()
    for name in set(sys.modules) - known:
        if name.split(".")[0] in ("nets", "other"):
            del sys.modules[name]


def test_a_network_of_the_current_folder(write: Write) -> None:
    write()
    check_name("nets:small")
    model = create("nets:small", 5)
    assert tap_shapes(model, IMAGE) == {"after_fc": (5,), "before_fc": (6,)}
    assert head(model) == "out"
    with TapReader(model, ["before_fc"]) as read:
        logits, taps = read(torch.ones(2, *IMAGE))
    assert torch.equal(model.out(taps["before_fc"]), logits)


def test_a_class_and_a_module_of_a_folder_do_as_well(write: Write) -> None:
    write(path="other/nets.py")
    assert tap_shapes(create("other.nets:Small", 5), IMAGE)["after_fc"] == (5,)


def test_taps_that_the_user_names(write: Write) -> None:
    write()
    model = create("nets:small", 5, {"stage1": "body.1", "stage2": "body"})  # body.0 is read before a ReLU in place
    shapes = tap_shapes(model, IMAGE, ["body.0"])
    assert (shapes["stage1"], shapes["stage2"], shapes["body.0"]) == ((4, 14, 14), (6, 6, 6), (4, 14, 14))
    corrected = create("nets:small", 5, {"before_fc": "body"})
    assert tap_shapes(corrected, IMAGE)["before_fc"] == (6, 6, 6)
    with pytest.raises(UsageError, match=r"'stage1' was given as 'boddy'.*did you mean 'body'.*body\.0, body\.1"):
        create("nets:small", 5, {"stage1": "boddy"})


TAPPED = NETWORK + "\ndef tapped(classes):\n    model = Small(classes)\n    model.taps = TAPS\n    return model\n"


def test_taps_that_the_network_declares(write: Write) -> None:
    write(TAPPED.replace("TAPS", "{'stage1': 'body.0'}"))
    model = create("nets:tapped", 5, {"before_fc": "out:input"})
    assert tap_shapes(model, IMAGE) == {"stage1": (4, 14, 14), "after_fc": (5,), "before_fc": (6,)}
    assert set(tap_shapes(create("nets:tapped", 5), IMAGE)) == {"stage1", "after_fc"}


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("{'stage1': 'boddy'}", "'stage1' was given as 'boddy'"),
        ("{'stage1': 3}", "'stage1' is no name with the path of a module"),
        ("{'a/b': 'body'}", "the tap 'a/b': a name of small letters"),
        ("{'Mixed_6a': 'body'}", "the tap 'Mixed_6a': a name of small letters"),  # no key of a cache
        ("nn.Linear(2, 2)", "has something else in its attribute `taps`"),
    ],
)
def test_declared_taps_that_are_wrong(taps: str, message: str, write: Write) -> None:
    write(TAPPED.replace("TAPS", taps))
    with pytest.raises(UsageError, match=message):
        create("nets:tapped", 5)


@pytest.mark.parametrize(
    ("text", "asked", "message"),
    [
        (NETWORK, "nowhere:small", "network nowhere:small: there is no module nowhere in .*factory of path/to.py"),
        (NETWORK, "nets:smal", "unknown network in nets 'smal'; did you mean 'small'"),
        (NETWORK, "nets:", "unknown network in nets ''"),
        (NETWORK, "./nets.py:small", "'./nets.py' is no name of a module; path.to:factory"),
        (NETWORK + "\nnumber = 3\n", "nets:number", "this is a value of type int; a function that is called"),
        (NETWORK + "\ndef two(a, b):\n    return Small(a)\n", "nets:two", "called with the number of classes alone"),
        (NETWORK + "\ndef none():\n    return Small(3)\n", "nets:none", "called with the number of classes alone"),
        ("import no_such_library\n", "nets:small", "nets imports no_such_library, which is not installed"),
        ("x = 1\n\n1 / 0\n", "nets:small", r"cannot be imported: ZeroDivisionError: .*nets.py, line 3\)"),
        ("def\n", "nets:small", r"cannot be imported: SyntaxError: .*nets.py, line 1"),
        ("import sys\nsys.exit(0)\n", "nets:small", "cannot be imported: SystemExit"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_built(text: str, asked: str, message: str, write: Write) -> None:
    write(text)
    for refuse in (check_name, create):
        with pytest.raises(UsageError, match=message) as error:
            refuse(asked)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"), [("None", "NoneType"), ("Small", "the class Small"), ("[Small(classes)]", "list")]
)
def test_a_factory_that_gives_something_else(given: str, said: str, write: Write) -> None:
    write(NETWORK + f"\ndef wrong(classes):\n    return {given}\n")
    with pytest.raises(UsageError, match=f"it gave .*{said}; an nn.Module is expected"):
        create("nets:wrong", 5)


def test_a_network_that_leaves_the_classes_out_of_account(write: Write) -> None:
    write(NETWORK + "\ndef fixed(classes):\n    return Small(10)\n")
    with pytest.raises(UsageError, match="nets:fixed gives 10 numbers for an image of 5 classes"):
        check_output("nets:fixed", create("nets:fixed", 5), 5, IMAGE)
    check_output("nets:fixed", create("nets:fixed", 10), 10, IMAGE)


DROPPING = """

class Dropping(Small):
    def forward(self, images):
        return nn.functional.dropout(super().forward(images), 0.5, {when})
"""


def test_a_network_that_answers_otherwise_each_time_is_refused_before_it_is_trained(write: Write) -> None:
    """Hours later, its teacher would be taken for one of other code."""
    write(NETWORK + DROPPING.format(when="self.training"))
    check_output("nets:Dropping", create("nets:Dropping", 10), 10, IMAGE)
    write(NETWORK + DROPPING.format(when="True"), path="other/nets.py")
    with pytest.raises(UsageError, match="Dropping gives the same image other logits each time in eval mode"):
        check_output("other.nets:Dropping", create("other.nets:Dropping", 10), 10, IMAGE)


def test_files_of_the_current_folder_are_the_users(write: Write, tmp_path: Path) -> None:
    write("from other.parts import Small\n\ndef small(classes):\n    return Small(classes)\n")
    write(path="other/parts.py")
    create("nets:small", 5)
    assert {str(tmp_path / "nets.py"), str(tmp_path / "other" / "parts.py")} <= imports.FILES
    assert not any("kdtool/models" in file or "site-packages" in file for file in imports.FILES)


# Where the classifier and its vector are


def named(**layers: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


LINEAR, POINTWISE = nn.Linear(4, 3), nn.Conv2d(4, 3, 1)
HEADS = {
    "the last linear layer": (named(a=nn.Linear(4, 4), b=nn.Linear(4, 3), c=nn.ReLU()), "b", "b:input"),
    "a child with a usual name": (named(fc=LINEAR, projection=nn.Linear(4, 9)), "fc", "fc:input"),
    "the last of them": (named(fc=nn.Linear(4, 4), classifier=nn.Linear(4, 3)), "classifier", "classifier:input"),
    "inside it": (named(head=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))), "head.2", "head.2:input"),
    "behind dropout": (named(head=nn.Sequential(nn.Dropout(), nn.Dropout(), LINEAR)), "head.2", "head.0:input"),
    "dropout in a net that is one chain": (nn.Sequential(nn.ReLU(), nn.Dropout(), LINEAR), "2", "1:input"),
    "a usual name without a layer": (named(out=LINEAR, head=nn.ReLU()), "out", "out:input"),
    "a pointwise convolution": (named(features=nn.Conv2d(3, 4, 3), classifier=POINTWISE), "classifier", None),
    "not a wider one": (named(fc=LINEAR, last=nn.Conv2d(3, 4, 3)), "fc", "fc:input"),
}


@pytest.mark.parametrize("name", HEADS)
def test_where_the_classifier_is(name: str) -> None:
    model, path, vector = HEADS[name]
    assert head(model) == path
    assert before_head(model).get("before_fc") == vector


def test_a_tap_says_where_the_classifier_is() -> None:
    model = named(first=nn.Linear(4, 3), last=nn.Linear(4, 9))
    assert head(model) == "last"
    model.taps = {"before_fc": "first:input"}  # type: ignore[assignment]
    assert head(model) == "first"


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "allcnn", "densenet121", "resnet18"])
def test_our_networks_end_in_fc(name: str) -> None:
    with torch.device("meta"):
        assert head(create(name, 3)) == "fc"


def test_a_network_without_a_classifier() -> None:
    with pytest.raises(UsageError, match="Sequential has no linear layer and no 1x1 convolution"):
        head(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    assert before_head(nn.Sequential(nn.Conv2d(3, 4, 3))) == {}


class Pieces(nn.Module):
    """Takes every image apart into four, and each through one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 5, 1)
        self.fc = nn.Linear(5, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pieces = images.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5)
        maps = self.body(pieces.flatten(0, 2)).unflatten(0, (len(images), 4))
        return self.fc(maps.mean((1, 3, 4)))


def test_work_on_pieces_of_an_image_is_counted_for_all_of_them() -> None:
    assert multiply_adds(Pieces(), (3, 8, 8)) == 3 * 5 * 64 + 5 * 2
