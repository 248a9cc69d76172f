"""Every analysis, over the pairs that were asked for: plain results, kept in the folders of the runs with their plots.

Under several ranks all of them compute and rank 0 writes. Left out: the mathematics (gram, bounds, spectrum, landmarks,
correlation, similarity) and how plots look (figures).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.analysis import bounds as bounding
from kdtool.analysis import correlation as correlating
from kdtool.analysis import figures, gram
from kdtool.analysis import spectrum as spectra
from kdtool.analysis.compared import open_pairs, prepared, scratch, teacher_of
from kdtool.analysis.features import Features, Watched, samples
from kdtool.analysis.gram import LANDMARKS
from kdtool.analysis.kept import Result, differing, keep, read_results, results_path
from kdtool.analysis.kernels import Kernel
from kdtool.analysis.landmarks import Followed, Plan, landmark_sets
from kdtool.analysis.nystrom import LandmarkSet
from kdtool.analysis.pairs import Asked, Pairs, run_names
from kdtool.analysis.predictions import Predictions, check_temperature, predictions
from kdtool.analysis.rsa import RSA, rsa
from kdtool.analysis.similarity import LinearCKA, linear_cka
from kdtool.engine.folder import Workspace
from kdtool.engine.job import check_seed
from kdtool.engine.keeping import kept
from kdtool.engine.ranks import Alone, Ranks
from kdtool.errors import UsageError
from kdtool.progress import Progress, Silent

Found = tuple[str, Any]  # name of a student, its results in a layer

ALONE, SILENT = Alone(), Silent()
PATIENCE = 60.0  # seconds for which results wait for those of another process
KERNEL = ("gamma", "degree", "constant")  # fields of a kernel
STEMS = {"similarity": ("similarity", "reliability")}  # with which names of plots begin, else the analysis


@dataclass(frozen=True)
class GapPlan:
    """How `gram_gap` compares, in the words of `kdtool.analysis.gram.gram_gaps`.

    kernel: linear, cosine, rbf or polynomial. algorithm: "auto" takes the exact one where it can be had. landmarks,
    seed: of the Nystrom approximation. by_class: the loss by class too.
    """

    kernel: Kernel = field(default_factory=Kernel)
    algorithm: str = "auto"
    landmarks: int = LANDMARKS
    by_class: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        gram.check(self.kernel, self.algorithm, self.landmarks)
        check_seed(self.seed)

    @property
    def options(self) -> dict[str, Any]:
        """All of it, by the names of the command line's options."""
        kernel = {"kernel": self.kernel.name, **{name: getattr(self.kernel, name) for name in KERNEL}}
        nystrom = {"algorithm": self.algorithm, "landmarks": self.landmarks, "seed": self.seed}
        return {**kernel, **nystrom, "by-class": self.by_class}


