"""`kdtool extract`: run the teacher once."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, in_units, print_json, print_line
from kdtool.cli.dry_run import show_dry

if TYPE_CHECKING:
    from kdtool.engine.folder import Workspace
    from kdtool.engine.prepare import ExtractConfig

For = Annotated[
    list[str] | None,
    typer.Option(
        "--for",
        metavar="METHOD",
        autocompletion=complete.methods,
        help="Store what this method needs; repeat for several.",
    ),
]
Students = Annotated[
    list[str] | None,
    typer.Option(
        "--student",
        metavar="NETWORK",
        autocompletion=complete.networks,
        help="Student that the methods are for; repeat.  [default: kdtool.toml's]",
    ),
]
Views = Annotated[
    str | None,
    typer.Option("--views", metavar="N|all", help="Augmented views.  [default: kdtool.toml's, or the cache's]"),
]
Grid = Annotated[
    int | None, typer.Option("--batch", metavar="N", help="Batch of the teacher, fixed at creation.  [default: 256]")
]
Block = Annotated[int | None, typer.Option("--block", metavar="N", help="Samples in a commit, fixed at creation.")]
FitViews = Annotated[
    int | None, typer.Option("--fit-views", metavar="N", help="Views that fits pass over.  [default: 4]")
]
Clean = Annotated[
    list[str] | None, typer.Option("--clean", metavar="KEY", help="Store this key for clean images too; repeat.")
]
Dtype = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype",
        metavar="[KEY=]DTYPE",
        autocompletion=complete.dtypes,
        help="float16 or float32, of one key or of all; repeat.",
    ),
]
Validation = Annotated[int | None, typer.Option("--validation", metavar="N", help="Narrow the split: images held out.")]
FewShot = Annotated[int | None, typer.Option("--few-shot", metavar="N", help="Narrow the split: images of each class.")]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="DTYPE",
        autocompletion=complete.exact_precisions,
        help="float32 or bfloat16.  [default: float32]",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of crops and flips.  [default: 0]")]
StudentTaps = Annotated[
    list[str] | None,
    typer.Option("--tap", metavar="TAP=PATH", help="Name a layer of the students by its module path; repeat."),
]
NoSrm = Annotated[bool, typer.Option("--no-srm", help="Leave SRM's dictionaries out of a plain extract.")]
AllowMixed = Annotated[bool, typer.Option("--allow-mixed", help="Mix devices, versions of torch, memory formats.")]


def extract(
    methods: For = None,
    students: Students = None,
    settings: o.Settings = None,
    tap: StudentTaps = None,
    no_srm: NoSrm = False,
    views: Views = None,
    batch: Grid = None,
    block: Block = None,
    fit_views: FitViews = None,
    clean: Clean = None,
    dtype: Dtype = None,
    validation: Validation = None,
    few_shot: FewShot = None,
    seed: Seed = None,
    precision: Precision = None,
    device: o.Device = None,
    data_folder: o.DataFolder = None,
    allow_mixed: AllowMixed = False,
    cache: o.CachePath = None,
    folder: o.Folder = Path(),
    config: o.Config = None,
    dry_run: o.DryRun = False,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Run the teacher once and store what it says in the cache.

    Example: kdtool extract --for kda --student resnet18 --views 20
    """
    flags = dict(locals())
    from kdtool.cache import info
    from kdtool.cli.plan import show
    from kdtool.engine.configuration import Values, extract_config
    from kdtool.engine.extract import check
    from kdtool.engine.extract import extract as run
    from kdtool.engine.folder import DEFAULT_STUDENT
    from kdtool.engine.prepare import prepare
    from kdtool.engine.ranks import own_rank
    from kdtool.workflows.plan import plan as compute

    values = Values.of_file("extract", config)
    workspace = o.open_workspace(folder, values.where("cache", cache))
    asked = extract_config(values, workspace.settings.get("student", DEFAULT_STUDENT), **flags)
    quiet = quiet or own_rank() > 0
    with Shown(quiet) as shown, shown.stoppable() as stop:
        job = prepare(workspace, asked, shown)
        if not (dry_run or print_config):
            run(workspace.cache, job, shown, stop)
    if dry_run or print_config:
        check(workspace.cache, job)
        show_dry(compute(workspace, asked, job), print_config, json, show)
        return
    if own_rank() > 0:
        return
    found = info(workspace.cache)
    if json:
        print_json(found)
    else:
        held: dict[int, list[str]] = {}
        for key, about in found["keys"].items():
            held.setdefault(about["parts"]["train"]["views"], []).append(key)
        for views_held, keys in held.items():
            print_line(f"{workspace.cache}: {views_held} views of {', '.join(keys)}")
        print_line(f"in all {in_units(found['bytes'])}; next: {shlex.join(following(asked, workspace))}")


def following(asked: "ExtractConfig", workspace: "Workspace") -> list[str]:
    """The words of a command that uses what was extracted."""
    from kdtool.engine.lacking import setting_words, tap_words
    from kdtool.methods import reference

    words = ["kdtool", "distill", "--method"]
    if not asked.methods:
        return [*words, "kda", "--layer", "before_fc", *workspace.words]
    student = asked.students[0]
    named = [] if student == workspace.settings.get("student") else ["--student", student]
    settings = [*setting_words(asked.methods[:1]), *tap_words(asked.taps)]
    return [*words, reference(asked.methods[0]), *settings, *named, *workspace.words]
