"""A trained network by the file of its weights: what it says is what the run recorded, and nothing else is loaded."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdtool import data, files
from kdtool.analysis.compared import read_student
from kdtool.cache import open_cache
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import Recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.trained import TrainedNetwork, load_network
from kdtool.errors import DamageError, IdentityError, UsageError
from kdtool.methods import method
from kdtool.workflows.bench import made_up

PLAN = Recipe(epochs=2, batch=32, learning_rate=0.02)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A teacher, its cache, and a student of two stages that kept its weights; images of two colours, so they learn."""
    folder = tmp_path_factory.mktemp("trained")
    noise = made_up.dataset(64, 2, 32)
    for part in (noise.train, noise.test):
        part.images[:, 0] //= 4
        part.images[part.labels == 1, 0] += 180
    with made_up.registry_kept():
        made_up.offer(noise)
        asked = TeachConfig(
            noise.name, "resnet8", PLAN, validation=16, precision="float32", mean=(0.2, 0.5, 0.6), keep_weights=2
        )
        teach(Workspace.open(folder), asked)
        opened = Workspace.open(folder)
        extract(opened.cache, prepare(opened, ExtractConfig((method("fitnet"),), ("resnet8",), views=2, batch=16)))
        two = method("fitnet").with_options({"two_stage": "true"})
        config = DistillConfig("resnet8", (two,), PLAN, name="student", precision="float32", keep_weights=1, seed=3)
        distill(opened, config)
        yield opened


@pytest.fixture(scope="module")
def own(work: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run of a student whose code is the user's, with two stages and kept weights."""
    code = tmp_path_factory.mktemp("code")
    (code / "own_student.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(code)
        two = method("fitnet").with_options({"two_stage": "true"})
        taps = {f"stage{number}": f"inner.stage{number}" for number in (1, 2, 3)}
        config = DistillConfig(
            "own_student:Own", (two,), PLAN, name="own", precision="float32", keep_weights=1, taps=taps
        )
        distill(work, config)
        yield work.runs / "own"


def accuracy(network: TrainedNetwork) -> float:
    test = data.load(made_up.NAME).test
    with torch.no_grad():
        answers = network(torch.from_numpy(test.images)).argmax(1).numpy()
    return float(100.0 * (answers == test.labels).mean())


@pytest.mark.parametrize("name", ["teacher.safetensors", "runs/student/student.safetensors"])
def test_it_takes_pixels_and_says_what_was_recorded(name: str, work: Workspace) -> None:
    network = load_network(str(work.folder / name))
    run = "teacher" if name.startswith("teacher") else "student"
    recorded = files.read_json(work.runs / run / "result.json", "")["test_accuracy"]["last"]
    assert not network.training
    assert not network.network.training
    assert accuracy(network) == pytest.approx(recorded, abs=1e-9)
    assert network.seen.mean == (0.2, 0.5, 0.6)
    assert network.seen.class_names == ("class0", "class1")


def test_the_record_of_an_earlier_kdtool_has_no_names(work: Workspace, tmp_path: Path) -> None:
    for name in ("teacher.safetensors", "teacher.json"):
        shutil.copy(work.folder / name, tmp_path / name)
    record = json.loads((tmp_path / "teacher.json").read_text())
    for names in (None, 3, [1, 2], {"a": 0}):
        held = {key: value for key, value in record.items() if key != "class_names"}
        files.write_json(tmp_path / "teacher.json", held if names is None else {**held, "class_names": names})
        if names is None:
            assert load_network(tmp_path / "teacher.safetensors").seen.class_names == ()
        else:
            with pytest.raises(DamageError, match="another version of kdtool"):
                load_network(tmp_path / "teacher.safetensors")


def test_the_preprocessing_is_that_of_the_training(work: Workspace) -> None:
    network = load_network(work.teacher)
    pixels = torch.arange(3 * 32 * 32, dtype=torch.int64).remainder(256).to(torch.uint8).view(1, 3, 32, 32)
    wanted = torch.empty(1, 3, 32, 32)
    for channel in range(3):
        mean, std = network.seen.mean[channel], network.seen.std[channel]
        wanted[0, channel] = (pixels[0, channel].double() / 255 - mean) / std
    with torch.no_grad():
        assert torch.allclose(network(pixels), network.network(wanted), rtol=1e-5, atol=1e-5)


def test_every_file_of_weights_of_a_run_can_be_loaded(work: Workspace) -> None:
    run = work.runs / "student"
    found = sorted(path.relative_to(run).as_posix() for path in run.rglob("*.safetensors"))
    kept = [f"weights/{name}.safetensors" for name in ("hint-0000", "hint-0001", "distill-0001", "distill-0002")]
    assert found == sorted(["stage-hint.safetensors", "student-best.safetensors", "student.safetensors", *kept])
    states = {name: load_network(run / name).network.state_dict() for name in found}
    last = states["student.safetensors"]["fc.weight"]
    assert torch.equal(last, states[kept[3]]["fc.weight"])
    assert not torch.equal(last, states[kept[2]]["fc.weight"])
    assert accuracy(load_network(work.runs / "teacher" / "weights" / "teach-0002.safetensors")) == accuracy(
        load_network(work.teacher)
    )


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (torch.zeros(2, 3, 32, 32), "torch.float32"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"\(2, 3, 16, 16\)"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), r"\(3, 32, 32\)"),
    ],
)
def test_other_than_pixels_of_its_size_are_refused(pixels: torch.Tensor, found: str, work: Workspace) -> None:
    with pytest.raises(UsageError, match=rf"{found}.*\(B, 3, 32, 32\) of torch.uint8"):
        load_network(work.teacher)(pixels)


