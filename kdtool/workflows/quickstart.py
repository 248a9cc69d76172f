"""The whole job on real images in two minutes: handwritten digits, a teacher, its cache, five students, a report."""

from dataclasses import dataclass, replace
from pathlib import Path

from kdtool.analysis.analyses import GapPlan, gram_gap
from kdtool.analysis.pairs import Asked
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.teach import TeachConfig, teach
from kdtool.methods import method
from kdtool.methods.protocol import Method
from kdtool.progress import Progress, StopRequest
from kdtool.workflows.report import write_report

KDA_WEIGHT = "0.004"  # a tenth of the default, which was found for a hundred classes and 120 epochs


@dataclass(frozen=True)
class Quickstart:
    """The sizes of the quickstart; the defaults take less than two minutes on two cores."""

    teacher: str = "resnet14"
    student: str = "resnet8"
    teacher_epochs: int = 8
    epochs: int = 8
    views: int = 6
    batch: int = 64
    seed: int = 0


def students() -> tuple[tuple[Method, ...], ...]:
    """No teacher, KD, and KDA before the classifier, after it, and both."""
    kda = (
        method("kda").with_options({"layers": layers, "weight": KDA_WEIGHT})
        for layers in ("before_fc", "after_fc", "before_fc,after_fc")
    )
    return ((), (method("kd"),), *((found,) for found in kda))


def quickstart(folder: Path, sizes: Quickstart, progress: Progress, stop: StopRequest) -> Path:
    """Runs everything in a folder, from where it stopped if it did; gives the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = replace(recipe("kda"), batch=sizes.batch)
    progress.note(f"1/5 teach: {sizes.teacher} on 1,437 handwritten digits")
    config = TeachConfig(
        data="digits",
        network=sizes.teacher,
        student=sizes.student,
        recipe=replace(plan, epochs=sizes.teacher_epochs),
        views=sizes.views,
        seed=sizes.seed,
    )
    teach(Workspace.open(folder), config, progress, stop)
    workspace = Workspace.open(folder)
    progress.note(f"2/5 extract: {sizes.views} views of every image, once")
    extract(workspace.cache, prepare(workspace, ExtractConfig(without=("srm",), seed=sizes.seed)), progress, stop)
    runs = []
    for number, methods in enumerate(students()):
        student = DistillConfig(sizes.student, methods, replace(plan, epochs=sizes.epochs), seed=sizes.seed)
        progress.note(f"3/5 distill, student {number + 1} of {len(students())}: {student.title}")
        distill(workspace, student, progress, stop)
        runs.append(workspace.runs / student.title)
    progress.note("4/5 analyze: kernel transfer loss over all images")
    for run in runs:
        gram_gap(workspace, Asked((run,)), GapPlan(), progress)
    progress.note("5/5 report")
    return write_report([workspace.runs], folder / "report.html", progress)
