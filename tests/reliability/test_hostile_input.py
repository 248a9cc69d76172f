"""What somebody else wrote is never executed and never leads a write elsewhere: archives, pickles, weights, caches.

Every case goes through the command line. A canary that the payloads would make stays absent, and everything below the
test's folder but the working folder that the command was given stays as it was, byte for byte and mode for mode.
"""

import builtins
import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdtool import files
from kdtool.cache.lines import seal
from kdtool.cli.main import run

Counts = dict[str, int]
Case = Callable[..., None]


@pytest.fixture(scope="module")
def counts(figure: Callable[..., None]) -> Iterator[Counts]:
    """How many cases there were and how they ended."""
    found = {"tried": 0, "refused": 0, "executed": 0, "written_outside": 0}
    yield found
    figure("hostile input", **found)


def picture(root: Path, but: Path | None = None) -> dict[str, tuple[int, int, bytes]]:
    """Every entry below a folder with mode, time of change and content, one folder left out."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) != but]
        for name in folders + names:
            path = Path(folder, name)
            mode, content = path.lstat().st_mode, b""
            if stat.S_ISLNK(mode):
                content = str(path.readlink()).encode()
            elif stat.S_ISREG(mode):
                content = path.read_bytes()
            found[str(path)] = (mode, path.lstat().st_mtime_ns if content else 0, content)
    return found


@pytest.fixture(autouse=True, scope="module")
def _no_waiting() -> Iterator[None]:
    """Whether a file is durable is no question here, and a thousand of them take a second each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: Counts) -> Case:
    """Runs a command line on hostile input: exit 3, one line on stderr, no output, nothing executed or written."""

    def call(*words: object, inside: Path | None = None, codes: tuple[int, ...] = (3,), output: bool = False) -> None:
        (tmp_path / "canary").write_text("sings")
        before = picture(tmp_path, inside)
        capsys.readouterr()
        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        outside = picture(tmp_path, inside) != before
        executed = (tmp_path / "executed").exists()
        wrong = code not in codes or err.count("\n") != 1 or "Traceback" in err or "bug in kdtool" in err
        wrong |= not err.startswith("kdtool: ") or not err[:-1].isprintable() or bool(out and not output)
        counts["tried"] += 1
        counts["refused"] += not wrong
        counts["executed"] += executed
        counts["written_outside"] += outside
        assert not wrong, (words, code, out, err)
        assert not executed, words
        assert not outside, words

    return call


# Archives.


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type = size, kind
    for field, value in fields.items():
        setattr(found, field, value)
    return found


def block(*given: Any, form: int = tarfile.GNU_FORMAT, **fields: Any) -> bytes:
    """The block, or the blocks, of a header."""
    return header(*given, **fields).tobuf(form, "utf-8", "surrogateescape")


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


def member(name: str, content: bytes = b"hostile", **fields: Any) -> bytes:
    return block(name, len(content), **fields) + padded(content)


def patched(buffer: bytes, place: int, content: bytes) -> bytes:
    """A header with other bytes at a place, its checksum made to fit."""
    changed = buffer[:place] + content + buffer[place + len(content) :]
    total = sum(changed[:148]) + 8 * 32 + sum(changed[156:512])
    return changed[:148] + f"{total:06o}\0 ".encode() + changed[156:]


