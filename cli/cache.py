"""`kdtool cache`: what a cache holds, whether it is intact, mending, dropping and moving it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import Shown, in_units, need_terminal, print_json, print_line, print_table
from kdtool.errors import DamageError

if TYPE_CHECKING:
    from kdtool.cache import Dropped
    from kdtool.engine.folder import Workspace
    from kdtool.engine.recorded import Again
    from kdtool.engine.repair import Mended

app = typer.Typer(
    no_args_is_help=True,
    help="Look into a cache, check, mend, shrink and move it.\n\nExample: kdtool cache info",
    rich_markup_mode=None,
)

Place = Annotated[Path | None, typer.Argument(metavar="CACHE", help="The cache.  [default: cache.zarr]")]
Replay = Annotated[
    int | None, typer.Option("--replay", metavar="N", help="Ask the teacher for so many random rows again.")
]
Own = Annotated[
    list[str] | None, typer.Option("--for", metavar="METHOD", help="Method of your own whose keys the cache holds.")
]


@app.command("info")
def show_info(cache: Place = None, folder: o.Folder = Path(), json: o.Json = False) -> None:
    """Show what a cache depends on and what it holds.

    Example: kdtool cache info
    """
    from kdtool.cache import info
    from kdtool.engine.folder import check_identity

    found = info(o.open_workspace(folder, cache).cache)
    check_identity(Path(found["path"]), found["identity"])
    if json:
        print_json(found)
        return
    identity = found["identity"]
    print_line(f"{found['path']}: format {found['format']}, identity {found['identity_digest'][:12]}")
    print_line(f"teacher {identity['teacher']['network']} {identity['teacher']['sha256'][:12]}")
    data, samples = identity["data"], found["layout"]["samples"]
    print_line(f"data {data['name']} {data['digest'][:12]}: {', '.join(f'{p} {n:,}' for p, n in samples.items())}")
    rows = [
        (
            key,
            part,
            held["views"],
            "\n".join(sorted({a["dtype"] for a in about["arrays"].values()})),
            in_units(held["bytes"]),
        )
        for key, about in found["keys"].items()
        for part, held in about["parts"].items()
    ]
    print_table("", ("key", "part", "views", "dtype", "size"), rows)
    if found["fits"]:
        print_line("fits: " + "\n      ".join(found["fits"]))
    print_line(f"in all {in_units(found['bytes'])}" + ("; an extract is unfinished" if found["unfinished"] else ""))


@app.command()
def verify(
    cache: Place = None,
    rows: Replay = None,
    own: Own = None,
    device: o.Device = None,
    data_folder: o.DataFolder = None,
    folder: o.Folder = Path(),
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare every byte of a cache or exported file with the manifest.

    Example: kdtool cache verify --replay 100
    """
    from kdtool.cache import verify as run
    from kdtool.cache import verify_hdf5

    workspace = _workspace(folder, cache)
    path = workspace.cache
    if rows is not None:
        from kdtool.engine.replay import check_replay

        again = o.again(device, data_folder, own)
        check_replay(rows, again)
    with Shown(quiet) as shown:
        if path.is_file():
            shown.begin("verify", path.stat().st_size, unit="B")
            problems = verify_hdf5(path, shown.advance)
        else:
            shown.begin("verify", _size(path), unit="B")
            problems = run(path, shown.advance)
    if not json:
        for problem in problems:
            print_line(f"{problem.file}: {problem.what}")
    elif rows is None or problems:
        print_json([{"file": problem.file, "problem": problem.what} for problem in problems])
    if problems:
        named = [str(cache)] if cache else []
        command = shlex.join(["kdtool", "cache", "repair", *workspace.folder_words, *named])
        raise DamageError(
            f"{path} has {len(problems)} damaged or missing files, the first is {problems[0].file}; "
            + (f"`{command}` mends what it can" if path.is_dir() else "export it again")
        )
    if not json:
        print_line(f"{path} is intact")
    if rows is not None:
        _replay(workspace, rows, again, json, quiet)


def _workspace(folder: Path, cache: Path | None) -> "Workspace":
    """The working folder of a cache; of one that is named from where no working folder is, the one that it lies in."""
    elsewhere = cache is not None and folder == Path() and not Path("kdtool.toml").exists()
    if cache is not None and elsewhere and (cache.parent / "kdtool.toml").exists():
        folder = cache.parent
    return o.open_workspace(folder, cache)


def _replay(workspace: "Workspace", rows: int, again: "Again", json: bool, quiet: bool) -> None:
    """Asks the teacher for some rows again and tells how far they are from the cache."""
    from numpy.random import default_rng

    from kdtool.engine.replay import replay

    with Shown(quiet) as shown:
        found, unknown = replay(workspace, rows, again, shown, default_rng())
    if json:
        print_json([{**vars(result), "right": result.right} for result in found])
    else:
        parts = [
            (f"{r.part}/{r.key}/{r.array}", r.rows, r.identical, f"{r.difference:.1e}", f"{r.bound:g}") for r in found
        ]
        print_table("what the teacher says again", ("array", "rows", "same bits", "difference", "bound"), parts)
        for key in unknown:
            print_line(f"{key} was left out: no method of kdtool stores it; name yours with --for path.to:MyMethod")
    wrong = [result for result in found if not result.right]
    if wrong:
        view, position = wrong[0].worst or (0, 0)
        raise DamageError(
            f"{workspace.cache} does not say what its teacher says: {len(wrong)} arrays are outside of their bounds, "
            f"{wrong[0].part}/{wrong[0].key}/{wrong[0].array} in view {view} at position {position} among them; "
            "extract into another --cache"
        )


