"""From plain values to what teach, extract and distill are asked for: a table's values, and flags, which win.

The tables are those of `--config` files and of the recipes that reproduce papers: the names of the options, with `-` as
`_`. An unknown key or a value of another kind is refused. Left out: how values come from a command line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kdtool.data import DATASETS
from kdtool.engine import optim
from kdtool.engine.distill import DistillConfig
from kdtool.engine.folder import DEFAULT_STUDENT
from kdtool.engine.optim import Recipe
from kdtool.engine.prepare import ExtractConfig
from kdtool.engine.runs import read_toml
from kdtool.engine.teach import TeachConfig
from kdtool.errors import UsageError, unknown
from kdtool.methods import METHODS, check_added, method
from kdtool.methods.protocol import Method

RECIPE = ("epochs", "batch", "learning_rate", "weight_decay", "optimizer", "schedule")  # fields with a flag

# command -> what it may be told
KEYS: dict[str, tuple[str, ...]] = {
    "teach": (
        *("data", "network", "recipe", "data_folder", "keep_weights", "sync_bn", "validation", "few_shot", "student"),
        *("views", "seed", "device", "precision", "image_size", "crop", "pad", "flip", "mean", "std", "taps"),
        *("initial", "as_is", "freeze", "batchnorm", "head_learning_rate", "selected", *RECIPE),
    ),
    "extract": (
        *("for", "student", "set", "taps", "views", "batch", "block", "fit_views", "clean", "dtype", "validation"),
        *("few_shot", "seed", "precision", "device", "data_folder", "no_srm", "allow_mixed", "cache"),
    ),
    "distill": (
        *("student", "method", "with", "layer", "set", "taps", "recipe", "views", "seed", "device", "precision"),
        *("shuffle_block", "data_folder", "initial", "head_learning_rate", "keep_weights", "sync_bn", "cache", "run"),
        *RECIPE,
    ),
    "probe": (
        *("data", "data_folder", "stage", "whole", "batchnorm", "validation", "few_shot", "image_size", "crop", "seed"),
        *("device", "precision", *RECIPE, "recipe", "run", "weights"),
    ),
}

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list of texts",
    tuple: "a list of numbers",
    dict: "a table",
}


@dataclass(frozen=True)
class Values:
    """The values of a command: a flag where it was given, else the table's, else a default.

    source: where the table was written, for messages.
    """

    command: str
    table: Mapping[str, Any]
    source: str

    def __post_init__(self) -> None:
        for key in self.table:
            if key not in KEYS[self.command]:
                raise unknown(f"key in {self.source}", key, KEYS[self.command])

    @classmethod
    def of_file(cls, command: str, path: Path | None) -> Values:
        """Those of a TOML file; without one there are only flags."""
        table = read_toml(path) if path else {}
        of = table.pop("command", command)
        if of != command:
            raise UsageError(f"{path} is a configuration of `kdtool {of}`, not of `kdtool {command}`")
        return cls(command, table, str(path))

    def get(self, name: str, flag: Any, default: Any, kind: type) -> Any:
        """The value of an option."""
        if flag is not None:
            return flag
        value = self.table.get(name)
        return default if value is None else _converted(f"{self.source}: {name}", value, kind)

    def where(self, name: str, flag: Path | None) -> str | None:
        """A path, as an absolute one, so that it leads there from any folder."""
        path = self.get(name, str(flag) if flag else None, None, str)
        return str(Path(_converted(f"--{name.replace('_', '-')}", path, str)).absolute()) if path is not None else None

    def taps(self, flags: Sequence[str] | None) -> dict[str, str]:
        """The layers that the user names: the table's [taps], then `--tap`."""
        table = self.get("taps", None, {}, dict)
        named = {name: _converted(f"{self.source}: taps.{name}", path, str) for name, path in table.items()}
        return {**named, **split_settings(flags or [], "--tap", "TAP=PATH is expected, as in --tap stage2=layer2.1")}

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

    def settings(self, flags: Sequence[str] | None) -> dict[str, str]:
        """The options of methods: the table's [set], then `--set`."""
        table: dict[str, str] = {}
        for name, value in self.get("set", None, {}, dict).items():
            if isinstance(value, dict):
                table |= {f"{name}.{key}": _text(item) for key, item in value.items()}
            else:
                table[name] = _text(value)
        return {**table, **split_settings(flags or [])}

    def recipe(self, name: str | None, default: str = "kda", **flags: Any) -> Recipe:
        """The recipe: by name, changed by the table's [recipe], then by the table's values of flags, then by flags.

        A name that is given as a flag leaves the table out of account.
        """
        written = self.table.get("recipe", {})
        named = isinstance(written, str)
        base = optim.recipe(name or (written if named else default))
        table = {} if name or named else self.get("recipe", None, {}, dict)
        changes = {**table, **{key: self.table[key] for key in RECIPE if key in self.table}}
        kinds = {field.name: type(getattr(base, field.name)) for field in fields(base)}
        for key, value in changes.items():
            if key not in kinds:
                raise unknown(f"key in [recipe] of {self.source}", key, kinds)
            changes[key] = _converted(f"{self.source}: {key}", value, kinds[key])
        changes |= {key: value for key, value in flags.items() if value is not None}
        found = replace(base, **changes)
        if found.optimizer != base.optimizer and "learning_rate" not in changes:
            raise UsageError(
                f"--optimizer {found.optimizer} takes another learning rate than {base.learning_rate:g}, which is the "
                f"recipe's for {base.optimizer}; say it with --learning-rate"
            )
        return found