def pax(records: dict[bytes, bytes], then: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header of pax records in front of a member."""
    lines = b""
    for key, value in records.items():
        line = b" " + key + b"=" + value + b"\n"
        size = len(line) + len(str(len(line)))
        lines += str(size + (len(str(size)) > len(str(len(line))))).encode() + line
    return block("pax", len(lines), kind, form=tarfile.USTAR_FORMAT) + padded(lines) + then


GOOD, END = member("data/good", b"good"), b"\0" * 1024
LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
MANY = b"".join(block(f"data/{number}") for number in range(1100))

TARS: dict[str, bytes | Callable[[Path], bytes]] = {
    "an absolute name": lambda tmp: member(f"{tmp}/canary"),
    "an absolute folder": lambda tmp: block(f"{tmp}/outside", 0, tarfile.DIRTYPE),
    "the folder above": member("../canary"),
    "the folder above, later": member("data/../../canary"),
    "a folder above": block("..", 0, tarfile.DIRTYPE),
    "two slashes": member("data//canary"),
    "a file with the name of the folder": member("."),
    "no name": member(""),
    "a backslash": member("..\\canary"),
    "a drive": member("C:/canary"),
    "a name of control characters": member("data/\x1b]0;title\x07\r\nkdtool: fine"),
    "a name that is no text": pax({b"hdrcharset": b"BINARY", b"path": b"data/\xff\xfe"}, GOOD),
    "a zero in a name": pax({b"path": b"canary\0/../x"}, GOOD),
    "a name above, in a record": pax({b"path": b"../canary"}, GOOD),
    "a name above, for all": pax({b"path": b"../canary"}, GOOD, tarfile.XGLTYPE),
    "a very long name": member("d/" * 300 + "file"),
    "a link": block("data/link", 0, LINK, linkname="../canary"),
    "a link and a file behind it": block("data", 0, LINK, linkname="..") + member("data/canary"),
    "a link inside": GOOD + block("data/link", 0, LINK, linkname="good"),
    "a hard link": lambda tmp: block("data/link", 0, HARD, linkname=f"{tmp}/canary"),
    "a hard link inside": GOOD + block("data/link", 0, HARD, linkname="data/good"),
    "a character device": block("data/null", 0, tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a block device": block("data/disk", 0, tarfile.BLKTYPE, devmajor=8),
    "a fifo": block("data/fifo", 0, tarfile.FIFOTYPE),
    "a contiguous file": member("data/file", kind=tarfile.CONTTYPE),
    "an unknown kind": member("data/file", kind=b"Z"),
    "a sparse file": patched(member("data/file", b"x" * 512, kind=tarfile.GNUTYPE_SPARSE), 386, b"00000000000\0" * 2),
    "a sparse file of terabytes": patched(
        member("data/file", b"x" * 512, kind=tarfile.GNUTYPE_SPARSE),
        386,
        b"77777777000\0" + b"00000001000\0" + b"\0" * 73 + b"\x80\0\0\0\0\1\0\0\0\0\0\0",
    ),
    "a sparse file of newer form": pax(
        {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9" * 12},
        member("data/file", padded(b"1\n0\n512\n") + b"x" * 512),
    ),
    "a sparse file with a map that ends nowhere": pax(
        {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0"}, member("data/file", padded(b"99999999\n0\n512\n"))
    ),
    "a sparse file with a map of words": pax({b"GNU.sparse.map": b"a,b,c", b"GNU.sparse.size": b"9"}, GOOD),
    "a name twice": GOOD + GOOD,
    "a file below a file": GOOD + member("data/good/file"),
    "a file in a folder's place": GOOD + member("data"),
    "a folder in a file's place": GOOD + block("data/good", 0, tarfile.DIRTYPE),
    "a folder twice": block("data", 0, tarfile.DIRTYPE) * 2,
    "more members than a data set has": MANY,
    "a file larger than any data set": block("data/file", 2**40),
    "two files larger than any data set": GOOD + block("data/file", 2**31 - 2),
    "a negative size": GOOD + patched(block("data/file"), 124, b"\xff" * 12),
    "a size that is no number": GOOD + patched(block("data/file"), 124, b"number......"),
    "a size of another record": pax({b"size": b"-5120"}, GOOD) + GOOD,
    "a header that is changed": GOOD + block("data/file").replace(b"ustar", b"USTAR"),
    "an archive behind the end": GOOD + END + GOOD,
    "no end": b"",
    "nothing": END,
    "a long name in front of nothing": block("././@LongLink", 9, tarfile.GNUTYPE_LONGNAME) + padded(b"data/file\0"),
    "long names in a chain": (block("././@LongLink", 5, tarfile.GNUTYPE_LONGNAME) + padded(b"name\0")) * 1500 + GOOD,
    "records in a chain": pax({b"a": b"b"}, b"") * 1500 + GOOD,
    "too many records": pax({b"k%d" % number: b"v" for number in range(200)}, GOOD),
}


@pytest.mark.parametrize("name", TARS)
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_hostile_tar(name: str, ending: str, tmp_path: Path, refused: Case) -> None:
    made = TARS[name]
    content = (made if isinstance(made, bytes) else made(tmp_path)) + (b"" if name == "no end" else END)
    content = GOOD + content if name == "no end" else content
    archive = tmp_path / f"a.{ending}"
    archive.write_bytes(gzip.compress(content) if ending == "tar.gz" else content)
    (tmp_path / "there").mkdir()
    refused("data", "unpack", archive, "--into", tmp_path / ("there" if ending == "tar" else "absent"))


def test_compressed_files_that_are_something_else(tmp_path: Path, refused: Case) -> None:
    content = GOOD + END
    packed = gzip.compress(content)
    cases = {
        "a.tar.gz": [b"", b"\x1f\x8b", packed[:-9], packed[:-1] + b"\x01", packed + b"garbage", content, b"PK\3\4"],
        "a.tar.bz2": [bz2.compress(content)[:-5], packed, bz2.compress(content)[:20] + b"\0" * 30],
        "a.tar.xz": [lzma.compress(content)[:-5], packed, lzma.compress(content, lzma.FORMAT_ALONE), b""],
        "a.tar": [packed, b"", b"\0" * 100, os.urandom(0) + b"x" * 2000],
        "a.zip": [packed, content, b"", b"PK\5\6" + b"\0" * 18],
    }
    for name, contents in cases.items():
        for wrong in contents:
            (tmp_path / name).write_bytes(wrong)
            refused("data", "unpack", tmp_path / name, "--into", tmp_path / "data")


def zipped(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED, **fields: Any) -> bytes:
    """A zip file; the fields are those of the last member's entry."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            entry = zipfile.ZipInfo("x" * len(name))
            entry.filename = name
            if (name, content) == members[-1]:
                for field, value in fields.items():
                    setattr(entry, field, value)
            archive.writestr(entry, content, compression)
    return buffer.getvalue()


def entry_changed(content: bytes, place: int, value: bytes, local: int | None = None) -> bytes:
    """A zip file with other bytes in its last entry in the table of contents, and in the header of the member too."""
    start = content.rindex(b"PK\1\2") + place
    content = content[:start] + value + content[start + len(value) :]
    if local is not None:
        start = content.rindex(b"PK\3\4") + local
        content = content[:start] + value + content[start + len(value) :]
    return content


def quoted_twice(kernel: bytes) -> bytes:
    """Entries that all have one member's content: a bomb without any compression of its own."""
    entry = kernel[kernel.index(b"PK\1\2") : kernel.index(b"PK\5\6")]
    end = kernel[kernel.index(b"PK\5\6") :]
    start = kernel.index(b"PK\1\2")
    end = end[:8] + struct.pack("<HHII", 500, 500, 500 * len(entry), start) + end[20:]
    return kernel[:start] + entry * 500 + end


FILE = ("data/file", b"hostile" * 20)
LINKED, DEVICE, FIFO = ((kind | 0o777) << 16 for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO))

