"""Command lines and configurations that are wrong are refused in a few lines: exit 2, no traceback, nothing written.

Every case is a valid line or file with one seeded mutation after which it cannot be valid: by construction, not because
kdtool refuses it. What is left out: an option that is given twice, of which the last counts, and a command that says
too little, which gets its help.
"""

import json
import random
import shutil
import string
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from kdtool.cli.commands import app
from kdtool.cli.main import run
from kdtool.data import DATASETS
from kdtool.engine.runs import toml
from kdtool.methods import METHODS
from kdtool.models import MODELS

CASES = 200
OURS = [name for name in MODELS if ":" not in name]  # torchvision's are made for larger images


@dataclass(frozen=True)
class Case:
    """Words, of which {work}, {data}, {free} and {config} stand for paths, and what the file at {config} holds."""

    words: list[str]
    config: bytes = b""
    settings: bytes | None = None  # what kdtool.toml holds in a folder of its own, {free}


LINES = {
    "teach": "--data cifar10 --data-folder {data} --network resnet8 --student resnet8 --views 3 --recipe kda "
    "--epochs 2 --batch 16 --learning-rate 0.1 --weight-decay 0.001 --optimizer sgd --schedule cosine --seed 3 "
    "--device cpu --precision float32 --folder {free}",
    "extract": "--for kda --student resnet8 --set weight=1 --views 2 --batch 16 --block 16 --fit-views 4 --seed 0 "
    "--dtype float32 --precision float32 --device cpu --folder {work}",
    "distill": "--method kda --layer before_fc --set weight=1 --student resnet8 --views 2 --recipe kda --epochs 3 "
    "--batch 16 --learning-rate 0.1 --weight-decay 0.001 --optimizer sgd --schedule cosine --shuffle-block 16 --seed 1 "
    "--device cpu --precision float32 --run new --folder {work}",
    "plan": "--for kda --student resnet8 --views 3 --seed 0 --dtype float32 --device cpu --folder {work}",
    "analyze gram-gap": "{work}/runs/first --layer before_fc --part train --algorithm moments --device cpu "
    "--folder {work}",
    "analyze bounds": "{work}/runs/first --layer before_fc --kind class --rank 2 --part train --folder {work}",
    "analyze similarity": "{work}/runs/first --part test --temperature 2 --device cpu --folder {work}",
    "report": "{work}/runs --out {free}/report.html --folder {work}",
    "cache info": "{work}/cache.zarr --folder {work}",
    "cache verify": "{work}/cache.zarr --replay 4 --device cpu --folder {work}",
    "methods": "kda --student resnet8x4 --teacher resnet32x4 --classes 100",
    "models": "--classes 10",
    "quickstart": "--epochs 2 --folder {free}",
    "bench": "kernels --device cpu --precision float32",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "teach": {"command": "teach", "data": "cifar10", "network": "resnet8", "student": "resnet8", "views": 3, "seed": 3},
    "extract": {"for": ["kda"], "student": ["resnet8"], "views": 2, "batch": 16, "block": 16, "dtype": ["float32"]},
    "plan": {"for": ["kda"], "student": ["resnet8"], "views": 2, "clean": [], "seed": 0},
    "distill": {"method": "kda", "layer": ["before_fc"], "views": 2, "seed": 1, "run": "new", "student": "resnet8"},
}
RECIPE = {"epochs": 3, "batch": 16, "learning_rate": 0.1, "momentum": 0.9, "nesterov": False, "milestones": []}
TABLES = {"teach": {"recipe": RECIPE}, "distill": {"recipe": RECIPE, "set": {"weight": 1.0}}}
SETTINGS = {"data": "cifar10", "teacher": "teacher.safetensors", "student": "resnet8", "cache": "cache.zarr"}

