"""What students and their teacher said of the same images: the input of every analysis, and pairs of .npy files.

Left out: students that are finished runs (compared), and what is computed from the features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtool.analysis.features import Features
from kdtool.errors import DamageError, UsageError
from kdtool.targets import canonical_tap
from kdtool.typed import check_types

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """Which students an analysis compares with their teacher, in which layers, over which images.

    students: folders of finished runs, or .npy files of features (n, d), which need `teacher` to be one too. layers:
    taps; of files the one that they hold. part: train, validation or test, un-augmented. fresh: run the teacher instead
    of reading its features from the cache. device: where networks run, "auto" for a CUDA device where there is one.
    data_folder: where the files of the data set lie, None for where `teach` found them. labels: an .npy file (n,) that
    belongs to files of features.
    """

    students: tuple[Path, ...]
    layers: tuple[str, ...] = ("before_fc", "after_fc")
    part: str = "train"
    fresh: bool = False
    device: str = "auto"
    data_folder: str | None = None
    teacher: Path | None = None
    labels: Path | None = None

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class Student:
    """One student: its features by layer, the folder that keeps results about it, and the SHA-256 of its weights."""

    features: Mapping[str, Features]
    folder: Path | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Pairs:
    """Students and teacher over the same n images; labels (n,), None where they are not known.

    source: where the teacher's features come from, layer -> words. class_names: by label; empty where not known.
    """

    part: str
    students: Mapping[str, Student]
    teacher: Mapping[str, Features]
    source: Mapping[str, str]
    labels: Labels | None = None
    class_names: tuple[str, ...] = ()

    @property
    def layers(self) -> list[str]:
        """The layers, by their canonical names."""
        return list(self.teacher)

    def of(self, layer: str) -> dict[str, Features]:
        """The students' features of a layer."""
        return {name: student.features[layer] for name, student in self.students.items()}

    def about(self, name: str, layer: str) -> dict[str, Any]:
        """What a result says of what it is about."""
        return {
            "run": name,
            "layer": layer,
            "part": self.part,
            "teacher_features": self.source[layer],
            "weights_sha256": self.students[name].sha256,
        }


def read_files(asked: Asked) -> Pairs:
    """Pairs of .npy files."""
    odd = [path for path in (*asked.students, asked.teacher) if path is None or path.suffix != ".npy"]
    if odd or not asked.students or asked.teacher is None:
        raise UsageError(
            "features in files need .npy files on both sides: `kdtool analyze ... STUDENT.npy --teacher TEACHER.npy`"
        )
    if asked.fresh or (asked.part, asked.device, asked.data_folder) != (Asked.part, Asked.device, Asked.data_folder):
        raise UsageError(
            "--fresh, --part, --device and --data-folder belong to students that are runs; files of features are taken "
            "as they are"
        )
    layer = canonical_tap(asked.layers[0]) if len(asked.layers) == 1 else "features"
    names = run_names(asked.students)
    students = {name: Student({layer: read_array(path)}) for name, path in zip(names, asked.students, strict=True)}
    labels = None if asked.labels is None else read_array(asked.labels)
    return Pairs("file", students, {layer: read_array(asked.teacher)}, {layer: f"file {asked.teacher.name}"}, labels)


def read_array(path: Path) -> npt.NDArray[Any]:
    """An .npy file as a read-only memory map; object arrays are refused, since they are pickles."""
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        objects = "Object arrays" in str(error)
        what = "it holds Python objects, which are never loaded" if objects else "it is none, or was cut"
        raise DamageError(f"{path} is no .npy file of numbers ({what}); write it with numpy.save") from None
    return found


def run_names(folders: Sequence[Path]) -> list[str]:
    """A name for each: that of the folder or file, or its whole path where two are called the same."""
    short = [path.stem if path.suffix == ".npy" else path.name for path in folders]
    return [str(path) if short.count(name) > 1 else name for name, path in zip(short, folders, strict=True)]
