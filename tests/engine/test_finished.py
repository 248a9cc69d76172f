"""What counts as a finished run, as the same run, and as another one; and runs that diverged."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import PLAN, run_extract
from stopping import StopAfter
from telling import Told

from kdtool import files
from kdtool.cache import Choice, drop, open_cache
from kdtool.engine import checkpoint
from kdtool.engine.configuration import Values, distill_config
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig, prepare, view_count
from kdtool.engine.runs import read_toml
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.workspace import read_record
from kdtool.errors import DamageError, IdentityError, NonFiniteError, Stopped, UsageError
from kdtool.methods import kd, method
from kdtool.methods.own import load_method
from kdtool.models import create
from kdtool.targets import Stage, Weight

Copy = Callable[[], Workspace]
TEACH = TeachConfig("made_up", "resnet8", PLAN, student="resnet8", views=3, precision="float32", validation=16)
KD = DistillConfig("resnet8", (method("kd"),), PLAN, name="kd", precision="float32")


@pytest.mark.parametrize("lost", ["teacher.safetensors", "teacher.json", "teacher.split.json", "kdtool.toml"])
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_teacher_that_is_not_whole_is_trained_again(work: Copy, lost: str, how: str) -> None:
    workspace = work()
    before = {name: (workspace.folder / name).read_bytes() for name in ("teacher.safetensors", "teacher.split.json")}
    (workspace.folder / lost).unlink() if how == "gone" else (workspace.folder / lost).write_bytes(b"")
    teach(Workspace.open(workspace.folder), TEACH)
    assert {name: (workspace.folder / name).read_bytes() for name in before} == before
    checkpoint.load_tensors(workspace.teacher, read_record(workspace.teacher).sha256)


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_student_whose_weights_are_not_there_is_trained_again(work: Copy, how: str) -> None:
    workspace = work()
    first = distill(workspace, KD)
    weights = workspace.runs / "kd/student.safetensors"
    before = weights.read_bytes()
    weights.unlink() if how == "gone" else weights.write_bytes(before[:-1])
    assert distill(workspace, KD)["weights_sha256"] == first["weights_sha256"]
    assert weights.read_bytes() == before


def test_a_result_without_its_configuration_is_nobodys(work: Copy) -> None:
    workspace = work()
    distill(workspace, KD)
    for spoil in (lambda path: path.write_text(""), Path.unlink):
        spoil(workspace.runs / "kd/config.toml")
        with pytest.raises(DamageError, match=r"config\.toml is empty or missing"):
            distill(workspace, replace(KD, seed=1))


def test_places_make_no_other_run(work: Copy, tmp_path: Path) -> None:
    """A data set is known by its content, a cache by its identity."""
    workspace = work()
    first = distill(workspace, KD)
    moved = workspace.folder / "moved.zarr"
    shutil.move(workspace.cache, moved)
    workspace.settings["cache"] = str(moved.absolute())
    assert distill(workspace, replace(KD, data_folder=str(tmp_path), device="cpu")) == first
    with pytest.raises(IdentityError, match="seed is 0 there, 1 asked for"):
        distill(workspace, replace(KD, seed=1))
    teach(workspace, replace(TEACH, data_folder=str(tmp_path), device="cpu"))


def test_defaults_of_later_stages_make_no_other_teacher(work: Copy) -> None:
    """They stay as kdtool.toml has them: somebody who does not name them again has not asked for others."""
    workspace, told = work(), Told()
    settings = (workspace.folder / "kdtool.toml").read_bytes()
    first = teach(workspace, TEACH, told)
    assert not any("keeps" in note for note in told.notes)
    assert teach(workspace, replace(TEACH, student="resnet14", views=5), told) == first
    assert (
        f"{workspace.folder}/kdtool.toml keeps student = resnet8, views = 3; edit it for other defaults" in told.notes
    )
    assert (workspace.folder / "kdtool.toml").read_bytes() == settings
    with pytest.raises(IdentityError, match="seed is 0 there, 1 asked for"):
        teach(workspace, replace(TEACH, seed=1))


def test_a_configuration_runs_its_run_again(work: Copy) -> None:
    """Under its own name and from its own cache."""
    workspace = work()
    few = Workspace(workspace.folder, {**workspace.settings, "cache": str((workspace.folder / "few.zarr").absolute())})
    asked = ExtractConfig(batch=16, block=32, few_shot=4, seed=3, dtypes={"": "float32"}, without=("srm",))
    from kdtool.engine.extract import extract
    from kdtool.engine.prepare import prepare

    extract(few.cache, prepare(few, asked))
    first = distill(few, KD)
    words = "--validation 16 --few-shot 4 --seed 3 --batch 16 --block 32"
    words += " --dtype logits=float32 --dtype before_fc=float32"
    assert (first["samples"], first["cache"]["options"]) == (16, words.split())
    values = read_toml(few.runs / "kd/config.toml")
    assert (values["run"], values["cache"]) == ("kd", str(few.cache))
    of = Values.of_file("distill", few.runs / "kd/config.toml")
    there = Workspace(workspace.folder, {**workspace.settings, "cache": str(of.where("cache", None))})
    again = distill(there, replace(distill_config(of, ""), name="again"))
    assert again["weights_sha256"] == first["weights_sha256"]


def test_a_living_teacher_makes_another_run(work: Copy) -> None:
    workspace = work()
    distill(workspace, KD, live=True)
    assert "live" not in read_toml(workspace.runs / "kd/config.toml")
    with pytest.raises(IdentityError, match="a run beside a living teacher, and asked for is one from a cache"):
        distill(workspace, KD)


def test_teacher_and_student_of_one_seed_begin_with_other_weights(work: Copy) -> None:
    workspace = work()
    config = replace(TEACH, keep_weights=2, validation=0)
    teach(Workspace(workspace.folder / "other"), config)
    distill(workspace, replace(KD, methods=(), keep_weights=2))
    firsts = [
        checkpoint.load_tensors(next(place.glob("weights/*-0000.safetensors")), None)
        for place in (workspace.folder / "other/runs/teacher", workspace.runs / "kd")
    ]
    name = next(name for name, value in firsts[0].items() if value.dim() == 4)
    assert firsts[0][name].shape == firsts[1][name].shape
    assert not torch.equal(firsts[0][name], firsts[1][name])


@pytest.mark.parametrize("command", ["teach", "distill"])
def test_the_last_update_may_diverge(work: Copy, command: str) -> None:
    """Of a training of one step the loss is finite, and its weights are not."""
    workspace = work()
    plan = replace(PLAN, epochs=1, batch=80, learning_rate=1e38, weight_decay=1e4, warmup=0)
    train = {
        "teach": lambda: teach(Workspace(workspace.folder / "other"), replace(TEACH, recipe=plan)),
        "distill": lambda: distill(workspace, replace(KD, methods=(), recipe=plan)),
    }
    with pytest.raises(NonFiniteError, match="weights became infinite or NaN in epoch 1"):
        train[command]()
    assert not list(workspace.folder.rglob("kd/result.json"))
    assert not (workspace.folder / "other/teacher.safetensors").exists()


def test_what_a_network_answers_is_finite() -> None:
    from kdtool.engine.workspace import answer

    model = create("resnet8", 4)
    with torch.no_grad():
        next(iter(model.parameters()))[:] = torch.inf
    with pytest.raises(NonFiniteError, match="infinite or NaN logits"):
        answer(model, (3, 16, 16))


def test_a_later_extract_takes_the_views_of_the_cache(work: Copy) -> None:
    workspace = work()
    rule = read_record(workspace.teacher).seen.rule()
    assert view_count(workspace, ExtractConfig(), rule) == 3
    run_extract(workspace.folder, dtypes={"": "float32"}, views=5, without=("srm",))
    assert view_count(workspace, ExtractConfig(), rule) == 5
    assert view_count(workspace, ExtractConfig(views=2), rule) == 2


@pytest.mark.parametrize("name", ["\U0001f600", "a\x7fb", 'quo"te', "b\\s"])
def test_any_text_goes_through_a_configuration(work: Copy, name: str) -> None:
    workspace = work()
    folder = str(workspace.folder / name)
    distill(workspace, replace(KD, data_folder=folder))
    assert read_toml(workspace.runs / "kd/config.toml")["data_folder"] == folder


def test_what_is_no_text_is_refused(work: Copy) -> None:
    workspace = work()
    with pytest.raises(UsageError, match="is no Unicode text"):
        distill(workspace, replace(KD, data_folder="/tmp/\udcff"))


@pytest.mark.parametrize("ended", [True, False])
def test_targets_of_other_bits_make_another_run(work: Copy, ended: bool) -> None:
    """The identity of a cache does not tell its dtypes; a resumed run would be of both."""
    workspace = work()
    if ended:
        distill(workspace, KD)
    else:
        with pytest.raises(Stopped):
            distill(workspace, KD, stop=StopAfter(7))
    shutil.rmtree(workspace.cache)
    run_extract(workspace.folder, dtypes={"": "float32"})
    distill(workspace, KD)  # extracted again with the same bits
    shutil.rmtree(workspace.cache)
    run_extract(workspace.folder, dtypes={"": "float16"})
    with pytest.raises(IdentityError, match="holds a run from targets of other bits"):
        distill(workspace, KD)


def test_views_that_a_run_began_with_have_to_be_there_before_the_first_step(work: Copy) -> None:
    workspace = work()
    with pytest.raises(Stopped):
        distill(workspace, KD, stop=StopAfter(3))
    drop(workspace.cache, Choice(keep_views=1))
    with pytest.raises(DamageError, match=r"holds 1 complete views of logits, and 3 are needed"):
        distill(workspace, KD)


def test_a_run_that_walks_fewer_views_than_the_cache_has_says_so(work: Copy) -> None:
    workspace, told = work(), Told()
    sp = replace(KD, methods=(method("sp"),), name="sp")
    distill(workspace, KD, told)
    few = ExtractConfig((method("sp"),), ("resnet8",), views=2, batch=16, dtypes={"": "float32"})
    extract(workspace.cache, prepare(workspace, few))
    distill(workspace, replace(sp, views=1, name="one"), told)
    assert not any("walks" in note for note in told.notes)
    distill(workspace, sp, told)
    assert "walks 2 of 3 views: the cache has no more of all that the methods read" in told.notes


MINE = """
from dataclasses import dataclass

