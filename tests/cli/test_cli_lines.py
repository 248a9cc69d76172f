"""Command lines that work: the literal ones, without the teacher, again, from a configuration, as JSON, planned."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from kdtool import files
from kdtool.cache import info
from kdtool.cli.commands import app
from kdtool.engine.runs import read_toml

Typed = Callable[..., Any]

TEACH = "teach --data cifar10 --network resnet8 --student resnet8 --epochs 2 --batch 16 --precision float32"
DISTILL = "distill --method kda --layer before_fc --epochs 3 --batch 16 --precision float32"


def weights(folder: Path, run: str) -> str:
    return str(files.read_json(folder / "runs" / run / "result.json", "")["weights_sha256"])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_literal_lines_run_as_typed(
    taught: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = Path(shutil.copytree(taught, tmp_path / "work"))
    for line in ("extract", "distill --method kda --layer before_fc", "analyze gram-gap"):
        process = started(folder, line)
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert out
        assert "Traceback" not in err
    assert (folder / "runs/resnet8-kda-before_fc-seed0/analysis/gram-gap.json").exists()
    keys = info(folder / "cache.zarr")["keys"]
    labels = [f"stage{number}.srm.sigmoid.mu2.lambda0.02.passes10" for number in (1, 2, 3)]
    assert sorted(keys) == sorted(["logits", "before_fc", *labels])
    assert all(about["parts"]["train"]["views"] == 8 for about in keys.values())


def test_distill_needs_nothing_of_the_teacher(work: Path, typed: Typed) -> None:
    for name in ("teacher.safetensors", "teacher.json", "teacher.split.json"):
        (work / name).unlink()
    assert typed(f"{DISTILL} --run second --folder", work).code == 0
    assert weights(work, "second") == weights(work, "first")
    assert typed("analyze gram-gap --folder", work).code == 0


def test_a_finished_run_says_so_and_keeps_its_files(work: Path, data: Path, typed: Typed) -> None:
    before = tree(work)
    for line in (f"{DISTILL} --run first", f"{TEACH} --data-folder {data}"):
        again = typed(f"{line} --folder", work)
        assert again.code == 0
        assert "holds this run already; nothing to do" in again.err
        assert "test accuracy" in again.out
    assert tree(work) == before


def test_a_resolved_configuration_runs_again_and_flags_win(work: Path, typed: Typed) -> None:
    config = work / "runs/first/config.toml"
    assert typed("distill --run again --config", config, "--folder", work).code == 0
    assert weights(work, "again") == weights(work, "first")
    assert read_toml(work / "runs/again/config.toml") == {**read_toml(config), "run": "again"}
    assert (
        typed("distill --run changed --seed 7 --set weight=0.5 --epochs 2 --config", config, "--folder", work).code == 0
    )
    changed = (work / "runs/changed/config.toml").read_text()
    assert "seed = 7" in changed
    assert '"kda.weight" = 0.5' in changed
    assert "epochs = 2" in changed
    assert 'precision = "float32"' in changed
    assert "batch = 16" in changed


def test_a_recipe_named_as_a_flag_replaces_that_of_the_file(work: Path, typed: Typed) -> None:
    config = work / "runs/first/config.toml"
    line = "distill --run adam --recipe srm --epochs 2 --config"
    assert typed(line, config, "--folder", work).code == 0
    text = (work / "runs/adam/config.toml").read_text()
    assert 'optimizer = "adam"' in text
    assert "batch = 128" in text


def test_teach_runs_again_from_its_resolved_configuration(built: Path, tmp_path: Path, typed: Typed) -> None:
    assert typed("teach --config", built / "runs/teacher/config.toml", "--folder", tmp_path / "again").code == 0
    for name in ("teacher.safetensors", "teacher.json", "teacher.split.json", "kdtool.toml"):
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes(), name


def test_extract_takes_a_configuration_file(built: Path, work: Path, tmp_path: Path, typed: Typed) -> None:
    config = tmp_path / "extract.toml"
    config.write_text(
        'for = ["kda"]\nviews = 5\nbatch = 16\nblock = 16\ndtype = ["float32"]\ncache = "not used"\n'
        '[set]\nkda.landmarks = "kmeans"\n'
    )
    assert typed("extract --views 2 --config", config, "--cache", work / "new", "--folder", work).code == 0
    found = info(work / "new")
    assert "kmeans2.before_fc" in found["fits"]
    assert {key: about["parts"]["train"]["views"] for key, about in found["keys"].items()} == {
        "before_fc": 2,
        "logits": 2,
    }
    for name, content in tree(work / "new/train").items():
        if "/c/" in name:
            assert content == (built / "cache.zarr/train" / name).read_bytes()


def test_a_configuration_by_hand_may_name_flags_and_a_recipe(work: Path, tmp_path: Path, typed: Typed) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('method = "kd"\nrecipe = "crd"\nepochs = 2\nrun = "mine"\n[set]\ntemperature = 2\n')
    assert typed("distill --quiet --config", config, "--folder", work).code == 0
    text = (work / "runs/mine/config.toml").read_text()
    for line in ("epochs = 2", "batch = 64", '"kd.temperature" = 2.0'):
        assert line in text


JSON = {
    TEACH: "weights_sha256",
    "extract": "keys",
    f"{DISTILL} --run first": "weights_sha256",
    "analyze gram-gap": "results",
    "plan": "bytes_to_write",
    "cache info": "identity",
    "cache verify": None,
}


@pytest.mark.parametrize("line", JSON)
def test_json_is_one_document_and_nothing_else(line: str, work: Path, data: Path, typed: Typed) -> None:
    extra = ["--data-folder", data] if line == TEACH else []
    found = typed(f"{line} --json --folder", work, *extra)
    assert found.code == 0
    document = json.loads(found.out)
    assert document == [] if JSON[line] is None else JSON[line] in document


@pytest.mark.parametrize("line", ["methods", "models --classes 10", "data list", "data check cifar10 --data-folder"])
def test_json_of_what_there_is(line: str, data: Path, typed: Typed) -> None:
    found = typed(f"{line} --json" if not line.endswith("folder") else f"{line} {data} --json")
    assert found.code == 0
    assert json.loads(found.out)
    assert found.err == ""


PLANS = [
    "--views 3",
    "--views 5 --for kda --set kda.landmarks=kmeans --set kda.layers=stage3,before_fc --clean stage3.pooled",
]


@pytest.mark.parametrize("options", PLANS)
@pytest.mark.parametrize("place", ["cache.zarr", "new"])
def test_plan_writes_nothing_and_its_bytes_are_those_on_disk(
    place: str, options: str, work: Path, typed: Typed
) -> None:
    cache = work / place
    before = tree(work)
    line = f"{options} --batch 16 --block 16 --cache {cache} --folder {work}"
    held = info(cache)["bytes"] if cache.exists() else 0
    planned = typed(f"plan --json {line}")
    assert planned.code == 0, planned.err
    assert tree(work) == before
    plan = json.loads(planned.out)
    assert typed(f"extract --quiet {line}").code == 0
    chunks = [path for path in cache.rglob("*") if path.is_file() and "/c/" in f"{path.relative_to(cache)}/"]
    on_disk = sum(path.stat().st_size for path in chunks)
    assert plan["bytes"] == on_disk == info(cache)["bytes"]
    assert plan["bytes_to_write"] == on_disk - held
    found = info(cache)
    for row in plan["keys"]:
        about = (
            found["fits"][row["key"]] if row["part"] == "fitted" else found["keys"][row["key"]]["parts"][row["part"]]
        )
        assert about["bytes"] == row["bytes"], row
    after = json.loads(typed(f"plan --json {line}").out)
    assert after["bytes_to_write"] == after["teacher_batches"] == 0
    assert after["bytes"] == on_disk


def every_command() -> list[str]:
    def walk(command: Any, words: str) -> list[str]:
        inner = getattr(command, "commands", {})
        return [words, *(line for name, sub in inner.items() for line in walk(sub, f"{words} {name}"))]

    return walk(typer.main.get_command(app), "")


@pytest.mark.parametrize("words", every_command())
def test_help_fits_80_columns_and_gives_an_example(words: str, typed: Typed) -> None:
    found = typed(f"{words} --help")
    assert found.code == 0
    assert max(map(len, found.out.splitlines())) <= 80
    _, group, commands = found.out.partition("Commands:")
    assert "..." not in commands
    assert group or f"Example: kdtool{words}" in " ".join(found.out.split())


TABLES = {
    "methods": ("kda", "teacher_landmarks=epoch"),
    "models": ("tv:shufflenet_v2_x1_0", "stem stage1-4 preact"),
    "plan --for kda --set landmarks=kmeans": ("kmeans2.before_fc", "train_clean"),
    "cache info": ("before_fc", "train_clean"),
    "analyze gram-gap": ("before_fc", "alignment"),
}


@pytest.mark.parametrize("line", TABLES)
def test_tables_fit_80_columns_with_names_in_one_piece(line: str, work: Path, typed: Typed) -> None:
    found = typed(f"{line} --folder {work}" if line not in ("methods", "models") else line)
    assert found.code == 0
    rows = found.out.replace(str(work), "work").splitlines()
    assert max(map(len, rows)) <= 80
    for text in TABLES[line]:
        assert any(text in row for row in rows), found.out
