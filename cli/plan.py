"""`kdtool plan`: what an extract would take."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtool.cli import extract as e
from kdtool.cli import options as o
from kdtool.cli.console import Shown, in_time, in_units, print_json, print_line, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping

STATES = {
    "new": "nothing is there yet",
    "holds": "the cache is there; what it lacks would be added",
    "unfinished": "an extract was stopped there; it would go on",
}


def plan(
    methods: e.For = None,
    students: e.Students = None,
    settings: o.Settings = None,
    tap: e.StudentTaps = None,
    no_srm: e.NoSrm = False,
    views: e.Views = None,
    batch: e.Grid = None,
    block: e.Block = None,
    fit_views: e.FitViews = None,
    clean: e.Clean = None,
    dtype: e.Dtype = None,
    validation: e.Validation = None,
    few_shot: e.FewShot = None,
    seed: e.Seed = None,
    precision: e.Precision = None,
    device: o.Device = None,
    data_folder: o.DataFolder = None,
    allow_mixed: e.AllowMixed = False,
    cache: o.CachePath = None,
    folder: o.Folder = Path(),
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Show bytes, time and break-even of an extract; writes nothing.

    Example: kdtool plan --for kda --views all
    """
    flags = dict(locals())
    from kdtool.engine.configuration import Values, extract_config
    from kdtool.engine.folder import DEFAULT_STUDENT
    from kdtool.engine.prepare import prepare
    from kdtool.workflows.plan import plan as compute

    values = Values.of_file("extract", config)
    workspace = o.open_workspace(folder, values.where("cache", cache))
    asked = extract_config(values, workspace.settings.get("student", DEFAULT_STUDENT), **flags)
    with Shown(quiet) as shown:
        found = compute(workspace, asked, prepare(workspace, asked, shown))
    if json:
        print_json(found)
    else:
        show(found)


def show(found: "Mapping[str, Any]") -> None:
    """Prints what an extract would write and take: for `plan`, and for `extract --dry-run`."""
    samples = ", ".join(f"{count:,} {part}" for part, count in found["samples"].items() if part != "train_clean")
    print_line(f"teacher {found['teacher']} on {found['data']}: {samples} images")
    print_line(f"{found['views']} views into {found['cache']}, on {found['device']} in {found['precision']}")
    print_line(STATES[found["state"]])
    rows = [
        (
            r["key"],
            r["part"],
            r["dtype"].replace(", ", "\n"),
            "" if r["views"] is None else r["bytes_per_image"],
            "" if r["views"] is None else f"{r['views_held']}/{r['views']}",
            in_units(r["bytes"]),
        )
        for r in found["keys"]
    ]
    print_table("", ("key", "part", "dtype", "bytes/image", "views", "size"), rows)
    print_line(
        f"in all {in_units(found['bytes'])}, {in_units(found['bytes_to_write'])} still to write in about "
        f"{in_time(found['extract_seconds'])} on this machine"
    )
    print_line(f"its disk has {in_units(found['free_bytes'])} free")
    if found["fit_seconds"] > 0.5:
        scratch = found["fit_scratch_bytes"]
        room = f", with {in_units(scratch)} of scratch space meanwhile" if scratch else ""
        print_line(f"of these {in_time(found['fit_seconds'])} for learning the fits{room}")
    print_line(
        f"a live teacher costs about {found['live_teacher_seconds_per_epoch']:.1f} s an epoch;\n"
        f"the cache has paid for itself after {found['break_even_epochs']:g} epochs of all students together"
    )
