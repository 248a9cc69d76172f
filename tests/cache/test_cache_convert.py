"""The HDF5 form: all comes back in every bit, plain h5py reads it, nothing damaged or hostile comes through."""

import contextlib
import errno
import io
import json
import os
import shutil
import time
import tracemalloc
from collections import namedtuple
from pathlib import Path
from tempfile import TemporaryDirectory

import google_crc32c
import h5py
import hypothesis
import numpy as np
import pytest
from disk import Disk, Killed
from hypothesis import strategies as st

from kdtool import files
from kdtool.cache import ArraySpec, Contents, Layout, create_or_open, hdf5, info, open_cache, verify
from kdtool.cache.arrays import DTYPES
from kdtool.cache.chunks import record_of
from kdtool.cache.convert import export_hdf5, import_hdf5, verify_hdf5
from kdtool.cache.identity import identity_digest
from kdtool.errors import DamageError, IdentityError, ResourceError, UsageError

VALUES = "train/logits/values"
HINT = "copy it again, or write it again with `kdtool cache export`"


@pytest.fixture(scope="module")
def told(sound, tiny, tmp_path_factory):
    """The tiny cache with a provenance."""
    root = tmp_path_factory.mktemp("told") / "cache"
    shutil.copytree(sound, root)
    with create_or_open(root, tiny.identity, tiny.layout) as writer:
        writer.provenance({"command": "kdtool extract", "scale": 1e-07})
        writer.provenance({"command": "kdtool extract --views 2"})
    return root


@pytest.fixture(scope="module")
def exported(told, tmp_path_factory):
    """The bytes of its export."""
    path = tmp_path_factory.mktemp("exported") / "x.h5"
    export_hdf5(told, path)
    return path.read_bytes()


@pytest.fixture
def file(exported, tmp_path):
    """An export that may be damaged, in a folder of its own."""
    path = tmp_path / "x.h5"
    path.write_bytes(exported)
    return path


def rewrite(file, *changes):
    """Changes an export as plain h5py can."""
    with h5py.File(file, "r+", libver=("v108", "latest")) as handle:
        for change in changes:
            change(handle)


def refused(file, kind, match):
    """Both who read a file refuse it, and nothing is written."""
    before = sorted(file.parent.iterdir())
    with pytest.raises(kind) as raised:
        import_hdf5(file, file.parent / "cache")
    assert sorted(file.parent.iterdir()) == before
    assert str(file) in str(raised.value)
    if kind is DamageError:
        problems = verify_hdf5(file)
        assert str(raised.value) == problems[0].what
        assert match in " ".join(problem.what for problem in problems)
        return problems
    assert match in str(raised.value)
    with pytest.raises(kind) as again:
        verify_hdf5(file)
    assert str(raised.value) == str(again.value)
    return []


def replace_text(handle, name, content):
    del handle[name]
    handle.create_dataset(name, data=np.frombuffer(content, np.uint8))


def manifest_with(change):
    """Puts in a manifest that a hostile hand has changed, its checksum made to fit."""

    def put(handle):
        body = json.loads(handle["manifest"][()].tobytes())
        change(body)
        replace_text(handle, "manifest", files.checked_json(body))

    return put


# What comes back.


def test_a_cache_comes_back_in_every_byte(told, file, tiny):
    counts = [], [], []
    export_hdf5(told, file.with_name("y.h5"), counts[0].append)
    assert verify_hdf5(file, counts[1].append) == []
    import_hdf5(file, file.parent / "cache", counts[2].append)
    assert tiny.tree(file.parent / "cache") == tiny.tree(told)
    assert verify(file.parent / "cache") == []
    assert {path.name for path in file.parent.iterdir()} == {"x.h5", "y.h5", "cache"}
    assert sum(counts[0]) == info(told)["bytes"]
    assert sum(counts[1]) == sum(counts[2]) < file.stat().st_size


def test_a_cache_without_provenance_comes_back_without(sound, tmp_path, tiny):
    export_hdf5(sound, tmp_path / "x.h5")
    assert verify_hdf5(tmp_path / "x.h5") == []
    import_hdf5(tmp_path / "x.h5", tmp_path / "deeper" / "cache")
    assert tiny.tree(tmp_path / "deeper" / "cache") == tiny.tree(sound)


