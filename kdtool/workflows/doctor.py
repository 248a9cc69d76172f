"""Whether everything is there that kdtool needs: libraries and their versions, devices, threads, disk.

torch and torchvision are imported in a process of their own, so that one that cannot be imported is told of and not
met. Left out: whether the other libraries can be imported.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from kdtool.workflows.versions import build, fits, installed, release, requirements, whole_version

LEAST_FREE_BYTES = 1_000_000_000
LEAST_PYTHON = (3, 11)
IMPORT_SECONDS = 300
EXTRAS = {  # library -> kdtool's extra that installs it, and what it is for
    "scikit-learn": ("digits", "the data set digits"),
    "matplotlib": ("plots", "plots and pages"),
    "tensorboard": ("tensorboard", "metrics for TensorBoard"),
    "timm": ("timm", "networks timm:NAME"),
}


@dataclass(frozen=True)
class Check:
    """One line of the findings; problem is empty where all is right, else one line that says how to repair it."""

    name: str
    found: str
    note: str = ""
    problem: str = ""


def examine() -> list[Check]:
    """All findings, in the order in which they are shown."""
    return [_python(), *_required(), *_torch(), *_extras(), _disk(Path.cwd())]


def _python() -> Check:
    least = ".".join(map(str, LEAST_PYTHON))
    problem = "" if sys.version_info >= LEAST_PYTHON else f"Python {platform.python_version()} is below {least}"
    return Check("python", platform.python_version(), f">={least}", problem)


def _required() -> Iterator[Check]:
    """kdtool itself and every library that it requires, with the versions that it asks for."""
    own = installed("kdtool")
    if own is None:
        yield Check("kdtool", "not installed", "", "kdtool is not installed as a package; run `pip install -e .` there")
        return
    yield Check("kdtool", own)
    for name, wanted, extra in requirements("kdtool"):
        if not extra:
            yield library(name, wanted)


def library(name: str, wanted: str) -> Check:
    """Whether a library is installed in a version that is asked for, as in ">=2.10,<3"."""
    found = installed(name)
    if found is not None and fits(found, wanted):
        return Check(name, found, wanted)
    state = f"{name} is not installed" if found is None else f"{name} is {found}, and kdtool needs {wanted}"
    return Check(name, found or "absent", wanted, f'{state}; run `pip install "{name}{wanted}"`')


def _extras() -> Iterator[Check]:
    wanted = {name: version for name, version, _ in requirements("kdtool")}
    for name, (extra, purpose) in EXTRAS.items():
        found = installed(name)
        if found is None:
            yield Check(name, "absent", f"for {purpose}: kdtool[{extra}]")
            continue
        checked = library(name, wanted.get(name, ""))
        yield Check(name, found, f"{checked.note} for {purpose}".strip(), checked.problem)


# torch and torchvision


def _torch() -> Iterator[Check]:
    """Whether torch can be imported and torchvision beside it; devices and threads as torch sees them."""
    if installed("torch") is None:
        return
    done = _run(DEVICES)
    if done.returncode != 0:
        problem = f"torch cannot be imported: {_last(done)}; run `pip install --force-reinstall torch torchvision`"
        yield Check("devices", "none", "", problem)
        return
    if installed("torchvision") is not None:
        done_pair = _run("import torch, torchvision; torchvision.models.resnet18, torch.ops.torchvision.nms")
        failure = _last(done_pair) if done_pair.returncode else ""
        yield pair(str(whole_version("torch")), str(whole_version("torchvision")), _asked_torch(), failure)
    told = json.loads(done.stdout.splitlines()[-1])
    built = f"torch is built for CUDA {told['built']}" if told["built"] else "torch is built without CUDA"
    note = "" if told["cuda"] else f"no CUDA device; {built}"
    yield Check("devices", ", ".join(["cpu", *told["cuda"]]), note, unusable(told["failures"], built))
    native = "multiplies it natively" if told["precision"] == "bfloat16" else "does not multiply bfloat16 natively"
    yield Check("precision", told["precision"], f"--precision auto, as the {told['auto']} {native}")
    yield Check("threads", f"{told['threads']} of {os.cpu_count()} cores")


# What torch warns of is a driver that is too old for it, or a device that it was not built for.
DEVICES = """
import json, warnings
import torch
from kdtool.engine.device import choose_device, choose_precision
names, failures = [], []
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        names.append(torch.cuda.get_device_name(index))
        try:
            square = torch.ones(8, 8, device=f"cuda:{index}")
            (square @ square).sum().item()
        except Exception as error:
            failures.append(f"{names[-1]}: {error}")
    failures += [str(one.message) for one in told if "cuda" in str(one.message).lower()]
device = choose_device("auto")
told = {"cuda": names, "failures": failures, "built": torch.version.cuda, "threads": torch.get_num_threads()}
print(json.dumps({**told, "auto": device.type, "precision": choose_precision("auto", device)}))
"""


def unusable(failures: Sequence[str], built: str) -> str:
    """What there is to say of devices that torch cannot use; empty where there are none."""
    if not failures:
        return ""
    said = " ".join(failures[0].split(". ")[0].split())
    return f"torch cannot use a device that is there: {said}; {built}: install a torch that fits driver and device"


def pair(torch: str, torchvision: str, asks: str, failure: str) -> Check:
    """What there is to say of a torch and a torchvision, by their versions.

    asks: the versions of torch that torchvision requires, as in "==2.10.0"; failure: how the import of torchvision
    ended, empty where it went well.
    """
    name, found, note = "the pair", f"torch {torch}, torchvision {torchvision}", f"torch{asks}" if asks else ""
    if not failure and fits(torch, asks):
        return Check(name, found, note)
    reasons = [f"torchvision {torchvision} does not work with torch {torch}", failure]
    if not fits(torch, asks):
        reasons.append(f"it asks for torch{asks}")
    elif build(torch) != build(torchvision):
        reasons.append("the two are different builds")
    partner = fitting(torch, torchvision if fits(torch, asks) else None)
    command = f'pip install --force-reinstall "torch=={release(torch)}" "{partner}"'
    advice = f"install both at once and from the same place; to torch {release(torch)} belongs {partner}: `{command}`"
    return Check(name, found, note, f"{': '.join(filter(None, reasons))}; {advice}")


def fitting(torch: str, torchvision: str | None) -> str:
    """The requirement of torchvision that fits a torch; torchvision: one whose own requirement this torch meets.

    torch 2.N was released together with torchvision 0.(N + 15), which asked for exactly that torch up to 2.13; 0.29
    asks for torch 2.14 or newer.
    """
    if torchvision is not None:
        return f"torchvision=={release(torchvision)}"
    version = Version(torch)
    if version.major != 2:
        return "torchvision"
    return f"torchvision==0.{version.minor + 15}.*" if version.minor < 14 else "torchvision>=0.29"


def _asked_torch() -> str:
    """The versions of torch that the installed torchvision asks for."""
    return next((wanted for name, wanted, extra in requirements("torchvision") if name == "torch" and not extra), "")


def _run(code: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"the import took more than {IMPORT_SECONDS} seconds")


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a traceback, which says what went wrong."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with code {done.returncode}"


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found, note = f"{free / 1e9:.1f} GB free", f"at least {LEAST_FREE_BYTES / 1e9:.0f} GB in this folder"
    enough = free >= LEAST_FREE_BYTES
    return Check("disk", found, note, "" if enough else f"{folder} has {found}; free some space or work elsewhere")
