"""Trains a student by every method, on real data and from the cache alone, and writes what came of it.

    python benchmarks/every_method.py digits WORK
    python benchmarks/every_method.py cifar100 WORK --teacher WORKSPACE [--few-shot 64] [--epochs 3]

One extract stores what all methods need; then the teacher's files are deleted, and each method trains a student, alone
and, where it can, with KD. Everything runs by the commands that a user types; what is there already is not done again.
The figures go to docs/results/every-method-DATA.json and .md. Left out: a schedule that is long enough to compare the
methods. A method that the pair of networks does not suit (FSP needs equal widths) gets a student of the teacher's kind.
"""

import argparse
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.cache import info
from kdtool.methods import METHODS
from kdtool.workflows.catalogue import catalogue

PLACE = Path(__file__).parents[1] / "docs" / "results"
TEACHERS = ("teacher.safetensors", "teacher.json", "teacher.split.json")


def kdtool(folder: Path, *words: str) -> str:
    """Runs a command in a folder; gives its line without the folder."""
    print("kdtool", *words, flush=True)
    subprocess.run([sys.executable, "-m", "kdtool", *words, "--folder", str(folder), "--quiet"], check=True)
    return " ".join(("kdtool", *words))


def students(teacher: str, student: str, classes: int) -> dict[str, str]:
    """method -> network of its student."""
    rows = catalogue((kind() for kind in METHODS.values()), student, teacher, classes)
    return {row["method"]: teacher if "refuses" in row else student for row in rows}


def run(folder: Path, data: str, source: Path | None, few_shot: int | None, plan: list[str]) -> list[dict[str, Any]]:
    """All runs of a folder; gives their records."""
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None and not (folder / "cache.zarr").exists():
        for name in (*TEACHERS, "kdtool.toml"):
            shutil.copy(source / name, folder / name)
    elif not (folder / "kdtool.toml").exists():
        kdtool(folder, "teach", "--data", data, "--network", "resnet14", "--student", "resnet8", *plan)
    if not (folder / "done.json").exists():
        narrow = ["--few-shot", str(few_shot)] if few_shot else []
        network = files.read_json(folder / "teacher.json", "teach again")
        chosen = students(network["network"], "resnet8", network["classes"])
        lines = []
        for student in dict.fromkeys(chosen.values()):
            words = [word for name, of in chosen.items() if of == student for word in ("--for", name)]
            lines.append(kdtool(folder, "extract", *words, "--student", student, "--views", "2", *narrow))
        for name in TEACHERS:
            (folder / name).unlink()
        files.write_json(folder / "done.json", {"extract": lines, "students": chosen})
    done = files.read_json(folder / "done.json", "remove the folder")
    records = [record(folder, "none", "", "resnet8", plan)]
    for name, student in done["students"].items():
        records.append(record(folder, name, "", student, plan))
        if METHODS[name].combines:
            records.append(record(folder, name, "kd", student, plan))
    return records


def record(folder: Path, method: str, added: str, student: str, plan: list[str]) -> dict[str, Any]:
    """One student: trains it where that has not been done, and reads what came of it."""
    name = f"{student}-{method}{'-' + added if added else ''}"
    words = ["--method", method, *(["--with", added] if added else []), "--student", student, "--run", name, *plan]
    if not (folder / "runs" / name / "result.json").exists():
        assert not (folder / TEACHERS[0]).exists(), "the teacher's file is still there"
        kdtool(folder, "distill", *words)
    result = files.read_json(folder / "runs" / name / "result.json", "run it again")
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return {
        "method": method,
        "with": added,
        "student": student,
        "stages": [stage["stage"] for stage in result.get("stages", [])],
        "steps": sum(row["steps"] for row in rows),
        "terms": {
            f"{row['stage']}: {term}": [first(rows, row["stage"], term), value]
            for row in rows
            for term, value in row["terms"].items()
        },
        "train_accuracy": rows[-1]["train_accuracy"],
        "test_accuracy": result["test_accuracy"]["last"],
        "seconds": result["seconds"]["total"],
    }


def first(rows: list[dict[str, Any]], stage: str, term: str) -> float:
    """A term in the first epoch of its stage in which it was active."""
    return next(float(row["terms"][term]) for row in rows if row["stage"] == stage and term in row["terms"])


def page(about: dict[str, Any]) -> str:
    """The document."""
    teacher = about["teacher"]
    made = (
        "Made by `benchmarks/every_method.py`. Each student learned from the cache alone, after the teacher's files "
        f"had been deleted: {teacher['network']} ({teacher['test_accuracy']:.2f} % of the test images), "
        f"{about['samples']:,} images in {about['classes']} classes, {about['views']} views. A few hundred steps show "
        "that every method trains on real data, not what it can reach. Terms are unweighted means over the first and "
        "the last epoch in which they were active."
    )
    lines = [
        f"# Every method on {about['data']}",
        "",
        textwrap.fill(made, 120),
        "",
        f"Machine: {about['machine']}.",
        "",
        "```",
        *about["extract"],
        f"kdtool distill --method NAME [--with kd] {about['plan']}",
        "```",
        "",
        "| method | student | steps | terms, first epoch to last | train % | test % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in about["runs"]:
        terms = ", ".join(f"{name} {a:.4g} → {b:.4g}" for name, (a, b) in row["terms"].items())
        title = "no teacher" if row["method"] == "none" else f"`{row['method']}`{' + `kd`' if row['with'] else ''}"
        cells = (title, row["student"], str(row["steps"]), terms)
        lines.append(f"| {' | '.join(cells)} | {row['train_accuracy']:.2f} | {row['test_accuracy']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("digits", "cifar100"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--few-shot", type=int)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    plan = ["--epochs", str(asked.epochs), "--batch", str(asked.batch)]
    runs = run(asked.work.resolve(), asked.data, asked.teacher, asked.few_shot, plan)
    known = info(asked.work / "cache.zarr")
    path = next((asked.work / "runs").glob("*/environment.json"))
    environment = files.read_json(path, "run it again")
    result = files.read_json(path.with_name("result.json"), "run it again")
    about = {
        "data": asked.data,
        "samples": known["layout"]["samples"]["train"],
        "classes": known["layout"]["classes"],
        "views": known["keys"]["logits"]["parts"]["train"]["views"],
        "teacher": result["teacher"],
        "machine": f"{environment['device']}, {environment['threads']} threads, torch {environment['torch']}",
        "extract": files.read_json(asked.work / "done.json", "remove the folder")["extract"],
        "plan": " ".join(plan),
        "runs": runs,
    }
    files.write_json(PLACE / f"every-method-{asked.data}.json", about)
    (PLACE / f"every-method-{asked.data}.md").write_text(page(about))


if __name__ == "__main__":
    main()
