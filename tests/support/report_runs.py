"""Finished runs as the engine writes them, made up, and what is read of the page that a report is."""

import html.parser
import json
import math
import re
from dataclasses import asdict

from kdtool import files
from kdtool.analysis.gram import GramGap
from kdtool.analysis.kept import keep
from kdtool.engine.runs import toml

TEACHER, CACHE = "7e" * 32, "ca" * 32
RECIPE = {"epochs": 30, "batch": 256, "optimizer": "sgd", "learning_rate": 0.1, "schedule": "cosine"}
ENVIRONMENT = {"kdtool": "0.1.0", "python": "3.12.1", "torch": "2.10.0", "device": "A processor", "threads": 8}
VOID = {"meta", "path", "use", "br", "image"}
SAMPLES = 50_000


def write_run(folder, command, network, method, options, seed, reached, gaps=None, seconds=900.0, epochs=30):
    """A finished run as the engine writes it; `reached` is the accuracy that the curve tends to."""
    folder.mkdir(parents=True)
    config = {"command": command, "seed": seed, "recipe": RECIPE}
    config |= {"data": "cifar100", "network": network} if command == "teach" else {"student": network, "views": 8}
    config |= {} if command == "teach" else {"method": (method or ["none"])[0], "with": method[1:], "set": options}
    (folder / "config.toml").write_text(toml(config))
    files.write_json(folder / "environment.json", ENVIRONMENT)
    curve = [
        reached * (1 - math.exp(-(epoch + 2) / 6)) + math.sin(9 * epoch + seed) / (epoch + 1) for epoch in range(epochs)
    ]
    rows = [
        {
            "stage": "train",
            "epoch": epoch,
            "steps": 196,
            "learning_rate": 0.1,
            "loss": 4.6 * math.exp(-epoch / 8) + 0.05 + 0.2 * len(method),
            "terms": {"task": 1.0, **({method[0]: 2.0} if method else {})},
            "train_accuracy": min(100.0, accuracy + 8),
            "validation_accuracy": None,
            "test_accuracy": accuracy,
            "seconds": seconds * (epoch + 1) / epochs,
        }
        for epoch, accuracy in enumerate(curve)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files.write_json(
        folder / "result.json",
        {
            "command": command,
            "name": folder.name,
            "network": network,
            "method": method,
            "options": options,
            "seed": seed,
            "epochs": epochs,
            "batch": 256,
            "views": None if command == "teach" else 8,
            "samples": SAMPLES,
            "parameters": 21_328_292 if command == "teach" else 11_220_132,
            "teacher": {
                "network": "resnet34",
                "sha256": TEACHER,
                "test_accuracy": 78.44,
                "seconds_per_image": 0.002,
            },
            "test_accuracy": {"last": curve[-1], "best": max(curve), "selected": None},
            "validation_accuracy": None,
            "seconds": {"total": seconds, "train": 0.8 * seconds, "data": 0.05 * seconds, "evaluate": 0.15 * seconds},
            "cache": None
            if command == "teach"
            else {
                "identity": CACHE,
                "bytes": 409_600_000 if method else 0,
                "tap_bytes": 819_200_000 if method else 0,
            },
            "weights_sha256": weights_of(folder),
        },
    )
    if gaps:
        layers = zip(("before_fc", "after_fc"), gaps, strict=True)
        keep(folder, "gram-gap", [gap(folder, name, loss) for name, loss in layers])


def weights_of(folder):
    """The SHA-256 that a made-up run has for its weights."""
    return f"{len(folder.name):02x}" * 32


def about(folder, layer="before_fc", part="train"):
    """What a result about a made-up run says of what it is about."""
    known = {"run": folder.name, "teacher_features": "cached float16", "weights_sha256": weights_of(folder)}
    return {"layer": layer, "part": part, **known}


def gap(folder, layer, loss, part="train", **fields):
    """A result of `gram-gap`."""
    found = GramGap(loss, 10 * loss, 10.0, 9.0, SAMPLES, 512, 512, "moments")
    return {**asdict(found), **about(folder, layer, part), **fields}


def damage(run, how):
    path = run / how[0]
    if how[1] is None:
        path.unlink()
    elif isinstance(how[1], dict):
        files.write_json(path, {**files.read_json(path, ""), **how[1]})
    else:
        path.write_text(how[1])


class Page(html.parser.HTMLParser):
    """Visible text, attributes, and whether every element is closed."""

    def __init__(self, source):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def table_rows(source):
    """The cells of every row of the first table, by the head of its row."""
    table = source[source.index("<tbody>") : source.index("</tbody>")]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    return {re.sub("<.*?>", "", head): re.findall(r"<td[^>]*>(.*?)</td>", cells) for head, cells in rows}
