"""Fits give the same bytes whether the arrays are there or the teacher runs again, and equal naive means."""

import shutil
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from stopping import StopAfter
from telling import Told

from kdtool.cache import create_or_open, open_cache
from kdtool.engine import checkpoint
from kdtool.engine import extract as stage
from kdtool.engine.extract import extract
from kdtool.engine.extraction import Extraction
from kdtool.engine.fitting import InTurn
from kdtool.engine.folder import Workspace
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.errors import Stopped
from kdtool.methods import method
from kdtool.progress import Silent, StopRequest
from kdtool.targets import CLEAN


def job_in(taught: Path, folder: Path, views: int) -> tuple[Workspace, Extraction]:
    shutil.copytree(taught, folder)
    workspace = Workspace.open(folder)
    kmeans = method("kda").with_options({"landmarks": "kmeans", "layers": "before_fc,conv4_x"})
    asked = ExtractConfig(batch=16, block=32, views=views, fit_views=2, methods=(kmeans,), students=("resnet8",))
    return workspace, prepare(workspace, asked)


def test_fits_without_arrays_give_the_same_bytes(taught: Path, tmp_path: Path) -> None:
    after, job = job_in(taught, tmp_path / "after", 3)
    extract(after.cache, job, Silent(), StopRequest())
    before, job = job_in(taught, tmp_path / "before", 3)
    with create_or_open(before.cache, dict(job.identity), job.layout) as writer:
        stage._Worker(job, writer, Silent(), StopRequest(), 1e9).fit(job.fits)
    for fit in job.fits:
        first, second = open_cache(after.cache).fitted(fit.key), open_cache(before.cache).fitted(fit.key)
        assert first.keys() == second.keys()
        assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_learning_dictionaries_and_paraphrasers_leaves_the_teacher_as_it_is(taught: Path, tmp_path: Path) -> None:
    """No buffer of a BatchNorm moves and no mode or gradient is left behind, neither by the fits nor by the arrays."""
    shutil.copytree(taught, tmp_path / "work")
    workspace = Workspace.open(tmp_path / "work")
    methods = (method("srm").with_options({"passes": "3"}), method("ft").with_options({"passes": "2"}))
    asked = ExtractConfig(batch=16, views=2, fit_views=2, methods=methods, students=("resnet8",))
    job = prepare(workspace, asked)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    buffers = [name for name, _ in job.model.named_buffers()]
    assert len(buffers) > 20
    extract(workspace.cache, job, Silent(), StopRequest())
    after = job.model.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert not job.model.training
    assert all(parameter.grad is None for parameter in job.model.parameters())


def test_centres_are_the_means_of_the_stored_rows(taught: Path, tmp_path: Path) -> None:
    workspace, job = job_in(taught, tmp_path / "work", 3)
    extract(workspace.cache, job, Silent(), StopRequest())
    cache = open_cache(workspace.cache)
    labels = cache.labels("train")
    for key in ("logits", "before_fc"):
        centres = cache.fitted(f"centres.{key}")
        for view in range(2):
            rows = cache.array("train", key, "values").read(view).astype(np.float64)
            for label in range(4):
                expected = sum(row for row, of in zip(rows, labels, strict=True) if of == label)
                expected = expected / int((labels == label).sum())
                np.testing.assert_allclose(centres["views"][view, label], expected, rtol=1e-6)
        clean = cache.array("train_clean", key, "values").read(0).astype(np.float64)
        np.testing.assert_allclose(centres["clean"][1], clean[labels == 1].mean(0), rtol=1e-6)


def test_what_a_killed_extract_left_of_its_fits_is_removed(taught: Path, tmp_path: Path) -> None:
    workspace, job = job_in(taught, tmp_path / "work", 2)
    extract(workspace.cache, job, Silent(), StopRequest())
    scratch = workspace.cache / "scratch"
    (scratch / "spool").mkdir(parents=True)
    (scratch / "spool" / "0.stage1.map.values").write_bytes(b"rows")
    checkpoint.save_state(scratch, {"a/b": torch.zeros(2)}, {"fits": ["a"], "done": 3})
    before = open_cache(workspace.cache).manifest.files
    extract(workspace.cache, job, Silent(), StopRequest())
    assert not scratch.exists()
    assert open_cache(workspace.cache).manifest.files == before


@pytest.mark.parametrize("how", ["flipped", "lost", "no JSON"])
def test_a_damaged_state_of_fits_is_told_of_and_they_begin_anew(taught: Path, tmp_path: Path, how: str) -> None:
    whole, job = job_in(taught, tmp_path / "whole", 1)
    extract(whole.cache, job, Silent(), StopRequest())
    workspace, job = job_in(taught, tmp_path / "work", 1)
    scratch = workspace.cache / "scratch"
    while not (scratch / "state.json").exists():
        with pytest.raises(Stopped):
            extract(workspace.cache, job, Silent(), StopAfter(2))
    (state,) = scratch.glob("state-*.safetensors")
    if how == "flipped":
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(content)
    elif how == "lost":
        state.unlink()
    else:
        (scratch / "state.json").write_text("{")
    told = Told()
    extract(workspace.cache, job, told, StopRequest())
    assert any("fits begin anew" in note for note in told.notes)
    assert open_cache(workspace.cache).manifest.files == open_cache(whole.cache).manifest.files


def test_images_of_a_pass_are_asked_for_together_and_are_those_of_every_batch() -> None:
    class Asked:
        """Images that are their own positions and view; counts how often a row of them was begun, and how many came."""

        begun, made = 0, 0

        def views(self, requests: Iterable[tuple[np.ndarray, int]]) -> Generator[torch.Tensor]:
            self.begun += 1
            for positions, view in requests:
                self.made += 1
                yield torch.tensor([*positions, view])

    images = Asked()
    turn = InTurn(images, 10, 4)  # type: ignore[arg-type]
    told = [(view, start, turn.at(view, start).tolist()) for view in (0, CLEAN) for start in (0, 4, 8)]
    for view, start, found in told:
        assert found == [*range(start, min(start + 4, 10)), view]
    assert (images.begun, images.made) == (2, 6)
    assert turn.at(CLEAN, 4).tolist() == [4, 5, 6, 7, CLEAN]  # as after a batch that the spool held
    assert turn.at(CLEAN, 8).tolist() == [8, 9, CLEAN]
    assert images.begun == 3
    turn.close()
