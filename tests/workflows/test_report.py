"""The HTML report of made-up runs: what it shows, what it leaves out, and that it needs nothing beside itself."""

import json
import math
import re
import sys

import pytest
from report_runs import CACHE, TEACHER, Page, damage, gap, read, table_rows, write_run

from kdtool import files
from kdtool.analysis import plots
from kdtool.analysis.kept import keep
from kdtool.analysis.results import grouped, read_run, read_runs
from kdtool.engine.runs import toml
from kdtool.errors import DamageError, UsageError
from kdtool.workflows.report import write_report
from kdtool.workflows.report_content import content


@pytest.fixture
def runs(tmp_path):
    """A teacher, two students without it, two with KD, two KDA variants and their combination with KD."""
    folder = tmp_path / "runs"
    both = {"kda.layers": ["before_fc", "after_fc"], "kda.weight": 0.04}
    one = {"kda.layers": ["before_fc"], "kda.weight": 0.04}
    write_run(folder / "teacher", "teach", "resnet34", [], {}, 0, 78.9, seconds=9100.0)
    for seed in (0, 1):
        gaps = (0.412 + 0.01 * seed, 0.553 - 0.02 * seed)
        write_run(folder / f"resnet18-none-seed{seed}", "distill", "resnet18", [], {}, seed, 75.2 + 0.3 * seed, gaps)
        kd = {"kd.temperature": 4.0}
        gaps = (0.361 + 0.01 * seed, 0.182 - 0.01 * seed)
        write_run(folder / f"resnet18-kd-seed{seed}", "distill", "resnet18", ["kd"], kd, seed, 76.4 - 0.3 * seed, gaps)
    write_run(folder / "resnet18-kda-before_fc-seed0", "distill", "resnet18", ["kda"], one, 0, 77.3, (0.093, 0.247))
    write_run(
        folder / "resnet18-kda-before_fc-after_fc-seed0", "distill", "resnet18", ["kda"], both, 0, 77.6, (0.098, 0.101)
    )
    name = "resnet18-kda-before_fc-after_fc-kd-seed0"
    write_run(
        folder / name, "distill", "resnet18", ["kda", "kd"], {**both, "kd.temperature": 4.0}, 0, 77.7, (0.101, 0.0009)
    )
    return folder


def test_the_page_needs_nothing_beside_itself(runs, tmp_path):
    out = write_report([runs], tmp_path / "new" / "report.html")
    source = out.read_text()
    page = Page(source)
    assert not re.search(r"https?:|//\w|@import|<script|<link|<img", source)
    links = [value for name, value in page.attributes if name in ("href", "src") or (value or "").startswith("url(")]
    names = [value for name, value in page.attributes if name == "id"]
    assert len([link for link in links if link in ("#results", "#kernel-transfer", "#how-to-run-it-again")]) == 3
    assert all(re.sub(r"^url\(|\)$", "", link).removeprefix("#") in names for link in links)
    assert len(set(names)) == len(names)
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source
    assert str(tmp_path) not in source
    assert write_report([runs], tmp_path / "again.html").read_text() == source


def test_the_table_has_teacher_first_then_the_best_student_with_spread_over_seeds(runs, tmp_path):
    rows = table_rows(write_report([runs], tmp_path / "report.html").read_text())
    assert list(rows) == [
        "teacher",
        "kda before_fc, after_fc + kd",
        "kda before_fc, after_fc",
        "kda before_fc",
        "kd",
        "no teacher",
    ]
    results = [files.read_json(runs / f"resnet18-kd-seed{seed}" / "result.json", "") for seed in (0, 1)]
    first, second = (result["test_accuracy"]["last"] for result in results)
    mean, deviation = (first + second) / 2, abs(first - second) / math.sqrt(2)
    assert rows["kd"][0] == f"{mean:.2f} ± {deviation:.2f}"
    assert rows["kd"][3:] == ["0.366 ± 0.007", "0.177 ± 0.007", "2", "resnet18", "11,220,132"]
    assert rows["kda before_fc"][5] == "1"
    assert "±" not in "".join(rows["kda before_fc"])
    assert rows["teacher"][6] == "resnet34"


