"""Options that several commands share, and how they meet a configuration file: flags win, unknown keys are refused."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdtool.errors import UsageError, unknown

if TYPE_CHECKING:
    from kdtool.engine.folder import Workspace
    from kdtool.engine.optim import Recipe
    from kdtool.engine.recorded import Again
    from kdtool.methods.protocol import Method

Folder = Annotated[Path, typer.Option("--folder", help="Working folder: teacher, cache, runs and kdtool.toml.")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with values for these options; flags win.")]
DataFolder = Annotated[Path | None, typer.Option("--data-folder", help="Folder with the data set's published files.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.  [default: auto]")]
Precision = Annotated[
    str | None, typer.Option("--precision", help="auto, float32 or bfloat16 (autocast).  [default: auto]")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the run.  [default: 0]")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="kda, crd, icd or srm: optimiser, schedule, batch.  [default: kda]")
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs; the schedule keeps its shape.")]
Batch = Annotated[int | None, typer.Option("--batch", help="Samples in a step.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="Highest learning rate.")]
WeightDecay = Annotated[float | None, typer.Option("--weight-decay", help="Weight decay, on all parameters.")]
Optimizer = Annotated[str | None, typer.Option("--optimizer", help="sgd or adam.")]
Schedule = Annotated[str | None, typer.Option("--schedule", help="cosine, step or constant.")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="Layer of the method; repeat for several.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Option of a method, [METHOD.]NAME=VALUE.")]
Taps = Annotated[
    list[str] | None, typer.Option("--tap", help="Name a layer of the network by its module path, TAP=PATH; repeat.")
]
CachePath = Annotated[Path | None, typer.Option("--cache", help="The cache.  [default: cache.zarr]")]
KeepWeights = Annotated[
    int | None, typer.Option("--keep-weights", help="Keep the weights of every so many epochs, for analyses.")
]
SyncBn = Annotated[
    bool, typer.Option("--sync-bn", help="Under torchrun, BatchNorm over the whole batch and not each share (GPUs).")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


RECIPE = ("epochs", "batch", "learning_rate", "weight_decay", "optimizer", "schedule")  # fields with a flag

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list of texts",
    tuple: "a list of numbers",
    dict: "a table",
}


class Values:
    """The values of a command: a flag where it was given, else the configuration file's, else a default."""

    def __init__(self, command: str, path: Path | None, known: tuple[str, ...]) -> None:
        from kdtool.engine.runs import read_toml

        self.path = path
        self.table: dict[str, Any] = read_toml(path) if path else {}
        of = self.table.pop("command", command)
        if of != command:
            raise UsageError(f"{path} is a configuration of `kdtool {of}`, not of `kdtool {command}`")
        for key in self.table:
            if key not in known:
                raise unknown(f"key in {path}", key, known)

    def get(self, name: str, flag: Any, default: Any, kind: type) -> Any:
        """The value of an option."""
        if flag is not None:
            return flag
        value = self.table.get(name)
        return default if value is None else _converted(f"{self.path}: {name}", value, kind)

    def where(self, name: str, flag: Path | None) -> str | None:
        """A path, as an absolute one, so that it leads there from any folder."""
        path = self.get(name, str(flag) if flag else None, None, str)
        return str(Path(path).absolute()) if path is not None else None

    def taps(self, flags: list[str] | None) -> dict[str, str]:
        """The layers that the user names: the file's [taps] table, then `--tap`."""
        table = self.get("taps", None, {}, dict)
        for name, path in table.items():
            table[name] = _converted(f"{self.path}: taps.{name}", path, str)
        return {**table, **split_settings(flags or [], "--tap", "TAP=PATH is expected, as in --tap stage2=layer2.1")}

    def channels(self, name: str, flag: str | None) -> tuple[float, float, float] | None:
        """Three numbers, one for each colour."""
        value = self.get(name, None, None, tuple)
        if flag is not None:
            try:
                value = tuple(float(number) for number in flag.split(","))
            except ValueError:
                value = ()
        if value is None:
            return None
        if len(value) != 3 or not all(math.isfinite(number) for number in value):
            raise UsageError(f"--{name} is three numbers in units of pixel / 255, as in --{name} 0.485,0.456,0.406")
        if name == "std" and min(value) <= 0:
            raise UsageError(f"--std is three numbers above 0, not {', '.join(map(str, value))}")
        if max(value) > 1 or min(value) < 0:
            raise UsageError(f"--{name} is in units of pixel / 255, from 0 to 1, not {', '.join(map(str, value))}")
        red, green, blue = value
        return red, green, blue

    def settings(self, flags: list[str] | None) -> dict[str, str]:
        """The options of methods: the file's [set] table, then `--set`."""
        table: dict[str, str] = {}
        for name, value in self.get("set", None, {}, dict).items():
            if isinstance(value, dict):
                table |= {f"{name}.{key}": _text(item) for key, item in value.items()}
            else:
                table[name] = _text(value)
        return {**table, **split_settings(flags or [])}

    def recipe(self, name: str | None, **flags: Any) -> "Recipe":
        """The recipe: by name, changed by the file's [recipe] table, then by the file's values of flags, then by flags.

        A name that is given as a flag leaves the table out of account.
        """
        from kdtool.engine import optim

        written = self.table.get("recipe", {})
        named = isinstance(written, str)
        base = optim.recipe(name or (written if named else "kda"))
        table = {} if name or named else self.get("recipe", None, {}, dict)
        changes = {**table, **{key: self.table[key] for key in RECIPE if key in self.table}}
        kinds = {field.name: type(getattr(base, field.name)) for field in fields(base)}
        for key, value in changes.items():
            if key not in kinds:
                raise unknown(f"key in [recipe] of {self.path}", key, kinds)
            changes[key] = _converted(f"{self.path}: {key}", value, kinds[key])
        return replace(base, **{**changes, **{key: value for key, value in flags.items() if value is not None}})