@pytest.mark.parametrize("name", ["student.safetensors", "stage-hint.safetensors", "weights/distill-0001.safetensors"])
def test_weights_that_are_not_those_that_were_recorded_are_refused(name: str, work: Workspace) -> None:
    path = work.runs / "student" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(DamageError, match="is damaged"):
            load_network(path)
    finally:
        path.write_bytes(content)


OWN = """
from torch import nn

from kdtool.models import create


class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.inner = create("resnet8", num_classes)
        self.taps = {"before_fc": "inner.pool"}

    def forward(self, images):
        return self.inner(images * 1.0)
"""


@pytest.mark.parametrize("name", ["student.safetensors", "stage-hint.safetensors", "weights/distill-0001.safetensors"])
def test_a_student_whose_code_computes_something_else_now_is_refused(
    name: str, work: Workspace, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its accuracies would be those of another network than the one that was trained."""
    run = own
    assert load_network(run / name).network is not None
    monkeypatch.setattr(sys.modules["own_student"].Own, "forward", lambda self, images: self.inner(images * 2.0))
    with pytest.raises(IdentityError, match=r"own_student:Own computes something else than when .*own was trained"):
        load_network(run / name)
    with pytest.raises(IdentityError, match="own_student:Own computes something else"):
        read_student(run, open_cache(work.cache))


def test_a_record_of_an_answer_that_is_none_is_refused_and_without_one_nothing_is_compared(own: Path) -> None:
    path = own / "result.json"
    held = path.read_bytes()
    record = json.loads(held)
    assert len(record["answer"]) == 4  # two images, two classes
    try:
        for wrong in (["1"], 3, {}, [[1.0]]):
            files.write_json(path, {**record, "answer": wrong})
            with pytest.raises(DamageError, match="its answer is"):
                load_network(own / "student.safetensors")
        files.write_json(path, {**record, "answer": None})
        load_network(own / "student.safetensors")
    finally:
        path.write_bytes(held)


def test_what_is_no_trained_network_is_told(work: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder; name a file of weights, such as .*student/student.safetensors"):
        load_network(work.runs / "student")
    with pytest.raises(UsageError, match=r"there is no file of weights .*other.safetensors"):
        load_network(tmp_path / "other.safetensors")
    (tmp_path / "run").mkdir()
    alone = tmp_path / "run" / "alone.safetensors"
    alone.write_bytes(work.teacher.read_bytes())
    with pytest.raises(UsageError, match=r"neither alone.json nor the result.json"):
        load_network(alone)
    files.write_json(tmp_path / "run" / "result.json", {"command": "probe"})
    with pytest.raises(UsageError, match="is a run of `kdtool probe`"):
        load_network(alone)
    files.write_json(tmp_path / "run" / "result.json", {"command": "distill"})
    with pytest.raises(DamageError, match="train it again"):
        load_network(alone)
