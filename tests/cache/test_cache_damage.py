"""Damage of every kind is found, by verify in every file and by readers in what they touch; never read, never zeros."""

import errno
import json
import os
import shutil
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from kdtool import files
from kdtool.cache import (
    Choice,
    could_open,
    create_or_open,
    drop,
    info,
    journal,
    open_cache,
    open_damaged,
    survey,
    verify,
    would_drop,
)
from kdtool.errors import DamageError, IdentityError, UsageError

CHUNK = "train/logits/values/c/0/1/0"
REPAIR = "kdtool cache verify .* lists all damage, .kdtool cache repair .* mends it"


@pytest.fixture
def copy(sound, tmp_path):
    """A cache that may be damaged."""
    shutil.copytree(sound, tmp_path / "cache")
    return tmp_path / "cache"


def read_all(root):
    cache = open_cache(root)
    for key, contents in cache.contents.items():
        for name in contents.arrays:
            cached = cache.array("train", key, name)
            for view in range(cached.shape[0]):
                cached.read(view)
    cache.fitted("srm.stage1"), cache.labels("train"), cache.index("train")


def rewrite_manifest(root, change):
    """A manifest that a hostile hand has changed, its checksum made to fit."""
    body = files.read_json(root / "manifest.json", "")
    change(body)
    files.write_json(root / "manifest.json", body)


def test_a_sound_cache_has_no_problems(sound):
    told = []
    assert verify(sound, told.append) == []
    assert sum(told) == info(sound)["bytes"]
    read_all(sound)


def test_a_change_that_keeps_the_crc_is_found_by_verify(copy):
    content = bytearray((copy / CHUNK).read_bytes())
    for place, byte in enumerate((1 | 0x82F63B78 << 1).to_bytes(5, "little")):  # the polynomial of CRC-32C
        content[place] ^= byte
    assert google_crc32c.value(bytes(content[:-4])) == int.from_bytes(content[-4:], "little")
    (copy / CHUNK).write_bytes(content)
    assert [problem.file for problem in verify(copy)] == [CHUNK]


def test_a_flipped_bit_in_any_file_is_found_by_verify_and_by_who_reads_it(copy, sound, tiny):
    with create_or_open(copy, tiny.identity, tiny.layout) as writer:
        writer.provenance({"command": "kdtool extract", "scale": 1e-07})
    draw = np.random.default_rng(0)
    for name, content in tiny.tree(copy).items():
        for bit in draw.choice(8 * len(content), min(3, 8 * len(content)), replace=False).tolist():
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (copy / name).write_bytes(flipped)
            assert name in [problem.file for problem in verify(copy)], f"bit {bit} of {name}"
            read = name.startswith(("train/", "fitted/")) and "/c" in name
            if read or name == "manifest.json":
                with pytest.raises(DamageError, match=REPAIR):
                    read_all(copy)
        (copy / name).write_bytes(content)
    assert verify(copy) == []


def test_texts_with_the_same_meaning_but_other_bytes_are_found(copy, tiny):
    with create_or_open(copy, tiny.identity, tiny.layout) as writer:
        writer.provenance({"scale": 1e-07})
    path = copy / "provenance.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1e-07", b"1E-07"))
    assert [problem.file for problem in verify(copy)] == ["provenance.jsonl"]
    path.unlink()
    path = copy / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format":  1'))
    assert [problem.file for problem in verify(copy)] == ["manifest.json"]


def test_every_missing_file_is_named(copy, tiny):
    for name, content in tiny.tree(copy).items():
        if name == "lock":
            continue
        (copy / name).unlink()
        assert [problem.file for problem in verify(copy)] == [name]
        if name == CHUNK:
            with pytest.raises(DamageError, match=f"{name} is missing; .{REPAIR}"):
                read_all(copy)
        (copy / name).write_bytes(content)


@pytest.mark.parametrize("change", [lambda body: body[:-1], lambda body: b"", lambda body: body + b"\0"])
def test_a_chunk_of_another_size_is_refused(copy, change):
    (copy / CHUNK).write_bytes(change((copy / CHUNK).read_bytes()))
    assert [problem.file for problem in verify(copy)] == [CHUNK]
    with pytest.raises(DamageError, match=f"{CHUNK} has [0-9]+ bytes, expected 64; .{REPAIR}"):
        read_all(copy)


def test_swapped_chunks_have_right_sums_of_their_own_and_are_refused(copy):
    other = CHUNK.replace("/1/0", "/0/0")
    (copy / CHUNK).rename(copy / "kept")
    (copy / other).rename(copy / CHUNK)
    (copy / "kept").rename(copy / other)
    assert [problem.file for problem in verify(copy)] == [other, CHUNK]
    cached = open_cache(copy).array("train", "logits", "values")
    for read in (lambda: cached.read(0, 0, 1), lambda: cached.rows(0, [3]), lambda: cached.rows(0, [9, 0])):
        with pytest.raises(DamageError, match="is damaged or another chunk"):
            read()
    assert cached.read(0, 6, 10).shape == (4, 5)  # the other block is sound


