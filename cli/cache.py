"""`kdtool cache`: what a cache holds, and whether it is intact."""

from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import Shown, folded, in_units, print_json, print_line, print_table
from kdtool.errors import DamageError

app = typer.Typer(no_args_is_help=True, help="Look into a cache and check it.", rich_markup_mode=None)

Place = Annotated[Path | None, typer.Argument(help="The cache.  [default: cache.zarr]")]


@app.command("info")
def show_info(cache: Place = None, folder: o.Folder = Path(), json: o.Json = False) -> None:
    """Show what a cache depends on and what it holds.

    Example: kdtool cache info
    """
    from kdtool.cache import info

    found = info(o.open_workspace(folder, cache).cache)
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
            folded(key),
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
def verify(cache: Place = None, folder: o.Folder = Path(), json: o.Json = False, quiet: o.Quiet = False) -> None:
    """Read every file of a cache and compare it with what was recorded.

    Example: kdtool cache verify
    """
    from kdtool.cache import info
    from kdtool.cache import verify as run

    path = o.open_workspace(folder, cache).cache
    with Shown(quiet) as shown:
        shown.begin("verify", int(info(path)["bytes"]))
        problems = run(path, lambda done: shown.advance(done))
    if json:
        print_json([{"file": problem.file, "problem": problem.what} for problem in problems])
    else:
        for problem in problems:
            print_line(f"{problem.file}: {problem.what}")
    if problems:
        raise DamageError(
            f"{path} has {len(problems)} damaged or missing files, the first is {problems[0].file}; restore them from "
            "a copy, or remove the cache and extract again"
        )
    if not json:
        print_line(f"{path} is intact")
