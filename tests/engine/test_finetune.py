"""Training that begins from weights: what is loaded, what stays, which learning rates act; weights as they are."""

import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import made_up
from safetensors.torch import load_file, save_file
from stopping import StopAfter
from torch import nn

from kdtool import data, files, read_runs, write_report
from kdtool.data import Dataset, Part, content_digest
from kdtool.engine import state
from kdtool.engine.configuration import Values, distill_config
from kdtool.engine.distill import DistillConfig, distill, made_ready
from kdtool.engine.finetune import fixed_parameters
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import Recipe, build_optimizer, recipe
from kdtool.engine.ranks import Alone
from kdtool.engine.teach import TeachConfig, first_weights, make_job, read_lesson, teach
from kdtool.errors import IdentityError, Stopped, UsageError
from kdtool.methods import method
from kdtool.models import create
from kdtool.progress import Silent, StopRequest

PLAN = replace(recipe("kda"), epochs=2, batch=32, learning_rate=0.05)
CONFIG = TeachConfig("made_up", "resnet8", PLAN, student="resnet8", views=3, precision="float32")
STUDENT = DistillConfig("resnet8", (method("kd"),), PLAN, precision="float32")


def three_classes(folder: Path) -> Dataset:
    """The made-up data set without its last class."""
    whole = made_up(folder)
    kept = [Part(part.images[part.labels < 3], part.labels[part.labels < 3]) for part in (whole.train, whole.test)]  # type: ignore[index]
    return replace(
        whole,
        name="three",
        train=kept[0],
        test=kept[1],
        classes=3,
        class_names=("a", "b", "c"),
        digest=content_digest(*kept),
    )


@pytest.fixture(autouse=True)
def _data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATASETS, "made_up", made_up)
    monkeypatch.setitem(data.DATASETS, "three", three_classes)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for four classes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "made_up", made_up)
        folder = tmp_path_factory.mktemp("teacher")
        teach(Workspace(folder), CONFIG, Silent(), StopRequest())
    return folder / "teacher.safetensors"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "teacher.safetensors")


def test_a_classifier_for_other_classes_is_new_and_the_rest_is_loaded(teacher: Path) -> None:
    config = replace(CONFIG, data="three", initial=str(teacher))
    model, loaded, _ = first_weights(config, read_lesson(config, Silent()))
    held = load_file(teacher)
    assert loaded is not None
    assert loaded.new == ("fc.weight", "fc.bias")
    assert loaded.sha256 == files.sha256_file(teacher)
    for name, value in model.state_dict().items():
        assert torch.equal(value, held[name]) == (name not in loaded.new), name


def test_frozen_layers_stay_to_the_bit_and_the_others_move(teacher: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, data="three", initial=str(teacher), freeze=("stage1",))
    result = teach(Workspace(tmp_path), config, Silent(), StopRequest())
    held, found = load_file(teacher), weights(tmp_path)
    for name, value in found.items():
        frozen = name.startswith(("stem", "stage1"))
        same = value.shape == held[name].shape and torch.equal(value, held[name])
        assert same == frozen, name
    assert result["from"]["sha256"] == files.sha256_file(teacher)