def test_a_chunk_that_shrinks_while_it_is_in_use_is_refused_when_it_is_mapped_again(copy):
    cached = open_cache(copy).array("train", "logits", "values")
    cached.read(0)
    cached.chunk.func.cache_clear()
    os.truncate(copy / CHUNK, 10)
    with pytest.raises(DamageError, match="has 10 bytes"):
        cached.read(0)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("train/logits/values", "data_type", "object"),
        ("train/logits/values", "codecs", [{"name": "pickle"}]),
        ("train/logits/values", "shape", [2, 10, 10**9]),
        ("train/logits/values", "shape", [True, 10, 5]),
        ("train/logits/values", "attributes", {"a": "b" * 20_000}),
        ("train/labels", "data_type", "variable_length_utf8"),
        ("fitted/srm.stage1/atoms", "fill_value", 1.0),
    ],
)
def test_metadata_that_say_something_else_are_refused(copy, name, field, value, tiny):
    path = copy / name / "zarr.json"
    path.write_text(files.canonical({**json.loads(path.read_bytes()), field: value}))
    assert [problem.file for problem in verify(copy)] == [f"{name}/zarr.json"]
    with pytest.raises(DamageError, match=f"{name}/zarr.json does not describe the array"):
        read_all(copy)
    with (
        pytest.raises(DamageError, match=f"{name}/zarr.json does not describe what"),
        create_or_open(copy, tiny.identity, tiny.layout),
    ):
        pass


def test_metadata_that_show_an_unfinished_view_are_found_and_put_right(copy, tiny):
    path = copy / "train/logits/values/zarr.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"shape":[2', b'"shape":[3'))
    assert [problem.file for problem in verify(copy)] == ["train/logits/values/zarr.json"]
    tiny.session(copy)
    assert path.read_bytes() == content


def test_links_are_refused(copy, tmp_path, tiny):
    shutil.copy(copy / CHUNK, tmp_path / "outside")
    (copy / CHUNK).unlink()
    (copy / CHUNK).symlink_to(tmp_path / "outside")
    shutil.move(copy / "fitted", tmp_path / "fitted")
    (copy / "fitted").symlink_to(tmp_path / "fitted")
    found = {problem.file for problem in verify(copy) if "link" in problem.what}
    assert {CHUNK, "fitted", "fitted/srm.stage1/count/c"} <= found
    for read in (
        lambda: open_cache(copy).array("train", "logits", "values").read(0),
        lambda: open_cache(copy).fitted("srm.stage1"),
    ):
        with pytest.raises(DamageError, match="is a link, or lies behind one"):
            read()
    with pytest.raises(DamageError, match="is a link"), create_or_open(copy, tiny.identity, tiny.layout):
        pass


def test_a_cache_behind_a_link_is_a_cache(copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    assert verify(tmp_path / "link") == []
    read_all(tmp_path / "link")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["files"].update({"../../etc/passwd": "0" * 8 + " " + "0" * 64}),
        lambda body: body["files"].update({"train/logits/values/c/0/9/0": "0" * 8 + " " + "0" * 64}),
        lambda body: body["files"].update({"train/logits/values/c/../../0": "0" * 8 + " " + "0" * 64}),
        lambda body: body["files"].update({CHUNK: "short"}),
        lambda body: body["files"].update({CHUNK: 7}),
        lambda body: body["contents"].update({"../key": body["contents"]["logits"]}),
        lambda body: body["contents"]["logits"]["arrays"].update({"/tmp": {"dtype": "bool", "shape": [1]}}),
        lambda body: body["contents"]["logits"]["arrays"]["values"].update(dtype="object"),
        lambda body: body["contents"]["logits"]["arrays"]["values"].update(shape=[2**40]),
        lambda body: body["fits"].update({"..": body["fits"]["srm.stage1"]}),
        lambda body: body["files"].pop("fitted/srm.stage1/atoms/c/1/0"),
        lambda body: body["identity"].update(teacher="another"),
        lambda body: body["layout"].update(batch=0),
        lambda body: body["layout"].update(samples={"elsewhere": 3}),
        lambda body: body.update(files=[]),
        lambda body: body.pop("layout"),
        lambda body: body.update(contents=None),
    ],
)
def test_a_hostile_manifest_with_a_fitting_checksum_is_refused(copy, change):
    rewrite_manifest(copy, change)
    with pytest.raises(DamageError, match=f"manifest.json or its journal describes no cache .*{REPAIR}"):
        open_cache(copy)
    assert [problem.file for problem in verify(copy)] == ["manifest.json"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"files": {CHUNK: "0" * 8 + " " + "0" * 64}}, "has two records, or one that is none"),
        ({"files": {CHUNK: "short"}}, "has two records, or one that is none: short"),
        ({"contents": {"logits": {"arrays": {"values": {"dtype": "float32", "shape": [3]}}}}}, "key logits has two"),
        ({"fits": {"srm.stage1": {"record": {"atoms": 5}}}}, r"fit srm\.stage1 has two definitions"),
    ],
)
def test_a_journal_that_contradicts_the_manifest_is_refused(copy, line, message):
    body = files.read_json(copy / "manifest.json", "")
    for kind in line.keys() & {"contents", "fits"}:
        ((key, change),) = line[kind].items()
        line = {kind: {key: body[kind][key] | change}}
    journal.append(copy, line)
    with pytest.raises(DamageError, match=f"describes no cache .*{message}.*{REPAIR}"):
        open_cache(copy)
    assert [problem.file for problem in verify(copy)] == ["manifest.json"]


