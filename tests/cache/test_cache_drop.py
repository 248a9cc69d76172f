"""Keys, fits and views leave a cache and give their space back; what stays is untouched, what comes back is equal."""

import shutil

import pytest

from kdtool import files
from kdtool.cache import Choice, create_or_open, drop, open_cache, verify, would_drop
from kdtool.errors import ResourceError, UsageError


class Killed(BaseException):
    pass


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "cache")


def size(root):
    """Bytes of the chunks."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and ".json" not in path.name)


CHOICES = {
    "a key": (Choice(keys=["stage1.srm4"]), {"logits": 2}),
    "a key and its fit": (Choice(keys=["stage1.srm4"], fits=["srm.stage1"]), {"logits": 2}),
    "views": (Choice(keep_views=1), {"logits": 1, "stage1.srm4": 1}),
    "views of a key": (Choice(keys=["logits"], keep_views=1), {"logits": 1, "stage1.srm4": 2}),
    "no view": (Choice(keep_views=7), {"logits": 2, "stage1.srm4": 2}),
}


@pytest.mark.parametrize(("choice", "left"), CHOICES.values(), ids=CHOICES.keys())
def test_what_is_dropped_is_gone_and_its_space_is_free(choice, left, copy, tiny):
    before, held = tiny.tree(copy), size(copy)
    promised = would_drop(copy, choice).bytes
    assert tiny.tree(copy) == before
    assert drop(copy, choice) == promised == held - size(copy)
    cache = open_cache(copy)
    assert {key: cache.views(key) for key in cache.contents} == left
    assert set(cache.fits) == {"srm.stage1"} - set(choice.fits)
    assert verify(copy) == []
    assert [path for path in copy.rglob("*") if path.is_dir() and not any(path.iterdir())] == []
    texts = ("manifest.json", "manifest.copy.json")
    for name, content in tiny.tree(copy).items():
        if name not in texts and not name.endswith("zarr.json"):
            assert content == before[name]


@pytest.mark.parametrize(("choice", "left"), CHOICES.values(), ids=CHOICES.keys())
def test_what_is_extracted_again_has_the_bytes_that_it_had(choice, left, copy, sound, tiny):
    drop(copy, choice)
    tiny.session(copy)
    assert tiny.tree(copy) == tiny.tree(sound)


@pytest.mark.parametrize("name", ["a key and its fit", "views"])
def test_a_drop_that_is_killed_has_happened_or_has_not(name, copy, sound, tmp_path, tiny, monkeypatch):
    choice = CHOICES[name][0]
    wanted = shutil.copytree(sound, tmp_path / "wanted")
    drop(wanted, choice)
    for fail_at in range(1, 200):
        root = shutil.copytree(sound, tmp_path / str(fail_at))
        calls = 0

        def step(real, limit=fail_at):
            def called(*given, **options):
                nonlocal calls
                calls += 1
                if calls == limit:
                    raise Killed
                return real(*given, **options)

            return called

        with monkeypatch.context() as patch:
            for call in ("replace", "unlink", "fsync", "rmdir"):
                patch.setattr(files.os, call, step(getattr(files.os, call)))
            try:
                drop(root, choice)
                break
            except Killed:
                pass
        views = {key: open_cache(root).views(key) for key in open_cache(root).contents}
        assert views in (CHOICES[name][1], CHOICES["no view"][1])
        unfinished = [problem for problem in verify(root) if "a killed writer left it" not in problem.what]
        assert unfinished == [], f"call {fail_at}"
        with create_or_open(root, tiny.identity, tiny.layout):
            pass
        assert verify(root) == []
        if views == CHOICES[name][1]:
            assert tiny.tree(root) == tiny.tree(wanted)
        tiny.session(root)
        assert tiny.tree(root) == tiny.tree(sound), f"call {fail_at}"
    assert calls < fail_at < 199


def test_what_cannot_be_dropped_is_refused(copy, tiny):
    before = tiny.tree(copy)
    for choice, message in (
        (lambda: Choice(), "nothing to drop is named"),
        (lambda: Choice(keep_views=0), "--keep-views is at least 1, not 0"),
        (lambda: Choice(keys=["logitz"]), "unknown key of this cache 'logitz'; did you mean 'logits'"),
        (lambda: Choice(fits=["srm"]), "unknown fit of this cache 'srm'"),
        (lambda: Choice(fits=["srm.stage1"]), "stage1.srm4 was encoded with the fit srm.stage1; drop it too"),
        (lambda: Choice(fits=["srm.stage1"], keep_views=1), "stage1.srm4 was encoded with the fit srm.stage1"),
    ):
        with pytest.raises(UsageError, match=message):
            drop(copy, choice())
    assert tiny.tree(copy) == before
    with pytest.raises(UsageError, match="no cache at"):
        drop(copy / "train", Choice(keep_views=1))
    assert tiny.tree(copy) == before


def test_nothing_is_dropped_while_somebody_writes(copy, tiny):
    with (
        create_or_open(copy, tiny.identity, tiny.layout),
        pytest.raises(ResourceError, match="another process is writing into"),
    ):
        drop(copy, Choice(keep_views=1))
