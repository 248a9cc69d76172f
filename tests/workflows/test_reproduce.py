"""Recipes that run, stop, go on and are shared out, on a made-up data set; tables are made of nothing but rows."""

import itertools
import json
import os
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import save_file

from kdtool.cache import open_cache
from kdtool.data import DATASETS, Dataset
from kdtool.engine import extract as extracting
from kdtool.engine.folder import Workspace
from kdtool.errors import DamageError, HeldError, IdentityError, Stopped, UsageError
from kdtool.models import create
from kdtool.progress import Silent, StopRequest
from kdtool.workflows.reproduce import ahead, plans, tables, work
from kdtool.workflows.reproduce.plans import plan
from kdtool.workflows.reproduce.printed import Printed
from kdtool.workflows.reproduce.recipe import Recipe, load
from kdtool.workflows.reproduce.rows import Results, Row, copy_teacher
from kdtool.workflows.reproduce.tasks import Task, searched, share_of, tasks
from kdtool.workflows.reproduce.work import Work
from tests.support.made_up import made_up
from tests.support.stopping import StopAfter

MADE = "kdtool reproduce table it"  # the command of a page
RECIPE = """
title = "A tiny table"
about = "Made up."
seeds = 2
analyze = ["gram-gap"]

[distill]
student = "resnet8"
epochs = 2
batch = 32
precision = "float32"

[group.tiny]
teach = { data = "made_up", network = "resnet8", epochs = 2, batch = 32, views = 2, precision = "float32" }
extract = { batch = 16 }

[group.tiny-few]
teacher = "tiny"
extract = { batch = 16, few_shot = 16 }

[[pair]]
row = "all"
group = "tiny"

[[pair]]
row = "few"
group = "tiny-few"

[[method]]
column = "none"
distill = { method = "none" }

[[method]]
column = "KD"
distill = { method = "kd" }

[[method]]
column = "teacher"
distill = { method = "teacher" }

[[method]]
column = "ONE"
skip = "ONE trains without a fixed teacher"
"""
FEW = f"""{RECIPE}
[[method]]
column = "more"
only = {{ row = ["few"] }}
distill = """
PROBED = f"""{RECIPE}
[[method]]
column = "probed"
only = {{ row = ["all"] }}
distill = {{ method = "kd" }}
probe = """
Made = Callable[..., Work]
Typed = Callable[[str], tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "made_up", made_up)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return written(tmp_path, RECIPE)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A `Work` in folders of the test."""

    def call(folder: str = "work", stop: StopRequest | None = None, share: tuple[int, int] = (1, 1)) -> Work:
        return Work(tmp_path / folder, Results(tmp_path / "rows", share), Silent(), stop or StopRequest())

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Recipe]]:
    """The folder of a run of `RECIPE` that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "made_up", made_up)
        found = written(folder, RECIPE)
        made = Work(folder / "work", Results(folder / "rows"), Silent(), StopRequest())
        made.run([(found, found.cells, found.seeds)])
        yield folder, found


def written(folder: Path, text: str) -> Recipe:
    (folder / "mine.toml").write_text(text)
    return load(str(folder / "mine.toml"))


def all_rows(folder: Path) -> list[Row]:
    return [row for group in ("tiny", "tiny-few") for row in Results(folder / "rows").rows(group)]


def weights(rows: list[Row]) -> dict[str, str]:
    return {row["key"]: row["weights_sha256"] for row in rows}


def test_a_table_shows_what_the_runs_gave(whole: tuple[Path, Recipe]) -> None:
    folder, recipe = whole
    found = {(line.row, line.column): line for line in tables.lines(recipe, Results(folder / "rows"))}
    assert len(found) == 8
    for row, group in (("all", "tiny"), ("few", "tiny-few")):
        runs = [json.loads(path.read_text()) for path in (folder / "work" / group / "runs").glob("*kd*/result.json")]
        accuracies = [run["test_accuracy"]["last"] for run in runs]
        line = found[row, "KD"]
        assert (line.seeds, len(runs)) == (2, 2)
        assert line.mean == pytest.approx(statistics.mean(accuracies), abs=1e-12)
        assert line.sd == pytest.approx(statistics.stdev(accuracies), abs=1e-12)
        gaps = [
            json.loads(path.read_text()) for path in (folder / "work" / group / "runs").glob("*kd*/analysis/*.json")
        ]
        before = [result["loss"] for gap in gaps for result in gap["results"] if result["layer"] == "before_fc"]
        assert line.losses["before_fc"] == pytest.approx(statistics.mean(before), abs=1e-12)
        near = [result["alignment"] for gap in gaps for result in gap["results"] if result["layer"] == "before_fc"]
        assert line.alignments["before_fc"] == pytest.approx(statistics.mean(near), abs=1e-12)
        teacher = json.loads((folder / "work" / group / "teacher.json").read_text())
        assert (found[row, "teacher"].mean, found[row, "teacher"].seeds) == (teacher["test_accuracy"], 1)
        assert found[row, "ONE"].note == "ONE trains without a fixed teacher"
        assert found[row, "ONE"].mean is None


def test_a_row_says_what_it_was_made_of(whole: tuple[Path, Recipe]) -> None:
    folder, _ = whole
    for row in all_rows(folder):
        cache = open_cache(folder / "work" / row["group"] / "cache.zarr")
        assert row["teacher"]["sha256"] == cache.identity["teacher"]["sha256"]
        if row["config"]:
            assert row["cache"]["identity"] == cache.identity_digest
            assert row["config"]["recipe"]["epochs"] == row["epochs"] == 2
            assert row["seed"] in (0, 1)
            assert {"data", "train", "evaluate", "total"} <= row["seconds"].keys()
            assert [stage["epochs"] for stage in row["stages"]] == [2]
            assert row["environment"]["threads"] >= 1


def test_two_groups_with_one_teacher_train_it_once(whole: tuple[Path, Recipe]) -> None:
    folder, _ = whole
    assert (folder / "work/tiny/teacher.safetensors").read_bytes() == (
        folder / "work/tiny-few/teacher.safetensors"
    ).read_bytes()
    assert not (folder / "work/tiny-few/runs/teacher/config.toml").exists()
    assert len(open_cache(folder / "work/tiny-few/cache.zarr").labels("train")) == 64


