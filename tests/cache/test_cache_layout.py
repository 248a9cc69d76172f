"""Blocks, chunks and names: the arithmetic of the format against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtool.cache import ArraySpec, Contents, FitContents, Layout, default_block
from kdtool.cache.arrays import Grid, check_name, chunk_rows, whole_grid
from kdtool.errors import UsageError


@given(st.integers(1, 20_000), st.integers(1, 9000))
def test_default_block_is_the_smallest_multiple_of_the_batch_from_4096(samples, batch):
    smallest = next(size for size in range(batch, 40_000, batch) if size >= 4096)
    rounded = next(size for size in range(batch, 40_000, batch) if size >= samples)
    assert default_block(samples, batch) == min(smallest, rounded)


@given(st.integers(1, 300), st.integers(1, 50))
def test_chunk_is_the_largest_halving_of_the_block_that_fits(block, row_bytes):
    halvings = [block]
    while halvings[-1] % 2 == 0:
        halvings.append(halvings[-1] // 2)
    fitting = [rows for rows in halvings if rows * row_bytes <= 64]  # CHUNK_BYTES of these tests
    assert chunk_rows(block, row_bytes) == (max(fitting) if fitting else halvings[-1])


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 6), st.integers(1, 40))
def test_blocks_of_chunks_cover_every_row_once(samples, batch, multiple, row_bytes):
    layout = Layout({"train": samples}, 2, batch, 1, block=batch * multiple)
    grid = layout.grid("train", "key", "values", ArraySpec("uint8", (row_bytes,)))
    chunks = [chunk for block in range(layout.blocks("train")) for chunk in layout.chunks(grid, "train", block)]
    assert chunks == list(range(grid.chunks))
    assert (grid.chunks - 1) * grid.rows < samples <= grid.chunks * grid.rows
    assert layout.block_rows("train") % batch == 0
    assert layout.block_rows("train") % grid.rows == 0


def test_layout_survives_json_and_resolves_its_block():
    layout = Layout({"train": 50_000, "test": 10}, 100, 256, 4, {"stage1": (64, 8, 8)})
    record = layout.to_json()
    assert record["block"] == 4096
    assert Layout.from_json(record).to_json() == record
    assert [layout.block_rows(part) for part in ("train", "test")] == [4096, 256]
    assert layout.blocks("train") == 13


@pytest.mark.parametrize("change", [{"batch": 0}, {"block": 7}, {"samples": {"train": 0}}, {"fit_views": True}])
def test_layout_refuses_options_that_are_no_layout(change):
    with pytest.raises(UsageError, match=f"({next(iter(change))}|train) of a cache|block 7"):
        Layout(**{"samples": {"train": 10}, "classes": 2, "batch": 2, "fit_views": 1, **change})


@pytest.mark.parametrize("samples", [{"test": 3}, {"train": 3, "other": 3}])
def test_layout_refuses_unknown_parts(samples):
    with pytest.raises(ValueError, match="known are train, train_clean, validation, test"):
        Layout(samples, 2, 2, 1)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("object", (3,)), ("float8", (3,)), (">f4", (3,)), ("int64", (0,)), ("bool", (2.5,)), ("bool", (1,) * 17)],
)
def test_array_refuses_other_dtypes_and_shapes(dtype, shape):
    with pytest.raises(ValueError, match=r"cannot be cached|sizes of at least 1"):
        ArraySpec(dtype, shape)


def test_array_refuses_a_sample_that_no_memory_holds():
    with pytest.raises(ValueError, match=r"more than 2\^31"):
        ArraySpec("float64", (2**30, 2**30))


@given(st.text(max_size=8) | st.sampled_from(["..", ".", "labels", "index", "zarr.json", "a/b", "x.partial", "A", ""]))
def test_a_name_is_refused_or_one_safe_path_segment(name):
    try:
        check_name("key", name)
    except ValueError:
        return
    assert name not in ("labels", "index", "zarr.json")
    assert not name.startswith(".")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")


def test_definitions_without_arrays_hold_nothing():
    with pytest.raises(ValueError, match="holds nothing"):
        Contents(1, ("stem",), {}, None, {})
    with pytest.raises(ValueError, match="holds nothing"):
        FitContents(1, {}, {})


@given(st.lists(st.integers(1, 9), max_size=3), st.booleans(), st.integers(0, 200), st.integers(0, 3))
def test_a_chunk_is_located_from_its_file_and_nothing_else_is(shape, views, chunk, view):
    grid = whole_grid("train/key/c", ArraySpec("float32", tuple(shape)))
    if shape and views:
        grid = Grid(grid.path, grid.dtype, grid.shape, grid.rows, 0)
    view, chunk = (view if grid.views is not None else 0), chunk % grid.chunks
    name = grid.file(chunk, view)
    assert grid.locate(name) == (view, chunk)
    for wrong in (name + "/0", name.replace("/c/0", "/c/00"), grid.file(grid.chunks, view) + "", name + "x"):
        if wrong != name:
            with pytest.raises(ValueError, match="chunk"):
                grid.locate(wrong)


def test_metadata_differ_in_what_they_must():
    made = {Grid("p", dtype, (4, 3), 2, views).metadata() for dtype in ("bool", "int32") for views in (None, 0, 1)}
    assert len(made) == 6
    assert np.dtype(Grid("p", "int32", (4, 3), 2).storage).byteorder in "<="
