"""Speed and memory of every stage beside their goals: the full form of `kdtool bench`, with its record.

    python benchmarks/speed.py                   # all parts; hours on a CPU
    python benchmarks/speed.py kernels start     # some; those that were measured before stay in the record

    python benchmarks/speed.py --page            # only writes the tables anew

Figures are printed as they are found and written, part by part, into benchmarks/results/speed-<processor or GPU>.json;
the tables of docs/performance.md are made from these files.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from kdtool.engine.device import choose_device, choose_precision
from kdtool.engine.runs import environment
from kdtool.workflows.bench import PARTS, Figure, chosen, measure

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARK = "<!-- tables of benchmarks/speed.py: all below is made from benchmarks/results -->\n"


def place(device: str) -> Path:
    """The record of a machine: speed-amd-epyc-9v74-80-core-processor.json."""
    return RESULTS / f"speed-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def line(figure: Figure) -> str:
    """A figure beside its goal."""
    goal = "" if figure.goal is None else f"  goal: {'at least' if figure.at_least else 'at most'} {figure.goal:.4g}"
    met = {True: ", met", False: ", MISSED", None: ""}[figure.met]
    return f"{figure.part:8} {figure.what:45} {figure.value:12,.4g} {figure.unit}{goal}{met}"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--short", action="store_true", help="the small sizes of `kdtool bench`; nothing is written")
    parser.add_argument("--work", type=Path, help="folder below which is written while it is measured")
    parser.add_argument("--output", type=Path, help="another file than that of the machine")
    parser.add_argument("--page", action="store_true", help="measure nothing, write docs/performance.md anew")
    asked = parser.parse_args()
    if asked.page:
        write_page()
        return
    device = choose_device(asked.device)
    machine = environment(device, choose_precision(asked.precision, device))
    output = asked.output or place(machine["device"])
    for name in chosen(asked.parts):
        figures = []
        for figure in measure([name], device, machine["precision"], not asked.short, asked.work):
            print(line(figure), flush=True)
            figures.append(figure.plain())
        if not asked.short:
            record(output, name, {"machine": machine, "figures": figures})
    if not asked.short and asked.output is None:
        write_page()


def record(output: Path, name: str, found: dict[str, Any]) -> None:
    """Enters a part into the file, in place of what was measured of it before; the others stay."""
    known = json.loads(output.read_text()) if output.exists() else {}
    parts = {part: found if part == name else known[part] for part in PARTS if part in known or part == name}
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(parts, indent=1) + "\n")


def write_page() -> None:
    """Writes the tables of docs/performance.md; the text above them stays."""
    PAGE.write_text(with_tables(PAGE.read_text()))


def with_tables(page: str) -> str:
    """A page with the tables below its mark; the text above stays."""
    return page.split(MARK)[0] + MARK + "".join(map(tables, sorted(RESULTS.glob("speed-*.json"))))


def tables(path: Path) -> str:
    """The tables of one machine."""
    parts = json.loads(path.read_text())
    machine = next(iter(parts.values()))["machine"]
    lines = ["", f"## {machine['device']}", ""]
    for name, found in parts.items():
        used = found["machine"]
        where = f"{used['threads']} of {used['cores']} threads" if used["device_type"] == "cpu" else used["device"]
        lines += [f"### {name}: {PARTS[name]}", "", f"{where}, {used['precision']}, torch {used['torch']}.", ""]
        lines += steps_table(found["figures"]) if name == "steps" else plain_table(found["figures"])
        lines.append("")
    return "\n".join(lines)


def plain_table(figures: list[dict[str, Any]]) -> list[str]:
    """A figure in each row."""
    lines = ["| | figure | goal |", "|---|---:|---|"]
    for found in figures:
        unit = "" if found["unit"] == "ratio" else f" {found['unit']}"
        adds = found["details"].get("multiply_adds_live_over_cached")
        told = "; ".join(filter(None, (goal(found), f"multiply-adds {adds:.2f}" if adds else "")))
        lines.append(f"| {found['what']} | {found['value']:,.3g}{unit} | {told} |")
    return lines


def steps_table(figures: list[dict[str, Any]]) -> list[str]:
    """A method and stage in each row, with what of a plain step it costs beside it."""
    lines = [
        "| student, method, stage | step | waiting for targets | own arithmetic | goal |",
        "|---|---:|---:|---:|---|",
    ]
    for found in figures:
        about, what = found["details"], found["what"].split(":")[0]
        own = max(0.0, about["arithmetic_over_plain"])
        shares = f"{about['step_over_plain']:.3f} | {about['reading_over_plain']:.3f} | {own:.3f}"
        which = "step" if ": step" in found["what"] else "waiting"
        lines.append(f"| {what} | {shares} | {which} {goal(found)} |")
    return lines


def goal(found: dict[str, Any]) -> str:
    """The goal of a figure, and whether it is met."""
    if found["goal"] is None:
        return ""
    met = "met" if found["met"] else "**missed**"
    return f"{'at least' if found['at_least'] else 'at most'} {found['goal']:.4g}: {met}"


if __name__ == "__main__":
    main()
