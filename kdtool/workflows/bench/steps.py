"""The price of a distillation step from the cache: beside the plain step of the same student, stage by stage.

Each step takes turns with a plain one. Methods whose own arithmetic is next to nothing must cost next to nothing as a
whole; of the others what is read must cost next to nothing, and the price of the arithmetic is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdtool.engine.folder import Workspace
from kdtool.engine.job import Job
from kdtool.errors import UsageError
from kdtool.methods import METHODS, method
from kdtool.methods.protocol import Method
from kdtool.workflows.bench.jobs import CLASSES, Steps, add_targets, filled, make_job
from kdtool.workflows.bench.measured import Figure, Setting, alternating, medians, ratio
from kdtool.workflows.catalogue import catalogue

TEACHER = "wrn_16_2"
STEP_GOAL, READING_GOAL = 1.03, 0.03
LIGHT = ("kd", "logits", "kda", "kda both", "icd", "srm kd")  # whose whole step is to cost no more than the goal
STUDENTS = ("resnet8",), ("resnet8", "resnet20", "wrn_16_2")  # in the short form and in the full one
ROUNDS = {True: (15, 101), False: (5, 11)}  # of what is light, whose goal lies close to 1, and of the rest
SHORT = ("kd", "kda", "kda both", "icd")


def figures(setting: Setting) -> Iterator[Figure]:
    """A figure of every method and stage for each student."""
    chosen = methods() if setting.full else {name: of for name, of in methods().items() if name in SHORT}
    students = setting.pick(*STUDENTS)
    made = filled(setting.folder / "work", TEACHER, students[0], ())
    for student in students:
        suiting = {name: of for name, of in chosen.items() if suits(of, student)}
        add_targets(made, student, tuple({of.name: of for of in suiting.values()}.values()))
        plain = Steps(make_job(made, student, (), setting.device, setting.precision), count=in_a_row(setting))
        for name, of in suiting.items():
            yield from stages(setting, made, student, name, of, plain)


def methods() -> dict[str, Method]:
    """Every method, and KDA with both layers, which is the paper's combination; what fits learn is of no account."""
    both = method("kda").with_options({"layers": "before_fc,after_fc"})
    return {**{name: briefly(name) for name in METHODS}, "kda both": both}


def briefly(name: str) -> Method:
    """A method whose fits, if it has any that are trained, pass over the images twice."""
    return method(name).with_options({"passes": "2"} if name in ("srm", "ft") else {})


def suits(of: Method, student: str) -> bool:
    """Whether a method accepts the pair of networks."""
    (row,) = catalogue((of,), student, TEACHER, CLASSES)
    return "refuses" not in row


def in_a_row(setting: Setting) -> int:
    """The steps that are timed together: on CUDA the host is ahead of the device, as in a training."""
    return 20 if setting.device.type == "cuda" else 1


def stages(setting: Setting, made: Workspace, student: str, name: str, of: Method, plain: Steps) -> Iterator[Figure]:
    """The figures of the stages of one method; one that has no term of the method is a plain step and left out."""
    try:
        job: Job = make_job(made, student, (of,), setting.device, setting.precision)
    except UsageError:  # a stage-wise method that does not suit the networks after all
        return
    for place, stage in enumerate(job.stages):
        if stage.weights is None or stage.weights:
            title = name if len(job.stages) == 1 else f"{name} {stage.name}"
            own = make_job(made, student, (of,), setting.device, setting.precision)
            yield priced(setting, f"{student}, {title}", title in LIGHT, plain, Steps(own, place, plain.count))


def priced(setting: Setting, what: str, light: bool, plain: Steps, own: Steps) -> Figure:
    """The figure of one stage: of the whole step, or of the time for which it waits for targets."""
    assert own.source is not None
    own()
    own.source.taken()  # the first step reads the slices, which the middle of an epoch finds there
    rounds = setting.pick(*ROUNDS[light])
    times = alternating({"plain": plain, "step": own}, rounds, setting.device, warm=2)
    middle = medians(times)
    step, read = ratio(times, "step", "plain"), own.source.taken() * plain.count / middle["plain"]
    details = {
        "plain_seconds": middle["plain"] / plain.count,
        "step_seconds": middle["step"] / plain.count,
        "step_over_plain": step,
        "reading_over_plain": read,
        "arithmetic_over_plain": step - 1 - read,
        "rounds": rounds,
    }
    if light:
        return Figure("steps", f"{what}: step / plain", step, goal=STEP_GOAL, details=details)
    return Figure("steps", f"{what}: waiting / plain", read, goal=READING_GOAL, details=details)
