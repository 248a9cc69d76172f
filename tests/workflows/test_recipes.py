"""The recipes that come with kdtool: they cover what is printed, and everything that they ask for can be asked for."""

import functools
import importlib.util
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from kdtool import data
from kdtool.analysis.probe import probe_config
from kdtool.engine.configuration import Values, distill_config, extract_config, teach_config
from kdtool.engine.distill import DistillConfig, needs_of, staged
from kdtool.engine.job import check_schedule
from kdtool.engine.optim import recipe as recipe_of
from kdtool.errors import UsageError
from kdtool.methods import method
from kdtool.models import check_name, create, image_width, tap_shapes
from kdtool.targets import Facts, Shapes
from kdtool.workflows.reproduce import recipe as recipes
from kdtool.workflows.reproduce.ahead import check, teaching
from kdtool.workflows.reproduce.printed import Printed, printed
from kdtool.workflows.reproduce.recipe import Cell, Group, Recipe
from kdtool.workflows.reproduce.tasks import Task, basis_of, with_options

TORCHVISION = importlib.util.find_spec("torchvision") is not None
NAMES = recipes.names()
CLASSES = {
    "cifar100": 100,
    "cub200": 200,
    "digits": 10,
    "flowers102": 102,
    "imagenet": 1000,
    "indoor67": 67,
    "pubfig83": 83,
    "stanford_cars": 196,
    "tiny_imagenet": 200,
}
WIDTH = {"tiny_imagenet": 64}  # of the images of a data set, where it is not what the networks are made for
PUBLISHED = ("flowers102",)  # data sets that hold images out for validation themselves


@functools.cache
def load(name: str) -> Recipe:
    return recipes.load(name)


def asked(cell: Cell, options: dict[str, object] | None = None) -> DistillConfig:
    table = with_options(cell.distill, options) if options else cell.distill
    return distill_config(Values("distill", table, f"{cell.row} / {cell.column}"), "")


def grid(cell: Cell) -> Iterator[dict[str, object]]:
    """The points of a cell's search; one without options where there is none."""
    for point in itertools.product(*cell.search.values()):
        yield dict(zip(cell.search, point, strict=True))


def students() -> list[tuple[Recipe, Cell]]:
    """The cells of all recipes in which a student learns."""
    return [(load(name), cell) for name in NAMES for cell in load(name).cells if cell.distill and not cell.skip]


def members() -> dict[str, tuple[Recipe, Group]]:
    """The groups of all recipes by name, each with a recipe that has it."""
    return {group.name: (load(name), group) for name in NAMES for group in load(name).groups.values()}


def covered() -> Counter[Printed]:
    return Counter(cell.printed for name in NAMES for cell in load(name).cells if cell.printed)


def test_every_printed_number_is_one_cell() -> None:
    count = covered()
    assert len(printed()) == 588
    assert [cell for cell in printed() if count[cell] != 1] == []
    for name in NAMES:
        if load(name).table:
            assert [cell for cell in load(name).cells if cell.printed is None] == [], name


def test_the_printed_numbers_are_those_of_the_papers(shared: Path) -> None:
    there = resources.files("kdtool.workflows").joinpath("tables.json").read_text(encoding="utf-8")
    assert json.loads(there) == json.loads((shared / "design" / "tables.json").read_text())


@pytest.mark.parametrize("name", ["icd-table-1", "icd-table-2"])
def test_students_of_icds_tables_train_as_repdistillers(name: str) -> None:
    for cell in load(name).cells:
        if cell.distill:
            plan, student = asked(cell).recipe, asked(cell).student
            small = student.startswith(("mobile", "shuffle"))
            assert (plan.epochs, plan.batch, plan.learning_rate) == (240, 64, 0.01 if small else 0.05), student
            assert plan.drop_last == (asked(cell).methods[:1] == (method("icd"),)), cell


