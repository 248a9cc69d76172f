"""`kdtool data fetch` and `unpack`: the published archives of data sets, verified and unpacked safely."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import Shown, in_units, print_json, print_line, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdtool.data.fetch import Wanted

app = typer.Typer(
    no_args_is_help=True,
    help="List data sets, get them and check their files.\n\nExample: kdtool data check digits",
    rich_markup_mode=None,
)


@app.command("list")
def list_data(json: o.Json = False) -> None:
    """List the data sets.

    Example: kdtool data list
    """
    from kdtool.data.about import ABOUT

    if json:
        print_json([{"name": name, "about": about} for name, about in ABOUT.items()])
    else:
        print_table("", ("data set", "train + test"), list(ABOUT.items()))


@app.command("check")
def check(
    name: Annotated[
        str, typer.Argument(metavar="DATA_SET", autocompletion=complete.data_sets, help="See `kdtool data list`.")
    ],
    data_folder: o.DataFolder = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Read a data set whole; show what is there, or all that is wrong.

    The digest of the content is the same for every form in which the data set is published.

    Example: kdtool data check cifar100 --data-folder data
    """
    from kdtool.data import DEFAULT_FOLDER, load
    from kdtool.data.about import compare
    from kdtool.data.listing import WrongPicturesError

    folder = data_folder or DEFAULT_FOLDER
    try:
        with Shown(quiet) as shown:
            found = load(name, folder, shown, fresh=True)
    except WrongPicturesError as error:
        if json:
            print_json({"name": name, "wrong": [{"file": file, "finding": what} for file, what in error.wrong]})
        raise
    sums = compare(name, folder)
    about = {
        "name": found.name,
        "train": len(found.train.labels),
        "labelled": int((found.train.labels >= 0).sum()),
        "validation": len(found.validation),
        "test": len(found.test.labels),
        "classes": found.classes,
        "image_shape": found.image_shape,
        "digest": found.digest,
        "as_published": list(sums.right),
        "other_than_published": list(sums.wrong),
    }
    if json:
        print_json(about)
        return
    print_line(f"{found.name}: {_parts(about)}, {found.classes} classes, images of {_size(found.image_shape)}")
    print_line(f"content {found.digest}")
    for files, what in ((sums.right, "the MD5 of their publication"), (sums.wrong, "another MD5 than published")):
        if files:
            print_line(f"{len(files)} files have {what}: {', '.join(Path(file).name for file in files)}")


def _parts(about: dict[str, Any]) -> str:
    held = f" ({about['validation']:,} of them for validation)" if about["validation"] else ""
    bare = about["train"] - about["labelled"]
    unlabelled = f" ({bare:,} without a label)" if bare else ""
    return f"{about['train']:,} train{held}{unlabelled} and {about['test']:,} test images"


def _size(shape: tuple[int, int, int] | None) -> str:
    return "many sizes" if shape is None else f"{shape[2]}x{shape[1]}"


@app.command("unpack")
def unpack(
    archive: Annotated[
        Path, typer.Argument(metavar="ARCHIVE", help="The published archive: .tar, .tar.gz, .tar.bz2, .tar.xz or .zip.")
    ],
    into: Annotated[Path, typer.Option("--into", metavar="FOLDER", help="Folder to unpack into.")] = Path("data"),
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Unpack a published archive, whole or not at all.

    Those of a data set that kdtool knows are put in their places by `kdtool data fetch NAME --archive FILE`.

    Example: kdtool data unpack cifar-100-python.tar.gz
    """
    from kdtool.data.archive import unpack as run

    with Shown(quiet) as shown:
        shown.begin("unpack", archive.stat().st_size if archive.is_file() else 0, unit="B")
        written = run(archive, into, told=shown.advance)
    if json:
        print_json([str(path) for path in written])
        return
    count, size = Counter[Path](), Counter[Path]()
    for path in written:
        entry = into / path.relative_to(into).parts[0]
        count[entry] += 1
        size[entry] += path.stat().st_size
    for entry in count:
        print_line(f"{entry}: {count[entry]:,} files, {in_units(size[entry])}")


@app.command("fetch")
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="DATA_SET", autocompletion=complete.published, help="See `kdtool data list`.")
    ],
    into: Annotated[
        Path, typer.Option("--into", metavar="FOLDER", help="Folder of data sets, where archives may lie already.")
    ] = Path("data"),
    archive: Annotated[
        list[Path] | None,
        typer.Option("--archive", metavar="FILE", help="An archive that you have already; repeat for several."),
    ] = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Get the published archives of a data set, verify and unpack them.

    The only command that uses the network, and only for what is not in the folder yet.

    Example: kdtool data fetch cifar100
    """
    from kdtool.data.fetch import fetch as run
    from kdtool.data.fetch import would_fetch

    if dry_run:
        _show_wanted(would_fetch(name, into, archive or ()), json)
        return
    with Shown(quiet) as progress:
        found = run(name, into, archive or (), progress)
    if json:
        print_json([{**asdict(item), "place": str(item.place), "pinned": item.pinned} for item in found])
        return
    for item in found:
        about = [f"files from {item.name}: {item.files:,}" if item.files else "there already"]
        if item.checksum:
            about += [f"{item.checksum}{' as published' if item.pinned else '; no published checksum is known'}"]
        print_line(f"{item.place}: {', '.join(about)}")


def _show_wanted(found: "Sequence[Wanted]", json: bool) -> None:
    if json:
        rows = [{**vars(item), "place": str(item.place), "held": str(item.held or "") or None} for item in found]
        print_json({"dry_run": True, "files": rows})
        return
    for item in found:
        if item.held == item.place:
            print_line(f"{item.place}: there already")
        else:
            print_line(f"{item.place}: from {item.held or f'{item.address}, which would be downloaded'}")
    print_line("dry run: nothing was written")
