"""Writes docs/results/cifar100-cpu.md and .json from the run folders of a workspace: no figure is typed by hand.

python benchmarks/cifar100_cpu.py WORKSPACE
"""

import argparse
import json
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.analysis.kept import read_results
from kdtool.cache import info

PLACE = Path(__file__).parents[1] / "docs" / "results"


def read(run: Path) -> dict[str, Any]:
    """One run: result, environment, transfer losses."""
    result = files.read_json(run / "result.json", "run it again")
    return {
        "result": result,
        "environment": files.read_json(run / "environment.json", "run it again"),
        "gaps": read_results(run, "gram-gap"),
    }


def loss(run: dict[str, Any], layer: str) -> str:
    """The kernel transfer loss of a layer over all training images."""
    found = [gap["loss"] for gap in run["gaps"] if gap["layer"] == layer and gap["part"] == "train"]
    return f"{found[0]:.4f}" if found else ""


def command(result: dict[str, Any]) -> str:
    """The command that gives a student."""
    layers = " ".join(f"--layer {layer}" for layer in result["options"].get("kda.layers", []))
    words = f"kdtool distill --method {'+'.join(result['method']) or 'none'} {layers}".strip()
    return f"{words} --epochs {result['epochs']} --batch {result['batch']} --precision bfloat16"


def page(teacher: dict[str, Any], students: list[dict[str, Any]], cache: dict[str, Any]) -> str:
    """The document."""
    environment, about = teacher["environment"], teacher["result"]
    samples = cache["layout"]["samples"]
    views = cache["keys"]["logits"]["parts"]["train"]["views"]
    lines = [
        "# CIFAR-100 on a CPU, a short schedule",
        "",
        "Made by `benchmarks/cifar100_cpu.py` from the run folders. The schedule is short: the accuracies say that the",
        "four stages work on real data, not what the methods can reach.",
        "",
        (
            f"Machine: {environment['device']}, {environment['cores']} cores of which each command used "
            f"{environment['threads']} thread, shared with other work; torch {environment['torch']}, "
            f"kdtool {environment['kdtool']}, networks trained under bfloat16 autocast, teacher extracted in float32."
        ),
        "",
        "```",
        (
            f"kdtool teach --data cifar100 --data-folder data --network {about['network']} --student "
            f"{students[0]['result']['network']} --epochs {about['epochs']} --batch {about['batch']} --views {views} "
            "--precision bfloat16"
        ),
        "kdtool extract --no-srm",
        *(command(run["result"]) for run in students),
        "kdtool analyze gram-gap          # after each student",
        "kdtool cache verify",
        "```",
        "",
        f"Data: the published CIFAR-100, content digest `{cache['identity']['data']['digest']}`,",
        f"all {samples['train']:,} training images and {samples['test']:,} test images.",
        (
            f"Teacher: {about['network']}, {about['parameters']:,} parameters, {about['epochs']} epochs, test accuracy "
            f"{about['test_accuracy']['last']:.2f} % (last epoch), SHA-256 `{about['weights_sha256']}`, "
            f"{about['seconds']['total']:,.0f} s."
        ),
        f"Cache: {views} views, {cache['bytes']:,} bytes, identity `{cache['identity_digest']}`.",
        "",
        "| student | method | test accuracy, last % | kernel transfer loss before_fc | after_fc | seconds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for run in students:
        result = run["result"]
        layers = ", ".join(result["options"].get("kda.layers", []))
        name = f"{'+'.join(result['method']) or 'no teacher'} {layers}".strip()
        lines.append(
            f"| {result['network']} | {name} | {result['test_accuracy']['last']:.2f} | {loss(run, 'before_fc')} | "
            f"{loss(run, 'after_fc')} | {result['seconds']['total']:,.0f} |"
        )
    algorithms = sorted({gap["algorithm"] for run in students for gap in run["gaps"]})
    counts = sorted({gap["samples"] for run in students for gap in run["gaps"]})
    lines += [
        "",
        f"The kernel transfer loss is exact over {' and '.join(f'{count:,}' for count in counts)} clean train images",
        f"({', '.join(algorithms)}). One seed: differences of a point or two are noise.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads a workspace, writes the document and its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    workspace = parser.parse_args().workspace
    teacher = read(workspace / "runs" / "teacher")
    results = sorted(workspace.glob("runs/*/student.safetensors"), key=lambda path: path.stat().st_mtime)
    students = [read(path.parent) for path in results if (path.parent / "result.json").exists()]
    cache = info(workspace / "cache.zarr")
    del cache["path"]
    (PLACE / "cifar100-cpu.md").write_text(page(teacher, students, cache))
    rows = {"teacher": teacher, "students": students, "cache": cache}
    (PLACE / "cifar100-cpu.json").write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