def test_a_journal_that_says_the_same_again_changes_nothing(copy):
    body = files.read_json(copy / "manifest.json", "")
    journal.append(copy, {name: body[name] for name in ("contents", "fits", "files")})
    assert verify(copy) == []
    read_all(copy)


def test_the_copy_of_another_manifest_is_found(copy):
    body = files.read_json(copy / "manifest.copy.json", "")
    files.write_json(copy / "manifest.copy.json", {**body, "identity_digest": "0" * 64})
    (problem,) = verify(copy)
    assert problem.file == "manifest.copy.json"
    assert problem.what.startswith("is the manifest of another cache: one of them was put there from elsewhere")


ELSEWHERE = r"put there from elsewhere; remove manifest.copy.json, or manifest.json where the copy is right"


@pytest.mark.parametrize("other", ["an earlier one", "another cache's"])
def test_a_manifest_that_knows_less_than_its_copy_costs_no_chunk(other, tmp_path, tiny):
    """Put back from a backup, it would let a writer sweep away what was extracted since."""
    root, views = tmp_path / "cache", {**tiny.views, "train": 1}
    if other == "an earlier one":
        tiny.session(root, views)
    else:
        with create_or_open(root, {**tiny.identity, "kind": other}, tiny.layout):
            pass
    old = (root / "manifest.json").read_bytes()
    shutil.rmtree(root)
    tiny.session(root)
    whole = tiny.tree(root)
    (root / "manifest.json").write_bytes(old)
    damaged = tiny.tree(root)

    identity = {**tiny.identity, "kind": other} if other == "another cache's" else tiny.identity
    for write in (
        lambda: create_or_open(root, identity, tiny.layout).__enter__(),
        lambda: could_open(root, identity, tiny.layout),
        lambda: drop(root, Choice(keep_views=1)),
        lambda: would_drop(root, Choice(keep_views=1)),
        lambda: survey(root),
        lambda: open_damaged(root).__enter__(),
    ):
        with pytest.raises(DamageError, match=ELSEWHERE):
            write()
    assert tiny.tree(root) == damaged
    assert any(ELSEWHERE.split(";")[0] in problem.what for problem in verify(root))

    (root / "manifest.json").unlink()
    with open_damaged(root) as repairer:
        assert repairer.damaged == set()
    assert tiny.tree(root) == whole


def test_a_copy_that_knows_less_is_what_a_killed_writer_leaves(tmp_path, tiny):
    root = tmp_path / "cache"
    tiny.session(root, {**tiny.views, "train": 1})
    old = (root / "manifest.copy.json").read_bytes()
    tiny.session(root)
    whole = tiny.tree(root)
    (root / "manifest.copy.json").write_bytes(old)
    tiny.session(root)
    assert tiny.tree(root) == whole


def test_another_format_names_the_way_out(copy):
    rewrite_manifest(copy, lambda body: body.update(format=2))
    for reads in (open_cache, verify):
        with pytest.raises(IdentityError, match="format 2; this kdtool reads format 1: use the kdtool that wrote it"):
            reads(copy)


def test_a_cache_without_its_manifest_is_damaged_and_not_made_anew(copy, tiny):
    (copy / "manifest.json").unlink()
    with pytest.raises(DamageError, match=r"manifest\.json is missing"):
        open_cache(copy)
    with (
        pytest.raises(DamageError, match=r"manifest\.json is missing"),
        create_or_open(copy, tiny.identity, tiny.layout),
    ):
        pass


def test_what_is_no_cache_is_said_to_be_none(tmp_path):
    (tmp_path / "zarr.json").write_text('{"node_type": "group"}')
    for path in (tmp_path, tmp_path / "absent", tmp_path / "zarr.json"):
        for reads in (open_cache, verify):
            with pytest.raises(UsageError, match=r"no cache at .*; `kdtool extract` makes one"):
                reads(path)


def test_a_chunk_that_the_disk_does_not_give_is_damage(copy, monkeypatch):
    kept = Path.read_bytes

    def read(path):
        if path == copy / CHUNK:
            raise OSError(errno.EIO, "Input/output error")
        return kept(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    (problem,) = verify(copy)
    assert (problem.file, "cannot be read" in problem.what) == (CHUNK, True)


def test_a_journal_that_is_folded_away_between_a_look_and_a_read_is_no_error(copy, monkeypatch):
    kept = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: path.name == "journal.jsonl" or kept(path))
    assert not (copy / "journal.jsonl").exists()
    read_all(copy)
