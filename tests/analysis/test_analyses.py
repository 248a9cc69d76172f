"""Analyses of finished runs: the right features, kept and read again, one result for each layer, ranks, files."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import PLAN, made_up, run_extract
from telling import Told
from typer.testing import CliRunner

from kdtool import data, files
from kdtool.analysis import analyses, spooled
from kdtool.analysis import correlation as correlating
from kdtool.analysis.analyses import GapPlan
from kdtool.analysis.compared import CachedRows, newest_run
from kdtool.analysis.gram import gram_gap
from kdtool.analysis.kept import Result, keep, read_results
from kdtool.analysis.kernels import Kernel
from kdtool.analysis.landmarks import Plan
from kdtool.analysis.pairs import Asked, run_names
from kdtool.cache import open_cache
from kdtool.cli.commands import app
from kdtool.engine import checkpoint
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.folder import Workspace
from kdtool.engine.keeping import kept
from kdtool.engine.ranks import Alone
from kdtool.engine.teach import TeachConfig, teach
from kdtool.errors import DamageError, IdentityError, UsageError
from kdtool.methods import method
from kdtool.models import create
from kdtool.progress import Silent, StopRequest
from kdtool.workflows.report_again import words_of
from kdtool.workflows.reproduce.measures import ANALYSES

SILENT = Silent()


@pytest.fixture(autouse=True)
def _data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATASETS, "made_up", made_up)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A teacher, its cache in float32, and two students, one of which kept its weights."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "made_up", made_up)
        config = TeachConfig(
            "made_up", "resnet14", PLAN, student="resnet8", views=3, precision="float32", validation=16
        )
        teach(Workspace(folder), config, SILENT, StopRequest())
        found = run_extract(Workspace.open(folder).folder, dtypes={"": "float32"}, without=("srm",))
        for name, methods, keeping in (("plain", (), None), ("kda", (method("kda"),), 1)):
            asked = DistillConfig("resnet8", methods, PLAN, name=name, precision="float32", keep_weights=keeping)
            distill(found, asked, SILENT, StopRequest())
    return found


def by_hand(workspace: Workspace, run: str, weights: str = "student.safetensors") -> dict[str, np.ndarray]:
    """Vectors of a student over the clean train images, image by image and without any of the tool's readers."""
    model = create("resnet8", 4)
    model.load_state_dict(checkpoint.load_tensors(workspace.runs / run / weights, None))
    model.eval()
    cache = open_cache(workspace.cache)
    images = made_up(Path()).train.images[cache.index("train_clean")]
    pixels = (torch.from_numpy(images).float() / 255 - 0.5) / 0.5
    held = {}
    model.get_submodule(model.taps["before_fc"].removesuffix(":input")).register_forward_hook(
        lambda module, inputs, output: held.__setitem__(
            "x", inputs[0] if model.taps["before_fc"].endswith(":input") else output
        )
    )
    with torch.no_grad():
        logits = model(pixels)
    return {"before_fc": held["x"].flatten(1).numpy(), "after_fc": logits.numpy()}


def test_the_features_are_those_of_the_trained_network(workspace: Workspace) -> None:
    runs = (workspace.runs / "plain", workspace.runs / "kda")
    results = analyses.gram_gap(workspace, Asked(runs), GapPlan(by_class=True), SILENT)
    cache = open_cache(workspace.cache)
    assert [(result["layer"], result["run"]) for result in results] == [
        ("before_fc", "plain"),
        ("before_fc", "kda"),
        ("after_fc", "plain"),
        ("after_fc", "kda"),
    ]
    for result in results:
        key = {"before_fc": "before_fc", "after_fc": "logits"}[result["layer"]]
        teacher = cache.array("train_clean", key, "values").read(0)
        student = by_hand(workspace, result["run"])[result["layer"]]
        wanted = gram_gap(student, teacher, labels=cache.labels("train_clean"))
        assert result["loss"] == pytest.approx(wanted.loss, rel=1e-5)
        assert result["samples"] == 80
        assert result["by_class"]["class_names"] == tuple("abcd")
        assert result["by_class"]["within_share"] == pytest.approx(wanted.by_class.within_share, rel=1e-3)
        assert result["teacher_features"] == "cached float32"
    for run in runs:
        assert read_results(run, "gram-gap") == [json.loads(json.dumps(r)) for r in results if r["run"] == run.name]
        assert {path.name for path in (run / "analysis").glob("*.svg")} >= {"gram-gap.svg"}