# No value of these options and keys; numbers that are merely unwise, such as a million epochs, are not among them.
BEYOND: dict[str, list[str]] = {
    "epochs": ["0", "-1", "-99999999999999999999"],
    "batch": ["0", "-1", "-16"],
    "learning-rate": ["0", "-0.1", "nan", "inf", "-inf", "1e999"],
    "weight-decay": ["-1", "nan", "inf", "-1e-9"],
    "seed": ["-1", "4294967296", "99999999999999999999999999"],
    "views": ["-1", "163", "100000", "99999999999999999999"],
    "block": ["0", "-16", "17"],
    "fit-views": ["163", "-1"],
    "shuffle-block": ["-1"],
    "classes": ["0", "1", "-1"],
    "replay": ["-1", "0"],
    "few-shot": ["0", "-1", "100000"],
    "validation": ["-1", "100000"],
}
NAMES: dict[str, list[str]] = {  # options and keys whose values are names
    "data": list(DATASETS),
    "network": OURS,
    "student": OURS,
    "teacher": OURS,
    "method": list(METHODS),
    "for": list(METHODS),
    "with": ["kd"],
    "layer": ["before_fc", "after_fc", "stage1"],
    "recipe": ["kda", "crd", "icd", "srm"],
    "optimizer": ["sgd", "adam"],
    "schedule": ["cosine", "step", "constant"],
    "device": ["cpu", "cuda"],
    "precision": ["float32", "bfloat16"],
    "dtype": ["float16", "float32"],
    "part": ["train", "test", "validation"],
    "algorithm": ["moments", "blocked"],
}
NO_NUMBERS = ["many", "", "1.5.2", "0x10", "1,000", "½", "--", "1e", "null", "[3]", "1\x002", "٣%", "∞", "\x1b[3m"]
ODD = ["\x00", "\x1b[31m", "\x7f", "é", "\u202e", "💥", "\r\n", "\udcff", " ", "'", '"', "$(id)", "%s", "{}", "\\"]
ABSENT = ["{free}/absent", "{free}/absent/deep", "/proc/absent", "{free}/a\x1bb", "{free}/💥", "{config}/below"]


def options(command: str) -> dict[str, Any]:
    """Option -> parameter, of a command."""
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]
    return {name: parameter for parameter in found.params for name in parameter.opts if name.startswith("--")}


def misspelt(draw: random.Random, name: str, known: Any) -> str:
    """A name with another letter, one more, one less, or two in another order, that is none of the known ones."""
    while True:
        place = draw.randrange(len(name))
        letter = draw.choice(string.ascii_lowercase)
        changed = draw.choice(
            [
                name[:place] + letter + name[place + 1 :],
                name[:place] + letter + name[place:],
                name[:place] + name[place + 1 :],
                name[:place] + name[place + 1 : place + 2] + name[place] + name[place + 2 :],
                name.upper(),
                name + draw.choice(ODD),
                draw.choice(ODD) + name,
            ]
        )
        if changed.strip() and changed not in known and changed.strip() == changed:
            return changed


def option_misspelt(draw: random.Random, command: str, words: list[str]) -> Case:
    known = options(command)
    name = draw.choice([name for name in known if len(name) > 4])
    changed = "--" + misspelt(draw, name[2:], {known_name[2:] for known_name in known} | {"help"})
    return Case([*words, changed, "1"] if draw.random() < 0.5 else [*words, f"{changed}=1"])


def option_of_another(draw: random.Random, command: str, words: list[str]) -> Case:
    others = {name for other in LINES for name in options(other)} - set(options(command))
    return Case([*words, draw.choice(sorted(others)), "1"])


def value_missing(draw: random.Random, command: str, words: list[str]) -> Case:
    return Case([*words, draw.choice([name for name, kind in options(command).items() if not kind.is_flag])])


def value_of_a_flag(draw: random.Random, command: str, words: list[str]) -> Case:
    flags = [name for name, kind in options(command).items() if kind.is_flag]
    if not flags:
        return option_misspelt(draw, command, words)
    return Case([*words, f"{draw.choice(flags)}={draw.choice(['1', 'yes', '', 'false'])}"])


def no_number(draw: random.Random, command: str, words: list[str]) -> Case:
    numbers = [name for name in options(command) if name[2:] in BEYOND]
    if not numbers:
        return value_missing(draw, command, words)
    name, value = draw.choice(numbers), draw.choice(NO_NUMBERS)
    return Case([*words, f"{name}={value}"] if draw.random() < 0.5 or value == "--" else [*words, name, value])


