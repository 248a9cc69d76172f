"""The weights of a network at some epochs of its training, kept for analyses of how it got there.

weights/<stage>-<epoch>.safetensors, counted from 0000 (before the first step) within each stage; weights/index.json
lists them in order with their SHA-256. Left out: which epochs are kept, which `Job.keep` says.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from kdtool import files
from kdtool.engine import checkpoint
from kdtool.errors import DamageError

FOLDER = "weights"


@dataclass(frozen=True)
class Kept:
    """The weights after `epoch` epochs of a stage: their file in the run's folder, and its SHA-256."""

    stage: str
    epoch: int
    file: str
    sha256: str


def keep(run: Path, stage: str, epoch: int, model: nn.Module) -> None:
    """Writes the weights and lists them; a repeated epoch takes the place of the one before."""
    name = f"{FOLDER}/{stage}-{epoch:04d}.safetensors"
    with files.explained(run / name):
        (run / FOLDER).mkdir(exist_ok=True)
    digest = checkpoint.save_weights(run / name, model)
    listed = {known.file: known for known in kept(run)} | {name: Kept(stage, epoch, name, digest)}
    files.write_json(run / FOLDER / "index.json", {"weights": [asdict(known) for known in listed.values()]})


def kept(run: Path) -> list[Kept]:
    """The weights that a run kept, in the order of its training; none where it kept none."""
    path = run / FOLDER / "index.json"
    if not path.exists():
        return []
    repair = "distil the student again into another folder"
    listed = files.read_json(path, repair, {"weights": list})["weights"]
    for record in listed:
        files.check_fields(record, {"stage": str, "epoch": int, "file": str, "sha256": str}, str(path), repair)
        if record["file"] != f"{FOLDER}/{record['stage']}-{record['epoch']:04d}.safetensors" or "/" in record["stage"]:
            raise DamageError(f"{path} names a file that is not where kdtool writes it: {record['file']}; {repair}")
    return [Kept(**{name: record[name] for name in ("stage", "epoch", "file", "sha256")}) for record in listed]
