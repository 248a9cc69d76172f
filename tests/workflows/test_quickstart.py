"""The quickstart at its smallest: all five steps, the students that the README shows, and a page that holds them."""

from pathlib import Path

import pytest

from kdtool.progress import Silent, StopRequest
from kdtool.workflows.quickstart import Quickstart, quickstart, students


def test_it_runs_from_the_teacher_to_the_report(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    sizes = Quickstart("resnet8", "resnet8", teacher_epochs=1, epochs=2, views=1, batch=256)
    page = quickstart(tmp_path, sizes, Silent(), StopRequest())
    runs = sorted(path.parent.parent.name for path in (tmp_path / "runs").glob("*/analysis/gram-gap.json"))
    assert len(runs) == 5
    assert page == tmp_path / "report.html"
    assert all(run in page.read_text() for run in runs)
    assert quickstart(tmp_path, sizes, Silent(), StopRequest()) == page  # nothing is run again


def test_its_students() -> None:
    assert [[method.name for method in found] for found in students()] == [[], ["kd"], ["kda"], ["kda"], ["kda"]]
    assert [found[0].student_taps(SHAPES, SHAPES) for found in students()[2:]] == [
        ("before_fc",),
        ("after_fc",),
        ("before_fc", "after_fc"),
    ]


SHAPES = {"before_fc": (8,), "after_fc": (10,)}
