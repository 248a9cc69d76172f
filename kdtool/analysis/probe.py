"""How well what a network has learned serves another task: a new classifier on it, trained alone or with all of it.

The linear probe of ICD's Table 3 (arXiv 2407.11802, after CRD's, arXiv 1910.10699): the network is frozen, a new linear
layer (weights N(0, 0.01^2), bias 0) learns the other data set. In the code of ICD's and SRM's authors the network is in
train mode meanwhile, so that its BatchNorms follow the other data though no weight does; `batchnorm="eval"` keeps
them. `whole` trains everything, which is SRM's "whole network update" (arXiv 2103.17012, Table II).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdtool import data, files
from kdtool.data.preparation import PAD
from kdtool.engine import checkpoint
from kdtool.engine.configuration import RECIPE, Given, Values, data_of
from kdtool.engine.device import choose_device, choose_precision
from kdtool.engine.finetune import BODY, classifier, fixed_parameters
from kdtool.engine.job import seed_of, seeded
from kdtool.engine.optim import Recipe
from kdtool.engine.runs import PLACES, RunFolder, environment, read_result
from kdtool.engine.teach import Lesson, TeachConfig, basis, check_basis, lesson_on, make_job, plain_config, summary
from kdtool.engine.train import train
from kdtool.engine.workspace import Seen
from kdtool.errors import DamageError, UsageError, unknown
from kdtool.models import create, parameters
from kdtool.progress import Progress, Silent, StopRequest

SPREAD = 0.01  # standard deviation of the first weights of a linear probe


@dataclass(frozen=True)
class ProbeConfig:
    """What is asked of `probe`.

    run: the folder of a run whose network is probed; stage: of its stages, the one at whose end the weights are taken
    ("" for the last). data, data_folder, validation, few_shot: the other data set, as of `TeachConfig`. whole:
    everything trains, and the new classifier begins as the network's own does. batchnorm: whether the statistics of a
    network that does not train stay ("eval") or follow the data ("train"). image_size, crop: None for those that the
    network was trained with.
    """

    run: Path
    data: str
    recipe: Recipe
    stage: str = ""
    whole: bool = False
    batchnorm: str = "train"
    data_folder: str | None = None
    validation: int | None = None
    few_shot: int | None = None
    image_size: int | None = None
    crop: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.whole and self.batchnorm != "train":
            raise UsageError("--whole trains the whole network, so --batchnorm does not apply")

    def title(self, content: str) -> str:
        """The name of the probe's folder; it ends in a digest of all that was asked for.

        content: digest of the other data set, since folders of pictures all have one name.
        """
        kind = "whole" if self.whole else f"linear-{self.batchnorm}"
        few = f"-{self.few_shot}shot" if self.few_shot else ""
        asked = {name: value for name, value in asdict(self).items() if name not in (*PLACES, "precision")}
        asked["content"] = content
        named = ["probe", self.data, *([self.stage] if self.stage else []), f"{kind}{few}", f"seed{self.seed}"]
        return "-".join([*named, files.digest(asked)[:6]])


@dataclass(frozen=True)
class Probed:
    """A network whose weights are probed: name, taps, how it saw its data, the file of weights and its SHA-256.

    seed: of its first weights.
    """

    network: str
    taps: Mapping[str, str]
    seen: Seen
    weights: Path
    sha256: str
    seed: int


def probe_config(values: Values, run: Path, **flags: Any) -> ProbeConfig:
    """What `kdtool analyze probe` is asked for; flags as its command line takes them."""
    of, given = values, Given(flags)
    return ProbeConfig(
        run=run.absolute(),
        data=data_of(of, given),
        recipe=of.recipe(given.recipe, "probe-icd", **given.of(RECIPE)),
        stage=of.get("stage", given.stage, "", str),
        whole=of.get("whole", given.whole or None, False, bool),
        batchnorm=of.get("batchnorm", given.batchnorm, "train", str),
        data_folder=of.where("data_folder", given.data_folder),
        validation=of.get("validation", given.validation, None, int),
        few_shot=of.get("few_shot", given.few_shot, None, int),
        image_size=of.get("image_size", given.image_size, None, int),
        crop=of.get("crop", given.crop, None, str),
        seed=of.get("seed", given.seed, 0, int),
        device=of.get("device", given.device, "auto", str),
        precision=of.get("precision", given.precision, "auto", str),
    )


def probe(
    config: ProbeConfig,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    stop: StopRequest | None = None,
    checkpoint_seconds: float = 60.0,
) -> dict[str, Any]:
    """Trains the classifier, or all, and writes a folder into that of the run; gives the result.

    stop: asked at every safe point; without one only an exception ends it. Whatever stops it, the next call goes on.
    """
    stop = stop or StopRequest()
    if config.data not in data.DATASETS:
        raise unknown("data set", config.data, data.DATASETS)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    source = probed(config)
    asked, lesson = lesson_of(config, source.seen, progress)
    title = config.title(lesson.data.digest)
    path = config.run / title
    with files.lock(path / "lock", "training in"):
        resolved = plain_config("probe", replace(config, precision=precision))
        folder = RunFolder(path, {**resolved, "run": config.run.name, "weights": source.sha256})
        check_basis(folder, basis(lesson, None))
        known = folder.result
        if known is not None:
            checkpoint.clear_state(folder.path)
            progress.note(f"{folder.path} holds this probe already; nothing to do")
            return known
        model = with_new_classifier(source, lesson.data.classes, config)
        fixed = frozenset() if config.whole else fixed_parameters(model, (BODY,), lesson.image_shape)
        job = make_job(asked, lesson, model, fixed, device, precision)
        files.write_json(folder.path / "environment.json", environment(device, precision))
        running = train(job, folder, progress, stop, checkpoint_seconds)
        digest = checkpoint.save_weights(folder.path / "network.safetensors", model)
        result = {
            **summary("probe", title, source.network, config.recipe, config.seed, running),
            "run": config.run.name,
            "data": config.data,
            "data_digest": lesson.data.digest,
            "kind": "whole" if config.whole else "linear",
            "batchnorm": config.batchnorm,
            "probed_sha256": source.sha256,
            "parameters": parameters(model),
            "weights_sha256": digest,
        }
        folder.finish(result, running.rows)
        checkpoint.clear_state(folder.path)
        return result


def lesson_of(config: ProbeConfig, seen: Seen, progress: Progress) -> tuple[TeachConfig, Lesson]:
    """(the training in the words of `teach`, its data) of a probe of a network that has seen a data set."""
    found = data.load(config.data, Path(config.data_folder) if config.data_folder else None, progress)
    asked = as_teaching(config, seen, found.digest)
    return asked, lesson_on(found, asked, progress)


def as_teaching(config: ProbeConfig, seen: Seen, content: str) -> TeachConfig:
    """The same training in the words of `teach`, from which it differs in its first weights alone.

    content: digest of the probe's data set. Of the data set that the network has learned from, images are normalised as
    they were for it; those of another one by that one's statistics, as ICD's script does.
    """
    known = content == seen.digest
    crop = config.crop or ("resized" if seen.augmentation["name"] == "ResizedCrop" else "pad")
    return TeachConfig(
        data=config.data,
        network="",
        recipe=config.recipe,
        data_folder=config.data_folder,
        validation=config.validation,
        few_shot=config.few_shot,
        views=1,
        seed=config.seed,
        image_size=config.image_size or seen.image_shape[2],
        crop=crop,
        pad=seen.augmentation.get("pad", PAD) if crop == "pad" else PAD,
        flip=seen.augmentation["flip"] if known else None,
        mean=seen.mean if known else None,
        std=seen.std if known else None,
        freeze=() if config.whole else (BODY,),
        batchnorm="eval" if config.whole else config.batchnorm,
    )


def probed(config: ProbeConfig) -> Probed:
    """The network of a finished run and the weights of the stage that was asked for."""
    known = {"command": str, "network": str, "weights_sha256": str, "taps": dict, "seen": dict, "seed": int}
    result = read_result(config.run, "train it again with this version of kdtool", known)
    if config.stage:
        ended = {str(left["stage"]): left for left in result.get("stages", []) if "weights_sha256" in left}
        if not ended:
            raise UsageError(f"--stage {config.stage}: {config.run} has one stage; leave the option out")
        if config.stage not in ended:
            raise unknown("stage that another one follows", config.stage, ended)
        place, digest = config.run / f"stage-{config.stage}.safetensors", str(ended[config.stage]["weights_sha256"])
    else:
        taught = result["command"] == "teach"
        place = config.run.parent.parent / "teacher.safetensors" if taught else config.run / "student.safetensors"
        digest = str(result["weights_sha256"])
    return Probed(
        result["network"], dict(result["taps"]), Seen.from_plain(result["seen"]), place, digest, seed_of(result)
    )


def with_new_classifier(source: Probed, classes: int, config: ProbeConfig) -> nn.Module:
    """The network with its trained weights, save the classifier, which is new and for so many classes."""
    trained = checkpoint.load_tensors(source.weights, source.sha256)
    with seeded(source.seed):
        model = create(source.network, classes, source.taps)
    place = f"{classifier(model, source.seen.image_shape)}."
    with seeded(config.seed):
        fresh = create(source.network, classes, source.taps).get_submodule(place[:-1])
        for name, parameter in fresh.named_parameters():
            if not config.whole:
                nn.init.zeros_(parameter) if name == "bias" else nn.init.normal_(parameter, std=SPREAD)
    model.get_submodule(place[:-1]).load_state_dict(fresh.state_dict())
    own = {name: value for name, value in model.state_dict().items() if name.startswith(place)}
    body: dict[str, torch.Tensor] = {name: value for name, value in trained.items() if not name.startswith(place)}
    try:
        model.load_state_dict({**body, **own})
    except RuntimeError as error:
        raise DamageError(f"{source.weights} does not hold the weights of {source.network}: {error}") from error
    return model
