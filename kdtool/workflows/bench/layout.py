"""The plain step of a student in channels-last memory beside the same in contiguous memory, in both precisions.

What a device does not multiply natively is measured all the same: `--precision` may ask for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kdtool.engine.device import PRECISIONS
from kdtool.workflows.bench.jobs import Steps, filled, make_job
from kdtool.workflows.bench.measured import Figure, Setting, alternating, medians, ratio
from kdtool.workflows.bench.steps import TEACHER, in_a_row

SHORT = ("resnet8",)
FULL = ("resnet8", "resnet20", "wrn_16_2", "resnet8x4", "vgg8", "mobilenetv2", "shufflev1", "resnet18")
ROUNDS = 5, 7  # in the short form and in the full one


def figures(setting: Setting) -> Iterator[Figure]:
    """Two figures for each student."""
    made = filled(setting.folder / "work", TEACHER, SHORT[0], ())
    for student in setting.pick(SHORT, FULL):
        for precision in PRECISIONS[1:]:
            work = {}
            for name in ("channels_last", "contiguous_format"):
                job = make_job(made, student, (), setting.device, precision)
                job.student.to(memory_format=getattr(torch, name))
                work[name] = Steps(job, count=in_a_row(setting))
            times = alternating(work, setting.pick(*ROUNDS), setting.device, warm=2)
            value = ratio(times, "channels_last", "contiguous_format")
            yield Figure("layout", f"{student}, {precision}: step", value, details={"seconds": medians(times)})