def test_plain_h5py_reads_the_values(told, exported, tiny):
    with h5py.File(io.BytesIO(exported)) as found:
        assert dict(found.attrs) == {"kdtool_format": 1}
        for key, contents in tiny.keys.items():
            for name, spec in contents.arrays.items():
                for part, views in tiny.views.items():
                    stored = found[part][key][name]
                    wanted = np.stack([tiny.values(part, key, name, view) for view in range(views)])
                    assert stored.dtype == np.dtype(spec.dtype)
                    np.testing.assert_array_equal(stored[()], wanted, strict=True)
        np.testing.assert_array_equal(found["test/labels"], tiny.labels("test"))
        np.testing.assert_array_equal(found["train_clean/index"], tiny.labels("train_clean") + 20)
        np.testing.assert_array_equal(found["fitted/srm.stage1/atoms"], np.eye(4, 3))
        assert found["fitted/srm.stage1/count"][()] == 7
        assert found["manifest"][()].tobytes() == (told / "manifest.json").read_bytes()
        assert found["provenance"][()].tobytes() == (told / "provenance.jsonl").read_bytes()
        described = [found["train"][key][name] for key in tiny.keys for name in tiny.keys[key].arrays]
        assert all(dataset.chunks is None and dataset.compression is None for dataset in described)


def test_equal_caches_give_equal_files(told, exported, tmp_path, tiny):
    tiny.session(tmp_path / "cache")
    shutil.copy(told / "provenance.jsonl", tmp_path / "cache")
    time.sleep(1.1)  # a time in the file would be of another second
    export_hdf5(tmp_path / "cache", tmp_path / "x.h5")
    assert (tmp_path / "x.h5").read_bytes() == exported


@st.composite
def caches(draw):
    """Layout, views, definition and values of a small cache of one key."""
    batch, samples = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    layout = Layout({"train": samples}, 3, batch, 1, {}, batch * draw(st.integers(1, 4)))
    dtype, shape = draw(st.sampled_from(DTYPES)), tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    size = samples * int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    raw = np.frombuffer(draw(st.randoms(use_true_random=False)).randbytes(size), np.uint8)
    values = (raw % 2).astype(bool) if dtype == "bool" else raw.view(dtype)
    return layout, draw(st.integers(0, 2)), ArraySpec(dtype, shape), values.reshape(samples, *shape)


@hypothesis.given(caches())
@hypothesis.settings(max_examples=20)
def test_any_dtype_and_shape_comes_back_in_every_bit(drawn):
    layout, views, spec, values = drawn
    samples, rows = layout.samples["train"], layout.block_rows("train")
    with TemporaryDirectory() as folder:
        root = Path(folder)
        with create_or_open(root / "cache", {"of": "hypothesis"}, layout) as writer:
            writer.put_samples("train", np.zeros(samples, int), np.arange(samples))
            writer.put_fit("whole", 1, {}, {"values": values, "one": values.reshape(-1)[0]})
            writer.declare("key", Contents(1, ("tap",), {}, "whole", {"values": spec}))
            for view in range(views):
                for block in range(layout.blocks("train")):
                    part = values[block * rows : (block + 1) * rows]
                    writer.commit("train", view, block, {"key": {"values": part}})
        export_hdf5(root / "cache", root / "x.h5")
        assert verify_hdf5(root / "x.h5") == []
        import_hdf5(root / "x.h5", root / "again")
        assert verify(root / "again") == []
        content = {path.relative_to(root / "cache"): path for path in (root / "cache").rglob("*") if path.is_file()}
        assert all((root / "again" / name).read_bytes() == path.read_bytes() for name, path in content.items())
        with h5py.File(root / "x.h5") as found:
            arrays = [found["fitted/whole/values"][()], *(found["train/key/values"][view] for view in range(views))]
            assert ("key" in found["train"]) == (views > 0)
        assert all(array.tobytes() == values.tobytes() and array.dtype == values.dtype for array in arrays)


