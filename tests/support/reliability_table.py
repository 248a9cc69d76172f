"""docs/results/reliability.json as the table of docs/reliability.md; run as a script it puts the table there."""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURES = DOCS / "reliability.md", DOCS / "results" / "reliability.json"
PLACE = re.compile(r"(<!-- results/reliability.json .*? -->\n)(.*?)(\n\n## )", re.DOTALL)


def table() -> str:
    """A line for each promise, the figures in the order of their names."""
    lines = ["| trial | figures |", "|---|---|"]
    for promise, numbers in json.loads(FIGURES.read_text()).items():
        told = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in numbers.items())
        lines.append(f"| {promise} | {told} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """A page with the table in its place."""
    return PLACE.sub(lambda found: f"{found[1]}{table()}{found[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
