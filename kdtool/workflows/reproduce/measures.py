"""The analyses that a recipe may ask for of its students, each with its defaults."""

from collections.abc import Callable
from dataclasses import replace

from kdtool.analysis import analyses
from kdtool.analysis.landmarks import Plan
from kdtool.analysis.pairs import Asked
from kdtool.engine.folder import Workspace
from kdtool.progress import Progress

# name -> an analysis of one student
ANALYSES: dict[str, Callable[[Workspace, Asked, Progress], object]] = {
    "gram-gap": lambda workspace, asked, progress: analyses.gram_gap(workspace, asked, analyses.GapPlan(), progress),
    "landmarks": lambda workspace, asked, progress: analyses.landmarks(workspace, asked, Plan(), progress),
    "correlation": lambda workspace, asked, progress: analyses.correlation(
        workspace,
        replace(asked, part="test"),
        None,
        progress,  # as ICD's figure
    ),
    "spectrum": lambda workspace, asked, progress: analyses.spectrum(workspace, asked, Plan(), 1, progress),
    "bounds": lambda workspace, asked, progress: analyses.bounds(workspace, asked, Plan(), None, progress),
    "similarity": lambda workspace, asked, progress: analyses.similarity(workspace, asked, 4.0, 0, progress),
}