def beyond(draw: random.Random, command: str, words: list[str]) -> Case:
    names = [name for name in BEYOND if f"--{name}" in options(command)]
    names = [name for name in names if (command, name) not in (("teach", "views"), ("cache verify", "replay"))]
    if not names:
        return no_number(draw, command, words)
    name = draw.choice(names)
    return Case([*words, f"--{name}={draw.choice(BEYOND[name])}"])


def unknown_name(draw: random.Random, command: str, words: list[str]) -> Case:
    names = [name for name in NAMES if f"--{name}" in words]
    names = [name for name in names if (command, name) not in (("plan", "dtype"), ("cache verify", "device"))]
    if not names:
        return Case([*command.split()[:-1], misspelt(draw, command.split()[-1], app_commands(command)), *words[-2:]])
    name = draw.choice(names)
    return Case([*words, f"--{name}={misspelt(draw, draw.choice(NAMES[name]), NAMES[name])}"])


def app_commands(command: str) -> set[str]:
    found: Any = typer.main.get_command(app)
    for word in command.split()[:-1]:
        found = found.commands[word]
    return set(found.commands)


def too_many_words(draw: random.Random, command: str, words: list[str]) -> Case:
    if command in ("report", "methods"):  # which take any number
        return Case([*words, draw.choice(ABSENT) if command == "report" else misspelt(draw, "kda", METHODS)])
    return Case([*words, "{free}/one", draw.choice(["two", "", "-", "💥"])])


def wrong_path(draw: random.Random, command: str, words: list[str]) -> Case:
    """A path that is absent, a folder in a file's place, or a file in a folder's."""
    absent = draw.choice(ABSENT)
    choices = [[*words, "--config", path] for path in (absent, "{work}", "{work}/cache.zarr", "/dev/null/x", "{data}")]
    found = {
        "teach": [*choices, [*words, "--data-folder", absent], [*words, "--folder", "{config}"]],
        "extract": [*choices, [*words, "--data-folder", absent], [*words, "--cache", "{data}"]],
        "distill": [*choices, *([*words, "--cache", path] for path in (absent, "{config}", "{data}"))],
        "plan": [*choices, [*words, "--data-folder", absent]],
        "analyze gram-gap": [["analyze", "gram-gap", path, *words[3:]] for path in (absent, "{data}", "{config}")],
        "analyze bounds": [["analyze", "bounds", path, *words[3:]] for path in (absent, "{data}", "{config}")],
        "analyze similarity": [["analyze", "similarity", path, *words[3:]] for path in (absent, "{data}", "{config}")],
        "report": [["report", path, *words[2:]] for path in (absent, "{config}", "{data}")],
        "cache info": [["cache", "info", path] for path in (absent, "{data}", "{config}", "{work}/runs")],
        "cache verify": [["cache", "verify", path, "--quiet"] for path in (absent, "{data}", "{work}/runs")],
    }
    return Case(draw.choice(found[command])) if command in found else option_of_another(draw, command, words)


def wrong_setting(draw: random.Random, command: str, words: list[str]) -> Case:
    """`--set` of a method's option."""
    if "--set" not in words:
        return option_of_another(draw, command, words)
    wrong = ["weight", "=1", "", "weight=", "weight=heavy", "weight=nan", "weight=inf", "kda.=1", "kad.weight=1"]
    wrong += ["whiten=2", "landmarks=💥", "a.b.c=1", "weight=1=2", "whiten=\x00"]
    wrong += [f"{misspelt(draw, 'weight', {'weight'})}=1"]
    return Case([*words, "--set", draw.choice(wrong)])


LINE_MUTATIONS: list[Callable[[random.Random, str, list[str]], Case]] = [
    option_misspelt,
    option_of_another,
    value_missing,
    value_of_a_flag,
    no_number,
    beyond,
    unknown_name,
    too_many_words,
    wrong_path,
    wrong_setting,
]


