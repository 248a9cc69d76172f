"""`--dry-run` and `--print-config`: the errors of the true command, the same figures, and nothing is written."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdtool import files
from kdtool.cache import info
from kdtool.engine.runs import read_toml

Typed = Callable[..., Any]

TEACH = "teach --data cifar10 --network resnet8 --student resnet8 --epochs 2 --batch 16 --precision float32"
EXTRACT = "extract --no-srm --views 3 --batch 16 --block 16 --dtype float32"
DISTILL = "distill --method kda --layer before_fc --epochs 3 --batch 16 --precision float32"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, and every folder: a dry run makes none, and no lock."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def dry(work: Path, typed: Typed) -> Typed:
    """Runs a command line with `--dry-run` in the working folder; its document."""

    def call(line: str, *words: object) -> Any:
        before = tree(work.parent)
        said = typed(f"{line} --dry-run --folder", work, *words)
        assert said.code == 0, said.err
        assert said.out.splitlines()[-1] in ("dry run: nothing was written",) or "nothing would be done" in said.out
        assert max(map(len, said.out.replace(str(work), "work").splitlines())) <= 80
        found = typed(f"{line} --dry-run --json --folder", work, *words)
        assert found.code == 0
        assert tree(work.parent) == before
        return {**json.loads(found.out), "said": said.out}

    return call


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_teach_in_a_new_folder(data: Path, tmp_path: Path, typed: Typed) -> None:
    place = ["--data-folder", data, "--folder", tmp_path / "new"]
    found = typed(f"{TEACH} --keep-weights 1 --validation 10 --dry-run --json", *place)
    assert found.code == 0, found.err
    plan = json.loads(found.out)
    assert tree(tmp_path) == {}
    assert typed(f"{TEACH} --keep-weights 1 --validation 10 --quiet", *place).code == 0
    result = files.read_json(tmp_path / "new/runs/teacher/result.json", "")
    assert plan["parameters"] == result["parameters"]
    assert plan["images"] == {"train": 30, "validation": 10, "test": 20}
    assert (plan["state"], plan["steps"], plan["steps_left"]) == ("new", 4, 4)
    assert plan["config"] == read_toml(tmp_path / "new/runs/teacher/config.toml") | {"taps": {}}
    kept = sorted(tmp_path.rglob("weights/*.safetensors"))
    assert len(kept) == 3
    assert plan["bytes"] == pytest.approx(weight_bytes(tmp_path / "new"), rel=0.05)


def test_distill(dry: Typed, work: Path, typed: Typed) -> None:
    plan = dry(f"{DISTILL} --run new --with kd")
    assert (plan["state"], plan["steps"], plan["steps_left"], plan["at"]) == ("new", 9, 9, None)
    (stage,) = plan["stages"]
    assert (stage["epochs"], stage["steps"], stage["cross_entropy"]) == (3, 3, 1.0)
    assert stage["terms"]["kda_before_fc"]["from_epoch"] == 2
    assert stage["terms"]["kd"] == {"weight": 1.0, "from_epoch": 1}
    assert "resnet8 (78,042 parameters) by kda+kd" in plan["said"]
    done = typed(f"{DISTILL} --run new --with kd --folder", work)
    weight = 0.04 * (256 * 100 / (16 * 10)) ** 0.5
    loss = f"1 cross-entropy + {weight:.4g} kda_before_fc from epoch 2 + 1 kd"
    assert (done.code, plan["stages"][0]["loss"]) == (0, loss)
    assert re.search(rf"distill: 3 epochs of 3 steps on cpu in (float32|bfloat16); loss: {re.escape(loss)}\n", done.err)
    assert {k: v for k, v in plan["config"].items() if k != "taps"} == read_toml(work / "runs/new/config.toml")


def test_stages_of_their_own_are_listed(dry: Typed, work: Path, typed: Typed) -> None:
    assert typed(f"extract --quiet --for fitnet --student resnet8 --views 1 --folder {work}").code == 0
    two = "distill --method fitnet --set fitnet.two_stage=true --epochs 4 --batch 16 --views 1"
    plan = dry(two)
    assert len(plan["stages"]) == 2
    assert plan["stages"][0]["cross_entropy"] == 0
    for stage in plan["stages"]:
        assert f"stage {stage['name']}: {stage['epochs']} epochs of 3 steps" in plan["said"]
    before = weight_bytes(work)
    assert typed(f"{two} --quiet --folder {work}").code == 0
    assert plan["bytes"] == pytest.approx(weight_bytes(work) - before, rel=0.05)


def test_a_finished_run(dry: Typed) -> None:
    plan = dry(f"{DISTILL} --run first")
    assert (plan["state"], plan["steps_left"]) == ("finished", 0)
    assert "holds this run already; nothing would be done" in plan["said"]


def test_an_unfinished_run_says_where_it_goes_on(
    work: Path, dry: Typed, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "distill --method kda --layer before_fc --epochs 40 --batch 8 --precision float32 --run long"
    asked = iter([False] * 7 + [True])
    with monkeypatch.context() as patch:
        patch.setattr("kdtool.progress.StopRequest.requested", lambda self: next(asked))
        assert typed(f"{line} --quiet --folder", work).code == 143
    plan = dry(line)
    assert plan["state"] == "resumes"
    assert plan["at"] == {"stage": "distill", "epoch": 2, "step": 3}
    assert plan["steps_left"] == 40 * 5 - 8
    assert "  at stage distill, epoch 2, after step 3\n" in plan["said"]


@pytest.mark.parametrize("place", ["cache.zarr", "new"])
def test_extract_and_plan_say_the_same_and_both_are_right(place: str, work: Path, dry: Typed, typed: Typed) -> None:
    line = f"--no-srm --views 5 --batch 16 --block 16 --dtype float32 --cache {work / place}"
    found = dry(f"extract {line}")
    plan = json.loads(typed(f"plan {line} --json --folder", work).out)
    timed = {key for key in plan if "seconds" in key or "break_even" in key} | {"free_bytes", "said", "dry_run"}
    assert {k: v for k, v in found.items() if k not in timed} == {k: v for k, v in plan.items() if k not in timed}
    assert found["state"] == ("new" if place == "new" else "holds")
    held = info(work / place)["bytes"] if place != "new" else 0
    assert typed(f"extract --quiet {line} --folder", work).code == 0
    assert found["bytes_to_write"] == info(work / place)["bytes"] - held


CONFIGURED = {
    "distill": f"{DISTILL} --set weight=0.5 --seed 3 --run mine",
    "extract": "extract --for kda --set landmarks=kmeans --views 2 --batch 16 --dtype logits=float32",
    "teach": TEACH,
}


@pytest.mark.parametrize("command", CONFIGURED)
def test_the_printed_configuration_gives_the_same(
    command: str, work: Path, data: Path, tmp_path: Path, typed: Typed
) -> None:
    where = ["--folder", work, *(["--cache", tmp_path / "new"] if command == "extract" else [])]
    more = ["--data-folder", data] if command == "teach" else []
    before = tree(tmp_path)
    printed = typed(f"{CONFIGURED[command]} --print-config", *where, *more)
    assert (printed.code, tree(tmp_path)) == (0, before), printed.err
    config = tmp_path / "printed.toml"
    config.write_text(printed.out)
    again = typed(f"{command} --print-config --config", config, "--folder", work)
    assert (again.code, again.out) == (0, printed.out)
    plans = [
        json.loads(typed(line, *words, "--dry-run", "--json").out)
        for line, words in (
            (CONFIGURED[command], [*where, *more]),
            (f"{command} --config", [config, "--folder", work]),
        )
    ]
    timed = {"extract_seconds", "fit_seconds", "live_teacher_seconds_per_epoch", "break_even_epochs", "free_bytes"}
    first, second = ({key: value for key, value in plan.items() if key not in timed} for plan in plans)
    assert first == second


# Errors of the true command beside the wrong options, which test_cli_usage runs dry too.


def both(refused: Typed, code: int, texts: Any, line: str, *words: object) -> None:
    dry = refused(code, texts, f"{line} --dry-run", *words)
    assert refused(code, texts, line, *words).err == dry.err


def test_what_a_cache_lacks(work: Path, refused: Typed) -> None:
    both(refused, 3, "holds no stage3.pooled", f"distill --method kda --layer stage3 --quiet --folder {work}")
    both(refused, 3, "5 are needed", f"distill --method kda --views 5 --quiet --folder {work}")


def test_another_identity(work: Path, other: Path, refused: Typed) -> None:
    shutil.rmtree(work / "cache.zarr")
    shutil.copytree(other / "cache.zarr", work / "cache.zarr")
    both(refused, 4, "another teacher", f"distill --method kda --quiet --folder {work}")
    both(refused, 4, "teacher.sha256", f"{EXTRACT} --quiet --folder {work}")


def test_another_configuration(work: Path, refused: Typed) -> None:
    both(
        refused, 4, "another configuration (seed is 0 there", f"{DISTILL} --run first --seed 4 --quiet --folder {work}"
    )
    both(refused, 4, "--dtype", f"extract --no-srm --views 3 --dtype float16 --quiet --folder {work}")


def test_the_configuration_is_printed_whatever_the_folder_holds(work: Path, typed: Typed) -> None:
    found = typed(f"{DISTILL} --run first --seed 4 --print-config --quiet --folder {work}")
    assert (found.code, "seed = 4" in found.out) == (0, True), found.err


def test_damage(work: Path, refused: Typed) -> None:
    (work / "runs/first/result.json").write_text("{}")
    both(refused, 3, "result.json", f"{DISTILL} --run first --quiet --folder {work}")
    (work / "teacher.safetensors").write_bytes(b"torn")
    both(refused, 3, "teacher.safetensors", f"{EXTRACT} --quiet --folder {work}")


def test_a_full_disk(work: Path, refused: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil._ntuple_diskusage(100, 90, 10)  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.disk_usage", lambda place: full)
    texts = ("needs", "has 10 free")
    refused(5, texts, f"{EXTRACT} --dry-run --quiet --folder {work} --cache", work / "other")
    assert not (work / "other").exists()


def test_places_where_nothing_can_be(work: Path, tmp_path: Path, refused: Typed) -> None:
    (work / "runs/notes").mkdir()
    (work / "runs/notes/ideas.txt").write_text("mine")
    (work / "runs/file").write_text("mine")
    both(refused, 2, ("holds no run", "--run"), f"{DISTILL} --run notes --quiet --folder {work}")
    refused(2, "File exists", f"{DISTILL} --run file --dry-run --quiet --folder {work}")
    refused(2, "Not a directory", f"{EXTRACT} --dry-run --quiet --folder {work} --cache", work / "runs/file/cache")
    both(refused, 2, ("is no cache", "--cache"), f"extract --quiet --folder {work} --cache {work / 'runs'}")
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        refused(5, "Permission denied", f"{EXTRACT} --dry-run --quiet --folder {work} --cache", tmp_path / "closed/c")


# The cache.


def test_drop(work: Path, typed: Typed, refused: Typed) -> None:
    before = tree(work)
    for choice in ("--keep-views 1", "--key before_fc --fit centres.before_fc"):
        said = typed(f"cache drop {choice} --dry-run --folder", work)
        found = json.loads(typed(f"cache drop {choice} --dry-run --json --folder", work).out)
        assert said.code == 0
        assert tree(work) == before
    assert "before_fc: the whole key\ncentres.before_fc: the fit\n" in said.out
    held = info(work / "cache.zarr")["bytes"]
    freed = json.loads(typed(f"cache drop {choice} --yes --json --folder", work).out)["freed"]
    assert found["freed"] == freed
    assert found["left"] == info(work / "cache.zarr")["bytes"] == held - freed
    refused(2, "'before_fc'", "cache drop --key before_fc --dry-run --folder", work)
    refused(2, "nothing to drop", "cache drop --dry-run --folder", work)


def damaged(work: Path) -> None:
    cache = work / "cache.zarr"
    (cache / "train/zarr.json").write_text("{}")
    (cache / "manifest.json").write_text("{}")
    (cache / "test/logits/zarr.json").unlink()
    (cache / "test/logits/zarr.json").symlink_to(work / "kdtool.toml")
    with (cache / "provenance.jsonl").open("a") as file:
        file.write("torn")
    chunk = cache / "train/before_fc/values/c/1/1/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])


def test_repair(work: Path, typed: Typed) -> None:
    whole = tree(work / "cache.zarr")
    assert "cache.zarr is intact" in typed("cache repair --dry-run --quiet --folder", work).out
    assert tree(work / "cache.zarr") == whole
    damaged(work)
    before = tree(work)
    said = typed("cache repair --dry-run --folder", work)
    found = json.loads(typed("cache repair --dry-run --json --folder", work).out)
    assert tree(work) == before
    done = json.loads(typed("cache repair --json --folder", work).out)
    assert found == {"dry_run": True, **done}
    assert len(done["written_again"]) == 5
    assert done["recomputed"] == ["train/before_fc/values/c/1/1/0"]
    assert "train/before_fc/values/c/1/1/0: the teacher would be asked again" in said.out
    assert "would mend manifest.json: written again from its copy" in said.out


def test_repair_without_what_it_takes(work: Path, refused: Typed) -> None:
    damaged(work)
    (work / "teacher.json").unlink()
    both(refused, 2, ("1 damaged or missing chunks", "there is no teacher"), f"cache repair --quiet --folder {work}")
    (work / "cache.zarr/manifest.copy.json").write_text("{}")
    (work / "cache.zarr/manifest.json").write_text("{}")
    both(refused, 3, "neither manifest.json nor", f"cache repair --quiet --folder {work}")
    both(refused, 2, "no cache at", f"cache repair --quiet --folder {work / 'runs'}")


def test_fetch_uses_no_network(tmp_path: Path, typed: Typed, refused: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdtool.data.fetch.download", None)
    found = json.loads(typed("data fetch cifar100 --dry-run --json").out)
    (file,) = found["files"]
    assert (file["name"], file["place"], file["held"]) == ("cifar-100-python.tar.gz", "data/cifar-100-python", None)
    assert "which would be downloaded" in typed("data fetch cifar100 --dry-run").out
    mine = Path("cifar-100-python.tar.gz")
    mine.touch()
    assert f"from {mine}\n" in typed(f"data fetch cifar100 --dry-run --archive {mine}").out
    refused(2, "image-net.org", "data fetch imagenet --dry-run")
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python.tar.gz"]
