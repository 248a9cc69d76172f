"""A small extract that has everything: fits before and after the arrays, several keys, parts, blocks and views."""

from pathlib import Path

from kdtool.cache import open_cache, verify
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.errors import UsageError
from kdtool.methods import method
from kdtool.progress import Silent, StopRequest

METHODS = (
    method("kda").with_options({"landmarks": "kmeans"}),
    method("srm").with_options({"passes": "2", "layers": "stage3"}),
    method("ab"),
)


def run(folder: Path, views: int = 2) -> None:
    """Extracts, and saves the state of the fits after every batch."""
    workspace = Workspace.open(folder)
    asked = ExtractConfig(METHODS, ("resnet8",), views=views, batch=16, block=48, fit_views=2)
    extract(workspace.cache, prepare(workspace, asked), Silent(), StopRequest(), save_seconds=0)


def files(cache: Path) -> dict[str, bytes]:
    """Every file of a cache but the record of who wrote it."""
    found = {path.relative_to(cache).as_posix(): path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "provenance.jsonl"}


def assert_nothing_is_wrong(cache: Path) -> None:
    """What a killed writer left is whole where it is recorded, and nothing else is complained of."""
    try:
        open_cache(cache)
    except UsageError:
        return  # killed before there was a cache
    odd = [problem for problem in verify(cache) if "a killed writer left it" not in problem.what]
    assert odd == []