def test_unfinished_views_are_left_out_and_can_be_done_again(sound, tmp_path, tiny):
    root = tmp_path / "cache"
    with contextlib.suppress(KeyboardInterrupt), create_or_open(root, tiny.identity, tiny.layout) as writer:
        writer.put_samples("train", tiny.labels("train"), tiny.labels("train") + 20)
        writer.put_fit("srm.stage1", 1, {"atoms": 4}, {"atoms": np.eye(4, 3), "count": np.array(7)})
        for key, contents in tiny.keys.items():
            writer.declare(key, contents)
        tiny.commit_missing(writer, "train", 0)
        rows = {key: tiny.rows_of_block("train", key, 1, 0) for key in tiny.keys}
        writer.commit("train", 1, 0, rows)
        writer.commit("test", 0, 0, {"logits": tiny.rows_of_block("test", "logits", 0, 0)})
        (root / "train/logits/values/c/1/0/0.partial").write_bytes(b"half")
        raise KeyboardInterrupt
    assert (root / "journal.jsonl").exists()
    export_hdf5(root, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as found:
        assert found[VALUES].shape == (1, 10, 5)
        assert set(found) == {"fitted", "manifest", "test", "train"}
        assert set(found["test"]) == {"logits"}
    import_hdf5(tmp_path / "x.h5", tmp_path / "again")
    assert verify(tmp_path / "again") == []
    assert open_cache(tmp_path / "again").views("logits") == 1
    assert not (tmp_path / "again/train/logits/values/c/1").exists()
    tiny.session(tmp_path / "again")
    assert tiny.tree(tmp_path / "again") == tiny.tree(sound)


# Damage.


def test_a_damaged_cache_is_not_exported(told, tmp_path):
    shutil.copytree(told, tmp_path / "cache")
    chunk = tmp_path / "cache" / VALUES / "c/1/2/0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(DamageError, match="c/1/2/0 is damaged or another chunk"):
        export_hdf5(tmp_path / "cache", tmp_path / "x.h5")
    chunk.unlink()
    with pytest.raises(DamageError, match="c/1/2/0 is missing"):
        export_hdf5(tmp_path / "cache", tmp_path / "x.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_rows_past_the_last_sample_that_are_not_zero_are_not_lost_in_silence(told, tmp_path):
    shutil.copytree(told, tmp_path / "cache")
    name = "test/logits/values/c/0/1/0"
    body = bytearray((tmp_path / "cache" / name).read_bytes()[:-4])
    body[-1] = 1
    content = bytes(body) + google_crc32c.value(bytes(body)).to_bytes(4, "little")
    (tmp_path / "cache" / name).write_bytes(content)
    manifest = files.read_json(tmp_path / "cache/manifest.json", "")
    manifest["files"][name] = record_of(content)
    files.write_json(tmp_path / "cache/manifest.json", manifest)
    with pytest.raises(DamageError, match=f"{name} is not its values and zeros after them"):
        export_hdf5(tmp_path / "cache", tmp_path / "x.h5")


def test_a_flipped_bit_is_found_or_changes_nothing_that_comes_back(told, file, exported, tiny):
    wanted, draw, found = tiny.tree(told), np.random.default_rng(0), 0
    target = file.parent / "cache"
    for bit in draw.choice(8 * len(exported), 150, replace=False).tolist():
        flipped = bytearray(exported)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            import_hdf5(file, target)
        except DamageError:
            found += 1
            assert verify_hdf5(file), f"bit {bit}"
            assert [path.name for path in file.parent.iterdir()] == [file.name]
        except UsageError:
            assert bit < 64  # in the first bytes of all, which say that this is HDF5
        else:
            assert tiny.tree(target) == wanted, f"bit {bit}"
            assert verify_hdf5(file) == [], f"bit {bit}"
            shutil.rmtree(target)
    assert found > 120


def test_a_flipped_bit_in_every_dataset_is_told_with_its_name(file, exported):
    with h5py.File(io.BytesIO(exported)) as handle:
        places = {}
        handle.visititems(
            lambda name, at: places.update({name: at.id.get_offset()}) if isinstance(at, h5py.Dataset) else None
        )
    for name, offset in places.items():
        flipped = bytearray(exported)
        flipped[offset] ^= 1
        file.write_bytes(flipped)
        text = name in ("manifest", "provenance")
        (problem,) = refused(file, DamageError, f"is damaged: /{name}: ")
        assert problem.file == (file.name if text else f"/{name}")
        if not text:
            assert f"chunk {name}/c" in problem.what
        assert HINT in problem.what


def test_a_truncated_file_is_refused(file, exported):
    draw = np.random.default_rng(0)
    for size in [0, 7, 8, 47, len(exported) - 1, *draw.integers(9, len(exported), 30).tolist()]:
        file.write_bytes(exported[:size])
        refused(file, UsageError if size < 8 else DamageError, "no HDF5 file" if size < 8 else "is damaged: ")


def test_every_problem_is_listed(file):
    rewrite(
        file,
        lambda handle: handle[VALUES].write_direct(np.ones((2, 10, 5), "f4")),
        lambda handle: handle["test/labels"].write_direct(np.full(3, 4)),
        lambda handle: handle.create_dataset("fitted/more", data=1),
        lambda handle: handle.__delitem__("train/index"),
    )
    found = [problem.file for problem in verify_hdf5(file)]
    assert found == ["/fitted", "/train/index", "/test/labels", *[f"/{VALUES}"] * 8]


# What an interrupted export or import leaves.


def stopping(at):
    """A progress that stops what it is told of at its call number `at`."""
    calls = []

    def progress(_):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("at", [1, 2, 20, 40])
def test_what_is_interrupted_leaves_nothing_and_can_be_run_again(told, exported, file, at, tiny):
    other = file.with_name("y.h5")
    with pytest.raises(KeyboardInterrupt):
        export_hdf5(told, other, stopping(at))
    with pytest.raises(KeyboardInterrupt):
        import_hdf5(file, file.parent / "cache", stopping(at))
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    export_hdf5(told, other)
    assert other.read_bytes() == exported
    import_hdf5(file, file.parent / "cache")
    assert tiny.tree(file.parent / "cache") == tiny.tree(told)


def killed_at(monkeypatch, fail_at, work):
    """Runs something on a disk where it is killed at a call, so that it cleans nothing up; gives the disk."""
    with monkeypatch.context() as patch:
        disk = Disk(patch, fail_at)
        rename = os.rename
        patch.setattr(os, "rename", lambda *paths: disk._step() or rename(*paths))
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        try:
            work()
        except Killed:
            assert disk.calls >= fail_at
        finally:
            disk.close()
    return disk


def test_an_export_that_is_killed_at_any_call_leaves_no_half_file(told, exported, tmp_path, monkeypatch):
    calls = killed_at(monkeypatch, None, lambda: export_hdf5(told, tmp_path / "x.h5")).calls
    for fail_at in [*range(1, calls, 9), *range(calls - 3, calls + 1)]:
        folder = tmp_path / str(fail_at)
        folder.mkdir()
        disk = killed_at(monkeypatch, fail_at, lambda path=folder / "x.h5": export_hdf5(told, path))
        disk.after_power_loss(folder.stat().st_ino, folder / "left")
        for path in (folder / "x.h5", folder / "left/x.h5"):
            assert not path.exists() or path.read_bytes() == exported
            export_hdf5(told, path, overwrite=True)
            assert path.read_bytes() == exported
        assert {path.name for path in folder.rglob("*")} == {"x.h5", "left"}


def test_an_import_that_is_killed_at_any_call_leaves_no_half_cache(told, file, tmp_path, monkeypatch, tiny):
    wanted = tiny.tree(told)
    calls = killed_at(monkeypatch, None, lambda: import_hdf5(file, tmp_path / "cache")).calls
    for fail_at in [*range(1, calls - 12, 13), *range(calls - 12, calls + 1)]:
        folder = tmp_path / str(fail_at)
        folder.mkdir()
        disk = killed_at(monkeypatch, fail_at, lambda path=folder / "cache": import_hdf5(file, path))
        disk.after_power_loss(folder.stat().st_ino, folder / "left")
        for path in (folder / "cache", folder / "left/cache"):
            if not path.exists():
                import_hdf5(file, path)
            assert tiny.tree(path) == wanted, f"call {fail_at}"
        assert {path.name for path in folder.iterdir()} == {"cache", "left"}


def test_what_is_done_outlives_a_loss_of_power(told, exported, tmp_path, monkeypatch, tiny):
    (tmp_path / "x.h5").write_bytes(exported)
    for name, work in (
        ("y.h5", lambda: export_hdf5(told, tmp_path / "y.h5")),
        ("cache", lambda: import_hdf5(tmp_path / "x.h5", tmp_path / "cache")),
    ):
        disk = killed_at(monkeypatch, None, work)
        disk.after_power_loss(tmp_path.stat().st_ino, tmp_path / f"left-{name}")
    assert (tmp_path / "left-y.h5/y.h5").read_bytes() == exported
    assert tiny.tree(tmp_path / "left-cache/cache") == tiny.tree(told)


def test_two_do_not_write_to_one_place(told, file):
    y, cache = file.with_name("y.h5"), file.parent / "cache"
    with files.lock(Path(f"{y}.partial"), "exporting into"), pytest.raises(ResourceError, match="is exporting into"):
        export_hdf5(told, y)
    with (
        files.lock(Path(f"{cache}.partial") / "lock", "importing into"),
        pytest.raises(ResourceError, match="is importing into"),
    ):
        import_hdf5(file, cache)
    assert not y.exists()
    assert not cache.exists()


def test_a_full_disk_is_told_before_and_during_the_work(told, file, monkeypatch):
    y, cache = file.with_name("y.h5"), file.parent / "cache"

    def full(handle):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for work in (lambda: export_hdf5(told, y), lambda: import_hdf5(file, cache)):
            with pytest.raises(ResourceError, match="no space left"):
                work()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(5000))
    for work in (lambda: export_hdf5(told, y), lambda: import_hdf5(file, cache)):
        with pytest.raises(ResourceError, match="its disk has 5,000 free"):
            work()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# What is there already.


def test_a_file_that_is_there_is_replaced_only_on_demand(told, exported, tmp_path):
    path = tmp_path / "x.h5"
    path.write_text("mine")
    with pytest.raises(UsageError, match="is there already; `kdtool cache export --overwrite` replaces it"):
        export_hdf5(told, path)
    assert path.read_text() == "mine"
    export_hdf5(told, path, overwrite=True)
    assert path.read_bytes() == exported
    with pytest.raises(UsageError, match="is a folder"):
        export_hdf5(told, tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="no cache at"):
        export_hdf5(tmp_path / "absent", tmp_path / "y.h5")
    assert [found.name for found in tmp_path.iterdir()] == ["x.h5"]


def test_only_an_empty_folder_becomes_a_cache(told, file, tiny):
    taken = file.parent / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    for place in (taken, file):
        with pytest.raises(UsageError, match=r"is there already; `kdtool cache import` makes a new cache: .* --cache"):
            import_hdf5(file, place)
    (taken / "mine").unlink()
    (file.parent / "link").symlink_to(taken)
    import_hdf5(file, file.parent / "link")
    assert tiny.tree(taken) == tiny.tree(told)


def test_what_only_looks_like_a_leftover_is_kept(told, file, tiny):
    partial = file.parent / "cache.partial"
    tiny.session(partial)  # another cache, if only by a file
    manifest = files.read_json(partial / "manifest.json", "")
    manifest["files"].popitem()
    for name in ("manifest.json", "manifest.copy.json"):
        files.write_json(partial / name, manifest)
        before = tiny.tree(partial)
        with pytest.raises(UsageError, match="none of its leftovers"):
            import_hdf5(file, file.parent / "cache")
        assert tiny.tree(partial) == before
        (partial / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(partial)
    partial.mkdir()
    (partial / "mine").write_text("mine")
    with pytest.raises(UsageError, match="none of its leftovers"):
        import_hdf5(file, file.parent / "cache")
    partial.rename(file.parent / "elsewhere")
    partial.symlink_to(file.parent / "elsewhere")
    with pytest.raises(UsageError, match="none of its leftovers"):
        import_hdf5(file, file.parent / "cache")
    assert (partial / "mine").read_text() == "mine"


# Hostile files.


def test_what_is_no_export_is_said_to_be_none(tmp_path):
    absent, text, foreign = tmp_path / "absent", tmp_path / "text", tmp_path / "foreign"
    text.write_text("not HDF5 at all")
    with h5py.File(foreign, "w") as handle:
        handle["x"] = 1
    os.mkfifo(tmp_path / "pipe")
    refused(absent, UsageError, "cannot read ")
    for path in (text, tmp_path / "pipe", tmp_path):
        refused(path, UsageError, "is no HDF5 file; name one that `kdtool cache export` wrote")
    refused(foreign, UsageError, "is no cache (it has no kdtool_format)")


def external_link(handle, name, outside):
    handle[name] = h5py.ExternalLink(outside, f"/{name}")


def soft_link(handle, name, outside):
    h5py.File(outside, "r").copy(name, handle, "hidden")
    handle[name] = h5py.SoftLink("/hidden")


def soft_circle(handle, name, outside):
    handle[name] = h5py.SoftLink(f"/{name}")


def external_storage(handle, name, outside):
    with h5py.File(outside) as right:
        shape, dtype, offset = right[name].shape, right[name].dtype, right[name].id.get_offset()
        size = right[name].id.get_storage_size()
    handle.create_dataset(name, shape, dtype, external=[(str(outside), offset, size)])


def virtual(handle, name, outside):
    with h5py.File(outside) as right:
        layout = h5py.VirtualLayout(right[name].shape, right[name].dtype)
        layout[...] = h5py.VirtualSource(right[name])
    handle.create_virtual_dataset(name, layout)


def stored(**how):
    """The right values in another form of storage."""

    def put(handle, name, outside):
        with h5py.File(outside) as right:
            values = right[name][()]
        handle.create_dataset(name, data=values, **how)

    return put


def compact(handle, name, outside):
    with h5py.File(outside) as right:
        values = right[name][()]
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(values.shape)
    h5py.h5d.create(handle.id, name.encode(), h5py.h5t.py_create(values.dtype), space, settings)
    handle[name][...] = values


def big_endian(handle, name, outside):
    with h5py.File(outside) as right:
        kind, size = right[name].dtype.kind, right[name].dtype.itemsize
    stored(dtype=f">{kind}{max(size, 2)}")(handle, name, outside)


def another(shape, dtype):
    return lambda handle, name, outside: handle.create_dataset(name, shape, dtype)


def never_allocated(handle, name, outside):
    with h5py.File(outside) as right:
        handle.create_dataset(name, right[name].shape, right[name].dtype)


HOSTILE = {
    "external link": (external_link, "is a link"),
    "soft link": (soft_link, "is a link"),
    "soft circle": (soft_circle, "is a link"),
    "external storage": (external_storage, "in one piece, in this file"),
    "virtual": (virtual, "in one piece, in this file"),
    "gzip": (stored(compression="gzip", chunks=True), "without filters"),
    "lzf": (stored(compression="lzf", chunks=True), "without filters"),
    "checksummed": (stored(fletcher32=True, chunks=True), "without filters"),
    "chunked": (stored(chunks=True), "in one piece"),
    "compact": (compact, "in one piece"),
    "big endian": (big_endian, " is not "),
    "text": (another((2, 10, 5), h5py.string_dtype()), " is not "),
    "compound": (another((2, 10, 5), [("a", "f4"), ("b", "i8")]), " is not "),
    "references": (another((2, 10, 5), h5py.ref_dtype), " is not "),
    "huge": (another((2**40, 10, 5), "f4"), " is not "),
    "no values": (never_allocated, "lies outside of the file"),
    "scalar": (another((), "f4"), " is not "),
    "empty": (lambda h, n, o: h.create_dataset(n, data=h5py.Empty("f4")), " is not "),
    "group": (lambda h, n, o: h.create_group(n), "is no dataset"),
    "a type": (lambda h, n, o: h.__setitem__(n, np.dtype("f4")), "is no dataset"),
    "missing": (lambda h, n, o: None, "is missing"),
    "circle of groups": (lambda h, n, o: h.__setitem__(n, h["/"]), "is no dataset"),
}


@pytest.mark.parametrize("name", [VALUES, "manifest", "fitted/srm.stage1/atoms"])
@pytest.mark.parametrize("how", HOSTILE)
def test_a_dataset_that_is_anything_else_is_refused(file, exported, tmp_path_factory, how, name):
    outside = tmp_path_factory.mktemp("outside") / "right.h5"
    outside.write_bytes(exported)
    change, match = HOSTILE[how]
    rewrite(file, lambda handle: handle.__delitem__(name), lambda handle: change(handle, name, outside))
    problems = refused(file, DamageError, f"is damaged: /{name}: ")
    if name != "manifest":
        assert [match in problem.what for problem in problems if problem.file == f"/{name}"] == [True]
    elif how not in ("huge", "empty"):  # its size is looked at before anything else
        assert match in problems[0].what


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h: h.create_dataset("train/more", data=1), "/train: holds 'more', which does not belong"),
        (lambda h: h.create_group("more"), "/: holds 'more', which does not belong"),
        (lambda h: h.__setitem__("more", h5py.SoftLink("/train")), "/: holds 'more', which does not belong"),
        (lambda h: h.__setitem__("test/circle", h["test"]), "/test: holds 'circle', which does not belong"),
        (lambda h: h.__setitem__("test/\x1b[31m", 1), r"/test: holds '\x1b[31m', which does not belong"),
        (lambda h: h.attrs.update(more="a"), "/: has attributes that do not belong"),
        (lambda h: h["train"].attrs.update(more=1), "/train: has attributes that do not belong"),
        (lambda h: h[VALUES].attrs.update(more=1), f"/{VALUES}: is not float32 without attributes"),
        (lambda h: h.attrs.create("kdtool_format", "1"), "kdtool_format is no number"),
        (lambda h: h.attrs.create("kdtool_format", np.zeros(9, "<i8")), "kdtool_format is no number"),
        (lambda h: h.move("test", "exam"), "/: holds 'exam', which does not belong"),
        (lambda h: replace_text(h, "provenance", b"{}\n"), "/provenance: a line is damaged"),
        (lambda h: replace_text(h, "provenance", b"[]\n"), "/provenance: "),
        (lambda h: replace_text(h, "provenance", h["provenance"][()].tobytes()[:-1]), "/provenance: a line is damaged"),
        (lambda h: replace_text(h, "manifest", b"{" * 10**5), "/manifest: its checksum does not fit its content"),
        (lambda h: replace_text(h, "manifest", b"null"), "/manifest: its checksum does not fit its content"),
        (lambda h: replace_text(h, "manifest", b'{"format": 1}'), "/manifest: its checksum does not fit its content"),
        (lambda h: replace_text(h, "manifest", b""), "/manifest: has 0 bytes"),
    ],
)
def test_what_does_not_belong_is_refused(file, change, match):
    rewrite(file, change)
    refused(file, DamageError, match)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["files"].update({"../../etc/passwd": "0" * 8 + " " + "0" * 64}),
        lambda body: body["files"].update({"train/logits/values/c/../../0": "0" * 8 + " " + "0" * 64}),
        lambda body: body["files"].update({"train/logits/values/c/9/0/0": "0" * 8 + " " + "0" * 64}),
        lambda body: body["files"].pop("train/logits/values/c/1/0/0"),
        lambda body: body["files"].pop("train/labels/c/0"),
        lambda body: body["files"].pop("fitted/srm.stage1/atoms/c/1/0"),
        lambda body: body["contents"].update({"../key": body["contents"]["logits"]}),
        lambda body: body["contents"]["logits"]["arrays"]["values"].update(dtype="object"),
        lambda body: body["contents"]["logits"]["arrays"]["values"].update(shape=[2**28]),
        lambda body: body["fits"].update({"..": body["fits"]["srm.stage1"]}),
        lambda body: body["identity"].update(teacher="another"),
        lambda body: body["layout"].update(samples={"elsewhere": 3}),
        lambda body: body.update(files=[]),
        lambda body: body.pop("layout"),
        lambda body: body.pop("format"),
    ],
)
def test_a_hostile_manifest_with_a_fitting_checksum_is_refused(file, change):
    rewrite(file, manifest_with(change))
    refused(file, DamageError, "is damaged: /manifest: ")


