"""What a cache lacks, and the `kdtool extract` command that adds it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdtool.errors import DamageError, IdentityError
from kdtool.methods import reference

if TYPE_CHECKING:
    from kdtool.cache import Cache
    from kdtool.engine.distill import Needs
    from kdtool.engine.workspace import Workspace
    from kdtool.methods.protocol import Method


def check_cache(cache: Cache, needs: Needs, views: int, command: Sequence[str]) -> None:
    """Refuses a cache in which something that is needed is not there, with the command that adds it.

    views: 0 asks for one at least. command: words of `extract_command`, without a number of views.
    """
    lacking = [target.key for target in needs.targets if target.key not in cache.contents]
    lacking += [fit for fit in needs.fits if fit not in cache.fits]
    selecting = needs.validated if "validation" in cache.layout.samples else ()
    lacking += [f"{key} of the validation part" for key in selecting if not cache.views(key, "validation")]
    wanted = views or max((cache.views(key) for key in cache.contents), default=0) or 1
    repair = shlex.join([*command, "--views", str(wanted)])
    if lacking:
        raise DamageError(f"the cache {cache.path} holds no {' and no '.join(lacking)}; add it with `{repair}`")
    for target in needs.targets:
        held = cache.views(target.key)
        if held < max(views, 1):
            raise DamageError(
                f"the cache {cache.path} holds {held} complete views of {target.key}, and {max(views, 1)} are needed; "
                f"add them with `{repair}`"
            )
        stored = cache.contents[target.key]
        if stored.version != target.version:
            raise IdentityError(
                f"{target.key} in {cache.path} has definition {stored.version}, this kdtool uses {target.version}; "
                "extract into another --cache"
            )


def extract_command(
    workspace: Workspace, cache: Cache, methods: Sequence[Method], student: str, data_folder: str | None
) -> list[str]:
    """The words of the extract command that adds what methods need to a cache, under the cache's own identity."""
    words = ["kdtool", "extract", *workspace.words]
    for method in methods:
        words += ["--for", reference(method)]
    for method in methods:
        for name, value in vars(method).items():
            if value != method.options()[name]:
                words += ["--set", f"{method.name}.{name}={option_text(value)}"]
    if methods:
        words += ["--student", student]
    if data_folder is not None:
        words += ["--data-folder", data_folder]
    return [*words, *_identity_words(cache.identity)]


def _identity_words(identity: dict[str, Any]) -> list[str]:
    """The options without which extract would make a cache of another identity."""
    defaults = {"seed": 0, "precision": "float32"}
    chosen = {name: value for name, value in identity_options(identity).items() if value != defaults.get(name)}
    return [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]


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
