"""Archives come out as they went in; nothing is overwritten; a stop at any place leaves the folder as it was.

What hostile archives try is in tests/reliability/test_hostile_input.py.
"""

import errno
import fcntl
import io
import os
import re
import shlex
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtool import data
from kdtool.cli.main import run
from kdtool.data import archive as module
from kdtool.data.archive import unpack
from kdtool.errors import DamageError, ResourceError, UsageError

CONTENT = {
    "cifar/train": b"\x01" * 5000,
    "cifar/deep/er/test": b"",
    "cifar/meta": bytes(range(256)) * 30,
    "read.me": b"x",
}
MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz", ".zip": ""}
ENDINGS = pytest.mark.parametrize("ending", MODES)


def pack(path: Path, content: dict[str, bytes] = CONTENT, **options: Any) -> Path:
    """An archive of some files, whose permissions ask for more than files of a data set need."""
    ending = next(ending for ending in MODES if path.name.endswith(ending))
    if ending == ".zip":
        with zipfile.ZipFile(path, "w", **(options or {"compression": zipfile.ZIP_DEFLATED})) as zipped:
            for name, value in content.items():
                entry = zipfile.ZipInfo(name)
                entry.external_attr = (stat.S_IFREG | 0o6777) << 16
                zipped.writestr(entry, value, zipped.compression)
        return path
    with tarfile.open(path, MODES[ending], **options) as packed:  # type: ignore[call-overload]
        for name, value in content.items():
            header = tarfile.TarInfo(name)
            header.size, header.mode, header.uid, header.uname = len(value), 0o6777, 12345, "somebody"
            packed.addfile(header, io.BytesIO(value))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@ENDINGS
def test_what_was_packed_comes_out(ending: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"a{ending}")
    written = unpack(archive, tmp_path / "new" / "data")
    assert written == [tmp_path / "new" / "data" / name for name in sorted(CONTENT)]
    assert tree(tmp_path / "new") == {f"data/{name}": value for name, value in sorted(CONTENT.items())}
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) & 0o7133 == 0
        assert path.stat().st_uid == os.getuid()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_with_long_and_foreign_names(form: int, tmp_path: Path) -> None:
    names = [f"{'folder/' * 12}file", f"d/{'ä' if form != tarfile.USTAR_FORMAT else 'a'}{'n' * 90}"]
    content = dict.fromkeys(names, b"value")
    unpack(pack(tmp_path / "a.tar", content, format=form), tmp_path / "out")
    assert tree(tmp_path / "out") == content


def test_folders_and_a_leading_dot(tmp_path: Path) -> None:
    (tmp_path / "in/empty").mkdir(parents=True)
    (tmp_path / "in/file").write_text("x")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "in", ".")
    shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "in")
    for name in ("a.tar.gz", "b.zip"):
        unpack(tmp_path / name, tmp_path / name[0])
        assert sorted(p.name for p in (tmp_path / name[0]).iterdir()) == ["empty", "file"]


NAMES = st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), min_size=1, max_size=6), st.sampled_from(list(MODES)))
def test_any_files_come_out_or_collide(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, bytes], ending: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    archive = pack(folder / f"a{ending}", content)
    if any(f"{name}/" == other[: len(name) + 1] for name in content for other in content):
        with pytest.raises(DamageError, match="name of another one"):
            unpack(archive, folder / "out")
        assert not (folder / "out").exists()
    else:
        unpack(archive, folder / "out")
        assert tree(folder / "out") == dict(sorted(content.items()))


@ENDINGS
def test_what_is_there_is_never_overwritten(ending: str, tmp_path: Path) -> None:
    archive, folder = pack(tmp_path / f"a{ending}"), tmp_path / "data"
    folder.mkdir()
    for make in (lambda p: p.mkdir(), lambda p: p.write_text("mine"), lambda p: p.symlink_to("nowhere")):
        place = folder / "cifar"
        make(place)
        with pytest.raises(UsageError, match=r"cifar is there already; remove it"):
            unpack(archive, folder)
        assert [path.name for path in folder.iterdir()] == ["cifar"]
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
    assert len(unpack(archive, folder)) == len(CONTENT)


@ENDINGS
def test_a_torn_archive_leaves_nothing_at_any_length(ending: str, tmp_path: Path) -> None:
    whole = pack(tmp_path / f"a{ending}").read_bytes()
    end = len(whole) - (10_240 - 1024 if ending == ".tar" else 0)  # a tar file ends in zeros, of which two blocks count
    for length in {*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}:
        (tmp_path / f"a{ending}").write_bytes(whole[:length])
        if length < min(end, len(whole)) and not (ending == ".tar" and not whole[length - 512 :].strip(b"\0")):
            with pytest.raises(DamageError):
                unpack(tmp_path / f"a{ending}", tmp_path / "out")
            assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.bz2", ".tar.xz", ".zip"])
def test_a_flipped_bit_gives_the_content_or_a_damage_error(ending: str, tmp_path: Path) -> None:
    whole = pack(tmp_path / f"a{ending}").read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / f"a{ending}").write_bytes(damaged)
        try:
            unpack(tmp_path / f"a{ending}", tmp_path / "out")
        except DamageError:
            assert not (tmp_path / "out").exists()
        else:  # a time, an owner, a name
            assert sorted(tree(tmp_path / "out").values()) == sorted(CONTENT.values())
            shutil.rmtree(tmp_path / "out")


