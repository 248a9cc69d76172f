"""Another identity, definition, split or folder is refused in words; one writer at a time, readers always."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtool import files
from kdtool.cache import ArraySpec, Contents, Layout, could_open, create_or_open, difference, journal, open_cache
from kdtool.cache.identity import identity_digest
from kdtool.errors import IdentityError, ResourceError, UsageError

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN, PLAIN)
def test_a_difference_is_empty_exactly_where_the_digests_agree(found, wanted):
    assert (difference(found, wanted) == []) == (files.digest(found) == files.digest(wanted))
    assert difference(found, found) == []


def test_a_difference_names_every_field_with_both_values():
    found = {"teacher": {"sha256": "aa", "name": "x"}, "seed": 1, "mean": [0.5, 0.4], "old": True}
    wanted = {"teacher": {"sha256": "bb", "name": "x"}, "seed": 1.0, "mean": [0.5, 0.3], "new": None}
    assert difference(found, wanted) == [
        "mean: the cache has [0.5,0.4], wanted is [0.5,0.3]",
        "new: the cache has nothing, wanted is null",
        "old: the cache has true, wanted is nothing",
        "seed: the cache has 1, wanted is 1.0",
        'teacher.sha256: the cache has "aa", wanted is "bb"',
    ]
    assert difference({"a": (1, 2)}, {"a": [1, 2]}) == []


def test_long_values_are_cut_and_stay_distinguishable():
    (line,) = difference({"classes": list(range(1000))}, {"classes": [*range(999), 5]})
    assert len(line) < 200
    assert len(set(line.split("SHA-256 ")[1:])) == 2


def test_values_that_are_not_plain_are_refused(tmp_path, tiny):
    for value in ({"a": {1, 2}}, {"a": float("nan")}):
        with pytest.raises((TypeError, ValueError)), create_or_open(tmp_path / "cache", value, tiny.layout):
            pass


@pytest.mark.parametrize(
    ("identity", "layout", "line"),
    [
        ({"teacher": {"name": "resnet8", "sha256": "cd" * 32}}, {}, 'identity.teacher.sha256: the cache has "abab'),
        ({"flags": []}, {}, 'identity.flags: the cache has \\["tf32"\\], wanted is \\[\\]'),
        ({"seed": 3}, {}, "identity.seed: the cache has nothing, wanted is 3"),
        ({}, {"batch": 3}, "layout.batch: the cache has 2, wanted is 3"),
        ({}, {"block": 4}, "layout.block: the cache has 6, wanted is 4"),
        ({}, {"samples": {"train": 11}}, "layout.samples.train: the cache has 10, wanted is 11"),
        ({}, {"fit_views": 8}, "layout.fit_views: the cache has 2, wanted is 8"),
        (
            {},
            {"tap_shapes": {"after_fc": (6,)}},
            "layout.tap_shapes.after_fc: the cache has \\[5\\], wanted is \\[6\\]",
        ),
    ],
)
def test_another_identity_is_refused_with_its_difference_and_nothing_is_touched(identity, layout, line, tiny, sound):
    before = tiny.tree(sound)
    wanted = Layout(**{**vars(tiny.layout), **layout})
    with (
        pytest.raises(IdentityError, match=f"(?s)is a cache of something else:\n.*{line}.*\n.*--cache") as raised,
        create_or_open(sound, {**tiny.identity, **identity}, wanted),
    ):
        pass
    assert len(str(raised.value).splitlines()) <= 10
    assert tiny.tree(sound) == before


def test_a_long_difference_is_cut_to_eight_lines(tmp_path, tiny):
    with create_or_open(tmp_path / "cache", {f"field{i}": i for i in range(12)}, tiny.layout):
        pass
    with (
        pytest.raises(IdentityError, match="\n  and 4 more\n") as raised,
        create_or_open(tmp_path / "cache", {f"field{i}": -1 for i in range(12)}, tiny.layout),
    ):
        pass
    assert len(str(raised.value).splitlines()) == 11


def test_the_digest_is_of_plain_values_and_the_same_in_every_process(tmp_path, tiny):
    with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout):
        pass
    code = (
        "import kdtool.cache as c, sys; print(c.open_cache(sys.argv[1]).identity_digest);"
        "assert 'torch' not in sys.modules and 'zarr' not in sys.modules"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "cache")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert seen == {identity_digest(tiny.identity, tiny.layout.to_json())}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version: the cache has 1, wanted is 2\nanother definition needs a new cache"),
        ({"taps": ("before_fc",)}, 'taps: the cache has \\["after_fc"\\].*\nanother definition'),
        ({"encoder": {"name": "Whole", "power": 2}}, "encoder.power: the cache has nothing.*\nanother definition"),
        ({"fit": "centres"}, 'fit: the cache has null, wanted is "centres"\nanother definition'),
        ({"arrays": {"values": ArraySpec("float32", (6,))}}, "arrays.values.shape: .*\nanother definition"),
        ({"arrays": {"values": ArraySpec("float16", (5,))}}, 'dtype: .*wanted is "float16"\nthe stored dtype is kept'),
    ],
)
def test_a_key_has_one_definition(change, says, tmp_path, tiny):
    logits = tiny.keys["logits"]
    with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
        writer.declare("logits", logits)
        writer.declare("logits", Contents(**vars(logits)))
        with pytest.raises(IdentityError, match=f"holds 'logits' with another definition:\n.*{says}"):
            writer.declare("logits", Contents(**{**vars(logits), **change}))


def test_a_fit_has_one_result(tmp_path, tiny):
    with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
        assert not writer.has_fit("centres")
        for _ in range(2):
            writer.put_fit("centres", 1, {"views": (0, 1)}, {"mean": np.ones((2, 30))})
        assert writer.has_fit("centres")
        for version, record, mean in [(2, (0, 1), 1), (1, (0, 2), 1), (1, (0, 1), 2)]:
            with pytest.raises(IdentityError, match="the fit 'centres'"):
                writer.put_fit("centres", version, {"views": record}, {"mean": np.full((2, 30), float(mean))})
        assert (writer.cache.fitted("centres")["mean"] == 1).all()


def test_the_samples_of_a_part_are_put_once(tmp_path, tiny):
    with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
        for _ in range(2):
            writer.put_samples("test", [0, 1, 2], np.array([7, 8, 9], np.uint16))
        with pytest.raises(IdentityError, match=r"the samples of test differ from those that .* holds"):
            writer.put_samples("test", [0, 1, 3], [7, 8, 9])
        for labels, index in (
            ([0, 1], [7, 8, 9]),
            ([0, 1, 5], [7, 8, 9]),
            ([0, 1, 2], [7, 8, -1]),
            ([0.5] * 3, [1] * 3),
        ):
            with pytest.raises(ValueError, match="of test"):
                writer.put_samples("test", labels, index)


def test_names_are_checked_before_anything_is_recorded(tmp_path, tiny):
    with create_or_open(tmp_path / "cache", tiny.identity, tiny.layout) as writer:
        with pytest.raises(ValueError, match="is no name for a key"):
            writer.declare("../logits", tiny.keys["logits"])
        with pytest.raises(ValueError, match="is no name for a fit"):
            writer.put_fit("Centres", 1, {}, {"mean": np.ones(3)})
    assert open_cache(tmp_path / "cache").contents == {}


def test_a_folder_with_other_things_is_left_alone(tmp_path, tiny):
    (tmp_path / "thesis.tex").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with (
            pytest.raises(UsageError, match="is no cache; name another"),
            create_or_open(path, tiny.identity, tiny.layout),
        ):
            pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_made_a_cache(tmp_path, tiny, sound):
    tiny.session(tmp_path)
    assert tiny.tree(tmp_path) == tiny.tree(sound)


HOLDER = """
import sys
from kdtool.cache import Layout, create_or_open
with create_or_open(sys.argv[1], {}, Layout({"train": 4}, 2, 2, 1)) as writer:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_at_once_and_a_reader_is_not(tmp_path):
    root, layout = tmp_path / "cache", Layout({"train": 4}, 2, 2, 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ResourceError, match=r"another process is writing into .*cache"),
            create_or_open(root, {}, layout),
        ):
            pass
        assert open_cache(root).layout.samples == {"train": 4}
        holder.communicate("")
    with create_or_open(root, {}, layout):
        pass


