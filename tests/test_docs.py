"""README.md and every page of docs are followed from top to bottom, and their links lead somewhere.

As typed but for sizes: fewer epochs and views, small networks, made-up data. The tutorial is run as it stands, and the
pages of the stages go on in one folder, as for somebody who reads them one after another.
"""

import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from followed import LANGUAGES, Block, Reader, blocks, forget
from PIL import Image
from reliability_table import PAGE, with_table

from kdtool import data
from kdtool.cli.main import run
from kdtool.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README, MATHEMATICS = ROOT / "README.md", DOCS / "mathematics.md"
PAGES = (README, *sorted(DOCS.glob("*.md")))

# Pages whose blocks another file of tests runs.
ELSEWHERE = {"format.md": "tests/cache/test_cache_format.py", "python.md": "tests/test_api.py"}
STAGES = ("teach.md", "extract.md", "distill.md", "analysis.md", "report.md")
FOLLOWED = (
    *("README.md", "tutorial.md", *STAGES, "networks-and-data.md", "own-method.md", "reproduce.md", "performance.md"),
)
SMALLER = {"resnet34": "resnet8", "resnet18": "resnet8", "resnet14": "resnet8", "--views 20": "--views 3"}
SMALLER |= {"--views 40": "--views 3", "--epochs 8": "--epochs 2"}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to follow a page in, with a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    yield tmp_path
    forget(tmp_path)


@pytest.fixture
def extras() -> None:
    """What is not installed everywhere."""
    for library in ("sklearn", "matplotlib"):
        pytest.importorskip(library)


def trains(words: list[str]) -> bool:
    """Whether a command trains a network."""
    return words[1] in ("teach", "distill") or "probe" in words


def smaller(words: list[str]) -> list[str]:
    """The words of a command, made small."""
    line = shlex.join(words)
    for typed, small in SMALLER.items():
        line = line.replace(typed, small)
    words = shlex.split(line)
    if trains(words):
        words += [] if "--epochs" in words else ["--epochs", "2"]
        words += [] if "--batch" in words else ["--batch", "32"]
    return words


def few(words: list[str]) -> list[str]:
    """The words of a command, made small, with ten images of each digit to train on."""
    return [*smaller(words), *(["--few-shot", "10"] if {"teach", "digits"} <= set(words) else [])]


def typed(*lines: str) -> None:
    """Runs what a page takes for granted."""
    for line in lines:
        assert run(smaller(shlex.split(line))[1:]) == 0, line


# Every block is run


def test_every_page_is_followed() -> None:
    with_code = {page.name for page in PAGES if blocks(page)}
    assert with_code <= {*FOLLOWED, *ELSEWHERE}, "these pages have blocks that no test runs"
    assert not blocks(DOCS / "README.md"), "it has the name of a page that is followed"
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in FOLLOWED], ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_run(page: Path) -> None:
    found = blocks(page)
    assert [str(block) for block in found if block.language not in LANGUAGES] == []
    indented = re.findall(r"^    (?:\$ )?(?:kdtool|torchrun) .*", page.read_text(), flags=re.MULTILINE)
    assert indented == [], "commands that nothing runs"


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nkdtool models resnet9\n```",
        "```sh\nls\n```",
        "```sh\nmake nothing\n```",
        "```sh\nkdtool --version\n```\n\n```text\nkdtool 9 ...\n```",
        "```console\n$ kdtool --version\nkdtool 9 ...\n```",
        "```console\n$ kdtool --version\nkdtool ...\n$ echo $?\n1\n```",
        "```console\n$ kdtool --version\nkdtool ...\nmore\n```",
        "```toml\na = 1\n```",
        "```bash\nkdtool --version\n```",
        "```python\nassert False\n```",
        "```sh\nkdtool --version",
    ],
)
def test_a_page_that_is_wrong_is_noticed(text: str, work: Path) -> None:
    page = work / "page.md"
    page.write_text("```console\n$ kdtool --version\nkdtool ...\n$ echo $?\n0\n```\n`a.toml`:\n\n```toml\na = 1\n```\n")
    Reader().follow(page)
    page.write_text(text + "\n")
    with pytest.raises(AssertionError):
        Reader().follow(page)


