"""A made-up CIFAR-10 of 40 images, a working folder in which every command has run, and ways to run commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kdtool.cli.main import run

IMAGES, TESTS = 40, 20
TEACH = "teach --data cifar10 --network resnet8 --student resnet8 --epochs 2 --batch 16 --precision float32 --quiet"
EXTRACT = "extract --no-srm --views 3 --batch 16 --block 16 --dtype float32"
DISTILL = "distill --method kda --layer before_fc --epochs 3 --batch 16 --precision float32"


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def repair(self) -> list[str]:
        """The words after `kdtool` of the command that the message tells to type."""
        found = re.search(r"`kdtool ([^`]*)`", self.err)
        assert found, self.err
        return shlex.split(found[1])


Typed = Callable[..., Outcome]


def write_cifar10(folder: Path, seed: int = 5, classes: int = 10, images: int = IMAGES) -> Path:
    """The binary form of CIFAR-10, or with 100 classes of CIFAR-100, with a pattern for each class; gives `folder`."""
    random = np.random.default_rng(seed)
    patterns = random.integers(0, 256, (classes, 3072))

    def records(first: int, count: int) -> bytes:
        labels = np.arange(first, first + count) % classes
        pixels = np.clip(patterns[labels] + random.integers(-60, 60, (count, 3072)), 0, 255)
        columns = [labels[:, None]] if classes == 10 else [labels[:, None] * 0, labels[:, None]]
        return np.concatenate([*columns, pixels], axis=1).astype(np.uint8).tobytes()

    parts = {"train": images} if classes == 100 else {f"data_batch_{n}": images // 5 for n in range(1, 6)}
    place = folder / ("cifar-100-binary" if classes == 100 else "cifar-10-batches-bin")
    place.mkdir(parents=True)
    for number, (name, count) in enumerate(parts.items()):
        (place / f"{name}.bin").write_bytes(records(number * count, count))
    (place / ("test.bin" if classes == 100 else "test_batch.bin")).write_bytes(records(0, TESTS))
    names = "".join(f"class{number}\n" for number in range(classes))
    (place / ("fine_label_names.txt" if classes == 100 else "batches.meta.txt")).write_text(names)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def taught(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `kdtool teach` has run."""
    folder = tmp_path_factory.mktemp("taught") / "work"
    assert run([*TEACH.split(), "--data-folder", str(data), "--folder", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def built(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage has run; not to be changed: `work` is a copy."""
    folder = tmp_path_factory.mktemp("built") / "work"
    shutil.copytree(taught, folder)
    for line in (EXTRACT, f"{DISTILL} --run first", "analyze gram-gap"):
        assert run([*line.split(), "--quiet", "--folder", str(folder)]) == 0, line
    return folder


@pytest.fixture(scope="session")
def other(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another teacher and its cache."""
    folder = tmp_path_factory.mktemp("other") / "work"
    for line in (f"{TEACH} --seed 1 --data-folder {data}", f"{EXTRACT} --quiet"):
        assert run([*line.split(), "--folder", str(folder)]) == 0, line
    return folder


@pytest.fixture
def work(built: Path, tmp_path: Path) -> Path:
    """A copy of the finished working folder."""
    return Path(shutil.copytree(built, tmp_path / "work"))


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs a command line in this process; words that may hold spaces follow the line."""

    def call(line: str, *words: object) -> Outcome:
        capsys.readouterr()
        code = run([*line.split(), *map(str, words)])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(typed: Typed) -> Typed:
    """Runs a command line that must fail: with this code, one line on stderr that has these texts, and no output."""

    def call(code: int, texts: str | tuple[str, ...], line: str, *words: object) -> Outcome:
        found = typed(line, *words)
        assert found.code == code, found.err
        assert found.out == ""
        assert found.err.startswith("kdtool: ")
        assert found.err.count("\n") == 1, found.err
        assert "bug in kdtool" not in found.err
        for text in (texts,) if isinstance(texts, str) else texts:
            assert text in found.err
        return found

    return call


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command line as a process of its own, with the folder as its current one."""
    running: list[subprocess.Popen[str]] = []

    def call(folder: Path, line: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "kdtool", *line.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(words, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield call
    for process in running:
        process.kill()
        process.communicate()
