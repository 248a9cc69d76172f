"""A writer may end at any moment: killed, out of space, or with the machine losing power. The next one finishes."""

import contextlib
import errno
import itertools
import json

import numpy as np
import pytest
from disk import Disk, Killed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kdtool import files
from kdtool.cache import create_or_open, journal, open_cache, verify
from kdtool.errors import DamageError, ResourceError, UsageError


def assert_what_is_there_is_right(root, tiny, done=()):
    """Whatever state a cache is in, it holds each block that is done, and what it says to hold has the right values."""
    try:
        cache = open_cache(root)
    except UsageError:
        assert not done
        return  # killed before there was a cache
    for part, key, view, block in done:
        assert block not in cache.missing(part, key, view)
    for key, contents in cache.contents.items():
        for part, name in itertools.product(tiny.layout.samples, contents.arrays):
            metadata = root / part / key / name / "zarr.json"
            if metadata.exists():  # plain readers see no more than is complete
                assert json.loads(metadata.read_bytes())["shape"][0] <= cache.views(key, part)
            for view in range(cache.views(key, part)):
                found = cache.array(part, key, name).read(view)
                np.testing.assert_array_equal(found, tiny.values(part, key, name, view))


FEW = {"train": 1, "test": 1}  # views of the sessions that fail


@pytest.fixture(scope="module")
def wanted(tmp_path_factory, tiny):
    """The files of an undisturbed session, and how many calls it makes."""
    root = tmp_path_factory.mktemp("undisturbed") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        tiny.session(root, FEW)
        disk.close()
    return tiny.tree(root), disk.calls


def fail(monkeypatch, tiny, root, fail_at, error):
    """One session on a disk that fails at a call; gives the disk."""
    with monkeypatch.context() as patch:
        disk = Disk(patch, fail_at, error)
        try:
            tiny.session(root, FEW, disk.done)
        except (Killed, ResourceError, OSError):
            assert disk.calls >= fail_at
        else:
            assert disk.calls < fail_at
        finally:
            disk.close()
    return disk


@pytest.mark.parametrize(("error", "first", "step"), [(Killed, 1, 3), (OSError(errno.ENOSPC, "full"), 3, 7)])
def test_a_session_that_fails_at_any_call_is_finished_to_the_same_bytes(
    error, first, step, wanted, tmp_path, monkeypatch, tiny
):
    files, calls = wanted
    for fail_at in range(first, calls + 1, step):
        root = tmp_path / str(fail_at)
        disk = fail(monkeypatch, tiny, root, fail_at, error)
        assert disk.calls >= fail_at
        assert_what_is_there_is_right(root, tiny, disk.done)
        tiny.session(root, FEW)
        assert tiny.tree(root) == files, f"call {fail_at}"


def test_a_session_is_finished_after_a_loss_of_power_at_any_call(wanted, tmp_path, monkeypatch, tiny):
    files, calls = wanted
    for fail_at in range(2, calls + 1, 4):
        root, left = tmp_path / str(fail_at), tmp_path / f"{fail_at}-left"
        root.mkdir()
        disk = fail(monkeypatch, tiny, root, fail_at, Killed)
        disk.after_power_loss(root.stat().st_ino, left)
        assert_what_is_there_is_right(left, tiny, disk.done)
        tiny.session(left, FEW)
        assert tiny.tree(left) == files, f"call {fail_at}"


def test_a_session_that_fails_twice_is_finished_to_the_same_bytes(wanted, tmp_path, monkeypatch, tiny):
    files, calls = wanted
    draw = np.random.default_rng(0)
    for number in range(20):
        root = tmp_path / str(number)
        fail(monkeypatch, tiny, root, int(draw.integers(1, calls)), Killed)
        fail(monkeypatch, tiny, root, int(draw.integers(1, 40)), Killed)
        tiny.session(root, FEW)
        assert tiny.tree(root) == files


