"""Recipes: which teachers, students and methods make the cells of a table, as TOML files.

A recipe is the product of its pairs (teacher's group and student) and its methods; a row and a column name every cell.
A method whose `only` says label -> texts is kept to the pairs with one of these texts under that label. Where it is the
recipe of a printed table, what that table leaves empty is no cell. A group is a teacher with its cache: recipes that
name one group share both. The tables [distill], [probe], [teach] and [extract] take the keys of these
commands' configuration files. docs/reproduce.md describes the format. Left out: running them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from kdtool.engine.runs import read_toml
from kdtool.errors import UsageError, unknown
from kdtool.names import tables
from kdtool.workflows.reproduce.printed import Printed, table

Table = Mapping[str, Any]

NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)
REPORTS = ("last", "selected")  # which test accuracy a table shows: after the last epoch, or where validation is best


@dataclass(frozen=True)
class Group:
    """A teacher and its cache. One of teach, teacher, early and after says where the teacher comes from.

    teach: keys of `kdtool teach`. teacher: the group whose teacher it is too (with another cache). early: {group,
    epoch}: that group's teacher as it was after so many epochs. after: {group, distill}: a student of that group.
    extract: keys of `kdtool extract`. about: what of it the papers say, and what is chosen.
    """

    name: str
    about: str = ""
    teach: Table | None = None
    teacher: str = ""
    early: Table | None = None
    after: Table | None = None
    extract: Table = field(default_factory=dict)

    @property
    def stored(self) -> dict[str, Any]:
        """What its extract stores: `extract` but for who may add to it."""
        return {name: value for name, value in self.extract.items() if name != "allow_mixed"}

    @property
    def before(self) -> str:
        """The group that its teacher comes from, "" where it is trained on labels."""
        return self.teacher or str((self.early or self.after or {}).get("group", ""))


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    distill: keys of `kdtool distill`, but the seed; empty where the cell is about the teacher. probe: keys of
    `kdtool analyze probe`: the number is the probe's. live: the teacher answers in every step, in place of the cache.
    search: option of a method -> values that are tried on the validation part first. skip: why nothing is run.
    """

    row: str
    column: str
    group: str = ""
    distill: Table = field(default_factory=dict)
    probe: Table = field(default_factory=dict)
    live: bool = False
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    skip: str = ""
    printed: Printed | None = None


@dataclass(frozen=True)
class Recipe:
    """A table or figure.

    seeds: of every cell; search_seeds: of every point that a search tries; report: one of `REPORTS`; analyze: analyses
    of every student.
    """

    name: str
    title: str
    about: str
    cells: tuple[Cell, ...]
    groups: Mapping[str, Group]
    seeds: int = 3
    search_seeds: int = 1
    report: str = "last"
    analyze: tuple[str, ...] = ()
    paper: str = ""
    table: str = ""

    def root(self, name: str) -> str:
        """The group that a group has its teacher in common with and that made it."""
        group = self.groups[name]
        return self.root(group.teacher) if group.teacher else name

    def basis(self, name: str) -> dict[str, Any]:
        """What a group's teacher is made of, as plain values: another one is another teacher.

        Of one that was a student, also the cache that it has learned from.
        """
        found = {}
        for group in self.chain(name):
            origins = {key: value for key in ("teach", "teacher", "early", "after") if (value := getattr(group, key))}
            read = self.groups[group.before].stored if group.after else {}
            found[group.name] = {**origins, **({"extract": read} if read else {})}
        return found

    def chain(self, name: str) -> Iterator[Group]:
        """A group and those that its teacher comes from, the first one first."""
        if self.groups[name].before:
            yield from self.chain(self.groups[name].before)
        yield self.groups[name]


def names() -> list[str]:
    """The recipes that come with kdtool."""
    return tables()


def load(name: str) -> Recipe:
    """A recipe by name, or a user's own by the path of its file, which ends in .toml.

    UsageError for what is not found, a key that is not known and a group or a printed table that there is not.
    """
    if name.endswith(".toml"):
        return _recipe(Path(name).stem, read_toml(Path(name)), name)
    if name not in names():
        raise unknown("recipe", name, names())
    return _recipe(name, _packaged(name), f"recipe {name}")


def _packaged(name: str) -> dict[str, Any]:
    text = resources.files("kdtool.workflows").joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


PLACES = ("seed", "run", "cache", "device", "data_folder", "weights")  # where and how often, which a recipe leaves open

