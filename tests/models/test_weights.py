"""Initial weights: what fits is loaded, what does not is told, and a file that would run code is refused unread."""

import argparse
import contextlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from kdtool import files
from kdtool.errors import DamageError, UsageError
from kdtool.models import create
from kdtool.models.weights import load_initial

HEAD = ("fc.weight", "fc.bias")
State = dict[str, torch.Tensor]


def network(classes: int = 5, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return create("resnet8", classes)


@cache
def state(classes: int = 5) -> State:
    """The weights of another network of the same kind, with running statistics of their own."""
    found = network(classes, seed=2).state_dict()
    return {name: value + 0.25 if value.is_floating_point() else value + 3 for name, value in found.items()}


def saved(folder: Path, value: Any, name: str = "weights.pt", **options: Any) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(value, path)
    else:
        torch.save(value, path, **options)
    return path


def unchanged(model: nn.Module) -> bool:
    before = network().state_dict()
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.bin", "w.ckpt", "w.pth.tar"])
def test_every_form_gives_the_weights(name: str, tmp_path: Path) -> None:
    path, model = saved(tmp_path, state(), name), network()
    found = load_initial(path, model)
    assert all(torch.equal(value, state()[key]) for key, value in model.state_dict().items())
    assert set(found.loaded) == set(state())
    assert found.new == ()
    assert found.sha256 == files.sha256_file(path)
    assert found.remark == f"{path} (SHA-256 {found.sha256[:12]}): {len(state())} tensors"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"model_state_dict": state},
        lambda state: {"net": state, "acc": 71.0},
        lambda state: {"ema": state},
        lambda state: {"model": "resnet8", "state_dict": {"net": state}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: OrderedDict((name, nn.Parameter(value.float())) for name, value in state.items()),
        lambda state: {"epoch": torch.tensor(3), "state_dict": {**state, "note": "text", 7: torch.ones(2)}},
    ],
)
def test_tensors_are_found_inside(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    model = network()
    load_initial(saved(tmp_path, wrap(state())), model)
    assert torch.equal(model.state_dict()["stem.0.weight"], state()["stem.0.weight"])


def test_the_old_form_of_torch_is_read(tmp_path: Path) -> None:
    model = network()
    load_initial(saved(tmp_path, state(), _use_new_zipfile_serialization=False), model)
    assert torch.equal(model.state_dict()["fc.bias"], state()["fc.bias"])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_other_types_become_those_of_the_network(kind: torch.dtype, name: str, tmp_path: Path) -> None:
    model, odd = network(), {key: value.to(kind) for key, value in state().items()}
    load_initial(saved(tmp_path, odd, name), model)
    for key, value in model.state_dict().items():
        assert value.dtype == state()[key].dtype
        assert torch.equal(value, odd[key].to(value.dtype))


@pytest.mark.parametrize("classes", [2, 4, 6, 1000])
def test_a_classifier_of_other_classes_stays_as_it_is(classes: int, tmp_path: Path) -> None:
    model = network()
    found = load_initial(saved(tmp_path, state(classes)), model)
    assert set(found.new) == set(HEAD)
    assert found.remark.endswith("tensors; new: fc.weight, fc.bias")
    before = network().state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in HEAD else state(classes)[key])


