"""What a report shows of analyses, probes and cost, of made-up runs with results of small data."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from report_runs import SAMPLES, Page, about, damage, gap, read, table_rows, weights_of, write_run

from kdtool import files
from kdtool.analysis.bounds import bounds
from kdtool.analysis.checked import check
from kdtool.analysis.correlation import standardised
from kdtool.analysis.gram import gram_gap
from kdtool.analysis.kept import keep
from kdtool.analysis.landmarks import Followed, Plan, landmark_sets
from kdtool.analysis.predictions import Predictions, predictions
from kdtool.analysis.results import read_run
from kdtool.analysis.rsa import rsa
from kdtool.analysis.similarity import linear_cka
from kdtool.analysis.spectrum import spectrum
from kdtool.engine.runs import toml
from kdtool.errors import DamageError
from kdtool.workflows.report import write_report

pytest.importorskip("matplotlib", reason="plots are optional")

KINDS = ("gram-gap", "bounds", "spectrum", "landmarks", "correlation", "similarity")


def small():
    """Features and labels of 40 images in 4 classes: student, teacher, labels."""
    random = np.random.default_rng(3)
    labels = np.arange(40) % 4
    teacher = random.standard_normal((40, 4)) + 3 * np.eye(4)[labels]
    return teacher + 0.4 * random.standard_normal((40, 4)), teacher, labels


S, T, Y = small()
FOLLOWED = Followed(T, Y, Plan(("class",)))
FOLLOWED.add("fit", 1, T * 0)
FOLLOWED.add("fit", 2, S)
SETS = list(landmark_sets(S, T, Y, Plan(("class",))).values())
SIMILAR = {"cka": asdict(linear_cka(S, T)), "rsa": asdict(rsa(S, T)), "predictions": asdict(predictions(S, T, Y))}
FOUND = {
    "gram-gap": [
        {**asdict(gram_gap(S, T, labels=Y)), "options": {"by-class": True}},
        {**asdict(gram_gap(S, T, kernel="cosine")), "options": {"kernel": "cosine"}},
    ],
    "bounds": [asdict(bounds(S, T, found, pairs=20)) for found in SETS],
    "spectrum": [asdict(spectrum(S, T, SETS, Y, draws=2))],
    "landmarks": [asdict(FOLLOWED.result())],
    "correlation": [asdict(standardised(S, T))],
    "similarity": [SIMILAR],
}


def analyse(run, *analyses, **changes):
    """Keeps the results of some analyses in the folder of a run."""
    for analysis in analyses or KINDS:
        keep(run, analysis, [{**found, **about(run, "after_fc", "test"), **changes} for found in FOUND[analysis]])


@pytest.fixture
def runs(tmp_path):
    """A student without its teacher, two with KD, one with KDA."""
    folder = tmp_path / "runs"
    write_run(folder / "none", "distill", "resnet18", [], {}, 0, 75.0)
    for seed in (0, 1):
        write_run(folder / f"kd-{seed}", "distill", "resnet18", ["kd"], {}, seed, 76.0)
    write_run(folder / "kda", "distill", "resnet18", ["kda"], {"kda.layers": ["before_fc"]}, 0, 77.0)
    return folder


def report(folder, name="report.html"):
    return write_report([folder], folder.parent / name).read_text()


def section(source, title):
    """The HTML of one section."""
    start = source.index(f">{title}</h2>")
    return source[start : source.index("</section>", start)]


def headings(source):
    return re.findall("<h2[^>]*>(.*?)</h2>", source)


def test_without_analyses_their_sections_are_absent(runs):
    source = report(runs)
    assert headings(source) == ["Results", "Learning curves", "Cost", "How to run it again"]
    assert re.findall('<li><a href="#[^"]*">(.*?)</a>', source) == headings(source)
    assert "The commands of all analyses" not in source


def test_every_analysis_is_shown_and_the_page_still_needs_nothing(runs):
    for run in sorted(runs.iterdir()):
        analyse(run)
    source = report(runs)
    assert headings(source)[2:5] == ["Kernel transfer", "Other kernels and similarity", "A closer look"]
    page = Page(source)
    links = [value for name, value in page.attributes if name in ("href", "src")]
    names = [value for name, value in page.attributes if name == "id"]
    embedded = [link for link in links if link.startswith("data:image/png;base64,")]
    assert embedded
    assert all(link.removeprefix("#") in names for link in links if link not in embedded)
    assert len(set(names)) == len(names)
    assert report(runs, "again.html") == source


def test_other_kernels_and_similarity_are_means_over_seeds(runs):
    for seed, (loss, cka) in enumerate(((0.2, 0.9), (0.3, 0.8))):
        run = runs / f"kd-{seed}"
        keep(
            run,
            "gram-gap",
            [gap(run, "after_fc", loss, "test", kernel="rbf", interval=[0.1, 0.4], nystrom_landmarks=1000)],
        )
        analyse(run, "similarity", cka={**SIMILAR["cka"], "cka": cka})
    analyse(runs / "none", "gram-gap", "similarity")
    shown = section(report(runs), "Other kernels and similarity")
    assert "after_fc, test images" in shown
    assert re.findall('<th scope="col">(.*?)</th>', shown) == [
        "run",
        "alignment",
        "cosine loss",
        "RBF (1,000 landmarks) loss",
        "CKA",
        "RSA",
        "agreement (%)",
        "KL (nats)",
        "ECE (%)",
    ]
    rows = table_rows(shown)
    assert rows["kd"][:4] == ["", "", "0.250 ± 0.071", "0.850 ± 0.071"]
    assert float(rows["no teacher"][1]) == pytest.approx(FOUND["gram-gap"][1]["loss"], rel=5e-3)
    said = SIMILAR["predictions"]
    assert rows["no teacher"][5:] == [
        f"{100 * said['agreement']:.2f}",
        f"{said['kl']:.4f}"[:6],
        f"{100 * said['student']['calibration_error']:.2f}",
    ]
    assert rows["teacher"][7] == f"{100 * said['teacher']['calibration_error']:.2f}"
    assert set(rows["teacher"][:7]) == {""}
    assert "RSA: correlation" in shown


def test_polynomials_of_two_degrees_have_columns_of_their_own(runs):
    run, form = runs / "kda", {"kernel": "polynomial", "constant": 1.0}
    keep(run, "gram-gap", [gap(run, "before_fc", 0.1 * degree, degree=degree, **form) for degree in (2, 5)])
    shown = section(report(runs), "Other kernels and similarity")
    names = [f"polynomial of degree {degree}, constant 1 loss" for degree in (2, 5)]
    assert re.findall('<th scope="col">(.*?)</th>', shown) == ["run", *names]
    assert table_rows(shown)["kda before_fc"] == ["0.200", "0.500"]


def test_the_direction_of_a_kernel_is_shown_without_its_size(runs):
    run = runs / "kda"
    keep(run, "gram-gap", [gap(run, "before_fc", 0.25), gap(run, "after_fc", 0.5)])
    shown = section(report(runs), "Other kernels and similarity")
    assert re.findall('<th scope="col">(.*?)</th>', shown) == ["run", "alignment"] * 2
    assert "Alignment: the cosine of both kernels" in shown
    for loss in (0.25, 0.5):
        cosine = (0.9**2 + 1 - loss**2) / (2 * 0.9)  # made-up kernels have nine tenths of the teacher's norm
        assert f">{cosine:.3f}<" in shown


def test_a_linear_kernel_that_was_approximated_is_not_taken_for_the_exact_one(runs):
    run = runs / "kda"
    exact, near = gap(run, "before_fc", 0.25), gap(run, "before_fc", 0.75, nystrom_landmarks=100, interval=[0.7, 0.8])
    keep(run, "gram-gap", [exact, near])
    assert read_run(run).gaps == {("before_fc", "train"): 0.25}
    assert "linear (100 landmarks) loss" in report(runs)


def test_one_run_of_every_kind_is_looked_at_closer_and_folded(runs):
    for run in sorted(runs.iterdir()):
        analyse(run)
    shown = section(report(runs), "A closer look")
    assert "Figures of one run of each kind, that of the lowest seed." in shown
    told = [re.sub("<.*?>", "", text) for text in re.findall("<summary>(.*?)</summary>", shown)]
    assert told == ["kda before_fc, seed 0: 7 figures", "kd, seed 0: 7 figures", "no teacher, seed 0: 7 figures"]
    names = re.findall('aria-label="(.*?)"', shown)
    assert names[:2] == [f"{what} of several students, after_fc, test images" for what in ("spectrum", "landmarks")]
    assert names[2:9] == [
        "gram-gap-classes-after_fc-test of kda",
        "bounds-after_fc-test of kda",
        "spectrum-after_fc-test of kda",
        "landmarks-after_fc-test of kda",
        "landmarks-eigenvalues-after_fc-test of kda",
        "correlation-standardised-after_fc-test of kda",
        "reliability-after_fc-test of kda",
    ]
    assert len(names) == 2 + 3 * 7


def test_students_keep_their_colours_in_comparisons(runs):
    for run in sorted(runs.iterdir()):
        analyse(run, "spectrum")
    source = report(runs)
    named = re.findall(r'stroke="var\(--series-(\d)\)"/></svg>([^<]+)</li>', source)
    swatches = {name: number for number, name in named}
    shown = section(source, "A closer look")
    figure = shown[shown.index("<figure") : shown.index("</figure>")]
    lines = re.findall(r'style="fill: none; stroke: var\(--series-(\d)\)', figure)
    names = [name for name in re.findall(r"<!--|>([^<>]+)</text>", figure) if name in swatches]
    assert names == ["kda before_fc", "kd", "no teacher"]
    assert list(dict.fromkeys(lines))[: len(names)] == [swatches[name] for name in names]


def test_of_many_kinds_the_baseline_and_the_best_are_drawn(runs):
    for number in range(14):
        run = runs / f"at-{number}"
        write_run(run, "distill", "resnet18", ["at"], {"at.p": float(number)}, 0, 60.0 - number, (0.3, 0.4), epochs=4)
        analyse(run, "spectrum")
    analyse(runs / "none", "spectrum")
    source = report(runs)
    assert len(re.findall("<summary>", section(source, "A closer look"))) == 7
    assert "Those of 8 more kinds are left out here" in source
    assert "no teacher, seed 0" in section(source, "A closer look")
    left = "more are in the table only: students without a teacher and the best others are drawn."
    assert f"5 {left}" in section(source, "Learning curves")
    assert f"2 {left}" in section(source, "Kernel transfer")
    assert len(table_rows(source)) == 1 + 17


def test_results_of_other_weights_are_left_out_visibly(runs):
    run = runs / "kda"
    analyse(run)
    keep(run, "gram-gap", [gap(run, "before_fc", 0.987, weights_sha256="0" * 64)])
    analyse(run, "bounds", weights_sha256="1" * 64)
    text = " ".join(read(write_report([runs], runs / "report.html")).text)
    assert "Analyses of weights that a run no longer has are left out:" in text
    assert "kda: results of analysis/gram-gap.json; run `kdtool analyze gram-gap` again" in text
    assert "kda: results of analysis/bounds.json; run `kdtool analyze bounds` again" in text
    assert "0.987" not in text
    assert "5 figures" in text
    assert "left out" not in " ".join(read(write_report([runs / "none"], runs / "one.html")).text)


def set_field(value, path, new):
    """A copy of plain values with another value at a path of names and places."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = set_field(value[path[0]], path[1:], new)
    return copy


