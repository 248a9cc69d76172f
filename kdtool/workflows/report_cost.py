"""The section of a report that says what the runs took, and what a live teacher would have added.

The teacher's seconds are computed, not timed live: answers that the training looked at, times what an answer took when
the cache was filled. Left out: the fits of an extract, and its clean images.
"""

from collections.abc import Sequence

from kdtool.analysis.results import Group, Run
from kdtool.progress import counted
from kdtool.workflows import page
from kdtool.workflows.report_content import Content, duration, mean, mean_duration, size

COLUMNS = (
    "total",
    "an epoch",
    "training",
    "data",
    "evaluation",
    "a live teacher would add",
    "cache",
    "as float32 maps",
)


def cost(shown: Content) -> list[str]:
    """Seconds by part, the bytes of cache that were read, and both beside a teacher that is asked in every step."""
    rows = [page.TableRow(shown.title(group), cells(group), shown.swatch(group)) for group in shown.groups]
    return [
        page.paragraph(saved(shown), "headline"),
        page.table("run", COLUMNS, rows),
        page.paragraph(notes(shown)),
    ]


def cells(group: Group) -> list[str]:
    """The row of a group: means over its runs, and the bytes of one."""
    run = group.runs[0]
    total, *parts = (seconds(group, part) for part in ("total", "train", "data", "evaluate"))
    epoch = mean_duration(group.values(lambda run: run.seconds["total"] / len(run.epochs) if run.epochs else None))
    live = mean(group.values(lambda run: run.live_seconds))
    taps = size(run.tap_bytes) if run.cache_bytes else ""
    return [total, epoch, *parts, duration(live) if live else "", size(run.cache_bytes), taps]


def seconds(group: Group, part: str) -> str:
    """The mean seconds of one part of the group's runs."""
    return mean_duration(group.values(lambda run: run.seconds.get(part)))


def taught(shown: Content) -> list[Run]:
    """The runs whose cost beside a live teacher is known and more than nothing."""
    return [run for run in shown.runs if run.live_seconds]


def saved(shown: Content) -> str:
    """What all runs took, what a live teacher would have added, and what the cache took once."""
    runs = taught(shown)
    if not runs:
        return ""
    total, live = sum(run.seconds["total"] for run in runs), sum(run.live_seconds or 0 for run in runs)
    every = (
        "The run that learned from a teacher" if len(runs) == 1 else f"The {len(runs)} runs that learned from a teacher"
    )
    return (
        f"{every} took {duration(total)}. A live teacher would have added {duration(live)} (computed, not timed live); "
        f"its answers for the cache, given once, took about {duration(extract_seconds(runs))}."
    )


def extract_seconds(runs: Sequence[Run]) -> float:
    """What the views of all training images took that these runs walk, once for every cache."""
    found: dict[str | None, float] = {}
    for run in runs:
        once = run.views * (run.samples or 0) * (run.teacher_seconds or 0)
        found[run.cache_identity] = max(once, found.get(run.cache_identity, 0.0))
    return sum(found.values())


def notes(shown: Content) -> str:
    """What the columns are, and where the teacher's seconds come from."""
    said = (
        "Means over runs. data: waiting for images and for the teacher's answers. cache: what the run's targets take "
        "in the views that it walks; a student never runs its teacher."
    )
    runs = taught(shown)
    if any(run.tap_bytes for run in shown.runs):
        said += " as float32 maps: the teacher's layers that these targets stand for, stored whole."
    if runs:
        answers = sum(run.answers or 0 for run in runs)
        each = sorted({duration(run.teacher_seconds or 0) for run in runs})
        said += (
            f" The live teacher's time is computed: {counted(answers, 'answer')} in the epochs that compare with the "
            f"teacher, at {' or '.join(each)} each. That was measured when the cache was filled, on the machine that "
            "filled it, and includes the encoding of all that was stored."
        )
    return said