def test_a_header_that_was_wiped_out_is_no_end(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar")
    whole = archive.read_bytes()
    place = whole.index(b"cifar/meta")
    for wiped in (b"\0" * 512, b"\xff" * 512):
        archive.write_bytes(whole[:place] + wiped + whole[place + 512 :])
        with pytest.raises(DamageError):
            unpack(archive, tmp_path / "out")


class Killed(BaseException):
    """What a test does in place of a SIGKILL; nothing in kdtool handles it."""


def test_what_a_killed_one_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, folder = pack(tmp_path / "a.tar.gz"), tmp_path / "data"
    folder.mkdir()
    calls = 0

    def die(*given: object, **named: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # the first fsync is done, and from then on not even cleaning up works
            raise Killed

    monkeypatch.setattr(module.shutil, "rmtree", die)
    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(Killed):
        unpack(archive, folder)
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == ["unpacked.partial"]
    unpack(pack(tmp_path / "b.zip", {"one": b"1"}), folder)
    assert tree(folder) == {"one": b"1"}


@pytest.mark.parametrize("leftover", ["file", "link"])
def test_a_leftover_of_another_kind_is_removed_and_a_link_not_followed(leftover: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/canary").write_text("sings")
    if leftover == "link":
        (folder / "unpacked.partial").symlink_to(tmp_path / "outside")
    else:
        (folder / "unpacked.partial").write_text("half")
    unpack(pack(tmp_path / "a.zip", {"one": b"1"}), folder)
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert tree(tmp_path / "outside") == {"canary": b"sings"}


def test_files_are_durable_before_they_have_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(handle: int) -> None:
        order.append(str(Path(f"/proc/self/fd/{handle}").readlink()).removeprefix(str(tmp_path)))
        real_sync(handle)

    def rename(self: Path, target: Path) -> Path:
        order.append(f"-> {target.relative_to(tmp_path)}")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    unpack(pack(tmp_path / "a.zip", {"d/one": b"1", "d/two": b"2"}), tmp_path / "data")
    inner = "/data/unpacked.partial"
    assert order == [f"{inner}/d/one", f"{inner}/d/two", f"{inner}/d", inner, "-> data/d", "/data"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "a.tar.gz")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4999))
    with pytest.raises(ResourceError, match="no room for cifar/train, 5,000 bytes"):
        unpack(archive, tmp_path / "out")
    monkeypatch.undo()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no space left"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ResourceError, match="another process is unpacking"):
        unpack(pack(tmp_path / "a.tar"), folder)
    os.close(handle)
    assert not any(folder.iterdir())


def test_the_limit_of_bytes_is_of_all_files_together(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", {"a": b"x" * 60, "b": b"x" * 40})
    with pytest.raises(DamageError, match="99 bytes are the most"):
        unpack(archive, tmp_path / "out", limit_bytes=99)
    assert len(unpack(archive, tmp_path / "out", limit_bytes=100)) == 2


@pytest.mark.parametrize("name", ["a.rar", "a.gz", "train", "a.tar.zst"])
def test_other_archives_are_refused_by_their_names(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=r"\.tar\.gz, \.tgz"):
        unpack(tmp_path / name, tmp_path / "out")


def write_binary(images: int = 2) -> dict[str, bytes]:
    """The files of a made-up CIFAR-10 in the binary form."""
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    records = {f"cifar-10-batches-bin/{name}": bytes([n] * 3073 * images) for n, name in enumerate(names)}
    return {**records, "cifar-10-batches-bin/batches.meta.txt": "".join(f"c{n}\n" for n in range(10)).encode()}


Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("folder", ["data", "a folder's data"])
def test_the_error_names_the_command_that_unpacks_what_is_there(folder: str, tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / folder
    place.mkdir()
    archive = pack(place / "cifar-10-binary.tar.gz", write_binary())
    with pytest.raises(UsageError, match="no complete cifar10") as caught:
        data.load("cifar10", place)
    command = re.search(r"`kdtool (.*)`$", str(caught.value))
    assert command
    assert shlex.split(command[1]) == ["data", "unpack", str(archive), "--into", str(place)]
    assert run(shlex.split(command[1])) == 0
    assert capsys.readouterr().out == f"{place / 'cifar-10-batches-bin'}: 7 files, 36.9 kB\n"
    assert len(data.load("cifar10", place).train.labels) == 10


def test_the_command_in_its_other_forms(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    archive = pack(Path("a.zip"), {"d/one": b"1", "two": b"22"})
    assert run(["data", "unpack", str(archive), "--json"]) == 0
    assert capsys.readouterr().out == '[\n "data/d/one",\n "data/two"\n]\n'
    for words, text in (
        (["data", "unpack", "a.zip"], "data/d is there already"),
        (["data", "unpack", "b.zip"], "No such file or directory: b.zip"),
        (["data", "unpack", "data"], "data is none of the archives"),
        (["data", "unpack", "a.zip", "--into", "a.zip"], "File exists: a.zip"),
    ):
        assert run(words) == 2, words
        assert text in capsys.readouterr().err
