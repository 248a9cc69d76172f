"""Probes of frozen networks: what trains, how it begins, which protocol; weights of the stages before the last."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import PLAN, made_up, run_extract
from safetensors.torch import load_file
from stopping import StopAfter

from kdtool import data, files
from kdtool.analysis.probe import SPREAD, ProbeConfig, as_teaching, lesson_of, probe, probed, with_new_classifier
from kdtool.cli.main import run as command
from kdtool.data import Dataset, Part, content_digest
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import learning_rate, milestone_epochs, recipe
from kdtool.engine.teach import TeachConfig, teach
from kdtool.errors import DamageError, Stopped, UsageError
from kdtool.methods import method
from kdtool.progress import Silent, StopRequest

LINEAR = replace(recipe("probe-icd"), epochs=4, batch=16)


def other(folder: Path) -> Dataset:
    """Another task: three classes of larger images."""
    draw = np.random.default_rng(8)
    patterns = draw.integers(0, 200, (3, 3, 1, 1))  # a colour each

    def part(count: int) -> Part:
        labels = np.arange(count) % 3
        return Part((patterns[labels] + draw.integers(0, 55, (count, 3, 24, 24))).astype(np.uint8), labels)

    train, test = part(60), part(30)
    half = (0.4, 0.5, 0.6)
    return Dataset("other", train, test, 3, ("x", "y", "z"), half, half, True, content_digest(train, test))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "made_up", made_up)
        config = TeachConfig(
            "made_up", "resnet14", PLAN, student="resnet8", views=3, precision="float32", validation=16
        )
        teach(Workspace(folder), config, Silent(), StopRequest())
        fit = method("fitnet").with_options({"two_stage": "true"})
        found = run_extract(folder, methods=(fit, method("srm")), students=("resnet8",))
        for name, methods in (("plain", ()), ("fitnet", (fit,)), ("srm", (method("srm"),))):
            asked = DistillConfig("resnet8", methods, replace(PLAN, epochs=2), name=name, precision="float32")
            distill(found, asked, Silent(), StopRequest())
    return found


@pytest.fixture(autouse=True)
def _data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATASETS, "made_up", made_up)
    monkeypatch.setitem(data.DATASETS, "other", other)


def asked(workspace: Workspace, run: str = "plain", **changes: object) -> ProbeConfig:
    base = ProbeConfig(workspace.runs / run, "other", LINEAR, precision="float32")
    return replace(base, **changes)  # type: ignore[arg-type]


def run(config: ProbeConfig) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    result = probe(config, Silent(), StopRequest())
    return result, load_file(config.run / str(result["name"]) / "network.safetensors")


def test_a_linear_probe_trains_the_classifier_alone(workspace: Workspace) -> None:
    config = asked(workspace, batchnorm="eval", recipe=replace(LINEAR, epochs=8))
    result, found = run(config)
    before = load_file(config.run / "student.safetensors")
    for name, value in found.items():
        assert name.startswith("fc.") or torch.equal(value, before[name]), name
    assert found["fc.weight"].shape == (3, 64)
    assert result["test_accuracy"]["last"] > 60  # type: ignore[index]  # of three classes
    assert files.read_json(config.run / "result.json", "")["weights_sha256"] == result["probed_sha256"]


def test_in_train_mode_the_batchnorms_follow_the_other_data(workspace: Workspace) -> None:
    config = asked(workspace)
    _, found = run(config)
    before = load_file(config.run / "student.safetensors")
    for name, value in found.items():
        if not name.startswith("fc."):
            assert torch.equal(value, before[name]) == ("running" not in name and "tracked" not in name), name


def test_the_whole_network_can_train(workspace: Workspace) -> None:
    config = asked(workspace, whole=True)
    _, found = run(config)
    before = load_file(config.run / "student.safetensors")
    assert not any(
        torch.equal(value, before[name]) for name, value in found.items() if value.shape == before[name].shape
    )


def test_the_classifier_begins_as_the_protocol_says(workspace: Workspace) -> None:
    config = asked(workspace)
    model = with_new_classifier(probed(config), 500, config)
    assert model.get_parameter("fc.bias").abs().max() == 0
    assert float(model.get_parameter("fc.weight").detach().std()) == pytest.approx(SPREAD, rel=0.02)
    again = with_new_classifier(probed(config), 500, replace(config, seed=1))
    assert not torch.equal(model.get_parameter("fc.weight"), again.get_parameter("fc.weight"))
    whole = with_new_classifier(probed(config), 500, replace(config, whole=True))
    assert float(whole.get_parameter("fc.weight").detach().std()) == pytest.approx(64**-0.5 / 3**0.5, rel=0.02)


def test_images_come_in_the_size_and_crop_of_the_run(workspace: Workspace) -> None:
    source = probed(asked(workspace))
    teaching = as_teaching(asked(workspace), source.seen, "")
    assert (teaching.image_size, teaching.crop, teaching.pad) == (16, "pad", 4)
    resized = replace(source.seen, augmentation={"name": "ResizedCrop", "size": 16})
    assert as_teaching(asked(workspace), resized, "").crop == "resized"
    assert as_teaching(asked(workspace, image_size=24, crop="resized"), source.seen, "").image_size == 24


def test_images_of_the_same_data_are_normalised_as_they_were_in_the_training(workspace: Workspace) -> None:
    seen = replace(probed(asked(workspace)).seen, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    same, _ = lesson_of(asked(workspace, data="made_up"), seen, Silent())
    assert (same.mean, same.std, same.flip) == (seen.mean, seen.std, seen.augmentation["flip"])


def test_other_content_under_the_name_of_the_training_is_another_data_set(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two folders of pictures are."""
    config = asked(workspace, data="made_up", recipe=replace(LINEAR, epochs=1))
    first, _ = run(config)
    monkeypatch.setitem(data.DATASETS, "made_up", other)
    asking, lesson = lesson_of(config, probed(config).seen, Silent())
    assert (asking.mean, asking.std, lesson.data.mean) == (None, None, (0.4, 0.5, 0.6))
    second, _ = run(config)
    assert first["name"] != second["name"]
    assert (first["data_digest"], second["data_digest"]) == (probed(config).seen.digest, lesson.data.digest)


