"""A damaged cache is mended to the byte, by asking the teacher for what is lost alone; and a cache of wrong rows is
found out by asking it for some rows again.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from stopping import StopAfter

from kdtool import files
from kdtool.cache import open_cache, verify
from kdtool.cache.chunks import encode, record_of
from kdtool.engine.checkpoint import save_state
from kdtool.engine.extract import check, extract
from kdtool.engine.extraction import Landing, Stored
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.recorded import Again, recorded_fits, recorded_job, recorded_targets
from kdtool.engine.repair import Mended, repair
from kdtool.engine.replay import Replayed, replay
from kdtool.engine.sources import Teller
from kdtool.errors import DamageError, IdentityError, Stopped, UsageError
from kdtool.methods import method, recorded_kinds
from kdtool.progress import Silent, StopRequest
from kdtool.targets import describe

Whole = Callable[[], Workspace]


def tree(root: Path) -> dict[str, bytes]:
    """Every file but the record of who wrote."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "provenance.jsonl"}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def mend(workspace: Workspace) -> Mended:
    return repair(workspace, Again(), Silent(), StopRequest())


@pytest.fixture(scope="module")
def sound(complete: Path) -> dict[str, bytes]:
    return tree(Workspace.open(complete).cache)


def chunk_names(workspace: Workspace) -> dict[str, str]:
    """A chunk of every array, the last in order."""
    cache = open_cache(workspace.cache)
    return {cache.manifest.grid_of(name).path: name for name in sorted(cache.manifest.files)}


def test_every_encoder_and_fit_is_made_again_from_its_record(complete: Path) -> None:
    cache = open_cache(Workspace.open(complete).cache)
    fits, unknown_fits = recorded_fits(cache)
    targets, unknown = recorded_targets(cache, fits)
    assert unknown_fits == unknown == ()
    for key, target in targets.items():
        assert describe(target.encode) == cache.contents[key].encoder
        assert hash(target) is not None
    assert {fit.key for fit in fits.values()} == set(cache.fits)


def test_no_two_classes_that_are_recorded_have_one_name() -> None:
    modules = {kind.__module__ for kind in recorded_kinds().values()}
    named = [
        kind
        for module in modules
        for kind in vars(__import__(module, fromlist=["x"])).values()
        if isinstance(kind, type) and recorded_kinds().get(kind.__name__) not in (None, kind)
    ]
    assert named == []


def test_a_damaged_chunk_of_every_array_is_mended_to_the_byte(whole: Whole, sound: dict[str, bytes]) -> None:
    workspace = whole()
    names = chunk_names(workspace)
    for number, name in enumerate(names.values()):
        path = workspace.cache / name
        (flip, Path.unlink, lambda p: p.write_bytes(b""))[number % 3](path)  # type: ignore[operator]
    found = mend(workspace)
    assert found.chunks == tuple(sorted(names.values()))
    assert found.again == ()
    assert tree(workspace.cache) == sound
    assert verify(workspace.cache) == []