def test_the_teachers_network_says_what_the_cache_says(workspace: Workspace) -> None:
    asked = Asked((workspace.runs / "plain",), ("before_fc", "stage2"), fresh=True)
    fresh = analyses.gram_gap(workspace, asked, GapPlan(), SILENT)
    assert [result["layer"] for result in fresh] == ["before_fc", "stage2"]
    cached = analyses.gram_gap(workspace, replace(asked, layers=("before_fc",), fresh=False), GapPlan(), SILENT)
    assert fresh[0]["loss"] == pytest.approx(cached[0]["loss"], rel=1e-6)
    assert not list(workspace.folder.glob(".analysis-*"))


def test_features_are_computed_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked((workspace.runs / "plain",), part="test")
    first = analyses.gram_gap(workspace, asked, GapPlan(), SILENT)

    def never(*given: object) -> None:
        raise AssertionError("the network runs again")

    monkeypatch.setattr(spooled, "vectors", never)
    assert analyses.gram_gap(workspace, asked, GapPlan(), SILENT) == first
    analyses.similarity(workspace, asked, 1.0, 0, SILENT)
    with pytest.raises(AssertionError, match="runs again"):
        analyses.gram_gap(workspace, replace(asked, part="validation"), GapPlan(), SILENT)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "record gone", "record torn", "of other weights"])
def test_features_that_are_not_what_they_should_be_are_computed_again(workspace: Workspace, how: str) -> None:
    run = workspace.runs / "plain"
    asked = Asked((run,), ("before_fc",))
    wanted = analyses.gram_gap(workspace, asked, GapPlan(), SILENT)
    array = run / "features/train_clean-before_fc.npy"
    record = array.with_suffix(".json")
    sound = array.read_bytes()
    if how == "flipped":
        array.write_bytes(sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:])
    elif how == "cut":
        array.write_bytes(sound[:-64])
    elif how == "gone":
        array.unlink()
    elif how == "record gone":
        record.unlink()
    elif how == "record torn":
        record.write_text(record.read_text()[:30])
    else:
        known = files.read_json(record, "")
        files.write_json(record, {**known, "basis": {**known["basis"], "weights_sha256": "0" * 64}})
    assert analyses.gram_gap(workspace, asked, GapPlan(), SILENT) == wanted
    assert array.read_bytes() == sound


def test_weights_that_were_damaged_since_are_noticed(workspace: Workspace) -> None:
    run = workspace.runs / "plain"
    analyses.gram_gap(workspace, Asked((run,)), GapPlan(), SILENT)
    path = run / "student.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        with pytest.raises(DamageError, match=r"student\.safetensors is damaged"):
            analyses.gram_gap(workspace, Asked((run,)), GapPlan(), SILENT)
    finally:
        path.write_bytes(sound)


def test_every_analysis_keeps_its_results_and_its_plots(workspace: Workspace) -> None:
    run = workspace.runs / "kda"
    asked, plan = Asked((run,)), Plan(count=5)
    analyses.bounds(workspace, asked, plan, None, SILENT)
    analyses.bounds(workspace, asked, replace(plan, strategies=("random",), count=7), None, SILENT)
    analyses.spectrum(workspace, asked, plan, 2, SILENT)
    analyses.landmarks(workspace, asked, plan, SILENT)
    analyses.correlation(workspace, asked, None, SILENT)
    analyses.similarity(workspace, asked, 4.0, 0, SILENT)
    analyses.gram_gap(workspace, asked, GapPlan(), SILENT)
    analyses.gram_gap(workspace, asked, GapPlan(Kernel("rbf")), SILENT)
    held = {path.stem: read_results(run, path.stem) for path in (run / "analysis").glob("*.json")}
    counts = {name: len(results) for name, results in held.items()}
    assert counts == {"bounds": 8, "spectrum": 2, "landmarks": 2, "correlation": 2, "similarity": 2, "gram-gap": 4}
    for name in held:
        assert list((run / "analysis").glob(f"{name}*.svg")), name


