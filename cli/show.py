"""`kdtool methods` and `models`: what there is."""

import sys
from typing import Annotated, Any

import typer

from kdtool.cli import complete
from kdtool.cli import options as o
from kdtool.cli.console import print_json, print_line, print_table
from kdtool.errors import UsageError, printable


def methods(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHOD", autocompletion=complete.methods, help="Methods to show.  [default: all]"),
    ] = None,
    student: Annotated[
        str, typer.Option("--student", metavar="NETWORK", autocompletion=complete.networks, help="For this student.")
    ] = "resnet8x4",
    teacher: Annotated[
        str, typer.Option("--teacher", metavar="NETWORK", autocompletion=complete.networks, help="For this teacher.")
    ] = "resnet32x4",
    classes: Annotated[int, typer.Option("--classes", metavar="N", help="Number of classes.")] = 100,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", metavar="N", min=1, help="Width of the images.  [default: 32; teacher tv:, timm: 224]"
        ),
    ] = None,
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
    found = catalogue((method(name) for name in names or METHODS), student, teacher, classes, image_size)
    if json:
        print_json(found)
    else:
        print_line("\n\n".join(text(row) for row in found))


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NETWORK", autocompletion=complete.networks, help="Network whose taps to show.  [default: a list]"
        ),
    ] = None,
    containing: Annotated[str, typer.Option("--filter", metavar="TEXT", help="Only names that hold this text.")] = "",
    classes: Annotated[int, typer.Option("--classes", metavar="N", help="Number of classes.")] = 100,
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", metavar="N", min=1, help="Width of the images.  [default: 32; tv:, timm: 224]"),
    ] = None,
    modules: Annotated[bool, typer.Option("--modules", help="Every module of NETWORK: each can be a tap.")] = False,
    json: o.Json = False,
) -> None:
    """List the networks, or the taps of one.

    A network is one of this list, tv:NAME of torchvision, timm:NAME of timm, or path.to:factory of your own, a function
    that gives an nn.Module for a number of classes. Multiply-adds are those of one image of the width shown.

    Example: kdtool models --classes 10

    Example: kdtool models tv:resnet18 --image-size 64
    """
    from kdtool.workflows.networks import about_network, layers, listed

    if name is None and (modules or image_size is not None):
        raise UsageError(f"{'--modules' if modules else '--image-size'} is about one network; name it")
    if name is not None and containing:
        raise UsageError("--filter is for the list; leave it out, or leave out NETWORK")
    if name is None:
        _print_networks(*listed(containing, classes), json)
        return
    about = about_network(name, classes, image_size)
    shown = layers(name, classes, image_size, modules)
    if json:
        print_json({**about, "taps": shown})
        return
    width = about["image_width"]
    print_line(
        f"{name}: {about['parameters']:,} parameters for {classes} classes, "
        f"{about['multiply_adds']:,} multiply-adds for {width}x{width}"
    )
    columns = ("tap", "shape", "module")
    rows = [(row["tap"], "x".join(map(str, row["shape"])), row["module"] or "the output") for row in shown]
    print_table("", columns, rows)


def _print_networks(rows: list[dict[str, Any]], note: str, json: bool) -> None:
    from kdtool.workflows.networks import shortened

    if json:
        print_json(rows)
    else:
        millions = [f"{row['multiply_adds'] / 1e6:,.1f}" for row in rows]
        columns = ("network", "parameters", "width", "million MACs", "taps besides before_fc, after_fc")
        shown = [
            (row["network"], row["parameters"], row["image_width"], count, shortened(row["taps"]))
            for row, count in zip(rows, millions, strict=True)
        ]
        print_table("", columns, shown)
    if note:
        sys.stderr.write(f"kdtool: {printable(note)}\n")
