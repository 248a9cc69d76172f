"""What every test shares: the folder of large fixtures, one thread, the same examples in every run."""

import os
import signal

# Sums depend on the number of threads. Set before numpy and torch start, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("kdtool", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("kdtool")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("reliability")
    group.addoption("--long", action="store_true", help="as many trials as docs/reliability.md tells of (hours)")
    group.addoption("--figures", metavar="FILE", help="write how many trials there were and how they ended, as JSON")


def pytest_configure() -> None:
    """Shells ignore SIGINT in jobs of the background, and then it is ignored in the processes that tests start, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


@pytest.fixture(scope="session", autouse=True)
def _user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache folder, where indexes of pictures are kept: not that of the one who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout that these tests belong to."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden values and data sets that lies beside the checkout on machines that have it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder.name}/ beside the checkout: its golden values and data are not part of it")
    return folder