def test_readme(work: Path, extras: None, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(few)
    for number, block in enumerate(blocks(README)):
        if begins_anew(block):
            folder = work / str(number)
            tiny_cifar100(folder / "data")
            monkeypatch.chdir(folder)
        reader.do(block)


def begins_anew(block: Block) -> bool:
    """Whether a block trains a teacher in the folder where it is."""
    return any("kdtool teach" in line and "--folder" not in line for line in block.text.splitlines())


def test_the_tutorial_as_it_stands(work: Path, extras: None) -> None:
    reader = Reader()
    reader.follow(DOCS / "tutorial.md")
    assert reader.names is not None
    losses = {
        name: json.loads((work / f"runs/networks-small-{name}-seed0/analysis/gram-gap.json").read_text())["results"]
        for name in ("none", "kd", "kda-before_fc-weight=0.004")
    }
    found = {name: results[0]["loss"] for name, results in losses.items()}
    assert min(found, key=found.__getitem__).startswith("kda")


def test_a_student_is_used_as_the_tutorial_uses_it(work: Path) -> None:
    """Its answers for the test pictures are those that gave the accuracy of the run."""
    page = blocks(DOCS / "tutorial.md")
    reader, place = Reader(), next(number for number, block in enumerate(page) if "def predict" in block.text)
    for block in page[:place]:
        if block.language == "python" and "weights.pth" not in block.text:
            reader.do(block)
    typed("kdtool teach --data folder --data-folder shapes --network networks:large --student networks:small")
    typed("kdtool extract --views 2", "kdtool distill --method kd --precision float32 --run networks-small-kd-seed0")
    reader.do(page[place])
    assert reader.names is not None
    held = data.load("folder", work / "shapes")
    test = held.test
    answers = [reader.names["predict"](work / "shapes" / name)[0] for name in test.images.names]
    right = np.mean([answer == held.class_names[label] for answer, label in zip(answers, test.labels, strict=True)])
    result = json.loads((work / "runs/networks-small-kd-seed0/result.json").read_text())
    assert 100 * right == pytest.approx(result["test_accuracy"]["last"])


def test_the_stages(work: Path, extras: None) -> None:
    draw = np.random.default_rng(0)
    for name, array in (("student", draw.random((90, 4))), ("teacher", draw.random((90, 6)))):
        np.save(work / f"{name}.npy", array)
    np.save(work / "labels.npy", np.arange(90) % 3)
    reader = Reader(few)
    for name in STAGES:
        reader.follow(DOCS / name)
    assert (work / "gap.svg").exists()
    assert (work / "report.html").exists()


def test_a_method_of_ones_own(work: Path) -> None:
    pytest.importorskip("sklearn")
    page = DOCS / "own-method.md"
    typed("kdtool teach --data digits --network resnet8 --student resnet8")
    Reader(lambda words: [*smaller(words), *(["--views", "2"] if words[1] == "extract" else [])]).follow(page)
    assert (work / "cosine.py").read_text() == (ROOT / "examples" / "cosine.py").read_text()
    (first,) = (work / "runs").glob("*cosine*")
    assert 'method = "cosine:Cosine"' in (first / "config.toml").read_text()
    typed(f"kdtool distill --config {first}/config.toml --run again")
    weights = [(folder / "student.safetensors").read_bytes() for folder in (first, work / "runs" / "again")]
    assert weights[0] == weights[1]


def test_networks_and_data_of_ones_own(work: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    tiny_cifar100(work / "data")
    tiny_photographs(work / "photographs")
    torch.save(torchvision.models.resnet18().state_dict(), work / "resnet18.pth")
    Reader(tiny).follow(DOCS / "networks-and-data.md")
    assert (work / "small_net.py").read_text() == (ROOT / "examples" / "small_net.py").read_text()


def tiny(words: list[str]) -> list[str]:
    """The words of a command, for twelve pictures."""
    if trains(words):
        batch = "4" if "--epochs" in words or "--few-shot" in words else "6"
        return [*words, "--batch", batch, "--epochs", "1"]
    views = ["--views", "2", *([] if "--for" in words else ["--no-srm"])]
    return [*words, *(views if words[1] == "extract" else [])]


def test_a_sweep_of_ones_own(work: Path) -> None:
    pytest.importorskip("sklearn")
    small = {"resnet14": "resnet8", "epochs = 8": "epochs = 2", "views = 8": "views = 2", "seeds = 3": "seeds = 2"}
    reader = Reader()
    for block in blocks(DOCS / "reproduce.md"):
        reader.do(block)
        if block.file == "sweep.toml":
            text = block.text
            for written, tiny in small.items():
                assert written in text
                text = text.replace(written, tiny)
            (work / "sweep.toml").write_text(text)
    table = (work / "sweep.md").read_text()
    assert re.search(r"\| alpha 0.04 \| before_fc \| [0-9.]+ ± [0-9.]+ \| 2 \|", table)


def test_the_commands_on_performance_run() -> None:
    Reader().follow(DOCS / "performance.md")


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


def tiny_photographs(folder: Path) -> None:
    """Twelve small pictures to train in three classes, and six to test."""
    draw = np.random.default_rng(1)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog", "owl"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (int(draw.integers(30, 80)), 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.jpg")


# Links and names


def anchors(page: Path) -> set[str]:
    """What a link to a part of a page may name: its headings, as GitHub makes anchors of them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = sum(known == anchor or known.startswith(f"{anchor}-") for known in found)
        found.add(f"{anchor}-{number}" if anchor in found else anchor)
    return found


OTHERS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")]


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(DOCS.glob("*/*.md")), *OTHERS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"https?:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_the_index_has_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    linked = re.findall(r"^\| \[[^]]*\]\(([\w-]+\.md)\)", index, flags=re.MULTILINE)
    assert sorted(linked) == sorted(page.name for page in DOCS.glob("*.md") if page.name != "README.md")


def test_every_method_has_its_mathematics() -> None:
    titles = re.findall(r"^### `(\w+)`", MATHEMATICS.read_text(), flags=re.MULTILINE)
    assert sorted(titles) == sorted(METHODS)


def named_in(page: Path) -> list[str]:
    """All names of modules and of what is in them that a page has, as `kdtool.methods.kda.kda_loss`."""
    return sorted(set(re.findall(r"`(kdtool(?:\.\w+)+)`", page.read_text())))


@pytest.mark.parametrize("page", [page for page in PAGES if named_in(page)], ids=lambda page: page.name)
def test_named_functions_exist(page: Path) -> None:
    missing = [name for name in named_in(page) if found(name) is None and not name.endswith(".toml")]
    assert missing == []


def found(name: str) -> object:
    """The module, function or class of a name; None where there is none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if importlib.util.find_spec(".".join(parts[:1])) is None:
            return None
        try:
            value: object = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            value = getattr(value, part, None)
        return value
    return None


def test_named_tests_exist() -> None:
    for path, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", MATHEMATICS.read_text()):
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


def formulas(page: Path) -> list[str]:
    """All formulas of a page, in lines of their own and within the text."""
    text = re.sub(r"`[^`]*`", "", page.read_text())
    shown = re.findall(r"\$\$(.+?)\$\$", text, flags=re.DOTALL)
    return [*shown, *re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL))]


def test_formulas_are_such_as_github_shows() -> None:
    """Markdown is read before formulas: it takes backslashes before signs away, and makes emphasis of `_` and `*`."""
    odd = re.compile(r"\\[^A-Za-z]|(?<![A-Za-z0-9])_|[*~<>|]|\\operatorname")
    found = formulas(MATHEMATICS)
    assert len(found) > 100
    assert [formula for formula in found if odd.search(formula)] == []
    for formula in found:
        assert formula.count("{") == formula.count("}"), formula
        assert formula.count(r"\left(") == formula.count(r"\right)"), formula
        assert formula.count(r"\lVert") == formula.count(r"\rVert"), formula


# Tables that a script makes


def test_the_figures_of_reliability_are_those_of_the_last_long_run() -> None:
    page = PAGE.read_text()
    assert page == with_table(page)


def test_the_tables_of_performance_are_those_of_the_last_measurements() -> None:
    page = (DOCS / "performance.md").read_text()
    spec = importlib.util.spec_from_file_location("speed", ROOT / "benchmarks" / "speed.py")
    assert spec is not None
    assert spec.loader is not None
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    assert page == speed.with_tables(page)