WRONG = {
    "loss": ("gram-gap", ("loss",), "0.5"),
    "negative": ("gram-gap", ("loss",), -1),
    "infinite": ("gram-gap", ("difference_norm",), 1e301),
    "huge": ("gram-gap", ("samples",), 10**30),
    "truth": ("gram-gap", ("samples",), True),
    "interval": ("gram-gap", ("interval",), [0.1]),
    "class": ("gram-gap", ("by_class", "classes", 0, "share"), None),
    "run": ("bounds", ("run",), 3),
    "bound": ("bounds", ("bounds", 0, "guaranteed"), "yes"),
    "reasons": ("bounds", ("bounds", 0, "failing"), "none"),
    "side": ("spectrum", ("teacher",), [1, 2]),
    "eigenvalue": ("spectrum", ("student", "eigenvalues", 1), "<b>"),
    "snapshot": ("landmarks", ("snapshots", 0), {"stage": "fit"}),
    "matrix": ("correlation", ("student", 0, 0), {}),
    "weights": ("similarity", ("weights_sha256",), None),
    "predictions": ("similarity", ("predictions", "student"), 7),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_another_type_leave_the_run_out_visibly(name, runs):
    analysis, path, value = WRONG[name]
    run = runs / "kda"
    result = {**FOUND[analysis][0], **about(run)}
    damage_with(run, analysis, set_field(json.loads(json.dumps(result)), path, value))
    with pytest.raises(DamageError, match=f"analysis/{analysis}.json"):
        read_run(run)
    text = " ".join(read(write_report([runs], runs / "report.html")).text)
    assert "1 folder is left out:" in text
    assert f"analysis/{analysis}.json" in text
    assert f"run `kdtool analyze {analysis}` again" in text


def damage_with(run, analysis, result):
    (run / "analysis").mkdir(exist_ok=True)
    files.write_json(run / "analysis" / f"{analysis}.json", {"results": [result]})


@pytest.mark.parametrize(
    ("value", "odd"),
    [
        ([], "it is no object"),
        ({**SIMILAR["predictions"], "kl": None}, "kl is no float"),
        ({key: value for key, value in SIMILAR["predictions"].items() if key != "labelled"}, "it has no labelled"),
        (set_field(SIMILAR["predictions"], ("student", "bins"), ({},)), "student.bins is no list"),
        (set_field(SIMILAR["predictions"], ("student", "bins"), [{}]), r"it has no student\.bins\[0\]\.lower"),
    ],
)
def test_what_does_not_fit_is_named(value, odd):
    with pytest.raises(DamageError, match=odd):
        check(value, Predictions, "it", "mend it")


SENSELESS = {
    "gram-gap": (("by_class", "classes"), [{**FOUND["gram-gap"][0]["by_class"]["classes"][0], "samples": 0}]),
    "spectrum": (("student", "eigenvalues"), []),
    "correlation": (("teacher",), [[1.0, 2.0], [3.0]]),
    "similarity": (("predictions", "student", "bins"), [SIMILAR["predictions"]["student"]["bins"][0]]),
}


@pytest.mark.parametrize("analysis", SENSELESS)
def test_values_without_sense_take_the_place_of_their_figure(analysis, runs):
    for run in (runs / "kda", runs / "none"):
        result = {**FOUND[analysis][0], **about(run)}
        damage_with(run, analysis, set_field(json.loads(json.dumps(result)), *SENSELESS[analysis]))
        analyse(run, "bounds")
    shown = section(report(runs), "A closer look")
    assert "bounds-after_fc-test of kda" in shown
    if analysis != "spectrum":
        assert f"analysis/{analysis}.json of kda cannot be drawn" in shown


def poisoned(value, evil):
    """Plain values with another text in the place of every text."""
    if isinstance(value, dict):
        return {name: poisoned(inner, evil) for name, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, evil) for inner in value]
    return evil if isinstance(value, str) else value


