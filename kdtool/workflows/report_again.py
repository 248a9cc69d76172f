"""The section of a report that says how to run everything again, and what it ran on.

Left out: data sets, which every command names by itself.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from kdtool.analysis.kept import Result, options_of
from kdtool.analysis.results import Group, Run
from kdtool.engine.lacking import option_text
from kdtool.methods import METHODS
from kdtool.workflows import page
from kdtool.workflows.report_content import Content

LAYERS = {"before_fc", "after_fc"}  # that an analysis takes where none is named


def again(shown: Content) -> list[str]:
    """Command lines, versions and digests."""
    runs = shown.runs
    facts = [(f"teacher {run.teacher_network}, SHA-256", sha256) for sha256, run in shown.teachers.items()]
    caches = dict.fromkeys(run.cache_identity for run in runs)
    facts += [("cache, identity", identity) for identity in caches if identity]
    machines = dict.fromkeys(", ".join(f"{key} {value}" for key, value in run.environment.items()) for run in runs)
    facts += [("versions and device", machine) for machine in machines]
    analysed = analyses(shown)
    weights = [(f"{run.folder.name}, weights, SHA-256", run.weights_sha256) for run in runs if run.command != "teach"]
    return [
        page.paragraph(
            "In another working folder, with a copy of every config.toml; the identity below tells whether the cache "
            "has become the same."
        ),
        page.commands([*trainings(shown), "kdtool report"]),
        page.details("The commands of all analyses", page.commands(analysed)) if analysed else "",
        page.definitions(facts),
        page.details("What came out, and the options of every method", page.definitions([*weights, *options(shown)])),
    ]


def trainings(shown: Content) -> list[str]:
    """The command lines of all runs, and between teachers and students those that make the cache."""
    teachers, students = ([run for run in shown.runs if (run.command == "teach") == taught] for taught in (True, False))
    return [*map(training, teachers), *extracts(shown.students), *map(training, students)]


def training(run: Run) -> str:
    """The command line that runs it again."""
    return f"kdtool {run.command} --config {shlex.quote(f'{folder_of(run)}/config.toml')}"


def folder_of(run: Run) -> str:
    """Where the run lies, seen from the working folder."""
    return f"runs/{run.folder.name}" if run.folder.parent.name == "runs" else run.folder.name


def extracts(students: Sequence[Group]) -> list[str]:
    """The commands that make the caches: one for all methods with their defaults, one for every other choice.

    Students without a teacher read what each of them stores; of a cache that has no others, a plain one makes it.
    """
    first = [group.runs[0] for group in students]
    taught = {run.cache_identity for run in first if run.methods}
    wanted: dict[str, list[Run]] = {}
    for run in (run for run in first if run.methods or run.cache_identity not in taught):
        place = ["--cache", str(run.config["cache"])] if "cache" in run.config else []
        asked = settings(run) if run.methods else ["--no-srm"]
        wanted.setdefault(shlex.join([*asked, *run.cache_options, *place]), []).append(run)
    lines = []
    for words, runs in sorted(wanted.items()):
        methods = [f"--for {shlex.quote(name)}" for name in sorted({name for run in runs for name in references(run)})]
        networks = [f"--student {shlex.quote(name)}" for name in sorted({run.network for run in runs if run.methods})]
        views = f"--views {max(run.views for run in runs)}"
        lines.append(" ".join(filter(None, ("kdtool extract", *methods, words, *networks, views))))
    return lines


def references(run: Run) -> list[str]:
    """What finds the run's methods: their names, or for methods of the user's own where they lie."""
    asked = [run.config.get("method", "none"), *run.config.get("with", [])]
    return [str(name) for name in asked if name != "none"]


def settings(run: Run) -> list[str]:
    """The words of the options in which a run's methods differ from their defaults, and of layers that were named."""
    found = [word for name, path in run.config.get("taps", {}).items() for word in ("--tap", f"{name}={path}")]
    for key, value in run.options.items():
        method, _, name = key.partition(".")
        if method not in METHODS or plain(METHODS[method].options().get(name)) != value:
            found += ["--set", f"{key}={option_text(value)}"]
    return found


def plain(value: Any) -> Any:
    """A default as it comes back from a file."""
    return list(value) if isinstance(value, tuple) else value


def analyses(shown: Content) -> list[str]:
    """The commands of all analyses and probes that are shown."""
    asked: dict[str, list[str]] = {}
    for run in (run for group in shown.students for run in group.runs):
        for analysis, results in run.analysed.results.items():
            layers: dict[str, list[str]] = {}
            for result in results:
                layers.setdefault(shlex.join(words_of(analysis, result)), []).append(result["layer"])
            for words, found in layers.items():
                named = [] if analysis == "correlation" or set(found) == LAYERS else list(dict.fromkeys(found))
                told = shlex.join(word for layer in named for word in ("--layer", layer))
                asked.setdefault(" ".join(filter(None, (words, told))), []).append(shlex.quote(folder_of(run)))
    probes = [f"{folder_of(run)}/{probe.folder}" for run in shown.runs for probe in run.analysed.probes]
    return [
        *(" ".join((words, *folders)) for words, folders in asked.items()),
        *(f"kdtool analyze probe --config {shlex.quote(f'{path}/config.toml')}" for path in probes),
    ]


def words_of(analysis: str, result: Result) -> list[str]:
    """The words that ask for a result, but its layer."""
    words = ["kdtool", "analyze", analysis]
    words += ["--part", result["part"]] if result["part"] != "train" else []
    for name, value in options_of(result).items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name}"] if one is True else [f"--{name}", str(one)]
    return words


def options(shown: Content) -> list[tuple[str, str]]:
    """The options of every group's methods."""
    told = [(shown.title(group), group.runs[0].options) for group in shown.students]
    return [(title, ", ".join(f"{key} = {value}" for key, value in found.items())) for title, found in told if found]
