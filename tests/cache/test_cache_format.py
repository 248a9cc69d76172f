"""docs/format.md is true: its example is what kdtool writes, and its reader reads what kdtool wrote."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from kdtool.cache import ArraySpec, Contents, Layout, create_or_open, verify

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    return found


def write_example(root):
    layout = Layout({"train": 3}, classes=2, batch=2, fit_views=1, tap_shapes={"after_fc": (2,)})
    logits = Contents(1, ("after_fc",), {"name": "Whole"}, None, {"values": ArraySpec("float16", (2,))})
    with create_or_open(root, {"teacher": {"name": "resnet8", "sha256": "aa" * 32}, "seed": 0}, layout) as writer:
        writer.put_samples("train", [0, 1, 0], [4, 2, 9])
        writer.declare("logits", logits)
        centres = np.array([[1.5, -1.5], [0.25, 2.0]], np.float32)
        writer.put_fit("centres", 1, {"name": "Centres", "views": [0]}, {"mean": centres})
        for view in range(2):
            rows = np.array([[1.0, -1.0], [0.25, 2.0], [2.0, -2.0]], np.float16) + np.float16(view)
            writer.commit("train", view, 0, {"logits": {"values": rows}})


def test_the_example_is_what_is_written(tmp_path):
    write_example(tmp_path / "cache")
    assert (tmp_path / "cache/manifest.json").read_text() == block("json")
    assert verify(tmp_path / "cache") == []


def test_the_documented_metadata_are_what_is_written(tmp_path):
    write_example(tmp_path / "cache")
    root, array = re.findall(r"^    (\{\"attributes\".*?\"zarr_format\":3\})$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert (tmp_path / "cache/zarr.json").read_text() == root
    array = re.sub(r"\n *", "", array).replace("[1,R,...]", "[1,4,2]").replace("[views,n,...]", "[2,3,2]")
    assert (tmp_path / "cache/train/logits/values/zarr.json").read_text() == array


@pytest.mark.parametrize("finished", [True, False])
def test_the_documented_reader_reads_every_array(finished, sound, tmp_path, tiny):
    root = sound
    if not finished:
        root = tmp_path / "cache"
        with create_or_open(root, tiny.identity, tiny.layout) as writer:
            for key, contents in tiny.keys.items():
                writer.declare(key, contents)
            tiny.commit_missing(writer, "train", 0)
            assert_reads(root, tiny, {"train": 1})
    else:
        assert_reads(root, tiny, tiny.views)


def assert_reads(root, tiny, views):
    reader = {}
    exec(block("python"), reader)
    reader["CHUNK_BYTES"] = 64  # as in these tests
    manifest = reader["load"](root)
    for part, number in views.items():
        for key, contents in tiny.keys.items():
            for name in contents.arrays:
                for view in range(number):
                    found = reader["read_view"](root, manifest, part, key, name, view)
                    np.testing.assert_array_equal(found, tiny.values(part, key, name, view))
                with pytest.raises(KeyError):
                    reader["read_view"](root, manifest, part, key, name, number)


def test_every_field_of_the_manifest_is_documented(sound):
    manifest = json.loads((sound / "manifest.json").read_bytes())
    for field in [*manifest, *manifest["layout"]]:
        assert f"| `{field}` |" in DOCUMENT
    for field in (*manifest["contents"]["logits"], *manifest["fits"]["srm.stage1"]):
        assert f"`{field}`" in DOCUMENT or f'"{field}"' in DOCUMENT
