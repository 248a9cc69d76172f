"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from a local folder, in the published binary or python form.

Images are 32x32 RGB, stored channel by channel; CIFAR-100 is read with its 100 fine labels. Where both forms are
there, the binary one is taken: it needs no unpickling. Left out: downloading, and the 20 coarse labels.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from kdtool.data import unpickle
from kdtool.data.dataset import Channels, Dataset, Part, content_digest
from kdtool.data.published import damaged
from kdtool.errors import UsageError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Form:
    """One published form: its archive and folder, the files of the two parts and of the class names.

    read_part, read_names: what reads these files.
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    read_part: Callable[[Path], Part]
    read_names: Callable[[Path], tuple[str, ...]]

    @property
    def files(self) -> tuple[str, ...]:
        """All files that must be there."""
        return (*self.train, self.test, self.names)


def read_binary(path: Path, label_bytes: int) -> Part:
    """A file of records: label_bytes labels, of which the last one counts, then 3,072 pixels."""
    content = np.fromfile(path, dtype=np.uint8)
    record = label_bytes + PIXELS
    if not content.size or content.size % record:
        raise damaged(path, f"{content.size:,} bytes are not whole records of {record:,} bytes")
    records = content.reshape(-1, record)
    images = np.ascontiguousarray(records[:, label_bytes:]).reshape(-1, 3, 32, 32)
    return Part(images, records[:, label_bytes - 1].astype(np.int64))


def read_python(path: Path, labels_key: str) -> Part:
    """A pickled dictionary with `data`, an array (n, 3072) of uint8, and n labels in a list."""
    entries = unpickle.load(path)
    pixels, labels = entries.get("data"), entries.get(labels_key)
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (PIXELS,)):
        raise damaged(path, f"'data' is not an array of uint8 with {PIXELS:,} pixels in a row")
    if not (isinstance(labels, list) and all(type(label) is int and 0 <= label < 256 for label in labels)):
        raise damaged(path, f"{labels_key!r} is not a list of labels")
    if not 0 < len(labels) == len(pixels):
        raise damaged(path, f"it has {len(pixels):,} images and {len(labels):,} labels")
    return Part(np.array(pixels, order="C").reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64))


def read_text_names(path: Path) -> tuple[str, ...]:
    """One class name a line; the published files end in empty lines."""
    return tuple(line.strip() for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip())


def read_python_names(path: Path, key: str) -> tuple[str, ...]:
    """The class names of the python form's meta file."""
    names = unpickle.load(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise damaged(path, f"{key!r} is not a list of names")
    return tuple(name if isinstance(name, str) else name.decode("utf-8", errors="replace") for name in names)


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10_FORMS = (
    Form(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        train=tuple(f"{name}.bin" for name in BATCHES),
        test="test_batch.bin",
        names="batches.meta.txt",
        read_part=partial(read_binary, label_bytes=1),
        read_names=read_text_names,
    ),
    Form(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=BATCHES,
        test="test_batch",
        names="batches.meta",
        read_part=partial(read_python, labels_key="labels"),
        read_names=partial(read_python_names, key="label_names"),
    ),
)
CIFAR100_FORMS = (
    Form(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        read_part=partial(read_binary, label_bytes=2),
        read_names=read_text_names,
    ),
    Form(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        names="meta",
        read_part=partial(read_python, labels_key="fine_labels"),
        read_names=partial(read_python_names, key="fine_label_names"),
    ),
)


def cifar10(folder: Path) -> Dataset:
    """CIFAR-10 from `folder`, which is the folder of one form or holds it. Raises UsageError, DamageError."""
    return read("cifar10", CIFAR10_FORMS, folder, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def cifar100(folder: Path) -> Dataset:
    """CIFAR-100 from `folder`, which is the folder of one form or holds it. Raises UsageError, DamageError."""
    return read("cifar100", CIFAR100_FORMS, folder, 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def read(name: str, forms: tuple[Form, ...], folder: Path, classes: int, mean: Channels, std: Channels) -> Dataset:
    """The data set from the first form that is complete in `folder`."""
    form, place = find(name, forms, folder)
    paths = [place / file for file in form.train]
    train = joined([read_labelled(form, path, classes) for path in paths], paths)
    test = read_labelled(form, place / form.test, classes)
    class_names = form.read_names(place / form.names)
    if len(class_names) != classes:
        raise damaged(place / form.names, f"it names {len(class_names)} classes, {classes} are expected")
    return Dataset(name, train, test, classes, class_names, mean, std, flip=True, digest=content_digest(train, test))


def find(name: str, forms: tuple[Form, ...], folder: Path) -> tuple[Form, Path]:
    """The first form all of whose files are in `folder` or in the form's own folder below it, and where they are."""
    for form in forms:
        for place in (folder / form.folder, folder):
            if all((place / file).is_file() for file in form.files):
                return form, place
    expected = " or ".join(f"{form.folder}/ with {', '.join(form.files)}" for form in forms)
    state = "" if folder.is_dir() else " (there is no such folder)"
    raise UsageError(
        f"no complete {name} in {folder.absolute()}{state}; expected there: {expected}; {_repair(forms, folder)}"
    )


def _repair(forms: tuple[Form, ...], folder: Path) -> str:
    """What to do where the files are missing: the command that unpacks an archive that is there, else which to get."""
    for form in forms:
        if (folder / form.archive).is_file():
            command = shlex.join(["kdtool", "data", "unpack", str(folder / form.archive), "--into", str(folder)])
            return f"unpack the published archive that lies there with `{command}`"
    archives = " or ".join(form.archive for form in forms)
    return f"unpack the published archive {archives} there, or name the folder that holds it"


def read_labelled(form: Form, path: Path, classes: int) -> Part:
    """The images of one file, all labels of which are below `classes`."""
    part = form.read_part(path)
    if part.labels.max() >= classes:
        raise damaged(path, f"it has the label {part.labels.max()}, the highest is {classes - 1}")
    return part


def joined(parts: list[Part], paths: list[Path]) -> Part:
    """One part from the files of the train part, which all hold the same number of images."""
    for part, path in zip(parts, paths, strict=True):
        if len(part.labels) != len(parts[0].labels):
            raise damaged(path, f"it holds {len(part.labels):,} images, {paths[0].name} {len(parts[0].labels):,}")
    if len(parts) == 1:
        return parts[0]
    return Part(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))