@app.command()
def repair(
    cache: Place = None,
    own: Own = None,
    device: o.Device = None,
    data_folder: o.DataFolder = None,
    folder: o.Folder = Path(),
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Mend damage; the teacher is asked again for lost chunks alone.

    Example: kdtool cache repair
    """
    from kdtool.cache import verify as run
    from kdtool.engine.repair import repair as mend
    from kdtool.engine.repair import would_repair

    workspace, asked = _workspace(folder, cache), o.again(device, data_folder, own)
    with Shown(quiet) as shown, shown.stoppable() as stop:
        shown.begin("look", _size(workspace.cache), unit="B")
        found = would_repair(workspace, asked, shown) if dry_run else mend(workspace, asked, shown, stop)
        if not dry_run:
            shown.begin("verify", _size(workspace.cache), unit="B")
            left = run(workspace.cache, shown.advance)
    if dry_run:
        _show_repair(workspace.cache, found, json)
        return
    if json:
        print_json({"written_again": list(found.again), "recomputed": list(found.chunks)})
    else:
        for line in (*found.again, *(f"{name}: computed again" for name in found.chunks)):
            print_line(line)
    if left:
        raise DamageError(f"{workspace.cache}: {left[0].file} {left[0].what}")
    if not json:
        print_line(f"{workspace.cache} is intact")


def _show_repair(path: Path, found: "Mended", json: bool) -> None:
    if json:
        print_json({"dry_run": True, "written_again": list(found.again), "recomputed": list(found.chunks)})
        return
    for line in found.again:
        print_line(f"would mend {line}")
    for name in found.chunks:
        print_line(f"{name}: the teacher would be asked again")
    if not (found.again or found.chunks):
        print_line(f"{path} is intact")
    print_line("dry run: nothing was written")


@app.command()
def drop(
    cache: Place = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", metavar="KEY", help="Drop this key; repeat for several.")
    ] = None,
    fits: Annotated[list[str] | None, typer.Option("--fit", metavar="FIT", help="Drop this fit; repeat.")] = None,
    keep_views: Annotated[
        int | None, typer.Option("--keep-views", metavar="N", help="Drop all views but the first so many.")
    ] = None,
    sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    folder: o.Folder = Path(),
    dry_run: o.DryRun = False,
    json: o.Json = False,
) -> None:
    """Take keys, fits or the last views out, and get their space back.

    Example: kdtool cache drop --keep-views 4 --key before_fc
    """
    from kdtool.cache import Choice, would_drop
    from kdtool.cache import drop as run

    choice = Choice(keys or [], fits or [], keep_views)
    path = o.open_workspace(folder, cache).cache
    found = would_drop(path, choice)
    if dry_run:
        _show_drop(path, found, json)
        return
    if not sure:
        need_terminal("--yes")
        asked = f"Drop {in_units(found.bytes)} of {path}? Only the teacher can give them again."
        typer.confirm(asked, abort=True, err=True)
    freed = run(path, choice)
    if json:
        print_json({"freed": freed})
    else:
        print_line(f"{path}: {in_units(freed)} dropped")


def _show_drop(path: Path, found: "Dropped", json: bool) -> None:
    if json:
        print_json({"dry_run": True, "freed": found.bytes, **{k: v for k, v in vars(found).items() if k != "bytes"}})
        return
    for key, (now, then) in found.views.items():
        print_line(f"{key}: {f'{now - then} of {now} views' if then else 'the whole key'}")
    for fit in found.fits:
        print_line(f"{fit}: the fit")
    print_line(f"{path}: {in_units(found.bytes)} would be dropped, {in_units(found.left)} stay")
    print_line("dry run: nothing was written")


@app.command("export")
def export_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The HDF5 file to write.")],
    cache: o.CachePath = None,
    folder: o.Folder = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a whole cache into one HDF5 file, every chunk verified.

    Example: kdtool cache export teacher.h5
    """
    from kdtool.cache import export_hdf5, info

    path = o.open_workspace(folder, cache).cache
    with Shown(quiet) as shown:
        shown.begin("export", int(info(path)["bytes"]), unit="B")
        export_hdf5(path, file, shown.advance, overwrite=overwrite)
    print_line(f"{file}: {in_units(file.stat().st_size)}")


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An HDF5 file that export wrote.")],
    cache: o.CachePath = None,
    folder: o.Folder = Path(),
    quiet: o.Quiet = False,
) -> None:
    """Make a cache from an exported file, byte for byte the same.

    Example: kdtool cache import teacher.h5
    """
    from kdtool.cache import import_hdf5, info

    path = o.open_workspace(folder, cache).cache
    with Shown(quiet) as shown:
        shown.begin("import", file.stat().st_size if file.is_file() else 0, unit="B")
        import_hdf5(file, path, shown.advance)
    found = info(path)
    print_line(f"{path}: {in_units(found['bytes'])}, identity {found['identity_digest'][:12]}")


def _size(path: Path) -> int:
    """Bytes of all files of a cache, which may be damaged."""
    return sum(found.stat().st_size for found in path.rglob("*") if found.is_file())
