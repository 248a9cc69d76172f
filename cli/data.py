"""`kdtool data unpack`: the published archives of data sets, unpacked safely."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import in_units, print_json, print_line


def unpack(
    archive: Annotated[Path, typer.Argument(help="The published archive: .tar, .tar.gz, .tar.bz2, .tar.xz or .zip.")],
    into: Annotated[Path, typer.Option("--into", help="Folder to unpack into.")] = Path("data"),
    json: o.Json = False,
) -> None:
    """Unpack a published archive, whole or not at all.

    Example: kdtool data unpack cifar-100-python.tar.gz
    """
    from kdtool.data.archive import unpack as run

    written = run(archive, into)
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
