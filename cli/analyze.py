"""`kdtool analyze`: what was transferred. Every analysis but the probe takes the same options about its input."""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, print_json, print_line, print_table
from kdtool.cli.probe import probe

if TYPE_CHECKING:
    from kdtool.analysis.kept import Result
    from kdtool.analysis.landmarks import Plan
    from kdtool.analysis.pairs import Asked
    from kdtool.engine.folder import Workspace
    from kdtool.engine.ranks import Ranks
    from kdtool.progress import Progress

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def analyze() -> None:
    """Measure what a student took over.

    Example: kdtool analyze gram-gap
    """


@dataclass
class Common:
    """The options of every analysis."""

    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=complete.runs,
            help="Folders of runs, or .npy files of features.  [default: the newest student]",
        ),
    ] = None
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="TAP",
            autocompletion=complete.taps,
            help="Layer; repeat.  [default: before_fc and after_fc]",
        ),
    ] = None
    part: Annotated[
        str,
        typer.Option(
            "--part", metavar="PART", autocompletion=complete.parts, help="train, validation or test, un-augmented."
        ),
    ] = "train"
    fresh: Annotated[bool, typer.Option("--fresh", help="Run the teacher instead of reading the cache.")] = False
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher", metavar="FILE.npy", help="The teacher's features, with students that are .npy files."
        ),
    ] = None
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE.npy", help="The labels of such features.")
    ] = None
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot of all students (.svg, .png or .pdf).")
    ] = None
    device: o.Device = None
    data_folder: o.DataFolder = None
    cache: o.CachePath = None
    folder: o.Folder = Path()
    json: o.Json = False
    quiet: o.Quiet = False

    def asked(self, workspace: "Workspace") -> "Asked":
        """The pairs that these options ask for."""
        from kdtool.analysis.compared import newest_run
        from kdtool.analysis.pairs import Asked

        return Asked(
            students=tuple(self.runs or [newest_run(workspace)]),
            layers=tuple(self.layers or ("before_fc", "after_fc")),
            part=self.part,
            fresh=self.fresh,
            device=self.device or "auto",
            data_folder=str(self.data_folder) if self.data_folder else None,
            teacher=self.teacher,
            labels=self.labels,
        )


Columns = dict[str, Callable[["Result"], str]]
Compute = Callable[["Workspace", "Asked", "Progress", "Ranks"], "list[Result]"]