def test_what_is_called_like_the_classifier_elsewhere_must_be_there(tmp_path: Path) -> None:
    class Squeezing(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.se = nn.ModuleDict({"fc": nn.Linear(4, 4)})
            self.fc = nn.Linear(4, classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = self.conv(images).mean((2, 3))
            return self.fc(found * self.se["fc"](found))

    few = {name: value for name, value in Squeezing(7).state_dict().items() if not name.startswith("se.")}
    with pytest.raises(UsageError, match=r"2 missing: se\.fc\.weight, se\.fc\.bias"):
        load_initial(saved(tmp_path, few), Squeezing(5))


def test_a_file_without_a_classifier_or_counters_is_enough(tmp_path: Path) -> None:
    few = {key: value for key, value in state().items() if key not in HEAD and "num_batches" not in key}
    model = network()
    found = load_initial(saved(tmp_path, few), model)
    assert set(found.loaded) == set(few)
    assert set(found.new) == set(state()) - set(few)


def test_counters_that_the_network_lacks_are_left_out(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    more = {**model.state_dict(), "0.num_batches_tracked": torch.tensor(4)}
    assert set(load_initial(saved(tmp_path, more), model).loaded) == {"0.weight", "0.bias"}


def changed(**tensors: torch.Tensor | None) -> State:
    """The weights with tensors (dots written as __) put in, or taken out."""
    names = {key.replace("__", "."): value for key, value in tensors.items()}
    return {key: value for key, value in {**state(), **names}.items() if value is not None}


WRONG = {
    "another network": (
        lambda: create("wrn_16_1", 5).state_dict(),
        r"of 56 tensors 15 missing: stem.*; 37 not of this network: .*; 8 of another",
    ),
    "a missing tensor": (lambda: changed(stem__0__weight=None), "1 missing: stem.0.weight"),
    "tensors too many": (
        lambda: changed(a=torch.ones(1), b=torch.ones(1), c=torch.ones(1), d=torch.ones(1)),
        r"4 not of this network: a, b, c, \.\.\.",
    ),
    "another shape": (
        lambda: changed(stem__0__weight=torch.ones(16, 1, 3, 3)),
        "1 of another shape: stem.0.weight 16x1x3x3 for 16x3x3x3",
    ),
    "half a classifier": (lambda: changed(fc__bias=None), "1 missing: fc.bias"),
    "a classifier of another width": (
        lambda: changed(fc__weight=torch.ones(7, 32), fc__bias=torch.ones(7)),
        "2 of another shape: fc.weight 7x32 for 5x64, fc.bias 7 for 5",
    ),
    "a classifier whose halves differ": (
        lambda: changed(fc__weight=torch.ones(7, 64)),
        "1 of another shape: fc.weight",
    ),
    "no classifier of the same name": (
        lambda: {key.replace("fc.", "head."): value for key, value in state().items()},
        "2 not of this network: head.weight, head.bias",
    ),
    "one number": (lambda: changed(fc__bias=torch.tensor(1.0)), "fc.bias one number for 5"),
    "a map that claims to be huge": (
        lambda: changed(stem__0__weight=torch.zeros(1).expand(1 << 40)),
        "stem.0.weight 1099511627776 for 16x3x3x3",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_counted_and_named(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    model = network()
    with pytest.raises(UsageError, match=message) as error:
        load_initial(saved(tmp_path, make()), model)
    assert "the network that the file was made with" in str(error.value)
    assert "\n" not in str(error.value)
    assert unchanged(model)


def test_without_a_classifier_everything_must_fit(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(UsageError, match=r"1 missing: 0.weight; .*1 not of this network: fc.weight"):
        load_initial(saved(tmp_path, {"0.bias": torch.ones(4), "fc.weight": torch.ones(2, 2)}), model)


@pytest.mark.parametrize("value", [{}, {"state_dict": {}}, [torch.ones(3)], torch.ones(3), 7, {"a": 1}])
def test_a_file_without_named_tensors(value: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no tensors by name; save the network's state_dict\(\)"):
        load_initial(saved(tmp_path, value), network())


@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.ones(16, 3, 3, 3).to_sparse(),
        lambda: torch.ones(16, 3, 3, 3, dtype=torch.complex64),
        lambda: torch.ones(16, 3, 3, 3, device="meta"),
    ],
)
def test_tensors_that_are_no_plain_arrays(odd: Callable[[], torch.Tensor], tmp_path: Path) -> None:
    model = network()
    with pytest.raises(DamageError, match=r"stem\.0\.weight is no plain array of real numbers"):
        load_initial(saved(tmp_path, changed(stem__0__weight=odd())), model)
    assert unchanged(model)


def test_paths_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"x")
    with pytest.raises(UsageError, match="there is no file of weights"):
        load_initial(tmp_path / "absent.pt", network())
    with pytest.raises(UsageError, match="there is no file of weights"):
        load_initial(tmp_path, network())
    with pytest.raises(UsageError, match=r"files that end in .safetensors, .pt, .pth, .bin, .ckpt, .tar"):
        load_initial(tmp_path / "weights.npz", network())


# Hostile files


class Trap:
    """What pickle is told to call, with a file as the sign that it was called."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def touch(path: Path) -> Trap:
    return Trap(eval, f"open({str(path)!r}, 'w').close()")


@pytest.mark.parametrize("form", ["new", "old", "bare"])
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.pth.tar"])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(
    form: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    sign, path, model = tmp_path / "ran", tmp_path / name, network()
    value = {"state_dict": state(), "extra": touch(sign)}
    if form == "bare":
        path.write_bytes(pickle.dumps({"extra": touch(sign)}, protocol=2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "new")
    with pytest.raises(DamageError, match=r"would call eval, .*runs no code.*safetensors") as error:
        load_initial(path, model)
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)
    assert not sign.exists()
    assert unchanged(model)
    torch.load(path, weights_only=False) if form != "bare" else pickle.loads(path.read_bytes())  # noqa: S301
    assert sign.exists()  # the trap is one


def test_other_pickles_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    sign, path = tmp_path / "ran", tmp_path / "w.pt"
    for protocol in range(6):
        path.write_bytes(pickle.dumps(touch(sign), protocol))
        with pytest.raises(DamageError, match=r"would call|is not a whole file") as error:
            load_initial(path, network())
        assert "weights_only" not in str(error.value)
        assert not sign.exists()


def test_commands_of_the_system_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DamageError, match=r"would call \w+\.system"):
        load_initial(saved(tmp_path, {**state(), "x": Trap(os.system, f"touch {tmp_path / 'ran'}")}), network())
    assert not (tmp_path / "ran").exists()


def test_a_whole_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamageError, match=r"would call kdtool\.models\.network\.Network"):
        load_initial(saved(tmp_path, network()), network())


def test_files_that_are_cut_off(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        path = saved(tmp_path, state(), name)
        whole = path.read_bytes()
        for length in (0, 1, 40, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            model = network()
            with pytest.raises(DamageError, match="is not a whole"):
                load_initial(path, model)
            assert unchanged(model)


def test_an_archive_that_torch_did_not_write(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("something/else.txt", "text")
    with pytest.raises(DamageError, match=r"is not a whole file of torch\.save"):
        load_initial(tmp_path / "w.pt", network())


SMALL = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
BUFFERS = []
for new in (True, False):
    buffer = io.BytesIO()
    torch.save(SMALL.state_dict(), buffer, _use_new_zipfile_serialization=new)
    BUFFERS.append(buffer.getvalue())


@settings(max_examples=150)
@given(st.sampled_from(BUFFERS), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(whole)
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    path.write_bytes(content)
    with contextlib.suppress(UsageError, DamageError):
        load_initial(path, SMALL)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = create("resnet8", 4)
    state = model.state_dict()
    state["stage1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DamageError, match=r"stage1\.0\.conv1\.weight holds infinite or NaN"):
        load_initial(tmp_path / "w.safetensors", create("resnet8", 4))


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_what_programs_put_before_the_names_is_left_out(tmp_path: Path, prefix: str) -> None:
    state = create("resnet8", 4).state_dict()
    torch.save({"state_dict": {f"{prefix}{name}": value for name, value in state.items()}}, tmp_path / "w.pth")
    assert load_initial(tmp_path / "w.pth", create("resnet8", 4)).new == ()


def test_options_that_a_program_saved_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    state = create("resnet8", 4).state_dict()
    torch.save({"opt": argparse.Namespace(lr=0.1), "epoch": 240, "model": state}, tmp_path / "w.pth")
    assert load_initial(tmp_path / "w.pth", create("resnet8", 4)).new == ()