def test_a_mean_says_of_how_many_runs_it_is_where_not_all_have_the_measure(runs, tmp_path):
    (runs / "resnet18-kd-seed1" / GAPS).unlink()
    rows = table_rows(write_report([runs], tmp_path / "report.html").read_text())
    assert rows["kd"][3:6] == ["0.361 (1 of 2)", "0.182 (1 of 2)", "2"]
    assert not any("of 2)" in cell for cell in rows["no teacher"])


def test_students_stand_beside_the_same_network_without_a_teacher(runs, tmp_path):
    rows = table_rows(write_report([runs], tmp_path / "report.html").read_text())
    means = {name: float(cells[0].split()[0]) for name, cells in rows.items()}
    for name in ("kd", "kda before_fc"):
        assert float(rows[name][1]) == pytest.approx(means[name] - means["no teacher"], abs=0.011)
    assert rows["no teacher"][1] == rows["teacher"][1] == ""
    for run in runs.glob("*none*"):
        config = (run / "config.toml").read_text()
        (run / "config.toml").write_text(config.replace("epochs = 30", "epochs = 15"))
    source = write_report([runs], tmp_path / "report.html").read_text()
    assert "over no teacher" not in source
    assert "without a teacher and" not in source


def test_a_worse_student_has_a_minus(runs, tmp_path):
    for seed in (0, 1):
        found = {"last": 40.0, "best": 41.0, "selected": None}
        damage(runs / f"resnet18-kd-seed{seed}", ("result.json", {"test_accuracy": found}))
    rows = table_rows(write_report([runs], tmp_path / "report.html").read_text())
    assert rows["kd"][1].startswith("\N{MINUS SIGN}3")
    assert list(rows)[-1] == "kd"


def test_the_best_of_every_column_is_marked(runs, tmp_path):
    write_run(runs / "alone", "distill", "shufflev2", ["kd"], {}, 0, 99.0, (0.5, 0.5))
    source = write_report([runs], tmp_path / "report.html").read_text()
    rows = table_rows(source)
    best = rows["resnet18: kda before_fc, after_fc + kd"]
    marked = re.findall('<td data-label="([^"]*)" class="best">([^<]*)<', source[: source.index("</tbody>")])
    assert dict(marked) == {
        "accuracy, last (%)": best[0],
        "accuracy, best (%)": best[2],
        "transfer loss before_fc": "0.0930",
        "transfer loss after_fc": "0.0009",
    }
    assert len(marked) == 4
    assert "Bold: the best student of each network." in source


def test_best_on_validation_is_shown_where_it_was_measured(runs, tmp_path):
    assert "selected" not in write_report([runs], tmp_path / "report.html").read_text()
    found = {"last": 70.0, "best": 72.5, "selected": 71.25}
    damage(runs / "resnet18-kd-seed0", ("result.json", {"test_accuracy": found}))
    rows = table_rows(write_report([runs], tmp_path / "report.html").read_text())
    assert (rows["kd"][3], rows["no teacher"][3]) == ("71.25 (1 of 2)", "")


def test_every_run_can_be_seen_by_itself(runs, tmp_path):
    source = write_report([runs], tmp_path / "report.html").read_text()
    rows = table_rows(source[source.index("Every run by itself") :])
    assert len(rows) == 8
    assert rows["resnet18-kd-seed1"][:2] == ["kd", "1"]
    assert rows["resnet18-kd-seed1"][4:] == ["0.371", "0.172", "15.0 min"]
    assert "Every run by itself" not in write_report([runs / "teacher"], tmp_path / "one.html").read_text()


def test_what_all_students_share_is_said_once(runs, tmp_path):
    text = " ".join(read(write_report([runs], tmp_path / "report.html")).text)
    assert (
        "All students: 30 epochs, batches of 256, sgd, learning rate 0.1, cosine schedule, 50,000 training images, 8 "
        "views of each." in text
    )
    write_run(runs / "longer", "distill", "resnet18", ["at"], {}, 0, 76.0, epochs=31)
    text = " ".join(read(write_report([runs], tmp_path / "report.html")).text)
    assert "All students: batches of 256, sgd" in text
    assert "views of each. Not the same for all: epochs (30, 31)." in text


