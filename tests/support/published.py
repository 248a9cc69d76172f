"""Tiny copies of published data sets in their exact layouts. Every picture has its own colour."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from kdtool import data
from kdtool.errors import DamageError

COLOURS = itertools.count()


def picture(path: Path, size: tuple[int, int] = (9, 7)) -> None:
    """A picture of a colour that no other has; size: width and height."""
    number = next(COLOURS)
    pixels = np.full((size[1], size[0], 3), (number * 37 % 256, number // 7 % 256, number * 11 % 256), np.uint8)
    pixels[0, 0] = 255 - pixels[0, 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def text(path: Path, *rows: str, end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(row + end for row in rows).encode())


def table(rows: Sequence[Mapping[str, Any]], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """MATLAB's array of structs."""
    found = np.empty(len(rows), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        found[place] = tuple(row.values())
    return found.reshape(shape)


def cells(names: Sequence[str]) -> npt.NDArray[Any]:
    """MATLAB's (1, n) array of cells."""
    found = np.empty((1, len(names)), dtype=object)
    found[0] = names
    return found


def matlab(path: Path, **variables: Any) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def stl10(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """What the files show: images (n, 3, 96, 96) by part, and labels from 0."""
    place = folder / "stl10_binary"
    place.mkdir(parents=True)
    rng = np.random.default_rng(10)
    shown = {}
    for part, count in (("train", 12), ("test", 5), ("unlabeled", 3)):
        shown[part] = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        by_columns = np.stack([[channel.T for channel in image] for image in shown[part]])
        (place / f"{part}_X.bin").write_bytes(by_columns.tobytes())
        if part != "unlabeled":
            shown[f"{part} labels"] = rng.integers(0, 10, count).astype(np.uint8)
            (place / f"{part}_y.bin").write_bytes(bytes(label + 1 for label in shown[f"{part} labels"].tolist()))
    names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    text(place / "class_names.txt", *names)
    text(place / "fold_indices.txt", "0 1 2 ")
    return shown


TINY = ("n02124075", "n04067472", "n01443537")  # not sorted, as published


def tiny_imagenet(folder: Path) -> Path:
    place = folder / "tiny-imagenet-200"
    text(place / "wnids.txt", *TINY)
    words = ("n00001740\tentity", "n01443537\tgoldfish, Carassius auratus", "n02124075\tEgyptian cat")
    text(place / "words.txt", *words, "n04067472\treel")
    for wnid in TINY:
        for number in (0, 1, 10, 2):
            picture(place / f"train/{wnid}/images/{wnid}_{number}.JPEG", (64, 64))
        text(place / f"train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t10\t63\t58")
    rows = []
    for number in range(5):
        picture(place / f"val/images/val_{number}.JPEG", (64, 64))
        rows.append(f"val_{number}.JPEG\t{TINY[(number + 1) % 3]}\t0\t32\t44\t62")
    text(place / "val/val_annotations.txt", *rows)
    picture(place / "test/images/test_0.JPEG", (64, 64))
    return place


WNIDS = ("n01440764", "n01443537", "n02085620")
TRUTH = (2, 1, 3, 2)  # classes of the validation pictures, numbered as the development kit does
IDS = {1: "n02085620", 2: "n01440764", 3: "n01443537"}
WORDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus", "n02085620": "Chihuahua"}


def imagenet(folder: Path, flat: bool) -> Path:
    place = folder / "imagenet"
    for wnid in WNIDS:
        for number in (18, 7, 100):
            picture(place / f"train/{wnid}/{wnid}_{number}.JPEG")
    for row, number in enumerate(TRUTH, start=1):
        name = f"ILSVRC2012_val_{row:08d}.JPEG"
        picture(place / "val" / ("" if flat else IDS[number]) / name)
    if flat:
        devkit(place)
    return place


def devkit(place: Path, ids: Mapping[int, str] = IDS, truth: Sequence[int] = TRUTH) -> None:
    rows = [(number, wnid, WORDS[wnid], 0, np.zeros((0, 0))) for number, wnid in ids.items()]
    rows.append((1001, "n00001740", "entity", 2, np.array([[1.0, 2.0]])))
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    structs = [
        dict(zip(names, (float(number), wnid, words, "a thing", float(count), children, 0.0), strict=True))
        for number, wnid, words, count, children in rows
    ]
    data = place / "ILSVRC2012_devkit_t12" / "data"
    matlab(data / "meta.mat", synsets=table(structs, (len(structs), 1)))
    text(data / "ILSVRC2012_validation_ground_truth.txt", *map(str, truth))


FLOWERS = {"trnid": (3, 9, 1), "valid": (8, 2), "tstid": (4, 10, 5, 7, 6)}
FLOWER_LABELS = (77, 1, 102, 5, 5, 1, 77, 3, 3, 102)


def flowers102(folder: Path, own: str = "flowers102") -> Path:
    place = folder / own
    for number in range(1, 11):
        picture(place / f"jpg/image_{number:05d}.jpg")
    matlab(place / "imagelabels.mat", labels=np.array([FLOWER_LABELS], dtype=np.uint8))
    matlab(place / "setid.mat", **{key: np.array([value], dtype=np.uint16) for key, value in FLOWERS.items()})
    return place


BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")


def cub200(folder: Path) -> Path:
    place = folder / "CUB_200_2011"
    rows = [(number, BIRDS[number % 3], number % 3 + 1, int(number % 4 != 0)) for number in range(1, 13)]
    for number, name, _, _ in rows:
        picture(place / f"images/{name}/{name[4:]}_{number:04d}.jpg")
    text(place / "images.txt", *(f"{number} {name}/{name[4:]}_{number:04d}.jpg" for number, name, _, _ in rows))
    text(place / "image_class_labels.txt", *(f"{number} {label}" for number, _, label, _ in rows))
    text(place / "train_test_split.txt", *(f"{number} {train}" for number, _, _, train in rows))
    text(place / "classes.txt", *(f"{number} {name}" for number, name in enumerate(BIRDS, start=1)))
    return place


CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012")
BOX = {"bbox_x1": 1.0, "bbox_y1": 1.0, "bbox_x2": 5.0, "bbox_y2": 6.0}


def stanford_cars(folder: Path, counts: tuple[int, int] = (5, 4)) -> Path:
    place = folder / "stanford_cars"
    for part, count in zip(("train", "test"), counts, strict=True):
        rows = []
        for number in range(1, count + 1):
            picture(place / f"cars_{part}/{number:05d}.jpg")
            rows.append({**BOX, "class": float(number * 2 % 3 + 1), "fname": f"{number:05d}.jpg"})
        file = "devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        matlab(place / file, annotations=table(rows, (1, count)))
    matlab(place / "devkit/cars_meta.mat", class_names=cells(CARS))
    return place


def stanford_cars_in_one(folder: Path) -> Path:
    place = folder / "stanford_cars"
    rows = []
    for number in range(1, 9):
        name = f"car_ims/{number:06d}.jpg"
        picture(place / name)
        rows.append({"relative_im_path": name, **BOX, "class": float((number - 1) // 3 + 1), "test": number % 2})
    matlab(place / "cars_annos.mat", annotations=table(rows, (1, 8)), class_names=cells(CARS))
    return place


def indoor67(folder: Path) -> Path:
    place = folder / "indoor67"
    rooms = ("winecellar", "airport_inside", "children_room")
    for room in rooms:
        for number in range(4):
            picture(place / f"Images/{room}/{room}_{number:04d}.jpg")
    for part, numbers in (("Train", (2, 0)), ("Test", (3,))):
        names = [f"{room}/{room}_{number:04d}.jpg" for room in rooms for number in numbers]
        text(place / f"{part}Images.txt", *names, end="\r\n")
    return place


def pubfig83(folder: Path, people: int = 83) -> Path:
    place = folder / "pubfig83"
    for person in range(people):
        for number in range(3 + person % 3):
            picture(place / f"Person {person:02d}/{number + 1}.jpg")
    return place


def refused(name: str, folder: Path, *words: str) -> None:
    """The data set is damaged, and the message says all these words."""
    with pytest.raises(DamageError) as caught:
        data.load(name, folder)
    for word in words:
        assert word in str(caught.value)