def test_options_of_analyses_act(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run, logits = workspace.runs / "kda", Asked((workspace.runs / "kda",), ("after_fc",))
    cold, warm = (analyses.similarity(workspace, logits, t, 0, SILENT)[0]["predictions"]["kl"] for t in (1.0, 4.0))
    assert cold != warm
    before = Asked((run,), ("before_fc",))
    (gap,) = analyses.gram_gap(workspace, before, GapPlan(Kernel("rbf"), "nystrom", landmarks=7, seed=3), SILENT)
    assert (gap["nystrom_landmarks"], gap["seed"]) == (7, 3)
    flat, curved = (
        analyses.gram_gap(workspace, before, GapPlan(Kernel("polynomial", degree=degree)), SILENT)[0]["loss"]
        for degree in (1, 3)
    )
    assert flat != curved
    monkeypatch.setattr(correlating, "PUBLISHED_IMAGES", 16)
    some = analyses.correlation(workspace, logits, None, SILENT)[0]["samples"]
    whole = analyses.correlation(workspace, logits, 0, SILENT)[0]["samples"]
    assert (some, whole) == (16, len(open_cache(workspace.cache).labels("train_clean")))
    one, other = (
        analyses.spectrum(workspace, before, Plan(("random",), count=5, seed=seed), 2, SILENT) for seed in (0, 1)
    )
    assert one != other


def test_analyses_of_recipes_are_asked_for_as_the_papers_have_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[object, ...]] = {}
    for name in ("correlation", "similarity"):
        monkeypatch.setattr(analyses, name, lambda *given, name=name: seen.update({name: given}))
        ANALYSES[name](workspace, Asked((workspace.runs / "kda",)), SILENT)
    asked = seen["correlation"][1]
    assert isinstance(asked, Asked)
    assert asked.part == "test"
    assert seen["similarity"][2:4] == (4.0, 0)


def test_the_curve_of_a_training_ends_at_the_student(workspace: Workspace) -> None:
    run = workspace.runs / "kda"
    (found,) = analyses.landmarks(workspace, Asked((run,), ("before_fc",)), Plan(), SILENT)
    (final,) = analyses.gram_gap(workspace, Asked((run,), ("before_fc",)), GapPlan(), SILENT)
    shots = found["snapshots"]
    assert [shot["epoch"] for shot in shots] == [0, 1, 2, 3]
    assert shots[-1]["loss"] == final["loss"]
    teacher = open_cache(workspace.cache).array("train_clean", "before_fc", "values").read(0).astype(float)
    labels = open_cache(workspace.cache).labels("train_clean")
    for shot, known in zip(shots, kept(run), strict=True):
        student = by_hand(workspace, "kda", known.file)["before_fc"].astype(float)
        columns = [side @ np.stack([side[labels == c].mean(0) for c in range(4)]).T for side in (student, teacher)]
        wanted = np.linalg.norm(columns[0] - columns[1]) / np.linalg.norm(columns[1])
        said = {estimate["landmarks"]: estimate for estimate in shot["estimates"]}
        assert said["class"]["plain"] == pytest.approx(wanted, rel=1e-4)
        assert {estimate["count"] for estimate in said.values()} == {4}


def test_a_run_without_kept_weights_has_no_curve(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="--keep-weights 1"):
        analyses.landmarks(workspace, Asked((workspace.runs / "plain",)), Plan(), SILENT)


def test_features_from_files(workspace: Workspace, tmp_path: Path) -> None:
    student, teacher = (np.random.default_rng(seed).standard_normal((60, 5)) for seed in (0, 1))
    labels = np.arange(60) % 3
    for name, array in (("student", student), ("teacher", teacher), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    asked = Asked((tmp_path / "student.npy",), teacher=tmp_path / "teacher.npy", labels=tmp_path / "labels.npy")
    empty = Workspace.open(tmp_path)
    (result,) = analyses.gram_gap(empty, asked, GapPlan(by_class=True), SILENT)
    assert result["loss"] == gram_gap(student, teacher).loss
    assert (result["run"], result["layer"], result["part"]) == ("student", "features", "file")
    (logits,) = analyses.similarity(empty, replace(asked, layers=("after_fc",)), 1.0, 0, SILENT)
    assert logits["predictions"]["student"]["accuracy"] == np.mean(student.argmax(1) == labels)
    assert len(analyses.bounds(empty, asked, Plan(), None, SILENT)) == 3
    with pytest.raises(UsageError, match="--by-class needs labels"):
        analyses.gram_gap(empty, replace(asked, labels=None), GapPlan(by_class=True), SILENT)
    with pytest.raises(UsageError, match="need labels"):
        analyses.bounds(empty, replace(asked, labels=None), Plan(), None, SILENT)


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.ones((4, 2)))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").write_bytes(b"")
    good = tmp_path / "good.npy"
    for name in ("object", "text", "empty"):
        with pytest.raises(DamageError, match=rf"{name}\.npy is no \.npy file of numbers"):
            analyses.gram_gap(Workspace(tmp_path), Asked((tmp_path / f"{name}.npy",), teacher=good), GapPlan(), SILENT)
    for asked in (Asked((good,)), Asked((tmp_path,), teacher=good), Asked((good,), teacher=tmp_path)):
        with pytest.raises(UsageError, match=r"\.npy files on both sides"):
            analyses.gram_gap(Workspace(tmp_path), asked, GapPlan(), SILENT)
    with pytest.raises(UsageError, match="cannot read"):
        analyses.gram_gap(Workspace(tmp_path), Asked((tmp_path / "no.npy",), teacher=good), GapPlan(), SILENT)