from kdtool.methods.kd import KD


@dataclass(frozen=True)
class Mine(KD):
    name = "mine"
"""


@pytest.mark.parametrize("ended", [True, False])
def test_a_method_whose_file_has_changed_makes_another_run(
    work: Copy, ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would give the old result, or go on with another loss."""
    module = f"mine_{ended}".lower()
    (tmp_path / f"{module}.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    workspace, config = work(), replace(KD, methods=(load_method(f"{module}:Mine")(),))
    if ended:
        assert distill(workspace, config) == distill(workspace, config)
    else:
        with pytest.raises(Stopped):
            distill(workspace, config, stop=StopAfter(3))
    (tmp_path / f"{module}.py").write_text(MINE.replace("mine", "mine"[::-1]))
    with pytest.raises(IdentityError, match=f"the file of {module}:Mine has changed since the run in .* was begun"):
        distill(workspace, config)


def test_an_extract_that_has_not_come_to_the_test_part_is_told_of_before_the_first_step(work: Copy) -> None:
    workspace = work()
    shutil.rmtree(workspace.cache)
    job = prepare(workspace, ExtractConfig((method("kd"),), ("resnet8",), views=2, batch=16, block=32))
    with pytest.raises(Stopped):
        extract(workspace.cache, job, stop=StopAfter(6))
    assert open_cache(workspace.cache).views("logits") == 2
    with pytest.raises(
        DamageError,
        match="test part; an extract is unfinished: its command goes on; add it",
    ):
        distill(workspace, KD)


@pytest.mark.parametrize("name", ["task", "loss", "right", "kd"])
def test_a_term_that_is_called_as_another_one_is_refused(work: Copy, name: str) -> None:
    """It would take the other's place in the sum."""

    @dataclass(frozen=True)
    class Named(kd.KD):
        name = "named"
        combines = True

        def terms(self, *arguments: Any) -> dict[str, torch.Tensor]:
            return {name: super().terms(*arguments)["kd"]}

        def stages(self, *arguments: Any) -> tuple[Stage, ...]:
            return (Stage("distill", weights={name: Weight(1.0)}),)

    config = replace(KD, methods=(Named(), *([method("kd")] if name == "kd" else [])))
    with pytest.raises(UsageError, match=f"calls a term {name}, as another one is called already"):
        distill(work(), config)


def test_cache_json_of_an_earlier_kdtool_is_of_a_cache(work: Copy) -> None:
    workspace = work()
    first = distill(workspace, KD)
    path = workspace.runs / "kd/cache.json"
    files.write_json(path, {"identity": json.loads(path.read_text())["identity"]})
    assert distill(workspace, KD) == first
