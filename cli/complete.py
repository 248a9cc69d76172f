"""What the shell proposes for a value when the tab key is pressed: names, and folders of runs.

It answers without importing torch, from `kdtool.names`. Where nothing is proposed, the shell offers files.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import typer

from kdtool import names
from kdtool.cli.main import COMPLETE

Complete = Callable[[str], list[str]]


def of(known: Iterable[str]) -> Complete:
    """Proposes the names of a list that begin with what is typed."""
    known = tuple(known)

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


def dtypes(incomplete: str) -> list[str]:
    """float16 and float32, behind KEY= where one is typed."""
    key, mark, _ = incomplete.rpartition("=")
    return [name for kind in ("float16", "float32") if (name := f"{key}{mark}{kind}").startswith(incomplete)]


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """The folders of runs in the working folder; `--folder` may name it before."""
    place = Path(context.params.get("folder") or ".") / "runs"
    found = sorted(path for path in place.glob("*") if path.is_dir()) if place.is_dir() else []
    return [str(path) for path in found if str(path).startswith(incomplete)]


def run_names(context: typer.Context, incomplete: str) -> list[str]:
    """The names of these folders."""
    return [name for path in runs(context, "") if (name := Path(path).name).startswith(incomplete)]


def tables(incomplete: str) -> list[str]:
    """The recipes of `kdtool reproduce`."""
    return [name for name in names.tables() if name.startswith(incomplete)]


methods, methods_or_none = of(names.METHODS), of((*names.METHODS, "none"))
added = of(names.ADDED)
networks = of((*names.NETWORKS, "timm:"))
data_sets, published = of(names.DATA_SETS), of(names.PUBLISHED)
recipes, probe_recipes = of(name for name in names.RECIPES if not name.startswith("probe-")), of(names.RECIPES)
taps, frozen = of(names.TAPS), of((*names.TAPS, "body"))
devices, parts = of(("auto", "cpu", "cuda")), of(("train", "validation", "test"))
published_parts = of(("test", "train", "all"))
precisions, exact_precisions = of(("auto", "float32", "bfloat16")), of(("float32", "bfloat16"))
optimizers, schedules = of(("sgd", "adam")), of(("cosine", "step", "constant"))
modes, crops = of(("eval", "train")), of(("pad", "resized"))
kernels = of(("linear", "cosine", "rbf", "polynomial"))
algorithms = of(("auto", "moments", "aligned", "blocked", "nystrom"))
landmarks = of(("class", "random", "kmeans"))
bench_parts = of(("steps", "live", "layout", "extract", "reading", "kernels", "start", "memory"))


@contextlib.contextmanager
def whole_words() -> Iterator[None]:
    """A block that answers bash, which takes a word such as tv:resnet18 for three: at each : and = it begins anew.

    Its words are put together before, and of what is proposed the beginning that bash has already is left out.
    """
    if os.environ.get(COMPLETE) != "complete_bash":
        yield
        return
    words, place = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    typed = "" if words[place:][:1] in ([], [":"], ["="]) else words[place]
    joined, place = rejoined(words, place)
    os.environ |= {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(place)}
    beginning = joined[place].removesuffix(typed) if place < len(joined) else ""
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        sys.stdout.writelines(line.removeprefix(beginning) for line in answer.getvalue().splitlines(keepends=True))
        sys.stdout.flush()


def rejoined(words: list[str], place: int) -> tuple[list[str], int]:
    """(the words with those put together that : or = stands between, where the word at `place` is now)."""
    found: list[str] = []
    moved = place
    for number, word in enumerate(words):
        apart = word not in (":", "=") and (not found or not found[-1].endswith((":", "=")))
        if apart or not found:
            found.append(word)
        else:
            found[-1] += word
        if number == place:
            moved = len(found) - 1
    return found, moved if place < len(words) else len(found)
