"""The front door: what `import kdtool` offers, `help`, docstrings and annotations, and the examples, at tiny size."""

import ast
import doctest
import importlib
import inspect
import json
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import kdtool
from kdtool.workflows.bench import made_up
from kdtool.workflows.bench.start import HEAVY

ROOT = Path(__file__).resolve().parents[1]
PAGE, WALKTHROUGH = ROOT / "docs" / "python.md", ROOT / "examples" / "walkthrough.py"

SMALLER = {'"resnet14"': '"resnet8"', "epochs=8, batch=64": "epochs=2, batch=32", "views=6": "views=2"}
SIZES = {"TEACHER, STUDENT": ("resnet8", "resnet8"), "EPOCHS, BATCH, VIEWS": (2, 32, 2)}  # of the walkthrough

# Fields of dataclasses whose name says all that there is to say, wherever it stands.
PLAIN = {
    *("name", "names", "title", "label", "text", "about", "notes", "note", "problems", "reason", "remarks", "what"),
    *(
        "batch",
        "block",
        "classes",
        "class_names",
        "count",
        "device",
        "dtype",
        "epoch",
        "epochs",
        "image_shape",
        "images",
    ),
    *(
        "height",
        "width",
        "layer",
        "layers",
        "learning_rate",
        "mean",
        "std",
        "model",
        "network",
        "optimizer",
        "parameters",
    ),
    *("part", "precision", "rank", "ranks", "recipe", "row", "column", "samples", "seconds", "seed", "seen", "version"),
    *(
        "test_accuracy",
        "train_accuracy",
        "validation",
        "views",
        "weight",
        "flip",
        "md5",
        "digest",
        "sha256",
        "data_digest",
    ),
    *("split_digest", "weights_sha256", "data", "data_folder", "cache", "manifest", "layout", "identity", "contents"),
    *("progress", "stop", "folder", "root", "command", "config", "environment", "method", "methods", "options", "run"),
    *("runs", "stage", "stages", "student", "students", "teacher", "test", "train", "tap", "taps", "targets", "fits"),
    *("teacher_features", "teacher_network", "teacher_sha256", "teacher_accuracy", "cache_identity", "kind", "kernel"),
    *(
        "landmarks",
        "strategies",
        "algorithm",
        "results",
        "features",
        "labels",
        "key",
        "value",
        "values",
        "kinds",
        "last",
    ),
    *("best", "shape", "colour", "marker", "dashes", "lowest", "highest", "generator", "rows", "bytes", "members"),
    *(
        "student_shape",
        "teacher_shape",
        "student_width",
        "teacher_width",
        "student_kernel",
        "teacher_kernel",
        "temperature",
    ),
    *("student_norm", "kernel_norm", "column_norm", "factor_norm", "nystrom_error", "column_difference"),
    *("factor_difference", "effective_rank", "participation_ratio", "estimates", "snapshots", "agreements", "products"),
    *("augmentation", "rule", "source", "image", "lemma_1", "cka", "rsa", "by_class", "losses", "accuracies", "growth"),
    *("difference", "bound", "bars", "number", "draws", "provenance", "offsets", "grid", "fitted", "right", "wrong"),
    *("asked", "left"),
}


def public(name: str) -> bool:
    return not name.startswith("_")


