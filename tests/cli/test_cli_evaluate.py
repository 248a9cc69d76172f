"""`kdtool evaluate`: the numbers that the runs recorded, for files, folders of runs and whole working folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Typed = Callable[..., Any]


def last(work: Path, run: str) -> float:
    return float(json.loads((work / "runs" / run / "result.json").read_text())["test_accuracy"]["last"])


def test_a_folder(work: Path, typed: Typed) -> None:
    found = typed(f"evaluate --json --folder {work}")
    assert found.code == 0
    teacher, student = json.loads(found.out)
    assert (Path(teacher["weights"]).name, teacher["top1"]) == (
        "teacher.safetensors",
        pytest.approx(last(work, "teacher")),
    )
    assert student["weights"].endswith("runs/first/student.safetensors")
    assert student["top1"] == pytest.approx(last(work, "first"))
    assert sum(one["images"] for one in student["classes"]) == student["images"] == 20


def test_a_student_whose_weights_are_gone_is_told_of(work: Path, typed: Typed) -> None:
    (work / "runs/first/student.safetensors").unlink()
    found = typed(f"evaluate --json --folder {work}")
    assert len(json.loads(found.out)) == 1
    assert "left out: " in found.err
    assert "runs/first/student.safetensors is gone" in found.err


@pytest.mark.parametrize("place", ["runs", "runs/teacher"])
def test_the_teachers_run_from_within(work: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(work / place)
    found = typed(f"evaluate --json --folder {work} {'teacher' if place == 'runs' else '.'}")
    assert [one["top1"] for one in json.loads(found.out)] == [pytest.approx(last(work, "teacher"))]


def test_runs_by_class(work: Path, typed: Typed) -> None:
    """The folder of the teacher's run means the teacher; a run that has not finished is left out."""
    (work / "runs" / "stopped").mkdir()
    found = typed(f"evaluate --by-class --folder {work}", *sorted((work / "runs").iterdir()))
    assert found.code == 0
    assert "stopped has not finished" in found.err
    lines = found.out.splitlines()
    assert max(map(len, lines)) <= 80 or all(str(work) in line for line in lines if len(line) > 80)
    assert sum(line.split()[:1] == ["class"] for line in lines) == 2
    assert f"{last(work, 'first'):.2f}" in found.out
    assert f"{last(work, 'teacher'):.2f}" in found.out


def test_a_shipped_student(work: Path, data: Path, tmp_path: Path, typed: Typed) -> None:
    """Its folder alone is enough, where it is told where the data lie."""
    shutil.copytree(work / "runs" / "first", tmp_path / "shipped")
    line = f"evaluate --json {tmp_path / 'shipped'} --data-folder {data} --folder {tmp_path}"
    (found,) = json.loads(typed(line).out)
    assert found["top1"] == pytest.approx(last(work, "first"))


@pytest.mark.parametrize(
    ("code", "texts", "line"),
    [
        (2, "there is no file of weights", "evaluate {work}/nothing.safetensors"),
        (2, "there is no file of weights", "evaluate {work}/runs"),
        (2, "unknown part 'val'", "evaluate --part val --folder {work}"),
        (2, ("holds no trained network", "kdtool teach"), "evaluate --folder {work}/nowhere"),
        (2, "has no record beside it", "evaluate {work}/alone.safetensors"),
        (3, "SHA-256", "evaluate {work}/teacher.safetensors"),
    ],
)
def test_what_cannot_be_evaluated(code: int, texts: str, line: str, work: Path, refused: Typed) -> None:
    shutil.copy(work / "teacher.safetensors", work / "alone.safetensors")
    content = bytearray((work / "teacher.safetensors").read_bytes())
    content[-1] ^= 1
    (work / "teacher.safetensors").write_bytes(content)
    refused(code, texts, line.format(work=work))
