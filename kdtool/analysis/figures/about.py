"""What results are about, in the words of titles and of file names.

Left out: names that no two figures share, which `kdtool.analysis.figures.drawn` sees to.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

LANDMARKS = {
    "class": "class centres",
    "random": "random images",
    "kmeans": "k-means clusters",
    "best": "best of that rank",
}
KINDS = tuple(LANDMARKS)  # in the order in which they are named
LONGEST = 80  # letters of a layer or a run in a file name


def runs(results: Sequence[Result]) -> list[str]:
    """The names of the runs, in order."""
    return list(dict.fromkeys(str(result["run"]) for result in results))


def grouped(results: Sequence[Result], *fields: str) -> dict[tuple[str, ...], list[Result]]:
    """Results by the values of some fields, in order."""
    found: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        found.setdefault(tuple(str(result[field]) for field in fields), []).append(result)
    return found


def place(result: Result) -> str:
    """The layer and the part of the data."""
    return f"{result['layer']}, {result['part']}"


def single(result: Result) -> tuple[str, ...]:
    """The lines below the title of a figure of one run."""
    return place(result), str(result["run"])


def stem(*words: str) -> str:
    """A file name without its ending, from letters that every file system takes."""
    safe = (re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-.")[-LONGEST:].lstrip("-.") for word in words)
    return "-".join(filter(None, safe))


def stem_of(name: str, result: Result, several: bool) -> str:
    """The stem of a figure of one result; several: whether the run must be told."""
    return stem(name, result["layer"], result["part"], result["run"] if several else "")


def landmarks_name(name: str) -> str:
    """A kind of landmarks in words."""
    return LANDMARKS.get(name, name)


def kinds(names: Sequence[str]) -> list[str]:
    """Kinds of landmarks, each once, the known ones first."""
    return sorted(dict.fromkeys(names), key=lambda name: KINDS.index(name) if name in KINDS else len(KINDS))


def listed(found: Sequence[object], most: int = 10) -> str:
    """The first entries of a list in words."""
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(map(str, found[:most])) + more


def percent(share: float) -> str:
    """A share as a percentage of three digits."""
    return f"{100 * share:.3g} %"
