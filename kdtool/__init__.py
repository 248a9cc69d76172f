"""kdtool: run the teacher once, keep what it said, distil any number of students from the cache.

    teach -> teacher.safetensors -> extract -> cache.zarr -> distill -> student.safetensors -> gram_gap, write_report

Only `extract` runs the teacher: it stores what the teacher says of every image in a number of augmented views. Students
learn from that cache, in the same views, and analyses compare them with it. Every stage is a function that takes the
`Workspace` it works in and a frozen dataclass that says what is wanted. All of it stays in the workspace's folder,
where the commands of `kdtool --help` find it too; a call that was stopped goes on when it is made again.

    >>> import kdtool
    >>> from kdtool.methods import KD, KDA
    >>> plan = kdtool.Recipe(epochs=8, batch=64)
    >>> work = kdtool.Workspace.open("digits")
    >>> taught = kdtool.teach(work, kdtool.TeachConfig("digits", "resnet14", plan))
    >>> kdtool.extract(work.cache, kdtool.prepare(work, kdtool.ExtractConfig(views=6, without=("srm",))))
    >>> asked = [(), (KD(),), (KDA(layers=("before_fc", "after_fc")),)]  # no teacher, KD, KDA
    >>> runs = [kdtool.distill(work, kdtool.DistillConfig("resnet8", methods, plan)) for methods in asked]
    >>> gaps = kdtool.gram_gap(work, kdtool.Asked(tuple(work.runs / run["name"] for run in runs)))
    >>> for run in kdtool.read_runs([work.runs])[0]:
    ...     print(run.label, run.last, run.gaps)  # test accuracy in percent, kernel transfer loss by layer
    >>> features = kdtool.open_cache(work.cache).array("train", "before_fc", "values").read(view=0)  # numpy, (n, d)
    >>> student = kdtool.load_network(work.runs / runs[1]["name"] / "student.safetensors")  # pixels to logits

What has no name here lies in modules, which are imported when they are first used:

    kdtool.methods     METHODS and the class of each: KD, KDA, SRM, ICD, ...; the loss functions lie in their modules
    kdtool.models      MODELS and create(name, classes): the networks; TapReader: named layers of any network
    kdtool.data        DATASETS and load(name, folder): data sets from local files
    kdtool.analysis    analyses: the others on runs; gram, similarity, rsa, ...: the same on arrays of your own
    kdtool.cache       what is done with a cache: info, verify, export_hdf5, ...
    kdtool.progress    Progress, to show how far a stage is; stoppable, to stop one at a safe point
    kdtool.errors      KdtoolError and its kinds: everything that is raised for a user's eyes
    kdtool.workflows   quickstart, doctor, bench; testing: the checks that a method of your own should pass

docs/python.md tells more, and examples/walkthrough.py goes through all of it in cells, as a notebook does.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdtool import analysis, cache, data, errors, methods, models, progress, workflows
    from kdtool.analysis.analyses import gram_gap
    from kdtool.analysis.gram import transfer_loss
    from kdtool.analysis.pairs import Asked
    from kdtool.analysis.results import read_runs
    from kdtool.cache import open_cache
    from kdtool.data.augment import Augmentation
    from kdtool.engine.distill import DistillConfig, distill
    from kdtool.engine.extract import extract
    from kdtool.engine.folder import Workspace
    from kdtool.engine.optim import Recipe, recipe
    from kdtool.engine.prepare import ExtractConfig, prepare
    from kdtool.engine.teach import TeachConfig, teach
    from kdtool.engine.trained import load_network
    from kdtool.workflows.report import write_report

__version__ = "0.1.0"

__all__ = [
    "Asked",
    "Augmentation",
    "DistillConfig",
    "ExtractConfig",
    "Recipe",
    "TeachConfig",
    "Workspace",
    "analysis",
    "cache",
    "data",
    "distill",
    "errors",
    "extract",
    "gram_gap",
    "load_network",
    "methods",
    "models",
    "open_cache",
    "prepare",
    "progress",
    "read_runs",
    "recipe",
    "teach",
    "transfer_loss",
    "workflows",
    "write_report",
]

# Where the names lie, for they are imported when they are first used; a name that is not here is a module.
_PLACES = {
    "Asked": "analysis.pairs",
    "Augmentation": "data.augment",
    "DistillConfig": "engine.distill",
    "ExtractConfig": "engine.prepare",
    "Recipe": "engine.optim",
    "TeachConfig": "engine.teach",
    "Workspace": "engine.folder",
    "distill": "engine.distill",
    "extract": "engine.extract",
    "gram_gap": "analysis.analyses",
    "load_network": "engine.trained",
    "open_cache": "cache",
    "prepare": "engine.prepare",
    "read_runs": "analysis.results",
    "recipe": "engine.optim",
    "teach": "engine.teach",
    "transfer_loss": "analysis.gram",
    "write_report": "workflows.report",
}

if not Path(__file__).with_name("cli").is_dir():  # a checkout: cli/ and cache/ lie beside this folder
    __path__.append(str(Path(__file__).parents[1]))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]  # no more: `help` and editors show them all


if not TYPE_CHECKING:  # type checkers shall know no other names than those above

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(_unknown(name), name=name)
        import importlib

        module = importlib.import_module(f"kdtool.{_PLACES.get(name, name)}")
        found = getattr(module, name) if name in _PLACES else module
        globals()[name] = found
        return found


def _unknown(name: str) -> str:
    """What is said of a name that is not here."""
    import difflib

    near = difflib.get_close_matches(name, __all__, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"module 'kdtool' has no attribute {name!r}{hint}"
