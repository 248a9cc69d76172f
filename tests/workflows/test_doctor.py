"""What the doctor says of libraries that fit, that do not, and that are not there."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from kdtool.workflows import doctor, versions

Typed = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def imports_go_well(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No process is started; gives the programs that would have run."""
    asked: list[str] = []
    device = {"cuda": ["A big one"], "failures": [], "built": "13.0"}
    told = json.dumps({**device, "threads": 4, "auto": "cuda", "precision": "bfloat16"})

    def done(code: str) -> subprocess.CompletedProcess[str]:
        asked.append(code)
        return subprocess.CompletedProcess([], 0, f"a line of a library\n{told}\n", "")

    monkeypatch.setattr(doctor, "_run", done)
    return asked


def pretend(monkeypatch: pytest.MonkeyPatch, **found: str | None) -> None:
    """Other installed versions of libraries; underscores for dashes; None for absent."""
    real = versions.installed
    known = {name.replace("_", "-"): version for name, version in found.items()}

    def pretended(name: str) -> str | None:
        return known[name] if name in known else real(name)

    for module in (doctor, versions):
        monkeypatch.setattr(module, "installed", pretended)


def test_everything_is_named_and_fits_80_columns(typed: Typed) -> None:
    code, out, err = typed("doctor")
    assert code == (5 if err else 0), err
    assert max(map(len, out.splitlines())) <= 80
    libraries = ("torch", "torchvision", "zarr", "numpy", "safetensors", "scikit-learn", "matplotlib", "timm")
    assert all(word in out for word in ("python", "kdtool", *libraries, "devices", "precision", "threads", "disk"))


