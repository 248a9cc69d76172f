"""Pictures in files: what is wrong with each is told before anything else happens, once, and what is right is RGB."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from kdtool import data
from kdtool.data import index, pictures
from kdtool.data.listing import WrongPicturesError, by_class, classes_below, files_below
from kdtool.data.pictures import FINDINGS, Pictures, examine, stamp
from kdtool.errors import DamageError, UsageError
from kdtool.progress import Silent

RNG = np.random.default_rng(4)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("index")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


def made(mode: str = "RGB", size: tuple[int, int] = (13, 8)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = RNG.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode == "1":
        return Image.fromarray(pixels[..., 0]).convert("1")
    return Image.merge(mode, [Image.fromarray(pixels[..., channel]) for channel in range(channels)])


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def frames(form: str, **options: Any) -> bytes:
    return encoded(made(), form, save_all=True, append_images=[made(), made()], **options)


NOISE = made(size=(60, 50))
WRONG: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty.png": ("is empty", lambda: b""),
    "text.jpg": ("is no picture of a known format", lambda: b"not a picture at all"),
    "postscript.jpg": (
        "is no picture of a known format",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n",
    ),
    "half.jpg": ("is truncated or damaged", lambda: encoded(NOISE, "JPEG")[:1500]),
    "half.png": ("is truncated or damaged", lambda: encoded(NOISE, "PNG")[:4000]),
    "flipped.png": ("is truncated or damaged", lambda: encoded(NOISE, "PNG").replace(b"IDAT", b"IDAT\xff", 1)),
    "bomb.png": ("has more than 89,478,485 pixels", lambda: png(30_000, 30_000, 8, 2, b"")),
    "large.png": ("has more than 89,478,485 pixels", lambda: png(9_460, 9_460, 8, 2, b"")),
    "print.jpg": ("has the four colours of print (CMYK)", lambda: encoded(made("CMYK"), "JPEG")),
    "grey16.png": ("has more than 8 bits a colour", lambda: png(2, 1, 16, 0, b"\0abcd")),
    "rgb16.png": ("has more than 8 bits a colour", lambda: png(1, 1, 16, 2, b"\0abcdef")),
    "rgba16.png": ("has more than 8 bits a colour", lambda: png(1, 1, 16, 6, b"\0abcdefgh")),
    "rgb16.ppm": ("has more than 8 bits a colour", lambda: b"P6 1 1 65535\nabcdef"),
    "grey16.tif": ("has more than 8 bits a colour", lambda: encoded(Image.new("I;16", (3, 2)), "TIFF")),
    "float.tiff": ("has more than 8 bits a colour", lambda: encoded(Image.new("F", (3, 2)), "TIFF")),
    "moving.gif": ("is animated", lambda: frames("GIF")),
    "moving.png": ("is animated", lambda: frames("PNG")),
    "pages.tif": ("is animated", lambda: frames("TIFF")),
    "other.jpg": ("has not the ending of its format", lambda: encoded(made(), "PNG")),
    "other.png": ("has not the ending of its format", lambda: encoded(made(), "JPEG")),
    "none": ("has not the ending of its format", lambda: encoded(made(), "JPEG")),
}
if features.check("webp"):
    WRONG["moving.webp"] = ("is animated", lambda: frames("WEBP"))


def test_every_wrong_picture_is_told_with_what_is_wrong(tmp_path: Path) -> None:
    for name in ("cat", "owl"):
        (tmp_path / name).mkdir()
        for number in range(20):
            made().save(tmp_path / name / f"{number:02d}.png")
    for name, (_, content) in WRONG.items():
        (tmp_path / "cat" / name).write_bytes(content())
    with pytest.raises(DamageError) as caught:
        data.load("folder", tmp_path)
    assert isinstance(caught.value, WrongPicturesError)
    assert dict(caught.value.wrong) == {f"cat/{name}": finding for name, (finding, _) in WRONG.items()}
    message = str(caught.value)
    assert message.startswith(f"{len(WRONG)} pictures in {tmp_path} cannot be used: ")
    assert sum(f"cat/{name} {finding}" in message for name, (finding, _) in WRONG.items()) == 20
    command = f"`kdtool data check folder --data-folder {tmp_path} --json` lists"
    assert f" and {len(WRONG) - 20} more, which {command}" in message
    for name in [*WRONG][1:]:
        (tmp_path / "cat" / name).unlink()
    with pytest.raises(DamageError, match=r"^1 picture in \S* cannot be used: cat/empty\.png is empty; convert or"):
        data.load("folder", tmp_path)


def test_what_is_no_file_cannot_be_read(tmp_path: Path) -> None:
    for name in ("cat", "owl"):
        (tmp_path / name).mkdir()
        for number in range(5):
            made().save(tmp_path / name / f"{number}.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # nobody writes into it
    (tmp_path / "cat" / "loop.png").symlink_to("loop.png")
    (tmp_path / "cat" / "gone.png").symlink_to("absent.png")
    (tmp_path / "cat" / "null.png").symlink_to("/dev/null")
    with pytest.raises(WrongPicturesError) as caught:
        data.load("folder", tmp_path)
    names = ("gone", "loop", "null", "pipe")
    assert sorted(caught.value.wrong) == [(f"cat/{name}.png", "cannot be read") for name in names]
    (tmp_path / "cat/pipe.png").unlink()
    (tmp_path / "cat/loop.png").unlink()
    made().save(tmp_path / "cat/absent.png")
    with pytest.raises(WrongPicturesError) as caught:  # looked at again, though nothing of the link has changed
        data.load("folder", tmp_path)
    assert caught.value.wrong == [("cat/null.png", "cannot be read")]


def test_a_file_without_permission_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    made().save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert FINDINGS[examine(path).finding] == "cannot be read"


def test_an_archive_among_pictures_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "all.zip").open("wb") as file:
        file.truncate(2**40)
    assert FINDINGS[examine(tmp_path / "all.zip").finding].startswith("is no picture")


PLAIN = {
    "RGB.png": lambda: encoded(made(), "PNG"),
    "grey.png": lambda: encoded(made("L"), "PNG"),
    "grey with a colour that is transparent.png": lambda: encoded(made("L"), "PNG", transparency=7),
    "RGB with a colour that is transparent.png": lambda: encoded(made(), "PNG", transparency=(1, 2, 3)),
    "bits.png": lambda: encoded(made("1"), "PNG"),
    "LA.png": lambda: encoded(made("LA"), "PNG"),
    "RGBA.png": lambda: encoded(made("RGBA"), "PNG"),
    "palette.png": lambda: encoded(made().quantize(16), "PNG"),
    "palette with a transparent colour.png": lambda: encoded(made().quantize(16), "PNG", transparency=3),
    "palette with transparencies.png": lambda: encoded(made().quantize(16), "PNG", transparency=bytes(range(9))),
    "palette.gif": lambda: encoded(made().quantize(16), "GIF"),
    "palette with a transparent colour.gif": lambda: encoded(made().quantize(16), "GIF", transparency=3),
    "grey.jpg": lambda: encoded(made("L"), "JPEG"),
    "RGB.JPEG": lambda: encoded(made(), "JPEG"),
    "RGB.jfif": lambda: encoded(made(), "JPEG"),
    "turned.jpg": lambda: encoded(
        made(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    ),
    "bad exif.jpg": lambda: encoded(made(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x1a\1\5\0\1\0\0\0\xff\xff"),
    "with a preview.jpg": lambda: encoded(made(), "MPO", save_all=True, append_images=[made(size=(4, 3))]),
    "RGB.bmp": lambda: encoded(made(), "BMP"),
    "grey.pgm": lambda: encoded(made("L"), "PPM"),
    "bits.pbm": lambda: encoded(made("1"), "PPM"),
    "few greys.pgm": lambda: b"P5 2 1 15\n\1\17",
    "RGB.tif": lambda: encoded(made(), "TIFF"),
}
if features.check("webp"):
    PLAIN["RGBA.webp"] = lambda: encoded(made("RGBA"), "WEBP", lossless=True)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, in the oracle
def test_plain_pictures_are_what_pillow_makes_of_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PLAIN[name]())
    seen = examine(path)
    assert FINDINGS.get(seen.finding) is None
    with Image.open(path) as picture:
        theirs = np.asarray(picture.convert("RGB"))
    held = Pictures(
        tmp_path,
        [name],
        np.array([[seen.height, seen.width]]),
        np.zeros((1, 32), np.uint8),
        np.array([stamp(tmp_path / name)]),
    )
    assert held[0].mode == "RGB"
    assert np.array_equal(np.asarray(held[0]), theirs)


def test_no_warning_of_pillow_reaches_the_user(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for name in ("bad exif.jpg", "palette with transparencies.png"):
        (tmp_path / name).write_bytes(PLAIN[name]())
        assert examine(tmp_path / name).finding == pictures.FINE
    (tmp_path / "large.png").write_bytes(WRONG["large.png"][1]())
    assert examine(tmp_path / "large.png").finding == pictures.TOO_LARGE
    assert not recwarn.list


def test_a_picture_that_changes_or_goes_is_told(tmp_path: Path) -> None:
    folders(tmp_path)
    found = data.load("folder", tmp_path)
    images = found.train.images
    assert isinstance(images, Pictures)
    made(size=(3, 3)).save(tmp_path / images.names[0])
    with pytest.raises(DamageError, match="has changed since it was examined"):
        images[0]
    (tmp_path / images.names[0]).unlink()
    with pytest.raises(DamageError, match=r"cannot be read any more \(FileNotFoundError"):
        images[0]


def folders(root: Path) -> None:
    for name in ("cat", "owl"):
        (root / name).mkdir(parents=True)
        for number in range(5):
            made().save(root / name / f"{number}.png")


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are examined, in any order."""
    names: list[str] = []

    def counted(path: Path) -> pictures.Seen:
        names.append(path.name)
        return examine(path)

    monkeypatch.setattr(index, "examine", counted)
    return names