def teach_config(values: Values, **flags: Any) -> TeachConfig:
    """What `kdtool teach` is asked for; flags as its command line takes them."""
    of, given = values, Given(flags)
    as_is = of.get("as_is", given.as_is or None, False, bool)
    named = [name for name in ("recipe", *RECIPE) if as_is and getattr(given, name) is not None]
    if named:
        raise UsageError(f"--as-is trains nothing: --{named[0].replace('_', '-')} does not apply")
    return TeachConfig(
        data=data_of(of, given),
        network=of.get("network", given.network, "resnet34", str),
        recipe=of.recipe(given.recipe, **given.of(RECIPE)),
        keep_weights=of.get("keep_weights", given.keep_weights, None, int),
        selected=of.get("selected", given.selected or None, None, bool),
        sync_bn=of.get("sync_bn", given.sync_bn or None, None, bool),
        data_folder=of.where("data_folder", given.data_folder),
        validation=of.get("validation", given.validation, None, int),
        few_shot=of.get("few_shot", given.few_shot, None, int),
        student=of.get("student", given.student, DEFAULT_STUDENT, str),
        views=of.get("views", given.views, None, int),
        seed=of.get("seed", given.seed, 0, int),
        device=of.get("device", given.device, "auto", str),
        precision=of.get("precision", given.precision, "auto", str),
        image_size=of.get("image_size", given.image_size, None, int),
        crop=of.get("crop", given.crop, None, str),
        pad=of.get("pad", given.pad, TeachConfig.pad, int),
        flip=of.get("flip", given.flip, None, bool),
        mean=of.channels("mean", given.mean),
        std=of.channels("std", given.std),
        taps=of.taps(given.tap),
        initial=of.where("initial", given.initial),
        as_is=as_is,
        freeze=tuple(of.get("freeze", given.freeze, [], list)),
        batchnorm=of.get("batchnorm", given.batchnorm, "eval", str),
        head_learning_rate=of.get("head_learning_rate", given.head_learning_rate, None, float),
    )


def data_of(values: Values, given: Given) -> str:
    """The name of the data set."""
    chosen: str | None = values.get("data", given.data, None, str)
    if chosen is None:
        raise UsageError(f"--data is missing: one of {', '.join(DATASETS)}")
    return chosen


