"""What is written is what is read: by kdtool, by plain zarr, and byte by byte."""

import resource
import tempfile
import warnings
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtool.cache import (
    DTYPES,
    ArraySpec,
    Contents,
    Layout,
    create_or_open,
    info,
    open_cache,
    require_space,
    verify,
    write_block,
)
from kdtool.cache.reader import MOST_FILES, open_maps
from kdtool.errors import DamageError, ResourceError


def crc32c_bit_by_bit(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def random_values(draw, dtype, shape):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    content = np.frombuffer(draw.bytes(size), np.uint8)
    values = content % 2 if dtype == "bool" else content  # any bits, NaN included, but for boolean ones
    return values.view(dtype).reshape(shape)


def same(found, wanted):
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=2),
    shape=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    samples=st.integers(1, 40),
    batch=st.integers(1, 9),
    multiple=st.integers(1, 4),
    views=st.integers(1, 3),
)
def test_any_array_comes_back_by_slice_by_gather_and_by_zarr(seed, dtypes, shape, samples, batch, multiple, views):
    draw = np.random.default_rng(seed)
    layout = Layout({"train": samples}, 2, batch, 1, block=batch * multiple)
    arrays = {f"array{i}": ArraySpec(dtype, shape) for i, dtype in enumerate(dtypes)}
    wanted = {name: random_values(draw, spec.dtype, (views, samples, *shape)) for name, spec in arrays.items()}
    blocks = [(view, block) for view in range(views) for block in range(layout.blocks("train"))]
    with tempfile.TemporaryDirectory() as folder:
        root, size = Path(folder) / "cache", layout.block_rows("train")
        with create_or_open(root, {}, layout) as writer:
            writer.declare("key", Contents(1, ("stem",), {}, None, arrays))
            for view, block in draw.permutation(np.array(blocks)).tolist():
                rows = slice(block * size, (block + 1) * size)
                writer.commit("train", view, block, {"key": {name: wanted[name][view, rows] for name in arrays}})
        cache = open_cache(root)
        assert verify(root) == []
        assert cache.views("key") == views
        for name in arrays:
            cached = cache.array("train", "key", name)
            plain = zarr.open_array(root / "train" / "key" / name, mode="r")
            assert (
                (cached.shape, cached.dtype) == (wanted[name].shape, wanted[name].dtype) == (plain.shape, plain.dtype)
            )
            assert same(np.asarray(plain[:]), wanted[name])
            start, stop = sorted(draw.integers(0, samples + 1, 2).tolist())
            positions = draw.integers(0, samples, draw.integers(0, 2 * samples + 1))
            for view in range(views):
                assert same(cached.read(view), wanted[name][view])
                assert same(cached.read(view, start, stop), wanted[name][view, start:stop])
                assert same(cached.rows(view, positions), wanted[name][view, positions])


def test_the_tiny_cache_holds_what_its_session_wrote(sound, tiny):
    cache = open_cache(sound)
    for part, views in tiny.views.items():
        for key, contents in tiny.keys.items():
            assert cache.views(key, part) == views
            for name in contents.arrays:
                wanted = np.stack([tiny.values(part, key, name, view) for view in range(views)])
                cached = cache.array(part, key, name)
                assert same(np.stack([cached.read(view) for view in range(views)]), wanted)
                assert same(np.asarray(zarr.open_array(sound / part / key / name, mode="r")[:]), wanted)
    assert (cache.labels("test") == tiny.labels("test")).all()
    assert (cache.index("train") == tiny.labels("train") + 20).all()
    assert cache.labels("train").dtype == np.int64
    assert {key: contents.to_json() for key, contents in cache.contents.items()} == {
        key: contents.to_json() for key, contents in tiny.keys.items()
    }


def test_fits_keep_shape_and_dtype_to_the_scalar(sound):
    cache = open_cache(sound)
    fitted = cache.fitted("srm.stage1")
    assert same(fitted["atoms"], np.eye(4, 3))
    assert same(fitted["count"], np.array(7))
    assert zarr.open_array(sound / "fitted/srm.stage1/count", mode="r")[()] == 7
    assert (cache.fits["srm.stage1"].version, cache.fits["srm.stage1"].record) == (1, {"atoms": 4})