def test_finished_cells_are_never_run_again(
    whole: tuple[Path, Recipe], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    before = {path: path.read_bytes() for path in (tmp_path / "rows").rglob("rows.jsonl")}

    def no(*words: object) -> None:
        raise AssertionError("something was run")

    for name in ("distill", "extract", "teach"):
        monkeypatch.setattr(work, name, no)
    made().run([(recipe, recipe.cells, recipe.seeds)])
    assert {path: path.read_bytes() for path in (tmp_path / "rows").rglob("rows.jsonl")} == before


def test_another_machine_goes_on_with_the_teacher_that_was_kept(
    whole: tuple[Path, Recipe], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    monkeypatch.delattr(work, "teach")
    made("elsewhere").run([(recipe, recipe.cells, 3)])
    rows = all_rows(tmp_path)
    assert len({row["teacher"]["sha256"] for row in rows}) == 1
    assert len(rows) == len(all_rows(folder)) + 4
    assert weights(all_rows(folder)).items() <= weights(rows).items()
    for wanted, shown in ((None, 3), (2, 2)):
        lines = tables.lines(recipe, Results(tmp_path / "rows"), wanted)
        assert {line.seeds for line in lines if line.column == "KD"} == {shown}


@pytest.mark.parametrize("points", [1, 4, 9, 15, 22])
def test_a_stopped_run_goes_on_to_the_same_rows(
    whole: tuple[Path, Recipe], made: Made, recipe: Recipe, tmp_path: Path, points: int
) -> None:
    folder, _ = whole
    with pytest.raises(Stopped):
        made(stop=StopAfter(points)).run([(recipe, recipe.cells[:3], recipe.seeds)])
    made().run([(recipe, recipe.cells[:3], recipe.seeds)])
    found = weights(all_rows(tmp_path))
    assert found == {key: value for key, value in weights(all_rows(folder)).items() if key in found}
    assert len(found) == 5


def test_shares_are_disjoint_and_make_the_whole(
    whole: tuple[Path, Recipe], made: Made, recipe: Recipe, tmp_path: Path
) -> None:
    folder, _ = whole
    found = []
    for number in (1, 2, 3):
        before = set(weights(all_rows(tmp_path)))
        made(share=(number, 3)).run([(recipe, recipe.cells, recipe.seeds)])
        found.append(set(weights(all_rows(tmp_path))) - before)
    assert sum(map(len, found)) == len(set.union(*found)) == len(all_rows(folder))
    assert min(map(len, found)) >= 2
    assert weights(all_rows(tmp_path)) == weights(all_rows(folder))


def test_a_process_of_a_torchrun_takes_its_share(
    whole: tuple[Path, Recipe], tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    line = f"reproduce run {folder / 'mine.toml'} --folder {tmp_path / 'work'} --results {tmp_path / 'rows'} --quiet"
    assert typed(line)[0] == 0
    assert "RANK" not in os.environ
    names = {path.name for path in (tmp_path / "rows").rglob("rows*.jsonl")}
    assert names == {"rows-2-of-2.jsonl"}
    assert 2 <= len(all_rows(tmp_path)) <= 8  # of ten
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    code, _, error = typed(f"{line} --share 1/2")
    assert (code, "--share is for processes of their own" in error) == (2, True)


def test_the_first_seed_of_all_cells_comes_before_the_second_of_any(whole: tuple[Path, Recipe]) -> None:
    folder, _ = whole
    for group in ("tiny", "tiny-few"):
        seeds = [row["seed"] for row in Results(folder / "rows").rows(group)]
        assert seeds == sorted(seeds)
        assert set(seeds) == {0, 1}


def test_teachers_that_came_out_otherwise_are_not_averaged(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, recipe = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    results = Results(tmp_path / "rows")
    kd = next(task for task in tasks(recipe, recipe.cells[1], 2, []))
    row = next(row for row in results.rows("tiny") if row["key"] == kd.key)
    other = {"network": "resnet8", "sha256": "f" * 64, "test_accuracy": 1.0}
    results.add({**row, "teacher": other, "test_accuracy": {"last": 0.0, "best": 0.0, "selected": None}})
    found = [line for line in tables.lines(recipe, results) if (line.row, line.column) == ("all", "KD")]
    assert [line.seeds for line in found] == [2, 1]
    assert found[1].mean == 0.0
    assert found[0].teacher != found[1].teacher == "f" * 12
    page = tables.markdown(recipe, results, tables.lines(recipe, results), MADE)
    assert f"| all | KD | `{'f' * 12}` | 0.00 | 1 |" in page


def test_a_page_says_how_many_runs_are_still_to_come(whole: tuple[Path, Recipe]) -> None:
    folder, recipe = whole
    results, more = Results(folder / "rows"), replace(recipe, seeds=3)
    assert recipe.seeds == 2
    assert "Not finished" not in tables.markdown(recipe, results, tables.lines(recipe, results), MADE)
    page = tables.markdown(more, results, tables.lines(more, results), MADE)
    assert "\nNot finished: 4 of 14 runs are still to come.\n" in page  # two cells and a teacher in each of two groups


CHAIN = """
seeds = 1
column = "{column}"
row = "{row}"

[distill]
student = "resnet8"
epochs = 2
batch = 32

[group.first]
teach = { data = "made_up", network = "resnet14", epochs = 2, batch = 32, views = 2, keep_weights = 1 }
extract = { batch = 16 }

[group.early]
early = { group = "first", epoch = 1 }
extract = { batch = 16 }

[group.after]
after = { group = "first", distill = { student = "resnet8", method = "kd", epochs = 1, batch = 32 } }
extract = { batch = 16 }

[[pair]]
row = "early"
group = "early"

[[pair]]
row = "after"
group = "after"

[[method]]
column = "KD"
distill = { method = "kd" }
"""


def test_a_student_and_an_early_checkpoint_become_teachers(tmp_path: Path, made: Made) -> None:
    recipe = written(tmp_path, CHAIN)
    made().run([(recipe, recipe.cells, 1)])
    first = tmp_path / "work/first"
    kept = json.loads((first / "runs/teacher/weights/index.json").read_text())["weights"]
    of = {group: json.loads((tmp_path / f"work/{group}/teacher.json").read_text()) for group in ("early", "after")}
    assert of["early"]["sha256"] == next(one["sha256"] for one in kept if one["epoch"] == 1)
    assert of["early"]["network"] == "resnet14"
    (student,) = first.glob("runs/resnet8-kd*/result.json")
    assert of["after"]["sha256"] == json.loads(student.read_text())["weights_sha256"]
    assert of["after"]["network"] == "resnet8"
    assert [line.seeds for line in tables.lines(recipe, Results(tmp_path / "rows"))] == [1, 1]
    anew = replace(made("other"), results=Results(tmp_path / "other rows"))
    found = {one.group: one for one in plan(anew, [(recipe, recipe.cells, 1)])}
    assert {name: (one.tasks, one.bytes > 0) for name, one in found.items()} == {
        "first": (1, True),  # the student that becomes a teacher
        "early": (1, True),
        "after": (1, True),
    }
    assert sum(one.left for one in plan(made(), [(recipe, recipe.cells, 1)])) == 0
    assert json.loads(student.read_text())["seed"] == ahead.NEXT  # no cell's student begins where this one did


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (", keep_weights = 1", "", "keeps weights of none on the way"),
        ("keep_weights = 1", "keep_weights = 2", "keeps weights of every 2 of 2 epochs"),
        ("epoch = 1 }", "epoch = 3 }", "after epoch 3"),
        ('student = "resnet8", method', "method", "names no student"),
    ],
)
def test_a_chain_that_cannot_be_made_is_refused_before_its_first_link(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, old: str, new: str, words: str
) -> None:
    monkeypatch.delattr(work, "teach")
    assert old in CHAIN
    recipe = written(tmp_path, CHAIN.replace(old, new))
    with pytest.raises(UsageError, match=words):
        made().run([(recipe, recipe.cells, 1)])


SEARCH = """
seeds = 2

[distill]
student = "resnet8"
epochs = 2
batch = 32

[group.held]
teach = { data = "made_up", network = "resnet8", epochs = 2, batch = 32, views = 2, validation = 16 }
extract = { batch = 16 }

[[pair]]
row = "made up"
group = "held"

[[method]]
column = "KD"
search = { weight = [0.0, 0.9], temperature = [1.0, 4.0] }
distill = { method = "kd", set = { task = 0.1 } }
"""


def test_a_search_chooses_on_the_validation_part(tmp_path: Path, made: Made) -> None:
    recipe = written(tmp_path, SEARCH)
    assert [task.seed for task in tasks(recipe, recipe.cells[0], 2, [])] == [0] * 4
    made().run([(recipe, recipe.cells, 2)])
    rows = Results(tmp_path / "rows").rows("held")
    assert len(rows) == 5  # four points, one of which is the first seed of the cell
    found = searched(recipe, recipe.cells[0], rows)
    assert found is not None
    scores = {row["key"]: row["validation_accuracy"]["last"] for row in rows}
    best = max(scores[task.key] for task in found.tried)
    first = next(task for task in found.tried if scores[task.key] == best)
    assert found.chosen == {name: first.distill["set"][name] for name in ("weight", "temperature")}
    (line,) = tables.lines(recipe, Results(tmp_path / "rows"))
    page = tables.markdown(recipe, Results(tmp_path / "rows"), [line], MADE)
    assert "\nmade up, KD: searched on the validation part: weight = " in page
    assert (line.seeds, line.chosen) == (2, found.chosen)
    assert [score for _, score in line.tried] == [scores[task.key] for task in found.tried]


@pytest.mark.parametrize("report", ["last", "selected"])
def test_a_search_goes_by_the_weights_that_are_reported(tmp_path: Path, report: str) -> None:
    recipe = written(tmp_path, f'report = "{report}"\n{SEARCH}')
    tried = tasks(recipe, recipe.cells[0], 2, [])
    scores = [{"last": 10.0 + number, "best": 50.0, "selected": 50.0 - number} for number in range(len(tried))]
    rows = [{"key": task.key, "validation_accuracy": score} for task, score in zip(tried, scores, strict=True)]
    found = searched(recipe, recipe.cells[0], rows)
    assert found is not None
    assert [score for _, score in found.scores] == [score[report] for score in scores]
    best = tried[-1 if report == "last" else 0].distill["set"]
    assert found.chosen == {name: best[name] for name in ("weight", "temperature")}


def test_students_that_a_search_will_name_are_planned_too(tmp_path: Path, made: Made) -> None:
    recipe = written(tmp_path, SEARCH)
    (found,) = plan(made(), [(recipe, recipe.cells, 2)])
    assert (found.tasks, found.left) == (5, 5)  # four points, of which the best has another seed
    lines = tables.lines(recipe, Results(tmp_path / "rows"))
    assert "\nNot finished: 5 of 5 runs are" in tables.markdown(recipe, Results(tmp_path / "rows"), lines, MADE)


def test_a_search_takes_the_mean_over_its_seeds(tmp_path: Path, made: Made) -> None:
    recipe = written(tmp_path, f"search_seeds = 2\n{SEARCH}")
    (planned,) = plan(made(), [(recipe, recipe.cells, 3)])
    assert (planned.tasks, planned.left) == (9, 9)  # four points twice, of which the best has a third seed
    made().run([(recipe, recipe.cells, 3)])
    rows = Results(tmp_path / "rows").rows("held")
    assert len(rows) == 9
    found = searched(recipe, recipe.cells[0], rows)
    assert found is not None
    of = {(row["config"]["set"]["kd.weight"], row["config"]["set"]["kd.temperature"], row["seed"]): row for row in rows}
    means = {
        point: (of[*point, 0]["validation_accuracy"]["last"] + of[*point, 1]["validation_accuracy"]["last"]) / 2
        for point in ((0.0, 1.0), (0.0, 4.0), (0.9, 1.0), (0.9, 4.0))
    }
    assert [score for _, score in found.scores] == list(means.values())
    best = max(means, key=lambda point: means[point])
    assert found.chosen == dict(zip(("weight", "temperature"), best, strict=True))
    assert [key for key in of if key[2] == 2] == [(*best, 2)]


def test_a_search_needs_a_validation_part(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = written(tmp_path, SEARCH.replace(", validation = 16", ""))
    monkeypatch.delattr(work, "distill")
    for step in (made().run, partial(plan, made())):
        with pytest.raises(UsageError, match="holds no images out for validation"):
            step([(recipe, recipe.cells, 2)])


def test_a_table_of_selected_weights_says_where_none_were_selected(whole: tuple[Path, Recipe]) -> None:
    folder, recipe = whole
    found = tables.lines(replace(recipe, report="selected"), Results(folder / "rows"))
    noted = {line.column: tables.remark(line) for line in found}
    assert noted["KD"] == noted["none"] == "after the last epoch: no images are held out for validation"
    assert noted["teacher"] == ""


def test_our_number_stands_beside_the_printed_one(whole: tuple[Path, Recipe]) -> None:
    folder, recipe = whole
    (plain,) = tables.lines(replace(recipe, cells=recipe.cells[1:2]), Results(folder / "rows"))
    paper = Printed("P", "1", "all", "KD", 30.0, 0.2, "test accuracy %")
    for unit, wanted in (("test accuracy %", plain.mean), ("top-1 error %", 100 - (plain.mean or 0.0))):
        cell = replace(recipe.cells[1], printed=replace(paper, unit=unit))
        (line,) = tables.lines(replace(recipe, cells=(cell,)), Results(folder / "rows"))
        assert line.mean == pytest.approx(wanted)
        assert line.difference == pytest.approx((wanted or 0.0) - 30.0)
        assert (line.printed, line.printed_sd) == (30.0, 0.2)
        assert tables.header([line])[2:4] == ["paper", "difference"]


def test_a_mean_over_several_precisions_says_so(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, recipe = whole
    rows = Results(folder / "rows").rows("tiny")
    for row in rows:
        if row["seed"] == 1 and row["config"] and row["config"]["method"] == "kd":
            row["environment"]["precision"] = "bfloat16"
        Results(tmp_path).add(row)
    noted = {line.column: tables.remark(line) for line in tables.lines(recipe, Results(tmp_path)) if line.row == "all"}
    assert noted["KD"] == "trained in bfloat16 (1) and float32 (1)"
    assert noted["none"] == noted["teacher"] == ""


def test_a_mean_over_caches_of_several_bits_says_so(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, recipe = whole
    rows = Results(folder / "rows").rows("tiny")
    for row in rows:
        if row["seed"] == 1 and row["config"] and row["config"]["method"] == "kd" and not row["live"]:
            row["cache"]["targets"] = "0" * 64
        Results(tmp_path).add(row)
    noted = {line.column: tables.remark(line) for line in tables.lines(recipe, Results(tmp_path)) if line.row == "all"}
    assert noted["KD"] == "trained from caches whose bits differ"
    assert noted["none"] == noted["teacher"] == ""


def test_a_table_says_whether_lower_losses_go_with_higher_accuracies(whole: tuple[Path, Recipe]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
    folder, recipe = whole
    blank = tables.lines(recipe, Results(folder / "rows"))[0]
    means = [90.0, 91.0, 91.0, 88.0, 95.0, 70.0]
    losses = [0.5, 0.1, 0.3, 0.3, 0.2, 0.9]
    alignments = [0.7, 0.9, 0.8, 0.6, 0.95, 0.99]
    found = [
        replace(blank, mean=mean, losses={"fc": loss}, alignments={"fc": alignment})
        for mean, loss, alignment in zip(means, losses, alignments, strict=True)
    ]
    others = [replace(blank, mean=None), replace(blank, mean=99.9, losses={})]
    loss, alignment = (stats.spearmanr(means, of).statistic for of in (losses, alignments))
    said = [f"fc: rank correlation of 6 means {loss:+.2f} with the loss, {alignment:+.2f} with the alignment"]
    assert tables.correlated([*others, *found]) == said
    assert tables.correlated(found[:4]) == []
    rows = Results(folder / "rows")
    page = tables.markdown(recipe, rows, [replace(line, row="made up") for line in found], MADE)
    assert f"\nmade up, {said[0]}." in page
    assert "| loss fc | alignment fc |" in page
    assert "| 0.5000 | 0.7000 |" in page


def test_recipes_of_one_group_are_planned_once(whole: tuple[Path, Recipe], made: Made, tmp_path: Path) -> None:
    _, recipe = whole
    (tmp_path / "other.toml").write_text(RECIPE.replace('column = "KD"', 'column = "another KD"'))
    other = load(str(tmp_path / "other.toml"))
    alone = plan(made(), [(recipe, recipe.cells, 2)])
    both = plan(made(), [(recipe, recipe.cells, 2), (other, other.cells, 2)])
    assert [(one.group, one.tasks, one.bytes) for one in both] == [(one.group, one.tasks, one.bytes) for one in alone]


def test_a_page_counts_the_rows_of_its_cells(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, recipe = whole
    results = Results(folder / "rows")
    page = tables.markdown(recipe, results, tables.lines(recipe, results), MADE)
    assert page.count("; 5 rows, ") == 2
    assert f"Made by `{MADE}`." in page
    only = replace(recipe, cells=recipe.cells[1:2])
    assert tables.markdown(only, results, tables.lines(only, results), MADE).count("; 2 rows, ") == 1
    other = written(tmp_path, RECIPE.replace("epochs = 2\n", "epochs = 3\n", 1))
    page = tables.markdown(other, results, tables.lines(other, results), MADE)
    assert page.count("; 1 rows, ") == 2  # the teacher's own


def test_the_plan_knows_the_bytes_and_writes_nothing(whole: tuple[Path, Recipe], made: Made, tmp_path: Path) -> None:
    folder, recipe = whole
    found = {one.group: one for one in plan(made(), [(recipe, recipe.cells, 2)])}
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "rows").exists()
    for group in ("tiny", "tiny-few"):
        chunks = [path for path in (folder / "work" / group / "cache.zarr").rglob("c/**/*") if path.is_file()]
        assert found[group].bytes == sum(path.stat().st_size for path in chunks)
        assert (found[group].tasks, found[group].left, found[group].held) == (4, 4, 0)
        assert found[group].distill_hours > 0 < found[group].live_hours
    assert found["tiny"].teach_hours > 0 == found["tiny-few"].teach_hours
    there = Work(folder / "work", Results(folder / "rows"), Silent(), StopRequest())
    after = {one.group: one for one in plan(there, [(recipe, recipe.cells, 2)])}["tiny"]
    assert (after.left, after.held, after.distill_hours, after.extract_hours) == (0, found["tiny"].bytes, 0, 0)


def test_a_torn_last_row_is_left_out_and_a_damaged_one_told_of(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, _ = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    (path,) = (tmp_path / "rows/tiny").glob("*/rows.jsonl")
    content = path.read_bytes()
    count = len(Results(tmp_path / "rows").rows("tiny"))
    path.write_bytes(content[:-20])
    results = Results(tmp_path / "rows")
    held = results.rows("tiny")
    assert len(held) == count - 1
    results.add({**held[0], "key": "0" * 64})
    assert len(results.rows("tiny")) == count
    path.write_bytes(content.replace(b'"seed":0', b'"seed":7', 1))
    with pytest.raises(DamageError, match="is damaged"):
        results.rows("tiny")


def test_analyses_that_are_asked_for_later_are_added(tmp_path: Path, made: Made) -> None:
    small = RECIPE.replace("seeds = 2", "seeds = 1").replace('analyze = ["gram-gap"]\n', "")
    first = written(tmp_path, small)
    made().run([(first, first.cells[:2], 1)])
    second = written(tmp_path, 'analyze = ["gram-gap"]\n' + small)
    made().run([(second, second.cells[:2], 1)])
    rows = Results(tmp_path / "rows").rows("tiny")
    assert [sorted(row["analyses"]) for row in rows] == [["gram-gap"]] * 2
    (path,) = (tmp_path / "rows/tiny").glob("*/rows.jsonl")
    assert len(path.read_text().splitlines()) == 4
    made().run([(first, first.cells[:2], 1)])
    assert len(path.read_text().splitlines()) == 4
    third = written(tmp_path, 'analyze = ["similarity"]\n' + small)
    for _ in range(2):
        made().run([(third, third.cells[:2], 1)])
        assert len(path.read_text().splitlines()) == 6
    rows = Results(tmp_path / "rows").rows("tiny")
    assert [sorted(row["analyses"]) for row in rows] == [["gram-gap", "similarity"]] * 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("extract = { batch = 16 }", "extract = { batch = 16, few_shot = 8 }"),
        ("extract = { batch = 16 }", "extract = { batch = 16, views = 1 }"),
        ('network = "resnet8", epochs = 2', 'network = "resnet8", epochs = 3'),
        ('precision = "float32"\n', 'precision = "bfloat16"\n'),
    ],
)
def test_rows_of_a_recipe_that_has_changed_are_not_shown(
    whole: tuple[Path, Recipe], tmp_path: Path, old: str, new: str
) -> None:
    folder, _ = whole
    assert old in RECIPE
    changed = written(tmp_path, RECIPE.replace(old, new, 1))
    found = [line for line in tables.lines(changed, Results(folder / "rows")) if line.row == "all"]
    assert [line.note for line in found[:2]] == ["not run"] * 2


def test_a_cache_of_other_images_is_refused(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, _ = whole
    changed = written(tmp_path, RECIPE.replace("extract = { batch = 16 }", "extract = { batch = 16, few_shot = 8 }"))
    there = Work(folder / "work", Results(tmp_path / "rows"), Silent(), StopRequest())
    with pytest.raises(IdentityError, match="is a cache of something else"):
        there.run([(changed, changed.cells[:1], 1)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RECIPE.replace('method = "kd"', 'method = "kad"'), "unknown method 'kad'"),
        (RECIPE.replace('student = "resnet8"', 'student = "resnetx"', 1), "resnetx"),
        (RECIPE.replace('analyze = ["gram-gap"]', 'analyze = ["gap"]'), "unknown analysis in recipe mine 'gap'"),
        (RECIPE.replace("few_shot = 16", "few = 16"), "'few'"),
        (RECIPE.replace('method = "kd" }', 'method = "kd" }\nprobe = { epochs = 1 }'), "--data is missing"),
        (RECIPE.replace('method = "kd" }', 'method = "kda", layer = ["stage9"] }'), "'stage9'"),
        (RECIPE.replace('method = "kd" }', 'method = "kd", views = 9 }'), "it walks 9 views, and [extract] makes 2"),
        (RECIPE.replace('method = "kd" }', 'method = "kd", sync_bn = true }'), "--sync-bn needs GPUs"),
        (RECIPE.replace('precision = "float32"\n', 'precision = "float8"\n'), "unknown precision 'float8'"),
        (RECIPE.replace('precision = "float32" }', 'precision = "float8" }'), "unknown precision 'float8'"),
        (RECIPE.replace('["gram-gap"]', '["landmarks"]'), "add keep_weights = 1 (every epoch) to [distill]"),
        (PROBED + '{ data = "digitz" }', "unknown data set in [probe] of group tiny 'digitz'"),
        (PROBED + '{ data = "stl10" }', "stl10"),
        (PROBED + '{ data = "made_up", stage = "init" }', "unknown stage that is probed 'init'"),
        (PROBED + '{ data = "made_up", validation = 100000 }', "100,000 more validation images"),
        (RECIPE.replace('method = "kd" }', 'method = "fitnet", set = { "fitnet.weight" = -1 } }'), "is at least 0"),
        (FEW + '{ method = "at", taps = { x = "nothing" } }', "'nothing'"),
        (FEW + '{ method = "at", initial = "weights.pth" }', "recipe mine: students begin from drawn weights"),
        (
            FEW + '{ method = "kda", layer = ["before_fc"], epochs = 1 }',
            "group tiny-few, resnet8-kda-before_fc-seed0: the term kda_before_fc becomes active in epoch 2",
        ),
    ],
)
def test_what_is_wrong_is_told_of_before_anything_is_trained(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.delattr(work, "teach")
    recipe = written(tmp_path, text)
    for use in (lambda: made().run([(recipe, recipe.cells, 1)]), lambda: plan(made(), [(recipe, recipe.cells, 1)])):
        with pytest.raises(UsageError, match=re.escape(words)):
            use()
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "results", "", "x" * 101, "[ab]*", "ä"])
def test_a_groups_name_is_that_of_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a group's name is a folder's"):
        written(
            tmp_path, RECIPE.replace("[group.tiny]", f'[group."{name}"]').replace('group = "tiny"', f'group = "{name}"')
        )


def test_tables_of_a_method_win_key_by_key(tmp_path: Path) -> None:
    text = """
    [group.g]
    teach = { data = "digits" }
    [distill]
    method = "kda"
    set = { "kda.weight" = 0.1, "kda.mean" = "last" }
    recipe = { epochs = 3, batch = 7 }
    [[pair]]
    group = "g"
    distill = { recipe = { batch = 8 } }
    [[method]]
    row = "r"
    column = "c"
    distill = { set = { "kda.weight" = 0.2 } }
    """
    (cell,) = written(tmp_path, text).cells
    assert cell.distill["set"] == {"kda.weight": 0.2, "kda.mean": "last"}
    assert cell.distill["recipe"] == {"epochs": 3, "batch": 8}


@pytest.mark.parametrize("key", ["seed = 1", 'device = "cpu"', 'run = "x"', 'data_folder = "x"', 'cache = "x"'])
def test_a_recipe_leaves_places_and_seeds_open(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match="is for `kdtool reproduce run` to say"):
        written(tmp_path, RECIPE.replace("epochs = 2\n", f"epochs = 2\n{key}\n", 1))


def test_a_teacher_that_was_half_copied_is_copied_again(
    whole: tuple[Path, Recipe], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    (kept,) = (tmp_path / "rows/tiny").glob("*/teacher")
    (tmp_path / "work/tiny").mkdir(parents=True)
    for name in ("teacher.safetensors", "teacher.split.json", "teacher.json"):
        shutil.copyfile(kept / name, tmp_path / "work/tiny" / name)
    monkeypatch.delattr(work, "teach")
    made().run([(recipe, recipe.cells[:1], 3)])
    assert len(Results(tmp_path / "rows").rows("tiny")) == 6


def test_weights_that_are_gone_are_taken_from_the_rows(
    whole: tuple[Path, Recipe], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    monkeypatch.delattr(work, "teach")
    made().run([(recipe, recipe.cells[:1], 3)])
    for name in ("teacher.safetensors", "cache.zarr"):
        lost = tmp_path / "work/tiny" / name
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink(missing_ok=True)
    made().run([(recipe, recipe.cells[:1], 4)])
    assert len(Results(tmp_path / "rows").rows("tiny")) == 7


def test_a_kept_teacher_does_not_say_where_the_data_lay(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, _ = whole
    source = Workspace.open(folder / "work/tiny")
    source.settings["data_folder"] = str(tmp_path)
    copy_teacher(source, tmp_path / "kept", {})
    kept = Workspace.open(tmp_path / "kept").settings
    assert kept == {key: value for key, value in source.settings.items() if key != "data_folder"}
    copy_teacher(source, tmp_path / "here", {}, "elsewhere")
    assert Workspace.open(tmp_path / "here").settings == {**kept, "data_folder": "elsewhere"}


def test_the_teacher_of_another_recipe_is_not_taken_for_it(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, _ = whole
    changed = written(
        tmp_path, RECIPE.replace("epochs = 2, batch = 32, views = 2", "epochs = 3, batch = 32, views = 2")
    )
    there = Work(folder / "work", Results(tmp_path / "rows"), Silent(), StopRequest())
    for step in (there.run, partial(plan, there)):
        with pytest.raises(IdentityError, match="the teacher of another recipe"):
            step([(changed, changed.cells[:1], 1)])


def test_what_another_process_holds_is_waited_for(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PAUSE", 0.0)
    tries = iter([HeldError("held"), HeldError("held"), None])

    def action() -> str:
        if error := next(tries):
            raise error
        return "done"

    assert made().patiently(action) == "done"
    with pytest.raises(Stopped):
        made(stop=StopAfter(1)).patiently(lambda: (_ for _ in ()).throw(HeldError("held")))


def test_the_commands(whole: tuple[Path, Recipe], tmp_path: Path, typed: Typed) -> None:
    folder, _ = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    mine, places = folder / "mine.toml", f"--folder {folder / 'work'} --results {tmp_path / 'rows'}"
    code, out, _ = typed(f"reproduce table {mine} {places} --markdown {tmp_path / 'page.md'}")
    assert code == 0
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert "\nONE: ONE trains without a fixed teacher\n" in out
    page = (tmp_path / "page.md").read_text()
    assert "| all | KD |" in page
    where = f"--results {tmp_path / 'rows'} --markdown {tmp_path / 'page.md'}"
    assert f"Made by `kdtool reproduce table {mine} {where}`" in page
    pytest.importorskip("matplotlib")
    code, out, _ = typed(f"reproduce table {mine} {places} --plot {tmp_path / 'gap.svg'}")
    assert (code, out.splitlines()[-1]) == (0, f"wrote {tmp_path / 'gap.svg'}")
    assert "few, KD" in (tmp_path / "gap.svg").read_text()
    code, out, _ = typed(f"reproduce table {mine} {places} --json")
    assert [line["column"] for line in json.loads(out)] == ["none", "KD", "teacher", "ONE"] * 2
    code, out, _ = typed(f"reproduce run {mine} {places} --only KD --quiet")
    assert (code, len(all_rows(tmp_path))) == (0, 10)
    assert out.endswith(f"next: kdtool reproduce table {mine} --results {tmp_path / 'rows'}\n")
    code, out, _ = typed(f"reproduce plan {mine} {places} --quiet")
    assert code == 0
    assert "tiny: 0 of 4 to run" in out
    assert "in all: 0 of 8 to run" in out
    assert "a living teacher" not in out  # nothing is left
    code, out, _ = typed(f"reproduce plan {mine} --folder {tmp_path / 'anew'} --quiet")
    assert (code, "the cache saves" in out, "saves no time" in out) == (0, True, False)
    code, out, _ = typed(f"reproduce show {mine}")
    assert code == 0
    assert "A tiny table" in out


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("reproduce run kda-table-9", 2, "unknown recipe 'kda-table-9'"),
        ("reproduce run {mine} --share 3/2", 2, "--share is one of several"),
        ("reproduce run {mine} --share 0/2", 2, "--share is one of several"),
        ("reproduce run {mine} --share two", 2, "--share is one of several"),
        ("reproduce run {mine} --only nothing", 2, "no cell of mine has 'nothing'"),
        ("reproduce run {mine} --seeds 0", 2, "--seeds"),
        ("reproduce table nowhere/mine.toml", 2, "cannot read nowhere/mine.toml"),
        ("reproduce table {mine} --results nowhere", 2, "nowhere does not exist"),
        ("reproduce table {mine} --folder nowhere", 2, "does not exist; name their folder with --results"),
        ("reproduce table digits-views --plot gap.svg", 2, "no row of digits-views holds an analysis"),
    ],
)
def test_a_mistake_is_told_of_in_one_line(
    whole: tuple[Path, Recipe], typed: Typed, line: str, code: int, text: str
) -> None:
    found, out, error = typed(line.format(mine=whole[0] / "mine.toml"))
    assert (found, out) == (code, "")
    assert text in error
    assert len(error.splitlines()) == 1


def test_teachers_that_begin_from_weights_need_their_folder(tmp_path: Path, made: Made) -> None:
    text = RECIPE.replace(
        'precision = "float32" }\nextract', 'precision = "float32", initial = "w.safetensors" }\nextract'
    )
    recipe = written(tmp_path, text)
    with pytest.raises(UsageError, match="name the folder of that file with --weights"):
        made().run([(recipe, recipe.cells[:1], 1)])
    with pytest.raises(UsageError, match=r"begins from w\.safetensors, and there is no /"):
        replace(made("second"), weights=tmp_path).run([(recipe, recipe.cells[:1], 1)])
    assert not (tmp_path / "second").exists()


def test_a_copied_teacher_can_be_probed(tmp_path: Path, made: Made) -> None:
    text = RECIPE.split("[[pair]]", maxsplit=1)[0] + PROBED
    recipe = written(tmp_path, text)
    made().run([(recipe, recipe.cells, 1)])
    (line,) = tables.lines(recipe, Results(tmp_path / "rows"))
    (path,) = (tmp_path / "work/tiny-few/runs/teacher").glob("probe*/result.json")
    assert line.mean == json.loads(path.read_text())["test_accuracy"]["last"]


PROBED = """
[[pair]]
row = "few"
group = "tiny-few"
probe = { data = "made_up", epochs = 1, batch = 32 }

[[method]]
column = "teacher"
distill = { method = "teacher" }
"""


def test_a_living_teacher_gives_what_the_cache_gives(tmp_path: Path, made: Made) -> None:
    text = RECIPE.replace("seeds = 2", "seeds = 1").split("[[pair]]", maxsplit=1)[0] + LIVE
    recipe = written(tmp_path, text.replace("views = 2,", "views = 162,"))
    made().run([(recipe, recipe.cells, 1)])
    found = {row["live"]: row for row in Results(tmp_path / "rows").rows("tiny")}
    assert found[True]["weights_sha256"] == found[False]["weights_sha256"]
    assert (found[True]["cache"]["bytes"], found[False]["cache"]["bytes"] > 0) == (0, True)
    cache = open_cache(tmp_path / "work/tiny/cache.zarr")
    only = {name for name in cache.contents if name not in ("logits", "before_fc")}
    assert len(only) == 1  # what FT needs from the cache


LIVE = """
[[pair]]
row = "all"
group = "tiny"

[[method]]
column = "FT"
distill = { method = "ft", set = { passes = 2 } }

[[method]]
column = "FT, the teacher living"
live = true
distill = { method = "ft", set = { passes = 2 } }
"""


def test_what_only_a_living_teacher_answers_is_not_stored(tmp_path: Path, made: Made) -> None:
    text = RECIPE.split("[[pair]]", maxsplit=1)[0] + LIVE
    recipe = written(tmp_path, text)
    made().run([(recipe, recipe.cells[1:], 1)])
    cache = open_cache(tmp_path / "work/tiny/cache.zarr")
    assert set(cache.contents) == {"logits", "before_fc"}
    assert any("paraphraser" in name or "ft" in name for name in cache.fits)


# What goes wrong on the way


def test_a_training_that_diverges_is_a_row_and_the_others_go_on(tmp_path: Path, made: Made, typed: Typed) -> None:
    more = '[[method]]\ncolumn = "wild"\ndistill = { method = "logits", set = { "logits.weight" = 1e38 } }\n'
    recipe = written(tmp_path, RECIPE.replace('[[method]]\ncolumn = "KD"', f'{more}\n[[method]]\ncolumn = "KD"'))
    assert [cell.column for cell in recipe.cells[:3]] == ["none", "wild", "KD"]
    assert made().run([(recipe, recipe.cells[1:3], 2)]) == 0
    rows = Results(tmp_path / "rows").rows("tiny")
    assert [bool(row.get("diverged")) for row in rows] == [True, False, True, False]
    lines = {line.column: line for line in tables.lines(recipe, Results(tmp_path / "rows")) if line.row == "all"}
    assert (lines["wild"].mean, lines["wild"].seeds) == (None, 0)
    assert lines["wild"].note == "2 of 2 trainings diverged"
    assert lines["KD"].seeds == 2
    before = (tmp_path / "rows").rglob("rows.jsonl")
    held = {path: path.read_bytes() for path in before}
    made().run([(recipe, recipe.cells[1:3], 2)])
    assert {path: path.read_bytes() for path in held} == held
    code, shown, _ = typed(f"reproduce table {tmp_path / 'mine.toml'} --results {tmp_path / 'rows'}")
    assert (code, "wild: 2 of 2 trainings diverged" in shown) == (0, True)


def test_a_search_leaves_points_behind_that_diverge(tmp_path: Path) -> None:
    recipe = written(tmp_path, SEARCH)
    tried = tasks(recipe, recipe.cells[0], 2, [])
    rows = [{"key": task.key, "validation_accuracy": {"last": 20.0}} for task in tried]
    rows[0] = {"key": tried[0].key, "validation_accuracy": None, "diverged": "it did"}
    found = searched(recipe, recipe.cells[0], rows)
    assert found is not None
    assert [score for _, score in found.scores] == [0.0, 20.0, 20.0, 20.0]
    assert found.chosen == {"weight": 0.0, "temperature": 4.0}


def test_a_search_of_equal_points_ends(tmp_path: Path) -> None:
    recipe = written(tmp_path, SEARCH.replace("[0.0, 0.9]", "[0.9, 0.5, 9e-1]"))
    tried = tasks(recipe, recipe.cells[0], 2, [])
    assert (len(tried), len({task.key for task in tried})) == (6, 4)
    rows = [{"key": task.key, "validation_accuracy": {"last": 20.0}} for task in tried]
    assert searched(recipe, recipe.cells[0], rows[:4]).chosen is not None  # type: ignore[union-attr]
    assert searched(recipe, recipe.cells[0], rows[1:4]).chosen is None  # type: ignore[union-attr]


def test_a_share_has_the_same_tasks_whatever_else_is_to_be_done(recipe: Recipe) -> None:
    students = [task for cell in recipe.cells for task in tasks(recipe, cell, 10, []) if task.distill]
    probes = [replace(task, probe={"data": "made_up", "epochs": epochs}) for task in students for epochs in (1, 2)]
    todo = [*students, *probes]
    for count in (1, 2, 3, 4, 7):
        dealt = [list(share_of(todo, (number, count))) for number in range(1, count + 1)]
        assert sorted(task.key for own in dealt for task in own) == sorted(task.key for task in todo)
        for number, own in enumerate(dealt, 1):
            assert [task for task in own if task in todo[5:]] == list(share_of(todo[5:], (number, count)))
        names = [{task.name for task in own} for own in dealt]  # a student and its probes are of one share
        assert sum(map(len, names)) == len(set.union(*names)) == len(students)
        each = [[task.seed for task in own if task.key in {one.key for one in students[:10]}] for own in dealt]
        assert max(map(len, each)) - min(map(len, each)) <= 1  # the seeds of a cell go round


def test_cells_that_another_share_has_chosen_meanwhile_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = '[group.other]\nteacher = "held"\n\n[[pair]]\nrow = "other"\ngroup = "other"\n\n[[method]]'
    recipe = written(tmp_path, SEARCH.replace("[[method]]", second, 1))
    shares = {
        number: Work(tmp_path / "work", Results(tmp_path / "rows", (number, 2)), Silent(), StopRequest())
        for number in (1, 2)
    }
    seen: list[tuple[int, str, int]] = []

    def row(own: Work, task: Task, _: int) -> Row:
        number = own.results.share[0]
        if number == 1 and task.group == "other" and not any(one[0] == 2 for one in seen):
            shares[2].run([(recipe, recipe.cells[:1], 4)])
        seen.append((number, task.group, task.seed))
        scores = dict.fromkeys(("last", "best", "selected"), 50.0)
        about = {"key": task.key, "group": task.group, "seed": task.seed, "config": task.asked, "live": False}
        teacher = {"sha256": "f" * 64, "network": "resnet8", "test_accuracy": 50.0}
        told = {"analyses": {}, "seconds": {}, "test_accuracy": scores, "validation_accuracy": scores}
        return {**about, "teacher": teacher, **told}

    monkeypatch.setattr(Work, "row", row)
    monkeypatch.setattr(Work, "prepare", lambda *_: 2)
    monkeypatch.setattr(Work, "_foresee", lambda *_: None)
    monkeypatch.setattr(Work, "_digest", lambda *_: "f" * 64)
    assert shares[1].run([(recipe, recipe.cells, 4)]) <= 1
    rows = Results(tmp_path / "rows").rows("held")
    chosen = {task.key: task for task in tasks(recipe, recipe.cells[0], 4, rows)}
    assert len(chosen) == 4
    assert set(chosen) <= {row["key"] for row in rows}
    assert {number for number, group, _ in seen if group == "held"} == {1, 2}


def test_a_student_walks_the_views_of_the_recipe_in_a_cache_that_has_more(
    tmp_path: Path, made: Made, recipe: Recipe, typed: Typed
) -> None:
    made().run([(recipe, recipe.cells[1:2], 1)])
    code, _, error = typed(f"extract --folder {tmp_path / 'work/tiny'} --for kd --views 4 --quiet")
    assert code == 0, error
    made().run([(recipe, recipe.cells[1:2], 2)])
    rows = Results(tmp_path / "rows").rows("tiny")
    assert [row["views"] for row in rows] == [2, 2]
    path = next((tmp_path / "rows/tiny").glob("*/rows.jsonl"))
    Results(tmp_path / "rows").add({**rows[1], "views": 4})
    (line,) = tables.lines(replace(recipe, cells=recipe.cells[1:2]), Results(tmp_path / "rows"))
    assert (line.note, len(path.read_text().splitlines())) == ("trained on 2 and 4 views", 3)


def test_the_plan_counts_every_stage_and_a_student_with_two_probes_once(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans.Clock, "_timed", lambda *_: 3600.0 / 10)  # ten images an hour
    two = 'distill = { method = "fitnet", set = { "fitnet.two_stage" = true, "fitnet.init_epochs" = 3 } }'
    text = RECIPE.replace('distill = { method = "kd" }', two)
    recipe = written(tmp_path, text)
    (one,) = plan(made(), [(recipe, recipe.cells[1:2], 1)])
    assert one.distill_hours == pytest.approx((3 + 2) * 96 / 10)
    assert one.live_hours == one.distill_hours
    probes = "".join(
        f'[[method]]\ncolumn = "probe {epochs}"\n{two}\nprobe = {{ data = "made_up", epochs = {epochs} }}\n'
        for epochs in (1, 2)
    )
    recipe = written(tmp_path, RECIPE + probes)
    cells = [cell for cell in recipe.cells if cell.probe and cell.group == "tiny"]
    (both,) = plan(made(), [(recipe, cells, 1)])
    assert (both.tasks, both.left, both.distill_hours) == (2, 2, one.distill_hours)


def test_rows_of_a_teacher_that_is_gone_are_not_counted_as_done(
    whole: tuple[Path, Recipe], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    for kept in (tmp_path / "rows").glob("*/*/teacher"):
        shutil.rmtree(kept)
    monkeypatch.delattr(work, "teach")
    made().run([(recipe, recipe.cells, 2)])  # whoever has all rows needs no teacher
    monkeypatch.setattr(plans.Clock, "_timed", lambda *_: 1.0)
    assert [(one.tasks, one.left) for one in plan(made(), [(recipe, recipe.cells, 2)])] == [(4, 0)] * 2
    assert [(one.tasks, one.left) for one in plan(made(), [(recipe, recipe.cells, 3)])] == [(6, 6)] * 2
    told: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda _, text: told.append(text))
    with pytest.raises(NameError, match="teach"):  # it comes to the training of another one
        made().run([(recipe, recipe.cells, 3)])
    digest = all_rows(tmp_path)[0]["teacher"]["sha256"][:12]
    assert f"tiny: 5 rows are of the teacher {digest}, which is not here any more" in told


def test_all_recipes_are_looked_at_before_the_first_is_run(
    tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.toml").write_text(RECIPE)
    (tmp_path / "two.toml").write_text(RECIPE.replace('student = "resnet8"', 'student = "resnetx"', 1))
    monkeypatch.delattr(work, "teach")
    code, _, error = typed(f"reproduce run {tmp_path / 'one.toml'} {tmp_path / 'two.toml'} --folder {tmp_path / 'w'}")
    assert (code, "resnetx" in error, (tmp_path / "w").exists()) == (2, True, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FEW.replace("row = [", "rows = [") + '{ method = "kd" }', "unknown label of pairs in"),
        (FEW.replace('["few"]', '["fewer"]') + '{ method = "kd" }', "unknown row in"),
        (RECIPE.replace('row = "all"', 'row = "all"\nonly = { row = ["all"] }'), "only is for a [[method]]"),
        (RECIPE.replace('method = "kd" }', 'method = "kd", set = ["kd.weight=1"] }'), "set is ['kd.weight=1']"),
        (RECIPE.replace("extract = { batch = 16 }", 'extract = { batch = 16, device = "cpu" }'), "device is for"),
        (RECIPE.replace("views = 2, prec", 'views = 2, device = "cpu", prec'), "device is for"),
        (CHAIN.replace('"first", distill = { ', '"first", distill = { seed = 1, '), "seed is for"),
    ],
)
def test_what_would_mean_nothing_in_a_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        written(tmp_path, text)


def test_a_recipe_is_shown_in_options_that_there_are(typed: Typed) -> None:
    code, shown, _ = typed("reproduce show srm-table-8")
    flat = " ".join(shown.split())
    assert code == 0
    assert "[recipe] epochs = 100" in flat
    assert "--from " in flat
    assert not [word for word in ("--initial", "--recipe epochs", "--head-learning-rate") if word in flat]


# Where teachers come from


def test_a_teacher_that_is_taken_as_it_is_trains_nothing(
    tmp_path: Path, made: Made, whole: tuple[Path, Recipe]
) -> None:
    shutil.copy(whole[0] / "work/tiny/teacher.safetensors", tmp_path / "w.safetensors")
    taken = 'teach = { data = "made_up", network = "resnet8", initial = "w.safetensors", as_is = true, views = 2 }\n'
    text = RECIPE.replace(next(line + "\n" for line in RECIPE.splitlines() if line.startswith("teach = ")), taken)
    recipe = written(tmp_path, text)
    (planned,) = plan(made(), [(recipe, recipe.cells[:1], 1)])
    assert planned.teach_hours == 0
    replace(made(), weights=tmp_path).run([(recipe, recipe.cells[:1], 1)])
    record, result = (
        json.loads((tmp_path / "work/tiny" / name).read_text()) for name in ("teacher.json", "runs/teacher/result.json")
    )
    assert record["sha256"] == json.loads((whole[0] / "work/tiny/teacher.json").read_text())["sha256"]
    assert result["epochs"] == 0


def test_a_copied_teacher_finds_the_data_where_the_recipe_says(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)

    def only_there(folder: Path) -> Dataset:
        assert folder.resolve() == tmp_path / "images"
        return made_up(folder)

    monkeypatch.setitem(DATASETS, "made_up", only_there)
    recipe = written(tmp_path, RECIPE.replace('data = "made_up",', 'data = "made_up", data_folder = "images",'))
    made().run([(recipe, [recipe.cells[0], recipe.cells[4]], 1)])
    made("elsewhere").run([(recipe, [recipe.cells[1], recipe.cells[5]], 1)])  # with the teacher that was kept
    assert [len(Results(tmp_path / "rows").rows(group)) for group in ("tiny", "tiny-few")] == [2, 2]


@pytest.mark.parametrize("lost", ["elsewhere", "removed"])
def test_teachers_before_one_that_is_there_are_not_made_again(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    recipe = written(tmp_path, CHAIN)
    cells = [cell for cell in recipe.cells if cell.group == "after"]
    made().run([(recipe, cells, 1)])
    if lost == "elsewhere":
        shutil.rmtree(tmp_path / "work")
        shutil.rmtree(tmp_path / "rows/first")
    else:
        shutil.rmtree(tmp_path / "work/first")
    assert [one.group for one in plan(made(), [(recipe, cells, 2)])] == ["after"]
    monkeypatch.delattr(work, "teach")
    made().run([(recipe, cells, 2)])
    rows = Results(tmp_path / "rows").rows("after")
    assert [row["seed"] for row in rows] == [0, 1]
    assert len({row["teacher"]["sha256"] for row in rows}) == 1
    assert not (tmp_path / "work/first").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("precision = ", 'student = "resnetx", precision = ', "resnetx"),
        ("precision = ", 'freeze = ["layer9"], precision = ', "layer9"),
        ("precision = ", "sync_bn = true, precision = ", "GPUs"),
        ("precision = ", 'initial = "other.safetensors", precision = ', "holds the weights of another network"),
    ],
)
def test_a_teacher_that_cannot_be_trained_is_refused_before_the_first_one_is(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, old: str, new: str, words: str
) -> None:
    monkeypatch.delattr(work, "teach")
    save_file(create("resnet14", 4).state_dict(), tmp_path / "other.safetensors")
    teach = next(line for line in RECIPE.splitlines() if line.startswith("teach = "))
    second = f"[group.second]\n{teach.replace(old, new, 1)}\n\n[[pair]]\nrow = 'second'\ngroup = 'second'\n\n[[pair]]"
    recipe = written(tmp_path, RECIPE.replace("[[pair]]", second, 1))
    with pytest.raises(UsageError, match=words):
        replace(made(), weights=tmp_path).run([(recipe, recipe.cells, 1)])
    assert not (tmp_path / "work/tiny/runs").exists()


def test_a_skipped_cell_may_name_a_group_that_there_is_not(
    tmp_path: Path, made: Made, whole: tuple[Path, Recipe]
) -> None:
    shutil.copytree(whole[0] / "rows", tmp_path / "rows")
    later = '[[pair]]\nrow = "later"\ngroup = "later"\nskip = "no data yet"\n\n[[method]]'
    recipe = written(tmp_path, RECIPE.replace("[[method]]", later, 1))
    assert made().run([(recipe, recipe.cells, 2)]) == 0
    found = [line for line in tables.lines(recipe, Results(tmp_path / "rows")) if line.row == "later"]
    assert {line.note for line in found} == {"no data yet", "ONE trains without a fixed teacher"}


def test_a_key_that_other_cells_store_may_be_named_where_they_are_done(tmp_path: Path, made: Made) -> None:
    at = RECIPE.replace('column = "none"\ndistill = { method = "none" }', 'column = "AT"\ndistill = { method = "at" }')
    text = at.replace(
        "{ batch = 16 }", '{ batch = 16, dtype = ["stage1.attention=float32"], clean = ["stage1.attention"] }'
    )
    recipe = written(tmp_path, text)
    assert [cell.column for cell in recipe.cells[:2]] == ["AT", "KD"]
    made().run([(recipe, recipe.cells[1:2], 1)])
    cache = open_cache(tmp_path / "work/tiny/cache.zarr")
    assert "stage1.attention" not in cache.contents
    made().run([(recipe, recipe.cells[:2], 1)])
    cache = open_cache(tmp_path / "work/tiny/cache.zarr")
    assert cache.array("train", "stage1.attention", "values").dtype == "float32"
    assert cache.views("stage1.attention") == 2
    wrong = written(tmp_path, text.replace('clean = ["stage1.attention"]', 'clean = ["stage1.atention"]'))
    with pytest.raises(UsageError, match="atention: this extract stores no such key"):
        made("other").run([(wrong, wrong.cells[1:2], 1)])


def test_nothing_left_takes_no_hours(
    whole: tuple[Path, Recipe], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    for kept in (tmp_path / "rows").glob("*/*/teacher"):
        shutil.rmtree(kept)
    monkeypatch.setattr(plans.Clock, "_timed", lambda *_: 1.0)
    for one in plan(made(), [(recipe, recipe.cells, 2)]):
        assert (one.left, one.teach_hours, one.extract_hours, one.distill_hours) == (0, 0, 0, 0)
    more = {one.group: one for one in plan(made(), [(recipe, recipe.cells, 3)])}
    assert more["tiny"].teach_hours > 0 == more["tiny-few"].teach_hours
    assert more["tiny-few"].extract_hours > 0


def test_an_open_search_of_several_recipes_is_counted_once(tmp_path: Path, made: Made) -> None:
    (tmp_path / "other.toml").write_text(SEARCH.replace('column = "KD"', 'column = "KD again"'))
    recipe, other = written(tmp_path, SEARCH), load(str(tmp_path / "other.toml"))
    (found,) = plan(made(), [(recipe, recipe.cells, 2), (other, other.cells, 3)])
    assert (found.tasks, found.left) == (6, 6)  # four points, and two more seeds of the one that will be chosen


# What is told before anything is run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seeds = 2", 'seeds = 2\nanalyze = ["landmarks"]'), "landmarks are analysed over the training"),
        (('column = "KD"', 'column = "KD"\nprobe = { data = "digitz" }'), "unknown data set in [probe]"),
        (
            ('column = "KD"', 'column = "KD"\nprobe = { data = "made_up", stage = "hint" }'),
            "unknown stage that is probed",
        ),
    ],
)
def test_what_a_search_runs_in_the_end_is_looked_at_before_it_begins(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], words: str
) -> None:
    recipe = written(tmp_path, SEARCH.replace(*change, 1))
    monkeypatch.delattr(work, "teach")
    for step in (made().run, partial(plan, made())):
        with pytest.raises(UsageError, match=re.escape(words)):
            step([(recipe, recipe.cells, 2)])


@pytest.mark.parametrize(
    "change", [("few_shot = 16", "few_shot = 8"), ('teacher = "tiny"\n', 'teach = { data = "made_up" }\n')]
)
def test_two_recipes_that_mean_other_things_by_a_group_do_not_run_together(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str]
) -> None:
    (tmp_path / "other").mkdir()
    one, two = written(tmp_path, RECIPE), written(tmp_path / "other", RECIPE.replace(*change))
    monkeypatch.delattr(work, "teach")
    for step in (made().run, partial(plan, made())):
        with pytest.raises(UsageError, match="group tiny-few is another one in recipe mine than in mine"):
            step([(one, one.cells, 2), (two, two.cells, 2)])


def test_a_cache_of_another_torch_is_told_of_before_the_first_group_is_run(
    whole: tuple[Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole[0] / "work", tmp_path / "work")
    recipe = written(tmp_path, FEW + '{ method = "at" }')
    there = Work(tmp_path / "work", Results(tmp_path / "rows"), Silent(), StopRequest())
    known = extracting.environment
    monkeypatch.setattr(extracting, "environment", lambda *given: {**known(*given), "torch": "2.9"})
    with monkeypatch.context() as patch:
        patch.delattr(work, "distill")
        for step in (there.run, partial(plan, there)):
            with pytest.raises(IdentityError, match="--allow-mixed"):
                step([(recipe, recipe.cells, 1)])
    replace(there, allow_mixed=True).run([(recipe, recipe.cells, 1)])
    keys = {row["key"] for group in ("tiny", "tiny-few") for row in Results(tmp_path / "rows").rows(group)}
    assert keys == {task.key for cell in recipe.cells for task in tasks(recipe, cell, 1, [])}


def test_an_early_teacher_of_one_that_came_with_rows_is_refused_before_anything_is_run(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = written(tmp_path, CHAIN)
    made().teacher(recipe, recipe.groups["first"])
    monkeypatch.delattr(work, "distill")
    with pytest.raises(UsageError, match="a teacher that came with rows has none"):
        made("elsewhere").run([(recipe, recipe.cells, 1)])


# Teachers that are gone, and several of them


def test_a_teacher_whose_weights_alone_are_gone_is_trained_again(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    shutil.copytree(whole[0] / "work", tmp_path / "work")
    (tmp_path / "work/tiny/teacher.safetensors").unlink()
    there = Work(tmp_path / "work", Results(tmp_path / "rows"), Silent(), StopRequest())
    recipe = whole[1]
    assert [one.left for one in plan(there, [(recipe, recipe.cells, 1)])] == [2, 2]
    there.run([(recipe, [cell for cell in recipe.cells if cell.group == "tiny"], 1)])
    assert (tmp_path / "work/tiny/teacher.safetensors").exists()
    assert len(Results(tmp_path / "rows").rows("tiny")) == 3


def test_of_two_teachers_that_are_gone_the_one_with_all_rows_counts(
    whole: tuple[Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    results = Results(tmp_path / "rows")
    rows = results.rows("tiny")
    for number in range(len(rows) + 1):
        results.add({**rows[0], "key": f"{number:064x}", "teacher": {**rows[0]["teacher"], "sha256": "f" * 64}})
    for kept in (tmp_path / "rows").glob("*/*/teacher"):
        shutil.rmtree(kept)
    there = Work(tmp_path / "work", results, Silent(), StopRequest())
    monkeypatch.delattr(work, "teach")
    there.run([(recipe, recipe.cells, 2)])
    assert results.rows("tiny")[0]["teacher"] != results.rows("tiny")[-1]["teacher"]


def test_figures_and_correlations_are_of_one_teacher(whole: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, recipe = whole
    shutil.copytree(folder / "rows", tmp_path / "rows")
    results = Results(tmp_path / "rows")
    for row in results.rows("tiny"):
        results.add({**row, "teacher": {**row["teacher"], "sha256": "f" * 64}})
    names = {result["run"] for result in tables.analysed(recipe, results, "gram-gap") if "all" in result["run"]}
    first = results.rows("tiny")[0]["teacher"]["sha256"][:12]
    assert names == {f"all, {column} ({teacher})" for column in ("none", "KD") for teacher in (first, "f" * 12)}
    line = tables.lines(recipe, results)[1]
    several = []
    for teacher, number in itertools.product(("a" * 12, "b" * 12), range(6)):
        kernels = {"losses": {"before_fc": float(number)}, "alignments": {"before_fc": 1.0 / (1 + number)}}
        several.append(replace(line, teacher=teacher, mean=float(number), **kernels))
    told = tables.correlated(several)
    assert [text.partition(":")[0] for text in told] == [f"before_fc ({'a' * 12})", f"before_fc ({'b' * 12})"]
    assert all("of 6 means +1.00 with the loss" in text for text in told)


def test_a_student_that_becomes_a_teacher_is_made_of_its_cache_too(tmp_path: Path) -> None:
    one = written(tmp_path, CHAIN)
    two = written(tmp_path, CHAIN.replace("extract = { batch = 16 }", "extract = { batch = 16, few_shot = 8 }", 1))
    assert one.basis("early") == two.basis("early")
    assert one.basis("after") != two.basis("after")


def test_the_plan_counts_the_teachers_batches_and_not_the_bytes(
    whole: tuple[Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans.Clock, "_timed", lambda *_: 1.0)
    recipe = written(tmp_path, FEW + '{ method = "at" }')
    there = Work(whole[0] / "work", Results(whole[0] / "rows"), Silent(), StopRequest())
    few = next(one for one in plan(there, [(recipe, recipe.cells, 2)]) if one.group == "tiny-few")
    samples = open_cache(whole[0] / "work/tiny-few/cache.zarr").layout.samples
    batches = {part: -(-count // 16) for part, count in samples.items()}
    assert 0 < few.held < few.bytes
    assert few.extract_hours == pytest.approx(2 * batches["train"] * 16 / 3600)


def test_a_recipe_is_shown_whatever_its_values_are(tmp_path: Path, typed: Typed) -> None:
    (tmp_path / "own.toml").write_text(RECIPE.replace("views = 2, prec", "views = 2, mean = 0.5, prec"))
    code, shown, _ = typed(f"reproduce show {tmp_path / 'own.toml'}")
    assert (code, "--mean 0.5" in " ".join(shown.split())) == (0, True)