def _converted(name: str, value: Any, kind: type) -> Any:
    """A value of a TOML file as the type that is wanted."""
    if kind is tuple and isinstance(value, list) and all(type(item) in (int, float) for item in value):
        return tuple(float(item) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    others = isinstance(value, list) and kind is list and not all(isinstance(item, str) for item in value)
    if type(value) is not kind or others:
        raise UsageError(f"{name} is {value!r}; {KINDS[kind]} is expected")
    if isinstance(value, str) and not value.isprintable():
        raise UsageError(f"{name} is {value!r}; a text of printable characters is expected")
    return value


def _text(value: Any) -> str:
    """A value of a TOML file as `--set` takes it."""
    if isinstance(value, list):
        return ",".join(_text(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def open_workspace(folder: Path, cache: Path | str | None = None) -> "Workspace":
    """The workspace of a folder, with another cache where one is named."""
    from kdtool.engine.folder import Workspace

    workspace = Workspace.open(folder)
    if cache is None:
        return workspace
    return replace(workspace, settings={**workspace.settings, "cache": str(Path(cache).absolute())})


def again(device: str | None, data_folder: Path | None, own: list[str] | None) -> "Again":
    """How the teacher of a cache is asked again."""
    from kdtool.engine.recorded import Again

    return Again(device or "auto", str(data_folder.absolute()) if data_folder else None, tuple(own or ()))


def build_methods(names: list[str], layers: list[str], settings: dict[str, str]) -> "tuple[Method, ...]":
    """Methods by name, with their layers and options; every option must belong to one of them."""
    from kdtool.methods import method

    chosen = [method(name) for name in names]
    names = [found.name for found in chosen]
    if len(set(names)) < len(names):
        raise UsageError(f"two of the named methods have one name: {', '.join(names)}")
    given: dict[str, dict[str, str]] = {name: {} for name in names}
    if settings and not names:
        raise UsageError(f"--set {next(iter(settings))}: this sets an option of a method, and no method is named")
    for key, value in settings.items():
        owner, _, option = key.rpartition(".")
        if not owner and len(names) != 1:
            raise UsageError(f"--set {key}: say of which method, METHOD.{key}={value}; named are {', '.join(names)}")
        owner = owner or names[0]
        if owner not in given:
            raise unknown("method in --set", owner, names)
        given[owner][option] = value
    built = tuple(found.with_options(given[found.name]) for found in chosen)
    if not layers:
        return built
    if len(set(layers)) < len(layers):
        raise UsageError(f"--layer {layers[-1]}: a layer is named twice")
    if "layers" in given[names[0]]:
        raise UsageError("layers are named by --layer and by --set layers; take one of them")
    if "layers" not in built[0].options():
        raise UsageError(f"method {built[0].name} has no layers to choose, so --layer does not apply to it")
    return (replace(built[0], layers=tuple(layers)), *built[1:])  # type: ignore[call-arg]


def split_settings(
    settings: list[str], option: str = "--set", expected: str = "NAME=VALUE is expected, as in --set temperature=2"
) -> dict[str, str]:
    """`--set NAME=VALUE`, or another option of such a form, as a dictionary."""
    found = {}
    for item in settings:
        name, mark, value = item.partition("=")
        if not mark or not name:
            raise UsageError(f"{option} {item!r}: {expected}")
        found[name] = value
    return found
