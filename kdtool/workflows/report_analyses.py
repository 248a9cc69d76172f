"""The sections of a report that say what was transferred: kernels and similarity over all groups, and probes.

Left out: the figures of single runs (report_figures).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdtool import files
from kdtool.analysis import plots
from kdtool.analysis.analysed import Probe
from kdtool.analysis.gram import alignment
from kdtool.analysis.kept import Result, exact_gaps, is_exact, options_of
from kdtool.analysis.results import Group, Run
from kdtool.workflows import page
from kdtool.workflows.report_content import Column, Content, Layer, layer_name, left_of, legend, mean, measured

GAP = (
    "The kernel transfer loss is the Frobenius norm of K_T - K_S over that of K_T, the kernels of all images that were "
    "analysed: 0 says that the student relates any two of them to one another as the teacher does."
)
ENOUGH = 3  # students for a plot of accuracy against transfer loss
KERNELS = {"rbf": "RBF"}  # whose names are not written as they are chosen
LOSS = "loss"


@dataclass(frozen=True)
class Measure:
    """How a column looks whose name begins (a loss: ends) with a word, and what the page says of it."""

    text: str
    form: str
    sign: int


MEASURES = {  # in the order of the columns
    "alignment": Measure(
        "Alignment: the cosine of both kernels, which is the transfer loss without their sizes; 1 is best.", ".3f", 1
    ),
    LOSS: Measure("Loss: the transfer loss with other kernels; 0 is best.", "", -1),
    "CKA": Measure("CKA: centred kernel alignment with the teacher; 1 is best.", ".3f", 1),
    "RSA": Measure("RSA: correlation of the likeness of pairs of images on both sides; 1 is best.", ".3f", 1),
    "agreement": Measure("agreement: images that both put into the same class.", ".2f", 1),
    "KL": Measure("KL: divergence of the predictions from the teacher's; 0 is best.", "", -1),
    "ECE": Measure("ECE: expected calibration error, how far confidence is from accuracy.", ".2f", -1),
}


def transfer(shown: Content) -> list[str]:
    """The kernel transfer loss of every layer, and against the accuracy where there are enough students."""
    known = [group for group in shown.students if any(losses(group, layer) for layer in shown.layers)]
    drawn = shown.drawn(known)
    figures: list[str] = []
    several = False
    for number, layer in enumerate(shown.layers):
        points = [point(shown, group, layer) for group in drawn if losses(group, layer)]
        name = layer_name(layer, shown.layers)
        if points:
            bars = plots.inline(plots.bars(points), f"gap{number}")
            figures.append(page.figure(f"{name}: kernel transfer loss", bars))
        if len(points) >= ENOUGH:
            several = True
            cloud = plots.inline(plots.scatter(points, shown.teacher_accuracy), f"cloud{number}")
            figures.append(page.figure(f"{name}: test accuracy (%) against transfer loss", cloud))
    if not figures:
        return []
    said = f"{GAP} Analysed: {' and '.join(sorted({part for _, part in shown.layers}))} images."
    return [
        page.paragraph(said),
        legend(shown, drawn) if several else "",
        page.figures(*figures),
        page.paragraph(left_of(known, drawn)),
    ]


def losses(group: Group, layer: Layer) -> list[float]:
    """The kernel transfer losses of the group's runs."""
    return group.values(lambda run: run.gaps.get(layer))


def point(shown: Content, group: Group, layer: Layer) -> plots.Point:
    """A group in the plots of one layer: those of its runs that were analysed."""
    accuracies = group.values(lambda run: run.last if layer in run.gaps else None)
    return plots.Point(shown.title(group), shown.number(group), losses(group, layer), accuracies)


# Other kernels and similarity

Measures = dict[str, float]


def others(shown: Content) -> list[str]:
    """Other kernels, CKA, RSA and predictions: a table for every layer and part."""
    known = {run.folder: measures_of(run) for group in shown.students for run in group.runs}
    layers = list(dict.fromkeys(layer for found in known.values() for layer in found))
    parts: list[str] = []
    names: list[str] = []
    for layer in layers:
        groups = [group for group in shown.students if any(layer in known[run.folder] for run in group.runs)]
        found = [known[run.folder].get(layer, {}) for group in groups for run in group.runs]
        columns = [column(name, layer, known) for name in sorted(dict.fromkeys(n for m in found for n in m), key=order)]
        rows = measured(shown, groups, columns)
        parts += [
            page.subheading(f"{layer[0]}, {layer[1]} images"),
            page.table(
                "run", [each.name for each in columns], [*teacher_row(shown, layer, columns), *rows], cards=False
            ),
        ]
        names += [each.name for each in columns]
    used = {kind(name) for name in names}
    said = [measure.text for word, measure in MEASURES.items() if word in used]
    return [page.paragraph(" ".join(said)), *parts] if parts else []


def measures_of(run: Run) -> dict[Layer, Measures]:
    """Everything in the tables, by layer and part, under the names of its columns."""
    found: dict[Layer, Measures] = {}
    gaps = run.analysed.results.get("gram-gap", ())
    for gap in sorted(gaps, key=lambda gap: int(gap["samples"])):
        if not is_exact(gap):
            found.setdefault(place(gap), {})[f"{kernel(gap)} loss"] = gap["loss"]
    for gap in exact_gaps(gaps).values():
        found.setdefault(place(gap), {})["alignment"] = alignment(gap)
    for said in run.analysed.results.get("similarity", ()):
        found.setdefault(place(said), {}).update(similarity(said))
    return found