def test_the_protocols_are_those_of_the_papers() -> None:
    icd, crd, srm = (recipe(f"probe-{name}") for name in ("icd", "crd", "srm"))
    assert {learning_rate(icd, step, 10) for step in range(0, 1000, 7)} == {0.05}
    assert (icd.epochs, icd.batch, icd.momentum, icd.weight_decay) == (100, 64, 0.9, 5e-4)
    assert (crd.epochs, milestone_epochs(crd)) == (120, [30, 60, 90])
    assert (srm.epochs, milestone_epochs(srm), srm.optimizer, srm.resets) == (40, [10, 30], "adam", True)
    rates = [learning_rate(srm, epoch, 1) for epoch in (0, 9, 10, 29, 30, 39)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


@pytest.mark.parametrize(("name", "stage"), [("fitnet", "hint"), ("srm", "pretrain")])
def test_the_weights_at_the_end_of_a_stage_can_be_probed(workspace: Workspace, name: str, stage: str) -> None:
    config = asked(workspace, name, stage=stage, data="made_up", batchnorm="eval")
    result, found = run(config)
    early, late = (load_file(config.run / f"{kind}.safetensors") for kind in (f"stage-{stage}", "student"))
    body = [name for name in found if not name.startswith("fc.")]
    assert all(torch.equal(found[name], early[name]) for name in body)
    assert not all(torch.equal(found[name], late[name]) for name in body)
    assert result["probed_sha256"] == files.sha256_file(config.run / f"stage-{stage}.safetensors")


def test_a_teacher_can_be_probed(workspace: Workspace) -> None:
    result, _ = run(asked(workspace, "teacher"))
    assert result["network"] == "resnet14"


def test_a_probe_goes_on_where_it_was_stopped_and_is_not_made_twice(workspace: Workspace) -> None:
    config = asked(workspace, few_shot=8, seed=2)
    stops = 0
    while True:
        try:
            result = probe(config, Silent(), StopAfter(2), checkpoint_seconds=0)
            break
        except Stopped:
            stops += 1
    assert stops >= 2
    assert probe(config, Silent(), StopRequest()) == result
    (config.run / str(result["name"])).rename(config.run / "stopped")
    assert probe(config, Silent(), StopRequest())["weights_sha256"] == result["weights_sha256"]


def test_what_cannot_be_probed_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    for changes, message in (
        ({"data": "cifar1"}, "unknown data set"),
        ({"stage": "init"}, "--stage init: .* has one stage"),
        ({"run": tmp_path}, "holds no finished run"),
        ({"batchnorm": "off"}, "unknown mode of BatchNorm"),
    ):
        with pytest.raises(UsageError, match=message):
            probe(asked(workspace, **changes), Silent(), StopRequest())
    source = probed(asked(workspace))
    wrong = replace(source, network="resnet14")
    with pytest.raises(DamageError, match="does not hold the weights of resnet14"):
        with_new_classifier(wrong, 3, asked(workspace))


def test_its_configuration_makes_it_again(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    result, _ = run(asked(workspace, "srm", stage="pretrain", seed=7))
    place = workspace.runs / "srm" / str(result["name"])
    (place / "config.toml").rename(workspace.folder / "probe.toml")
    place.rename(workspace.folder / "before")
    line = ["analyze", "probe", "--config", str(workspace.folder / "probe.toml"), "--folder", str(workspace.folder)]
    assert command([*line, "--quiet"]) == 0
    assert "resnet8 of srm on other (linear)" in capsys.readouterr().out
    again = files.read_json(place / "result.json", "")
    assert again["weights_sha256"] == result["weights_sha256"]