def other_kind(draw: random.Random, value: Any) -> str:
    """The TOML of a value of another type."""
    kinds = {
        str: ["5", "2.5", "true", "[5]", "{ a = 1 }", "1979-05-27", "nan", "[]", "[[]]"],
        bool: ["1", '"yes"', "0.0", "[true]", "{ }"],
        int: ['"three"', "2.5", "true", "[3]", "nan", "inf", "{ a = 1 }", "07:32:00", '""', "1e3"],
        float: ['"0.1"', "true", "[0.1]", '"nan"', "1979-05-27T07:32:00Z", '""'],
        list: ['"kda"', "[5]", '{ a = "b" }', "3", '[["kda"]]', "true", '["kda", 5]', "[nan]", '""'],
        dict: ["3", "[]", "true", '["weight"]', "1979-05-27", "inf"],
    }
    return draw.choice(kinds[type(value)])


def written(values: dict[str, Any], tables: dict[str, Any]) -> str:
    return toml({**values, **tables})


def line_of(key: str, value: str) -> str:
    return f"{key} = {value}\n"


def without(text: str, key: str) -> str:
    return "".join(f"{line}\n" for line in text.split("\n") if line and not line.startswith(f"{key} ="))


def key_misspelt(draw: random.Random, values: dict[str, Any], text: str) -> bytes:
    key = misspelt(draw, draw.choice([key for key in values if len(key) > 3]), {*values, "set", "seed", "data"})
    return (line_of(json.dumps(key), "1") + text).encode()


def key_of_another_type(draw: random.Random, values: dict[str, Any], text: str) -> bytes:
    key = draw.choice([key for key in values if key not in ("clean",)])
    return (line_of(key, other_kind(draw, values[key])) + without(text, key)).encode()


def value_beyond(draw: random.Random, values: dict[str, Any], text: str) -> bytes:
    key = draw.choice([key for key in values if key in BEYOND and not (key == "views" and "network" in values)])
    value = draw.choice([value for value in BEYOND[key] if len(value) < 19])
    return (line_of(key, value) + without(text, key)).encode()


def value_unknown(draw: random.Random, values: dict[str, Any], text: str) -> bytes:
    key = draw.choice([key for key in values if key in NAMES])
    name = json.dumps(misspelt(draw, draw.choice(NAMES[key]), NAMES[key]))
    return (line_of(key, f"[{name}]" if isinstance(values[key], list) else name) + without(text, key)).encode()


def broken(draw: random.Random, values: dict[str, Any], text: str) -> bytes:
    """No TOML: cut, with a letter too much, with a key twice, with bytes that are no text."""
    while True:
        place, odd = draw.randrange(len(text)), draw.choice([b'"', b"[", b"=", b"\x00", b"}", b"'''", b"\\"])
        content = draw.choice(
            [
                text[:place].encode(),
                text[:place].encode() + odd + text[place:].encode(),
                (text + text).encode(),
                text.encode("utf-16"),
                draw.randbytes(200),
                text[:place].encode() + b"\xff\xfe" + text[place:].encode(),
                b"[" * 300,
                b"\x80\x04}q\x00.",
                text.replace("=", ":").encode(),
                f"{text}\n[recipe]\n[recipe]\n".encode(),
                b"{" + text.encode() + b"}",
            ]
        )
        try:
            tomllib.loads(content.decode())
        except (ValueError, RecursionError):
            return content


def nested_wrongly(draw: random.Random, values: dict[str, Any], text: str) -> bytes:
    key = draw.choice([key for key in values if key != "command"])
    rest = without(text, key)
    return draw.choice(
        [
            f"{rest}\n[{key}]\nvalue = 1\n",
            f"{rest}\n[[{key}]]\nvalue = 1\n",
            f"{rest}\n[{key}.deep.deeper]\n",
            f"{key}.value = 1\n{rest}",
            f"[distill]\n{rest}",
            f"[options]\n{rest}",
            f'{rest}\n[recipe.kda]\nweight = 1\n\n["recipe"."momentum"]\n',
            f"{rest}\n[set.kda.weight]\nvalue = 1\n" if "for" in values else f"[x]\n{rest}",
        ]
    ).encode()