def test_text_in_results_is_escaped(runs):
    evil = '</text></svg><script>alert("1")</script><b>&\x00\ud800$\\frac{1}$'
    damage(runs / "kda", ("result.json", {"network": evil, "method": [evil], "options": {evil: evil}}))
    for run in (runs / "kda", runs / "none"):
        for analysis in KINDS:
            result = poisoned(json.loads(json.dumps(FOUND[analysis][0])), evil)
            damage_with(run, analysis, {**result, **about(run, evil, evil), "run": evil})
    source = report(runs)
    page = Page(source)
    assert not {"script", "b"} & set(page.tags)
    assert page.tags.count("html") == 1
    assert {"A closer look", "Other kernels and similarity"} < set(headings(source))
    assert "1 folder" not in source


# Probes


def write_probe(run, name, last, seed=0, recipe=None, probed=None, **fields):
    folder = run / f"probe-{name}"
    folder.mkdir()
    asked = {
        "command": "probe",
        "run": run.name,
        "weights": weights_of(run),
        "seed": seed,
        "stage": "",
        "data": "stl10",
    }
    (folder / "config.toml").write_text(toml({**asked, "recipe": recipe or {"epochs": 100}}))
    found = {
        "data": "stl10",
        "data_digest": "d" * 64,
        "kind": "linear",
        "batchnorm": "train",
        "probed_sha256": probed or weights_of(run),
    }
    files.write_json(
        folder / "result.json", {**found, "seed": seed, "test_accuracy": {"last": last, "best": last}, **fields}
    )
    return folder


