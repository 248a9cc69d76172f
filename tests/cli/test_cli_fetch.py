"""`kdtool data fetch`: what it says, as lines and as JSON, and its exit codes. A server in a thread stands for the
publisher.
"""

import hashlib
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kdtool.data import fetch as module
from kdtool.data.sources import SOURCES, Source

Typed = Callable[..., Any]


@cache  # as it holds the time
def packed() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("train", "test", "meta"):
            archive.addfile(tarfile.TarInfo(f"cifar-100-python/{name}"))
    return buffer.getvalue()


@cache
def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "n01443537\n")
    return buffer.getvalue()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *given: Any) -> None:
        """Nothing is shown."""


CIFAR, TINY = "cifar-100-python.tar.gz", "tiny-imagenet-200.zip"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a server serves, with CIFAR-100 and Tiny-ImageNet; the current folder is another."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / CIFAR).write_bytes(packed())
    (folder / TINY).write_bytes(zipped())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    for name, md5 in (("cifar100", hashlib.md5(packed()).hexdigest()), ("tiny_imagenet", "")):
        file = SOURCES[name].forms[0][0]
        address = f"http://127.0.0.1:{server.server_port}/{file.name}"
        monkeypatch.setitem(SOURCES, name, Source(((replace(file, address=address, md5=md5),),)))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(os, "sync", lambda: None)
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_lines(published: Path, typed: Typed) -> None:
    found = typed("data fetch cifar100 --quiet")
    md5, sha256 = hashlib.md5(packed()).hexdigest(), hashlib.sha256(zipped()).hexdigest()
    assert (found.code, found.err) == (0, "")
    assert found.out == f"data/cifar-100-python: files from {CIFAR}: 3, MD5 {md5} as published\n"
    assert typed("data fetch cifar100").out == "data/cifar-100-python: there already\n"
    place, about = "else/tiny-imagenet-200", "no published checksum is known"
    assert (
        typed("data fetch tiny_imagenet --into else").out
        == f"{place}: files from {TINY}: 1, SHA-256 {sha256}; {about}\n"
    )
    assert Path("else/tiny-imagenet-200/wnids.txt").read_text() == "n01443537\n"


def test_json(published: Path, typed: Typed) -> None:
    mine = published / CIFAR
    found = typed("data fetch cifar100 --json --into d --archive", mine)
    (item,) = json.loads(found.out)
    checksum = f"MD5 {hashlib.md5(packed()).hexdigest()}"
    expected = {"name": CIFAR, "place": "d/cifar-100-python", "files": 3, "checksum": checksum, "pinned": True}
    assert (found.code, item) == (0, expected)
    assert not Path("d", CIFAR).exists()
    (item,) = json.loads(typed("data fetch cifar100 --json --into d").out)
    assert item == {**expected, "files": 0, "checksum": "", "pinned": False}


def test_exit_codes(published: Path, refused: Typed) -> None:
    refused(2, ("'cifra100'", "did you mean 'cifar100'?"), "data fetch cifra100")
    refused(
        2,
        ("image-net.org", "ILSVRC2012_img_val.tar", "`kdtool data fetch imagenet --into d`"),
        "data fetch imagenet --into d",
    )
    refused(2, ("no such file",), "data fetch cifar100 --archive nowhere.tar.gz")
    refused(2, ("--achive",), "data fetch cifar100 --achive x")
    (published / CIFAR).write_bytes(b"\x1b[2Janother")
    refused(3, ("MD5", "was removed"), "data fetch cifar100 --quiet")
    (published / CIFAR).unlink()
    refused(5, ("404", f"get {CIFAR} elsewhere, put it into data"), "data fetch cifar100 --quiet")
    assert not any(Path().rglob("cifar*"))


def test_ctrl_c_while_it_unpacks(
    published: Path, refused: Typed, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "unpack", interrupted)
        refused(130, "interrupted", "data fetch cifar100 --quiet")
    assert [path.name for path in Path("data").iterdir()] == [CIFAR]
    assert typed("data fetch cifar100 --quiet").code == 0


def test_the_help_says_that_it_uses_the_network(typed: Typed) -> None:
    found = typed("data fetch --help")
    assert found.code == 0
    assert "network" in found.out
    assert "Example: kdtool data fetch cifar100" in found.out
