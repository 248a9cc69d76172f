"""A made-up data set of 96 images in 4 classes and a workspace with a tiny teacher on it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up import PLAN, made_up, run_extract

from kdtool import data
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import Recipe
from kdtool.engine.teach import TeachConfig, teach
from kdtool.methods import METHODS, method
from kdtool.methods.protocol import Method
from kdtool.progress import Silent, StopRequest


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    data.DATASETS["made_up"] = made_up


@pytest.fixture(scope="session")
def plan() -> Recipe:
    return PLAN


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory, _registered: None) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    config = TeachConfig("made_up", "resnet8", PLAN, student="resnet8", views=3, precision="float32", validation=16)
    teach(Workspace(folder), config, Silent(), StopRequest())
    return folder


@pytest.fixture(scope="session")
def extracted(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extracted") / "work"
    shutil.copytree(taught, folder)
    run_extract(folder, dtypes={"": "float32"})
    return folder


@pytest.fixture(scope="session")
def small() -> Callable[[str], Method]:
    """A method by name, its fits and banks made small."""
    options = {"srm": {"passes": "2"}, "ft": {"passes": "2"}, "crd": {"negatives": "20"}}
    return lambda name: method(name).with_options(options.get(name, {}))


@pytest.fixture(scope="session")
def complete(taught: Path, tmp_path_factory: pytest.TempPathFactory, small: Callable[[str], Method]) -> Path:
    """A workspace whose cache holds what every method needs."""
    folder = tmp_path_factory.mktemp("complete") / "work"
    shutil.copytree(taught, folder)
    run_extract(folder, methods=tuple(map(small, METHODS)), students=("resnet8",), dtypes={"": "float32"}, fit_views=2)
    return folder


def copies(source: Path, place: Path) -> Callable[[], Workspace]:
    """Gives fresh copies of a workspace."""
    count = iter(range(1000))

    def copy() -> Workspace:
        folder = place / str(next(count))
        shutil.copytree(source, folder)
        return Workspace.open(folder)

    return copy


@pytest.fixture
def work(extracted: Path, tmp_path: Path) -> Callable[[], Workspace]:
    """Gives fresh copies of the extracted workspace."""
    return copies(extracted, tmp_path)


@pytest.fixture
def whole(complete: Path, tmp_path: Path) -> Callable[[], Workspace]:
    """Gives fresh copies of the workspace with everything."""
    return copies(complete, tmp_path)