def unfinished(root, tiny):
    """A cache whose writer was killed after two blocks; its journal is there."""
    with contextlib.suppress(Killed), create_or_open(root, tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])
        for block in range(2):
            writer.commit("train", 0, block, {"logits": tiny.rows_of_block("train", "logits", 0, block)})
        raise Killed
    return root / "journal.jsonl"


def test_power_loss_keeps_the_folder_of_a_new_cache(tmp_path, monkeypatch, tiny):
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        tiny.session(tmp_path / "cache")
        disk.close()
    disk.after_power_loss(tmp_path.stat().st_ino, tmp_path.with_name(f"{tmp_path.name}-left"))
    assert tiny.tree(tmp_path.with_name(f"{tmp_path.name}-left") / "cache") == tiny.tree(tmp_path / "cache")


def test_power_loss_keeps_every_block_whose_commit_returned(tmp_path, monkeypatch, tiny):
    root = tmp_path / "cache"
    root.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        unfinished(root, tiny)
        disk.close()
    disk.after_power_loss(root.stat().st_ino, tmp_path / "left")
    cache = open_cache(tmp_path / "left")
    assert cache.views("logits") == 1
    assert_what_is_there_is_right(tmp_path / "left", tiny)
    assert verify(tmp_path / "left") == []


def test_a_writer_goes_on_after_a_failed_append(tmp_path, monkeypatch, tiny, sound):
    def full(root, addition):
        with (root / "journal.jsonl").open("ab") as file:
            file.write(b'{"torn')
        raise ResourceError("no space left")

    root = tmp_path / "cache"
    with create_or_open(root, tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])
        rows = tiny.rows_of_block("train", "logits", 0, 0)
        with monkeypatch.context() as patch:
            patch.setattr("kdtool.cache.journal.append", full)
            with pytest.raises(ResourceError):
                writer.commit("train", 0, 0, {"logits": rows})
        writer.commit("train", 0, 0, {"logits": rows})
        assert open_cache(root).missing("train", "logits", 0) == [1]
    tiny.session(root)
    assert tiny.tree(root) == tiny.tree(sound)


def test_a_torn_last_line_is_left_out_and_its_block_done_again(tmp_path, tiny, sound):
    journal = unfinished(tmp_path / "cache", tiny)
    content = journal.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, last + 100, len(content) - 1):
        journal.write_bytes(content[:cut])
        assert open_cache(tmp_path / "cache").missing("train", "logits", 0) == [1]
        assert "torn" in " ".join(problem.what for problem in verify(tmp_path / "cache"))
    tiny.session(tmp_path / "cache")
    assert tiny.tree(tmp_path / "cache") == tiny.tree(sound)


def test_a_damaged_line_before_the_last_is_damage(tmp_path, tiny):
    journal = unfinished(tmp_path / "cache", tiny)
    content = bytearray(journal.read_bytes())
    content[20] ^= 1
    journal.write_bytes(content)
    with pytest.raises(DamageError, match=r"line 1 of .*journal\.jsonl is damaged.*kdtool cache verify"):
        open_cache(tmp_path / "cache")
    with pytest.raises(DamageError), create_or_open(tmp_path / "cache", tiny.identity, tiny.layout):
        pass
    assert [problem.file for problem in verify(tmp_path / "cache")] == ["journal.jsonl"]


def test_a_torn_line_of_provenance_is_removed_before_the_next(tmp_path, tiny):
    root = tmp_path / "cache"
    for run_number in (1, 2):
        with create_or_open(root, tiny.identity, tiny.layout) as writer:
            writer.provenance({"run": run_number})
        path = root / "provenance.jsonl"
        path.write_bytes(path.read_bytes() + b'{"torn')
        assert [problem.file for problem in verify(root)] == ["provenance.jsonl"]
    with create_or_open(root, tiny.identity, tiny.layout):
        pass
    assert verify(root) == []
    assert [record["run"] for record in open_cache(root).provenance] == [1, 2]