def test_only_the_damaged_block_is_asked_of_the_teacher(
    whole: Whole, sound: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = whole()
    name = chunk_names(workspace)["train/logits/values"]
    flip(workspace.cache / name)
    before = {path: path.stat().st_mtime_ns for path in workspace.cache.rglob("c/**/*") if path.is_file()}
    asked: list[int] = []
    answer = Teller.answer

    def counted(self: Teller, images: object) -> object:
        asked.append(len(images))  # type: ignore[arg-type]
        return answer(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(Teller, "answer", counted)
    mend(workspace)
    cache = open_cache(workspace.cache)
    rows = cache.layout.samples["train"] - cache.layout.block_rows("train") * (cache.layout.blocks("train") - 1)
    assert sum(asked) == 1 + rows  # one image to learn the shapes
    changed = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {workspace.cache / name}
    assert tree(workspace.cache) == sound


@pytest.mark.parametrize("lost", [("manifest.json",), ("manifest.copy.json",), ("train/logits/values/zarr.json",)])
def test_what_follows_from_other_files_needs_no_teacher(
    lost: tuple[str, ...], whole: Whole, sound: dict[str, bytes]
) -> None:
    workspace = whole()
    workspace.teacher.unlink()
    for name in lost:
        for damage in (flip, Path.unlink):
            damage(workspace.cache / name)
            found = mend(workspace)
            assert [line.split(":")[0] for line in found.again] == [name]
            assert found.chunks == ()
            assert tree(workspace.cache) == sound
            assert verify(workspace.cache) == []


def test_chunks_of_a_view_that_is_not_finished_are_mended(taught: Path, tmp_path: Path) -> None:
    """They are computed again to the byte, and the state of the fits of a stopped extract stays."""
    workspace = Workspace.open(Path(shutil.copytree(taught, tmp_path / "work")))
    asked = ExtractConfig((method("kd"),), ("resnet8",), views=2, batch=16, block=16)
    with pytest.raises(Stopped):
        extract(workspace.cache, prepare(workspace, asked), Silent(), StopAfter(8))
    state = workspace.cache / "scratch"
    save_state(state, {"some/fit": torch.ones(3)}, {"fits": [], "done": 7})
    before, manifest = tree(workspace.cache), open_cache(workspace.cache).manifest
    assert manifest.views("train", "logits") == 1
    (lost,) = (name for name in manifest.files if name.startswith("train/logits/values/c/1/0/"))
    flip(workspace.cache / lost)
    assert mend(workspace).chunks == (lost,)
    assert verify(workspace.cache) == []
    folded = {"manifest.json", "manifest.copy.json", "journal.jsonl"}
    after = tree(workspace.cache)
    assert {name: before[name] for name in before.keys() - folded} == {
        name: after[name] for name in after.keys() - folded
    }
    assert open_cache(workspace.cache).manifest.to_json() == manifest.to_json()


def test_a_key_keeps_the_dtype_in_which_a_fit_read_it(taught: Path, tmp_path: Path) -> None:
    """Otherwise the fit could not be learned again when its result is damaged."""
    workspace = Workspace.open(Path(shutil.copytree(taught, tmp_path / "work")))
    options = {"srm": {"passes": "2", "layers": "stage3"}, "fitnet": {"layers": "stage3"}}

    def stored(name: str, dtypes: dict[str, str]) -> None:
        chosen = method(name).with_options(options[name])
        asked = ExtractConfig((chosen,), ("resnet8",), views=1, batch=16, fit_views=1, dtypes=dtypes)
        job = prepare(workspace, asked)
        check(workspace.cache, job)
        extract(workspace.cache, job, Silent(), StopRequest())

    stored("srm", {})
    (key,) = (key for fit in open_cache(workspace.cache).fits.values() for key in fit.record["reads"] if "map" in key)
    before = tree(workspace.cache)
    with pytest.raises(IdentityError, match=f"was learned from {key} as float16, .* as float32; .*--dtype {key}="):
        stored("fitnet", {key: "float32"})
    assert tree(workspace.cache) == before


def test_links_are_replaced_by_what_was_recorded(whole: Whole, sound: dict[str, bytes], tmp_path: Path) -> None:
    workspace = whole()
    shutil.move(workspace.cache / "train/logits", tmp_path / "elsewhere")
    (workspace.cache / "train/logits").symlink_to(tmp_path / "elsewhere")
    kept = tree(tmp_path / "elsewhere")
    assert "train/logits: removed, it was a link" in mend(workspace).again
    assert tree(workspace.cache) == sound
    assert tree(tmp_path / "elsewhere") == kept


def test_both_manifests_lost_is_said(whole: Whole) -> None:
    workspace = whole()
    flip(workspace.cache / "manifest.json")
    flip(workspace.cache / "manifest.copy.json")
    with pytest.raises(DamageError, match=r"neither manifest\.json nor manifest\.copy\.json in .* is whole"):
        mend(workspace)


def test_without_the_teacher_it_says_what_is_lost(whole: Whole) -> None:
    workspace = whole()
    name = chunk_names(workspace)["train/logits/values"]
    (workspace.cache / name).unlink()
    workspace.teacher.unlink()
    with pytest.raises(UsageError, match=f"1 damaged or missing chunks, the first is {name}, .* does not exist"):
        mend(workspace)


def test_another_teacher_is_refused_and_nothing_is_written(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = whole()
    name = chunk_names(workspace)["train/logits/values"]
    flip(workspace.cache / name)
    before = tree(workspace.cache)
    landed = Landing.landed

    def otherwise(landing: Landing) -> Stored:
        rows = landed(landing)
        return {key: {array: values + 1 for array, values in found.items()} for key, found in rows.items()}

    monkeypatch.setattr(Landing, "landed", otherwise)
    with pytest.raises(DamageError, match="comes out with other bits than were recorded; repair it on a machine"):
        mend(workspace)
    assert tree(workspace.cache) == before


def test_a_cache_of_something_else_is_refused(whole: Whole, taught: Path) -> None:
    workspace = whole()
    name = chunk_names(workspace)["train/logits/values"]
    flip(workspace.cache / name)
    record = json.loads((workspace.folder / "teacher.json").read_bytes())
    files.write_json(workspace.folder / "teacher.json", {**record, "mean": [0.1, 0.1, 0.1]})
    with pytest.raises(IdentityError, match=r"preprocessing\.mean: the cache has .* wanted is"):
        mend(workspace)


def test_replay_finds_a_sound_cache_right_to_the_bit(complete: Path) -> None:
    found, unknown = replay(Workspace.open(complete), 60, Again(), Silent(), np.random.default_rng(1))
    assert unknown == ()
    cache = open_cache(Workspace.open(complete).cache)
    assert {result.key for result in found} == set(cache.contents)
    assert all(result.right and result.identical == result.rows and result.difference == 0 for result in found)
    assert sum(result.rows for result in found if (result.key, result.array) == ("logits", "values")) == 60


def test_replay_finds_rows_that_are_shifted_by_one(whole: Whole) -> None:
    """Every checksum fits; only the teacher can tell."""
    workspace = whole()
    shift_rows(workspace.cache)
    assert verify(workspace.cache) == []
    found, _ = replay(workspace, 60, Again(), Silent(), np.random.default_rng(1))
    for result in found:
        expected = result.part == "train"
        assert result.right is not expected, result
        assert (result.worst is not None) is expected


@pytest.mark.parametrize("name", ["labels", "index"])
def test_replay_finds_labels_and_rows_of_another_data_set(whole: Whole, name: str) -> None:
    """Whose checksums fit, too."""
    workspace = whole()
    cache = open_cache(workspace.cache)
    (path,) = (path for path in cache.manifest.files if path.startswith(f"test/{name}/"))
    values = {"labels": cache.labels, "index": cache.index}[name]("test").copy()
    values[0] = 1 - values[0]
    put(workspace.cache, {path: values})
    assert verify(workspace.cache) == []
    with pytest.raises(IdentityError, match=f"test/{name} of .* is not that of the data set and the split"):
        replay(workspace, 1, Again(), Silent(), np.random.default_rng(1))


def shift_rows(root: Path) -> None:
    """Moves every row of every array of the train part to the next sample."""
    cache, moved = open_cache(root), {}
    for key, contents in cache.contents.items():
        for name in contents.arrays:
            array = cache.array("train", key, name)
            for view in range(cache.views(key)):
                rows = np.roll(array.read(view), 1, axis=0)
                for chunk in range(array.grid.chunks):
                    piece = rows[chunk * array.grid.rows : (chunk + 1) * array.grid.rows]
                    moved[array.grid.file(chunk, view)] = piece
    put(root, moved)


def put(root: Path, chunks: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    """Writes other values into chunks, and records that as if it were right."""
    body, manifest = files.read_json(root / "manifest.json", ""), open_cache(root).manifest
    for path, values in chunks.items():
        content = encode(values, manifest.grid_of(path))
        (root / path).unlink()
        (root / path).write_bytes(content)
        body["files"][path] = record_of(content)
    for name in ("manifest.json", "manifest.copy.json"):
        files.write_json(root / name, body)


def test_replay_wants_at_least_one_row(complete: Path) -> None:
    with pytest.raises(UsageError, match="--replay is at least 1"):
        replay(Workspace.open(complete), 0, Again(), Silent(), np.random.default_rng(1))


def test_a_job_made_again_is_the_job(complete: Path) -> None:
    workspace = Workspace.open(complete)
    cache = open_cache(workspace.cache)
    job, _ = recorded_job(workspace, cache, Again())
    assert dict(job.identity) == cache.identity
    assert job.layout.to_json() == cache.layout.to_json()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_replay_passes_no_row_that_is_not_finite_nor_one_beside_it(odd: float) -> None:
    given = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    for held in (np.full_like(given, odd), np.where(np.arange(3)[:, None] == 1, odd, given)):
        found = Replayed("train", "logits", "values", 1e-3)
        found.add(held.astype(np.float32), given, 2, np.array([5, 6, 7]))
        assert not found.right
        assert found.worst == (2, 6 if np.isfinite(held[0]).all() else 5)
    zeros = np.zeros_like(given)
    zeros[0, 0] = odd
    found = Replayed("train", "logits", "values", 1e-3)
    found.add(zeros[1:], given[1:], 0, np.array([1, 2]))
    assert (found.right, found.difference) == (False, 1.0)
