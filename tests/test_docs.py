"""Every command of the README runs, in order, as typed but for its size: fewer epochs and views, small networks."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reliability_table import PAGE, with_table

from kdtool.cli.main import run

ROOT = Path(__file__).parents[1]
README, OWN = ROOT / "README.md", ROOT / "docs" / "own-method.md"
NETWORKS, ANALYSIS = ROOT / "docs" / "networks-and-data.md", ROOT / "docs" / "analysis.md"
REPRODUCE = ROOT / "docs" / "reproduce.md"
SMALLER = {"resnet34": "resnet8", "resnet18": "resnet8", "resnet14": "resnet8", "--views 20": "--views 3"}
SMALLER |= {"--views 40": "--views 3", "--epochs 8": "--epochs 2"}


def blocks(page: Path = README, language: str = "sh") -> list[list[str]]:
    """The lines of each block in a language: the commands of those in sh."""
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [block.strip().splitlines() for block in found]


def smaller(command: str) -> list[str]:
    """A command's words, made small."""
    for typed, small in SMALLER.items():
        command = command.replace(typed, small)
    words = shlex.split(command)
    trains = words[1] in ("teach", "distill") or "probe" in words
    if trains and "--epochs" not in words:
        words += ["--epochs", "2"]
    if trains and "--batch" not in words:
        words += ["--batch", "32"]
    return words


def tiny_cifar100(folder: Path) -> None:
    """CIFAR-100's binary form with 200 and 100 images."""
    random = np.random.default_rng(0)
    (folder / "cifar-100-binary").mkdir(parents=True)
    for name, count in (("train", 200), ("test", 100)):
        records = random.integers(0, 256, (count, 3074), dtype=np.uint8)
        records[:, 0] = 0
        records[:, 1] = np.arange(count) % 100
        (folder / "cifar-100-binary" / f"{name}.bin").write_bytes(records.tobytes())
    names = "\n".join(f"class{number}" for number in range(100))
    (folder / "cifar-100-binary" / "fine_label_names.txt").write_text(names + "\n")


def test_every_block_is_run() -> None:
    assert len(blocks()) == 6
    assert all(line.startswith("kdtool ") for block in blocks() for line in block)


@pytest.mark.parametrize("numbers", [(0,), (1, 2, 3, 4, 5)], ids=["digits", "cifar100"])
def test_readme(numbers: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    tiny_cifar100(tmp_path / "data")
    for command in (line for number in numbers for line in blocks()[number]):
        assert run(smaller(command)[1:]) == 0, command


def test_a_method_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cosine", raising=False)
    example, checked = blocks(OWN, "python")
    assert "\n".join(example) + "\n" == (ROOT / "examples" / "cosine.py").read_text()
    (tmp_path / "cosine.py").write_text("\n".join(example))
    assert run(shlex.split("teach --data digits --network resnet8 --student resnet8 --epochs 2 --batch 32")) == 0
    (commands,) = blocks(OWN)
    for command in commands:
        assert run([*smaller(command)[1:], *(["--views", "2"] if " extract" in command else [])]) == 0, command
    exec("\n".join(checked), {})
    config = (tmp_path / "runs/resnet8-cosine-weight=2.0-kd-weight=1.0-seed0/config.toml").read_text()
    assert 'method = "cosine:Cosine"' in config
    again = f"distill --config {tmp_path}/runs/resnet8-cosine-weight=2.0-kd-weight=1.0-seed0/config.toml --run again"
    assert run(shlex.split(again)) == 0
    both = [tmp_path / "runs" / name / "student.safetensors" for name in (config_run(tmp_path), "again")]
    assert both[0].read_bytes() == both[1].read_bytes()


def tiny_photographs(folder: Path) -> None:
    """Twelve small pictures to train in three classes, and six to test."""
    draw = np.random.default_rng(1)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog", "owl"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (int(draw.integers(30, 80)), 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.jpg")


def test_networks_and_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "small_net", raising=False)
    ((*example,),) = blocks(NETWORKS, "python")
    assert "\n".join(example) + "\n" == (ROOT / "examples" / "small_net.py").read_text()
    (tmp_path / "small_net.py").write_text("\n".join(example))
    tiny_cifar100(tmp_path / "data")
    tiny_photographs(tmp_path / "photographs")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    for command in (line for block in blocks(NETWORKS) for line in block):
        words = shlex.split(command)
        if words[1] in ("teach", "distill") or "probe" in words:
            words += ["--batch", "4" if "--epochs" in words or "--few-shot" in words else "6", "--epochs", "1"]
        words += ["--views", "2", "--no-srm"] if words[1] == "extract" and "--for" not in words else []
        words += ["--views", "2"] if words[1] == "extract" and "--for" in words else []
        assert run(words[1:]) == 0, command


def test_what_was_transferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for name, array in (("student", draw.random((90, 4))), ("teacher", draw.random((90, 6)))):
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "labels.npy", np.arange(90) % 3)
    before = ("teach --data digits --network resnet8 --student resnet8", "extract --no-srm --views 2")
    for line in (*before, "distill --method none --run first", "distill --method kd --run second"):
        assert run(smaller(f"kdtool {line}")[1:]) == 0, line
    for command in (line for block in blocks(ANALYSIS) for line in block):
        assert run(smaller(command)[1:]) == 0, command
    assert (tmp_path / "gap.svg").exists()
    ((*code,),) = blocks(ANALYSIS, "python")
    exec("\n".join(code), {})


def test_a_sweep_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    ((*text,),) = blocks(REPRODUCE, "toml")
    small = {"resnet14": "resnet8", "epochs = 8": "epochs = 2", "views = 8": "views = 2", "seeds = 3": "seeds = 2"}
    for typed, tiny in small.items():
        assert typed in "\n".join(text)
        text = [line.replace(typed, tiny) for line in text]
    (tmp_path / "sweep.toml").write_text("\n".join(text))
    for command in (line for block in blocks(REPRODUCE) for line in block):
        assert run(shlex.split(command)[1:]) == 0, command
    page = (tmp_path / "sweep.md").read_text()
    assert re.search(r"\| alpha 0.04 \| before_fc \| [0-9.]+ ± [0-9.]+ \| 2 \|", page)


def config_run(folder: Path) -> str:
    (found,) = [path.name for path in (folder / "runs").glob("*cosine*")]
    return found


@pytest.mark.parametrize("page", [README, OWN, NETWORKS, ANALYSIS, REPRODUCE], ids=lambda page: page.name)
def test_files_that_a_page_links_to_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert missing == []


def test_the_figures_of_reliability_are_those_of_the_last_long_run() -> None:
    page = PAGE.read_text()
    assert page == with_table(page)


def test_the_commands_on_performance_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((command,),) = blocks(ROOT / "docs" / "performance.md")
    assert run(shlex.split(command)[1:]) == 0


def test_the_tables_of_performance_are_those_of_the_last_measurements() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    spec = importlib.util.spec_from_file_location("speed", ROOT / "benchmarks" / "speed.py")
    assert spec is not None
    assert spec.loader is not None
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    assert page == speed.with_tables(page)
