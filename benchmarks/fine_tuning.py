"""A teacher of CIFAR-100 fine-tuned on photographs, its students on all and on few of them, and linear probes.

    python benchmarks/fine_tuning.py WORK --photographs FOLDER --weights teacher.safetensors --cifar100 FOLDER

photographs: train/CLASS, validation/CLASS, test/CLASS. weights: a wrn_16_2 that was trained on CIFAR-100. Everything
runs by the commands that a user types; what is there already is not done again. The figures go to
docs/results/fine-tuning.json and .md. Left out: schedules that are long enough to compare methods.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from kdtool import files

PLACE = Path(__file__).parents[1] / "docs" / "results"
TEACHER, STUDENT = "wrn_16_2", "wrn_16_1"
FAST = ["--precision", "bfloat16"]
SHOTS = (None, 10)  # photographs of each class; None: all
METHODS = {
    "none": [],
    "kd": [],
    "kda": ["--layer", "before_fc", "--layer", "after_fc"],
    "srm": ["--set", "srm.passes=3"],
}
LAYERS = ["--set", "kda.layers=before_fc,after_fc"]
STORED = ["--for", "kd", "--for", "kda", *LAYERS, "--for", "srm", "--set", "srm.passes=3", "--views", "4"]


def kdtool(folder: Path, *words: str) -> str:
    """Runs a command in a folder; gives its line without the folder."""
    print("kdtool", *words, flush=True)
    subprocess.run([sys.executable, "-m", "kdtool", *words, "--folder", str(folder), "--quiet"], check=True)
    return " ".join(("kdtool", *words))


def result(path: Path) -> dict[str, Any]:
    """The result of a finished run."""
    return files.read_json(path / "result.json", "run it again")


def teachers(work: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The same network on the photographs: from the weights, with the body frozen, and from nothing."""
    begun = ["--from", str(asked.weights)]
    ways = {
        "fine-tuned": [*begun, "--learning-rate", "0.01", "--head-lr", "0.1"],
        "classifier alone": [*begun, "--learning-rate", "0.1", "--freeze", "body"],
        "from nothing": ["--learning-rate", "0.1"],
    }
    rows = []
    for name, words in ways.items():
        folder = work / name.replace(" ", "-")
        if not (folder / "kdtool.toml").exists():
            folder.mkdir(parents=True, exist_ok=True)
            data = ["--data", "folder", "--data-folder", str(asked.photographs), "--image-size", "64"]
            epochs = ["--epochs", str(asked.epochs), "--batch", "64", "--views", "8"]
            kdtool(folder, "teach", *data, "--network", TEACHER, "--student", STUDENT, *words, *epochs, *FAST)
        found = result(folder / "runs" / "teacher")
        rows.append(
            {
                "teacher": name,
                "options": " ".join(word for word in words if word != str(asked.weights)),
                **{part: found[f"{part}_accuracy"]["last"] for part in ("validation", "test")},
            }
        )
    return rows


def students(work: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Students of the fine-tuned teacher by every method, on all photographs and on few of each class."""
    folder, rows = work / "fine-tuned", []
    for shots in SHOTS:
        name = f"{shots}-shot" if shots else "all"
        cache = ["--cache", str(folder / f"{name}.zarr")]
        few = ["--few-shot", str(shots)] if shots else []
        kdtool(folder, "extract", *cache, *STORED, *few)
        epochs = asked.epochs * (4 if shots else 1)
        plan = ["--epochs", str(epochs), "--batch", "64" if not shots else "32", "--learning-rate", "0.05"]
        for method, words in METHODS.items():
            run = f"{name}-{method}"
            if not (folder / "runs" / run / "result.json").exists():
                kdtool(folder, "distill", *cache, "--method", method, *words, *plan, "--run", run, *FAST)
            found = result(folder / "runs" / run)
            test = found["test_accuracy"]
            rows.append({"photographs": name, "method": method, "epochs": epochs, "test": test["last"]})
    return rows


def probes(work: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The CIFAR-100 network as it is, frozen, with a new classifier for photographs of 32x32."""
    folder = work / "cifar100"
    if not (folder / "kdtool.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["--data", "cifar100", "--data-folder", str(asked.cifar100), "--network", TEACHER]
        kdtool(folder, "teach", *words, "--from", str(asked.weights), "--as-is", "--student", STUDENT)
    rows = []
    run = folder / "runs" / "teacher"
    for kind, words in (
        ("linear, BatchNorm in train mode", []),
        ("linear, BatchNorm in eval mode", ["--batchnorm", "eval"]),
        ("whole network", ["--whole", "--learning-rate", "0.01"]),
    ):
        data = ["--data", "folder", "--data-folder", str(asked.photographs), "--epochs", str(asked.epochs)]
        kdtool(folder, "analyze", "probe", str(run), *data, *words, *FAST)
        named = sorted(run.glob("probe-*/result.json"), key=lambda path: path.stat().st_mtime)
        found = result(named[-1].parent)
        rows.append({"probe": kind, **{part: found[f"{part}_accuracy"]["last"] for part in ("validation", "test")}})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of Markdown; accuracies with two decimals."""
    cells = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


ABOUT = """Written by `benchmarks/fine_tuning.py`; figures in fine-tuning.json. Accuracies in percent, one seed. The
photographs: 3,781 of clothing in 10 classes, of many sizes, read from their JPEG files at 64x64 by random boxes.
{epochs} epochs on all photographs, four times as many on few, which shows that everything works and is too short to
compare methods."""


def page(found: dict[str, Any]) -> str:
    """docs/results/fine-tuning.md."""
    titles = {
        "teachers": "Teachers (wrn_16_2; weights of CIFAR-100, whose 100 classes give way to 10)",
        "students": "Students (wrn_16_1) of the fine-tuned teacher, from its cache alone",
        "probes": "Probes of the CIFAR-100 network on the photographs at 32x32 (`kdtool analyze probe`)",
    }
    parts = [part for name, title in titles.items() for part in (f"## {title}", table(found[name]))]
    return "\n\n".join(["# A teacher of CIFAR-100 on photographs", ABOUT.format(epochs=found["epochs"]), *parts])


def main() -> None:
    """Runs what is missing and writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    for name in ("--photographs", "--weights", "--cifar100"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    asked = parser.parse_args()
    for name in ("photographs", "weights", "cifar100"):
        setattr(asked, name, getattr(asked, name).absolute())
    found = {
        "epochs": asked.epochs,
        "teachers": teachers(asked.work, asked),
        "students": students(asked.work, asked),
        "probes": probes(asked.work, asked),
    }
    (PLACE / "fine-tuning.json").write_text(json.dumps(found, indent=1) + "\n")
    (PLACE / "fine-tuning.md").write_text(page(found) + "\n")


if __name__ == "__main__":
    main()