def analysis(name: str, without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command that takes its own options and, as its first argument, the `Common` ones.

    without: options of `Common` that mean nothing there.
    """

    def register(command: Callable[..., None]) -> Callable[..., None]:
        kinds = get_type_hints(Common, include_extras=True) | get_type_hints(command, include_extras=True)
        own = {name: parameter.default for name, parameter in list(inspect.signature(command).parameters.items())[1:]}
        defaults = {field.name: field.default for field in fields(Common) if field.name not in without}
        leading = [name for name in ("runs", "layers", "part") if name in defaults]
        shown = {name: kinds[name] for name in (*leading, *own, *defaults)}
        given = {**own, **defaults}

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(Common(**{key: values.pop(key) for key in defaults}), **values)

        keyword = inspect.Parameter.KEYWORD_ONLY
        run.__annotations__ = shown
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(key, keyword, default=given[key], annotation=kind) for key, kind in shown.items()]
        )
        del run.__wrapped__
        return app.command(name)(run)

    return register


def finish(
    name: str,
    common: Common,
    compute: Compute,
    title: str,
    columns: Columns,
    remarks: Callable[["Result"], list[str]] = lambda result: [],
) -> None:
    """Computes, and shows what came out; under torchrun rank 0 alone speaks. remarks: lines about a result."""
    from kdtool.analysis.figures import check_ending, save_all
    from kdtool.engine.ranks import own_rank, ranks

    if common.plot:
        check_ending(common.plot)
    workspace = o.open_workspace(common.folder, common.cache)
    with ExitStack() as stack:
        shown = stack.enter_context(Shown(common.quiet or own_rank() > 0))
        asked = common.asked(workspace)
        results = compute(workspace, asked, shown, stack.enter_context(ranks()))
    if own_rank() > 0:
        return
    if common.plot:
        save_all(name, results, common.plot)
    if common.json:
        print_json({"results": results})
        return
    for heading, key, rows in tables(results):
        show(f"{title} of {heading}", {key: operator.itemgetter(key), **columns}, rows)
        for line in (line for result in rows for line in remarks(result)):
            print_line(line)
    kept = [path / "analysis" / f"{name}.json" for path in dict.fromkeys(asked.students) if path.is_dir()]
    kept = [path for path in kept if path.exists()]
    for path in kept[:1]:
        print_line(f"kept in {path}" + (f" and {len(kept) - 1} more" if len(kept) > 1 else ""))


def tables(results: "list[Result]") -> "list[tuple[str, str, list[Result]]]":
    """(heading, first column, results) of every table: one student's layers, or the students of every layer."""
    if len({result["run"] for result in results}) == 1:
        return [(f"{results[0]['run']} ({results[0]['part']})", "layer", results)]
    layers = dict.fromkeys(result["layer"] for result in results)
    return [
        (f"{layer} ({results[0]['part']})", "run", [result for result in results if result["layer"] == layer])
        for layer in layers
    ]


def show(title: str, columns: Columns, results: "list[Result]") -> None:
    """A table without the columns in which nothing stands."""
    cells = {name: [cell(result) for result in results] for name, cell in columns.items()}
    held = {name: column for name, column in cells.items() if any(column)}
    print_table(title, list(held), list(zip(*held.values(), strict=True)))


def number(value: float | None, digits: int = 4) -> str:
    """A number in a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


Gamma = Annotated[
    float | None,
    typer.Option("--gamma", metavar="NUMBER", help="Of rbf and polynomial.  [default: from each side's own scale]"),
]


@analysis("gram-gap")
def gram_gap(
    common: Common,
    kernel: Annotated[
        str,
        typer.Option(
            "--kernel", metavar="KERNEL", autocompletion=complete.kernels, help="linear, cosine, rbf or polynomial."
        ),
    ] = "linear",
    gamma: Gamma = None,
    degree: Annotated[int, typer.Option("--degree", metavar="N", help="Of the polynomial kernel.")] = 3,
    constant: Annotated[float, typer.Option("--constant", metavar="NUMBER", help="Of the polynomial kernel.")] = 1.0,
    algorithm: Annotated[
        str,
        typer.Option(
            "--algorithm",
            metavar="NAME",
            autocompletion=complete.algorithms,
            help="auto, moments, aligned, blocked (entry by entry) or nystrom.",
        ),
    ] = "auto",
    landmarks: Annotated[int, typer.Option("--landmarks", metavar="N", help="Landmarks of nystrom.")] = 1000,
    by_class: Annotated[bool, typer.Option("--by-class", help="Within and between classes, too.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of what nystrom draws.")] = 0,
) -> None:
    """Kernel transfer loss over all images of a part.

    ||K_T - K_S|| / ||K_T|| in the Frobenius norm, with K the matrix of inner products of all pairs of images, or of
    another kernel. Exact, save for nystrom, which says how sure it is. Scale is ||K_S|| / ||K_T||, alignment the cosine
    of both: a loss is loss^2 = scale^2 + 1 - 2 scale alignment.

    Example: kdtool analyze gram-gap runs/* --by-class
    """
    from kdtool.analysis.analyses import GapPlan
    from kdtool.analysis.analyses import gram_gap as compute
    from kdtool.analysis.kernels import Kernel

    plan = GapPlan(Kernel(kernel, gamma, degree, constant), algorithm, landmarks, by_class, seed)
    columns: Columns = {
        "images": lambda result: f"{result['samples']:,}",
        "loss": lambda result: f"{result['loss']:.6f}",
        "scale": lambda result: f"{result['scale']:.4f}",
        "alignment": lambda result: f"{result['alignment']:.4f}",
    }
    if plan.kernel.name in ("rbf", "polynomial"):
        columns["95 % sure"] = sure
    if by_class:
        columns["within"] = lambda result: f"{100 * result['by_class']['within_share']:.1f} %"
        columns["worst class"] = worst_class
    name = "kernel transfer loss" if plan.kernel.name == "linear" else f"{plan.kernel.name} kernel transfer loss"
    finish("gram-gap", common, lambda *given: compute(given[0], given[1], plan, *given[2:]), name, columns, too_few)


def sure(result: "Result") -> str:
    """Where the exact loss lies."""
    if result["interval"]:
        return " to ".join(f"{end:.4f}" for end in result["interval"])
    return "not known" if result["algorithm"] == "nystrom" else "exact"


def too_few(result: "Result") -> list[str]:
    """A line where Nystrom's loss lies beside its interval."""
    low, high = result["interval"] or (-math.inf, math.inf)
    if low <= result["loss"] <= high:
        return []
    return [f"{result['layer']}: the loss is beside its interval: {result['nystrom_landmarks']} landmarks are too few"]


def worst_class(result: "Result") -> str:
    """The class in whose rows most of the difference lies."""
    gaps = result["by_class"]
    worst = max(gaps["classes"], key=lambda gap: gap["share"])
    name = gaps["class_names"][worst["label"]] if gaps["class_names"] else worst["label"]
    return f"{name} ({100 * worst['share']:.1f} %)"


Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        autocompletion=complete.landmarks,
        help="Landmarks: class, random or kmeans; repeat.  [default: all three]",
    ),
]
Count = Annotated[
    int | None,
    typer.Option("--count", metavar="N", help="Random and k-means landmarks.  [default: one for each class]"),
]
PerClass = Annotated[
    int | None, typer.Option("--per-class", metavar="N", help="k-means within every class, so many centres each.")
]
DrawSeed = Annotated[int, typer.Option("--seed", metavar="N", help="Of random images and of k-means.")]


def plan_of(kinds: Sequence[str] | None, count: int | None, per_class: int | None, seed: int) -> "Plan":
    """The landmarks that are asked for."""
    from kdtool.analysis.landmarks import STRATEGIES, Plan

    return Plan(tuple(kinds or STRATEGIES), count, per_class, seed)


@analysis("bounds")
def bounds(
    common: Common,
    kinds: Kinds = None,
    count: Count = None,
    per_class: PerClass = None,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", help="Largest eigenvalues of W that are kept.  [default: all]")
    ] = None,
    seed: DrawSeed = 0,
) -> None:
    """KDA's bounds on the kernel gap, next to the true gap.

    Corollaries 1 and 2, Lemma 1 and Theorem 2 with its terms a and b; a bound whose assumptions fail is marked.

    Example: kdtool analyze bounds --layer before_fc --kind class
    """
    from kdtool.analysis.analyses import bounds as compute

    plan = plan_of(kinds, count, per_class, seed)
    columns: Columns = {
        "landmarks": lambda result: f"{result['landmarks']} ({result['count']})",
        "bound": lambda result: "\n".join(bound["name"] for bound in result["bounds"]),
        "over the gap": lambda result: "\n".join(times(bound) for bound in result["bounds"]),
        "assumes": lambda result: "\n".join("holds" if b["guaranteed"] else "fails" for b in result["bounds"]),
    }
    finish(
        "bounds",
        common,
        lambda *given: compute(given[0], given[1], plan, rank, *given[2:]),
        "bounds on the kernel gap",
        columns,
        assumptions,
    )


def assumptions(result: "Result") -> list[str]:
    """What the bounds rest on, and which of it fails."""
    sides = result["student"], result["teacher"]
    smallest, ranks = (" and ".join(f"{side[key]:.3g}" for side in sides) for key in ("smallest", "rank"))
    failing = dict.fromkeys(reason for bound in result["bounds"] for reason in bound["failing"])
    share = f"{100 * result['lemma_1']['share']:.1f} % of {result['lemma_1']['pairs']:,} pairs"
    return [
        f"{result['landmarks']} ({result['count']}): gap {result['gap']:.3g}, c {result['c']:.3g}, r {result['r']:.3g}",
        f"  W_S and W_T: smallest eigenvalues {smallest}, ranks {ranks}",
        f"  Lemma 1 holds for {share}",
        f"  Theorem 2: a {result['term_a']:.3g}, tighter {result['term_a_tighter']:.3g}, and b {result['term_b']:.3g}",
        *(f"  fails: {reason}" for reason in failing),
        *(f"  {note}" for note in result["notes"]),
    ]


def times(bound: dict[str, Any]) -> str:
    """How many times the true gap a bound is."""
    return number(bound["ratio"], 3) + ("" if bound["ratio"] is None else " x")


@analysis("spectrum")
def spectrum(
    common: Common,
    kinds: Kinds = None,
    count: Count = None,
    per_class: PerClass = None,
    draws: Annotated[int, typer.Option("--draws", metavar="N", help="Draws of random landmarks.")] = 5,
    seed: DrawSeed = 0,
) -> None:
    """Eigenvalues of kernels and landmarks; what Nystrom can reach.

    Example: kdtool analyze spectrum --layer before_fc
    """
    from kdtool.analysis.analyses import spectrum as compute

    plan = plan_of(kinds, count, per_class, seed)
    columns: Columns = {
        "side": lambda result: "student\nteacher",
        "width": lambda result: "\n".join(str(result[side]["width"]) for side in ("student", "teacher")),
        "effective rank": lambda result: both(result, "effective_rank"),
        "particip. ratio": lambda result: both(result, "participation_ratio"),
        **{f"smallest of W {name}": functools.partial(smallest, name) for name in plan.strategies},
    }
    finish(
        "spectrum",
        common,
        lambda *given: compute(given[0], given[1], plan, draws, *given[2:]),
        "spectra of the kernels",
        columns,
    )


def both(result: "Result", name: str) -> str:
    """A number of both sides, one below the other."""
    return "\n".join(number(result[side][name]) for side in ("student", "teacher"))


def smallest(name: str, result: "Result") -> str:
    """The smallest eigenvalues of W_S and W_T for one kind of landmarks."""
    found = [held for held in result["landmarks"] if held["landmarks"] == name]
    return "\n".join(number(held[side]["smallest"]) for held in found for side in ("student", "teacher"))


@analysis("landmarks")
def landmarks(
    common: Common,
    kinds: Kinds = None,
    count: Count = None,
    per_class: PerClass = None,
    seed: DrawSeed = 0,
) -> None:
    """Estimated and true transfer loss over a training.

    Needs a run of `kdtool distill --keep-weights 1`.

    Example: kdtool analyze landmarks --layer before_fc
    """
    from kdtool.analysis.analyses import landmarks as compute

    plan = plan_of(kinds, count, per_class, seed)
    columns: Columns = {
        "epoch": lambda result: "\n".join(str(shot["epoch"]) for shot in result["snapshots"]),
        "true loss": lambda result: "\n".join(number(shot["loss"]) for shot in result["snapshots"]),
        **{
            f"{name}{form}": functools.partial(estimates, place, key)
            for place, name in enumerate(plan.strategies)
            for form, key in (("", "plain"), (" W", "whitened"))
        },
    }
    finish("landmarks", common, lambda *given: compute(given[0], given[1], plan, *given[2:]), "landmarks", columns)


def estimates(place: int, key: str, result: "Result") -> str:
    """The estimates of one kind of landmarks over the epochs."""
    return "\n".join(number(shot["estimates"][place][key]) for shot in result["snapshots"])


@analysis("correlation", without=("layers",))
def correlation(
    common: Common,
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", help="First images of the standardised form; 0 for all.  [default: 256]"),
    ] = None,
) -> None:
    """Class correlations of both networks' logits.

    ICD's figure 1 in both published forms; see it in the plot. --part test is the published part.

    Example: kdtool analyze correlation --part test
    """
    from kdtool.analysis.analyses import correlation as compute

    columns: Columns = {
        "form": lambda result: result["form"],
        "images": lambda result: f"{result['samples']:,}",
        "||difference||": lambda result: number(result["difference_norm"]),
        "mean": lambda result: number(result["mean_difference"]),
        "largest": lambda result: number(result["largest_difference"]),
        "correlation": lambda result: number(result["correlation"]),
    }
    finish(
        "correlation",
        common,
        lambda *given: compute(given[0], given[1], images, *given[2:]),
        "class correlation of logits",
        columns,
    )


@analysis("similarity")
def similarity(
    common: Common,
    temperature: Annotated[float, typer.Option("--temperature", metavar="NUMBER", help="Of the KL divergence.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the subsets of Spearman's RSA.")] = 0,
) -> None:
    """CKA, RSA, agreement, KL and calibration.

    Example: kdtool analyze similarity --part test
    """
    from kdtool.analysis.analyses import similarity as compute

    columns: Columns = {
        "CKA": lambda result: number(result["cka"]["cka"]),
        "RSA": lambda result: number(result["rsa"]["pearson"]),
        "Spearman": lambda result: number(result["rsa"]["spearman"]),
        "agree": lambda result: predicted(result, "agreement", share=True),
        "KL": lambda result: predicted(result, "kl"),
        "ECE student": lambda result: calibration(result, "student"),
        "ECE teacher": lambda result: calibration(result, "teacher"),
    }
    finish(
        "similarity",
        common,
        lambda *given: compute(given[0], given[1], temperature, seed, *given[2:]),
        "similarity",
        columns,
    )


def predicted(result: "Result", name: str, share: bool = False) -> str:
    """A number of the predictions; a share in percent."""
    said = result["predictions"]
    return "" if said is None else f"{100 * said[name]:.2f} %" if share else number(said[name])


def calibration(result: "Result", side: str) -> str:
    """The expected calibration error of a side."""
    said = result["predictions"]
    return "" if said is None or said[side] is None else f"{100 * said[side]['calibration_error']:.2f} %"


app.command("probe")(probe)