def test_a_chunk_is_its_rows_then_zeros_then_crc32c_and_the_manifest_says_so(sound, tiny):
    content = (sound / "train/logits/values/c/1/3/0").read_bytes()  # rows 9, 10, 11; only row 9 is a sample
    body, stored = content[:-4], int.from_bytes(content[-4:], "little")
    wanted = tiny.values("train", "logits", "values", 1)[9:].astype("<f4").tobytes()
    assert body == wanted + bytes(len(body) - len(wanted))
    assert stored == crc32c_bit_by_bit(body)
    assert open_cache(sound).manifest.files["train/logits/values/c/1/3/0"].startswith(f"{stored:08x} ")


def test_chunks_wholly_past_the_last_sample_do_not_exist(tmp_path):
    layout = Layout({"train": 9}, 2, 8, 1)  # one block of 16 rows, cut into four chunks of 4
    with create_or_open(tmp_path / "cache", {}, layout) as writer:
        writer.declare("key", Contents(1, ("stem",), {}, None, {"values": ArraySpec("float64", (2,))}))
        writer.commit("train", 0, 0, {"key": {"values": np.ones((9, 2))}})
    assert sorted(path.name for path in (tmp_path / "cache/train/key/values/c/0").iterdir()) == ["0", "1", "2"]


def test_plain_zarr_never_sees_an_unfinished_view(tmp_path, tiny):
    with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])
        shapes = []
        for view, block in [(1, 0), (1, 1), (0, 1), (0, 0)]:
            shapes.append(zarr.open_array(tmp_path / "cache/train/logits/values", mode="r").shape)
            writer.commit("train", view, block, {"logits": tiny.rows_of_block("train", "logits", view, block)})
        assert shapes == [(0, 10, 5)] * 4
        assert writer.cache.views("logits") == 2
        assert zarr.open_array(tmp_path / "cache/train/logits/values", mode="r").shape == (2, 10, 5)


def test_zarr_lists_the_tree_and_warns_only_of_files_that_are_not_its_own(sound):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        group = zarr.open_group(sound, mode="r")
        assert sorted(group.keys()) == ["fitted", "test", "train", "train_clean"]
    assert all("not recognized as a component" in str(warning.message) for warning in seen)
    assert sorted(group["train"].keys()) == ["index", "labels", "logits", "stage1.srm4"]  # without any warning


def test_a_missing_view_is_an_error_and_never_zeros(tmp_path, tiny):
    with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])
        tiny_rows = tiny.rows_of_block("train", "logits", 0, 0)
        writer.commit("train", 0, 0, {"logits": tiny_rows})
    cache = open_cache(tmp_path / "cache")
    assert cache.views("logits") == 0
    assert cache.missing("train", "logits", 0) == [1]
    with pytest.raises(DamageError, match=r"no view of train/logits/values.*kdtool extract"):
        cache.array("train", "logits", "values")
    for read in (lambda: cache.labels("train"), lambda: cache.fitted("srm.stage1")):
        with pytest.raises(DamageError, match="kdtool extract"):
            read()


def test_views_past_the_last_and_rows_past_n_are_refused(sound):
    cached = open_cache(sound).array("train", "logits", "values")
    for view in (-1, 2):
        with pytest.raises(DamageError, match=f"view {view} of .*2 views are complete"):
            cached.read(view)
    for positions in ([10], [-1], [3, 11]):
        with pytest.raises(IndexError, match="of 10 rows"):
            cached.rows(0, positions)
    with pytest.raises(IndexError, match="of 10"):
        cached.read(0, 4, 11)


def test_other_processes_write_blocks_that_one_writer_records(tmp_path, sound, tiny):
    root = tmp_path / "cache"
    with create_or_open(root, tiny.identity, tiny.layout) as writer:
        for part in tiny.views:
            writer.put_samples(part, tiny.labels(part), tiny.labels(part) + 20)
        writer.put_fit("srm.stage1", 1, {"atoms": 4}, {"atoms": np.eye(4, 3), "count": np.array(7)})
        for key, contents in tiny.keys.items():
            writer.declare(key, contents)
        rank = open_cache(root)  # what a rank sees that holds no lock
        handed = [
            write_block(rank, part, view, block, {key: tiny.rows_of_block(part, key, view, block) for key in tiny.keys})
            for part, views in tiny.views.items()
            for view in range(views)
            for block in reversed(range(tiny.layout.blocks(part)))
        ]
        assert writer.cache.views("logits") == 0
        for record in handed:
            writer.record(record)
    assert tiny.tree(root) == tiny.tree(sound)