def test_a_file_is_examined_once_until_it_changes(tmp_path: Path, examined: list[str]) -> None:
    folders(tmp_path)
    digest = data.load("folder", tmp_path).digest
    assert len(examined) == 10
    assert data.load("folder", tmp_path).digest == digest
    assert data.load("folder", tmp_path / "cat" / "..").digest == digest
    assert len(examined) == 10
    made().save(tmp_path / "cat/3.png")
    assert data.load("folder", tmp_path).digest != digest
    assert examined[10:] == ["3.png"]
    times = (tmp_path / "owl/1.png").stat()
    os.utime(tmp_path / "owl/1.png", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    data.load("folder", tmp_path)
    made().save(tmp_path / "owl/9.png")
    data.load("folder", tmp_path)
    assert examined[10:] == ["3.png", "1.png", "9.png"]


def test_processes_that_look_at_once_look_once_together(tmp_path: Path, examined: list[str]) -> None:
    folders(tmp_path)
    names = files_below(tmp_path, "cat") + files_below(tmp_path, "owl")
    with ThreadPoolExecutor(4) as ranks:  # each opens the lock for itself, as a process would
        found = list(ranks.map(lambda _: index.look(tmp_path, names, Silent()), range(4)))
    assert len(examined) == 10
    assert all(np.array_equal(found[0].digests, other.digests) for other in found)


def test_wrong_pictures_are_known_too(tmp_path: Path, examined: list[str]) -> None:
    folders(tmp_path)
    (tmp_path / "cat/9.png").write_bytes(b"text")
    for _ in range(2):
        with pytest.raises(WrongPicturesError, match=r"cat/9\.png is no picture"):
            data.load("folder", tmp_path)
    assert len(examined) == 11


@pytest.mark.parametrize("change", ["VERSION", "decoder"])
def test_another_version_is_another_index(
    tmp_path: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folders(tmp_path)
    data.load("folder", tmp_path)
    monkeypatch.setattr(index, change, index.VERSION + 1 if change == "VERSION" else lambda: {"pillow": "0.1"})
    data.load("folder", tmp_path)
    assert len(examined) == 20


def written(cache: Path) -> Path:
    return next((cache / "kdtool/pictures").glob("*.npz"))


def test_an_index_may_be_torn_at_any_byte(tmp_path: Path, cache: Path) -> None:
    folders(tmp_path)
    data.load("folder", tmp_path)
    path = written(cache)
    content = path.read_bytes()
    whole = index._read(path)
    assert len(whole[0]) == 10
    for cut in range(0, len(content), 3):
        path.write_bytes(content[:cut])
        assert index._read(path)[0] == []
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        names, table = index._read(path)
        if names:
            assert names == whole[0]
            for column, other in zip(vars(table).values(), vars(whole[1]).values(), strict=True):
                assert np.array_equal(column, other)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"names": np.zeros(3, np.uint8)},
        {"findings": np.full(10, 77, np.uint8)},
        {"findings": np.zeros(9, np.uint8)},
        {"sizes": np.zeros((10, 2), np.int32)},
        {"sizes": np.zeros((10, 3), np.int64)},
        {"digests": np.array([None] * 10)},
    ],
)
def test_an_index_that_is_garbage_is_not_used(
    tmp_path: Path, cache: Path, examined: list[str], wrong: dict[str, Any]
) -> None:
    folders(tmp_path)
    digest = data.load("folder", tmp_path).digest
    with np.load(written(cache)) as held:
        arrays = dict(held)
    if wrong:
        np.savez(written(cache), **{**arrays, **wrong})
    else:
        written(cache).write_bytes(b"garbage")
    assert data.load("folder", tmp_path).digest == digest
    assert len(examined) == 20
    assert data.load("folder", tmp_path).digest == digest
    assert len(examined) == 20