def test_another_format_names_the_way_out(file):
    rewrite(file, manifest_with(lambda body: body.update(format=2)))
    refused(file, IdentityError, "format 2; this kdtool reads format 1: use the kdtool that wrote it")
    rewrite(file, lambda handle: handle.attrs.create("kdtool_format", 3, dtype="<i8"))
    refused(file, IdentityError, "format 3; this kdtool reads format 1: use the kdtool that wrote it")


def huge_batch(body):
    """Makes one chunk of three samples have 10^9 + 1 rows of zeros after them, in a file of some thousand bytes."""
    body["layout"].update(samples={"train": 3}, batch=10**9 + 1, block=10**9 + 1)
    body["identity_digest"] = identity_digest(body["identity"], body["layout"])
    body["files"] = {"train/logits/values/c/0/0/0": "0" * 8 + " " + "0" * 64}
    body["fits"] = {}


def test_a_claim_of_more_than_the_file_has_takes_no_memory(file):
    rewrite(file, manifest_with(huge_batch))
    refused(file, DamageError, "has chunks of 20,000,000,020 bytes, more than 1,073,741,824")


def test_one_dataset_under_many_names_does_not_fill_the_disk(tmp_path):
    with create_or_open(tmp_path / "source", {}, Layout({"train": 1}, 3, 1, 1)) as writer:
        writer.declare("a", Contents(1, ("tap",), {}, None, {"values": ArraySpec("uint8", (100_000,))}))
        writer.commit("train", 0, 0, {"a": {"values": np.ones((1, 100_000), np.uint8)}})
    export_hdf5(tmp_path / "source", tmp_path / "x.h5")

    def multiply(body):
        for key in "bcdef":
            body["contents"][key] = body["contents"]["a"]
            body["files"][f"train/{key}/values/c/0/0/0"] = body["files"]["train/a/values/c/0/0/0"]

    rewrite(tmp_path / "x.h5", manifest_with(multiply))
    rewrite(
        tmp_path / "x.h5", lambda handle: [handle.__setitem__(f"train/{key}", handle["train/a"]) for key in "bcdef"]
    )
    refused(tmp_path / "x.h5", DamageError, "/manifest: speaks of 60")


