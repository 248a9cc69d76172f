"""Published archives: found, downloaded, verified, unpacked to where the readers look. No test leaves this machine.

A server in a thread stands for the publisher; what it holds are tiny archives in the published layouts.
"""

import ast
import errno
import fcntl
import hashlib
import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from disk import Disk, Killed
from hypothesis import given
from hypothesis import strategies as st

from kdtool.data import archive as archives
from kdtool.data import download as downloads
from kdtool.data import fetch as module
from kdtool.data.archive import unpack
from kdtool.data.fetch import fetch
from kdtool.data.sources import SOURCES, File, Source
from kdtool.errors import DamageError, ResourceError, Stopped, UsageError
from kdtool.progress import Silent

Files = dict[str, bytes]
Patch = pytest.MonkeyPatch


def tar(contents: Files, mode: str = "w:gz") -> bytes:
    """A tar file, with entries for its folders first, as the publishers' have."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packed:  # type: ignore[call-overload]
        for folder in sorted({name.rpartition("/")[0] for name in contents} - {""}):
            header = tarfile.TarInfo(folder)
            header.type = tarfile.DIRTYPE
            packed.addfile(header)
        for name, content in contents.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            packed.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def zipped(contents: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in contents.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def below(folder: str, *names: str) -> Files:
    return {f"{folder}/{name}": f"content of {name}".encode() for name in names}


WORDNET = {f"n0144076{n}.tar": tar(below(".", *(f"n0144076{n}_{i}.JPEG" for i in (1, 26))), "w") for n in (4, 5)}
PYTHON, TINY = below("cifar-10-batches-py", "data_batch_1", "batches.meta"), "tiny-imagenet-200"
PUBLISHED: dict[str, tuple[Files, Files]] = {  # the publisher's files, and what is there when they are unpacked
    "cifar10": ({"cifar-10-python.tar.gz": tar(PYTHON)}, PYTHON),
    "cifar100": (
        {"cifar-100-python.tar.gz": tar(below("cifar-100-python", "train", "test", "meta"))},
        below("cifar-100-python", "train", "test", "meta"),
    ),
    "stl10": (
        {"stl10_binary.tar.gz": tar(below("stl10_binary", "train_X.bin", "class_names.txt"))},
        below("stl10_binary", "train_X.bin", "class_names.txt"),
    ),
    "tiny_imagenet": (
        {"tiny-imagenet-200.zip": zipped({f"{TINY}/": b"", **below(TINY, "wnids.txt", "val/images/val_0.JPEG")})},
        below(TINY, "wnids.txt", "val/images/val_0.JPEG"),
    ),
    "imagenet": (
        {
            "ILSVRC2012_devkit_t12.tar.gz": tar(below("ILSVRC2012_devkit_t12", "readme.txt", "data/meta.mat")),
            "ILSVRC2012_img_val.tar": tar({f"ILSVRC2012_val_0000000{n}.JPEG": b"%d" % n for n in (1, 2)}, "w"),
            "ILSVRC2012_img_train.tar": tar(WORDNET, "w"),
        },
        {
            **below("imagenet/ILSVRC2012_devkit_t12", "readme.txt", "data/meta.mat"),
            **{f"imagenet/val/ILSVRC2012_val_0000000{n}.JPEG": b"%d" % n for n in (1, 2)},
            **below("imagenet/train/n01440764", "n01440764_1.JPEG", "n01440764_26.JPEG"),
            **below("imagenet/train/n01440765", "n01440765_1.JPEG", "n01440765_26.JPEG"),
        },
    ),
    "flowers102": (
        {"imagelabels.mat": b"labels", "setid.mat": b"sets", "102flowers.tgz": tar(below("jpg", "image_00001.jpg"))},
        {
            **below("flowers102/jpg", "image_00001.jpg"),
            "flowers102/imagelabels.mat": b"labels",
            "flowers102/setid.mat": b"sets",
        },
    ),
    "cub200": (
        {"CUB_200_2011.tgz": tar({"attributes.txt": b"", **below("CUB_200_2011", "images.txt", "images/001.B/b.jpg")})},
        {"attributes.txt": b"", **below("CUB_200_2011", "images.txt", "images/001.B/b.jpg")},
    ),
    "stanford_cars": (
        {
            "car_devkit.tgz": tar(below("devkit", "cars_meta.mat")),
            "cars_test_annos_withlabels.mat": b"labels",
            "cars_train.tgz": tar(below("cars_train", "00001.jpg")),
            "cars_test.tgz": tar(below("cars_test", "00001.jpg")),
        },
        {
            **below("stanford_cars/devkit", "cars_meta.mat"),
            **below("stanford_cars/cars_train", "00001.jpg"),
            **below("stanford_cars/cars_test", "00001.jpg"),
            "stanford_cars/cars_test_annos_withlabels.mat": b"labels",
        },
    ),
    "indoor67": (
        {
            "TrainImages.txt": b"a/b.jpg",
            "TestImages.txt": b"a/c.jpg",
            "indoorCVPR_09.tar": tar(below("Images", "a/b.jpg", "a/c.jpg"), "w"),
        },
        {
            **below("indoor67/Images", "a/b.jpg", "a/c.jpg"),
            "indoor67/TrainImages.txt": b"a/b.jpg",
            "indoor67/TestImages.txt": b"a/c.jpg",
        },
    ),
    "pubfig83": (
        {"pubfig83.v1.tgz": tar(below("pubfig83", "Adam Sandler/1.jpg"))},
        below("pubfig83", "Adam Sandler/1.jpg"),
    ),
}
MD5S = {name: hashlib.md5(content).hexdigest() for files, _ in PUBLISHED.values() for name, content in files.items()}
PUBLIC = [name for name in PUBLISHED if all(file.address for file in SOURCES[name].forms[0])]
BY_HAND = [name for name in PUBLISHED if name not in PUBLIC]


class Publisher(ThreadingHTTPServer):
    """Serves `held`; `behave` may answer a request in place of the usual way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.held: Files = {}
        self.asked: list[tuple[str, str | None]] = []
        self.behave: Callable[[Answer], bool] = lambda answer: False
        self.over = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error here."""


class Answer(BaseHTTPRequestHandler):
    server: Publisher

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Range"]))
        if not self.server.behave(self):
            self.whole()

    def whole(self, sent: float | None = None) -> None:
        """The file, from where it was asked for; of it only so many bytes where `sent` is given."""
        content = self.server.held.get(self.path[1:])
        if content is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "bytes=0-")[1])  # type: ignore[index]
        if start >= len(content) > 0 and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:] if sent is None else content[start : int(sent)])

    def log_message(self, *given: Any) -> None:
        """Nothing is shown."""


@pytest.fixture
def publisher(monkeypatch: Patch) -> Iterator[Publisher]:
    """A server to which the addresses of all data sets lead, with files whose checksums are the pinned ones."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Publisher()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, served(source, server.address))
        server.held |= PUBLISHED[name][0]
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def served(source: Source, address: str) -> Source:
    """A source at another address, with the checksums of the files above."""

    def moved(file: File) -> File:
        md5 = MD5S.get(file.name, "0" * 32) if file.md5 else ""
        return replace(file, address=f"{address}/{file.name}" if file.address else "", md5=md5)

    return replace(source, forms=tuple(tuple(moved(file) for file in form) for form in source.forms))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: Patch) -> None:
    """What is durable is asked below, where a disk fails at any step and where places are taken."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def tree(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def put(folder: Path, contents: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def partial(name: str, content: bytes) -> Files:
    return {f"{name}.partial": content}


# What is known.


def test_every_published_data_set_has_a_source() -> None:
    assert list(SOURCES) == list(PUBLISHED)
    for source in SOURCES.values():
        assert all(file.address for file in source.forms[0]) or "http" in source.advice
        for form in source.forms:
            assert len({file.gives for file in form}) == len({file.name for file in form}) == len(form)
            assert all(file.limit_bytes <= 160 * 2**30 and file.limit_members <= 1_300_000 for file in form)


def cited(root: Path) -> str:
    """The source text of the installed torchvision's data sets, and what is said of the data beside the checkout."""
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        pytest.skip("torchvision is not installed, whose source code the checksums are from")
    folder = Path(found.submodule_search_locations[0]) / "datasets"
    notes = root.parent / "shared" / "data" / "README.md"
    return "\n".join(path.read_text() for path in [*sorted(folder.glob("*.py")), notes] if path.is_file())


