"""Teacher, cache and student on pictures in files: random boxes of any size, the same ones for everybody."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stopping import StopAfter
from telling import Told

from kdtool import data, files
from kdtool.data.augment import normalise
from kdtool.data.preparation import at_size
from kdtool.data.resized_crop import ResizedCrop
from kdtool.engine import distill as stage
from kdtool.engine.distill import DistillConfig, distill
from kdtool.engine.extract import extract
from kdtool.engine.folder import Workspace
from kdtool.engine.optim import recipe
from kdtool.engine.prepare import ExtractConfig, prepare
from kdtool.engine.teach import TeachConfig, teach
from kdtool.engine.trained import load_network
from kdtool.engine.workspace import open_teacher_cache, read_record
from kdtool.errors import DamageError, IdentityError, Stopped, UsageError
from kdtool.methods import method
from kdtool.models import large_for
from kdtool.progress import Silent, StopRequest
from kdtool.targets import CLEAN

PLAN = replace(recipe("kda"), epochs=2, batch=16, learning_rate=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes and many sizes, of which a part is held out by their publisher."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    for part, count in (("train", 16), ("validation", 4), ("test", 8)):
        for label, name in enumerate(("cat", "dog", "owl")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                size = (*draw.integers(12, 48, 2), 3)
                pixels = draw.integers(0, 100, size) + np.array([50, 90, 150])[(label + np.arange(3)) % 3]
                path = root / part / name / f"{number}.{'png' if number % 2 else 'jpg'}"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def taught(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    config = TeachConfig(
        "folder", "resnet8", PLAN, str(folder), student="resnet8", views=3, precision="float32", image_size=16
    )
    teach(Workspace(work), config, Silent(), StopRequest())
    return work


def extracted(work: Path, **options: object) -> Workspace:
    workspace = Workspace.open(work)
    asked = ExtractConfig(batch=16, block=32, without=("srm",), **options)  # type: ignore[arg-type]
    extract(workspace.cache, prepare(workspace, asked), Silent(), StopRequest())
    return workspace


@pytest.fixture(scope="module")
def cached(taught: Path) -> Workspace:
    return extracted(taught, dtypes={"": "float32"})


def test_the_split_of_the_publication_is_kept(cached: Workspace) -> None:
    cache = open_teacher_cache(cached.cache)
    assert cache.layout.samples == {"train": 48, "train_clean": 48, "validation": 12, "test": 24}
    assert cache.identity["split"]["rule"] == {"validation": 12, "few_shot": None, "seed": 0, "held": "published"}
    assert cache.identity["preprocessing"]["resize"] == "crop"
    assert set(cache.identity["preprocessing"]["decoder"]) >= {"pillow"}
    assert cache.identity["augmentation"]["name"] == "ResizedCrop"
    assert cache.identity["data"]["image_shape"] == [3, 16, 16]


def test_the_cache_holds_what_the_teacher_says_of_the_boxes(cached: Workspace, folder: Path) -> None:
    """Every picture decoded and cropped alone, the teacher run on it in batches of the grid."""
    cache, record = open_teacher_cache(cached.cache), read_record(cached.teacher)
    found = data.load("folder", folder)
    rule = ResizedCrop(size=16, seed=0)
    job = prepare(cached, ExtractConfig(batch=16, block=32, without=("srm",)))
    for view in (0, 2):
        boxes = rule.parameters(np.arange(60), view, found.train.images.sizes)  # type: ignore[union-attr]
        rows = cache.index("train")[16:32]
        pixels = np.stack([rule.apply(found.train.images[int(row)], boxes[row]) for row in rows])  # type: ignore[arg-type]
        images = (torch.from_numpy(pixels).float() / 255 - torch.tensor(record.mean).view(3, 1, 1)) / torch.tensor(
            record.std
        ).view(3, 1, 1)
        with torch.no_grad():
            logits = job.model.eval()(images).numpy()
        assert np.array_equal(cache.array("train", "logits", "values").read(view)[16:32], logits)


def test_the_student_sees_the_pixels_that_the_teacher_saw(cached: Workspace) -> None:
    cache = open_teacher_cache(cached.cache)
    held = stage.data_of(cached, cache, None, Silent())
    job = prepare(cached, ExtractConfig(batch=16, block=32, without=("srm",)))
    ours = stage.labelled(held.train, cache.index("train"), stage.seen_by(cache).rule(), held, torch.device("cpu"))
    for view in range(3):
        assert torch.equal(ours.images.view(np.arange(48), view), job.train.view(np.arange(48), view))


def test_distilling_goes_on_where_it_was_stopped(cached: Workspace) -> None:
    results = []
    for name in ("undisturbed", "stopped"):
        config = DistillConfig("resnet8", (method("kd"),), PLAN, name=name, precision="float32")
        while True:
            try:
                stop = StopRequest() if name == "undisturbed" else StopAfter(2)
                results.append(distill(cached, config, Silent(), stop))
                break
            except Stopped:
                continue
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["validation_accuracy"] is not None


def test_another_size_of_the_students_images_is_not_another_cache(cached: Workspace, taught: Path) -> None:
    """A second extract of the same pictures adds nothing."""
    before = {path: path.stat().st_mtime_ns for path in cached.cache.rglob("*") if path.is_file()}
    extracted(taught, dtypes={"": "float32"})
    after = {path: path.stat().st_mtime_ns for path in cached.cache.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {cached.cache / "provenance.jsonl"}


def test_another_decoder_is_told_of_by_distill_and_refused_by_extract(
    cached: Workspace, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    monkeypatch.setattr("kdtool.data.preparation.decoder", lambda: {"pillow": "1.0"})
    stage.data_of(cached, open_teacher_cache(cached.cache), None, told)
    assert "and here it is pillow 1.0: single pixels may differ" in told.notes[0]
    with pytest.raises(IdentityError, match=r"preprocessing\.decoder"):
        extracted(taught)


def test_a_picture_that_changed_is_another_data_set(folder: Path, taught: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    files_of = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files_of:
        place = other / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    prepare(Workspace.open(taught), ExtractConfig(data_folder=str(other), batch=16, block=32))
    Image.new("RGB", (20, 20)).save(other / "train" / "cat" / "1.png")
    with pytest.raises(IdentityError, match="has other content"):
        prepare(Workspace.open(taught), ExtractConfig(data_folder=str(other), batch=16, block=32))
    (other / "train" / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(DamageError, match=r"1 picture in .* cannot be used: train/cat/1\.png is empty"):
        prepare(Workspace.open(taught), ExtractConfig(data_folder=str(other), batch=16, block=32))


@pytest.mark.parametrize("crop", ["resized", "pad"])
def test_a_network_reads_pictures_as_the_test_part_was_seen(
    crop: str, taught: Path, folder: Path, tmp_path: Path
) -> None:
    work = taught
    if crop == "pad":
        plan = replace(PLAN, epochs=1)
        config = TeachConfig("folder", "resnet8", plan, str(folder), image_size=16, crop="pad", pad=2)
        teach(Workspace(tmp_path), config, Silent(), StopRequest())
        work = tmp_path
    job = prepare(Workspace.open(work), ExtractConfig(batch=16, block=32, without=("srm",)))
    network = load_network(work / "teacher.safetensors")
    names = sorted((folder / "test").glob("*/*"))
    found = network.read(*names)
    assert found.shape == (24, 3, 16, 16)
    seen = {row.numpy().tobytes() for row in job.parts["test"].view(np.arange(24), CLEAN)}
    assert len(seen) == 24
    assert {row.numpy().tobytes() for row in normalise(found, network.mean, network.std)} == seen
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(DamageError, match=r"words\.png cannot be read as a picture"):
        network.read(tmp_path / "words.png")
    with pytest.raises(UsageError, match="no pictures are named"):
        network.read()
    with pytest.raises(UsageError, match="there is no picture"):
        network.read(names[0], tmp_path / "none.png")


def test_networks_for_small_images_are_told_of_where_images_are_large(folder: Path, tmp_path: Path) -> None:
    plan, told = replace(PLAN, epochs=1), Told()
    for name, size, said in (("resnet8", 64, True), ("resnet8", 63, False), ("tv:resnet18", 512, False)):
        assert bool(large_for(name, (3, size, 32))) is said
    config = TeachConfig("folder", "resnet8", plan, str(folder), student="resnet8", views=2, image_size=64)
    teach(Workspace(tmp_path), config, told, StopRequest())
    few = "resnet8 is made for images of 32x32; at 64x64 it takes many times the arithmetic"
    assert sum(few in note for note in told.notes) == 1
    workspace = extracted(tmp_path)
    distill(workspace, DistillConfig("resnet8", (), plan), told, StopRequest())
    assert sum(few in note for note in told.notes) == 2


def test_pictures_in_memory_are_padded_and_cropped(folder: Path, tmp_path: Path) -> None:
    config = TeachConfig("folder", "resnet8", PLAN, str(folder), student="resnet8", image_size=12, crop="pad", pad=2)
    teach(Workspace(tmp_path), config, Silent(), StopRequest())
    record = read_record(tmp_path / "teacher.safetensors")
    assert record.image_shape == (3, 12, 12)
    assert record.augmentation["pad"] == 2
    workspace = extracted(tmp_path, views=50)  # of 2 * 5 * 5 placements
    cache = open_teacher_cache(workspace.cache)
    assert cache.views("logits") == 50
    assert cache.identity["preprocessing"]["resize"] == "squash"
    distill(workspace, DistillConfig("resnet8", (), PLAN), Silent(), StopRequest())


def test_pictures_that_must_not_be_mirrored_never_are(folder: Path, tmp_path: Path) -> None:
    """A crop that has one place and no mirror image is one view, which is then the default of extract."""
    config = TeachConfig(
        "folder", "resnet8", PLAN, str(folder), student="resnet8", image_size=12, crop="pad", pad=0, flip=False
    )
    teach(Workspace(tmp_path), config, Silent(), StopRequest())
    assert read_record(tmp_path / "teacher.safetensors").augmentation["flip"] is False
    workspace = Workspace.open(tmp_path)
    assert workspace.settings["views"] == 1
    with pytest.raises(UsageError, match="--views 2: this augmentation has 1 different placement"):
        extracted(tmp_path, views=2)


def test_all_views_of_random_boxes_do_not_exist(taught: Path) -> None:
    with pytest.raises(UsageError, match="--views all: there is no end"):
        prepare(Workspace.open(taught), ExtractConfig(views=-1, batch=16, block=32))


def test_few_pictures_of_each_class_keep_their_boxes(taught: Path, cached: Workspace, tmp_path: Path) -> None:
    workspace = replace(cached, settings={**cached.settings, "cache": str(tmp_path / "few.zarr")})
    asked = ExtractConfig(batch=16, block=32, without=("srm",), few_shot=2, dtypes={"": "float32"})
    job = prepare(workspace, asked)
    extract(workspace.cache, job, Silent(), StopRequest())
    few, whole = open_teacher_cache(workspace.cache), open_teacher_cache(cached.cache)
    assert few.layout.samples["train"] == 6
    assert few.layout.samples["validation"] == 12
    places = np.searchsorted(whole.index("train"), few.index("train"))
    full = prepare(cached, ExtractConfig(batch=16, block=32, without=("srm",)))
    assert torch.equal(job.train.view(np.arange(6), 1), full.train.view(places, 1))


def test_what_a_teacher_was_is_in_its_record(taught: Path, folder: Path) -> None:
    record = files.read_json(taught / "teacher.json", "")
    assert record["augmentation"] == ResizedCrop(size=16).rule() | {"scale": [0.08, 1.0], "ratio": [0.75, 4 / 3]}
    assert record["taps"] == {}
    found = at_size(data.load("folder", folder), ResizedCrop(size=16), (3, 16, 16), Silent())
    assert found.digest == record["data_digest"]
