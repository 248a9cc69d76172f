"""The package as it is installed: its names, files, versions and lock, and texts that name no machine."""

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kdtool

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS = {"kdtool": ROOT / "kdtool", "kdtool.cli": ROOT / "cli", "kdtool.cache": ROOT / "cache"}
LOCKS = ("requirements.lock", "requirements-cpu.lock", "requirements-cuda.lock")

# Written so that no pattern finds itself here.
INDEX = r"py[p]i\.org|python[h]osted|download\.py[t]orch|(index|find)-[ul](rl|inks)\W+(http|file:)|trusted[-]host"
REGISTRY = r"docker\.[i]o\b|ghcr\.[i]o\b|quay\.[i]o\b|nvcr\.[i]o\b|art[i]factory|nexus[-]"
MACHINE = r"(?<![\w.:/~$}*-])/(root|work|home|Users|opt/[p]ypi|opt/wheels|mnt)/"


def run(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], cwd=folder, capture_output=True, text=True, check=False)


def package_of(folder: Path) -> str:
    """The name that a folder of the checkout is imported by: cli/x -> kdtool.cli.x."""
    return ".".join(part for part in ("kdtool", *folder.relative_to(ROOT).parts) if part)


def test_packages_are_the_folders_with_code() -> None:
    folders = {path.parent for top in FOLDERS.values() for path in top.rglob("*.py")}
    names = {package_of(folder).replace("kdtool.kdtool", "kdtool") for folder in folders}
    assert set(SETUPTOOLS["packages"]) == names


def test_packages_are_taken_from_the_folders_at_the_top() -> None:
    assert {name: ROOT / place for name, place in SETUPTOOLS["package-dir"].items()} == FOLDERS


def test_every_file_that_is_not_python_is_package_data() -> None:
    found = {path for top in FOLDERS.values() for path in top.rglob("*") if path.is_file()}
    found = {path for path in found if path.suffix != ".py" and "__pycache__" not in path.parts}
    known = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in FOLDERS.get(package, ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert found == known


def test_the_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("kdtool") == kdtool.__version__


def test_the_command_is_installed_and_answers(tmp_path: Path) -> None:
    done = run(Path(sysconfig.get_path("scripts")) / "kdtool", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


@pytest.mark.parametrize("place", ["checkout", "elsewhere"])
def test_python_m_kdtool_is_the_command(place: str, tmp_path: Path) -> None:
    folder = ROOT if place == "checkout" else tmp_path
    done = run(sys.executable, "-m", "kdtool", "--help", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


@pytest.mark.parametrize("name", ["cli", "cache"])
def test_the_folders_at_the_top_are_no_packages_of_their_own(name: str) -> None:
    done = run(sys.executable, "-c", f"import {name}", folder=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"this folder is the package 'kdtool.{name}': import that name")


def test_all_seven_promised_dependencies_are_declared() -> None:
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert names >= {"torch", "torchvision", "typer", "h5py", "zarr", "rich", "numpy"}


def test_the_floors_hold() -> None:
    torch = next(req for line in PROJECT["dependencies"] if (req := Requirement(line)).name == "torch")
    assert "2.9.1" not in torch.specifier  # CVE-2026-24747: weights_only=True could be bypassed
    assert PROJECT["requires-python"] == ">=3.11"


def locked(name: str) -> list[tuple[Requirement, str]]:
    """Every requirement of a lock, and the lines with its hashes."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    entries = re.split(r"\n(?=\S)", "\n".join(lines))
    return [(Requirement(head.strip(" \\")), rest) for head, _, rest in (entry.partition("\n") for entry in entries)]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_everything_with_hashes(name: str) -> None:
    for requirement, hashes in locked(name):
        assert re.fullmatch(r"==[\w.+]+", str(requirement.specifier)), requirement
        assert re.fullmatch(r"(\s+--hash=sha256:[0-9a-f]{64}( \\\n)?)+", "\n" + hashes), requirement
    assert "://" not in (ROOT / name).read_text()


def pins(name: str, python: str) -> dict[str, str]:
    """What a lock has for a Python on Linux: library -> version."""
    here = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    return {
        canonicalize_name(requirement.name): next(iter(requirement.specifier)).version
        for requirement, _ in locked(name)
        if requirement.marker is None or requirement.marker.evaluate(here)
    }


@pytest.mark.parametrize(
    ("name", "python"),
    [
        *(("requirements.lock", python) for python in ("3.11", "3.12", "3.13", "3.14")),
        *((name, "3.12") for name in LOCKS[1:]),
    ],
)
def test_a_lock_answers_every_dependency(name: str, python: str) -> None:
    held = pins(name, python)
    extras = PROJECT["optional-dependencies"]
    wanted = [line for extra, lines in extras.items() if name == LOCKS[0] or extra != "dev" for line in lines]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *wanted]):
        if requirement.name != "kdtool":
            pin = held.get(canonicalize_name(requirement.name), "none")
            assert pin in requirement.specifier, f"{name}: {requirement}: run `make lock`"


@pytest.mark.parametrize("name", LOCKS[1:])
def test_the_images_have_the_versions_of_the_tests_and_none_of_their_tools(name: str) -> None:
    tested = pins(LOCKS[0], "3.12")
    held = {library: version.partition("+")[0] for library, version in pins(name, "3.12").items()}
    assert held.items() <= tested.items()
    assert not {"pytest", "mypy", "ruff", "hypothesis"} & held.keys()


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_image_has_a_target_with_a_lock_of_its_own(target: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    _, _, stage = text.partition(f"AS {target}\n")
    stage = stage.partition("\nFROM ")[0]
    assert f"--require-hashes --requirement /usr/src/requirements-{target}.lock" in stage
    assert stage.rstrip().endswith("USER 1000:1000")


def texts() -> list[Path]:
    """Every file of the checkout that is, or could be, committed, and is text."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", folder=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout, so nothing says which files are committed")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and is_text(path.read_bytes())]


def is_text(content: bytes) -> bool:
    """Whether a file is no picture, chunk or the like."""
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def test_no_text_names_a_package_index_or_a_place_on_one_machine() -> None:
    forbidden = re.compile("|".join((INDEX, REGISTRY, MACHINE)))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "https://py" + "pi.org/simple",
        "--index-" + "url https://mirror",
        "FROM docker" + ".io/library/python",
        "open('/ro" + "ot/data')",
        "see /wo" + "rk/data",
    ],
)
def test_such_a_text_would_be_found(line: str) -> None:
    assert re.search("|".join((INDEX, REGISTRY, MACHINE)), line)
