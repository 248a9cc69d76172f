"""What analyses found out about a run, kept in its folder: analysis/<name>.json, a list of results.

A result says of which layer and part of the data it is, of which weights, and which options it was asked for with; a
new one takes the place of the one that it repeats. Left out: plots, which lie beside the lists.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdtool import files

Result = dict[str, Any]

SAME = (
    "layer",
    "part",
    "samples",
    "kernel",
    "degree",
    "constant",
    "nystrom_landmarks",
    "seed",
    "landmarks",
    "count",
    "rank",
    "form",
)  # fields that tell two results of one analysis apart


def exact_gaps(found: Sequence[Result]) -> dict[tuple[str, str], Result]:
    """(layer, part) -> the result of `gram-gap` of the linear kernel that is exact, the one over the most images."""
    exact = [gap for gap in found if is_exact(gap)]
    return {(gap["layer"], gap["part"]): gap for gap in sorted(exact, key=lambda gap: int(gap.get("samples", 0)))}


def is_exact(gap: Result) -> bool:
    """Whether a result of `gram-gap` is of the linear kernel, by its moments."""
    return gap.get("kernel", "linear") == "linear" and gap.get("nystrom_landmarks") is None


def results_path(run: Path, analysis: str) -> Path:
    """Where the results of an analysis lie."""
    return run / "analysis" / f"{analysis}.json"


def read_results(run: Path, analysis: str) -> list[Result]:
    """The results of an analysis that are kept; none where it has not been made."""
    path = results_path(run, analysis)
    if not path.exists():
        return []
    found: list[Result] = files.read_json(path, f"remove {path}", {"results": list})["results"]
    for result in found:
        files.check_fields(result, {"layer": str, "part": str}, f"a result in {path}", f"remove {path}")
    return found


def keep(run: Path, analysis: str, found: Sequence[Mapping[str, Any]]) -> list[Result]:
    """Adds results to those that are kept for the same weights; gives all of them. The caller holds the lock."""
    path = results_path(run, analysis)
    weights = {result.get("weights_sha256") for result in found}
    renewed = [identity(result) for result in found]
    before = [result for result in read_results(run, analysis) if result.get("weights_sha256") in weights]
    held = [result for result in before if identity(result) not in renewed]
    with files.explained(path):
        path.parent.mkdir(exist_ok=True)
    results = [*held, *map(dict, found)]
    files.write_json(path, {"results": results})
    return results


def identity(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two results have in common of which one takes the other's place; lists in these places tell nothing."""
    fields = (value if isinstance(value := result.get(name), str | int | float) else None for name in SAME)
    return (*fields, options_of(result).get("gamma"))


def options_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options that a result was asked for with, by their names on the command line; those that differ from the
    defaults.
    """
    found = result.get("options")
    return found if isinstance(found, dict) else {}


def differing(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from their defaults, which say all that a result was asked for."""
    return {name: value for name, value in options.items() if value != defaults[name]}