def of_another_command(draw: random.Random, values: dict[str, Any], text: str) -> bytes:
    alike = ("extract", "plan") if "for" in values else ()  # plan takes the configuration of extract
    known = [name for name in CONFIGS if CONFIGS[name] != values and name not in alike]
    other = draw.choice([*known, "quickstart", "💥"])
    return (line_of("command", f'"{other}"') + without(text, "command")).encode()


FILE_MUTATIONS: list[Callable[[random.Random, dict[str, Any], str], bytes]] = [
    key_misspelt,
    key_of_another_type,
    value_beyond,
    value_unknown,
    broken,
    nested_wrongly,
    of_another_command,
]


def case(seed: int) -> Case:
    """Case 0, 1, 2 ...: of ten, six are lines, three configurations, one the defaults of a working folder."""
    draw = random.Random(seed)
    turn, number = divmod(seed, 10)
    if number < 6:
        command = list(LINES)[(turn * 6 + number) % len(LINES)]
        words = [*command.split(), *LINES[command].split()]
        return LINE_MUTATIONS[(turn * 6 + number) // len(LINES) % len(LINE_MUTATIONS)](draw, command, words)
    if number < 9:
        command = list(CONFIGS)[(turn * 3 + number) % len(CONFIGS)]
        tables = {name: dict(table) for name, table in TABLES.get(command, {}).items()}
        mutate = FILE_MUTATIONS[(turn * 3 + number) % len(FILE_MUTATIONS)]
        content = mutate(draw, CONFIGS[command], written(CONFIGS[command], tables))
        folder = ["--data-folder", "{data}", "--folder", "{free}"] if command == "teach" else ["--folder", "{work}"]
        return Case([command, "--config", "{config}", *folder], content)
    mutate = draw.choice([key_misspelt, key_of_another_type, broken])
    line = draw.choice(["distill --method kda", "extract", "plan", "analyze gram-gap", "cache info", "cache verify"])
    settings = mutate(draw, SETTINGS, written(SETTINGS, {}))
    return Case([*line.split(), "--folder", "{free}"], settings=settings)


def write_cifar10(folder: Path) -> Path:
    """The binary form of a CIFAR-10 of 40 images and 20 of test."""
    draw = np.random.default_rng(5)
    place = folder / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        count = 20 if name == "test_batch" else 8
        labels = (np.arange(count) + 8 * number)[:, None] % 10
        records = np.concatenate([labels, draw.integers(0, 256, (count, 3072))], axis=1)
        (place / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())
    (place / "batches.meta.txt").write_text("".join(f"class{number}\n" for number in range(10)))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, in which every stage has run; no case changes it."""
    folder = tmp_path_factory.mktemp("fuzzed")
    data = write_cifar10(folder / "data")
    common = "--batch 16 --precision float32"
    for line in (
        f"teach --data cifar10 --data-folder {data} --network resnet8 --student resnet8 --epochs 2 {common} --quiet",
        f"extract --no-srm --views 3 {common} --block 16 --dtype float32 --quiet",
        f"distill --method kda --layer before_fc --epochs 2 {common} --run first --quiet",
    ):
        assert run([*line.split(), "--folder", str(folder / "work")]) == 0, line
    return folder


@pytest.fixture(scope="module")
def counts(figure: Callable[..., None]) -> Iterator[dict[str, int]]:
    """How many cases there were, and how many were refused as they should be."""
    found = {"tried": 0, "clean": 0}
    yield found
    figure("fuzzed configs and lines", **found)


def entries(root: Path) -> dict[str, float]:
    return {str(path): path.lstat().st_mtime for path in sorted(root.rglob("*"))}


def places_of(work: Path, data: Path, folder: Path) -> dict[str, Path]:
    return {"work": work, "data": data, "free": folder / "free", "config": folder / "config.toml"}


def filled(words: list[str], places: dict[str, Path]) -> list[str]:
    """Words with the paths in the places of their names."""
    for name, place in places.items():
        words = [word.replace(f"{{{name}}}", str(place)) for word in words]
    return words


def prepared(made: Case, work: Path, data: Path, folder: Path) -> list[str]:
    """Writes the files of a case; gives its words."""
    (folder / "config.toml").write_bytes(made.config)
    (folder / "free").mkdir()
    if made.settings is not None:
        (folder / "free/kdtool.toml").write_bytes(made.settings)
    return filled(made.words, places_of(work, data, folder))


@pytest.mark.parametrize("seed", range(CASES))
def test_what_is_malformed_is_refused_in_a_few_lines(
    seed: int, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: dict[str, int]
) -> None:
    made = case(seed)
    words = prepared(made, built / "work", built / "data", tmp_path)
    before = entries(built), entries(tmp_path)
    capsys.readouterr()
    code = run(words)
    out, err = capsys.readouterr()
    clean = code == 2 and not out and 1 <= len(err.splitlines()) <= 3 and err.endswith("\n")
    clean &= "Traceback" not in err and "bug in kdtool" not in err and (entries(built), entries(tmp_path)) == before
    counts["tried"] += 1
    counts["clean"] += clean
    assert clean, (words, made.config, made.settings, code, out, err)


def test_what_is_mutated_is_valid(built: Path, tmp_path: Path) -> None:
    """So that a case is refused for its mutation alone."""
    work = Path(shutil.copytree(built / "work", tmp_path / "work"))
    (tmp_path / "free").mkdir()
    places = places_of(work, built / "data", tmp_path)
    for command, line in LINES.items():
        if command != "quickstart":  # which takes a minute
            assert run(filled([*command.split(), *line.split()], places)) == 0, command
    for command, values in CONFIGS.items():
        shutil.rmtree(work)
        shutil.copytree(built / "work", work)
        (tmp_path / "config.toml").write_text(written(values, TABLES.get(command, {})))
        folder = ["--data-folder", "{data}", "--folder", "{free}/x"] if command == "teach" else ["--folder", "{work}"]
        assert run(filled([command, "--config", "{config}", *folder], places)) == 0, command
    (work / "kdtool.toml").write_text(toml({**SETTINGS, "data_folder": str(built / "data")}))
    assert run(["plan", "--folder", str(work)]) == 0


DEEP = b"a = " + b"[" * 5000
KDA = ["distill", "--method", "kda", "--epochs", "2", "--folder", "{work}"]
TEACH = [
    "teach",
    "--data",
    "cifar10",
    "--data-folder",
    "{data}",
    "--network",
    "resnet8",
    "--epochs",
    "2",
    "--batch",
    "16",
]
ONCE_WRONG = {
    "a dtype that plan does not look at": Case(["plan", "--dtype", "float23", "--folder", "{work}"]),
    "a number that is refused after the result": Case(["cache", "verify", "--replay", "0", "--folder", "{work}"]),
    "a device that is": Case(["cache", "verify", "--replay", "2", "--device", "cp", "--folder", "{work}"]),
    "a deep configuration": Case(["extract", "--config", "{config}", "--folder", "{work}"], DEEP),
    "deep defaults": Case(["plan", "--folder", "{free}"], settings=DEEP),
    "a long name of a folder": Case(["report", "{free}/" + "x" * 300]),
    "more images than there are numbers": Case(["plan", "--validation", "9" * 20, "--folder", "{work}"]),
    "more classes than there are numbers": Case(["models", "--classes", "9" * 20]),
    "more classes of a method": Case(["methods", "kda", "--classes", "9" * 20]),
    "a zero in a run": Case([*KDA, "--config", "{config}"], b'run = "a\\u0000b"'),
    "a zero in a cache": Case(["extract", "--config", "{config}", "--folder", "{work}"], b'cache = "a\\u0000b"'),
    "a run of two lines": Case([*KDA, "--run", "a\nb"]),
    "a weight below 0": Case([*KDA, "--set", "weight=-1"]),
    "views that there are not": Case([*TEACH, "--views", "163"]),
}


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_what_was_once_answered_wrongly(
    name: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Path(shutil.copytree(built / "work", tmp_path / "work"))
    words = prepared(ONCE_WRONG[name], work, built / "data", tmp_path)
    capsys.readouterr()
    code = run(words)
    out, err = capsys.readouterr()
    assert code == 2
    assert not out
    assert len(err.splitlines()) == 1
