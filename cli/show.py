"""`kdtool methods`, `models` and `data`: what there is."""

from pathlib import Path
from typing import Annotated

import typer

from kdtool.cli import options as o
from kdtool.cli.console import print_json, print_line, print_table

data_app = typer.Typer(no_args_is_help=True, help="Data sets in local files.", rich_markup_mode=None)


def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Methods to show.  [default: all]")] = None,
    student: Annotated[str, typer.Option("--student", help="Student.")] = "resnet8x4",
    teacher: Annotated[str, typer.Option("--teacher", help="Teacher.")] = "resnet32x4",
    classes: Annotated[int, typer.Option("--classes", help="Number of classes.")] = 100,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/methods.md.")] = False,
    json: o.Json = False,
) -> None:
    """List the methods: what they store, stages, options.

    Example: kdtool methods srm kda --teacher resnet34 --student resnet18
    """
    from kdtool.methods import METHODS, method
    from kdtool.workflows.catalogue import catalogue, page, text

    if markdown:
        print_line(page().rstrip())
        return
    found = catalogue((method(name) for name in names or METHODS), student, teacher, classes)
    if json:
        print_json(found)
    else:
        print_line("\n\n".join(text(row) for row in found))


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