def test_headline_and_reproduction(runs, tmp_path):
    text = " ".join(read(write_report([runs], tmp_path / "report.html")).text)
    assert "kda before_fc, after_fc + kd reaches 77.25 % after the last epoch: 2.35 points above" in text
    listed = text[text.index("kdtool teach") : text.index("teacher resnet34, SHA-256")].split("\n")
    commands = [line.strip() for line in listed]
    assert commands[:3] == [
        "kdtool teach --config runs/teacher/config.toml",
        "kdtool extract --for kd --for kda --student resnet18 --views 8",
        "kdtool extract --for kd --for kda --set kda.layers=before_fc,after_fc --student resnet18 --views 8",
    ]
    assert "kdtool distill --config runs/resnet18-kda-before_fc-seed0/config.toml" in commands
    for fact in (TEACHER, CACHE, "torch 2.10.0", "390.6 MiB", "2.5 h", "kd.temperature = 4.0"):
        assert fact in text


def test_a_cache_of_students_without_a_teacher_alone_is_made_by_a_plain_extract(tmp_path):
    write_run(tmp_path / "runs/teacher", "teach", "resnet34", [], {}, 0, 78.9)
    write_run(tmp_path / "runs/none", "distill", "resnet18", [], {}, 0, 75.2)
    text = " ".join(read(write_report([tmp_path / "runs"], tmp_path / "report.html")).text)
    assert "kdtool extract --no-srm --views 8" in text


def test_another_cache_is_named_with_what_made_it(runs, tmp_path):
    """And runs that lie under names of their own differ in nothing."""
    for seed in (0, 1):
        run = runs / f"few-{seed}"
        write_run(run, "distill", "resnet18", ["kd"], {"kd.temperature": 4.0}, seed, 70.0)
        result = files.read_json(run / "result.json", "")
        cache = {**result["cache"], "identity": "f" * 64, "options": ["--few-shot", "5"]}
        files.write_json(run / "result.json", {**result, "cache": cache})
        written = (run / "config.toml").read_text()
        (run / "config.toml").write_text(f'run = "few-{seed}"\ncache = "/elsewhere/few zarr"\n{written}')
    text = " ".join(read(write_report([runs], tmp_path / "report.html")).text)
    assert "kdtool extract --for kd --few-shot 5 --cache '/elsewhere/few zarr' --student resnet18 --views 8" in text
    found, _ = read_runs([runs])
    assert [len(group.runs) for group in grouped(found) if group.runs[0].cache_identity == "f" * 64] == [2]


def test_plots_show_every_student(runs, tmp_path):
    source = write_report([runs], tmp_path / "report.html").read_text()
    captions = re.findall("<figcaption>(.*?)</figcaption>", source)
    assert captions == [
        "Test accuracy (%)",
        "Training loss, the weighted sum of all terms",
        "before_fc: kernel transfer loss",
        "before_fc: test accuracy (%) against transfer loss",
        "after_fc: kernel transfer loss",
        "after_fc: test accuracy (%) against transfer loss",
    ]
    bars = source[source.index(captions[2]) : source.index(captions[3])]
    assert all(f"var(--series-{number})" in bars for number in range(5))
    assert "0.0009" in source[source.index(captions[4]) : source.index(captions[5])]


def test_one_run_folder_and_a_student_without_its_teacher(runs, tmp_path):
    source = write_report([runs / "resnet18-kda-before_fc-seed0"], tmp_path / "one.html").read_text()
    rows = table_rows(source)
    assert list(rows) == ["teacher", "kda before_fc"]
    assert (rows["teacher"][0], rows["teacher"][-2]) == ("78.44", "resnet34")
    assert "against transfer loss" not in source
    assert list(table_rows(write_report([runs / "teacher"], tmp_path / "teacher.html").read_text())) == ["teacher"]
    assert write_report([runs.parent], tmp_path / "all.html").read_text().count("<tbody>") == 5