def test_a_student_that_is_refused_is_named_and_the_others_keep_their_results(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = replace(workspace, folder=Path(shutil.copytree(workspace.folder, tmp_path / "work")))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "collapsed.npy", np.ones((9, 3)))
    np.save(tmp_path / "teacher.npy", rng.standard_normal((9, 4)))
    files_asked = Asked((tmp_path / "collapsed.npy",), teacher=tmp_path / "teacher.npy")
    with pytest.raises(UsageError, match="features of collapsed: the student's features are the same in all samples"):
        analyses.similarity(copied, files_asked)

    cka, calls = analyses.linear_cka, []

    def second_collapses(*given: object, **options: object) -> object:
        calls.append(given)
        if len(calls) == 2:
            raise UsageError("it has collapsed")
        return cka(*given, **options)

    monkeypatch.setattr(analyses, "linear_cka", second_collapses)
    runs = (copied.runs / "plain", copied.runs / "kda")
    shutil.rmtree(runs[1] / "analysis", ignore_errors=True)
    with pytest.raises(UsageError, match="before_fc of kda: it has collapsed"):
        analyses.similarity(copied, Asked(runs, ("before_fc",)))
    assert [result["layer"] for result in read_results(runs[0], "similarity")][-1:] == ["before_fc"]
    assert read_results(runs[1], "similarity") == []


def test_a_run_on_other_data_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    result = files.read_json(workspace.runs / "plain/result.json", "")
    files.write_json(run / "result.json", {**result, "seen": {**result["seen"], "digest": "0" * 64}})
    with pytest.raises(IdentityError, match="trained on other data"):
        analyses.gram_gap(workspace, Asked((run,)), GapPlan(), SILENT)


def test_a_run_from_another_teacher_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    """Its loss to this one would take the place of that to its own."""
    run = tmp_path / "run"
    run.mkdir()
    result = files.read_json(workspace.runs / "plain/result.json", "")
    files.write_json(run / "result.json", {**result, "teacher": {**result["teacher"], "sha256": "0" * 64}})
    with pytest.raises(IdentityError, match=r"has learned from another teacher than the cache .*: 000000000000 there"):
        analyses.gram_gap(workspace, Asked((run,)), GapPlan(), SILENT)


def named(workspace: Workspace, cache: Path) -> Workspace:
    """The folder with a cache that is not its own."""
    return replace(workspace, settings={**workspace.settings, "cache": str(cache)})