def place(result: Result) -> Layer:
    """The layer and part that a result is about."""
    return result["layer"], result["part"]


def kernel(gap: Result) -> str:
    """The kernel of a transfer loss, and how it was approximated."""
    name = KERNELS.get(gap["kernel"], str(gap["kernel"]))
    if gap["degree"] is not None:
        name += f" of degree {gap['degree']}, constant {gap['constant']:g}"
    asked = options_of(gap)
    told = [f"gamma {asked['gamma']}"] if "gamma" in asked else []
    told += [] if gap["nystrom_landmarks"] is None else [f"{gap['nystrom_landmarks']:,} landmarks"]
    told += [f"seed {asked['seed']}"] if told and "seed" in asked and gap["nystrom_landmarks"] is not None else []
    return f"{name} ({', '.join(told)})" if told else name


def similarity(said: Result) -> Measures:
    """The numbers of one result of `similarity`."""
    found = {"CKA": said["cka"]["cka"], "RSA": said["rsa"]["pearson"]}
    if (predicted := said["predictions"]) is not None:
        heat = "" if predicted["temperature"] == 1 else f" at temperature {predicted['temperature']:g}"
        found |= {"agreement (%)": 100 * predicted["agreement"], f"KL{heat} (nats)": predicted["kl"]}
        if predicted["student"] is not None:
            found["ECE (%)"] = 100 * predicted["student"]["calibration_error"]
    return found


def column(name: str, layer: Layer, known: Mapping[Path, Mapping[Layer, Measures]]) -> Column:
    """The column of one measure."""
    measure = MEASURES[kind(name)]
    return Column(name, lambda run: known[run.folder].get(layer, {}).get(name), measure.form, measure.sign)


def kind(name: str) -> str:
    """The measure that a column is of."""
    return LOSS if name.endswith(f" {LOSS}") else name.split()[0]


def order(name: str) -> tuple[int, str]:
    """Where a column stands."""
    return list(MEASURES).index(kind(name)), name.lower() if kind(name) == LOSS else ""


def teacher_row(shown: Content, layer: Layer, columns: Sequence[Column]) -> list[page.TableRow]:
    """The teacher's own calibration error, where it was measured and there is one teacher."""
    said = [result for run in shown.runs for result in run.analysed.results.get("similarity", ())]
    known = [result["predictions"]["teacher"] for result in said if place(result) == layer and result["predictions"]]
    if len(shown.teachers) > 1 or not any(known):
        return []
    error = next(filter(None, known))["calibration_error"]
    return [page.TableRow("teacher", [f"{100 * error:.2f}" if each.name == "ECE (%)" else "" for each in columns])]


# Probes


def probes(shown: Content) -> list[str]:
    """Accuracies on other data sets, of everything that was probed."""
    found = {probe_key(probe): probe for run in shown.runs for probe in run.analysed.probes}
    groups = [group for group in shown.groups if any(run.analysed.probes for run in group.runs)]
    names = probe_names(found)
    columns = [Column(f"{names[key]} (%)", probed(key), ".2f") for key in sorted(found, key=names.__getitem__)]
    if not columns:
        return []
    frozen = "linear: a new classifier on the frozen network" if any(p.kind == "linear" for p in found.values()) else ""
    whole = "whole: everything trains again" if any(probe.kind == "whole" for probe in found.values()) else ""
    said = "; ".join(word for word in (frozen, whole) if word)
    return [
        page.table("run", [each.name for each in columns], measured(shown, groups, columns), cards=False),
        page.paragraph(f"Test accuracy after the last epoch on another data set. {said}."),
    ]


def probed(key: str) -> Callable[[Run], float | None]:
    """What gives the mean accuracy of a run's probes of one kind, which differ in their seed."""
    return lambda run: mean([probe.last for probe in run.analysed.probes if probe_key(probe) == key])


def probe_key(probe: Probe) -> str:
    """What tells kinds of probes apart."""
    return files.canonical([probe.data_digest, probe.kind, probe.batchnorm, probe.settings])


def probe_names(found: Mapping[str, Probe]) -> dict[str, str]:
    """A name for every kind of probe, with the settings that tell it from others that would be called the same."""
    contents = Counter(name for name, _ in {(probe.data, probe.data_digest) for probe in found.values()})
    digests = {key: f" {probe.data_digest[:6]}" if contents[probe.data] > 1 else "" for key, probe in found.items()}
    names = {key: f"{probe.data}{digests[key]}, {probe.kind}" for key, probe in found.items()}
    told = {}
    for key, probe in found.items():
        alike = [other.settings for at, other in found.items() if names[at] == names[key]]
        fields = dict.fromkeys(field for settings in alike for field in settings)
        differing = [field for field in fields if len({settings.get(field) for settings in alike}) > 1]
        words = [f"{field.rpartition('.')[2]} {probe.settings.get(field, 'default')}" for field in differing[:3]]
        told[key] = ", ".join((names[key], *words))
    return told
