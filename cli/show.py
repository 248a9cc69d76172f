"""`kdtool methods`, `models` and `data`: what there is."""

from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import print_json, print_line, print_table

data_app = typer.Typer(no_args_is_help=True, help="Data sets in local files.", rich_markup_mode=None)


def methods(json: o.Json = False) -> None:
    """List the methods with their paper and options.

    Example: kdtool methods
    """
    from kdtool.methods import METHODS

    found = [{"method": name, "paper": kind.paper, "options": kind.options()} for name, kind in METHODS.items()]
    if json:
        print_json(found)
        return
    rows = [
        (name, kind.paper, " ".join(f"{key}={_shown(value)}" for key, value in kind.options().items()))
        for name, kind in METHODS.items()
    ]
    print_table("", ("method", "paper", "options and defaults"), rows)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def models(
    classes: Annotated[int, typer.Option("--classes", help="Number of classes.")] = 100, json: o.Json = False
) -> None:
    """List the networks with their parameters and taps.

    Example: kdtool models --classes 10
    """
    from kdtool.models import MODELS, create, parameters, tap_shapes

    rows = []
    for name in MODELS:
        model = create(name, classes)
        taps = [tap for tap in tap_shapes(model, (3, 32, 32)) if "." not in tap]
        rows.append((name, parameters(model), " ".join(taps)))
    if json:
        print_json([dict(zip(("network", "parameters", "taps"), row, strict=True)) for row in rows])
    else:
        print_table(f"{classes} classes", ("network", "parameters", "taps"), rows)


@data_app.command("list")
def list_data(json: o.Json = False) -> None:
    """List the data sets.

    Example: kdtool data list
    """
    from kdtool.data import DATASETS

    if json:
        print_json(list(DATASETS))
    else:
        print_line("\n".join(DATASETS))


@data_app.command("check")
def check_data(
    name: Annotated[str, typer.Argument(help="Data set.")], data_folder: o.DataFolder = None, json: o.Json = False
) -> None:
    """Read a data set and show its size and the digest of its content.

    Example: kdtool data check cifar100 --data-folder data
    """
    from kdtool.data import load

    found = load(name, Path(data_folder) if data_folder else None)
    about = {
        "name": found.name,
        "train": len(found.train.labels),
        "test": len(found.test.labels),
        "classes": found.classes,
        "digest": found.digest,
    }
    if json:
        print_json(about)
    else:
        print_line(
            f"{found.name}: {about['train']:,} train and {about['test']:,} test images in {found.classes} classes, "
            f"content {found.digest}"
        )