def test_text_of_the_runs_is_escaped(tmp_path):
    folder = tmp_path / 'a&b "<i>$x$_^{' / "runs"
    evil = '<script>alert("1")</script> $\\frac{1}$ --ink #24292f'
    run = folder / "x <b> 'y'"
    write_run(run, "distill", evil, [evil], {}, 0, 70.0, (0.1, 0.2))
    damage(run, ("result.json", {"options": {f"{evil}.layers": [evil]}}))
    write_run(folder / "z", "distill", "&amp;", ["kd"], {"kd.text": evil}, 0, 70.0, (0.1, 0.2))
    keep(folder / "z", "gram-gap", [gap(folder / "z", evil, 0.5, "<train>")])
    source = write_report([folder], tmp_path / "report.html").read_text()
    page = Page(source)
    assert not {"script", "i", "b"} & set(page.tags)
    assert evil in " ".join(page.text)
    assert "'runs/x <b> '\"'\"'y'\"'\"'/config.toml'" in " ".join(page.text)


def test_runs_that_would_be_called_the_same_are_told_apart_by_their_settings(runs):
    other = runs / "resnet18-kd-other"
    write_run(other, "distill", "resnet18", ["kd"], {"kd.temperature": 2.0}, 0, 76.0)
    labels = [group.label for group in grouped(read_runs([runs])[0])]
    assert labels.count("kd (temperature 2.0)") == labels.count("kd (temperature 4.0)") == 1


def test_students_of_other_first_weights_are_told_apart_and_have_baselines_of_their_own(runs):
    for name, methods, initial in (
        ("drawn", [], {}),
        ("begun", [], {"initial": "/elsewhere/large.pth"}),
        ("kd-begun", ["kd"], {"initial": "/elsewhere/large.pth"}),
    ):
        write_run(runs / name, "distill", "resnet8", methods, {}, 0, 76.0)
        path = runs / name / "config.toml"
        path.write_text(toml(initial) + path.read_text())
    shown = content([run for run in read_runs([runs])[0] if run.network == "resnet8"])
    named = {group.runs[0].folder.name: group for group in shown.groups}
    assert named["begun"].label == "no teacher (from large.pth in)"
    assert named["drawn"].label == "no teacher"
    assert shown.baseline(named["kd-begun"]) is named["begun"]


def test_seeds_that_ran_on_two_devices_are_one_group(runs):
    for seed in (0, 1):
        path = runs / f"resnet18-kd-seed{seed}" / "config.toml"
        path.write_text(f'device = "cuda:{seed}"\n{path.read_text()}')
    (kd,) = (group for group in content(read_runs([runs])[0]).groups if group.label == "kd")
    assert [run.seed for run in kd.runs] == [0, 1]


def test_the_same_run_twice_is_no_second_sample(runs, tmp_path):
    write_run(runs / "twice", "distill", "resnet18", ["kd"], {"kd.temperature": 4.0}, 1, 76.1, (0.371, 0.172))
    page = write_report([runs], tmp_path / "report.html").read_text()
    assert "twice: has the settings and the seed of " in page
    (kd,) = (group for group in content(read_runs([runs])[0]).groups if group.label == "kd")
    assert [run.seed for run in kd.runs] == [0, 1]


def test_runs_on_other_images_are_neither_seeds_nor_baselines_of_one_another(runs, tmp_path):
    for name, methods, content_of in (
        ("easy", [], "e"),
        ("easy-kd", ["kd"], "e"),
        ("hard", [], "d"),
        ("hard-kd", ["kd"], "d"),
    ):
        write_run(runs / name, "distill", "resnet8", methods, {}, 0, 50.0)
        result = files.read_json(runs / name / "result.json", "")
        seen = {"name": "folder", "digest": content_of * 64}
        files.write_json(runs / name / "result.json", {**result, "seen": seen})
    shown = content([run for run in read_runs([runs])[0] if run.network == "resnet8"])
    named = {group.runs[0].folder.name: group for group in shown.groups}
    assert named.keys() == {"easy", "easy-kd", "hard", "hard-kd"}
    for name in ("easy", "hard"):
        assert shown.baseline(named[f"{name}-kd"]) is named[name]
    page = write_report([runs], tmp_path / "report.html").read_text()
    assert "on cifar100, folder: " in page