OF_TEACHERS = ("seed", "data_folder")  # of them, what the [teach] of a group may say: one of its teachers is enough

_RECIPE = {
    "title": str,
    "about": str,
    "paper": str,
    "table": str,
    "seeds": int,
    "search_seeds": int,
    "report": str,
    "analyze": list,
    "row": str,
    "column": str,
    "distill": dict,
    "pair": list,
    "method": list,
    "group": dict,
}
_GROUP = {"about": str, "teach": dict, "teacher": str, "early": dict, "after": dict, "extract": dict}
_ORIGINS: dict[str, dict[str, type]] = {
    "early": {"group": str, "epoch": int},
    "after": {"group": str, "distill": dict},
}
_CELL = {"group": str, "distill": dict, "probe": dict, "live": bool, "search": dict, "skip": str}


def _recipe(name: str, found: dict[str, Any], source: str) -> Recipe:
    _check_values(found, source)
    groups = {
        title: _group(title, values, f"{source}: group {title}")
        for title, values in {**_packaged("groups"), **found.get("group", {})}.items()
    }
    paper, number = found.get("paper", ""), found.get("table", "")
    known = table(paper, number)
    if number and not known:
        raise UsageError(f"{source}: paper {paper!r} prints no table {number!r}")
    _check_only(found, source)
    cells = tuple(_cells(found, known, source))
    for cell in cells:
        if not cell.skip and cell.group not in groups:
            raise unknown(f"group in {source}", cell.group, groups)
    used = {cell.group for cell in cells if cell.group in groups}
    for group in groups.values():
        _check_origin(group, groups, source)
    recipe = Recipe(
        name=name,
        title=found.get("title", name),
        about=found.get("about", ""),
        cells=cells,
        groups=groups,
        seeds=found.get("seeds", 3),
        search_seeds=found.get("search_seeds", 1),
        report=found.get("report", "last"),
        analyze=tuple(found.get("analyze", ())),
        paper=paper,
        table=number,
    )
    needed = {group.name: group for title in sorted(used) for group in recipe.chain(title)}
    return replace(recipe, groups=needed)


def _check_values(found: dict[str, Any], source: str) -> None:
    """Refuses keys of a recipe that there are not, and values of another kind."""
    _check(found, _RECIPE, source)
    for key in ("pair", "method"):
        for part in found.get(key, ()):
            _check({key: part}, {key: dict}, source)
    if not all(isinstance(name, str) for name in found.get("analyze", ())):
        raise UsageError(f"{source}: analyze is {found['analyze']!r}; a list of texts is expected")
    if found.get("report", "last") not in REPORTS:
        raise unknown(f"report in {source}", found["report"], REPORTS)
    for key in ("seeds", "search_seeds"):
        if found.get(key, 1) < 1:
            raise UsageError(f"{source}: {key} is at least 1, not {found[key]}")


def _check_only(found: dict[str, Any], source: str) -> None:
    """Refuses an `only` by which no pair could be chosen."""
    pairs = found.get("pair", [{}])
    if any("only" in pair for pair in pairs):
        raise UsageError(f"{source}: only is for a [[method]]; a pair is chosen by its labels")
    for method in found.get("method", ()):
        _check({"only": method.get("only", {})}, {"only": dict}, source)
        for label, texts in method.get("only", {}).items():
            known = {pair[label] for pair in pairs if isinstance(pair.get(label), str)}
            if not known:
                raise unknown(f"label of pairs in {source}: only", label, {name for pair in pairs for name in pair})
            for text in texts if isinstance(texts, list) else ():
                if not isinstance(text, str) or text not in known:
                    raise unknown(f"{label} in {source}: only", str(text), known)


def _group(name: str, values: dict[str, Any], source: str) -> Group:
    _check({name: values}, {name: dict}, source)
    if not NAME.fullmatch(name) or name in (".", "..", "results"):
        raise UsageError(
            f"{source}: a group's name is a folder's, of at most 100 letters, digits and -_., and not {name!r}"
        )
    _check(values, _GROUP, source)
    for key, kinds in _ORIGINS.items():
        if key in values:
            _check(values[key], kinds, f"{source}: {key}")
            if lacking := sorted(kinds.keys() - values[key].keys()):
                raise UsageError(f"{source}: {key} lacks {' and '.join(lacking)}")
    for part in (values.get("extract", {}), values.get("after", {}).get("distill", {})):
        _check_places(part, source)
    _check_places({key: value for key, value in values.get("teach", {}).items() if key not in OF_TEACHERS}, source)
    origins = [key for key in ("teach", "teacher", "early", "after") if key in values]
    if len(origins) != 1:
        raise UsageError(f"{source}: one of teach, teacher, early and after says where the teacher comes from")
    return Group(name, **values)


