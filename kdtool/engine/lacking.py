"""What a cache lacks, and the `kdtool extract` command that adds it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdtool.cache.identity import refuse
from kdtool.data.preparation import rule_from
from kdtool.engine.extraction import held_dtypes
from kdtool.engine.folder import DEFAULT_BATCH, default_fit_views
from kdtool.errors import DamageError
from kdtool.methods import DEFAULT_TARGETS, reference
from kdtool.targets import by_key, describe

if TYPE_CHECKING:
    from kdtool.cache import Cache
    from kdtool.engine.distill import Needs
    from kdtool.engine.folder import Workspace
    from kdtool.methods.protocol import Method
    from kdtool.targets import Fit, Target


def check_cache(cache: Cache, needs: Needs, views: int, command: Sequence[str]) -> None:
    """Refuses a cache in which something that is needed is not there, with the command that adds it.

    views: 0 asks for one at least. command: words of `extract_command`, without a number of views.
    """
    lacking = [target.key for target in needs.targets if target.key not in cache.contents]
    lacking += [fit.key for fit in needs.fits if fit.key not in cache.fits]
    lacking += [] if cache.views("logits", "test") else ["logits of the test part"]  # the teacher's own accuracy
    selecting = needs.validated if "validation" in cache.layout.samples else ()
    lacking += [f"{key} of the validation part" for key in selecting if not cache.views(key, "validation")]
    wanted = views or max((cache.views(key) for key in cache.contents), default=0) or 1
    repair = shlex.join([*command, "--views", str(wanted)])
    if lacking:
        begun = "; an extract is unfinished: its command goes on" if cache.unfinished else ""
        raise DamageError(f"the cache {cache.path} holds no {' and no '.join(lacking)}{begun}; add it with `{repair}`")
    for target in needs.targets:
        held = cache.views(target.key)
        if held < max(views, 1):
            raise DamageError(
                f"the cache {cache.path} holds {held} complete views of {target.key}, and {max(views, 1)} are needed; "
                f"add them with `{repair}`"
            )
        check_target(cache, target)
    for fit in needs.fits:
        check_fit(cache, fit)


def check_target(cache: Cache, target: Target) -> None:
    """IdentityError where a cache holds a key of another definition than a method asks for."""
    held = cache.contents[target.key].to_json()
    fit = None if target.fit is None else target.fit.key
    record = {"version": target.version, "taps": list(target.taps), "encoder": describe(target.encode), "fit": fit}
    _refuse(cache, target.key, {name: held[name] for name in record}, record)


def check_fit(cache: Cache, fit: Fit) -> None:
    """IdentityError where a cache holds a fit of another definition under that key."""
    held = cache.fits[fit.key]
    record = {name: value for name, value in held.record.items() if name != "reads"}
    _refuse(cache, fit.key, {"version": held.version, **record}, {"version": fit.version, **describe(fit)})


def _refuse(cache: Cache, key: str, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    hint = "another definition needs another key, or another --cache"
    refuse(f"{cache.path} holds {key!r} with another definition", held, wanted, hint)


def extract_command(
    workspace: Workspace,
    identity: Mapping[str, Any] | None,
    methods: Sequence[Method],
    student: str,
    data_folder: str | None,
    taps: Mapping[str, str],
) -> list[str]:
    """The words of the extract command that adds what methods need to the cache of an identity, or to a new one."""
    words = ["kdtool", "extract", *workspace.words]
    for method in methods:
        words += ["--for", reference(method)]
    words += setting_words(methods)
    if methods:
        words += ["--student", student, *tap_words(taps)]
    if data_folder is not None:
        words += ["--data-folder", data_folder]
    return [*words, *(identity_words(identity) if identity else [])]


def tap_words(taps: Mapping[str, str]) -> list[str]:
    """The `--tap` options of layers that the user names."""
    return [word for name, path in taps.items() for word in ("--tap", f"{name}={path}")]


def setting_words(methods: Sequence[Method]) -> list[str]:
    """The `--set` options of all fields that are not defaults."""
    return [
        word
        for method in methods
        for name, value in vars(method).items()
        if value != method.options()[name]
        for word in ("--set", f"{method.name}.{name}={option_text(value)}")
    ]


def identity_words(identity: Mapping[str, Any]) -> list[str]:
    """The options without which extract would make a cache of another identity."""
    defaults = {"seed": 0, "precision": "float32"}
    chosen = {name: value for name, value in identity_options(identity).items() if value != defaults.get(name)}
    return [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def cache_words(cache: Cache, targets: Sequence[Target], fits: Sequence[Fit] = ()) -> list[str]:
    """The options without which extract would make a cache of another identity, or store in other dtypes what every
    extract stores, these targets, and what the fits have read, those of the targets among them.
    """
    layout, placements = cache.layout, rule_from(cache.identity["augmentation"]).placements
    block = replace(layout, block=None).to_json()["block"]
    chosen = {
        "batch": (layout.batch, DEFAULT_BATCH),
        "block": (layout.block or block, block),
        "fit-views": (layout.fit_views, default_fit_views(placements)),
    }
    grid = [word for name, (value, usual) in chosen.items() if value != usual for word in (f"--{name}", str(value))]
    needed = by_key([*DEFAULT_TARGETS, *targets, *(target for fit in fits for target in fit.reads)])
    dtypes = held_dtypes(cache, (fit.key for fit in fits))
    named = [f"{key}={dtypes[key]}" for key, target in needed.items() if dtypes.get(key, target.dtype) != target.dtype]
    return [*identity_words(cache.identity), *grid, *(word for one in named for word in ("--dtype", one))]


def identity_options(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ExtractConfig` that give a cache this identity; those of the split where it was narrowed."""
    options = {"seed": identity["augmentation"]["seed"], "precision": identity["numeric"]["precision"]}
    if identity["split"]["digest"] == identity["teacher"]["split_digest"]:
        return options
    rule = identity["split"]["rule"]
    few = {"few_shot": rule["few_shot"]} if rule["few_shot"] is not None else {}
    return {"validation": rule["validation"], **few, **options}


def option_text(value: Any) -> str:
    """The value of a method's option as `--set` takes it."""
    if isinstance(value, list | tuple):
        return ",".join(option_text(item) for item in value)
    return str(value).lower() if isinstance(value, bool | None) else str(value)
