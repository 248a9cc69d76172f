"""`kdtool --help` answers at once, and a command imports what it needs: what takes long to import waits until then."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdtool.engine.extract import extract
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.progress import Silent, StopRequest
from kdtool.workflows.bench import made_up
from kdtool.workflows.bench.start import HEAVY, command

OPTIONAL = {"torchvision", "h5py", "matplotlib", "sklearn", "scipy", "timm", "PIL"}  # for one thing each

HELP = """
import json, sys
import typer
from kdtool.cli.commands import app
from kdtool.cli.main import run

def told(command, words):
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from told(below, [*words, name])

found, before = [], set()
for words in told(typer.main.get_command(app), []):
    code = run([*words, "--help"])
    found.append([" ".join(words), code, sorted(set(sys.modules) - before)])
    before = set(sys.modules)
print(json.dumps(found), file=sys.stderr)
"""


def imported(folder: Path, *words: str) -> frozenset[str]:
    """The heavy packages that a command has imported at its end, which has to be a good one."""
    ended = command(words, folder)
    assert ended.code == 0
    return ended.heavy


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    assert HEAVY & imported(tmp_path, "--help") == set()


def test_the_help_of_every_command_imports_nothing_heavy(tmp_path: Path) -> None:
    """All of them in one process, each with what it imports beside those before it."""
    words = [sys.executable, "-c", HELP]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr.splitlines()[-1])
    names = {name for name, _, _ in found}
    assert {"", "teach", "bench", "cache", "cache verify", "analyze gram-gap", "data fetch"} <= names
    assert done.stdout.count("Usage: ") == len(found) > 30
    wrong = {
        name: sorted(HEAVY & {module.split(".")[0] for module in modules})
        for name, code, modules in found
        if code != 0 or HEAVY & {module.split(".")[0] for module in modules}
    }
    assert wrong == {}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and its cache."""
    folder = tmp_path_factory.mktemp("startup")
    with made_up.registry_kept():
        workspace = made_up.workspace(folder, made_up.dataset(16, 4, 8), "resnet8", "resnet8", 1)
        job = prepare(workspace, ExtractConfig(without=("srm",), fit_views=1, batch=8, device="cpu"))
        extract(workspace.cache, job, Silent(), StopRequest())
    return folder


@pytest.mark.parametrize(
    ("line", "without"),
    [
        ("--version", HEAVY),
        ("data list", HEAVY - {"numpy"}),
        ("methods", OPTIONAL | {"zarr", "safetensors"}),
        ("models --filter resnet8", OPTIONAL | {"zarr", "safetensors"}),
        ("models resnet8", OPTIONAL | {"zarr", "safetensors"}),
        ("cache info", HEAVY - {"numpy"}),
        ("cache verify --quiet", HEAVY - {"numpy", "zarr", "numcodecs"}),
    ],
)
def test_a_command_imports_only_what_it_needs(line: str, without: set[str], built: Path) -> None:
    assert without & imported(built, *line.split()) == set()


def test_only_a_file_of_the_format_needs_its_library(built: Path, tmp_path: Path) -> None:
    file = tmp_path / "teacher.h5"
    assert HEAVY & imported(built, "cache", "export", str(file)) == {"h5py", "numpy"}
    again = ["cache", "import", str(file), "--cache", str(tmp_path / "again.zarr")]
    assert HEAVY & imported(built, *again) == {"h5py", "numpy"}
