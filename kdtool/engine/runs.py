"""The folder of a run: what was asked for, on what machine, how it went, what came out.

config.toml        the resolved configuration; `kdtool <command> --config config.toml` runs it again
environment.json   versions, device, threads
cache.json         identity of the cache that a student is trained from and digest of what it reads of it, whether the
                   teacher lives, first weights
metrics.jsonl      one line an epoch; metrics.csv holds the same table when the run has ended
events.out.tfevents.*   the same for TensorBoard, where that was asked for
state.json         the training state while the run is unfinished
student.safetensors, result.json   written last: a folder with a result is a finished run
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdtool
from kdtool import files
from kdtool.engine.events import Events
from kdtool.errors import DamageError, IdentityError, UsageError

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]

PLACES = ("run", "cache", "device", "data_folder")  # where a run lies, what it reads and where it computes
LATER = ("student", "views")  # in the configuration of a teacher: defaults of the stages that follow

_BEGUN = ("lock", f"config.toml{files.PARTIAL}")  # what a run leaves that was killed before it had a configuration


def toml(values: dict[str, Any]) -> str:
    """Plain values as TOML: scalars, lists of scalars, and one level of tables; None is left out."""
    lines = [f"{key} = {_scalar(value)}" for key, value in values.items() if _is_scalar(value)]
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += ["", f"[{key}]"]
            lines += [f"{_key(name)} = {_scalar(item)}" for name, item in value.items() if item is not None]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return f'"{name}"' if "." in name else name


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, dict)


def _scalar(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool | int):
        return json.dumps(value)
    return repr(float(value))


def _text(value: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UsageError(f"{value!a} is no Unicode text, so no configuration can hold it; take another name")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file; one that cannot be parsed is refused with the place."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What a result may depend on beside its configuration."""
    import numpy as np
    import torch
    import zarr

    from kdtool.engine.device import memory_format

    return {
        "kdtool": kdtool.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "zarr": zarr.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "device_type": device.type,
        "precision": precision,
        "memory_format": str(memory_format(device, precision)).split(".")[1],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }


def cpu_name() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def begun(folder: Path) -> bool:
    """Whether a run's folder holds a state or a result."""
    return any((folder / name).exists() for name in ("state.json", "result.json"))


class RunFolder:
    """One run's folder; what another configuration came to is not overwritten. Make it while holding its lock.

    A run that ended before its first state was saved came to nothing, so another configuration may have its folder.
    PLACES make no other configuration, as data and caches are known by their content, nor for a teacher does LATER.
    dry: nothing is written, and only what would be refused is. events: the metrics are written for TensorBoard too.
    """

    def __init__(self, path: Path, config: dict[str, Any], dry: bool = False, events: bool = False) -> None:
        self.path = path
        self.config = config
        self.dry = dry
        self.events = Events(path) if events else None
        known = path / "config.toml"
        found, asked = read_toml(known) if known.exists() else {}, tomllib.loads(toml(config))
        option = "--folder" if config["command"] == "teach" else "--run"
        if self.begun and not found:
            raise DamageError(
                f"{path} does not say what it was asked for ({known.name} is empty or missing); remove it"
            )
        if self.begun and _compared(found) != _compared(asked):
            raise IdentityError(
                f"{path} holds a run with another configuration ({_first_difference(found, asked)}); "
                f"name another folder with {option}, or remove it"
            )
        with files.explained(path):
            if dry:
                files.check_folder(path)
            else:
                path.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            return
        if not known.exists() and any(entry.name not in _BEGUN for entry in path.iterdir()):
            raise UsageError(f"{path} is not empty and holds no run; name another folder with {option}")
        if found != asked and not dry and not (path / "result.json").exists():
            files.write(known, toml(config).encode())

    @property
    def begun(self) -> bool:
        """Whether the folder holds a state or a result."""
        return begun(self.path)

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run."""
        path = self.path / "result.json"
        known = {"command": str, "name": str, "weights_sha256": str}
        return files.read_json(path, f"remove {self.path} and run again", known) if path.exists() else None

    def rows(self) -> list[Row]:
        """The metrics, a row an epoch."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except (ValueError, RecursionError) as error:
            raise DamageError(f"{path} is damaged: {error}; remove {self.path} and run again") from None

    def write_rows(self, rows: list[Row]) -> None:
        """Replaces the metrics; they are part of the state, so they are rewritten with it."""
        files.write(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        if self.events:
            self.events.follow(rows)

    def finish(self, result: dict[str, Any], rows: list[Row]) -> None:
        """Writes metrics, table and, last, the result."""
        self.write_rows(rows)
        if self.events:
            self.events.close()
        table = io.StringIO()
        flat = [{**row, **{f"term_{k}": v for k, v in row["terms"].items()}} for row in rows]
        names = dict.fromkeys(name for row in flat for name in row if name != "terms")
        writer = csv.DictWriter(table, list(names), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(flat)
        files.write(self.path / "metrics.csv", table.getvalue().encode())
        files.write_json(self.path / "result.json", result)


def read_result(run: Path, repair: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """The result of a finished run, which has these fields at least. UsageError for a folder that holds none."""
    path = run / "result.json"
    if not path.exists():
        raise UsageError(f"{run} holds no finished run (it has no result.json); name the folder of one")
    return files.read_json(path, repair, fields)


def _compared(config: Row) -> Row:
    """What makes a configuration another one."""
    others = (*PLACES, *LATER) if config.get("command") == "teach" else PLACES
    return {key: value for key, value in config.items() if key not in others}


def _first_difference(found: Row, wanted: Row) -> str:
    there, asked = _flat(_compared(found)), _flat(_compared(wanted))
    for key in [*asked, *there]:
        if there.get(key) != asked.get(key):
            return f"{key} is {there.get(key, 'absent')} there, {asked.get(key, 'absent')} asked for"
    return "no difference"


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Values with those of tables as `table.name`."""
    tables = {
        f"{key}.{name}": item
        for key, value in values.items()
        if isinstance(value, dict)
        for name, item in value.items()
    }
    return {key: value for key, value in values.items() if not isinstance(value, dict)} | tables