def test_probes_are_a_table_over_the_groups(runs):
    for run, accuracies in (("kd-0", (60.0, 62.0)), ("kd-1", (65.0,)), ("none", (58.0,))):
        for seed, accuracy in enumerate(accuracies):
            write_probe(runs / run, f"stl10-linear-{seed}", accuracy, seed)
    write_probe(runs / "kda", "stl10-whole", 70.0, kind="whole")
    shown = section(report(runs), "On other data")
    assert re.findall('<th scope="col">(.*?)</th>', shown)[1:] == ["stl10, linear (%)", "stl10, whole (%)"]
    rows = table_rows(shown)
    assert rows == {"kda before_fc": ["", "70.00"], "kd": ["63.00 ± 2.83", ""], "no teacher": ["58.00", ""]}
    assert "linear: a new classifier on the frozen network; whole: everything trains again." in shown
    assert "kdtool analyze probe --config runs/none/probe-stl10-linear-0/config.toml" in report(runs)


def test_probes_that_differ_are_told_apart(runs):
    write_probe(runs / "kda", "a", 60.0)
    write_probe(runs / "kda", "b", 61.0, recipe={"epochs": 30})
    assert table_rows(section(report(runs), "On other data")) == {"kda before_fc": ["60.00", "61.00"]}
    assert "stl10, linear, epochs 100 (%)" in report(runs)
    assert "stl10, linear, epochs 30 (%)" in report(runs)


