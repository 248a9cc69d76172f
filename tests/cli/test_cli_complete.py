"""Shell completion: asked as bash, zsh and fish ask, it proposes names, and torch is not imported for them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdtool import names
from kdtool.cli.complete import rejoined
from kdtool.data import DATASETS
from kdtool.data.sources import SOURCES
from kdtool.engine.optim import RECIPES
from kdtool.methods import METHODS
from kdtool.models import MODELS
from kdtool.workflows.bench.start import HEAVY

Asked = Callable[..., Any]
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, folder: Path, typed: Asked) -> Asked:
    """Asks as a shell does, by variables, in this process and in a folder with runs."""

    def call(shell: str, **variables: str) -> Any:
        for name, value in {"_KDTOOL_COMPLETE": f"complete_{shell}", **variables}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        found = typed("")
        assert found.err == ""
        return found

    return call


@pytest.fixture
def bash(asked: Asked) -> Asked:
    """What bash is offered for the last word."""

    def call(*words: str) -> list[str]:
        found = asked("bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))
        assert found.code == 0
        return str(found.out).split()

    return call


def test_the_names_are_those_of_the_registries() -> None:
    """A method, network, data set or recipe that is new belongs into kdtool/names.py too."""
    assert tuple(METHODS) == names.METHODS
    assert tuple(name for name, kind in METHODS.items() if kind.added is not None) == names.ADDED
    assert tuple(MODELS) == names.NETWORKS
    made_up = ("made_up", "probed")  # which other tests of the same process offer
    assert tuple(name for name in DATASETS if name not in made_up) == names.DATA_SETS
    assert set(names.PUBLISHED) == set(SOURCES)
    assert tuple(RECIPES) == names.RECIPES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("teacher", "first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs/notes.txt").touch()
    shutil.copytree(tmp_path / "runs", tmp_path / "else/runs")
    return tmp_path


CASES = {
    "kdtool te": ["teach"],
    "kdtool distill --method k": ["kd", "kda"],
    "kdtool distill -m no": ["none"],
    "kdtool distill --with ": ["kd"],
    "kdtool extract --for cr": ["crd"],
    "kdtool plan --for icd --student wrn_16": ["wrn_16_1", "wrn_16_2"],
    "kdtool models vgg1": ["vgg11", "vgg13", "vgg16", "vgg19"],
    "kdtool methods sr": ["srm"],
    "kdtool teach --data cifar": ["cifar10", "cifar100"],
    "kdtool data check dig": ["digits"],
    "kdtool data fetch c": ["cifar10", "cifar100", "cub200"],
    "kdtool teach --recipe ": ["kda", "crd", "icd", "srm"],
    "kdtool analyze probe --recipe probe-s": ["probe-srm"],
    "kdtool distill --layer before": ["before_fc"],
    "kdtool analyze ": ["gram-gap", "bounds", "spectrum", "landmarks", "correlation", "similarity", "probe"],
    "kdtool extract --device c": ["cpu", "cuda"],
    "kdtool extract --dtype float1": ["float16"],
    "kdtool extract --precision ": ["float32", "bfloat16"],
    "kdtool analyze gram-gap ": ["runs/first", "runs/second", "runs/teacher"],
    "kdtool report runs/s": ["runs/second"],
    "kdtool analyze bounds --folder else ": ["else/runs/first", "else/runs/second", "else/runs/teacher"],
    "kdtool distill --run f": ["first"],
    "kdtool bench ke": ["kernels"],
    "kdtool teach --optimizer ": ["sgd", "adam"],
    "kdtool cache export ex": [],
    "kdtool teach --network tv : resnet5": ["resnet50"],  # bash breaks words at : and =
    "kdtool teach --network tv : resnext": ["resnext50_32x4d"],
    "kdtool teach --network = resnet11": ["resnet110"],
    "kdtool extract --dtype logits = float1": ["float16"],
}


@pytest.mark.parametrize("line", CASES)
def test_bash(line: str, bash: Asked) -> None:
    assert bash(*line.split(" ")) == CASES[line]


def test_options_and_commands_are_proposed_too(bash: Asked) -> None:
    assert bash("kdtool", "teach", "--ep") == ["--epochs"]
    assert bash("kdtool", "distill", "--dr") == ["--dry-run"]
    assert {"teach", "cache", "bench"} < set(bash("kdtool", ""))


def test_bash_itself(folder: Path) -> None:
    """The function that bash is given, called as bash calls it."""
    if not (place := shutil.which("bash")):
        pytest.skip("there is no bash here")
    command = folder / "kdtool"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m kdtool "$@"\n')
    command.chmod(0o755)
    script = (
        "source <(_KDTOOL_COMPLETE=source_bash kdtool)\n"
        "COMP_WORDS=(kdtool teach --network tv : resnet5) COMP_CWORD=5\n"
        '_kdtool_completion kdtool && echo "${COMPREPLY[*]}"'
    )
    environment = {**ENVIRONMENT, "PATH": f"{folder}:{ENVIRONMENT['PATH']}"}
    done = subprocess.run(
        [place, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "resnet50\n", done.stderr


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("kdtool distill --method k", """_arguments '*: :(("kd"\n"kda"))'\n"""),
        ("kdtool models tv:resnet1", """_arguments '*: :(("tv\\\\:resnet18"))'\n"""),
        ("kdtool cache export ex", "_files\n"),
    ],
)
def test_zsh(line: str, out: str, asked: Asked) -> None:
    assert asked("zsh", _TYPER_COMPLETE_ARGS=line).out == out


def test_nothing_heavy_is_imported(folder: Path) -> None:
    environment = {**ENVIRONMENT, "_KDTOOL_COMPLETE": "complete_bash", "COMP_WORDS": "kdtool\nmodels\nre"}
    words = [sys.executable, "-X", "importtime", "-m", "kdtool"]
    environment |= {"COMP_CWORD": "2"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert "resnet8" in done.stdout.split()
    modules = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "kdtool" in modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize(("line", "code"), [("kdtool distill -m k", 0), ("kdtool cache export ex", 1)])
def test_fish_is_told_whether_there_is_something_to_propose(line: str, code: int, asked: Asked) -> None:
    variables = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert asked("fish", **variables).code == code


def test_words_that_bash_broke_are_put_together() -> None:
    assert rejoined(["kdtool", "models", "tv", ":", "res"], 4) == (["kdtool", "models", "tv:res"], 2)
    assert rejoined(["kdtool", "models", "tv", ":"], 3) == (["kdtool", "models", "tv:"], 2)
    assert rejoined(["a", "--set", "kd.x", "=", "1", "b"], 5) == (["a", "--set", "kd.x=1", "b"], 3)
    assert rejoined(["a", "b"], 2) == (["a", "b"], 2)
