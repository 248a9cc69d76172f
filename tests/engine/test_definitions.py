"""What a cache holds under a key is what is asked for under it, by definition and not by name alone."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import run_extract
from stopping import StopAfter

from kdtool.cache import open_cache
from kdtool.engine import extract as extracting
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.lacking import check_fit, check_target
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.recorded import recorded_fits, recorded_targets
from kdtool.engine.runs import environment
from kdtool.errors import IdentityError, Stopped
from kdtool.methods import method
from kdtool.methods.maps import WholeMap
from kdtool.progress import Silent, StopRequest
from kdtool.workflows.plan import plan

CPU = torch.device("cpu")


def test_fits_that_were_begun_with_another_dtype_begin_anew(taught: Path, tmp_path: Path) -> None:
    srm = method("srm").with_options({"passes": "4", "layers": "stage3"})

    def run(folder: Path, stop: StopRequest, dtypes: dict[str, str]) -> None:
        workspace = Workspace.open(folder)
        asked = ExtractConfig((srm,), ("resnet8",), views=1, batch=16, block=48, fit_views=2, dtypes=dtypes)
        extract(workspace.cache, prepare(workspace, asked), Silent(), stop, save_seconds=0)

    once, mixed = (Path(shutil.copytree(taught, tmp_path / name)) for name in ("once", "mixed"))
    run(once, StopRequest(), {})
    with pytest.raises(Stopped):
        run(mixed, StopAfter(8), {"": "float32"})
    assert list((mixed / "cache.zarr/scratch").iterdir())
    run(mixed, StopRequest(), {})
    first, second = (open_cache(folder / "cache.zarr").manifest for folder in (once, mixed))
    assert first.files == second.files


def test_a_key_and_a_fit_of_another_definition_are_refused(complete: Path) -> None:
    cache = open_cache(Workspace.open(complete).cache)
    fits, _ = recorded_fits(cache)
    targets, _ = recorded_targets(cache, fits)
    for target in targets.values():
        check_target(cache, target)
    for fit in fits.values():
        check_fit(cache, fit)
    logits = targets["logits"]
    changes = {"encoder.name": {"encode": WholeMap("after_fc")}, "version": {"version": 9}, "taps": {"taps": ("stem",)}}
    for field, change in changes.items():
        with pytest.raises(
            IdentityError, match=f"holds 'logits' with another definition:\n(.*\n)*  {field}.*: the cache has"
        ):
            check_target(cache, replace(logits, **change))
    centres = fits["centres.logits"]
    object.__setattr__(centres, "version", 9)
    with pytest.raises(IdentityError, match="version: the cache has 1, wanted is 9"):
        check_fit(cache, centres)


@pytest.mark.parametrize(
    ("name", "value"), [("device_type", "cuda"), ("torch", "2.10.0"), ("memory_format", "contiguous_format")]
)
def test_bits_of_two_kinds_are_not_mixed_unasked(
    name: str, value: str, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(taught, tmp_path / "mixed"))
    run_extract(folder, views=1)
    before = open_cache(folder / "cache.zarr").manifest.files
    known = environment(CPU, "float32")
    monkeypatch.setattr(extracting, "environment", lambda *_: {**known, name: value})
    told = rf"was written with {name} {re.escape(known[name])}, and this is {name} {value}: .*--allow-mixed"
    with pytest.raises(IdentityError, match=told):
        run_extract(folder, views=2)
    workspace, asked = Workspace.open(folder), ExtractConfig(batch=16, block=32, views=2)
    with pytest.raises(IdentityError, match=told):
        plan(workspace, asked, prepare(workspace, asked))
    plan(workspace, accepted := replace(asked, allow_mixed=True), prepare(workspace, accepted))
    assert open_cache(folder / "cache.zarr").manifest.files == before
    run_extract(folder, views=2, allow_mixed=True)
    assert open_cache(folder / "cache.zarr").views("logits") == 2


def test_a_cache_that_names_no_memory_format_was_written_in_contiguous_memory(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(taught, tmp_path / "old"))
    known = environment(CPU, "float32")
    old = {key: value for key, value in known.items() if key != "memory_format"}
    with monkeypatch.context() as patch:
        patch.setattr(extracting, "_check_mixed", lambda _, writer: writer.provenance(old))
        run_extract(folder, views=1)
    with pytest.raises(IdentityError, match="written with memory_format contiguous_format, and this is"):
        run_extract(folder, views=2)