def gram_gap(
    workspace: Workspace,
    asked: Asked,
    plan: GapPlan = GapPlan(),
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> list[Result]:
    """The kernel transfer loss ||K_T - K_S|| / ||K_T|| of every student in every layer, over all images of a part.

    A result says its "run", "layer" and "part", and holds the fields of `kdtool.analysis.gram.GramGap`, "loss" among
    them, and its "scale" and "alignment". Results and plots are kept in the folder of every run, below analysis/.
    """

    def of(pairs: Pairs, layer: str) -> Iterable[Found]:
        if plan.by_class and pairs.labels is None:
            raise UsageError("--by-class needs labels; give them with --labels LABELS.npy")
        gaps = gram.gram_gaps(
            pairs.of(layer),
            pairs.teacher[layer],
            kernel=plan.kernel,
            algorithm=plan.algorithm,
            labels=pairs.labels if plan.by_class else None,
            landmarks=plan.landmarks,
            seed=plan.seed,
            ranks=ranks,
            progress=progress,
        )
        return ((name, named(gap, pairs.class_names)) for name, gap in gaps.items())

    return of_layers(workspace, asked, "gram-gap", differing(plan.options, GapPlan().options), of, progress, ranks)


def named(gap: gram.GramGap, class_names: tuple[str, ...]) -> gram.GramGap:
    """The gap, its classes with their names."""
    return replace(gap, by_class=gap.by_class and replace(gap.by_class, class_names=class_names))


def plain(result: Any) -> dict[str, Any]:
    """A result as JSON."""
    return result.plain() if isinstance(result, gram.GramGap) else asdict(result)


def of_layers(
    workspace: Workspace,
    asked: Asked,
    analysis: str,
    options: Mapping[str, Any],
    of: Callable[[Pairs, str], Iterable[Found]],
    progress: Progress,
    ranks: Ranks,
) -> list[Result]:
    """The results of every student in every layer; `of` gives those of a layer, one student after the other.

    options: that were asked for, other than the defaults, by their names on the command line.
    A student has one result in a layer, or a list of them. What was found before one that is refused is kept.
    """
    found: list[Result] = []
    with open_pairs(workspace, asked, progress, ranks) as opened:
        folders = {name: student.folder for name, student in opened.students.items() if student.folder}
        for folder in folders.values():
            read_results(folder, analysis)  # what is damaged is told of before anything is computed
        pairs = replace(
            opened, teacher={layer: Watched(side, progress, analysis) for layer, side in opened.teacher.items()}
        )
        try:
            for layer in pairs.layers:
                students = "1 student" if len(pairs.students) == 1 else f"{len(pairs.students)} students"
                progress.note(f"{analysis}: {layer} of {students} ({pairs.part})")
                for name, results in of(pairs, layer):
                    listed = results if isinstance(results, list) else [results]
                    about = {**pairs.about(name, layer), "options": {**options, **read_from(workspace, asked)}}
                    found += [{**about, **plain(result)} for result in listed]
        except UsageError:
            if ranks.rank == 0:
                write(analysis, folders, found, progress)
            raise
    if ranks.rank == 0:
        write(analysis, folders, found, progress)
    return found


def read_from(workspace: Workspace, asked: Asked) -> dict[str, Any]:
    """The options that say where the teacher's features are from, where it is not the folder's own cache."""
    found = {"fresh": True} if asked.fresh else {}
    return {**found, **({"cache": workspace.named_cache} if workspace.named_cache else {})}


def each(pairs: Pairs, layer: str, one: Callable[[Features], Any]) -> Iterator[Found]:
    """What `one` finds of every student in a layer; what it refuses is told with the student's name."""
    for name, student in pairs.of(layer).items():
        try:
            found = one(student)
        except UsageError as error:
            raise UsageError(f"{layer} of {name}: {error}") from error
        yield name, found


def bounds(
    workspace: Workspace,
    asked: Asked,
    plan: Plan = Plan(),  # noqa: B008 - it is frozen
    rank: int | None = None,
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> list[Result]:
    """KDA's bounds for every set of landmarks of the plan, next to the true gap."""

    def of(pairs: Pairs, layer: str) -> Iterable[Found]:
        teacher = pairs.teacher[layer]
        sets: dict[str, LandmarkSet] = {}

        def one(student: Features) -> Any:
            sets.update(landmark_sets(student, teacher, pairs.labels, plan, sets))
            gap = gram.gram_gap(student, teacher, ranks=ranks)
            return [bounding.bounds(student, teacher, known, rank, gap=gap, ranks=ranks) for known in sets.values()]

        return each(pairs, layer, one)

    options = differing({**plan.options, "rank": rank}, {**Plan().options, "rank": None})
    return of_layers(workspace, asked, "bounds", options, of, progress, ranks)


def spectrum(
    workspace: Workspace,
    asked: Asked,
    plan: Plan = Plan(),  # noqa: B008 - it is frozen
    draws: int = spectra.DRAWS,
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> list[Result]:
    """Eigenvalues of the kernels and of the landmarks' W, and Nystrom errors as landmarks grow."""

    def of(pairs: Pairs, layer: str) -> Iterable[Found]:
        teacher = pairs.teacher[layer]
        sets: dict[str, LandmarkSet] = {}
        clusters: dict[int, LandmarkSet] = {}

        def one(student: Features) -> Any:
            sets.update(landmark_sets(student, teacher, pairs.labels, plan, sets))
            return spectra.spectrum(
                student,
                teacher,
                list(sets.values()),
                pairs.labels,
                draws=draws,
                seed=plan.seed,
                strategies=plan.strategies,
                clusters=clusters,
                ranks=ranks,
            )

        return each(pairs, layer, one)

    options = differing({**plan.options, "draws": draws}, {**Plan().options, "draws": spectra.DRAWS})
    return of_layers(workspace, asked, "spectrum", options, of, progress, ranks)


def correlation(
    workspace: Workspace,
    asked: Asked,
    images: int | None = None,
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> list[Result]:
    """Both published forms of the class correlation of logits.

    images: of the first form, 0 for all; None for the first 256 as published, or all where there are fewer.
    """

    def of(pairs: Pairs, layer: str) -> Iterable[Found]:
        teacher = pairs.teacher[layer]
        first = min(correlating.PUBLISHED_IMAGES, samples(teacher, "teacher")) if images is None else images

        def one(student: Features) -> Any:
            found = [correlating.standardised(student, teacher, images=first or None)]
            if pairs.labels is not None:
                found.append(correlating.class_means(student, teacher, pairs.labels))
            return found

        return each(pairs, layer, one)

    options = differing({"images": images}, {"images": None})
    return of_layers(workspace, replace(asked, layers=("after_fc",)), "correlation", options, of, progress, ranks)


@dataclass(frozen=True)
class Similarity:
    """What `similarity` measures in one layer; predictions of logits only."""

    cka: LinearCKA
    rsa: RSA
    predictions: Predictions | None


def similarity(
    workspace: Workspace,
    asked: Asked,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> list[Result]:
    """Linear CKA and RSA in every layer, and of after_fc agreement, KL and calibration."""
    check_seed(seed)
    check_temperature(temperature)

    def of(pairs: Pairs, layer: str) -> Iterable[Found]:
        teacher = pairs.teacher[layer]

        def one(student: Features) -> Any:
            said = None
            if layer == "after_fc":
                said = predictions(student, teacher, pairs.labels, temperature=temperature)
            cka = linear_cka(student, teacher, ranks=ranks)
            return Similarity(cka, rsa(student, teacher, seed=seed, ranks=ranks), said)

        return each(pairs, layer, one)

    options = differing({"temperature": temperature, "seed": seed}, {"temperature": 1.0, "seed": 0})
    return of_layers(workspace, asked, "similarity", options, of, progress, ranks)


def landmarks(
    workspace: Workspace,
    asked: Asked,
    plan: Plan = Plan(),  # noqa: B008 - it is frozen
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> list[Result]:
    """Estimates from landmarks and the true loss over the training of runs that kept their weights."""
    if any(path.suffix == ".npy" for path in asked.students) or asked.teacher or asked.labels:
        raise UsageError(
            "landmarks are followed over the training of a run: name its folder, without files of features or labels"
        )
    found: list[Result] = []
    folders: dict[str, Path] = {}
    with ExitStack() as stack:
        basis, taps, runs = prepared(workspace, asked, progress, ranks)
        teacher, source = teacher_of(workspace, asked, basis, taps, runs[0], stack)
        for name, run in zip(run_names([run.folder for run in runs]), runs, strict=True):
            folders[name] = run.folder
            read_results(run.folder, "landmarks")
            weights = kept(run.folder)
            if not weights:
                raise UsageError(
                    f"{run.folder} kept no weights of its training; distil with --keep-weights 1 (every epoch) into "
                    "another --run"
                )
            said = {tap: Followed(teacher[tap], basis.labels, plan) for tap in taps}
            progress.note(f"landmarks: {len(weights)} epochs of {name} ({asked.part})")
            for known in weights:
                with scratch(workspace.folder, ranks) as folder:
                    trained = functools.partial(run.trained, run.folder / known.file, known.sha256)
                    features = basis.features(folder, "student", known.sha256, run.shapes, taps, trained)
                    for tap in taps:
                        said[tap].add(known.stage, known.epoch, features[tap])
            options = {**differing(plan.options, Plan().options), **read_from(workspace, asked)}
            about = {"run": name, "part": asked.part, "weights_sha256": run.sha256, "options": options}
            found += [
                {**about, "layer": tap, "teacher_features": source[tap], **asdict(said[tap].result())} for tap in taps
            ]
    if ranks.rank == 0:
        write("landmarks", folders, found, progress)
    return found


def write(analysis: str, folders: Mapping[str, Path], found: Sequence[Result], progress: Progress) -> None:
    """Keeps the results of every run in its folder, with the plots of all that is kept there."""
    drawable = True
    for name, folder in folders.items():
        place = results_path(folder, analysis)
        own = [result for result in found if result["run"] == name]
        if not own:
            continue
        with files.lock(place.with_name("lock"), "keeping results in", PATIENCE):
            files.sweep(place.parent)
            results = keep(folder, analysis, own)
            drawable = drawable and draw(analysis, results, place.parent, progress)


def draw(analysis: str, results: Sequence[Result], folder: Path, progress: Progress) -> bool:
    """Draws what is kept, and removes plots of what is not any more; tells where nothing can be drawn."""
    try:
        drawn = figures.drawn(analysis, results)
    except UsageError as error:  # without matplotlib
        progress.note(f"no plots were drawn: {error}")
        return False
    for title, figure in drawn.items():
        figures.save(figure, folder / f"{title}.svg")
    for path in folder.glob("*.svg"):
        if path.stem not in drawn and path.stem.startswith(STEMS.get(analysis, (analysis,))):
            path.unlink()
    return True
