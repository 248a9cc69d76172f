"""The identity of a real cache: the same in every process, another one with every field, and untouched by contents."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import extracts
import pytest

from kdtool.cache import Layout, create_or_open, open_cache
from kdtool.cache.identity import identity_digest
from kdtool.cli.main import run as command
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.errors import IdentityError

Trials = Callable[[int, int], int]
Figure = Callable[..., None]

PROCESS = """
import sys
sys.path.insert(0, {support!r})
from made_up import made_up
from kdtool import data
data.DATASETS["made_up"] = made_up
from pathlib import Path
from kdtool.cache.identity import identity_digest
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.folder import Workspace
job = prepare(Workspace.open(Path({folder!r})), ExtractConfig(batch=16, block=48, fit_views=2))
print(identity_digest(dict(job.identity), job.layout.to_json()))
"""


@pytest.fixture(scope="module")
def cached(made_up_taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache."""
    folder = Path(shutil.copytree(made_up_taught, tmp_path_factory.mktemp("cached") / "work"))
    extracts.run(folder)
    return folder


def test_it_is_the_same_in_every_process(cached: Path, trials: Trials, figure: Figure) -> None:
    total = trials(2, 20)
    script = PROCESS.format(support=str(Path(__file__).parents[1] / "support"), folder=str(cached))
    seen = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in range(total)
    }
    assert seen == {open_cache(cached / "cache.zarr").identity_digest}
    figure("identity in processes with different hash seeds", processes=total, different=len(seen))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, value) of every plain value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 3 or 1  # a block stays a whole number of batches
    if isinstance(value, float):
        return value + 0.5
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])] if value else [1]
    return f"{value}x" if isinstance(value, str) else 1


def test_every_field_changes_it_and_is_refused_by_its_name(cached: Path, figure: Figure) -> None:
    job = prepare(Workspace.open(cached), ExtractConfig(batch=16, block=48, fit_views=2))
    record = json.loads(json.dumps({"identity": dict(job.identity), "layout": job.layout.to_json()}))
    digests = {identity_digest(record["identity"], record["layout"])}
    fields = list(leaves(record))
    for path, value in fields:
        other = copy.deepcopy(record)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = changed(value)
        digests.add(identity_digest(other["identity"], other["layout"]))
        with (
            pytest.raises(IdentityError, match=f"{'.'.join(path)}: the cache has .*, wanted is") as raised,
            create_or_open(cached / "cache.zarr", other["identity"], Layout.from_json(other["layout"])),
        ):
            pass
        assert raised.value.exit_code == 4
    assert len(digests) == len(fields) + 1
    named = {path[1] for path, _ in fields if path[0] == "identity"}
    assert named >= {"format", "teacher", "data", "split", "preprocessing", "augmentation", "numeric"}
    figure("fields of the identity", changed=len(fields), refused=len(fields))


def test_keys_and_views_do_not_change_it(cached: Path) -> None:
    cache = open_cache(cached / "cache.zarr")
    before, keys = cache.identity_digest, set(cache.contents)
    extracts.run(cached, views=3)
    grown = open_cache(cached / "cache.zarr")
    assert grown.views("logits") == 3
    assert set(grown.contents) == keys
    line = ["extract", "--for", "at", "--student", "resnet8", "--views", "3", "--quiet", "--folder", str(cached)]
    assert command(line) == 0
    after = open_cache(cached / "cache.zarr")
    assert set(after.contents) > keys
    assert before == grown.identity_digest == after.identity_digest