def extract_config(values: Values, default_student: str, **flags: Any) -> ExtractConfig:
    """What `kdtool extract` is asked for; flags as its command line takes them."""
    of, given = values, Given(flags)
    names = of.get("for", given.methods, [], list)
    built = build_methods(list(dict.fromkeys(names)), [], of.settings(given.settings))
    students, taps = of.get("student", given.students, [], list), of.taps(given.tap)
    if not built and (students or taps):
        named = "--student" if students else "--tap"
        raise UsageError(f"{named} belongs to the methods of --for; a plain extract stores the same for every student")
    students = students or ([default_student] if built else [])
    numbers = ("batch", "block", "fit_views", "validation", "few_shot")
    return ExtractConfig(
        methods=built,
        students=tuple(students),
        taps=taps,
        without=("srm",) if of.get("no_srm", given.no_srm or None, False, bool) else (),
        views=_views(of.table.get("views") if given.views is None else given.views),
        clean=tuple(of.get("clean", given.clean, [], list)),
        dtypes=dict(_dtype(item) for item in of.get("dtype", given.dtype, [], list)),
        seed=of.get("seed", given.seed, 0, int),
        precision=of.get("precision", given.precision, "float32", str),
        device=of.get("device", given.device, "auto", str),
        data_folder=of.where("data_folder", given.data_folder),
        allow_mixed=of.get("allow_mixed", given.allow_mixed or None, False, bool),
        **{name: of.get(name, getattr(given, name), None, int) for name in numbers},
    )


def distill_config(values: Values, default_student: str, **flags: Any) -> DistillConfig:
    """What `kdtool distill` is asked for; flags as its command line takes them."""
    of, given = values, Given(flags)
    name = of.get("method", given.method, None, str)
    if name is None:
        raise UsageError("--method is missing: one of `kdtool methods`, or none")
    if given.views == 0:
        raise UsageError("--views is at least 1, not 0")
    layers, added = of.get("layer", given.layers, [], list), of.get("with", given.with_, [], list)
    return DistillConfig(
        student=of.get("student", given.student, default_student, str),
        methods=chosen_methods(name, added, layers, of.settings(given.settings)),
        recipe=of.recipe(given.recipe, **given.of(RECIPE)),
        name=of.get("run", given.run, "", str),
        views=of.get("views", given.views, 0, int),
        seed=of.get("seed", given.seed, 0, int),
        device=of.get("device", given.device, "auto", str),
        precision=of.get("precision", given.precision, "auto", str),
        shuffle_block=of.get("shuffle_block", given.shuffle_block, 0, int),
        keep_weights=of.get("keep_weights", given.keep_weights, None, int),
        sync_bn=of.get("sync_bn", given.sync_bn or None, None, bool),
        data_folder=of.where("data_folder", given.data_folder),
        taps=of.taps(given.tap),
        initial=of.where("initial", given.initial),
        head_learning_rate=of.get("head_learning_rate", given.head_learning_rate, None, float),
    )


class Given:
    """Flags as attributes; all of a command's are there, or none."""

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self.flags = flags

    def __getattr__(self, name: str) -> Any:
        return self.flags[name] if self.flags else None

    def of(self, names: Sequence[str]) -> dict[str, Any]:
        """Some of them."""
        return {name: getattr(self, name) for name in names}


def chosen_methods(name: str, added: Sequence[str], layers: list[str], settings: dict[str, str]) -> tuple[Method, ...]:
    """The run's method and what is added to it, with their layers and options; none for labels alone."""
    if name == "none":
        if added or layers or settings:
            raise UsageError("--method none trains on labels alone; --with, --layer and --set do not apply to it")
        return ()
    check_added(method(name), added)
    defaults = {f"{extra}.{key}": value for extra in added for key, value in (METHODS[extra].added or {}).items()}
    return build_methods([name, *added], layers, {**defaults, **settings})


def build_methods(names: list[str], layers: list[str], settings: dict[str, str]) -> tuple[Method, ...]:
    """Methods by name, with their layers and options; every option must belong to one of them."""
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
    settings: Sequence[str], option: str = "--set", expected: str = "NAME=VALUE is expected, as in --set temperature=2"
) -> dict[str, str]:
    """`--set NAME=VALUE`, or another option of such a form, as a dictionary."""
    found = {}
    for item in settings:
        name, mark, value = item.partition("=")
        if not mark or not name:
            raise UsageError(f"{option} {item!r}: {expected}")
        found[name] = value
    return found


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


def _views(asked: Any) -> int:
    """A number of views: -1 for all, 0, which takes the workspace's default, where nothing was said."""
    if asked is None or asked == "all":
        return 0 if asked is None else -1
    number = int(asked) if isinstance(asked, str) and asked.isdecimal() else asked
    if type(number) is not int or number < 1:
        raise UsageError(f"--views is a whole number above 0 or all, not {asked!r}")
    return number


def _dtype(text: str) -> tuple[str, str]:
    key, mark, dtype = text.rpartition("=")
    return (key if mark else "", dtype)