def test_an_index_that_cannot_be_written_costs_another_look(
    tmp_path: Path, cache: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path)
    (cache / "kdtool").write_text("a file where a folder is expected")
    digest = data.load("folder", tmp_path).digest
    assert data.load("folder", tmp_path).digest == digest
    assert len(examined) == 20

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert data.load("folder", tmp_path).digest == digest
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".cache").symlink_to("/proc")  # nobody may write there
    assert index.look(tmp_path, ["cat/1.png"], Silent()).findings.tolist() == [0]


def test_what_was_seen_is_kept_where_the_look_is_broken_off(
    tmp_path: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path)
    names = files_below(tmp_path, "cat") + files_below(tmp_path, "owl")
    monkeypatch.setattr(index, "TOGETHER", 1)

    class Interrupted(Silent):
        def advance(self, steps: int) -> None:
            if len(kept) == 3:
                raise KeyboardInterrupt
            kept.append(steps)

    kept: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        index.look(tmp_path, names, Interrupted())
    examined.clear()
    assert not index.look(tmp_path, names, Silent()).findings.any()
    assert len(examined) == 6


def test_progress_is_told(tmp_path: Path) -> None:
    folders(tmp_path)
    told: list[Any] = []

    class Told(Silent):
        def begin(self, task: str, total: int, done: int = 0) -> None:
            told.append((task, total, done))

        def advance(self, steps: int) -> None:
            told.append(steps)

    data.load("folder", tmp_path, Told())
    assert told[0] == ("examining pictures", 10, 0)
    assert sum(told[1:]) == 10
    told.clear()
    data.load("folder", tmp_path, Told())
    assert told == []


def test_no_files_are_no_trouble(tmp_path: Path) -> None:
    assert len(index.look(tmp_path, [], Silent()).findings) == 0


def test_lists_of_files_and_folders_are_sorted(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "b-a/1.png", "B/1.png", "b/a/.hidden/1.png", "b/a/3.png", ".c/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "self").symlink_to("self")
    assert classes_below(tmp_path) == ("B", "b", "b-a")
    assert files_below(tmp_path, "b") == ["b/10.png", "b/2.png", "b/a/3.png"]
    for number in range(30, 10, -1):
        (tmp_path / "b" / f"link{number}").symlink_to(tmp_path / "B")
    assert files_below(tmp_path, "b") == ["b/10.png", "b/2.png", "b/a/3.png", "b/link11/1.png"]
    for number in range(30, 10, -1):
        (tmp_path / "b" / f"link{number}").unlink()
    found = by_class(tmp_path, "", ("b-a", "absent", "b"))
    assert list(found.names) == ["b-a/1.png", "b/10.png", "b/2.png", "b/a/3.png"]
    assert found.labels.tolist() == [0, 2, 2, 2]
    with pytest.raises(UsageError, match="there is no folder"):
        classes_below(tmp_path / "absent")
