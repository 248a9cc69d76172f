"""A trained network by the file of its weights, behind the preprocessing that it was trained with: pixels to logits.

Left out: weights without kdtool's record beside them (kdtool.models.weights).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdtool import files
from kdtool.data.augment import normalise
from kdtool.data.dataset import Pixels
from kdtool.data.pictures import rgb
from kdtool.data.preparation import unaugmented
from kdtool.engine import checkpoint
from kdtool.engine.job import seed_of, seeded
from kdtool.engine.keeping import kept
from kdtool.engine.workspace import Seen, answers_as, read_record, read_teacher, record_path
from kdtool.errors import DamageError, IdentityError, UsageError
from kdtool.models import create

_RESULT = {"command": str, "network": str, "weights_sha256": str, "taps": dict, "seen": dict, "seed": int}


class TrainedNetwork(nn.Module):
    """A trained network in eval mode: pixels (B, 3, H, W) of uint8 in, logits (B, classes) out.

    network: the network itself, which takes normalised images. seen: the data set as it saw it: image_shape (C, H, W),
    classes, and mean and std of each channel in units of pixel / 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, seen: Seen) -> None:
        super().__init__()
        self.network = network
        self.seen = seen
        self.register_buffer("mean", torch.tensor(seen.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(seen.std, dtype=torch.float32))
        self.eval()

    def read(self, *paths: Path | str) -> Tensor:
        """Files of pictures of any size as pixels (B, 3, H, W), brought to size as the test part was.

        UsageError for no file or one that is not there, DamageError for one that is no picture.
        """
        if not paths:
            raise UsageError("no pictures are named")
        return torch.stack([torch.from_numpy(self._pixels(Path(path))) for path in paths])

    def _pixels(self, path: Path) -> Pixels:
        if not path.is_file():
            raise UsageError(f"there is no picture {path}")
        try:
            picture = rgb(path.read_bytes())
        except Exception as error:  # noqa: BLE001 - decoders of many formats raise what they like
            raise DamageError(f"{path} cannot be read as a picture ({type(error).__name__}: {error})") from None
        return unaugmented(picture, self.seen.rule(), self.seen.image_shape)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, classes) of pixels (B, 3, H, W). UsageError for another size, or for other than uint8.

        Images of another size, or normalised ones, can be given to `network`.
        """
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != self.seen.image_shape:
            raise UsageError(
                f"images {tuple(pixels.shape)} of {pixels.dtype}; pixels from 0 to 255 are expected, "
                f"(B, {', '.join(map(str, self.seen.image_shape))}) of torch.uint8"
            )
        logits: Tensor = self.network(normalise(pixels, self.mean, self.std))
        return logits


def load_network(path: Path | str) -> TrainedNetwork:
    """The network of a file of weights, on the CPU, in eval mode, with the preprocessing that it was trained with.

    path: teacher.safetensors of a working folder, or a file of weights in the folder of a finished run of `teach` or
    `distill`: student.safetensors, student-best.safetensors, stage-*.safetensors, weights/*.safetensors. Beside it lies
    the record of the network (teacher.json or result.json). The network gives logits for pixels; see `TrainedNetwork`.

    Raises UsageError where there is no such file or no record, DamageError for content that is not what was recorded
    (of student-best alone no SHA-256 is), IdentityError for a network whose code computes something else now.
    """
    weights = Path(path)
    if weights.is_dir():
        raise UsageError(f"{path} is a folder; name a file of weights, such as {weights / 'student.safetensors'}")
    if not weights.is_file():
        raise UsageError(f"there is no file of weights {path}")
    if record_path(weights).exists():
        record = read_record(weights)
        return TrainedNetwork(read_teacher(weights, record, torch.device("cpu")), record.seen)
    return _of_run(weights)


def _of_run(weights: Path) -> TrainedNetwork:
    """The network of a file in a run's folder, or in the folder of its kept weights."""
    run = next((folder for folder in weights.absolute().parents[:2] if (folder / "result.json").exists()), None)
    if run is None:
        raise UsageError(
            f"{weights} has no record beside it, neither {record_path(weights).name} nor the result.json of a finished "
            "run; name a teacher or a student that kdtool trained"
        )
    repair = "train it again with this version of kdtool"
    result = files.read_json(run / "result.json", repair, {"command": str})
    if result["command"] not in ("teach", "distill"):
        raise UsageError(f"{run} is a run of `kdtool {result['command']}`; name one of `kdtool teach` or `distill`")
    files.check_fields(result, _RESULT, str(run / "result.json"), repair)
    seen = Seen.from_plain(result["seen"])
    network = checked_student(run, result, seen.classes)
    checkpoint.load_weights(weights, network, _digests(run, result).get(weights.absolute().relative_to(run).as_posix()))
    return TrainedNetwork(network, seen)


def checked_student(run: Path, result: Mapping[str, Any], classes: int) -> nn.Module:
    """The network of a finished run, with any weights, on the CPU.

    IdentityError where it answers otherwise than when it was trained: the code of a network that is not ours may have
    changed. An earlier kdtool kept no answer, and a run whose last weights are gone or damaged cannot be asked.
    """
    with seeded(seed_of(result)):
        network = create(str(result["network"]), classes, result.get("taps", {}))
    weights, digest, held = run / "student.safetensors", str(result["weights_sha256"]), result.get("answer")
    if held is None or not checkpoint.holds(weights, digest):
        return network
    checkpoint.load_weights(weights, network, digest)
    if not isinstance(held, list) or not all(type(value) is float for value in held):
        raise DamageError(f"{run / 'result.json'} is damaged: its answer is {held!r}; run it again into another folder")
    if not answers_as(network, Seen.from_plain(result["seen"]).image_shape, held):
        raise IdentityError(
            f"{result['network']} computes something else than when {run} was trained; restore that version of it, or "
            "train the student again into another folder"
        )
    return network


def _digests(run: Path, result: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of every file of weights in a run's folder that is recorded."""
    stages = [stage for stage in result.get("stages") or () if "weights_sha256" in stage]
    return {
        "student.safetensors": str(result["weights_sha256"]),
        **{f"stage-{stage['stage']}.safetensors": str(stage["weights_sha256"]) for stage in stages},
        **{known.file: known.sha256 for known in kept(run)},
    }