def test_opening_for_writing_removes_leftovers_of_writers_and_nothing_else(tmp_path, tiny, sound):
    root = tmp_path / "cache"
    tiny.session(root)
    for name in ("train/logits/values/c/7/0/0", "train/logits/values/c/0/1/0.partial", "fitted/new/a/c/0"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"left")
    (root / "notes.txt").write_bytes(b"mine")
    assert len(verify(root)) == 4
    tiny.session(root)
    assert tiny.tree(root) == tiny.tree(sound) | {"notes.txt": b"mine"}


def test_a_new_cache_that_holds_nothing_when_its_writer_fails_is_none(tmp_path, tiny):
    """So that its batch binds nobody; one that holds a block, a fit or the state of a fit stays."""
    root = tmp_path / "cache"

    def failing(step):
        with contextlib.suppress(Killed), create_or_open(root, tiny.identity, tiny.layout) as writer:
            step(writer)
            raise Killed

    def labels(writer):
        for key, contents in tiny.keys.items():
            writer.declare(key, contents)
        samples = range(tiny.layout.samples["train"])
        writer.put_samples("train", [0 for _ in samples], samples)
        writer.provenance({"device_type": "cuda"})

    failing(labels)
    assert [path.name for path in root.iterdir()] == ["lock"]
    failing(lambda writer: (writer.scratch / "state.json").write_text("{}"))
    assert (root / "scratch/state.json").exists()
    failing(lambda writer: (writer.scratch / "state.json").unlink())
    assert open_cache(root).contents == {}  # it was there before


def test_a_copy_that_a_writer_has_renewed_meanwhile_is_no_damage(tmp_path, tiny, monkeypatch):
    """A reader takes the manifest before the last block is recorded, and compares it while the journal is folded."""
    root = tmp_path / "cache"
    tiny.session(root, {"train": 1})
    early = journal.load(root)
    monkeypatch.setattr(journal, "fold", lambda *_: None)
    tiny.session(root, {"train": 2})
    files.write_json(root / "manifest.copy.json", journal.load(root).to_json())  # as fold begins
    monkeypatch.undo()
    assert (root / "journal.jsonl").exists()
    journal.check_copy(root / "manifest.copy.json", early)


class Sessions(RuleBasedStateMachine):
    """Writers that come, commit in any order, and end well or badly, against a plain list of what was committed."""

    def __init__(self):
        super().__init__()
        self.root = self.folder / str(next(self.numbers))
        self.committed = set()

    @rule(
        choices=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)), max_size=3),
        ends_well=st.booleans(),
        tear=st.integers(0, 200),
    )
    def write(self, choices, ends_well, tear):
        tiny = self.tiny
        try:
            with create_or_open(self.root, tiny.identity, tiny.layout) as writer:
                for key, contents in tiny.keys.items():
                    writer.declare(key, contents)
                for number, view, block in choices:
                    key = list(tiny.keys)[number]
                    if block in writer.missing("train", key, view):
                        writer.commit("train", view, block, {key: tiny.rows_of_block("train", key, view, block)})
                        self.committed.add((key, view, block))
                if not ends_well:
                    raise Killed
        except Killed:
            journal = self.root / "journal.jsonl"
            if journal.exists():
                with journal.open("ab") as file:
                    file.write(journal.read_bytes()[:tear].partition(b"\n")[0])

    @invariant()
    def knows_what_was_committed(self):
        if not (self.root / "manifest.json").exists():  # the first writer failed before it had anything
            assert not self.committed
            assert {path.name for path in self.root.glob("*")} <= {"lock"}
            return
        cache = open_cache(self.root)
        for key in cache.contents:
            there = {(view, b) for view in range(2) for b in range(2) if b not in cache.missing("train", key, view)}
            assert there == {(view, block) for name, view, block in self.committed if name == key}
        assert_what_is_there_is_right(self.root, self.tiny)


def test_sessions_in_any_order(tmp_path, tiny):
    Sessions.folder, Sessions.tiny, Sessions.numbers = tmp_path, tiny, itertools.count()
    run_state_machine_as_test(Sessions, settings=settings(max_examples=25, stateful_step_count=6, deadline=None))
