"""Durable files: whole or absent under every injected fault, damage seen, one holder of a lock."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtool import files
from kdtool.errors import DamageError, ResourceError


def failing(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, ResourceError), (errno.EDQUOT, ResourceError), (errno.EROFS, ResourceError), (errno.EIO, OSError)],
)
def test_a_failing_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, error: type[Exception]
) -> None:
    path = tmp_path / "file"
    files.write(path, b"old")
    with monkeypatch.context() as fault:
        fault.setattr(owner, name, failing(number))
        with pytest.raises(error):
            files.write(path, b"new")
    assert path.read_bytes() == b"old"
    files.sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_content_is_durable_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda source, to: (steps.append("rename"), replace(source, to))[1])
    files.write(tmp_path / "file", b"content")
    assert steps == ["fsync", "rename", "fsync"]


def test_a_failing_first_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(ResourceError, match="no space left"):
        files.write(tmp_path / "file", b"new")
    assert not (tmp_path / "file").exists()


def test_appended_lines_come_back_in_order(tmp_path: Path) -> None:
    for line in ("one", "two", "drei"):
        files.append(tmp_path / "journal", line)
    assert (tmp_path / "journal").read_text() == "one\ntwo\ndrei\n"


def test_a_failing_append_keeps_the_lines_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.append(tmp_path / "journal", "one")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(ResourceError):
        files.append(tmp_path / "journal", "two")
    assert (tmp_path / "journal").read_bytes().startswith(b"one\n")


def test_sweep_removes_partial_files_alone(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("a", "a.partial", "below/b.partial", "below/partial"):
        (tmp_path / name).write_bytes(b"")
    files.sweep(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["a", "below/partial"]


VALUE = {"name": "Grüße", "list": [1, 2.5, None, True], "nested": {"b": 1, "a": -0.0}}


def test_json_comes_back(tmp_path: Path) -> None:
    files.write_json(tmp_path / "value.json", {**VALUE, "checksum": "of an older content"})
    assert files.read_json(tmp_path / "value.json", "") == VALUE
    assert "checksum" in json.loads((tmp_path / "value.json").read_text())


def test_torn_json_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, VALUE)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # without the last byte, a line feed, the object is complete
        path.write_bytes(whole[:length])
        with pytest.raises(DamageError, match="run it again"):
            files.read_json(path, "run it again")


def test_a_flipped_bit_never_gives_another_value(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, VALUE)
    whole = path.read_bytes()
    refused = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert files.read_json(path, "") == VALUE
        except DamageError:
            refused += 1
    assert refused > 0.95 * 8 * len(whole)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b"{}", b"\xff", b"[" * 100_000])
def test_json_that_is_no_checksummed_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(DamageError):
        files.read_json(tmp_path / "value.json", "")


def test_infinite_numbers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(), plain, max_size=4))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert files.canonical(value) == files.canonical(backwards)
    assert files.canonical(value).isascii()
    assert files.digest(value) == files.digest(json.loads(files.canonical(value)))


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(b"abc") == files.sha256(memoryview(b"abc")) == files.sha256_file(tmp_path / "file") == known


HOLDER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from kdtool import files
    with files.lock(Path(sys.argv[1]), "extracting into"):
        print("held", flush=True)
        sys.stdin.read()
    """
)


def test_a_lock_refuses_a_second_process_and_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "cache" / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ResourceError, match="another process is writing"), files.lock(path, "writing"):
            pass
        holder.kill()
    with files.lock(path, "writing"):
        second = subprocess.run([sys.executable, "-c", HOLDER, str(path)], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "another process is extracting into" in second.stderr
    with files.lock(path, "writing"):
        pass


def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResourceError, match="gives no locks"), files.lock(tmp_path / "lock", "writing into"):
        pass


def test_a_lock_is_for_all_who_may_write_in_its_folder(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with files.lock(tmp_path / "lock", "writing into"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)