def sources() -> Iterator[tuple[str, str]]:
    """(name, text) of every public module of kdtool and kdtool.cache."""
    for folder, package in ((ROOT / "kdtool", "kdtool"), (ROOT / "cache", "kdtool.cache")):
        for path in sorted(folder.rglob("*.py")):
            parts = [part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__"]
            if all(map(public, parts)):
                yield ".".join([package, *parts]), path.read_text()


def definitions(name: str, tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    """(dotted name, node) of the public classes and functions of a module, and of what is public in its classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and public(node.name):
            yield f"{name}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from definitions(f"{name}.{node.name}", node)
        elif (
            isinstance(tree, ast.ClassDef)
            and isinstance(node, ast.FunctionDef)
            and node.name in ("__init__", "__call__")
        ):
            yield f"{name}.{node.name}", node


TEXTS = dict(sources())
MODULES = {name: ast.parse(text) for name, text in TEXTS.items()}
DEFINED = {name: node for module, tree in MODULES.items() for name, node in definitions(module, tree)}
FUNCTIONS = {name: node for name, node in DEFINED.items() if isinstance(node, ast.FunctionDef)}
CLASSES = {name: node for name, node in DEFINED.items() if isinstance(node, ast.ClassDef)}


def test_modules_functions_and_classes_are_found() -> None:
    assert {"kdtool", "kdtool.cache.reader", "kdtool.engine.teach"} <= MODULES.keys()
    assert {"kdtool.engine.teach.teach", "kdtool.cache.reader.Cache.views", "kdtool.targets.Encoder.__call__"} <= set(
        FUNCTIONS
    )
    assert len(FUNCTIONS) > 900


def test_everything_public_has_a_docstring() -> None:
    bare = [name for name, tree in MODULES.items() if not ast.get_docstring(tree)]
    special = ("__init__", "__call__")  # the class says what they do
    bare += [
        name
        for name, node in {**CLASSES, **FUNCTIONS}.items()
        if not ast.get_docstring(node) and name.rpartition(".")[2] not in special
    ]
    assert bare == []


def unannotated(function: ast.FunctionDef) -> list[str]:
    """The parameters without an annotation, and "return"."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    bare = [one.arg for one in named if one.annotation is None and one.arg not in ("self", "cls")]
    return bare + (["return"] if function.returns is None else [])


def test_everything_public_is_annotated() -> None:
    assert {name: bare for name, node in FUNCTIONS.items() if (bare := unannotated(node))} == {}


@pytest.mark.parametrize(
    ("source", "bare"),
    [
        ("def f(a: int, *b: int, c: int = 0, **d: int) -> None: ...", []),
        ("def f(self, a, *b, c=0, **d): ...", ["a", "c", "b", "d", "return"]),
    ],
)
def test_a_missing_annotation_is_seen(source: str, bare: list[str]) -> None:
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert unannotated(function) == bare


def unexplained(name: str) -> list[str]:
    """The public fields of a dataclass that neither its docstring nor a comment tells of; none of another class."""
    node, lines = (
        CLASSES[name],
        TEXTS[max((text for text in TEXTS if name.startswith(f"{text}.")), key=len)].splitlines(),
    )
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    told = set(re.findall(r"\w+", ast.get_docstring(node) or ""))
    found = [item for item in node.body if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item)]
    bare = [ast.unparse(item.target) for item in found if "  # " not in lines[item.lineno - 1]]
    return [field for field in bare if public(field) and field not in told]


def test_fields_of_dataclasses_are_explained_where_their_name_does_not_say_it() -> None:
    """Those of the front door one and all, the others where they are not plain; workflows are programs of their own."""
    offered = {f"{kind.__module__}.{kind.__name__}" for kind in vars_of_kdtool().values() if inspect.isclass(kind)}
    assert {"kdtool.engine.teach.TeachConfig", "kdtool.engine.optim.Recipe"} <= offered
    bare = {
        name: [field for field in unexplained(name) if name in offered or field not in PLAIN]
        for name in CLASSES
        if not name.startswith("kdtool.workflows.")
    }
    assert {name: found for name, found in bare.items() if found} == {}


def vars_of_kdtool() -> dict[str, object]:
    return {name: getattr(kdtool, name) for name in kdtool.__all__}


def test_the_front_door_says_where_each_name_lies_and_type_checkers_see_the_same() -> None:
    checked: dict[str, object] = {}
    for node in ast.walk(MODULES["kdtool"]):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                assert statement.module is not None
                home = importlib.import_module(statement.module)
                for alias in statement.names:
                    if statement.module == "kdtool":
                        importlib.import_module(f"kdtool.{alias.name}")
                    checked[alias.name] = getattr(home, alias.name)
    assert checked == vars_of_kdtool()
    assert kdtool.__all__ == sorted(kdtool.__all__)
    assert set(dir(kdtool)) == {*kdtool.__all__, "__version__"}


def test_the_classes_of_methods_are_exported() -> None:
    """`import KD as KD`: type checkers follow no other import of an import."""
    said = TEXTS["kdtool.methods"]
    kinds = [kind.__name__ for kind in kdtool.methods.METHODS.values()]
    assert [name for name in kinds if f" import {name} as {name}\n" not in said] == []


START = """
import json, sys
import kdtool
before = sorted(name for name in sys.modules if name.split(".")[0] in {"kdtool", *HEAVY})
kdtool.Augmentation, kdtool.open_cache
early = sorted({name.split(".")[0] for name in sys.modules} & HEAVY)
kdtool.teach
print(json.dumps([before, early, "torch" in sys.modules]))
"""


def test_names_are_imported_when_they_are_first_used(tmp_path: Path) -> None:
    script = START.replace("HEAVY", repr(set(HEAVY)))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["kdtool"], ["numpy"], True]


