"""What `kdtool analyze` left in the folder of a run, for its weights as they are: results of analyses, and probes.

What is of other weights, because the run was trained again since, is left out and told of. Left out: what is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtool import files
from kdtool.analysis.analyses import Similarity
from kdtool.analysis.bounds import Bounds
from kdtool.analysis.checked import check
from kdtool.analysis.correlation import ClassCorrelation
from kdtool.analysis.gram import GramGap
from kdtool.analysis.kept import Result, read_results, results_path
from kdtool.analysis.landmarks import Training
from kdtool.analysis.spectrum import Spectrum
from kdtool.engine.runs import read_toml
from kdtool.errors import DamageError


@dataclass(frozen=True)
class About:
    """What every result says of what it is about."""

    run: str
    layer: str
    part: str
    teacher_features: str
    weights_sha256: str


KINDS = {
    "gram-gap": GramGap,
    "bounds": Bounds,
    "spectrum": Spectrum,
    "landmarks": Training,
    "correlation": ClassCorrelation,
    "similarity": Similarity,
}
UNSETTLED = ("seed", "run", "weights", "device", "precision", "data_folder")  # do not tell kinds of probes apart


@dataclass(frozen=True)
class Accuracies:
    """Test accuracies of a probe in percent: after the last epoch, and the best of all."""

    last: float
    best: float


@dataclass(frozen=True)
class ProbeResult:
    """The fields of a probe's result that are read. probed_sha256: of the weights; batchnorm: eval or train."""

    data: str
    data_digest: str
    kind: str
    batchnorm: str
    probed_sha256: str
    test_accuracy: Accuracies


@dataclass(frozen=True)
class Probe:
    """How well the run's network served another data set.

    folder: its name in that of the run; data_digest: of the content of the data set; settings: all that makes the probe
    what it is, save its seed; batchnorm: whether its statistics stayed (eval) or followed the data (train); last: test
    accuracy after the last epoch in percent.
    """

    folder: str
    data: str
    data_digest: str
    kind: str
    batchnorm: str
    settings: Mapping[str, str]
    last: float


@dataclass(frozen=True)
class Analysed:
    """Results by analysis, and probes, of the weights that the run has. stale: sentences on what is left out."""

    results: Mapping[str, tuple[Result, ...]] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    stale: tuple[str, ...] = ()


def read_analysed(folder: Path, weights: str, stages: Mapping[str, str]) -> Analysed:
    """Everything that was analysed; DamageError names the file that is damaged or not as kdtool writes it.

    weights: SHA-256 of the run's weights; stages: name -> SHA-256 of those that an earlier stage ended with.
    """
    results, stale = {}, []
    for analysis in KINDS:
        found = read_checked(folder, analysis)
        results[analysis] = tuple(result for result in found if result["weights_sha256"] == weights)
        if len(results[analysis]) < len(found):
            stale.append(f"results of analysis/{analysis}.json; run `kdtool analyze {analysis}` again")
    probes = []
    for path in sorted(folder.glob("probe-*/result.json")):
        probe, probed = read_probe(path)
        if probed == stages.get(probe.settings.get("stage", ""), weights):
            probes.append(probe)
        else:
            stale.append(f"{probe.folder}; remove it and run `kdtool analyze probe` again")
    return Analysed({name: found for name, found in results.items() if found}, tuple(probes), tuple(stale))


def read_checked(folder: Path, analysis: str) -> list[Result]:
    """The results of one analysis, with every field of its type."""
    found = read_results(folder, analysis)
    path = results_path(folder, analysis)
    what, repair = f"a result in {path}", f"remove {path} and run `kdtool analyze {analysis}` again"
    for result in found:
        check(result, About, what, repair)
        check(result, KINDS[analysis], what, repair)
        if result.get("loss", 0) < 0:
            raise DamageError(f"{what} has the loss {result['loss']}, which is never below 0; {repair}")
    return found


def read_probe(path: Path) -> tuple[Probe, str]:
    """A probe from its result, and the SHA-256 of the weights that were probed."""
    folder = path.parent
    repair = f"remove {folder} and run `kdtool analyze probe` again"
    result = files.read_json(path, repair)
    check(result, ProbeResult, str(path), repair)
    settings = {key: value for key, value in flat(read_toml(folder / "config.toml")).items() if key not in UNSETTLED}
    known = {name: result[name] for name in ("data", "data_digest", "kind", "batchnorm")}
    return Probe(folder.name, **known, settings=settings, last=result["test_accuracy"]["last"]), result["probed_sha256"]


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration as texts, those of tables as `table.name`."""
    found: dict[str, str] = {}
    for key, value in config.items():
        table = isinstance(value, dict)
        found |= {f"{key}.{name}": str(item) for name, item in value.items()} if table else {key: str(value)}
    return found