def test_several_networks_are_named(runs, tmp_path):
    write_run(runs / "shuffle", "distill", "shufflev2", ["kd"], {}, 0, 73.0)
    rows = table_rows(write_report([runs], tmp_path / "report.html").read_text())
    assert {"resnet18: kd", "shufflev2: kd", "teacher"} < set(rows)


GAPS = "analysis/gram-gap.json"
NO_NUMBER = {"last": None, "best": 1, "selected": None}
DAMAGES = {
    "result gone": (("result.json", None), "it has no result.json"),
    "result torn": (("result.json", '{"command": "dist'), "result.json is damaged"),
    "result edited": (("result.json", '{"command": "distill", "checksum": "00"}'), "checksum does not fit"),
    "field of another type": (("result.json", {"seconds": 7}), "result.json is not as kdtool writes it"),
    "field empty": (("result.json", {"test_accuracy": {"best": 1.0, "selected": None}}), "result.json lacks 'last'"),
    "accuracy of no number": (("result.json", {"test_accuracy": NO_NUMBER}), "result.json is not"),
    "metrics gone": (("metrics.jsonl", None), "metrics.jsonl is missing"),
    "metrics torn": (("metrics.jsonl", '{"loss": 1, "train_accuracy": 2, "test_acc'), "metrics.jsonl is not"),
    "metrics of another kind": (("metrics.jsonl", '{"loss": 1}\n[]\n'), "metrics.jsonl lacks 'train_accuracy'"),
    "configuration gone": (("config.toml", None), "config.toml is missing"),
    "configuration damaged": (("config.toml", "= 3"), "config.toml is not valid TOML"),
    "environment gone": (("environment.json", None), "environment.json is missing"),
    "gaps damaged": ((GAPS, "[]"), "gram-gap.json is damaged"),
    "gaps of another kind": ((GAPS, {"results": [{"layer": "x"}]}), "it has no part"),
    "samples of no number": (("result.json", {"samples": "many"}), "result.json is not as kdtool writes it"),
    "a number beyond all": (("result.json", {"seconds": {"total": 10**400}}), "result.json is not as kdtool writes it"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_left_out_visibly(name, runs, tmp_path):
    how, message = DAMAGES[name]
    damage(runs / "resnet18-kda-before_fc-seed0", how)
    source = write_report([runs], tmp_path / "report.html").read_text()
    text = " ".join(Page(source).text)
    assert "1 folder is left out:" in text
    assert message in text
    assert "kda before_fc" not in table_rows(source)


def test_nothing_but_damage_is_an_error_with_its_reason(runs, tmp_path):
    only = runs / "resnet18-kd-seed0"
    (only / "metrics.jsonl").unlink()
    with pytest.raises(DamageError, match=r"metrics\.jsonl is missing"):
        write_report([only], tmp_path / "report.html")
    (only / "result.json").unlink()
    with pytest.raises(UsageError, match="no finished run"):
        write_report([only], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_folders_without_runs_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for folder, message in (("nowhere", "is not a folder"), ("file", "is not a folder"), ("empty", "no finished run")):
        with pytest.raises(UsageError, match=message):
            write_report([tmp_path / folder], tmp_path / "report.html")


def test_unmeasured_values_leave_gaps_in_the_curves(runs, tmp_path):
    run = runs / "resnet18-kd-seed0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{**line, "test_accuracy": None, "loss": math.nan} for line in lines[:3]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert math.isnan(read_run(run).epochs[0].test_accuracy)
    assert write_report([run], tmp_path / "report.html").exists()
    (run / "metrics.jsonl").write_text("")
    assert "Learning curves" not in write_report([run], tmp_path / "report.html").read_text()


def test_without_matplotlib_the_remedy_is_named(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r'pip install "kdtool\[plots\]"'):
        write_report([runs], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_pyplot_is_never_imported(runs, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # of an example that ran before
    write_report([runs], tmp_path / "report.html")
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (0.0, "0"),
        (1.234e-7, "1.23e-07"),
        (0.00123, "0.00123"),
        (0.5, "0.500"),
        (12.34, "12.3"),
        (456.7, "457"),
        (1e5, "1e+05"),
    ],
)
def test_losses_of_every_magnitude_are_short(loss, text):
    assert plots.short(loss) == text