def test_another_teacher_is_not_run_in_place_of_the_caches(workspace: Workspace, tmp_path: Path) -> None:
    shutil.copytree(workspace.folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs", "cache.zarr"))
    other = named(Workspace.open(tmp_path), workspace.cache)
    record = files.read_json(other.teacher.with_suffix(".json"), "")
    files.write_json(other.teacher.with_suffix(".json"), {**record, "sha256": "0" * 64})
    asked = Asked((workspace.runs / "plain",), ("before_fc",), fresh=True)
    with pytest.raises(IdentityError, match=r"is another teacher than that of the cache .*000000000000 there"):
        analyses.gram_gap(other, asked, GapPlan(), SILENT)


def test_a_result_says_where_the_teachers_features_were_read(workspace: Workspace, tmp_path: Path) -> None:
    asked = Asked((workspace.runs / "plain",), ("before_fc",))
    (read,) = analyses.gram_gap(workspace, asked, GapPlan(), SILENT)
    (fresh,) = analyses.gram_gap(workspace, replace(asked, fresh=True), GapPlan(), SILENT)
    assert "--fresh" not in words_of("gram-gap", read)
    assert "--fresh" in words_of("gram-gap", fresh)
    moved = named(workspace, tmp_path / "elsewhere.zarr")
    shutil.copytree(workspace.cache, moved.cache)
    (found,) = analyses.gram_gap(moved, asked, GapPlan(), SILENT)
    words = words_of("gram-gap", found)
    assert words[words.index("--cache") + 1] == str(moved.cache)
    assert found["loss"] == read["loss"]


def test_landmarks_are_of_runs_alone(workspace: Workspace, tmp_path: Path) -> None:
    for given in ({"labels": tmp_path / "labels.npy"}, {"teacher": tmp_path / "teacher.npy"}):
        with pytest.raises(UsageError, match="name its folder, without files"):
            analyses.landmarks(workspace, Asked((workspace.runs / "kda",), **given), Plan(), SILENT)


def test_rows_of_a_cache_are_read_in_any_part(workspace: Workspace) -> None:
    array = open_cache(workspace.cache).array("train_clean", "before_fc", "values")
    whole = array.read(0)
    rows = CachedRows.whole(array)
    assert len(list(rows)) > 1
    for start, stop in ((0, 80), (5, 6), (31, 33), (32, 64), (70, 80), (7, 7)):
        part = rows.span(start, stop)
        found = [chunk for chunk in part if len(chunk)]
        assert len(part) == stop - start
        assert np.array_equal(np.concatenate([whole[:0], *found]), whole[start:stop])
    inner = rows.span(10, 60).span(5, 30)
    assert np.array_equal(np.concatenate(list(inner)), whole[15:40])


def test_results_take_the_place_of_those_that_they_repeat(tmp_path: Path) -> None:
    keep(tmp_path, "x", [{"layer": "a", "part": "train", "kernel": "linear", "value": 1}])
    keep(tmp_path, "x", [{"layer": "a", "part": "train", "kernel": "rbf", "value": 2}])
    found = keep(tmp_path, "x", [{"layer": "a", "part": "train", "kernel": "linear", "value": 3}])
    assert [result["value"] for result in found] == [2, 3]
    assert read_results(tmp_path, "x") == found
    for _ in range(2):
        nested = keep(tmp_path, "z", [{"layer": "a", "part": "train", "landmarks": ({"count": 3},)}])
    assert len(nested) == 1
    assert read_results(tmp_path, "y") == []


def test_results_of_other_weights_are_dropped(tmp_path: Path) -> None:
    keep(tmp_path, "x", [{"layer": "a", "part": "train", "weights_sha256": "1"}])
    found = keep(tmp_path, "x", [{"layer": "b", "part": "train", "weights_sha256": "2"}])
    assert [result["layer"] for result in found] == ["b"]


def test_runs_given_twice_and_runs_that_are_none(workspace: Workspace, tmp_path: Path) -> None:
    runs = [workspace.runs / name for name in ("plain", "kda", "teacher", "kda")]
    again = workspace.runs / "plain" / ".." / "kda"
    unfinished = tmp_path / "half"
    unfinished.mkdir()
    (unfinished / "config.toml").write_text('command = "distill"')
    told = Told()
    asked = Asked((*runs, again, unfinished), ("before_fc",))
    found = analyses.gram_gap(workspace, asked, GapPlan(), told)
    assert [result["run"] for result in found] == ["plain", "kda"]
    assert [line for line in told.notes if "left out" in line] == [
        f"left out: {name} is no finished run of `kdtool distill`" for name in ("teacher", "half")
    ]
    with pytest.raises(UsageError, match="nowhere holds no finished run"):
        analyses.gram_gap(workspace, Asked((workspace.runs / "plain", tmp_path / "nowhere")), GapPlan(), SILENT)
    with pytest.raises(UsageError, match="none of the 2 folders"):
        analyses.gram_gap(workspace, Asked((workspace.runs / "teacher", unfinished)), GapPlan(), SILENT)


def test_plots_of_what_is_not_kept_any_more_go(workspace: Workspace) -> None:
    run = workspace.runs / "plain"
    asked = Asked((run,), ("before_fc",))
    analyses.gram_gap(workspace, asked, GapPlan(by_class=True), SILENT)
    assert (run / "analysis/gram-gap-classes-before_fc-train.svg").exists()
    analyses.gram_gap(workspace, asked, GapPlan(), SILENT)
    assert not (run / "analysis/gram-gap-classes-before_fc-train.svg").exists()
    assert (run / "analysis/gram-gap.svg").exists()


def test_results_wait_for_one_another(workspace: Workspace) -> None:
    run = workspace.runs / "plain"
    kernels = ("cosine", "rbf", "polynomial", "linear")
    asked = Asked((run,), ("before_fc",))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: analyses.gram_gap(workspace, asked, GapPlan(Kernel(name)), SILENT), kernels))
    held = {result["kernel"] for result in read_results(run, "gram-gap") if result["layer"] == "before_fc"}
    assert held >= set(kernels)


