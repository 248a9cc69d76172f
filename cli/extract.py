"""`kdtool extract`: run the teacher once."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdtool.cli import options as o
from kdtool.cli.console import Shown, in_units, print_json, print_line
from kdtool.errors import UsageError

if TYPE_CHECKING:
    from kdtool.engine.folder import Workspace
    from kdtool.engine.prepare import ExtractConfig

KEYS = (
    "for",
    "student",
    "set",
    "taps",
    "views",
    "batch",
    "block",
    "fit_views",
    "clean",
    "dtype",
    "validation",
    "few_shot",
    "seed",
    "precision",
    "device",
    "data_folder",
    "no_srm",
    "allow_mixed",
    "cache",
)

For = Annotated[list[str] | None, typer.Option("--for", help="Store what this method needs; repeat for several.")]
Students = Annotated[list[str] | None, typer.Option("--student", help="Student that the methods are for; repeat.")]
Views = Annotated[str | None, typer.Option("--views", help="Augmented views of every image, or all.  [default: 8]")]
Grid = Annotated[int | None, typer.Option("--batch", help="Batch of the teacher, fixed at creation.  [default: 256]")]
Block = Annotated[int | None, typer.Option("--block", help="Samples in a commit, fixed at creation.")]
FitViews = Annotated[int | None, typer.Option("--fit-views", help="Views that fits pass over.  [default: 4]")]
Clean = Annotated[list[str] | None, typer.Option("--clean", help="Store this key for clean images too; repeat.")]
Dtype = Annotated[list[str] | None, typer.Option("--dtype", help="[KEY=]float16 or float32.")]
Validation = Annotated[int | None, typer.Option("--validation", help="Narrow the split: images held out.")]
FewShot = Annotated[int | None, typer.Option("--few-shot", help="Narrow the split: images of each class.")]
Precision = Annotated[str | None, typer.Option("--precision", help="float32 or bfloat16.  [default: float32]")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of crops and flips.  [default: 0]")]
StudentTaps = Annotated[
    list[str] | None, typer.Option("--tap", help="Name a layer of the students by its module path, TAP=PATH; repeat.")
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
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Run the teacher once and store what it says in the cache.

    Example: kdtool extract --for kda --student resnet18 --views 20
    """
    values = o.Values("extract", config, KEYS)
    workspace = o.open_workspace(folder, values.where("cache", cache))
    asked = configure(
        values,
        methods=methods,
        students=students,
        settings=settings,
        tap=tap,
        no_srm=no_srm or None,
        default_student=str(workspace.settings.get("student", "resnet18")),
        views=views,
        clean=clean,
        dtype=dtype,
        batch=batch,
        block=block,
        fit_views=fit_views,
        validation=validation,
        few_shot=few_shot,
        seed=seed,
        precision=precision,
        device=device,
        data_folder=data_folder,
        allow_mixed=allow_mixed or None,
    )
    from kdtool.cache import info
    from kdtool.engine.extract import extract as run
    from kdtool.engine.prepare import prepare
    from kdtool.engine.ranks import own_rank
    from kdtool.progress import stoppable

    quiet = quiet or own_rank() > 0
    with Shown(quiet) as shown, stoppable() as stop:
        run(workspace.cache, prepare(workspace, asked, shown), shown, stop)
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


def configure(values: o.Values, default_student: str, **flags: Any) -> "ExtractConfig":
    """What was asked for, from flags and file."""
    from kdtool.engine.prepare import ExtractConfig

    names = values.get("for", flags["methods"], [], list)
    built = o.build_methods(list(dict.fromkeys(names)), [], values.settings(flags["settings"]))
    students = values.get("student", flags["students"], [], list) or ([default_student] if built else [])
    dtypes = dict(_dtype(item) for item in values.get("dtype", flags["dtype"], [], list))
    numbers = ("batch", "block", "fit_views", "validation", "few_shot")
    return ExtractConfig(
        methods=built,
        students=tuple(students),
        taps=values.taps(flags["tap"]),
        without=("srm",) if values.get("no_srm", flags["no_srm"], False, bool) else (),
        views=_views(values.table.get("views") if flags["views"] is None else flags["views"]),
        clean=tuple(values.get("clean", flags["clean"], [], list)),
        dtypes=dtypes,
        seed=values.get("seed", flags["seed"], 0, int),
        precision=_precision(values.get("precision", flags["precision"], "float32", str)),
        device=values.get("device", flags["device"], "auto", str),
        data_folder=values.where("data_folder", flags["data_folder"]),
        allow_mixed=values.get("allow_mixed", flags["allow_mixed"], False, bool),
        **{name: values.get(name, flags[name], None, int) for name in numbers},
    )


def _views(asked: Any) -> int:
    """A number of views: -1 for all, 0, which takes the workspace's default, where nothing was said."""
    if asked is None or asked == "all":
        return 0 if asked is None else -1
    number = int(asked) if isinstance(asked, str) and asked.isdecimal() else asked
    if type(number) is not int or number < 1:
        raise UsageError(f"--views is a whole number above 0 or all, not {asked!r}")
    return number


def _dtype(text: str) -> tuple[str, str]:
    key, mark, dtype = text.rpartition("=")
    return (key if mark else "", dtype)


def _precision(name: str) -> str:
    if name not in ("float32", "bfloat16"):
        raise UsageError(
            f"--precision of extract is float32 or bfloat16, not {name!r}: it is part of the cache's identity"
        )
    return name
