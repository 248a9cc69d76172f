"""The options that make a cache again as it is."""

import shutil
from pathlib import Path

import pytest
from made_up import PLAN, run_extract

from kdtool.cache import open_cache
from kdtool.engine.configuration import Values, extract_config
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.lacking import cache_words
from kdtool.engine.prepare import prepare
from kdtool.engine.teach import TeachConfig, teach
from kdtool.methods import method


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "--batch 16 --block 32"),
        ({"block": None, "fit_views": 2, "seed": 3}, "--seed 3 --batch 16 --fit-views 2"),
        (
            {"dtypes": {"logits": "float32"}, "few_shot": 5},
            "--validation 16 --few-shot 5 --batch 16 --block 32 --dtype logits=float32",
        ),
    ],
)
def test_the_words_of_a_cache_make_it_again(
    changes: dict[str, object], words: str, taught: Path, tmp_path: Path
) -> None:
    first = Path(shutil.copytree(taught, tmp_path / "first"))
    run_extract(first, methods=(method("kd"),), students=("resnet8",), views=1, **changes)
    held = open_cache(first / "cache.zarr")
    found = cache_words(held, ())
    assert " ".join(found) == words
    table = {word[2:].replace("-", "_"): value for word, value in zip(found[::2], found[1::2], strict=True)}
    values = {name: [value] if name == "dtype" else int(value) for name, value in table.items()}
    again = Workspace.open(shutil.copytree(taught, tmp_path / "again"))
    asked = extract_config(Values("extract", {"for": ["kd"], "views": 1, **values}, "words"), "resnet8")
    extract(again.cache, prepare(again, asked))
    made = open_cache(again.cache)
    assert made.identity_digest == held.identity_digest
    assert made.manifest.files == held.manifest.files


def test_the_default_folder_of_data_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    teach(Workspace(Path("work")), TeachConfig("made_up", "resnet8", PLAN))
    assert Workspace.open("work").settings["data_folder"] == str(tmp_path / "data")