@pytest.mark.parametrize(
    ("paper", "plan"), [("kda", recipe_of("kda")), ("srm-table-1", recipe_of("srm")), ("srm-table-4", recipe_of("srm"))]
)
def test_students_of_the_other_tables_train_as_their_code_has_it(paper: str, plan: object) -> None:
    found = [cell for name in NAMES if name.startswith(paper) for cell in load(name).cells if cell.distill]
    assert found
    for cell in found:
        assert asked(cell).recipe == plan, cell


TEACHERS = {  # network, recipe; of the groups whose teachers the papers name
    "cifar100-resnet34": ("resnet34", "kda"),
    "tiny-imagenet-resnet34": ("resnet34", "kda"),
    "cifar100-wrn-40-2": ("wrn_40_2", "crd"),
    "cifar100-resnet56": ("resnet56", "crd"),
    "cifar100-resnet110": ("resnet110", "crd"),
    "cifar100-resnet32x4": ("resnet32x4", "crd"),
    "cifar100-vgg13": ("vgg13", "crd"),
    "cifar100-resnet50": ("resnet50", "crd"),
    "cifar100-densenet121": ("densenet121", "srm"),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_train_as_the_papers_say(name: str) -> None:
    network, plan = TEACHERS[name]
    recipe, group = members()[name]
    config = teach_config(Values("teach", teaching(recipe, group), name))
    assert (config.network, config.recipe) == (network, recipe_of(plan))


def test_srm_reports_what_validation_selects_and_takes_its_teachers_by_it() -> None:
    reports = {name: load(name).report for name in NAMES if name.startswith(("kda-", "srm-", "icd-"))}
    selected = {name for name, report in reports.items() if report == "selected"}
    assert selected == {f"srm-table-{number}" for number in range(1, 8)}
    taught = {name: group.teach or {} for name, (_, group) in members().items()}
    of = {name for name in taught if "resnext50" in name or "densenet" in name}
    assert {name for name, table in taught.items() if table.get("selected")} == {n for n in of if taught[n]}


def test_one_cell_is_not_run() -> None:
    skipped = [(name, cell.column) for name in NAMES for cell in load(name).cells if cell.skip]
    assert skipped == [("srm-table-8", "KD+ONE")]


def test_every_group_belongs_to_a_recipe_and_says_where_it_comes_from() -> None:
    assert set(members()) >= set(recipes._packaged("groups"))
    for group in (group for _, group in members().values()):
        assert len(group.about.split()) > 5, group.name


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_is_chosen(name: str) -> None:
    recipe = load(name)
    assert recipe.title != name
    assert "hosen" in recipe.about
    check(recipe)


@pytest.mark.parametrize("name", sorted(members()))
def test_a_group_can_be_made(name: str) -> None:
    recipe, group = members()[name]
    table = teaching(recipe, group)
    config = teach_config(Values("teach", table, name))
    assert config.data in data.DATASETS
    if TORCHVISION or not config.network.startswith("tv:"):
        check_name(config.network)
    views = extract_config(Values("extract", group.extract, name), "").views
    assert views > 0 or table.get("crop") != "resized", "there is no end of random boxes"
    assert not group.extract.get("for"), "what is stored follows from the cells"
    if "initial" in table:
        assert Path(table["initial"]).name == table["initial"]
    first = next(recipe.chain(name))
    assert first.teach is not None
    if group.early:
        source = teach_config(Values("teach", teaching(recipe, recipe.groups[group.before]), name))
        assert source.keep_weights
        assert group.early["epoch"] <= source.recipe.epochs
        assert group.early["epoch"] % source.keep_weights == 0
    if group.after:
        assert distill_config(Values("distill", group.after["distill"], name), "").student == config.network


def holds_out(recipe: Recipe, group: str) -> bool:
    """Whether a group holds images out for validation."""
    chain = list(recipe.chain(group))
    table = teaching(recipe, chain[-1])
    return bool(table.get("validation") or chain[-1].extract.get("validation") or table["data"] in PUBLISHED)


def test_what_needs_validation_has_it() -> None:
    for recipe, cell in students():
        if cell.search or recipe.report == "selected":
            assert holds_out(recipe, cell.group), (recipe.name, cell.row)


def test_every_cell_can_be_asked_for() -> None:
    for name in NAMES:
        for cell in load(name).cells:
            if cell.probe:
                found = probe_config(Values("probe", cell.probe, name), Path())
                assert found.data in data.DATASETS, (name, cell)
            if cell.distill and not cell.skip:
                for options in grid(cell):
                    assert asked(cell, options).student, (name, cell)


@functools.cache
def shapes(network: str, taps: tuple[tuple[str, str], ...], classes: int, width: int) -> Shapes:
    return tap_shapes(create(network, classes, dict(taps)), (3, width, width))


Pair = tuple[str, str, str, int]


def pairs() -> dict[Pair, list[DistillConfig]]:
    """(teacher, student, data set, width) -> what is asked for on them, each once."""
    found: dict[Pair, list[DistillConfig]] = {}
    for recipe, cell in students():
        table, config = teaching(recipe, recipe.groups[cell.group]), asked(cell)
        network = table.get("network", "resnet34")
        width = table.get("image_size") or WIDTH.get(table["data"], image_width(network))
        known = found.setdefault((network, config.student, table["data"], width), [])
        known.extend([config] if config not in known else [])
    return found


@pytest.mark.parametrize("pair", sorted(pairs()), ids=lambda pair: "-".join(map(str, pair)))
def test_every_method_takes_its_pair_of_networks(pair: Pair) -> None:
    teacher, student, dataset, width = pair
    if not TORCHVISION and any(name.startswith("tv:") for name in (teacher, student)):
        pytest.skip(f"{teacher} to {student} are networks of torchvision, which is not installed")
    classes = CLASSES[dataset]
    theirs = shapes(teacher, (), classes, width)
    labels = np.arange(20 * classes) % classes
    for config in pairs()[pair]:
        facts = Facts(len(labels), classes, labels, config.recipe.batch, config.recipe.epochs, config.seed)
        ours = shapes(config.student, tuple(config.taps.items()), classes, width)
        needs = needs_of(config.methods, ours, theirs, facts)
        stages, bound = staged(config.methods, needs, ours, theirs, facts, lambda _: {})
        check_schedule(stages, bound, config.recipe, 50_000)


def test_probed_stages_are_stages_that_another_one_follows() -> None:
    for recipe, cell in students():
        if stage := cell.probe.get("stage"):
            config = asked(cell)
            student, teacher = (shapes(name, (), 100, 32) for name in (config.student, "densenet121"))
            labels = np.arange(1000) % 100
            facts = Facts(1000, 100, labels, config.recipe.batch, config.recipe.epochs, 0)
            names = [stage.name for stage in config.methods[0].stages(student, teacher, facts)]
            assert stage in names[:-1], (recipe.name, cell.row)


SHARED = (
    (("kda-table-1", "before_fc"), ("kda-table-2", "KDA before_fc"), ("kda-figure-2", "class landmarks")),
    (("srm-table-1", "AllCNN-SRM (our)"), ("srm-table-3", "lambda 0.02 mu 2.0"), ("srm-table-4", "both")),
    (("icd-table-1", "CRD WRN-40-2 -> WRN-16-2"), ("icd-table-3", "CIFAR-100 -> STL-10 CRD")),
    (("icd-table-1", "ICD+KD WRN-40-2 -> WRN-40-1"), ("icd-figure-1", "ICD+KD")),
    (("srm-table-5", "AllCNN-SRM Flowers"), ("srm-table-7", "AllCNN-SRM Flowers")),
)


@pytest.mark.parametrize("places", SHARED, ids=lambda places: places[0][0])
def test_tables_share_the_students_that_they_have_in_common(places: tuple[tuple[str, str], ...]) -> None:
    keys = set()
    for name, place in places:
        recipe = load(name)
        cell = next(cell for cell in recipe.cells if place in f"{cell.row} {cell.column}")
        keys.add(Task(cell.group, basis_of(recipe, cell.group), cell.distill, {}, (), 0).key)
    assert len(keys) == 1


GROUP = '[group.g]\nteach = { data = "digits" }\n'
PAIR = '[[pair]]\nrow = "r"\ncolumn = "c"\ngroup = "g"\n'
BAD = {
    "unknown key": ('titel = "x"', "titel"),
    "unknown key of a cell": (PAIR + 'distil = { method = "kd" }\n' + GROUP, "distil"),
    "unknown key of a group": (PAIR + GROUP + "extra = 1\n", "extra"),
    "wrong kind": ("title = 3", "title is 3"),
    "wrong kind in a cell": (PAIR + 'live = "yes"\n' + GROUP, "live is 'yes'"),
    "wrong kind of only": (PAIR + '[[method]]\nonly = "r"\n' + GROUP, "only is 'r'"),
    "one name twice": (PAIR + PAIR + GROUP, "two cells are called r / c"),
    "unknown group": (PAIR, "group"),
    "unknown group of a teacher": (PAIR + '[group.g]\nteacher = "nobody"\n', "nobody"),
    "no origin of the teacher": (PAIR + "[group.g]\nextract = { views = 8 }\n", "where the teacher comes from"),
    "two origins of the teacher": (PAIR + GROUP + 'teacher = "digits"\n', "where the teacher comes from"),
    "missing label": ('column = "{nobody}"\n' + PAIR + GROUP, "nobody"),
    "unknown report": ('report = "best"\n' + PAIR + GROUP, "best"),
    "a teacher of its own": (PAIR + '[group.g]\nteacher = "h"\n[group.h]\nteacher = "g"\n', "comes from itself"),
    "an early teacher of nobody": (PAIR + "[group.g]\nearly = { epoch = 3 }\n", "early lacks group"),
    "an epoch that is none": (PAIR + '[group.g]\nearly = { group = "g", epoch = "x" }\n', "epoch is 'x'"),
    "a student of nothing": (PAIR + '[group.g]\nafter = { group = "g" }\n', "after lacks distill"),
    "a group that is no table": (PAIR + '[group]\ng = "x"\n', "g is 'x'"),
    "a pair that is no table": ('pair = ["a"]\n' + GROUP, "pair is 'a'"),
    "a search for one value": (PAIR + "search = { weight = 3 }\n" + GROUP, "weight is 3"),
    "only one text": (PAIR + '[[method]]\nonly = { row = "r" }\n' + GROUP, "row is 'r'"),
    "only of lists": (PAIR + '[[method]]\nonly = { row = [["r"]] }\n' + GROUP, "unknown row in"),
    "a table that is not printed": ('paper = "KDA"\ntable = "9"\n' + PAIR + GROUP, "prints no table '9'"),
    "a name that cannot be made": ('row = "{row"\n' + PAIR + GROUP, "row and column hold labels"),
    "no seeds": ("seeds = 0\n" + PAIR + GROUP, "seeds"),
    "no seeds of a search": ("search_seeds = 0\n" + PAIR + GROUP, "search_seeds is at least 1"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_a_bad_recipe_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        recipes.load(str(path))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_keeps_a_method_to_some_pairs(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    head = 'row = "{student}"\ncolumn = "c"\n'
    two = "".join(f'[[pair]]\nstudent = "{name}"\ngroup = "g"\n' for name in ("a", "b"))
    each = "".join(
        f'[[method]]\nonly = {{ student = ["{name}"] }}\ndistill = {{ method = "{method}" }}\n'
        for name, method in (("a", "kd"), ("b", "at"))
    )
    path.write_text(head + two + each + GROUP)
    cells = recipes.load(str(path)).cells
    assert [(cell.row, cell.distill["method"]) for cell in cells] == [("a", "kd"), ("b", "at")]