def test_names_of_runs(tmp_path: Path) -> None:
    paths = [Path("a/runs/x"), Path("b/runs/x"), Path("b/runs/y"), Path("z.npy")]
    assert run_names(paths) == ["a/runs/x", "b/runs/x", "y", "z"]


def test_the_newest_run(workspace: Workspace) -> None:
    (workspace.runs / "kda/student.safetensors").touch()
    assert newest_run(workspace).name == "kda"


RANKS = """
import sys
sys.path.insert(0, {here!r})
from made_up import made_up
from kdtool import data
data.DATASETS["made_up"] = made_up
from kdtool.cli.main import run
sys.exit(run({line!r}.split()))
"""


@pytest.mark.slow
def test_ranks_of_torchrun_say_what_one_says(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.runs / "plain"
    outputs = []
    for count in (1, 2):
        for path in (run / "features").glob("*"):
            path.unlink()
        script = tmp_path / f"by{count}.py"
        words = f"analyze gram-gap --by-class {run} --json --quiet --folder {workspace.folder}"
        script.write_text(RANKS.format(here=str(Path(__file__).parents[1] / "support"), line=words))
        started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        done = subprocess.run(
            [sys.executable, *started, str(script)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append((json.loads(done.stdout)["results"], (run / "features/train_clean-before_fc.npy").read_bytes()))
    (alone, features), (together, same_features) = outputs
    assert features == same_features
    assert len(together) == len(alone) == 2
    for one, other in zip(alone, together, strict=True):
        assert flat(other) == pytest.approx(flat(one), rel=1e-9)


def flat(value: object) -> list[float]:
    """All numbers in plain values."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in flat(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in flat(item)]
    return [float(value)] if isinstance(value, int | float) else []


def test_ranks_alone_add_nothing() -> None:
    values = np.arange(3.0)
    assert Alone().summed(values) is values


ASKED_FOR = (
    "gram-gap",
    "gram-gap --kernel rbf --gamma 0.25 --algorithm nystrom --landmarks 9 --seed 3",
    "gram-gap --kernel polynomial --degree 2 --constant 0.5 --by-class",
    "bounds --kind random --kind class --count 5 --rank 2 --seed 1",
    "spectrum --kind kmeans --per-class 2 --draws 1",
    "correlation --images 30",
    "similarity --temperature 4.0 --seed 2",
)


@pytest.mark.parametrize("words", ASKED_FOR)
def test_the_words_that_a_result_keeps_ask_for_it_again(words: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(48) % 4
    for name, array in (("s", random.normal(size=(48, 4))), ("t", random.normal(size=(48, 4))), ("y", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    places = [str(tmp_path / "s.npy"), "--teacher", str(tmp_path / "t.npy"), "--labels", str(tmp_path / "y.npy")]
    layer = [] if words.startswith("correlation") else ["--layer", "after_fc"]

    def asked(line: list[str]) -> list[Result]:
        found = CliRunner().invoke(app, ["analyze", *line, *layer, *places, "--json", "--folder", str(tmp_path)])
        assert found.exit_code == 0, found.output
        results: list[Result] = json.loads(found.stdout)["results"]
        return results

    first = asked(words.split())
    again = words_of(words.split()[0], {**first[0], "part": "train"})
    assert sorted(again[2:]) == sorted(words.split())
    assert asked(again[2:]) == first


def test_losses_with_two_gammas_and_from_landmarks_stand_beside_one_another(workspace: Workspace) -> None:
    run = workspace.runs / "plain"
    plans = (
        GapPlan(),
        *(GapPlan(Kernel("rbf"), "nystrom", landmarks=8, seed=seed) for seed in (0, 1)),
        *(GapPlan(Kernel("rbf", gamma)) for gamma in (None, 0.5, 2.0)),
    )
    found = [
        result for plan in plans for result in analyses.gram_gap(workspace, Asked((run,), ("before_fc",)), plan, SILENT)
    ]
    held = [result for result in read_results(run, "gram-gap") if result["layer"] == "before_fc"]
    for result in json.loads(json.dumps(found)):
        assert result in held
    assert len({result["loss"] for result in found}) == len(plans)