def _check_origin(group: Group, groups: Mapping[str, Group], source: str) -> None:
    """Refuses a teacher that comes from a group that there is not, or in the end from its own."""
    seen = [group.name]
    while before := groups[seen[-1]].before:
        if before not in groups:
            raise unknown(f"group in {source}: group {seen[-1]}", before, groups)
        if before in seen:
            raise UsageError(f"{source}: the teacher of group {before} comes from itself, by {' <- '.join(seen)}")
        seen.append(before)


def _cells(found: dict[str, Any], known: Mapping[tuple[str, str], Printed], source: str) -> Iterator[Cell]:
    """All cells, pair by pair; of a printed table those that it prints."""
    row, column, seen = found.get("row", "{row}"), found.get("column", "{column}"), set()
    for pair in found.get("pair", [{}]):
        for method in found.get("method", [{}]):
            labels = {**_labels(pair, source), **_labels(method, source)}
            if not all(pair.get(key) in texts for key, texts in method.get("only", {}).items()):
                continue
            try:
                place = (row.format_map(labels), column.format_map(labels))
            except KeyError as error:
                raise UsageError(
                    f"{source}: a pair or method has no {error.args[0]}, of which cells are named"
                ) from None
            except (ValueError, AttributeError, TypeError, IndexError, MemoryError) as error:
                raise UsageError(
                    f"{source}: row and column hold labels of pairs and methods, as {{student}}: {error}"
                ) from None
            if known and place not in known:
                continue
            if place in seen:
                raise UsageError(f"{source}: two cells are called {' / '.join(place)}")
            seen.add(place)
            yield _cell(place, [found, pair, method], known.get(place), source)


def _labels(part: dict[str, Any], source: str) -> dict[str, str]:
    """What a pair or a method says beside the keys of a cell: texts, of which cells are named."""
    found = {key: text for key, text in part.items() if key not in _CELL and key != "only"}
    for key in ("only", "search"):
        lists = part.get(key, {})
        _check({key: lists}, {key: dict}, source)
        _check(lists, dict.fromkeys(lists, list), f"{source}: {key}")
        if empty := [name for name, values in lists.items() if not values]:
            raise UsageError(f"{source}: {key} of {empty[0]} is an empty list")
    for key, text in found.items():
        if not isinstance(text, str):
            raise unknown(f"key in {source}", key, (*_CELL, "only"))
    return found


def _cell(place: tuple[str, str], parts: list[dict[str, Any]], printed: Printed | None, source: str) -> Cell:
    """A cell of the values of the recipe, its pair and its method; the later ones win."""
    values: dict[str, Any] = {}
    for part in parts:
        own = {key: value for key, value in part.items() if key in _CELL and not (part is parts[0] and key == "group")}
        _check(own, _CELL, source)
        for key, value in own.items():
            values[key] = _over(values.get(key), value)
    distill = values.setdefault("distill", {})
    for part in (distill, values.get("probe", {})):
        _check_places(part, source)
    _check({"set": distill.get("set", {})}, {"set": dict}, source)
    if distill.get("method") == "teacher":
        values["distill"] = {}
    values["search"] = {key: tuple(tried) for key, tried in values.get("search", {}).items()}
    return Cell(*place, **values, printed=printed)


def _check_places(values: Mapping[str, Any], source: str) -> None:
    """Refuses what a recipe leaves open."""
    for key in PLACES:
        if key in values:
            raise UsageError(f"{source}: {key} is for `kdtool reproduce run` to say, not for a recipe")


def _over(before: Any, value: Any) -> Any:
    """A later value over an earlier one; of two tables, key by key."""
    if not (isinstance(before, dict) and isinstance(value, dict)):
        return value
    return {**before, **{key: _over(before.get(key), item) for key, item in value.items()}}


def _check(values: Mapping[str, Any], kinds: Mapping[str, type], source: str) -> None:
    for key, value in values.items():
        if key not in kinds:
            raise unknown(f"key in {source}", key, kinds)
        if type(value) is not kinds[key]:
            raise UsageError(f"{source}: {key} is {value!r}; {kinds[key].__name__} is expected")