def test_records_of_other_files_than_a_whole_block_are_refused(tmp_path, tiny):
    with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])
        record = write_block(writer.cache, "train", 0, 0, {"logits": tiny.rows_of_block("train", "logits", 0, 0)})
        name = next(iter(record["files"]))
        for files in ({}, {**record["files"], "../other": "0"}, {**record["files"], name: "no digest"}):
            with pytest.raises(ValueError, match="not whole"):
                writer.record({**record, "files": files})
        writer.record(record)
        with pytest.raises(ValueError, match="committed already"):
            writer.record(record)


def test_commit_refuses_what_was_not_declared(tmp_path, tiny):
    with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])
        rows = tiny.rows_of_block("train", "logits", 0, 0)["values"]
        for wrong in ({"values": rows[:-1]}, {"values": rows.astype("float64")}, {"other": rows}, {}):
            with pytest.raises(ValueError, match="declared are"):
                writer.commit("train", 0, 0, {"logits": wrong})
        for part, view, block in (("train", 0, 2), ("train", -1, 0), ("test", 1, 0)):
            with pytest.raises(ValueError, match="no such block"):
                writer.commit(part, view, block, {"logits": {"values": rows}})
        writer.commit("train", 0, 0, {"logits": {"values": rows}})
        with pytest.raises(ValueError, match="committed already"):
            writer.commit("train", 0, 0, {"logits": {"values": rows}})


def test_memory_maps_are_bounded_and_chunks_checked_once(sound, monkeypatch):
    monkeypatch.setattr("kdtool.cache.reader.open_maps", lambda: 2)
    cache = open_cache(sound)
    checked = []
    monkeypatch.setattr("kdtool.cache.chunks.crc32c", lambda body: checked.append(1) or google_crc32c.value(body))
    cached = cache.array("train", "logits", "values")
    for _ in range(3):
        cached.read(0)
    assert cache._map.cache_info().currsize == 2
    assert len(checked) == 4


def test_a_cache_may_keep_as_many_maps_as_the_process_may_have_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        kept = open_maps()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard == before[1]
        assert kept == max(256, soft // 4)
        assert soft == min(before[1], MOST_FILES) or before[1] == resource.RLIM_INFINITY
        assert open_maps() == kept
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_info_counts_what_is_there(sound, tiny):
    shown = info(sound)
    content = tiny.tree(sound)
    chunks = {name: len(body) for name, body in content.items() if "/c/" in name or name.endswith("/c")}
    assert shown["bytes"] == sum(chunks.values())
    logits = shown["keys"]["logits"]["parts"]
    assert {part: found["views"] for part, found in logits.items()} == tiny.views
    assert logits["train"]["bytes"] == sum(size for name, size in chunks.items() if name.startswith("train/logits/"))
    assert shown["fits"]["srm.stage1"]["bytes"] == sum(size for name, size in chunks.items() if "fitted" in name)
    assert not shown["unfinished"]
    assert shown["identity_digest"] == open_cache(sound).identity_digest


def test_provenance_is_kept_line_by_line(tmp_path, tiny):
    for run in (1, 2):
        with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
            writer.provenance({"run": run, "command": ("kdtool", "extract")})
    assert open_cache(tmp_path / "cache").provenance == [
        {"run": run, "command": ["kdtool", "extract"]} for run in (1, 2)
    ]
    assert verify(tmp_path / "cache") == []


def test_scratch_is_removed_once_it_is_empty(tmp_path, tiny):
    for leave, there in ((True, True), (False, False)):
        with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
            state = writer.scratch / "state"
            state.write_bytes(b"0")
            if not leave:
                state.unlink()
        assert (tmp_path / "cache/scratch").exists() is there
        assert verify(tmp_path / "cache") == []


def test_too_little_space_is_refused_with_both_numbers(tmp_path):
    require_space(tmp_path / "not/there/yet", 1)
    with pytest.raises(ResourceError, match=r"needs 1,000,000,000,000,000,000 bytes, its disk has [0-9,]+ free"):
        require_space(tmp_path / "cache", 10**18)
