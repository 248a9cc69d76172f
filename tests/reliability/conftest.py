"""Trials of reliability: few of them in every run of the tests, all of them with `--long` (`make crash-test`).

A test asks `trials(few, all)` how often it is to try, and tells `figure` what came out. docs/reliability.md shows the
figures of the last long run.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from made_up import PLAN, made_up

from kdtool import data
from kdtool.engine.folder import Workspace
from kdtool.engine.teach import TeachConfig, teach
from kdtool.progress import Silent, StopRequest

Trials = Callable[[int, int], int]
Figure = Callable[..., None]


@pytest.fixture(scope="session")
def trials(pytestconfig: pytest.Config) -> Trials:
    """Gives the first number in a short run, the second in a long one."""
    return lambda few, everything: everything if pytestconfig.getoption("--long") else few


@pytest.fixture(scope="session")
def figure(pytestconfig: pytest.Config) -> Figure:
    """Records numbers under the name of a promise: `figure("sigkill extract", tried=200, identical=200)`."""
    place = pytestconfig.getoption("--figures")

    def record(promise: str, **numbers: float) -> None:
        if place is not None:
            path = Path(place)
            known = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**known, promise: numbers}, indent=1, sort_keys=True) + "\n")

    return record


@pytest.fixture(scope="session")
def made_up_taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny teacher on the made-up data set."""
    data.DATASETS["made_up"] = made_up
    folder = tmp_path_factory.mktemp("taught")
    config = TeachConfig("made_up", "resnet8", PLAN, student="resnet8", views=3, precision="float32", validation=16)
    teach(Workspace(folder), config, Silent(), StopRequest())
    yield folder
    data.DATASETS.pop("made_up")


@pytest.fixture
def fresh(made_up_taught: Path, tmp_path: Path) -> Callable[[], Path]:
    """Gives fresh copies of that folder, each where the one before was."""
    numbers = count()

    def copy() -> Path:
        for old in tmp_path.glob("work*"):
            shutil.rmtree(old)
        return Path(shutil.copytree(made_up_taught, tmp_path / f"work{next(numbers)}"))

    return copy
