"""Damage of every kind: found, named, told in one line with exit code 3, and mended to the byte."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import extracts
import pytest

from kdtool.cache import open_cache, verify
from kdtool.cli.main import run as command
from kdtool.engine.folder import Workspace
from kdtool.engine.recorded import Again
from kdtool.engine.repair import repair
from kdtool.progress import Silent, StopRequest

Trials = Callable[[int, int], int]
Figure = Callable[..., None]
TEXTS = ("manifest.json", "manifest.copy.json", "provenance.jsonl")


@pytest.fixture(scope="module")
def sound(made_up_taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache and a student; what a test damages it puts back."""
    folder = tmp_path_factory.mktemp("sound") / "work"
    shutil.copytree(made_up_taught, folder)
    extracts.run(folder)
    line = "distill --method kd --student resnet8 --epochs 2 --batch 32 --run student --quiet --folder"
    assert command([*line.split(), str(folder)]) == 0
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[str, str, str], str]:
    """Runs a command that must end with exit code 3 and one line that has a text; gives what it printed."""

    def call(line: str, folder: str, text: str) -> str:
        capsys.readouterr()
        code = command([*line.split(), "--quiet", "--folder", folder])
        out, err = capsys.readouterr()
        assert code == 3, err
        assert err.count("\n") == 1
        assert text in err
        return out

    return call


def cache_files(folder: Path, chunks: bool) -> list[str]:
    """The chunks of a cache, or all its other files but the lock, as paths below it."""
    cache = folder / "cache.zarr"
    recorded = set(open_cache(cache).manifest.files)
    found = [path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()]
    return sorted(name for name in found if name != "lock" and (name in recorded) == chunks)


def flipped(content: bytes, draw: random.Random) -> bytes:
    bit = draw.randrange(len(content) * 8)
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.timeout(7200)
def test_flipped_bits_of_a_cache(sound: Path, refused: Callable[..., str], trials: Trials, figure: Figure) -> None:
    draw, total = random.Random(1), trials(40, 500)
    chunks, others = cache_files(sound, True), cache_files(sound, False)
    for number in range(total):
        name = draw.choice(chunks if number % 2 else others)
        path = sound / "cache.zarr" / name
        content = path.read_bytes()
        path.write_bytes(flipped(content, draw))
        assert f"{name}: " in refused("cache verify", str(sound), "damaged or missing files")
        path.write_bytes(content)
    figure("bits flipped in chunks, metadata and manifest", tried=total, found=total, named=total)


@pytest.mark.timeout(7200)
def test_flipped_bits_of_weights(sound: Path, refused: Callable[..., str], trials: Trials, figure: Figure) -> None:
    draw, total = random.Random(2), trials(6, 100)
    for number in range(total):
        name, line = (
            ("teacher.safetensors", "extract --views 2 --batch 16 --block 48 --fit-views 2"),
            ("runs/student/student.safetensors", "analyze gram-gap"),
        )[number % 2]
        path = sound / name
        content = path.read_bytes()
        path.write_bytes(flipped(content, draw))
        refused(line, str(sound), f"{path.name} is damaged: its SHA-256 is")
        path.write_bytes(content)
    figure("bits flipped in weights", tried=total, found=total, named=total)


def truncated(cache: Path, name: str, draw: random.Random) -> list[str]:
    content = (cache / name).read_bytes()
    (cache / name).write_bytes(content[: draw.randrange(len(content))])
    return [name]


def deleted(cache: Path, name: str, draw: random.Random) -> list[str]:
    (cache / name).unlink()
    return [name]


def swapped(cache: Path, name: str, draw: random.Random) -> list[str]:
    """With another chunk of the same array where there is one: both have right checksums of their own."""
    array = name.rsplit("/c/", 1)[0]
    others = [other for other in open_cache(cache).manifest.files if other.startswith(f"{array}/c/") and other != name]
    contents = {other: (cache / other).read_bytes() for other in others}
    others = [other for other, content in contents.items() if content != (cache / name).read_bytes()]
    if not others:
        return []
    other = draw.choice(others)
    content = (cache / name).read_bytes()
    (cache / name).write_bytes(contents[other])
    (cache / other).write_bytes(content)
    return sorted([name, other])


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("damage", [truncated, deleted, swapped])
def test_damaged_chunks_are_named_and_mended_to_the_byte(
    damage: Callable[..., list[str]], sound: Path, refused: Callable[..., str], trials: Trials, figure: Figure
) -> None:
    draw, total, tried = random.Random(3), trials(6, 100), 0
    cache, workspace = sound / "cache.zarr", Workspace.open(sound)
    wanted, chunks = extracts.files(cache), cache_files(sound, True)
    while tried < total:
        names = damage(cache, draw.choice(chunks), draw)
        if not names:
            continue
        lines = refused("cache verify", str(sound), f"{len(names)} damaged or missing files").splitlines()
        assert [line.split(":")[0] for line in lines] == names
        found = repair(workspace, Again(), Silent(), StopRequest())
        assert found.chunks == tuple(names)
        assert extracts.files(cache) == wanted
        tried += 1
    assert verify(cache) == []
    figure(f"chunks {damage.__name__}", tried=tried, found=tried, named=tried, mended=tried)