@pytest.mark.parametrize(("mode", "moves"), [("eval", False), ("train", True)])
def test_batchnorms_of_a_frozen_body_follow_the_data_if_asked_to(
    teacher: Path, tmp_path: Path, mode: str, moves: bool
) -> None:
    config = replace(CONFIG, data="three", initial=str(teacher), freeze=("body",), batchnorm=mode)
    teach(Workspace(tmp_path), config, Silent(), StopRequest())
    held, found = load_file(teacher), weights(tmp_path)
    for name, value in found.items():
        if name.startswith("fc"):
            continue
        statistic = "running" in name or "tracked" in name
        assert torch.equal(value, held[name]) == (not (statistic and moves)), name


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_the_classifier_has_a_learning_rate_of_its_own(teacher: Path, factor: float) -> None:
    """A step of SGD against one that is written out."""
    plan = replace(PLAN, schedule="constant", warmup=0.0, momentum=0.0, weight_decay=0.0)
    config = replace(CONFIG, recipe=plan, initial=str(teacher), head_learning_rate=plan.learning_rate * factor)
    lesson = read_lesson(config, Silent())
    model, _, fixed = first_weights(config, lesson)
    job = make_job(config, lesson, model, fixed, torch.device("cpu"), "float32")
    before = copy.deepcopy(model.state_dict())
    optimizer = state.begin(job, 0).optimizer
    nn.functional.cross_entropy(model(job.train.images.view(np.arange(32), 0)), job.train.labels[:32]).backward()
    for group in optimizer.param_groups:
        group["lr"] = plan.learning_rate * group["factor"]
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = plan.learning_rate * (factor if name.startswith("fc") else 1.0)
        assert parameter.grad is not None
        assert torch.allclose(parameter, before[name] - rate * parameter.grad, rtol=1e-5, atol=1e-7), name


