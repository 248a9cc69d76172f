"""What the momentum of KDA's landmarks does to the size of a student's kernel, epoch by epoch.

    python benchmarks/kda_landmarks.py WORK [--data-folder FOLDER] [--epochs 15] [--batch 128]

WORK: a folder with a teacher and a cache of `before_fc`, as `kdtool reproduce run cifar100-15-epochs` leaves one for
its group. Distils a student with landmarks as in the official code and one with a momentum of 0.5, keeps the weights of
every epoch, and compares the kernels of all training images after each. Writes docs/results/kda-landmarks.md and .json.
What is there already is not trained again.
"""

import argparse
import functools
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdtool import files
from kdtool.analysis.compared import cached_teacher, prepared
from kdtool.analysis.gram import gram_gap
from kdtool.analysis.pairs import Asked
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.folder import Workspace
from kdtool.engine.keeping import kept
from kdtool.engine.optim import recipe
from kdtool.engine.ranks import Alone
from kdtool.methods.kda import KDA
from kdtool.progress import Silent

PLACE = Path(__file__).parents[1] / "docs" / "results"
LAYER = "before_fc"
MOMENTA = (None, 0.5)


def followed(workspace: Workspace, config: DistillConfig) -> dict[str, Any]:
    """A student's epochs: its term, its test accuracy, and its kernel beside the teacher's."""
    result = distill(workspace, config, Silent())
    run = workspace.runs / result["name"]
    asked = Asked((run,), (LAYER,), data_folder=config.data_folder)
    basis, _, (student,) = prepared(workspace, asked, Silent(), Alone())
    teacher = cached_teacher(workspace, asked, basis, LAYER, student)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = []
    snapshots = {weights.epoch: weights for weights in kept(run)}
    for row in rows:
        weights = snapshots[row["epoch"] + 1]
        trained = functools.partial(student.trained, run / weights.file, weights.sha256)
        with TemporaryDirectory(dir=workspace.folder) as folder:
            features = basis.features(Path(folder), "student", weights.sha256, student.shapes, (LAYER,), trained)
            gap = gram_gap(features[LAYER], teacher)
        numbers = {"term": row["terms"].get(f"kda_{LAYER}"), "test_accuracy": row["test_accuracy"]}
        epochs.append(numbers | {"loss": gap.loss, "scale": gap.scale, "alignment": gap.alignment})
        print(config.title, row["epoch"] + 1, epochs[-1], flush=True)
    environment = files.read_json(run / "environment.json", "distil the student again")
    return {"student": result["network"], "teacher": result["teacher"], "environment": environment, "epochs": epochs}


def page(runs: dict[str, dict[str, Any]]) -> str:
    """The document."""
    first = next(iter(runs.values()))
    machine = "{device}, {threads} thread, torch {torch}, {precision}".format(**first["environment"])
    lines = [
        "# The momentum of KDA's landmarks",
        "",
        f"Made by `benchmarks/kda_landmarks.py` on {machine}: {first['teacher']['network']} to {first['student']}, KDA",
        f"{LAYER} with its default weight, one seed. The kernels are of all training images, un-augmented, after each",
        "epoch; in the first one there are no landmarks yet.",
        "",
        f"| epoch |{''.join(f' {name}: {what} |' for name in runs for what in ('term', 'scale', 'loss', 'test %'))}",
        f"|{'---|' * (1 + 4 * len(runs))}",
    ]
    for number, of in enumerate(zip(*(run["epochs"] for run in runs.values()), strict=True), 1):
        cells = [
            f" {'' if row['term'] is None else format(row['term'], '.2f')} | {row['scale']:.3f} | {row['loss']:.3f} | "
            f"{row['test_accuracy']:.2f} |"
            for row in of
        ]
        lines.append(f"| {number} |{''.join(cells)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data-folder")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    asked = parser.parse_args()
    plan = replace(recipe("kda"), epochs=asked.epochs, batch=asked.batch)
    runs = {}
    for momentum in MOMENTA:
        config = DistillConfig(
            asked.student,
            (KDA(landmark_momentum=momentum),),
            plan,
            precision="bfloat16",
            data_folder=asked.data_folder,
            keep_weights=1,
            name=f"kda-landmarks-{momentum}",
        )
        runs[f"momentum {momentum or 0}"] = followed(Workspace.open(asked.work), config)
    files.write_json(PLACE / "kda-landmarks.json", runs)
    (PLACE / "kda-landmarks.md").write_text(page(runs))


if __name__ == "__main__":
    main()