def test_a_reader_beside_a_writer_sees_what_was_committed_when_it_opened(tmp_path, tiny):
    root = tmp_path / "cache"
    with create_or_open(root, tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])
        tiny_views = []
        for view in range(2):
            for block in range(2):
                writer.commit("train", view, block, {"logits": tiny.rows_of_block("train", "logits", view, block)})
            tiny_views.append(open_cache(root))
            writer.finish()  # the journal goes while readers are there
        writer.commit("train", 2, 0, {"logits": tiny.rows_of_block("train", "logits", 2, 0)})
        assert [cache.views("logits") for cache in tiny_views] == [1, 2]
        for views, cache in enumerate(tiny_views, 1):
            cached = cache.array("train", "logits", "values")
            assert cached.shape == (views, 10, 5)
            for view in range(views):
                np.testing.assert_array_equal(cached.read(view), tiny.values("train", "logits", "values", view))


@pytest.mark.parametrize("first", ["read_lines", "read"])
def test_a_journal_that_is_folded_while_a_reader_opens_takes_nothing_away(first, tmp_path, tiny, monkeypatch):
    root = tmp_path / "cache"
    with create_or_open(root, tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])
        tiny_rows = [tiny.rows_of_block("train", "logits", 0, block) for block in range(2)]
        for block, rows in enumerate(tiny_rows):
            writer.commit("train", 0, block, {"logits": rows})

        read = getattr(journal, first)

        def then_fold(*given):
            found = read(*given)
            writer.finish()
            return found

        monkeypatch.setattr(journal, first, then_fold)
        assert open_cache(root).views("logits") == 1


def test_a_cache_to_which_nothing_is_added_need_not_be_writable(tmp_path, tiny, monkeypatch):
    root = tmp_path / "cache"
    with create_or_open(root, tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "check_folder", refused)
    assert could_open(root, tiny.identity, tiny.layout).contents.keys() == {"logits"}
    for path, missing in ((root, 1), (tmp_path / "new", 0)):
        with pytest.raises(ResourceError, match="cannot write"):
            could_open(path, tiny.identity, tiny.layout, lambda _, missing=missing: missing)


def test_what_a_repair_left_behind_is_no_unfinished_extract(tmp_path, tiny):
    root = tmp_path / "cache"
    with create_or_open(root, tiny.identity, tiny.layout) as writer:
        writer.declare("logits", tiny.keys["logits"])
    (root / journal.SCRATCH / journal.REPAIR).mkdir(parents=True)
    assert not open_cache(root).unfinished
    (root / journal.SCRATCH / "state.json").write_text("{}")
    assert open_cache(root).unfinished


@pytest.mark.parametrize("alone", [True, False])
def test_a_new_cache_that_others_write_into_is_not_taken_away(alone, tmp_path, tiny):
    root = tmp_path / "cache"
    with pytest.raises(ZeroDivisionError), create_or_open(root, tiny.identity, tiny.layout, alone=alone):
        _ = 1 / 0
    assert (root / journal.MANIFEST).exists() is not alone