@pytest.mark.parametrize(
    ("name", "near"), [("distil", "distill"), ("Worksapce", "Workspace"), ("opencache", "open_cache")]
)
def test_an_unknown_name_is_told_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(AttributeError, match=f"^module 'kdtool' has no attribute '{name}'; did you mean '{near}'\\?$"):
        getattr(kdtool, name)
    with pytest.raises(AttributeError, match=r"no attribute 'xylophone'$"):
        kdtool.xylophone  # noqa: B018


def test_help_shows_every_name_with_what_it_is_and_nothing_internal() -> None:
    text = pydoc.render_doc(kdtool, renderer=pydoc.plaintext)
    lines = [line.strip(" |") for line in text.splitlines()]
    for name, found in vars_of_kdtool().items():
        if isinstance(found, ModuleType):
            assert any(line.startswith(f"kdtool.{name} ") for line in lines), name
            continue
        first = (inspect.getdoc(found) or "").splitlines()[0]
        assert first in lines, name
        shown = f"class {name}(" if inspect.isclass(found) else f"{name}("
        assert any(line.startswith(shown) for line in lines), name
    internal = [" object at 0x", "__getattr__", "__dir__", "__all__", "_PLACES", "_unknown", "TYPE_CHECKING"]
    assert [word for word in internal if word in text] == []


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def example() -> str:
    """The example of the docstring."""
    return "".join(part.source for part in doctest.DocTestParser().get_examples(kdtool.__doc__ or ""))


def smaller(code: str) -> str:
    for typed, small in SMALLER.items():
        assert typed in code
        code = code.replace(typed, small)
    return code


@pytest.fixture
def _few_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some noise in place of the digits, and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with made_up.registry_kept():
        made_up.offer(replace(made_up.dataset(64, 10, 32), name="digits", flip=False))
        yield


def test_the_example_of_the_docstring_begins_the_page_on_python() -> None:
    lines = example().splitlines()
    assert len(lines) == 13
    assert [line for line in blocks(PAGE)[0].splitlines() if line] == lines


@pytest.mark.usefixtures("_few_digits")
def test_the_page_on_python_runs() -> None:
    code = smaller("\n".join(blocks(PAGE))).replace("epochs=4", "epochs=2")
    found: dict[str, object] = {}
    exec(compile(code, PAGE.name, "exec"), found)
    assert len(list(Path("digits/runs").glob("*/result.json"))) == 1 + 3 + 4 + 1
    assert Path("student.pt2").exists()
    assert found["logits"].shape == (32, 10)  # type: ignore[attr-defined]
    assert found["found"] != []


def test_links_of_the_page_on_python_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert len(links) > 4
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


def with_sizes(source: str) -> ast.Module:
    """The walkthrough, with other sizes in the place of those at its head."""
    tree, left = ast.parse(source), dict(SIZES)
    for node in tree.body:
        if isinstance(node, ast.Assign) and (names := ast.unparse(node.targets[0]).strip("()")) in left:
            node.value = ast.parse(repr(left.pop(names)), mode="eval").body
    assert left == {}
    return tree


@pytest.mark.usefixtures("_few_digits")
def test_the_walkthrough_runs(capsys: pytest.CaptureFixture[str]) -> None:
    source = WALKTHROUGH.read_text()
    found: dict[str, object] = {}
    exec(compile(with_sizes(source), WALKTHROUGH.name, "exec"), found)
    said = capsys.readouterr().out
    assert said.count("transfer loss 0.") + said.count("transfer loss 1") == 4
    assert re.search(r"% right; the first ten", said)
    if importlib.util.find_spec("matplotlib"):
        pyplot = importlib.import_module("matplotlib.pyplot")
        pyplot.close("all")
        assert {path.name for path in Path("walkthrough").iterdir()} >= {"transfer.png", "report.html"}


def test_the_walkthrough_has_cells_of_prose_and_of_code() -> None:
    lines = WALKTHROUGH.read_text().splitlines()
    prose, cells = lines.count("# %% [markdown]"), lines.count("# %%")
    assert prose > cells > 5