def test_no_pinned_checksum_is_invented(root: Path) -> None:
    """Each stands beside the name of its file in the source that is cited; and so do the addresses of those files."""
    text, count = cited(root), 0
    for file in (file for source in SOURCES.values() for form in source.forms for file in form):
        if file.md5:
            count += 1
            assert re.search(rf'"{re.escape(file.name)}"[^\[\]()]{{0,40}}"{file.md5}"', text), file.name
            assert file.address in text or file.address.removesuffix(file.name) in text, file.name
    assert count == 9


def test_one_module_alone_uses_the_network() -> None:
    root = Path(module.__file__).parents[2]
    network = {"urllib", "http", "socket", "ssl", "ftplib", "requests", "httpx", "urllib3", "socketserver"}
    users = set()
    for path in (path for room in ("kdtool", "cli", "cache") for path in (root / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            users |= {path.name for name in names if name.split(".")[0] in network}
    assert users == {"download.py"}


# Archives that are there.


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("place", ["folder", "own folder", "elsewhere"])
def test_archives_that_are_there_need_no_network(
    name: str, place: str, tmp_path: Path, publisher: Publisher, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(module, "download", None)
    contents, expected = PUBLISHED[name]
    data = tmp_path / "data"
    where = {"folder": data, "own folder": data / SOURCES[name].folder, "elsewhere": tmp_path / "elsewhere"}[place]
    put(where, contents)
    found = fetch(name, data, [where / file for file in contents] if place == "elsewhere" else ())
    kept = {f"{where.relative_to(tmp_path)}/{file}": content for file, content in contents.items()}
    assert tree(tmp_path) == {**{f"data/{file}": content for file, content in expected.items()}, **kept}
    known = {file.name: file for file in SOURCES[name].forms[0]}
    assert [item.name for item in found] == list(known)
    for item in found:
        kind, value = ("MD5", "md5") if known[item.name].md5 else ("SHA-256", "sha256")
        assert item.checksum == f"{kind} {hashlib.new(value, contents[item.name]).hexdigest()}"
        assert item.pinned == bool(known[item.name].md5)
        assert item.place.exists()


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_unpacked_already_is_left_alone(name: str, tmp_path: Path, publisher: Publisher) -> None:
    fetch(name, put(tmp_path, PUBLISHED[name][0]))
    for file in PUBLISHED[name][0]:
        (tmp_path / file).unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = fetch(name, tmp_path)
    assert [item.files for item in again] == [0] * len(again)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert publisher.asked == []


@pytest.mark.parametrize("name", BY_HAND)
def test_instructions_where_there_is_no_public_archive(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    with pytest.raises(UsageError, match=re.escape(f"fetch {name} --into '{folder}'`")) as caught:
        fetch(name, folder)
    assert SOURCES[name].advice in str(caught.value)
    assert all(file in str(caught.value) for file in PUBLISHED[name][0])
    assert not folder.exists()


def test_of_imagenet_all_three_files_are_needed(tmp_path: Path, publisher: Publisher) -> None:
    contents = PUBLISHED["imagenet"][0]
    put(tmp_path, {name: contents[name] for name in list(contents)[:2]})
    with pytest.raises(UsageError, match=r"put ILSVRC2012_img_train\.tar into"):
        fetch("imagenet", tmp_path)
    assert sorted(tree(tmp_path)) == sorted(list(contents)[:2])


def test_the_binary_form_is_taken_where_it_is_there(tmp_path: Path, publisher: Publisher) -> None:
    name, expected = "cifar-10-binary.tar.gz", below("cifar-10-batches-bin", "test_batch.bin")
    (item,) = fetch("cifar10", put(tmp_path / "a", {name: tar(expected)}))
    assert (item.place, item.pinned) == (tmp_path / "a/cifar-10-batches-bin", False)
    put(tmp_path / "b", PUBLISHED["cifar10"][0])
    fetch("cifar10", tmp_path / "b", [tmp_path / "a" / name])
    assert {**tree(tmp_path / "b"), **PUBLISHED["cifar10"][0]} == tree(tmp_path / "b")
    assert (tmp_path / "b/cifar-10-batches-bin/test_batch.bin").is_file()
    assert publisher.asked == []


def test_archives_that_are_named(tmp_path: Path, publisher: Publisher) -> None:
    put(tmp_path, {"mine.zip": PUBLISHED["tiny_imagenet"][0]["tiny-imagenet-200.zip"], "cats.tgz": b"", "x.rar": b"x"})
    assert fetch("tiny_imagenet", tmp_path / "data", [tmp_path / "mine.zip"])[0].files == 2
    with pytest.raises(UsageError, match=r"absent\.zip: there is no such file"):
        fetch("tiny_imagenet", tmp_path / "data", [tmp_path / "absent.zip"])
    with pytest.raises(UsageError, match=r"cifar10 is published as cifar-10-python.tar.gz, cifar-10-binary.tar.gz"):
        fetch("cifar10", tmp_path / "data", [tmp_path / "cats.tgz"])
    with pytest.raises(UsageError, match="none of the archives that can be unpacked"):
        fetch("pubfig83", tmp_path / "data", [tmp_path / "x.rar"])
    with pytest.raises(UsageError, match="'cifar-10'; did you mean 'cifar10'"):
        fetch("cifar-10", tmp_path / "data")
    assert publisher.asked == []


def test_an_archive_of_something_else_leaves_nothing(tmp_path: Path) -> None:
    mine = put(tmp_path, {"cats.tgz": tar(below("cats", "one.jpg"))}) / "cats.tgz"
    with pytest.raises(DamageError, match="it has no pubfig83"):
        fetch("pubfig83", tmp_path / "data", [mine])
    assert sorted(tree(tmp_path)) == ["cats.tgz"]


def test_a_wrong_checksum_of_ones_own_archive(tmp_path: Path, publisher: Publisher) -> None:
    mine = tar(below("cifar-10-batches-py", "another"))
    put(tmp_path, {"cifar-10-python.tar.gz": mine})
    with pytest.raises(DamageError, match=f"MD5 is {hashlib.md5(mine).hexdigest()}.*{MD5S['cifar-10-python.tar.gz']}"):
        fetch("cifar10", tmp_path)
    assert tree(tmp_path) == {"cifar-10-python.tar.gz": mine}
    assert publisher.asked == []


def test_a_list_of_labels_is_verified_again_where_it_lies(tmp_path: Path, publisher: Publisher) -> None:
    fetch("flowers102", tmp_path)
    (tmp_path / "flowers102/setid.mat").write_bytes(b"SETS")
    with pytest.raises(DamageError, match=r"setid\.mat is torn or another file"):
        fetch("flowers102", tmp_path)
    assert (tmp_path / "flowers102/setid.mat").read_bytes() == b"SETS"


def test_a_list_of_labels_that_is_too_large_is_not_read(tmp_path: Path, publisher: Publisher) -> None:
    put(tmp_path, PUBLISHED["indoor67"][0])
    with (tmp_path / "TestImages.txt").open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(DamageError, match="has 16,777,217 bytes"):
        fetch("indoor67", tmp_path)


# Downloads.


@pytest.mark.parametrize("name", PUBLIC)
def test_a_download(name: str, tmp_path: Path, publisher: Publisher) -> None:
    contents, expected = PUBLISHED[name]
    kept = {file: content for file, content in contents.items() if f"{SOURCES[name].folder}/{file}" not in expected}
    fetch(name, tmp_path / "new/data")
    assert tree(tmp_path / "new/data") == dict(sorted({**expected, **kept}.items()))
    assert sorted(publisher.asked) == sorted((f"/{file}", None) for file in contents)
    fetch(name, tmp_path / "new/data")
    assert len(publisher.asked) == len(contents)


NAME = "cifar-10-python.tar.gz"
ARCHIVE = PUBLISHED["cifar10"][0][NAME]
WHOLE = dict(sorted({**PYTHON, NAME: ARCHIVE}.items()))


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("sent", [0, 1, 2, len(ARCHIVE) // 2, len(ARCHIVE) - 1])
def test_a_torn_download_goes_on(sent: int, ranges: bool, tmp_path: Path, publisher: Publisher) -> None:
    def torn(answer: Answer) -> bool:
        if not ranges:
            del answer.headers["Range"]
        if len(publisher.asked) > 1:
            return False
        answer.whole(sent)
        return True

    publisher.behave = torn
    with pytest.raises(ResourceError, match=f"ended after {sent:,} of {len(ARCHIVE):,} bytes.*{NAME} elsewhere"):
        fetch("cifar10", tmp_path)
    assert tree(tmp_path) == partial(NAME, ARCHIVE[:sent])
    fetch("cifar10", tmp_path)
    assert tree(tmp_path) == WHOLE
    assert publisher.asked == [(f"/{NAME}", None), (f"/{NAME}", f"bytes={sent - 1}-" if sent > 1 else None)]


@pytest.mark.parametrize("held", [ARCHIVE, ARCHIVE + b"rest", b""], ids=["whole", "too long", "empty"])
def test_partial_files_that_are_not_partial(held: bytes, tmp_path: Path, publisher: Publisher) -> None:
    fetch("cifar10", put(tmp_path, partial(NAME, held)))
    assert tree(tmp_path) == WHOLE


def test_a_partial_file_of_something_else_is_removed(tmp_path: Path, publisher: Publisher) -> None:
    put(tmp_path, partial(NAME, b"x" * 50))
    with pytest.raises(DamageError, match=r"was removed"):
        fetch("cifar10", tmp_path)
    assert tree(tmp_path) == {}
    fetch("cifar10", tmp_path)
    assert tree(tmp_path) == WHOLE


def test_a_partial_file_that_is_a_link_is_not_followed(tmp_path: Path, publisher: Publisher) -> None:
    put(tmp_path, {"canary": b"sings"})
    (tmp_path / "data").mkdir()
    (tmp_path / f"data/{NAME}.partial").symlink_to(tmp_path / "canary")
    fetch("cifar10", tmp_path / "data")
    assert tree(tmp_path / "data") == WHOLE
    assert (tmp_path / "canary").read_bytes() == b"sings"


@pytest.mark.parametrize(
    "said", ["bytes 9-20/21", "bytes 0-/5", "rows 1-2/3", "", f"bytes {'9' * 5000}-1/1", "bytes 1-5/99999999999999999"]
)
def test_a_server_that_gives_another_range(said: str, tmp_path: Path, publisher: Publisher) -> None:
    def other(answer: Answer) -> bool:
        answer.send_response(206)
        answer.send_header("Content-Range", said)
        answer.end_headers()
        answer.wfile.write(b"x")
        return True

    publisher.behave = other
    with pytest.raises((ResourceError, DamageError), match=r"another part|larger than"):
        fetch("cifar10", put(tmp_path, partial(NAME, ARCHIVE[:5])))


@given(content=st.binary(max_size=300), tears=st.lists(st.integers(0, 300), max_size=4))
def test_any_number_of_tears_gives_the_same_bytes(
    content: bytes, tears: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("torn") / "file.partial"

        class Response(io.BytesIO):
            status, headers, length = 200, {}, len(content)  # type: ignore[var-annotated]

        def answer(address: str, partial: Path, start: int) -> Response:
            response = Response(content[start : tears[0] if tears else None])
            if start:
                response.status = 206
                response.headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return response

        patch.setattr(downloads, "_answer", answer)
        patch.setattr(downloads, "PIECE", 7)
        while tears and min(tears[0], len(content)) < len(content):
            with pytest.raises(ResourceError):
                downloads.download("http://x", path, 300, Silent())
            tears.pop(0)
        downloads.download("http://x", path, 300, Silent())
        assert path.read_bytes() == content


def test_a_wrong_checksum_of_a_download(tmp_path: Path, publisher: Publisher) -> None:
    publisher.held[NAME] = tar(below("cifar-10-batches-py", "another"))
    with pytest.raises(DamageError, match=r"MD5.*what was downloaded from http://.* was removed"):
        fetch("cifar10", tmp_path)
    assert tree(tmp_path) == {}


def test_a_page_in_place_of_an_archive_without_a_checksum(tmp_path: Path, publisher: Publisher) -> None:
    publisher.held["tiny-imagenet-200.zip"] = b"<html>Log in to this network</html>"
    with pytest.raises(DamageError, match=r"tiny-imagenet-200\.zip is damaged or hostile"):
        fetch("tiny_imagenet", tmp_path)
    assert tree(tmp_path) == {}


def redirected(target: str) -> Callable[[Answer], bool]:
    def behave(answer: Answer) -> bool:
        if answer.path.startswith("/moved/"):
            answer.path = answer.path.removeprefix("/moved")
            return False
        answer.send_response(302)
        answer.send_header("Location", target)
        answer.end_headers()
        return True

    return behave


@pytest.mark.parametrize(
    "target", ["file://{canary}", "ftp://127.0.0.1/x", "gopher://x", "data:,x", "", "http://[", "/x"]
)
def test_redirects_that_lead_astray(target: str, tmp_path: Path, publisher: Publisher) -> None:
    canary = put(tmp_path, {"canary": ARCHIVE}) / "canary"
    publisher.behave = redirected(target.format(canary=canary))
    with pytest.raises(ResourceError, match="cannot download"):
        fetch("cifar10", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_redirect_from_https_to_http_is_refused() -> None:
    request = urllib.request.Request("https://127.0.0.1/x")
    arguments = request, io.BytesIO(), 302, "Found", Message()
    with pytest.raises(urllib.error.HTTPError, match="refused"):
        downloads._Redirects().redirect_request(*arguments, "http://127.0.0.1/x")
    assert downloads._Redirects().redirect_request(*arguments, "https://127.0.0.1/y")


def test_a_redirect_within_http_is_followed(tmp_path: Path, publisher: Publisher) -> None:
    publisher.behave = redirected(f"{publisher.address}/moved/{NAME}")
    fetch("cifar10", put(tmp_path, partial(NAME, ARCHIVE[:99])))
    assert publisher.asked == [(f"/{NAME}", "bytes=98-"), (f"/moved/{NAME}", "bytes=98-")]
    assert tree(tmp_path) == WHOLE


def limited(monkeypatch: Patch, limit: int) -> None:
    (form,) = SOURCES["tiny_imagenet"].forms
    monkeypatch.setitem(SOURCES, "tiny_imagenet", Source(((replace(form[0], limit_bytes=limit),),)))


@pytest.mark.parametrize("says", [False, True], ids=["endless", "said"])
def test_a_body_without_end(says: bool, tmp_path: Path, publisher: Publisher, monkeypatch: Patch) -> None:
    def endless(answer: Answer) -> bool:
        answer.send_response(200)
        if says:
            answer.send_header("Content-Length", str(2**60))
        answer.end_headers()
        for _ in range(20):  # megabytes, which is an end for the sake of this machine
            answer.wfile.write(bytes(2**20))
        return True

    publisher.behave = endless
    limited(monkeypatch, 3_000_000)
    with pytest.raises(DamageError, match="larger than the 3,000,000 bytes"):
        fetch("tiny_imagenet", tmp_path)
    assert tree(tmp_path) == {}


def raw(content: bytes) -> Callable[[Answer], bool]:
    def behave(answer: Answer) -> bool:
        answer.wfile.write(content)
        return True

    return behave


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSALS = {
    b"HTTP/1.0 404 Not Found\r\n\r\n": "the server answers 404 Not Found",
    b"HTTP/1.0 500 \x1b[2J\r\n\r\n": "the server answers 500",
    b"HTTP/1.0 416 Range\r\n\r\n": "the server answers 416",
    b"SSH-2.0-server\r\n": "cannot download",
    b"": "cannot download",
    CHUNKED + b"5\r\n" + ARCHIVE[:2]: "cannot download",
    CHUNKED + b"many\r\n": "cannot download",
    b"HTTP/1.0 200 " + b"x" * 70_000 + b"\r\n\r\n": "cannot download",
    b"HTTP/1.0 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n": "cannot download",
}


@pytest.mark.parametrize("content", REFUSALS, ids=lambda content: repr(content[9:70]))
def test_servers_that_do_not_give_the_file(content: bytes, tmp_path: Path, publisher: Publisher) -> None:
    publisher.behave = raw(content)
    put(tmp_path, partial(NAME, ARCHIVE[:9]))
    with pytest.raises(ResourceError, match=re.escape(REFUSALS[content])) as caught:
        fetch("cifar10", tmp_path)
    assert f"get {NAME} elsewhere, put it into {tmp_path}" in str(caught.value)
    assert len(str(caught.value)) < 800
    publisher.behave = lambda answer: False
    fetch("cifar10", tmp_path)
    assert tree(tmp_path) == WHOLE


def test_a_server_that_is_gone_or_silent(tmp_path: Path, publisher: Publisher, monkeypatch: Patch) -> None:
    def silent(answer: Answer) -> bool:
        publisher.over.wait(20)
        return True

    publisher.behave = silent
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ResourceError, match="timed out"):
        fetch("cifar10", tmp_path / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setitem(SOURCES, "cifar10", served(SOURCES["cifar10"], f"http://127.0.0.1:{free.getsockname()[1]}"))
        with pytest.raises(ResourceError, match="refused"):
            fetch("cifar10", tmp_path / "data")
    assert not (tmp_path / "data").exists()


class FailingDisk(Disk):
    """Counts what is unpacked too, which is opened for files that are not there yet."""

    def _opened(self, path: Path, mode: str, *rest: Any, **more: Any) -> Any:
        return super()._opened(path, mode.replace("x", "w"), *rest, **more)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Killed()], ids=["full", "killed"])
@pytest.mark.parametrize("name", ["cifar10", "flowers102"])
def test_a_disk_that_fails_at_any_step(
    name: str, error: BaseException, tmp_path: Path, publisher: Publisher, monkeypatch: Patch
) -> None:
    """The same command then gives the same files; at least a write, two syncs and a rename of each were tried."""
    fetch(name, tmp_path / "undisturbed")
    for step in range(1, 100):
        folder = tmp_path / str(step)
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, fail_at=step, error=error)
            try:
                fetch(name, folder)
                break
            except (Killed, ResourceError):
                pass
            finally:
                disk.close()
        fetch(name, folder)
        assert tree(folder) == tree(tmp_path / "undisturbed")
    assert step > 4 * len(PUBLISHED[name][0])


def test_a_disk_without_room(tmp_path: Path, publisher: Publisher, monkeypatch: Patch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5))
    with pytest.raises(ResourceError, match=f"has no room for {len(ARCHIVE):,} bytes"):
        fetch("cifar10", tmp_path)


def test_two_at_once(tmp_path: Path, publisher: Publisher) -> None:
    put(tmp_path, partial(NAME, ARCHIVE[:9]))
    with (tmp_path / f"{NAME}.partial").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match="another process is downloading"):
            fetch("cifar10", tmp_path)
    assert tree(tmp_path) == partial(NAME, ARCHIVE[:9])


def test_an_interrupted_download_goes_on(tmp_path: Path, publisher: Publisher) -> None:
    begun = threading.Event()

    class Told(Silent):
        def begin(self, task: str, total: int, done: int = 0) -> None:
            begun.set()

    def interrupt(answer: Answer) -> bool:
        answer.whole(100)
        begun.wait(20)
        time.sleep(0.2)  # until the client waits for more
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        publisher.over.wait(20)
        return True

    publisher.behave = interrupt
    with pytest.raises(Stopped, match="stopped while downloading") as caught:
        fetch("cifar10", tmp_path, progress=Told())
    assert caught.value.exit_code == 130
    publisher.behave = lambda answer: False
    fetch("cifar10", tmp_path)
    assert tree(tmp_path) == WHOLE


def test_progress_counts_whole_megabytes() -> None:
    told: list[Any] = []

    class Told(Silent):
        def begin(self, task: str, total: int, done: int = 0) -> None:
            told.append((task, total, done))

        def advance(self, steps: int) -> None:
            told.append(steps)

    count = downloads.Megabytes(Told(), "file", 5_000_001, 1_999_999)
    for size in (1, 999_999, 1, 2_000_001, 0):
        count(size)
    assert told == [("file, MB", 6, 1), 1, 1, 2]


# What unpacking has learnt: tars of tars, many members, folders that an archive lacks.


def tar_of(kind: bytes) -> bytes:
    """A tar file of one member that is no file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        header = tarfile.TarInfo("n1_1.JPEG")
        header.type, header.linkname = kind, "../../../canary"
        packed.addfile(header)
    return buffer.getvalue()


ONE = tar({"n1_1.JPEG": b"x" * 700}, "w")
HOSTILE: dict[str, Files] = {
    "a link": {"n1.tar": tar_of(tarfile.SYMTYPE)},
    "a hard link": {"n1.tar": tar_of(tarfile.LNKTYPE)},
    "a device": {"n1.tar": tar_of(tarfile.CHRTYPE)},
    "above": {"n1.tar": tar({"../../../canary": b"x"}, "w")},
    "absolute": {"n1.tar": tar({"/canary": b"x"}, "w")},
    "outer above": {"../../n1.tar": ONE},
    "outer without a name": {".tar": ONE},
    "no tar": {"n1.tar": ONE, "readme.txt": b"x"},
    "a folder": {"n1.tar": ONE, "n2/n2.tar": ONE},
    "twice": {"n1.tar": ONE, "./n1.tar": ONE},
    "a file in a folder's place": {"n1.tar": tar({"a": b"", "a/b": b""}, "w")},
    "torn inside": {"n1.tar": ONE[:800], "n2.tar": ONE},
    "behind the end": {"n1.tar": ONE + b"more"},
    "compressed inside": {"n1.tar": tar({"n1_1.JPEG": b"x"})},
    "empty inside": {"n1.tar": b""},
    "too many": {"n1.tar": tar({f"n1_{n}.JPEG": b"" for n in range(50)}, "w")},
    "too large": {"n1.tar": tar({"n1_1.JPEG": bytes(19_500)}, "w"), "n2.tar": ONE},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_of_tars(name: str, tmp_path: Path) -> None:
    put(tmp_path, {"canary": b"sings", "a.tar": tar(HOSTILE[name], "w")})
    with pytest.raises(DamageError):
        unpack(tmp_path / "a.tar", tmp_path / "in/side", 20_000, 50, below="train", expected="train", nested=True)
    put(tmp_path, {"a.tar": tar({"n1.tar": ONE, "n2.tar": ONE}, "w")[:4000]})
    with pytest.raises(DamageError):
        unpack(tmp_path / "a.tar", tmp_path / "in/side", 20_000, 50, below="train", expected="train", nested=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "canary"]
    assert (tmp_path / "canary").read_bytes() == b"sings"


def test_inner_tars_never_lie_on_the_disk(tmp_path: Path, monkeypatch: Patch) -> None:
    put(tmp_path, {"a.tar": tar(WORDNET, "w")})
    real, opened = Path.open, []

    def noted(path: Path, mode: str = "r", *rest: Any) -> Any:
        opened.append(path.name)
        return real(path, mode, *rest)

    monkeypatch.setattr(Path, "open", noted)
    written = unpack(tmp_path / "a.tar", tmp_path / "out", below="train", nested=True)
    assert sorted(opened) == [path.name for path in written]
    assert len(written) == 4
    assert not any(name.endswith(".tar") for name in opened)


@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_members_up_to_the_limit(ending: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """Their headers together are larger than any header may be, as those of 120,000 images are."""
    monkeypatch.setattr(archives, "OVERHEAD_BYTES", 100_000)
    contents = {f"d/{number:03}{'x' * 90}": b"1" for number in range(999)}  # and their folder
    put(tmp_path, {f"a.{ending}": tar(contents, "w") if ending == "tar" else zipped(contents)})
    with pytest.raises(DamageError, match=r"one too many: 999 files and folders"):
        unpack(tmp_path / f"a.{ending}", tmp_path / "out", limit_members=999)
    assert not (tmp_path / "out").exists()
    unpack(tmp_path / f"a.{ending}", tmp_path / "out", limit_members=1000)
    assert tree(tmp_path / "out") == dict(sorted(contents.items()))


def members_and_a_large_header(header: int) -> bytes:
    """500 empty files and one with a header of so many bytes."""
    last = tarfile.TarInfo("last")
    last.pax_headers = {"comment": "x" * header}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as packed:
        for number in range(500):
            packed.addfile(tarfile.TarInfo(f"d/{number}"))
        packed.addfile(last)
    return buffer.getvalue()


def test_a_header_may_not_grow_with_the_members(tmp_path: Path, monkeypatch: Patch) -> None:
    """What many members leave of their share is not there for a large header; and none of their headers is kept."""
    kept, real = [], tarfile.TarFile.next

    def counted(archive: Any) -> Any:
        found = real(archive)
        kept.append(len(archive.members))
        return found

    monkeypatch.setattr(tarfile.TarFile, "next", counted)
    monkeypatch.setattr(archives, "OVERHEAD_BYTES", 200_000)
    put(tmp_path, {"a.tar": members_and_a_large_header(250_000), "b.tar": members_and_a_large_header(100_000)})
    with pytest.raises(DamageError, match="headers of many megabytes"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert len(unpack(tmp_path / "b.tar", tmp_path / "out")) == 501
    assert max(kept) <= 1


def test_a_zip_of_more_members_than_16_bits_count(tmp_path: Path, monkeypatch: Patch) -> None:
    """Written with the record of 64 bits, and by tools that know 16 bits only; a wrong count is still seen."""
    contents = {f"d/{number}": b"1" for number in range(5)}
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    wide = zipped(contents)
    assert wide[-98:-94] == b"PK\6\6"
    for place, said in ((10, b"\xff\xff"), (10, b"\0\0")):  # of the last record, which counts for nothing then
        put(tmp_path, {"a.zip": wide[: len(wide) - 22 + place] + said + wide[len(wide) - 22 + place + 2 :]})
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert len(unpack(tmp_path / "a.zip", tmp_path / "out")) == 5
    put(tmp_path, {"a.zip": wide[:-98] + wide[-98:].replace(b"\5" + b"\0" * 7, b"\6" + b"\0" * 7)})
    with pytest.raises(DamageError, match="5 entries, and 6 are said"):
        unpack(tmp_path / "a.zip", tmp_path / "again")
    narrow = zipped({"one": b"1"})[:-22]
    for comment in (0, 3):
        put(tmp_path, {"tail": narrow + b"PK\5\6" + b"\0" * 6 + b"\4\0" + b"\0" * 10 + bytes(comment)})
        with (tmp_path / "tail").open("rb") as file:
            assert archives._entries_said(file, comment) == 4


@pytest.mark.parametrize("many", [False, True])
def test_what_was_unpacked_is_durable_before_it_has_its_place(many: bool, tmp_path: Path, monkeypatch: Patch) -> None:
    order: list[str] = []
    real = Path.rename

    def rename(path: Path, to: Path) -> Path:
        order.append(f"-> {to.name}")
        return real(path, to)

    monkeypatch.setattr(os, "sync", lambda: order.append("sync of all"))
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("sync"))
    monkeypatch.setattr(Path, "rename", rename)
    put(tmp_path, {"a.tar": tar({"one": b"1", "two": b"2"}, "w")})
    unpack(tmp_path / "a.tar", tmp_path / "out", limit_members=2000 if many else 1000, below="val")
    assert order == (["sync of all", "-> val", "sync"] if many else [*["sync"] * 4, "-> val", "sync"])


def test_what_was_read_of_an_archive_is_told(tmp_path: Path) -> None:
    contents = {"d/file": os.urandom(300_000)}
    for name, content in (("a.tar", tar(contents, "w")), ("a.tar.gz", tar(contents)), ("a.zip", zipped(contents))):
        put(tmp_path, {name: content})
        told: list[int] = []
        unpack(tmp_path / name, tmp_path / name.replace(".", ""), told=told.append)
        assert len(content) <= sum(told) <= len(content) + 3000
        assert len(told) > 2