def test_memory_stays_within_a_few_chunks(sound, tmp_path):
    """Twenty chunks of a mebibyte, and HDF5's own memory, which this does not see, for metadata alone."""
    layout = Layout({"train": 20}, 3, 1, 1, {}, 1)
    with create_or_open(tmp_path / "cache", {}, layout) as writer:
        writer.declare("key", Contents(1, ("tap",), {}, None, {"values": ArraySpec("uint8", (2**20,))}))
        for block in range(20):
            rows = np.full((1, 2**20), block, np.uint8)
            writer.commit("train", 0, block, {"key": {"values": rows}})
    tracemalloc.start()
    try:
        export_hdf5(tmp_path / "cache", tmp_path / "x.h5")
        assert verify_hdf5(tmp_path / "x.h5") == []
        import_hdf5(tmp_path / "x.h5", tmp_path / "again")
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_cache_whose_chunks_are_too_large_for_the_reader_is_not_exported(told, tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "CHUNK_LIMIT", 50)
    with pytest.raises(UsageError, match=r"has pieces of \d+ bytes; one file can have up to 50; pass the folder"):
        export_hdf5(told, tmp_path / "x.h5")
    monkeypatch.undo()
    monkeypatch.setattr(hdf5, "TEXT_BYTES", 50)
    with pytest.raises(UsageError, match="manifest has pieces of"):
        export_hdf5(told, tmp_path / "x.h5")
