"""Figures of every analysis, drawn from real results of small data and of data without much sense."""

import json
import math
import re
import sys
from dataclasses import asdict
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtool.analysis import figures, plots
from kdtool.analysis.bounds import bounds
from kdtool.analysis.correlation import class_means, standardised
from kdtool.analysis.figures import heat, scales, sheets
from kdtool.analysis.figures.about import stem
from kdtool.analysis.gram import gram_gap
from kdtool.analysis.kept import keep, read_results
from kdtool.analysis.kernels import Kernel
from kdtool.analysis.landmarks import Followed, Plan, landmark_sets
from kdtool.analysis.predictions import predictions
from kdtool.analysis.rsa import rsa
from kdtool.analysis.similarity import linear_cka
from kdtool.analysis.spectrum import spectrum
from kdtool.errors import UsageError

pytest.importorskip("matplotlib", reason="plots are optional")

PAIR = ("one", "two")
SIGNATURES = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}


def sides(n=60, d=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    teacher = rng.standard_normal((n, d)) + rng.standard_normal((classes, d))[labels]
    return teacher + 0.3 * rng.standard_normal((n, d)), teacher, labels


def about(run="one", layer="before_fc", part="train"):
    return {"run": run, "layer": layer, "part": part, "teacher_features": "cached float16", "weights_sha256": "0" * 64}


def gap(student, teacher, labels=None, run="one", layer="before_fc", **options):
    return {**about(run, layer), **asdict(gram_gap(student, teacher, labels=labels, **options))}


def named(result, names):
    result["by_class"]["class_names"] = names
    return result


def all_bounds(student, teacher, labels, plan=None, run="one", rank=None):
    sets = landmark_sets(student, teacher, labels, plan or Plan())
    return [{**about(run), **asdict(bounds(student, teacher, found, rank, pairs=50))} for found in sets.values()]


def spectra(student, teacher, labels=None, run="one", plan=None, **options):
    sets = list(landmark_sets(student, teacher, labels, plan or Plan(("random",), count=4)).values())
    return {**about(run), **asdict(spectrum(student, teacher, sets, labels, draws=2, **options))}


def trained(epochs, teacher, labels, run="one", stages=("fit",), noise=0.3):
    rng = np.random.default_rng(0)
    steps = [
        (stage, epoch, teacher + noise / (epoch + 1) * rng.standard_normal(teacher.shape))
        for stage in stages
        for epoch in epochs
    ]
    followed = Followed(teacher, labels, Plan())
    for step in steps:
        followed.add(*step)
    return {**about(run), **asdict(followed.result())}


def correlations(classes, run="one", labels=None, n=300):
    student, teacher, known = sides(n, classes, classes)
    student = student + np.random.default_rng(1).standard_normal((n, 1)) * np.linspace(-2, 2, classes)
    labels = known if labels is None else labels
    where = about(run, "after_fc", "test")
    both = standardised(student, teacher), class_means(student, teacher, labels)
    return [{**where, **asdict(form)} for form in both]


def similar(student, teacher, labels=None, run="one", logits=True):
    said = asdict(predictions(student, teacher, labels)) if logits else None
    layer = about(run, "after_fc" if logits else "before_fc", "test")
    return {
        **layer,
        "cka": asdict(linear_cka(student, teacher)),
        "rsa": asdict(rsa(student, teacher)),
        "predictions": said,
    }


S, T, Y = sides()
ZEROS = np.zeros_like(S)
KERNELS = {"kernel": "rbf", "algorithm": "nystrom", "landmarks": 20}
MANY = sides(400, 6, 200)
SMALL = landmark_sets(S, T, Y, Plan(("class",)))

# name -> analysis, results, the stems of its figures, words that must stand in one of them
CASES = {
    "gaps": lambda: (
        "gram-gap",
        [gap(S, T), gap(S, T, layer="map:layer3"), gap(S, T, **KERNELS)],
        ["gram-gap"],
        ["kernel transfer loss", "before_fc, train", "map:layer3, train", "rbf kernel, 20 landmarks", "95 % sure"],
    ),
    "gaps of runs": lambda: (
        "gram-gap",
        [gap(S + shift, T, Y, run=run, kernel=Kernel("cosine")) for shift, run in enumerate(PAIR)],
        ["gram-gap", *(f"gram-gap-classes-before_fc-train-cosine-{run}" for run in PAIR)],
        ["2 students", "before_fc, train, cosine kernel", "one", "two"],
    ),
    "classes": lambda: (
        "gram-gap",
        [gap(S, T, np.where(Y == 2, -1, Y + (Y == 3)))],
        ["gram-gap", "gram-gap-classes-before_fc-train"],
        ["By class", "The largest blocks", "Without images: class 2, 3.", "15 images without a label are left out."],
    ),
    "named classes": lambda: (
        "gram-gap",
        [named(gap(S, T, Y), ["lawn_mower", "$x$ <&", "a class of a name that is far too long", "\u5b66", *"ef"])],
        ["gram-gap", "gram-gap-classes-before_fc-train"],
        ["lawn_mower", "$x$ <&", "a clas… long", "within "],
    ),
    "200 classes": lambda: (
        "gram-gap",
        [gap(*MANY)],
        ["gram-gap", "gram-gap-classes-before_fc-train"],
        ["Shares of all 200 classes, sorted (%)", "The 12 classes with the largest shares", "all alike"],
    ),
    "one class": lambda: (
        "gram-gap",
        [gap(S, T, np.zeros(60, dtype=int))],
        ["gram-gap", "gram-gap-classes-before_fc-train"],
        ["There is one class, so that nothing lies between classes.", "within 0"],
    ),
    "nothing lost": lambda: (
        "gram-gap",
        [gap(T, T.copy(), Y)],
        ["gram-gap", "gram-gap-classes-before_fc-train"],
        ["Nothing is lost: the kernels are equal."],
    ),
    "classes without kernel": lambda: (
        "gram-gap",
        [gap(S, T * (Y > 0)[:, None], Y)],
        ["gram-gap", "gram-gap-classes-before_fc-train"],
        [
            "No loss within of class 0: the teacher's kernel is zero",
            "No loss between of class 0: the teacher's kernel is zero",
        ],
    ),
    "bounds": lambda: (
        "bounds",
        all_bounds(S, T, Y),
        ["bounds-before_fc-train"],
        [
            "true gap",
            "guaranteed",
            "an assumption fails",
            "Corollary 2, scale-free",
            "Theorem 2, tighter (a ",
            "4 class centres",
        ],
    ),
    "bounds of runs": lambda: (
        "bounds",
        [*all_bounds(S, T, Y, Plan(("random",), count=20), "one", 3), *all_bounds(S, T, Y, Plan(("kmeans",)), "two")],
        ["bounds-before_fc-train-one", "bounds-before_fc-train-two"],
        ["20 random images, rank 3", "cannot be computed", "4 k-means clusters", "W is singular"],
    ),
    "no gap": lambda: (
        "bounds",
        all_bounds(T, T.copy(), Y, Plan(("class",))),
        ["bounds-before_fc-train"],
        ["There is no gap: the kernels are equal."],
    ),
    "spectrum": lambda: (
        "spectrum",
        [spectra(S, T, Y)],
        ["spectrum-before_fc-train"],
        [
            "Eigenvalues of K",
            "best of that rank",
            "k-means clusters",
            "class centres",
            "Band: lowest to highest of 2 draws",
        ],
    ),
    "spectra of runs": lambda: (
        "spectrum",
        [spectra(S, T, Y, run) for run in PAIR],
        ["spectrum-before_fc-train", *(f"spectrum-before_fc-train-{run}" for run in PAIR)],
        ["one", "two", "teacher"],
    ),
    "spectrum of zeros": lambda: (
        "spectrum",
        [spectra(ZEROS, T, counts=[1])],
        ["spectrum-before_fc-train"],
        [
            "no values: a kernel of zeros",
            "student none of 6",
            "0, or below the axis",
            "Relative Nystrom error, teacher",
        ],
    ),
    "spectrum without landmarks": lambda: (
        "spectrum",
        [{**about(), **asdict(spectrum(S[:1], T[:1], counts=[1], strategies=()))}],
        ["spectrum-before_fc-train"],
        ["Relative Nystrom error, student"],
    ),
    "landmarks": lambda: (
        "landmarks",
        [trained(range(5), T, Y)],
        ["landmarks-before_fc-train", "landmarks-eigenvalues-before_fc-train"],
        [
            "true loss",
            "with W^(-1/2)",
            "Correlation with the true loss: class centres",
            "assume eigenvalues of at least 1",
        ],
    ),
    "landmarks of one epoch": lambda: (
        "landmarks",
        [trained([3], T, Y)],
        ["landmarks-before_fc-train", "landmarks-eigenvalues-before_fc-train"],
        ["true loss", "random images", "epoch"],
    ),
    "landmarks of a copy": lambda: (
        "landmarks",
        [trained([0, 1], np.repeat(T[:2], 30, 0), Y, noise=0, stages=("match", "adapt"))],
        ["landmarks-before_fc-train", "landmarks-eigenvalues-before_fc-train"],
        ["0, or below the axis", "match", "adapt"],
    ),
    "landmarks of zeros": lambda: (
        "landmarks",
        [without_estimates(trained([0, 1], T, Y))],
        ["landmarks-before_fc-train", "landmarks-eigenvalues-before_fc-train"],
        ["6 values do not exist and are left out."],
    ),
    "landmarks of runs": lambda: (
        "landmarks",
        [trained(range(epochs), T, Y, run) for epochs, run in zip((3, 5), PAIR, strict=True)],
        [
            "landmarks-before_fc-train",
            *(f"landmarks-{kind}before_fc-train-{run}" for run in PAIR for kind in ("", "eigenvalues-")),
        ],
        ["True transfer loss", "one", "two"],
    ),
    "correlation": lambda: (
        "correlation",
        correlations(10),
        ["correlation-standardised-after_fc-test", "correlation-class-means-after_fc-test"],
        [
            "teacher - student",
            "|student - teacher|",
            "from -0.3 to 0.3",
            "from 0 to 3",
            "entries are beyond these colours",
        ],
    ),
    "correlation of runs": lambda: (
        "correlation",
        [found for run in PAIR for found in correlations(2, run)],
        [f"correlation-{form}-after_fc-test-{run}" for run in PAIR for form in ("standardised", "class-means")],
        ["one", "two"],
    ),
    "correlation of empty classes": lambda: (
        "correlation",
        correlations(30, labels=np.arange(300) % 28)[1:],
        ["correlation-class-means-after_fc-test"],
        ["class without images", "Without images: class 28, 29."],
    ),
    "similarity": lambda: (
        "similarity",
        [similar(4 * S, 4 * T, Y), similar(S, T, logits=False)],
        ["similarity-after_fc-test", "reliability-after_fc-test", "similarity-before_fc-test"],
        ["CKA, debiased", "RSA, Spearman", "same predicted class", "KL(teacher || student)", "ECE", "No logits"],
    ),
    "similarity of runs": lambda: (
        "similarity",
        [similar(4 * S, 4 * T, Y, run) for run in PAIR],
        ["similarity-after_fc-test", "reliability-after_fc-test"],
        ["2 students", "one: ", "two: ", "teacher: "],
    ),
    "similarity without labels": lambda: (
        "similarity",
        [similar(S[:3], -T[:3])],
        ["similarity-after_fc-test"],
        ["not defined"],
    ),
}


def without_estimates(result):
    """Estimates that do not exist, as of a teacher whose landmarks are zero."""
    for snapshot in result["snapshots"]:
        for estimate in snapshot["estimates"]:
            estimate["whitened"] = None
    for agreement in result["agreements"]:
        agreement["correlation"] = agreement["mean_ratio"] = None
    return result


def words(svg):
    """All text of an SVG file, lines that follow one another joined."""
    return " ".join("".join(element.itertext()) for element in ElementTree.fromstring(svg).findall(".//{*}text"))


def texts(found):
    return " ".join(words(plots.rendered(figure, "svg")) for figure in found.values())


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_drawn_from_kept_results_and_says_what_it_shows(name, tmp_path):
    analysis, results, stems, said = CASES[name]()
    keep(tmp_path, analysis, results)
    found = figures.drawn(analysis, json.loads(json.dumps(results, allow_nan=False)))
    assert list(found) == stems
    text = texts(found)
    assert [phrase for phrase in said if phrase not in text] == []
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert len(read_results(tmp_path, analysis)) <= len(results)


@pytest.mark.parametrize("name", ["classes", "bounds", "spectrum", "landmarks", "correlation", "similarity"])
def test_the_same_results_give_the_same_bytes(name, tmp_path):
    analysis, results, _, _ = CASES[name]()
    first = figures.drawn(analysis, results)
    second = figures.drawn(analysis, json.loads(json.dumps(results)))  # lists are as good as tuples
    for title, figure in first.items():
        path = tmp_path / "plots" / f"{title}.svg"
        figures.save(figure, path)
        content = path.read_bytes()
        figures.save(figure, path)
        assert path.read_bytes() == content
        figures.save(second[title], path)
        assert path.read_bytes() == content
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == sorted(first)


@pytest.mark.parametrize("name", ["classes", "bounds", "spectrum", "landmarks", "correlation", "similarity"])
def test_a_dark_page_has_its_own_colours_in_every_figure(name):
    analysis, results, _, _ = CASES[name]()
    for title, figure in figures.drawn(analysis, results).items():
        svg = re.sub(r'href="data:[^"]*"', "", plots.inline(figure, title))
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#000000"}, title
        assert not re.search(r'(fill|stroke): #000000|[^-]"#000000', svg), title
        assert 'href="#' not in svg or f'href="#{title}-' in svg


@pytest.mark.parametrize("ending", SIGNATURES)
def test_files_by_their_ending(ending, tmp_path):
    (figure,) = figures.drawn("gram-gap", [gap(S, T)]).values()
    path = tmp_path / "plots" / f"gap{ending.upper()}"
    figures.save(figure, path)
    first = path.read_bytes()
    assert first.startswith(SIGNATURES[ending])
    figures.save(figure, path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("name", ["gap.jpeg", "gap", "gap.svg.gz"])
def test_another_ending_is_refused_before_anything_is_drawn(name, tmp_path):
    with pytest.raises(UsageError, match=r"expected a name that ends in \.svg, \.png, \.pdf"):
        figures.save_all("gram-gap", [], tmp_path / name)
    (figure,) = figures.drawn("gram-gap", [gap(S, T)]).values()
    with pytest.raises(UsageError, match=r"is no plot that can be written"):
        figures.save(figure, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_all_figures_of_a_call_lie_beside_one_another(tmp_path):
    paths = figures.save_all("gram-gap", [gap(S, T, Y)], tmp_path / "new" / "gap.png")
    assert [path.name for path in paths] == ["gap.png", "gap-gram-gap-classes-before_fc-train.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_without_results_there_is_nothing_to_draw():
    assert all(figures.drawn(analysis, []) == {} for analysis in figures.DRAWN)


def test_an_unknown_analysis_is_named():
    with pytest.raises(UsageError, match="spectrum"):
        figures.drawn("spectrums", [])


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r'pip install "kdtool\[plots\]"'):
        figures.drawn("gram-gap", [gap(S, T)])


def test_pyplot_is_never_imported():
    figures.drawn("gram-gap", [gap(S, T)])
    assert "matplotlib.pyplot" not in sys.modules


def test_names_of_users_are_shown_as_they_are_and_make_safe_file_names():
    runs = ["../$a_1$", "_x<&>", "a\x01b\udce9", "A", "a", "模型", "/very/" + "long/" * 90 + "name"]
    found = figures.drawn("bounds", [dict(all_bounds(S, T, Y, Plan(("class",)))[0], run=run) for run in runs])
    assert len(found) == len(runs) == len({title.casefold() for title in found})
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", title) for title in found)
    shown = [words(plots.rendered(figure, "svg")) for figure in found.values()]
    for run, text in zip(["../$a_1$", "_x<&>", "a?b?", "A", "a", "模型", "/long/name"], shown, strict=True):
        assert run in text
    assert plots.rendered(list(found.values())[5], "png").startswith(b"\x89PNG")  # a font without these letters


def test_a_result_that_is_there_twice_has_two_figures():
    result = spectra(S, T)
    assert list(figures.drawn("spectrum", [result, result])) == [
        "spectrum-before_fc-train",
        "spectrum-before_fc-train-2",
    ]


@given(st.lists(st.text(max_size=200), max_size=4))
def test_stems_are_safe(given_words):
    made = stem("bounds", *given_words)
    assert re.fullmatch(r"bounds[A-Za-z0-9._-]*", made)
    assert ".." not in made.strip(".") or len(made) < 400


# What the marks stand for


def test_bounds_are_bars_from_the_true_gap_to_their_values():
    results = all_bounds(S, T, Y)
    (figure,) = figures.drawn("bounds", results).values()
    axes = figure.axes[0]
    drawn = [bound for result in results for bound in result["bounds"] if bound["value"]]
    assert len(axes.patches) == len(drawn)
    for patch, bound in zip(axes.patches, drawn, strict=True):
        assert patch.get_x() == pytest.approx(results[0]["gap"])
        assert patch.get_x() + patch.get_width() == pytest.approx(bound["value"])
        assert (patch.get_facecolor()[3] == 0) == (not bound["guaranteed"])
    assert axes.get_xscale() == "log"
    assert all(set(line.get_xdata()) == {results[0]["gap"]} for line in axes.lines)


def test_whiskers_reach_from_end_to_end():
    result = gap(S, T, **KERNELS)
    (figure,) = figures.drawn("gram-gap", [result]).values()
    assert figure.axes[0].patches[0].get_width() == result["loss"]
    assert tuple(figure.axes[0].lines[0].get_xdata()) == result["interval"]


def test_shares_of_classes_are_sorted_and_whole():
    result = gap(S, T, Y)
    figure = figures.drawn("gram-gap", [result])["gram-gap-classes-before_fc-train"]
    shares = [patch.get_width() for patch in figure.axes[0].patches]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100)
    order = [int(label.get_text()) for label in figure.axes[0].get_yticklabels()]
    by_label = {found["label"]: found for found in result["by_class"]["classes"]}
    assert shares == [pytest.approx(100 * by_label[label]["share"]) for label in order]
    between, within = figure.axes[1].lines[:2]
    assert list(within.get_xdata()) == [by_label[label]["within"] for label in order]
    assert list(between.get_xdata()) == [by_label[label]["between"] for label in order]


def test_zeros_are_marked_at_the_foot_of_a_logarithmic_axis():
    figure, (axes,) = sheets.sheet("title", (), [[sheets.Panel(100)]])
    values = [None, 4.0, 0.0, 2.0, 1e-30]
    limits = scales.log_range(values)
    scales.make_log(axes, "y", limits)
    scales.draw_line(axes, range(5), values, limits, color="black")
    line, foot = axes.lines
    assert [None if math.isnan(y) else y for y in line.get_ydata()] == [None, 4.0, None, 2.0, None]
    assert line.get_marker() == "o"  # each stands alone
    assert list(foot.get_xdata()) == [2, 4]
    assert plots.rendered(figure, "svg")


def test_stages_follow_one_another():
    (figure, _) = figures.drawn("landmarks", [trained([1, 3], T, Y, stages=("match", "adapt", "match"))]).values()
    true = next(line for line in figure.axes[0].lines if line.get_linewidth() == 3.5)
    assert list(true.get_xdata()) == [1, 3, 4, 6, 7, 9]


def test_the_reliability_diagram_has_a_point_for_every_bin_with_images():
    result = similar(4 * S, 4 * T, Y)
    figure = figures.drawn("similarity", [result])["reliability-after_fc-test"]
    points = {side: figure.axes[0].collections[n].get_offsets() for n, side in enumerate(("student", "teacher"))}
    for side, found in points.items():
        held = [found for found in result["predictions"][side]["bins"] if found["count"]]
        assert np.allclose(found, [[100 * b["confidence"], 100 * b["accuracy"]] for b in held])
    assert sum(figure.axes[1].patches[0].get_data().values) == pytest.approx(100)


def test_colours_of_a_heat_map():
    found = heat.colours(np.array([[0.0, 0.15, -0.3, 5.0, np.nan]]), (-0.3, 0.3))[0]
    assert found[:, 3].tolist() == [0, 0.5, 1, 1, 0]
    assert found[1, 0] > found[1, 2]  # orange
    assert found[2, 0] < found[2, 2]  # blue
    assert heat.colours(np.array([[1.5, 3.0, 7.0]]), (0, 3))[0, :, 3].tolist() == [0.5, 1, 1]
    assert heat.colours(np.zeros((1, 2)), (0, 0))[..., 3].tolist() == [[0, 0]]


def test_entries_that_do_not_exist_are_hatched():
    _, (axes,) = sheets.sheet("title", (), [[sheets.Panel(100)]])
    heat.draw(axes, [[None, None, 1.0], [0.5, None, 0.5], [0.0, 0.0, 0.0]], (0, 1))
    boxes = [(patch.get_x(), patch.get_y(), patch.get_width()) for patch in axes.patches]
    assert boxes == [(-0.5, -0.5, 2), (0.5, 0.5, 1)]
    assert all(patch.get_hatch() for patch in axes.patches)


# Axes and letters


@given(st.floats(-250, 290), st.floats(0.2, 300))
def test_logarithmic_axes_of_any_range_have_a_few_ticks(start, decades):
    limits = 10.0**start, 10.0 ** min(300, start + decades)
    ticks = scales.log_ticks(limits)
    assert 1 <= len(ticks) <= 9
    assert all(limits[0] <= tick <= limits[1] for tick in ticks)
    assert all(low < high for low, high in pairwise(ticks))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-9, "10⁻⁹"),
        (3e7, "3·10⁷"),
        (1e12, "10¹²"),
        (0.001, "0.001"),
        (20000, "20000"),
        (0.5, "0.5"),
        (1000.0, "1000"),
    ],
)
def test_ticks_are_short(value, text):
    assert scales.log_text(value) == text


def test_the_range_of_an_axis():
    assert scales.log_range([]) == scales.log_range([None, 0.0]) == (0.1, 10.0)
    low, high = scales.log_range([2.0, None, 50.0, 0.0])
    assert 1 < low < 2
    assert 50 < high < 100
    low, high = scales.log_range([1e-40, 1.0])
    assert high / low < 10 ** (scales.DECADES + 2)
    assert scales.is_below([1e-40, None], (low, high))
    assert not scales.is_below([1.0, None], (low, high))


@given(st.text(max_size=80), st.floats(20, 400))
def test_text_is_cut_in_its_middle(text, room):
    cut = sheets.fitted(text, room)
    assert len(cut) <= max(len(text[:3]), room / (sheets.LETTER * sheets.SMALL))
    assert cut.isprintable()
    assert cut == sheets.plain(text) or (cut[0] == sheets.plain(text)[0] and "…" in cut)
