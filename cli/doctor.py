"""`kdtool doctor`: whether everything is there that kdtool needs."""

import sys

import typer

from kdtool.cli import options as o
from kdtool.cli.console import print_json, print_table
from kdtool.errors import printable


def doctor(json: o.Json = False) -> None:
    """Check torch, torchvision, extras, device, disk.

    Ends with exit code 5 and a line for each problem where something is not right.

    Example: kdtool doctor
    """
    from kdtool.workflows.doctor import examine

    found = examine()
    if json:
        print_json({"checks": [vars(check) for check in found], "problems": [c.problem for c in found if c.problem]})
    else:
        print_table("", ("", "found", "note"), [(check.name, check.found, check.note) for check in found])
    for check in found:
        if check.problem:
            sys.stderr.write(f"kdtool: {printable(check.problem)}\n")
    if any(check.problem for check in found):
        raise typer.Exit(5)
