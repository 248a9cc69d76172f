"""Teachers and students whose code is the user's: named layers, and a network that is no longer what it was."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import PLAN
from stopping import StopAfter
from torch import nn

from kdtool import imports
from kdtool.analysis.analyses import GapPlan, gram_gap
from kdtool.analysis.pairs import Asked
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.train import reseed, step_seeds
from kdtool.engine.workspace import open_teacher_cache, read_record
from kdtool.errors import DamageError, IdentityError, Stopped, UsageError
from kdtool.methods import method
from kdtool.progress import Silent, StopRequest

CODE = """
from torch import nn

def layer(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

def net(classes):
    body = nn.Sequential(layer(3, 8), layer(8, WIDTH))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(DROP), nn.Linear(WIDTH, classes))
"""
TAPS = {"stage1": "0.0", "stage2": "0.1"}
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes the user's module foreign_net.py into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(width: int = 12, drop: float = 0.0) -> None:
        sys.modules.pop("foreign_net", None)
        Path("foreign_net.py").write_text(CODE.replace("WIDTH", str(width)).replace("DROP", str(drop)))

    write()
    yield write
    sys.modules.pop("foreign_net", None)
    imports.FILES.clear()


def extracted(workspace: Workspace, **options: object) -> None:
    asked = ExtractConfig(batch=16, block=32, without=("srm",) if "methods" not in options else (), **options)  # type: ignore[arg-type]
    extract(workspace.cache, prepare(workspace, asked), Silent(), StopRequest())


def taught(folder: Path, **changes: object) -> Workspace:
    config = TeachConfig(
        "made_up", "foreign_net:net", PLAN, student="foreign_net:net", views=2, precision="float32", taps=TAPS
    )
    teach(Workspace(folder), replace(config, **changes), Silent(), StopRequest())  # type: ignore[arg-type]
    return Workspace.open(folder)


def test_named_layers_go_through_all_commands(write: Write, tmp_path: Path) -> None:
    workspace = taught(tmp_path / "work")
    at = method("at")
    extracted(workspace, methods=(at, method("kda")), students=("foreign_net:net",), taps=TAPS, clean=("before_fc",))
    cache = open_teacher_cache(workspace.cache)
    assert cache.identity["teacher"]["taps"] == TAPS
    assert len(cache.identity["teacher"]["architecture"]) == 64
    assert cache.layout.tap_shapes == {"stage1": (8, 8, 8), "stage2": (12, 4, 4), "before_fc": (12,), "after_fc": (4,)}
    config = DistillConfig("foreign_net:net", (at,), PLAN, taps=TAPS)
    result = distill(workspace, config, Silent(), StopRequest())
    assert result["taps"] == TAPS
    gaps = gram_gap(workspace, Asked((workspace.runs / result["name"],)), GapPlan(), Silent())
    assert {gap["layer"] for gap in gaps} == {"before_fc", "after_fc"}
    with pytest.raises(UsageError, match=r"unknown tap|no map|stage"):
        distill(workspace, DistillConfig("foreign_net:net", (at,), PLAN), Silent(), StopRequest())


def test_what_is_lacking_is_told_with_the_layers(write: Write, tmp_path: Path) -> None:
    workspace = taught(tmp_path / "work")
    extracted(workspace)
    config = DistillConfig("foreign_net:net", (method("at"),), PLAN, taps=TAPS)
    with pytest.raises(DamageError, match=r"--student foreign_net:net --tap stage1=0\.0 --tap stage2=0\.1"):
        distill(workspace, config, Silent(), StopRequest())


def test_a_network_that_changed_is_not_the_teacher(write: Write, tmp_path: Path) -> None:
    workspace = taught(tmp_path / "work")
    extracted(workspace)
    write(drop=0.5)  # the same names and shapes of weights
    with pytest.raises(IdentityError, match="foreign_net:net has other layers than when the teacher was trained"):
        extracted(workspace, views=3)
    write()
    extracted(workspace, views=3)


def test_another_computation_under_the_same_layers_is_not_the_teacher(write: Write, tmp_path: Path) -> None:
    workspace = taught(tmp_path / "work")
    extracted(workspace)
    text = Path("foreign_net.py").read_text()
    sys.modules.pop("foreign_net")
    Path("foreign_net.py").write_text(text + "\nnn.AdaptiveAvgPool2d.forward = lambda self, x: x.amax((2, 3), True)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.AdaptiveAvgPool2d, "forward", nn.AdaptiveAvgPool2d.forward)
        with pytest.raises(IdentityError, match="foreign_net:net computes something else than when the teacher was"):
            extracted(workspace, views=3)


def test_what_a_network_draws_and_does_not_save_is_drawn_again(write: Write, tmp_path: Path) -> None:
    Path("foreign_net.py").write_text(DRAWN)
    workspace = taught(tmp_path / "work", taps={}, seed=4)
    extracted(workspace)


DRAWN = """
import torch
from torch import nn

class Drawn(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.register_buffer("mix", torch.randn(3, 8), persistent=False)
        self.out = nn.Linear(8, classes)

    def forward(self, images):
        return self.out(images.mean((2, 3)) @ self.mix)

net = Drawn
"""


def test_dropout_is_a_function_of_the_seed_and_the_step(write: Write, tmp_path: Path) -> None:
    write(drop=0.5)
    runs = [tmp_path / name for name in ("one", "two", "stopped", "other")]
    for folder in runs[:2]:
        taught(folder)
    taught(runs[3], seed=1)
    while True:
        with suppress(Stopped):
            config = TeachConfig(
                "made_up", "foreign_net:net", PLAN, student="foreign_net:net", views=2, precision="float32", taps=TAPS
            )
            teach(Workspace(runs[2]), config, Silent(), StopAfter(2), checkpoint_seconds=0)
            break
    found = [(folder / "teacher.safetensors").read_bytes() for folder in runs]
    assert found[0] == found[1] == found[2] != found[3]


def test_layers_draw_otherwise_for_every_seed_stage_and_step() -> None:
    generator, drawn = torch.Generator(), set()
    for seed in (0, 1, 256, 2**32, 2**40, 2**63 - 1):
        for stage in (0, 1, 256):
            for step in (0, 1, 2**24):
                ((layers, draws),) = step_seeds(seed, stage, step, 1)
                assert (layers, draws) == step_seeds(seed, stage, step - 1, 2)[1] if step else layers != draws
                reseed(torch.device("cpu"), generator, layers, draws)
                drawn |= {tuple(torch.rand(4).tolist()), tuple(torch.rand(4, generator=generator).tolist())}
    assert len(drawn) == 2 * 6 * 3 * 3


def test_other_layers_are_another_cache(write: Write, tmp_path: Path) -> None:
    workspace = taught(tmp_path / "work")
    extracted(workspace)
    other = taught(tmp_path / "other", taps={"stage1": "0.0"})
    assert read_record(other.teacher).sha256 == read_record(workspace.teacher).sha256
    with pytest.raises(IdentityError, match=r"teacher\.taps"):
        extracted(replace(other, settings={**other.settings, "cache": str(workspace.cache)}))


def test_a_number_of_classes_that_is_left_out_of_account(write: Write, tmp_path: Path) -> None:
    Path("foreign_net.py").write_text(
        CODE.replace("WIDTH", "12").replace("DROP", "0.0").replace(", classes))", ", 7))")
    )
    with pytest.raises(UsageError, match="gives 7 numbers for an image of 4 classes"):
        taught(tmp_path / "work")
    assert not (tmp_path / "work" / "runs").exists()