def test_probes_on_two_folders_of_pictures_are_told_apart(runs):
    for name, digest, accuracy in (("a", "a" * 64, 60.0), ("b", "b" * 64, 61.0)):
        write_probe(runs / "kda", name, accuracy, data="folder", data_digest=digest)
    source = report(runs)
    assert table_rows(section(source, "On other data")) == {"kda before_fc": ["60.00", "61.00"]}
    assert "folder aaaaaa, linear (%)" in source
    assert "folder bbbbbb, linear (%)" in source


def test_a_probe_of_other_weights_is_left_out_visibly(runs):
    write_probe(runs / "kda", "a", 60.0, probed="0" * 64)
    (runs / "kda" / "probe-unfinished").mkdir()
    source = report(runs)
    assert "On other data" not in headings(source)
    assert "kda: probe-a; remove it and run `kdtool analyze probe` again" in source


def test_a_probe_of_an_earlier_stage_belongs_to_its_weights(runs):
    folder = write_probe(runs / "kda", "a", 60.0, probed="5" * 64)
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace('stage = ""', 'stage = "hint"'))
    assert "probe-a; remove it" in report(runs)
    damage(runs / "kda", ("result.json", {"stages": [{"stage": "hint", "weights_sha256": "5" * 64}, {"stage": "x"}]}))
    assert table_rows(section(report(runs), "On other data")) == {"kda before_fc": ["60.00"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [("result.json", "{"), ("result.json", {"test_accuracy": {"last": "high", "best": 1}}), ("config.toml", "= 1")],
)
def test_a_damaged_probe_leaves_the_run_out_visibly(name, content, runs):
    damage(write_probe(runs / "kda", "a", 60.0), (name, content))
    text = " ".join(read(write_report([runs], runs / "report.html")).text)
    assert "1 folder is left out:" in text
    assert f"probe-a/{name}" in text


# Cost


def rewrite_metrics(run, stages):
    """Gives the epochs of a run stages and terms: (name, epochs, terms) each."""
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    rows = [
        {**line, "stage": name, "terms": dict.fromkeys(terms, 1.0)}
        for name, count, terms in stages
        for _ in range(count)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_live_teacher_is_asked_in_the_stages_that_compare_with_it(runs):
    run = runs / "kda"
    assert read_run(run).answers == 30 * SAMPLES
    rewrite_metrics(run, [("hint", 3, ["fitnet"]), ("distill", 20, ["task"])])
    assert read_run(run).answers == 3 * SAMPLES
    rewrite_metrics(run, [("distill", 1, ["task"]), ("distill", 7, ["task", "kda"])])  # a term that begins later
    assert read_run(run).answers == 8 * SAMPLES
    assert read_run(run).live_seconds == pytest.approx(8 * SAMPLES * 0.002)
    assert (read_run(runs / "none").answers, read_run(runs / "none").live_seconds) == (0, 0.0)


def test_the_cost_stands_beside_that_of_a_live_teacher(runs):
    shown = section(report(runs), "Cost")
    rows = table_rows(shown)
    columns = re.findall('<th scope="col">(.*?)</th>', shown)
    cells = dict(zip(columns[1:], rows["kd"], strict=True))
    assert cells["a live teacher would add"] == "50.0 min"  # 30 epochs of 50,000 images at 2 ms
    assert (cells["cache"], cells["as float32 maps"], cells["total"]) == ("390.6 MiB", "781.2 MiB", "15.0 min")
    assert rows["no teacher"][5:] == ["", "", ""]
    text = re.sub("<.*?>", "", shown)
    assert (
        "The 3 runs that learned from a teacher took 45.0 min. A live teacher would have added 2.5 h (computed, not "
        "timed live); its answers for the cache, given once, took about 13.3 min." in text
    )
    assert "4,500,000 answers" in text
    assert "2 ms each" in text


def test_what_older_runs_do_not_say_is_left_out(runs):
    for run in runs.iterdir():
        result = files.read_json(run / "result.json", "")
        del result["samples"], result["teacher"]["seconds_per_image"], result["cache"]["tap_bytes"]
        files.write_json(run / "result.json", result)
    shown = section(report(runs), "Cost")
    assert re.findall('<th scope="col">(.*?)</th>', shown)[-2:] == ["evaluation", "cache"]
    assert "live teacher" not in shown
    assert "float32" not in shown
    damage(runs / "kda", ("result.json", {"samples": SAMPLES}))
    assert "live teacher" not in section(report(runs), "Cost")


def test_commands_of_analyses_say_which(runs):
    analyse(runs / "kda")
    analyse(runs / "none", "gram-gap")
    for gamma in (0.5, 1e-05):
        asked = {"kernel": "rbf", "gamma": gamma, "algorithm": "nystrom", "landmarks": 50}
        told = {"kernel": "rbf", "nystrom_landmarks": 50, "seed": 0, "algorithm": "nystrom", "options": asked}
        keep(runs / "kda", "gram-gap", [gap(runs / "kda", "before_fc", 0.1, **told)])
    kinds = {"kind": ["class", "random"], "rank": 3}
    keep(runs / "kda", "bounds", [{**FOUND["bounds"][0], **about(runs / "kda"), "options": kinds}])
    text = " ".join(read(write_report([runs], runs / "report.html")).text)
    for line in (
        "kdtool analyze gram-gap --part test --by-class --layer after_fc runs/kda runs/none",
        "kdtool analyze gram-gap --part test --kernel cosine --layer after_fc runs/kda runs/none",
        "kdtool analyze gram-gap --algorithm nystrom --gamma 0.5 --kernel rbf --landmarks 50 --layer before_fc",
        "kdtool analyze gram-gap --algorithm nystrom --gamma 1e-05 --kernel rbf --landmarks 50 --layer before_fc",
        "kdtool analyze bounds --kind class --kind random --rank 3 --layer before_fc runs/kda",
        "kdtool analyze correlation --part test runs/kda",
        "kdtool analyze similarity --part test --layer after_fc runs/kda",
    ):
        assert line in text


def test_what_changes_no_result_does_not_split_a_group(runs, tmp_path):
    config = runs / "kd-0" / "config.toml"
    config.write_text(f"keep_weights = 1\n{config.read_text()}")
    assert "kd" in table_rows(write_report([runs], tmp_path / "report.html").read_text())