ZIPS: dict[str, bytes | Callable[[Path], bytes]] = {
    "an absolute name": lambda tmp: zipped((f"{tmp}/canary", b"hostile")),
    "the folder above": zipped(("../canary", b"hostile")),
    "the folder above, later": zipped(("data/../../canary", b"hostile")),
    "a folder above": zipped(("../", b"")),
    "a backslash": zipped(("..\\canary", b"hostile")),
    "a drive": zipped(("C:/canary", b"hostile")),
    "a zero in a name": zipped(("data/xxx/file", b"x")).replace(b"data/xxx", b"data\0../"),
    "control characters": zipped(("data/\x1b[2Jx\n", b"x")),
    "a link": zipped(("data/link", b"../canary"), external_attr=LINKED),
    "a link behind a file": zipped(FILE, ("data/link", b".."), external_attr=LINKED),
    "a device": zipped(("data/null", b""), external_attr=DEVICE),
    "a fifo": zipped(("data/fifo", b""), external_attr=FIFO),
    "a folder with content": zipped(("data/", b"content")),
    "a file that is a folder": zipped(FILE, external_attr=stat.S_IFDIR << 16),
    "a name twice": zipped(FILE, ("data/fil2", b"x")).replace(b"fil2", b"file"),
    "a file below a file": zipped(FILE, ("data/file/file", b"x")),
    "a file in a folder's place": zipped(FILE, ("data", b"x")),
    "a compression that takes memory": zipped(FILE, compression=zipfile.ZIP_LZMA),
    "an unknown compression": entry_changed(zipped(FILE), 10, b"\x63\0", 8),
    "a password": entry_changed(zipped(FILE), 8, b"\1\0", 6),
    "a size that is too small": entry_changed(zipped(FILE), 24, struct.pack("<I", 9), 22),
    "a size that is too large": entry_changed(zipped(FILE), 24, struct.pack("<I", 999), 22),
    "a size larger than any data set": entry_changed(zipped(FILE), 24, struct.pack("<I", 2**32 - 2), 22),
    "a place beyond the end": entry_changed(zipped(FILE), 42, struct.pack("<I", 2**31)),
    "a place in another member": entry_changed(zipped(("data/good", b"x"), FILE), 42, struct.pack("<I", 0)),
    "another name in the header": zipped(FILE).replace(b"data/file", b"data/fill", 1),
    "a wrong checksum": entry_changed(zipped(FILE), 16, b"\0\0\0\0", 14),
    "wrong content": zipped(FILE, compression=zipfile.ZIP_STORED).replace(b"hostile", b"HOSTILE", 1),
    "a comment that hides an entry": entry_changed(zipped(FILE, ("data/more", b"x")), 32 - 55, b"\x37\0"),
    "one content quoted often": quoted_twice(zipped(("data/file", b"\0" * 10_000_000))),
    "a table of contents larger than the file": zipped(FILE)[:-10] + struct.pack("<II", 2**31, 0) + b"\0\0",
    "more members than a data set has": zipped(*((f"data/{number}", b"") for number in range(1100))),
    "the start of a file": zipped(FILE)[:-30],
    "a very long name": zipped(("d/" * 300 + "file", b"x")),
    "nothing": zipped(),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_hostile_zip(name: str, tmp_path: Path, refused: Case) -> None:
    made = ZIPS[name]
    (tmp_path / "a.zip").write_bytes(made if isinstance(made, bytes) else made(tmp_path))
    refused("data", "unpack", tmp_path / "a.zip", "--into", tmp_path / "data")


LIMITED = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
from kdtool.cli.main import run
codes = [run(["data", "unpack", path, "--into", "out"]) for path in sys.argv[2:]]
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([codes, int(peak) * 1024]))
"""
MEMORY = 600 * 2**20


def zeros(size: int, pack: Any) -> bytes:
    """So many zeros, compressed piece by piece."""
    return b"".join([*(pack.compress(bytes(2**20)) for _ in range(size // 2**20)), pack.flush()])


def gzip_of(head: bytes, size: int) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(head) + zeros(size, packer)


def wide_xz() -> bytes:
    """An xz file that asks for a dictionary of 1.5 GiB, which an encoder would need too: the header is changed."""
    packed = lzma.compress(GOOD + END, check=lzma.CHECK_CRC32)
    size = packed[12] * 4 + 4
    block_header = bytearray(packed[12 : 12 + size])
    place = block_header.index(b"\x21\x01") + 2  # LZMA2, one byte of properties: the dictionary
    block_header[place] = 39
    block_header[-4:] = zlib.crc32(block_header[:-4]).to_bytes(4, "little")
    return packed[:12] + bytes(block_header) + packed[12 + size :]


def test_bombs_take_little_memory(tmp_path: Path, counts: Counts, trials: Callable[[int, int], int]) -> None:
    """In a process with a limit on its memory, far below what the bombs hold; none gets as far as the disk's limit."""
    size = trials(192, 2048) * 2**20
    long_name = block("././@LongLink", size, tarfile.GNUTYPE_LONGNAME)
    records = block("pax", size, tarfile.XHDTYPE)
    chained = pax({b"k": b"v" * 3_000_000}, GOOD, tarfile.XGLTYPE) * 3
    table = zipped(*((f"data/{number:0150}", b"") for number in range(30_000)))
    bombs = {
        "name.tar.gz": gzip_of(long_name, size),
        "records.tar.gz": gzip_of(records, size),
        "end.tar.gz": gzip_of(GOOD + END, size),
        "chained.tar.gz": gzip.compress(chained + END),
        "name.tar.bz2": bz2.compress(long_name) + zeros(size // 4, bz2.BZ2Compressor()),
        "name.tar.xz": lzma.compress(long_name + bytes(size // 4)),
        "wide.tar.xz": wide_xz(),
        "table.zip": table,
        "lying.zip": entry_changed(zipped(("data/file", bytes(size // 4))), 24, struct.pack("<I", 5000), 22),
        "quoted.zip": quoted_twice(zipped(("data/file", b"\0" * 10_000_000))),
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
    before = picture(tmp_path)
    words = [sys.executable, "-c", LIMITED, str(MEMORY), *bombs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    codes, peak = json.loads(done.stdout)
    counts["tried"] += len(bombs)
    counts["refused"] += codes.count(3)
    counts["written_outside"] += picture(tmp_path) != before
    assert codes == [3] * len(bombs), done.stderr
    assert done.stderr.count("\n") == len(bombs)
    assert "not enough memory" not in done.stderr
    assert picture(tmp_path) == before
    assert peak < 150 * 2**20


# A working folder, taught and distilled from the python form of a made-up CIFAR-10.

TEACH = "teach --data cifar10 --network resnet8 --student resnet8 --epochs 2 --batch 16 --precision float32 --quiet"
EXTRACT = "extract --no-srm --views 2 --batch 16 --block 16 --dtype float32 --quiet"
DISTILL = "distill --method kda --layer before_fc --epochs 2 --batch 16 --precision float32 --quiet"
FORM = "cifar-10-batches-py"
PARTS = ("data_batch_1", "test_batch", "batches.meta")


def write_cifar10(folder: Path) -> Path:
    """40 images and 20 of test in the python form."""
    random = np.random.default_rng(5)
    (folder / FORM).mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        count = 20 if name == "test_batch" else 8
        labels = [(number * 8 + row) % 10 for row in range(count)]
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / FORM / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2))
    names = [f"class{number}".encode() for number in range(10)]
    (folder / FORM / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, in which every stage has run; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    data = write_cifar10(folder / "data")
    for line in (f"{TEACH} --data-folder {data}", EXTRACT, f"{DISTILL} --run first", "analyze gram-gap --quiet"):
        assert run([*line.split(), "--folder", str(folder / "work")]) == 0, line
    return folder


@pytest.fixture
def work(built: Path, tmp_path: Path) -> Path:
    """A copy of the working folder; its data are in `data` beside it."""
    shutil.copytree(built / "data", tmp_path / "data")
    work = Path(shutil.copytree(built / "work", tmp_path / "work"))
    settings = (work / "kdtool.toml").read_text()
    (work / "kdtool.toml").write_text(settings.replace(str(built / "data"), str(tmp_path / "data")))
    return work


# Pickles.


class Reduced:
    """Pickles as the call of any function, with a state, items and pairs where they are given."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.reduced


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def named(module: str, name: str) -> bytes:
    """STACK_GLOBAL, which can name what no object of this process is."""
    return short(module) + short(name) + b"\x93"


def payloads(canary: Path) -> dict[str, Any]:
    """Objects whose pickles execute something where they are read by `pickle`."""
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    array = np.zeros(3)
    return {
        "os.system": Reduced(os.system, (touch,)),
        "subprocess": Reduced(subprocess.check_call, (["touch", str(canary)],)),
        "eval": Reduced(eval, (code,)),
        "exec": Reduced(exec, (code,)),
        "open": Reduced(builtins.open, (str(canary), "w")),
        "getattr": Reduced(getattr, (Reduced(__import__, ("os",)), "system")),
        "an object's call": Reduced(map, (os.system, [touch])),
        "in a list in a dictionary": {"data": [{"deep": [Reduced(os.system, (touch,))]}]},
        "as a key": {Reduced(os.system, (touch,)): 1},
        "behind right entries": {"data": np.zeros((8, 3072), np.uint8), "labels": [0] * 8, "x": Reduced(exec, (code,))},
        "as the type of an array": Reduced(np.dtype, (Reduced(eval, (f"{code} or 'f4'",)),)),
        "as the shape of an array": Reduced(np.ndarray, (Reduced(eval, (f"{code} or (1,)",)),)),
        "in an array of objects": np.array([Reduced(os.system, (touch,)), None], dtype=object),
        "as the state of an array": Reduced(*array.__reduce__()[:2], (1, Reduced(eval, (f"{code} or (3,)",)), None)),
        "as items": Reduced(list, (), None, iter([Reduced(os.system, (touch,))])),
        "numpy's loader": Reduced(np.load, (str(canary), None, True)),
        "a pickle in a pickle": Reduced(pickle.loads, (pickle.dumps(Reduced(os.system, (touch,))),)),
        "torch's loader": Reduced(torch.load, (str(canary),)),
    }


def written_by_hand(canary: Path) -> dict[str, bytes]:
    """Streams of instructions that no pickler writes."""
    touch = short(f"touch {canary}")
    line = str(canary).encode()
    return {
        "a dotted name": b"\x80\x04" + named("numpy", "ndarray.__class__") + b".",
        "a module of numpy": b"\x80\x04" + named("numpy", "os.system") + touch + b"\x85R.",
        "runstring": b"\x80\x04" + named("numpy.testing._private.utils", "runstring") + touch + b"}\x86R.",
        "an old class": b"(S'touch " + line + b"'\nios\nsystem\n.",
        "an old object": b"(cos\nsystem\nS'touch " + line + b"'\no.",
        "a global of protocol 0": b"cos\nsystem\n(S'touch " + line + b"'\ntR.",
        "a new object": b"\x80\x04" + named("subprocess", "Popen") + touch + b"\x85\x81.",
        "a new object with options": b"\x80\x04" + named("subprocess", "Popen") + touch + b"\x85}\x92.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent identifier": b"Ptouch " + line + b"\n.",
        "another constructor's method": b"\x80\x04" + named("numpy", "dtype.type") + touch + b"\x85R.",
        "build of a function": b"\x80\x04" + named("os", "system") + b"}" + touch + b"Nsb.",
        "bytes of gigabytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        "a frame of gigabytes": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
        "a memo of gigabytes": b"\x80\x04}r\xff\xff\xff\xff.",
        "another protocol": b"\x80\x63}.",
    }


COMMANDS = (
    f"{TEACH} --folder other",
    f"{EXTRACT} --views 3",
    f"{DISTILL} --run second",
    "analyze gram-gap --quiet --fresh",
    "plan",
    "cache verify --replay 4 --quiet",
)


def pickles(canary: Path) -> list[tuple[str, bytes]]:
    """Every payload in every protocol, as it is and as an entry of the dictionary that is expected."""
    found = list(written_by_hand(canary).items())
    for name, payload in payloads(canary).items():
        for protocol in range(6):
            whole = {"data": payload, "labels": [1]} if protocol % 2 else payload
            found.append((f"{name}, protocol {protocol}", pickle.dumps(whole, protocol=protocol)))
    return found


def words_of(line: str, work: Path, data: Path) -> list[str]:
    """A command line with its folders."""
    words = [str(work.parent / "other") if word == "other" else word for word in line.split()]
    return [*words, *(["--data-folder", str(data)]), *([] if "--folder" in line else ["--folder", str(work)])]


def test_pickles_in_the_place_of_a_data_set(
    work: Path, tmp_path: Path, refused: Case, trials: Callable[[int, int], int]
) -> None:
    """All of them, or every fifth, where a data set is read, and by turns in all commands and files of the form."""
    data, canary = tmp_path / "data", tmp_path / "executed"
    whole = {name: (data / FORM / name).read_bytes() for name in PARTS}
    by_hand = len(written_by_hand(canary))
    chosen = pickles(canary)[:by_hand] + pickles(canary)[by_hand :: trials(5, 1)]  # five of six protocols further on
    for number, (_, content) in enumerate(chosen):
        for turn in range(trials(1, 3)):
            name = PARTS[(number + turn) % 3]
            (data / FORM / name).write_bytes(content)
            refused("data", "check", "cifar10", "--data-folder", data)
            for line in COMMANDS[(number + turn) % 6 :: 6 if number % trials(4, 1) == 0 else 100]:
                refused(*words_of(line, work, data), inside=work, output="verify" in line)
            (data / FORM / name).write_bytes(whole[name])
    for line in COMMANDS:
        (data / FORM / "data_batch_3").write_bytes(pickles(canary)[0][1])
        refused(*words_of(line, work, data), inside=work, output="verify" in line)


def test_the_payloads_are_loaded_weapons(tmp_path: Path) -> None:
    """Read by `pickle` itself they do execute something, so that refusing them says something."""
    mark, fired = tmp_path / "executed", set()
    for name, payload in payloads(mark).items():
        for protocol in range(6):
            with contextlib.suppress(Exception):  # what follows the call is not of interest
                made = pickle.loads(pickle.dumps(payload, protocol=protocol))  # noqa: S301 - the point of it
                getattr(made, "close", list)()
            if mark.exists():
                fired.add(name)
                mark.unlink()
    for name, content in written_by_hand(mark).items():
        with contextlib.suppress(Exception):
            pickle.loads(content)  # noqa: S301
        if mark.exists():
            fired.add(name)
            mark.unlink()
    assert len(fired) >= 17, fired


# Weights and states.


def tensors(header: Any, data: bytes = b"\0" * 64) -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(dtype: Any = "F32", shape: Any = (16,), offsets: Any = (0, 64)) -> dict[str, Any]:
    return {"fc.bias": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def weights(canary: Path) -> dict[str, bytes]:
    """What stands in the place of a safetensors file."""
    hostile = Reduced(os.system, (f"touch {canary}",))
    saved = io.BytesIO()
    torch.save({"fc.bias": torch.zeros(3), "x": hostile}, saved)
    old = io.BytesIO()
    torch.save({"x": hostile}, old, _use_new_zipfile_serialization=False)
    archive = io.BytesIO()
    np.savez(archive, x=np.array([hostile], dtype=object))
    return {
        "torch.save": saved.getvalue(),
        "torch.save of old": old.getvalue(),
        "numpy.savez": archive.getvalue(),
        **{f"pickle {protocol}": pickle.dumps(hostile, protocol=protocol) for protocol in range(6)},
        "nothing": b"",
        "a header of exabytes": struct.pack("<Q", 2**63) + b"{}",
        "a header of 2^64 - 1": b"\xff" * 8 + b"{}",
        "a header beyond the end": struct.pack("<Q", 10**8 + 1) + b"{" + b" " * 100,
        "a header of gigabytes": struct.pack("<Q", 2**31) + b" " * 1000,
        "a header that is no text": tensors(b"\xff\xfe\xfd"),
        "a header that is no JSON": tensors(b"{]"),
        "a header that is nested deeply": tensors(b"[" * 50_000),
        "a header that is a list": tensors([one()]),
        "offsets beyond the end": tensors(one(offsets=(0, 2**40), shape=(2**38,))),
        "offsets that are turned round": tensors(one(offsets=(64, 0))),
        "negative offsets": tensors(one(offsets=(-64, 0))),
        "offsets behind a hole": tensors(one(offsets=(32, 64), shape=(8,))),
        "offsets of others": tensors({**one(), "fc.weight": one()["fc.bias"]}),
        "offsets that do not fit the shape": tensors(one(shape=(17,))),
        "more data than offsets": tensors(one(), b"\0" * 100),
        "a shape beyond all numbers": tensors(one(shape=(2**62, 2**62))),
        "a negative shape": tensors(one(shape=(-16,))),
        "a shape of words": tensors(one(shape=("os", "system"))),
        "an unknown dtype": tensors(one(dtype="O")),
        "a dtype that is a list": tensors(one(dtype=["F32"])),
        "a name twice": tensors(json.dumps(one()).replace("}}", '}, "fc.bias": 1}').encode()),
    }


def sealed(path: Path, **changes: Any) -> None:
    """Changes a checksummed record and lets its checksum fit again."""
    files.write_json(path, {**files.read_json(path, ""), **changes})


def test_hostile_files_in_the_place_of_weights(
    work: Path, tmp_path: Path, refused: Case, trials: Callable[[int, int], int]
) -> None:
    """With records that somebody made fit; in the long form also with the SHA-256 that was recorded."""
    run_folder, canary = work / "runs/first", tmp_path / "executed"
    for content in weights(canary).values():
        digest = files.sha256(content)
        teacher_record = (work / "teacher.json").read_bytes()
        whole = (work / "teacher.safetensors").read_bytes()
        (work / "teacher.safetensors").write_bytes(content)
        for fits in (False, True)[trials(1, 0) :]:
            if fits:
                sealed(work / "teacher.json", sha256=digest)
            cache = ["--folder", work, *(["--cache", work / "new.zarr"] if fits else [])]
            refused(*EXTRACT.split(), *cache, inside=work)
            refused("plan", *cache, inside=work)
            refused("analyze", "gram-gap", "--fresh", "--quiet", "--folder", work, inside=work, codes=(3, 4))
        (work / "teacher.json").write_bytes(teacher_record)
        (work / "teacher.safetensors").write_bytes(whole)
        result = (run_folder / "result.json").read_bytes()
        whole = (run_folder / "student.safetensors").read_bytes()
        (run_folder / "student.safetensors").write_bytes(content)
        for fits in (False, True)[trials(1, 0) :]:
            if fits:
                sealed(run_folder / "result.json", weights_sha256=digest)
            refused("analyze", "gram-gap", "--quiet", "--folder", work, inside=work)
        (run_folder / "result.json").write_bytes(result)
        (run_folder / "student.safetensors").write_bytes(whole)


@pytest.mark.parametrize("fits", [False, True])
def test_hostile_files_in_the_place_of_a_state(fits: bool, work: Path, tmp_path: Path, refused: Case) -> None:
    folder = work / "runs/first"
    (folder / "result.json").unlink()
    for content in weights(tmp_path / "executed").values():
        digest = files.sha256(content) if fits else "0" * 64
        (folder / "state-1.safetensors").write_bytes(content)
        files.write_json(folder / "state.json", {"tensors": "state-1.safetensors", "sha256": digest, "plain": {}})
        refused(*DISTILL.split(), "--run", "first", "--folder", work, inside=work)


# Caches.

PICKLED = [
    {"name": "numcodecs.pickle", "configuration": {}},
    {"name": "numcodecs.pickle", "configuration": {"protocol": 4}},
    {"name": "pickle"},
    {"id": "pickle"},
    {"name": "numcodecs.json2", "configuration": {}},
    {"name": "os.system", "configuration": {"command": "touch executed"}},
    {"name": "vlen-bytes"},
    {"name": "gzip", "configuration": {"level": 9}},
    {"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 1, 1], "codecs": [], "index_codecs": []}},
]
ARRAY = "train/before_fc/values"


def metadata_changes(array: dict[str, Any]) -> dict[str, bytes]:
    """What a hostile zarr.json of an array says."""
    changes: dict[str, dict[str, Any]] = {
        **{f"codec {json.dumps(codec)}": {"codecs": [codec]} for codec in PICKLED},
        **{f"codec added {codec.get('name')}": {"codecs": [*array["codecs"], codec]} for codec in PICKLED[:3]},
        "huge shape": {"shape": [2**40, 2**40, 2**40]},
        "shape beyond numbers": {"shape": [2**200]},
        "negative shape": {"shape": [-1, 40, 64]},
        "chunk of everything": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**62]}}},
        "object dtype": {"data_type": "object"},
        "dtype of code": {"data_type": {"name": "numpy.object", "configuration": {"object_codec": "pickle"}}},
        "fill value of code": {"fill_value": "__import__('os').system('touch executed')"},
        "path in attributes": {"attributes": {"path": "../../canary", "uri": "file:///canary"}},
        "storage transformer": {"storage_transformers": [{"name": "os.system", "configuration": {}}]},
        "keys that lead out": {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/../../"}}},
        "older format": {"zarr_format": 2, "compressor": {"id": "pickle"}, "filters": [{"id": "pickle"}]},
        "a group": {"node_type": "group"},
    }
    texts = {
        "no JSON": b"{",
        "nothing": b"",
        "nested deeply": b"[" * 9000,
        "many megabytes": b" " * 3_000_000 + json.dumps(array).encode(),
        "NaN": json.dumps({**array, "fill_value": float("nan")}).encode(),
        "a name twice": json.dumps(array)[:-1].encode() + b', "codecs": [{"name": "pickle"}]}',
    }
    return {**{name: files.canonical({**array, **change}).encode() for name, change in changes.items()}, **texts}


def test_hostile_zarr_metadata(work: Path, tmp_path: Path, refused: Case) -> None:
    """Of an array that distill reads, of one that it does not, and of groups; chunks are pickles as well."""
    cache = work / "cache.zarr"
    array = json.loads((cache / ARRAY / "zarr.json").read_bytes())
    for content in metadata_changes(array).values():
        whole = (cache / ARRAY / "zarr.json").read_bytes()
        (cache / ARRAY / "zarr.json").write_bytes(content)
        refused(*DISTILL.split(), "--run", "second", "--folder", work, inside=work)
        refused("cache", "verify", "--quiet", "--folder", work, inside=work, output=True)
        (cache / ARRAY / "zarr.json").write_bytes(whole)
    for place in ("zarr.json", "train/zarr.json", "train/before_fc/zarr.json", "train/labels/zarr.json"):
        whole = (cache / place).read_bytes()
        for codec in PICKLED[:4]:
            changed = {**json.loads(whole), "codecs": [codec], "consolidated_metadata": {"metadata": {"x": codec}}}
            (cache / place).write_bytes(files.canonical(changed).encode())
            refused("cache", "verify", "--quiet", "--folder", work, inside=work, output=True)
        (cache / place).write_bytes(whole)
    chunk = next((cache / ARRAY / "c").rglob("0"))
    while chunk.is_dir():
        chunk = chunk / "0"
    for content in (pickle.dumps(Reduced(os.system, (f"touch {tmp_path}/executed",))), b"", b"\0" * 9):
        whole = chunk.read_bytes()
        for padding in (b"", b"\0" * (len(whole) - len(content))):
            chunk.write_bytes(content + padding)
            refused(*DISTILL.split(), "--run", "second", "--folder", work, inside=work)
            refused("cache", "verify", "--quiet", "--folder", work, inside=work, output=True)
        chunk.write_bytes(whole)


def manifest_changes(manifest: dict[str, Any], outside: Path) -> dict[str, dict[str, Any]]:
    """Manifests that somebody wrote, whose checksums fit."""
    chunk = next(name for name in manifest["files"] if name.startswith(ARRAY))
    recorded = manifest["files"][chunk]
    contents = manifest["contents"]
    key = contents["before_fc"]

    def with_file(name: str, value: Any = recorded) -> dict[str, Any]:
        return {"files": {**manifest["files"], name: value}}

    def with_array(**changes: Any) -> dict[str, Any]:
        return {"contents": {**contents, "before_fc": {**key, "arrays": {"values": {**spec, **changes}}}}}

    def with_layout(**changes: Any) -> dict[str, Any]:
        layout = {**manifest["layout"], **changes}
        digest = files.digest({"format": 1, "identity": manifest["identity"], "layout": layout})
        return {"layout": layout, "identity_digest": digest}

    spec = key["arrays"]["values"]
    samples = manifest["layout"]["samples"]
    names = ["../../canary", "/etc/passwd", str(outside), "train/../../canary", f"{chunk}/../../../../../../../canary"]
    names += [f"train/../{chunk}", f"./{chunk}", "", "/", "c", "\ud800"]
    names += [f"{ARRAY}/c/{rest}" for rest in ("../../../../../canary", "0/0/0/../0", "-1/0/0", "0/99999/0", "٣/0/0")]
    return {
        **{f"file {name!r}": with_file(name) for name in names},
        "record that is none": with_file(chunk, "../canary"),
        "record that is a list": with_file(chunk, [recorded]),
        "files that are a list": {"files": [chunk]},
        "files that are nothing": {"files": None},
        **{f"key {name!r}": {"contents": {**contents, name: key}} for name in ("../x", "/x", "a/b", "..", "", "index")},
        **{
            f"array {name!r}": {"contents": {**contents, "before_fc": {**key, "arrays": {name: spec}}}}
            for name in ("../../../../canary", str(outside), ".", "c/0")
        },
        **{f"dtype {dtype!r}": with_array(dtype=dtype) for dtype in ("object", "O", "|O8", "pickle", "U8", "", ["f4"])},
        "huge sample": with_array(shape=[2**31]),
        "sample beyond numbers": with_array(shape=[2**62, 2**62, 2**62]),
        "many axes": with_array(shape=[1] * 5000),
        "negative axis": with_array(shape=[-64]),
        "axis that is text": with_array(shape=["64"]),
        "axis that is true": with_array(shape=[True]),
        "huge part": with_layout(samples={**samples, "train": 2**62}),
        "negative part": with_layout(samples={**samples, "train": -1}),
        "part elsewhere": with_layout(samples={**samples, "../canary": 4}),
        "no batch": with_layout(batch=0),
        "huge block": with_layout(block=2**70),
        "layout of words": with_layout(samples="all"),
        "fit elsewhere": {"fits": {"../canary": {"version": 1, "record": {}, "arrays": {"x": spec}}}},
        "fit that is not there": {"fits": {"evil": {"version": 1, "record": {}, "arrays": {"x": spec}}}},
        "fit of gigabytes": {
            "fits": {"evil": {"version": 1, "record": {}, "arrays": {"x": {"dtype": "float64", "shape": [2**40]}}}}
        },
        "no identity": {"identity": None},
        "contents that are a text": {"contents": "before_fc"},
        "taps of numbers": {"contents": {**contents, "before_fc": {**key, "taps": 5}}},
    }


def test_hostile_manifests_with_fitting_checksums(
    work: Path, tmp_path: Path, refused: Case, trials: Callable[[int, int], int]
) -> None:
    path = work / "cache.zarr/manifest.json"
    whole = path.read_bytes()
    manifest = files.read_json(path, "")
    for number, change in enumerate(manifest_changes(manifest, tmp_path / "canary").values()):
        files.write_json(path, {**manifest, **change})
        refused(*DISTILL.split(), "--run", "second", "--folder", work, inside=work)
        refused("cache", "verify", "--quiet", "--folder", work, inside=work, output=True)
        for words in (["cache", "info"], ["plan"], ["analyze", "gram-gap", "--quiet"])[number % 3 :: trials(3, 1)]:
            refused(*words, "--folder", work, inside=work)
        path.write_bytes(whole)
        addition = {name: change[name] for name in ("contents", "fits", "files") if name in change}
        if addition:
            (work / "cache.zarr/journal.jsonl").write_text(seal(addition) + "\n" + seal({}) + "\n")
            refused("cache", "verify", "--quiet", "--folder", work, inside=work, output=True)
            (work / "cache.zarr/journal.jsonl").unlink()


def test_encoders_of_a_manifest_are_names_of_known_classes(work: Path, tmp_path: Path) -> None:
    """What a key was computed by is in the manifest as a name: no other class or function is ever made.

    A method of the user's may have stored it, so `verify --replay` tells that it leaves the key out, and goes on.
    """
    path = work / "cache.zarr/manifest.json"
    manifest = files.read_json(path, "")
    touch = f"touch {tmp_path}/executed"
    for record in (
        {"name": "os.system", "command": touch},
        {"name": "subprocess.Popen", "args": touch, "shell": True},
        {"name": "builtins.eval", "source": touch},
        {"name": ["os", "system"]},
        {"name": "../../evil:Encoder"},
        {"name": "Whole", "__class__": "os.system", "extra": {"name": "os.system", "command": touch}},
    ):
        key = {**manifest["contents"]["before_fc"], "encoder": record}
        for name in ("manifest.json", "manifest.copy.json"):
            files.write_json(path.with_name(name), {**manifest, "contents": {**manifest["contents"], "before_fc": key}})
        for line in ("cache verify --quiet --replay 4", "cache repair --quiet"):
            assert run([*line.split(), "--folder", str(work)]) in (0, 2, 3, 4), (line, record)
            assert not (tmp_path / "executed").exists()


def test_links_in_a_cache(work: Path, tmp_path: Path, refused: Case) -> None:
    """A file, folder or text of the cache that is a link to the same content elsewhere, and a lock that is one."""
    cache, elsewhere = work / "cache.zarr", tmp_path / "elsewhere"
    chunk = next(name for name in files.read_json(cache / "manifest.json", "")["files"] if name.startswith(ARRAY))
    elsewhere.mkdir()
    for name in (chunk, f"{ARRAY}/c", ARRAY, "train", "train/labels"):
        place = cache / name
        moved = place.rename(elsewhere / "moved")
        place.symlink_to(moved)
        refused(*DISTILL.split(), "--run", "second", "--folder", work, inside=work)
        refused("cache", "verify", "--quiet", "--folder", work, inside=work, output=True)
        refused(*EXTRACT.split(), "--views", "3", "--folder", work, inside=work)
        place.unlink()
        moved.rename(place)
    (cache / "lock").unlink(missing_ok=True)
    (cache / "lock").symlink_to(tmp_path / "canary")
    refused(*EXTRACT.split(), "--views", "3", "--folder", work, inside=work)
    refused("cache", "verify", "--quiet", "--folder", work, inside=work, output=True)


def test_control_characters_in_a_manifest_are_not_shown(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = work / "cache.zarr/manifest.json"
    manifest = files.read_json(path, "")
    files.write_json(path, {**manifest, "files": {f"{ARRAY}/c/0/0/\x1b]0;title\x07": "x"}})
    assert run(["cache", "info", "--folder", str(work)]) == 3
    assert capsys.readouterr().err[:-1].isprintable()


def test_a_version_that_is_no_number(work: Path) -> None:
    path = work / "cache.zarr/manifest.json"
    manifest = files.read_json(path, "")
    key = {**manifest["contents"]["before_fc"], "version": "os.system"}
    files.write_json(path, {**manifest, "contents": {**manifest["contents"], "before_fc": key}})
    assert run(["cache", "info", "--folder", str(work)]) == 3


CACHE, RUN = "cache.zarr/manifest.json", "runs/first/"
RECORDS: dict[str, tuple[str, dict[str, Any], str]] = {  # a record, what it says, the command that reads it
    "a teacher of no shape": ("teacher.json", {"image_shape": "3x32x32"}, "plan"),
    "a teacher of words": ("teacher.json", {"classes": "ten"}, "plan"),
    "a teacher without a name": ("teacher.json", {"network": 5}, "plan"),
    "a digest that is a number": ("teacher.json", {"sha256": 5}, "plan"),
    "a cache of nothing": (CACHE, {"identity": {}}, "cache info"),
    "a cache of a word": (CACHE, {"identity": {"teacher": "resnet8"}}, "distill --method kda"),
    "a result of nothing": (f"{RUN}result.json", {"": 0}, "analyze gram-gap"),
    "a state of nothing": (f"{RUN}state.json", {"": 0}, f"{DISTILL} --run first"),
    "an identity of nothing": (f"{RUN}cache.json", {"": 0}, f"{DISTILL} --run first"),
    "gaps of nothing": (f"{RUN}analysis/gram-gap.json", {"": 0}, "analyze gram-gap"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_lack_something_with_fitting_checksums(name: str, work: Path, refused: Case) -> None:
    file, change, line = RECORDS[name]
    if file.endswith("state.json"):
        (work / RUN / "result.json").unlink()
    held = {} if "" in change else {**files.read_json(work / file, ""), **change}
    if file == CACHE:
        held["identity_digest"] = files.digest({name: held[name] for name in ("format", "identity", "layout")})
    files.write_json(work / file, held)
    refused(*line.split(), "--folder", work, inside=work)


def test_the_working_folder_of_these_cases_is_sound(work: Path, counts: Counts) -> None:
    """With nothing hostile in it every command succeeds; and of all cases none was executed."""
    for line in (f"{DISTILL} --run second", "cache verify --quiet", "analyze gram-gap --quiet", f"{EXTRACT} --views 3"):
        assert run([*line.split(), "--folder", str(work)]) == 0, line
    assert counts["executed"] == counts["written_outside"] == 0