def test_the_schedule_moves_both_learning_rates(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            seen.append([group["lr"] for group in self.param_groups])
            super().step()

    def watched(plan: Recipe, parameters: object, fused: bool) -> torch.optim.Optimizer:
        return Watched(parameters, lr=plan.learning_rate, momentum=plan.momentum)  # type: ignore[arg-type]

    monkeypatch.setattr(state, "build_optimizer", watched)
    config = replace(CONFIG, initial=str(teacher), head_learning_rate=0.5)
    teach(Workspace(tmp_path), config, Silent(), StopRequest())
    assert len(seen) == 6
    assert len({body for body, _ in seen}) > 3
    for body, head in seen:
        assert head == pytest.approx(10 * body)


def test_fine_tuning_goes_on_where_it_was_stopped(teacher: Path, tmp_path: Path) -> None:
    plan = Recipe(
        **{
            **vars(PLAN),
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "schedule": "step",
            "resets": True,
            "milestones": (0.5,),
        }
    )
    config = replace(CONFIG, data="three", recipe=plan, initial=str(teacher), freeze=("stem",), head_learning_rate=1e-2)
    teach(Workspace(tmp_path / "undisturbed"), config, Silent(), StopRequest())
    stops = 0
    while True:
        try:
            teach(Workspace(tmp_path / "stopped"), config, Silent(), StopAfter(2), checkpoint_seconds=0)
            break
        except Stopped:
            stops += 1
    assert stops >= 2
    for name in ("teacher.safetensors", "teacher.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_weights_are_taken_as_they_are(teacher: Path, tmp_path: Path) -> None:
    result = teach(Workspace(tmp_path), replace(CONFIG, initial=str(teacher), as_is=True), Silent(), StopRequest())
    assert {name: value.tolist() for name, value in weights(tmp_path).items()} == {
        name: value.tolist() for name, value in load_file(teacher).items()
    }
    record = files.read_json(teacher.with_suffix(".json"), "")
    assert result["test_accuracy"]["last"] == record["test_accuracy"]
    assert files.read_json(tmp_path / "teacher.json", "") == record
    again = teach(Workspace.open(tmp_path), replace(CONFIG, initial=str(teacher), as_is=True), Silent(), StopRequest())
    assert again == result


def test_a_teacher_that_is_taken_as_it_is_is_a_run_that_can_be_shown(teacher: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, initial=str(teacher), as_is=True)
    result = teach(Workspace(tmp_path), config, Silent(), StopRequest(), tensorboard=True)
    (run,), skipped = read_runs([tmp_path / "runs"])
    assert (skipped, run.last) == ([], result["test_accuracy"]["last"])
    assert [path.name.split(".")[0] for path in run.folder.glob("*tfevents*")] == ["events"]
    assert "0 of 1" not in write_report([tmp_path / "runs"], tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial": None, "as_is": True}, "--from names none"),
        ({"as_is": True, "freeze": ("stem",)}, "trains nothing"),
        ({"freeze": ("after_fc",)}, "leaves nothing to train"),
        ({"freeze": ("stage7",)}, "unknown tap 'stage7'"),
        ({"batchnorm": "off"}, "unknown mode of BatchNorm"),
        ({"head_learning_rate": 0.0}, "--head-lr is above 0"),
        ({"initial": "nowhere.pt"}, "there is no file of weights"),
        ({"network": "resnet14"}, "of another network"),
        ({"data": "three", "as_is": True}, "the classifier is for other classes"),
    ],
)
def test_what_cannot_be_is_refused(teacher: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    def asked() -> None:
        config = replace(CONFIG, **{"initial": str(teacher), **changes})  # type: ignore[arg-type]
        teach(Workspace(tmp_path), config, Silent(), StopRequest())

    with pytest.raises(UsageError, match=message):
        asked()
    assert not (tmp_path / "runs").exists()


def other_classes(weights: Path, place: Path) -> Path:
    """The same weights with a classifier for seven classes."""
    found = {**load_file(weights), "fc.weight": torch.ones(7, 64), "fc.bias": torch.ones(7)}
    save_file(found, place)
    return place


def test_a_student_begins_from_weights(teacher: Path, work: Callable[[], Workspace], tmp_path: Path) -> None:
    workspace, file = work(), other_classes(teacher, tmp_path / "large net.safetensors")
    drawn, begun = (
        distill(workspace, replace(STUDENT, initial=initial, keep_weights=1)) for initial in (None, str(file))
    )
    assert (drawn["name"], begun["name"]) == ("resnet8-kd-seed0", "resnet8-from-large net-kd-seed0")
    assert drawn["from"] is None
    assert begun["from"] == {"file": str(file), "sha256": files.sha256_file(file), "new": ["fc.weight", "fc.bias"]}
    held = load_file(file)
    first, other = (
        load_file(next((workspace.runs / result["name"] / "weights").glob("*-0000.safetensors")))
        for result in (begun, drawn)
    )
    for name, value in first.items():
        assert torch.equal(value, other[name] if name.startswith("fc.") else held[name]), name
    assert not torch.equal(other["stem.0.weight"], first["stem.0.weight"])
    config = Values.of_file("distill", workspace.runs / begun["name"] / "config.toml")
    assert distill_config(config, "").initial == str(file)


def test_a_student_of_other_first_weights_is_another_run(
    teacher: Path, work: Callable[[], Workspace], tmp_path: Path
) -> None:
    workspace, file = work(), Path(shutil.copy(teacher, tmp_path / "weights.safetensors"))
    first = distill(workspace, replace(STUDENT, initial=str(file)))
    assert distill(workspace, replace(STUDENT, initial=str(file))) == first
    other_classes(teacher, file)
    with pytest.raises(IdentityError, match=r"run from other first weights \(SHA-256 \w{12} there, \w{12} here"):
        distill(workspace, replace(STUDENT, initial=str(file)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial": "nowhere.pt"}, "there is no file of weights"),
        ({"student": "resnet14"}, "of another network"),
        ({"head_learning_rate": math.inf}, "--head-lr is above 0"),
    ],
)
def test_what_no_student_can_begin_from_is_refused(
    teacher: Path, work: Callable[[], Workspace], changes: dict[str, object], message: str
) -> None:
    workspace = work()
    with pytest.raises(UsageError, match=message):
        distill(workspace, replace(STUDENT, **{"initial": str(teacher), **changes}))  # type: ignore[arg-type]
    assert not list(workspace.runs.glob("resnet*"))


def test_the_classifier_of_a_student_has_a_learning_rate_of_its_own(work: Callable[[], Workspace]) -> None:
    workspace, cpu = work(), torch.device("cpu")
    config = replace(STUDENT, head_learning_rate=0.5)
    job = made_ready(workspace, config, Alone(), cpu, "float32", Silent()).job(config, cpu, "float32")
    rates = {
        id(parameter): group["factor"] * PLAN.learning_rate
        for group in state.begin(job, 0).optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in job.student.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.5 if name.startswith("fc.") else PLAN.learning_rate), name


def test_a_tap_freezes_all_that_it_is_computed_from_and_a_path_itself() -> None:
    model = create("resnet8", 4)
    every = {name for name, _ in model.named_parameters()}
    fixed = fixed_parameters(model, ("stage2",), (3, 16, 16))
    assert fixed == {name for name in every if name.startswith(("stem", "stage1", "stage2"))}
    fixed = fixed_parameters(model, ("stage2.0.conv1",), (3, 16, 16))
    assert fixed == {"stage2.0.conv1.weight"}
    assert fixed_parameters(model, ("body",), (3, 16, 16)) == {name for name in every if not name.startswith("fc")}


def test_weights_of_torch_save_begin_too(teacher: Path, tmp_path: Path) -> None:
    torch.save({"model": {f"module.{name}": value for name, value in load_file(teacher).items()}}, tmp_path / "a.pth")
    save_file(load_file(teacher), tmp_path / "a.safetensors")
    found = []
    for name in ("a.pth", "a.safetensors"):
        config = replace(CONFIG, initial=str(tmp_path / name))
        found.append(first_weights(config, read_lesson(config, Silent()))[0].state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


def test_one_group_where_no_rate_differs() -> None:
    optimizer = build_optimizer(PLAN, [{"params": [nn.Parameter(torch.zeros(1))], "factor": 1.0}])
    assert [group["factor"] for group in optimizer.param_groups] == [1.0]


class Bare(nn.Module):
    """A body with a BatchNorm without parameters and dropout, and a shortcut that is not the classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.Dropout(0.5))
        self.bare = nn.BatchNorm2d(6, affine=False)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.bare(self.body(images))).mean((2, 3)))


def test_layers_without_parameters_before_those_that_train_stay_too() -> None:
    lesson = read_lesson(CONFIG, Silent())
    model = Bare(4)
    fixed = fixed_parameters(model, ("body.0",), lesson.image_shape)
    job = make_job(CONFIG, lesson, model, fixed, torch.device("cpu"), "float32")
    state.train_mode(job, state.begin(job, 0))
    still = {name for name, module in model.named_modules() if not module.training}
    assert still == {"body", "body.0", "body.1", "body.2", "bare", "drop"}


def test_names_that_keep_nothing_and_a_classifier_that_is_none() -> None:
    model = Bare(4)
    for name in ("body.2", "drop"):
        with pytest.raises(UsageError, match=f"--freeze {name} keeps nothing"):
            fixed_parameters(model, (name,), (3, 16, 16))
    model.fc = nn.Linear(6, 7)
    model.forward = lambda images: model.body(images)[:, :4].mean((2, 3))  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"fc found, which gives 7 numbers.*--tap before_fc=PATH:input"):
        fixed_parameters(model, ("body",), (3, 16, 16))


@pytest.mark.parametrize("finished", [False, True])
def test_other_data_or_weights_are_not_gone_on_with(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(teacher.read_bytes())
    config, workspace = replace(CONFIG, initial=str(start)), Workspace(tmp_path / "work")

    def go(stop: StopRequest) -> None:
        teach(Workspace.open(workspace.folder), config, Silent(), stop, checkpoint_seconds=0)

    if finished:
        go(StopRequest())
    else:
        with pytest.raises(Stopped):
            go(StopAfter(2))
    other = {name: value + 1 for name, value in load_file(teacher).items()}
    save_file(other, start)
    with pytest.raises(IdentityError, match="holds a run with another file of first weights"):
        go(StopRequest())
    start.write_bytes(teacher.read_bytes())
    changed = made_up(Path())
    changed.train.images[0] = 0
    swapped = replace(changed, digest=content_digest(changed.train, changed.test))
    with monkeypatch.context() as patch:
        patch.setitem(data.DATASETS, "made_up", lambda folder: swapped)
        with pytest.raises(IdentityError, match="another content of the data set"):
            go(StopRequest())
    start.unlink() if finished else None
    go(StopRequest())