OLD = """
import torch
answers = iter([True])
torch.cuda.is_available = lambda: next(answers, False)
torch.cuda.device_count, torch.cuda.get_device_name = lambda: 1, lambda index: "An old one"
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device that is there can be used")
def test_a_device_that_cannot_be_used_is_a_problem() -> None:
    done = doctor._run(OLD + doctor.DEVICES)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["cuda"] == ["An old one"]
    assert told["failures"][0].startswith("An old one: ")
    problem = doctor.unusable(told["failures"], "torch is built for CUDA 13.2")
    assert problem.startswith("torch cannot use a device that is there: An old one: ")
    assert problem.endswith("torch is built for CUDA 13.2: install a torch that fits driver and device")


def test_what_torch_warns_of_a_driver_is_a_problem() -> None:
    warning = "import torch, warnings; torch.cuda.is_available = lambda: bool(warnings.warn('CUDA: too old')); "
    told = json.loads(doctor._run(warning + doctor.DEVICES).stdout.splitlines()[-1])
    assert told["failures"][0] == "CUDA: too old"


def test_all_is_right(typed: Typed, imports_go_well: list[str]) -> None:
    code, out, err = typed("doctor --json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["problems"] == []
    rows = {check["name"]: check for check in found["checks"]}
    assert rows["devices"]["found"] == "cpu, A big one"
    assert rows["threads"]["found"].startswith("4 of ")
    assert (rows["precision"]["found"], "cuda" in rows["precision"]["note"]) == ("bfloat16", True)
    assert rows["zarr"]["found"] == versions.installed("zarr")
    assert len(imports_go_well) == 2


def test_each_problem_is_one_line(typed: Typed, imports_go_well: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, zarr="2.18.3", h5py=None, timm=None)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**8))
    code, out, err = typed("doctor")
    assert code == 5
    lines = err.splitlines()
    assert [line.startswith("kdtool: ") for line in lines] == [True] * 3
    assert 'h5py is not installed; run `pip install "h5py' in lines[0]
    assert "zarr is 2.18.3, and kdtool needs " in lines[1]
    assert "0.5 GB free" in lines[2]
    assert "kdtool[timm]" in out  # absent, but an extra
    code, out, err = typed("doctor --json")
    assert json.loads(out)["problems"] == [line.removeprefix("kdtool: ") for line in lines]


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._run
    monkeypatch.setattr(doctor, "_run", lambda code: real("raise ImportError('libcudart.so: no such file')"))
    (check,) = doctor._torch()
    assert "torch cannot be imported: ImportError: libcudart.so" in check.problem


def test_a_broken_torchvision_does_not_break_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    device = {"cuda": [], "failures": [], "built": None}
    told = json.dumps({**device, "threads": 1, "auto": "cpu", "precision": "float32"})
    real = doctor._run
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    monkeypatch.setattr(doctor, "_run", lambda code: real(f"print('{told}')" if code == doctor.DEVICES else broken))
    pair, devices, precision, _ = doctor._torch()
    assert "RuntimeError: operator torchvision::nms does not exist" in pair.problem
    assert (devices.found, devices.note, devices.problem) == ("cpu", "no CUDA device; torch is built without CUDA", "")
    assert (precision.found, "does not multiply bfloat16" in precision.note) == ("float32", True)


NMS = "RuntimeError: operator torchvision::nms does not exist"


@pytest.mark.parametrize(
    ("torch", "torchvision", "asks", "failure", "texts"),
    [
        ("2.15.0+cu132", "0.29.2+cu132", ">=2.14.0", "", None),
        ("2.10.0", "0.25.0", "==2.10.0", "", None),
        ("2.10.0+cpu", "0.25.0+cpu", "==2.10.0", "", None),
        (
            "2.13.0+cpu",
            "0.28.0",
            "==2.13.0",
            NMS,
            ("with torch 2.13.0+cpu", NMS, "different builds", '"torch==2.13.0" "torchvision==0.28.0"'),
        ),
        ("2.12.1", "0.25.0", "==2.10.0", NMS, ("it asks for torch==2.10.0", "belongs torchvision==0.27.*: `pip")),
        ("2.12.1", "0.25.0", "==2.10.0", "", ("it asks for torch==2.10.0", '"torchvision==0.27.*"')),
        ("2.13.0", "0.29.2", ">=2.14.0", "ImportError: x", ("ImportError: x: it asks", '"torchvision==0.28.*"')),
        ("2.15.0", "0.28.0", "==2.13.0", NMS, ('"torch==2.15.0" "torchvision>=0.29"',)),
    ],
)
def test_the_pair(torch: str, torchvision: str, asks: str, failure: str, texts: tuple[str, ...] | None) -> None:
    check = doctor.pair(torch, torchvision, asks, failure)
    assert bool(check.problem) == (texts is not None)
    assert all(text in check.problem for text in texts or ())
    assert "http" not in check.problem
    assert "\n" not in check.problem


def test_the_real_pair_is_judged_by_its_own_metadata() -> None:
    if versions.installed("torchvision") is None:
        pytest.skip("torchvision is not installed")
    assert doctor._asked_torch()
    whole = versions.whole_version("torch")
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=True
    )
    assert whole == done.stdout.strip()


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_PYTHON", (99, 0))
    assert "is below 99.0" in doctor._python().problem


def test_a_kdtool_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, kdtool=None)
    (check,) = doctor._required()
    assert "not installed as a package" in check.problem


def test_an_import_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "IMPORT_SECONDS", 0.2)
    assert "took more than 0.2 seconds" in doctor._last(doctor._run("import time; time.sleep(60)"))


# Versions


def test_what_a_library_requires_and_what_fits() -> None:
    wanted = {name: (version, extra) for name, version, extra in versions.requirements("kdtool")}
    assert wanted["torch"] == (">=2.10", False)
    assert wanted["scikit-learn"][1]
    assert versions.requirements("no_such_library") == []
    assert versions.fits("2.15.0+cu132", ">=2.10")
    assert versions.fits("2.15.0.dev1", ">=2.10")
    assert not versions.fits("2.9.1", ">=2.10,<3")
    assert versions.fits("1.0", "")


def test_builds() -> None:
    assert (versions.build("2.15.0+cpu"), versions.release("2.15.0+cpu")) == ("cpu", "2.15.0")
    assert versions.build("2.15.0") == ""
