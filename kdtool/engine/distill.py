"""Trains a student from the cache alone: the teacher's network is never built and its weights are never read."""

from __future__ import annotations

import copy
import functools
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdtool import files
from kdtool.cache import Cache
from kdtool.cache.journal import holds_cache
from kdtool.data.dataset import Dataset
from kdtool.data.preparation import check_views
from kdtool.engine import checkpoint
from kdtool.engine.cached import CachedTeacher
from kdtool.engine.device import choose_device, choose_precision, placed
from kdtool.engine.finetune import head_rate
from kdtool.engine.folder import Workspace
from kdtool.engine.job import Bound, Job, check_head_rate, check_keep, check_schedule, check_seed, seeded
from kdtool.engine.lacking import cache_words, check_cache, extract_command, option_text
from kdtool.engine.live import living
from kdtool.engine.optim import Recipe
from kdtool.engine.ranks import Ranks, alike, ranks
from kdtool.engine.runs import RunFolder, begun, read_toml
from kdtool.engine.state import Running
from kdtool.engine.teach import note_environment, plain_config, summary
from kdtool.engine.together import check_shares, check_sync_bn, synchronised
from kdtool.engine.train import train
from kdtool.engine.workspace import Seen, answer, labelled, load_data, open_teacher_cache
from kdtool.errors import DamageError, IdentityError, NonFiniteError, UsageError
from kdtool.imports import source_digest
from kdtool.methods import check_added, reference
from kdtool.methods.protocol import Method
from kdtool.methods.vectors import VALUES
from kdtool.models import check_output, create, large_for, parameters, tap_shapes
from kdtool.models.weights import Loaded, load_initial
from kdtool.progress import Progress, Silent, StopRequest
from kdtool.targets import Facts, Fit, Shapes, Stage, Target, by_key
from kdtool.typed import check_types


@dataclass(frozen=True)
class DistillConfig:
    """What is asked of `distill`.

    student: name of a network, as `kdtool.models.create` takes it. methods: the run's method first, then what is added
    to it, with the weight that it has (`--with kd` is `KD(weight=1)`); empty trains on labels alone. recipe: optimiser,
    schedule, batch, epochs. name: of the run's folder, "" for `title`. views: 0 takes those that the cache holds. seed:
    of first weights and order. device, precision: "auto" takes a CUDA device where there is one, and bfloat16 where the
    hardware multiplies it. shuffle_block: samples that are shuffled among themselves, 0 for a whole view. data_folder:
    where the files of the data set lie, None for where `teach` found them. taps: layers that the user names in the
    student, tap -> module path. initial: file of weights that the student begins from; a classifier for other classes
    stays as it was drawn. head_learning_rate: of the classifier, where it has one of its own. keep_weights: those of
    every so many epochs stay in the run's folder. sync_bn: BatchNorms take the statistics of all ranks.
    """

    student: str
    methods: tuple[Method, ...]
    recipe: Recipe
    name: str = ""
    views: int = 0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    shuffle_block: int = 0
    data_folder: str | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    initial: str | None = None
    head_learning_rate: float | None = None
    keep_weights: int | None = None
    sync_bn: bool | None = None

    def __post_init__(self) -> None:
        for typed in (self, *self.methods):
            check_types(typed)
        if self.methods:
            check_added(self.methods[0], [reference(added) for added in self.methods[1:]])
        for added in self.methods[1:]:
            if getattr(added, "task", None) != added.options().get("task"):
                first = self.methods[0].name
                raise UsageError(
                    f"option {added.name}.task is of {added.name} alone: beside {first} the cross-entropy has "
                    f"the weight that {first} gives it"
                )
        check_seed(self.seed)
        check_keep(self.keep_weights)
        check_head_rate(self.head_learning_rate)
        for option, number in (("views", self.views), ("shuffle-block", self.shuffle_block)):
            if number < 0:
                raise UsageError(f"--{option} is at least 1, not {number}")
        if self.name in (".", "..") or "/" in self.name or not self.name.isprintable():
            raise UsageError(f"--run names a folder below runs/, so {self.name!r} cannot be its name")

    @property
    def title(self) -> str:
        """The name of the run's folder: student, the file it begins from, methods with their layers and what is not
        default, and seed.
        """
        named = [part for method in self.methods for part in _title(method)]
        student = self.student.replace(":", "-").replace("/", "-")  # of a network of one's own, path.to:factory
        begun_from = [f"from-{Path(self.initial).stem}"] if self.initial else []
        return self.name or "-".join([student, *begun_from, *(named or ["none"]), f"seed{self.seed}"])

    def plain(self) -> dict[str, Any]:
        """As the plain values of config.toml."""
        values = {key: value for key, value in plain_config("distill", self).items() if key not in ("methods", "name")}
        recipe = values.pop("recipe")
        names, options = [reference(method) for method in self.methods], options_of(self.methods)
        return {**values, "method": names[0] if names else "none", "with": names[1:], "recipe": recipe, "set": options}


def options_of(methods: Sequence[Method]) -> dict[str, Any]:
    """The options of methods as METHOD.NAME -> plain value, those that are None left out."""
    return {
        f"{method.name}.{key}": list(value) if isinstance(value, tuple) else value
        for method in methods
        for key, value in vars(method).items()
        if value is not None
    }


def _title(method: Method) -> list[str]:
    defaults, parts = method.options(), [method.name, *getattr(method, "layers", ())]
    changed = {key: value for key, value in vars(method).items() if key != "layers" and value != defaults[key]}
    return [*parts, *(f"{key}={option_text(value)}" for key, value in changed.items())]


@dataclass(frozen=True)
class Needs:
    """What methods ask of a cache for one student.

    validated: keys that a stage selects its weights by, on validation images. taps: of the student, for each method.
    """

    targets: tuple[Target, ...]
    fits: tuple[Fit, ...]
    validated: tuple[str, ...] = ()
    taps: tuple[tuple[str, ...], ...] = field(default=())


def needs_of(methods: Sequence[Method], student: Shapes, teacher: Shapes, facts: Facts) -> Needs:
    """Targets, fits and student taps of methods, equal keys once."""
    targets = by_key([target for method in methods for target in method.targets(student, teacher)])
    fits = [fit for method in methods for fit in method.fits(student, teacher)]
    fits += [target.fit for target in targets.values() if target.fit is not None]
    selecting = methods and any(
        stage.select == "validation_loss" for stage in methods[0].stages(student, teacher, facts)
    )
    return Needs(
        tuple(targets.values()),
        tuple({fit.key: fit for fit in fits}.values()),
        tuple(targets) if selecting else (),
        tuple(method.student_taps(student, teacher) for method in methods),
    )


def distill(
    workspace: Workspace,
    config: DistillConfig,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    stop: StopRequest | None = None,
    checkpoint_seconds: float = 60.0,
    live: bool = False,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Trains and writes a run folder; gives the result. All ranks of a `torchrun` train together, and rank 0 writes.

    The folder is runs/<name> of the workspace with the result's "name"; the result is what its result.json holds,
    accuracies in percent. A run that is there already is not trained again. stop: asked at every safe point; without
    one only an exception ends it. Whatever stops it, the next call goes on from the last checkpoint, at most
    `checkpoint_seconds` before. live: the teacher answers in every step, and the cache gives the split and what fits
    have learned; for tests and benchmarks. tensorboard: the metrics are written for TensorBoard too.
    """
    stop = stop or StopRequest()
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    with ranks(device) as group, ExitStack() as held:
        with alike(group):
            ready = made_ready(workspace, config, group, device, precision, progress, live)
            if group.rank == 0:
                held.enter_context(files.lock(ready.path / "lock", "training in"))
                check_basis(RunFolder(ready.path, ready.resolved, events=tensorboard), ready, live)
        folder = RunFolder(ready.path, ready.resolved, events=tensorboard)
        known: dict[str, Any] | None = group.shared(whole_result(folder, progress))
        if known is not None:
            if group.rank == 0:
                checkpoint.clear_state(folder.path)
            progress.note(f"{folder.path} holds this run already; nothing to do")
            return known
        with alike(group):
            if ready.begun_from:
                progress.note(f"begins from {ready.begun_from.remark}")
            if group.rank == 0:
                note_environment(folder, device, precision, group)
            made = ready.job(config, device, precision)
            made = beside_teacher(workspace, ready.cache, made, ready.needs) if live else made
        job = replace(made, ranks=group)
        running = train(job, folder, progress, stop, checkpoint_seconds)
        result = _finish(folder, job, running, config, ready) if group.rank == 0 else {}
        return dict(group.shared(result))


@dataclass(frozen=True, eq=False)
class Ready:
    """A training that nothing speaks against, before anything is written.

    begun_from: what was loaded of a file into the student. needs: of the teacher; stored: those that the cache has to
    hold. path, resolved: the run's folder and its configuration. command: adds to the cache what it lacks.
    """

    cache: Cache
    data: Dataset
    student: nn.Module
    begun_from: Loaded | None
    needs: Needs
    stored: Needs
    stages: tuple[Stage, ...]
    bound: tuple[Bound, ...]
    views: int
    path: Path
    resolved: dict[str, Any]
    command: Sequence[str]

    def job(self, config: DistillConfig, device: torch.device, precision: str) -> Job:
        """The training itself, its images on the device."""
        parts = (self.cache, self.data, self.student, self.stages, self.bound, self.stored)
        return make_job(*parts, config, self.views, device, precision)


def made_ready(
    workspace: Workspace,
    config: DistillConfig,
    group: Ranks,
    device: torch.device,
    precision: str,
    progress: Progress,
    live: bool = False,
) -> Ready:
    """Reads all that a training needs; refuses what does not fit, and writes nothing."""
    check_sync_bn(config.sync_bn, device)
    needing = config.methods, config.student, config.data_folder, config.taps
    if not holds_cache(workspace.cache):
        making = shlex.join(extract_command(workspace, None, *needing))
        raise UsageError(f"no cache at {workspace.cache}; `{making}` makes one, --cache names another folder")
    cache = open_teacher_cache(workspace.cache)
    check_teacher(workspace, cache)
    facts = facts_of(cache, config)
    with seeded(config.seed):
        student = create(config.student, cache.layout.classes, config.taps)
    image_shape = seen_by(cache).image_shape
    check_output(config.student, student, cache.layout.classes, image_shape)
    if said := large_for(config.student, image_shape):
        progress.note(said)
    begun_from = load_initial(Path(config.initial), student) if config.initial else None
    student = synchronised(student) if config.sync_bn else student
    shapes = tap_shapes(student, image_shape)
    both = (shapes, cache.layout.tap_shapes)
    needs = needs_of(config.methods, *both, facts)
    check_placements(cache, config.views)
    command = extract_command(workspace, cache.identity, *needing)
    stored = replace(needs, targets=(), validated=()) if live else needs
    check_cache(cache, stored, config.views, command)
    folder = workspace.runs / config.title
    asked = config.views or begun_views(folder)
    views = asked or (all_views_of(cache, config) if live else held_views(cache, needs))
    longest = max((cache.views(key) for key in cache.contents), default=0)
    if not (asked or live) and views < longest:
        progress.note(f"walks {views} of {longest} views: the cache has no more of all that the methods read")
    stages, bound = staged(config.methods, needs, *both, facts, cache.fitted)
    check_schedule(stages, bound, config.recipe, facts.samples)
    check_shares(stages, config.recipe, facts.samples, group)
    data = data_of(workspace, cache, config.data_folder, progress)
    where = {"run": config.name, "cache": workspace.named_cache}
    plain = replace(config, views=views, precision=precision).plain()
    resolved = {**plain, **{key: value for key, value in where.items() if value}}
    return Ready(cache, data, student, begun_from, needs, stored, stages, bound, views, folder, resolved, command)


def _finish(folder: RunFolder, job: Job, running: Running, config: DistillConfig, ready: Ready) -> dict[str, Any]:
    """Writes the weights and, last, the result of a training that has ended."""
    cache, needs = ready.cache, ready.stored
    digest, samples = checkpoint.save_weights(folder.path / "student.safetensors", job.student), len(job.train.labels)
    result = {
        **summary("distill", config.title, config.student, config.recipe, config.seed, running),
        "from": ready.begun_from.record if ready.begun_from else None,
        "method": [method.name for method in config.methods],
        "options": config.plain()["set"],
        "stages": running.left,
        "taps": dict(config.taps),
        "seen": replace(seen_by(cache), class_names=ready.data.class_names).plain(),
        "views": job.views,
        "samples": samples,
        "parameters": parameters(job.student),
        "teacher": teacher_of(cache),
        "cache": {
            "identity": cache.identity_digest,
            "targets": targets_digest(cache, needs, job.views),
            "options": cache_words(cache, needs.targets, needs.fits),
            "bytes": job.views * row_bytes(cache, needs) * samples,
            "tap_bytes": job.views * tap_bytes(cache, needs) * samples,
        },
        "weights_sha256": digest,
        "answer": answer_of(job.student, seen_by(cache).image_shape),
    }
    if running.best:
        job.student.load_state_dict(checkpoint.selected("student", running.best))
        checkpoint.save_weights(folder.path / "student-best.safetensors", job.student)
    folder.finish(result, running.rows)
    checkpoint.clear_state(folder.path)
    return result


def answer_of(student: nn.Module, image_shape: tuple[int, int, int]) -> list[float] | None:
    """By which later code of the student's network is known for the same; None where a logit is infinite or NaN."""
    try:
        return list(answer(copy.deepcopy(student).cpu(), image_shape))
    except NonFiniteError:
        return None


def whole_result(folder: RunFolder, progress: Progress) -> dict[str, Any] | None:
    """The result of a finished run; None, and a word about it, where its weights are gone or are not those."""
    result = folder.result
    weights = folder.path / "student.safetensors"
    if result is not None and not checkpoint.holds(weights, result["weights_sha256"]):
        progress.note(f"{weights} is gone or damaged: the student is trained again")
        return None
    return result


def check_basis(folder: RunFolder, ready: Ready, live: bool = False) -> None:
    """Refuses to go on with a run, or to give the result of one, that was made from another cache or other weights.

    live: the teacher answers in every step, which makes another run than the cache does.
    """
    path, cache = folder.path / "cache.json", ready.cache
    initial = ready.begun_from.sha256 if ready.begun_from else None
    targets, code = targets_digest(cache, ready.stored, ready.views), code_digests(ready)
    if not folder.begun:
        if not folder.dry:
            basis = {"identity": cache.identity_digest, "live": live, "initial": initial, "targets": targets}
            files.write_json(path, {**basis, "code": code})
        return
    repair = f"remove {folder.path} and run again"
    if not path.exists():
        raise DamageError(f"{folder.path} does not say from which cache it was made ({path.name} is missing); {repair}")
    known = files.read_json(path, repair, {"identity": str})
    held = str(known["identity"])
    if known.get("live", False) != live:
        raise IdentityError(
            f"{folder.path} holds a run {'beside a living teacher' if not live else 'from a cache'}, and asked for is "
            f"one {'beside a living teacher' if live else 'from a cache'}; name another folder with --run, or remove it"
        )
    if held != cache.identity_digest:
        raise IdentityError(
            f"{folder.path} holds a run from another cache (identity {held[:12]} there, {cache.identity_digest[:12]} "
            f"in {cache.path}); name another folder with --run, or remove it"
        )
    if known.get("initial") != initial:
        raise IdentityError(
            f"{folder.path} holds a run from other first weights (SHA-256 {str(known.get('initial'))[:12]} there, "
            f"{str(initial)[:12]} here); name another folder with --run, or remove it"
        )
    before = known.get("code")
    changed = [name for name in code if isinstance(before, dict) and before.get(name) != code[name]]
    if changed:
        raise IdentityError(
            f"the file of {changed[0]} has changed since the run in {folder.path} was begun; name another folder with "
            "--run, or remove it"
        )
    check_cache(cache, ready.stored, ready.views, ready.command)
    if known.get("targets", targets) != targets:
        raise IdentityError(
            f"{folder.path} holds a run from targets of other bits: {cache.path} was extracted again since, in another "
            "--dtype or on another machine; name another folder with --run, or remove it"
        )


def code_digests(ready: Ready) -> dict[str, str]:
    """path.to:Name -> SHA-256 of its module's file, of methods and a student network of the user's."""
    named = [*(reference(bound.method) for bound in ready.bound), str(ready.resolved["student"])]
    return {name: digest for name in named if ":" in name and (digest := source_digest(name))}


def targets_digest(cache: Cache, needs: Needs, views: int) -> str:
    """SHA-256 of what the cache has recorded of all chunks that a training of so many views reads."""
    owners = {
        "train": {target.key for target in needs.targets},
        "validation": set(needs.validated),
        "fitted": {fit.key for fit in needs.fits},
    }

    def is_read(name: str) -> bool:
        part, owner = name.split("/")[:2]
        return owner in owners.get(part, ()) and cache.manifest.grid_of(name).locate(name)[0] < views

    return files.digest({name: record for name, record in cache.manifest.files.items() if is_read(name)})


def row_bytes(cache: Cache, needs: Needs) -> int:
    """Bytes that the needed arrays take for one sample in one view."""
    return sum(spec.row_bytes for target in needs.targets for spec in cache.contents[target.key].arrays.values())


def tap_bytes(cache: Cache, needs: Needs) -> int:
    """Bytes of the teacher's taps, in float32, that the needed arrays stand for, for one sample in one view."""
    taps = {tap for target in needs.targets for tap in target.taps}
    return sum(4 * math.prod(cache.layout.tap_shapes[tap]) for tap in taps)


def seconds_per_image(cache: Cache) -> float | None:
    """What an answer of the teacher took when the cache was filled; None where that was not measured."""
    asked = [record["asked"] for record in cache.provenance if "asked" in record]
    for found in asked:
        what = f"a line in the provenance of {cache.path}"
        files.check_fields(found, {"images": int, "seconds": float}, what, "extract into another --cache")
    images = sum(found["images"] for found in asked)
    return sum(found["seconds"] for found in asked) / images if images else None


def teacher_of(cache: Cache) -> dict[str, Any]:
    """What the cache says of its teacher; the accuracy in percent, from the logits of the test part."""
    teacher, labels = cache.identity["teacher"], cache.labels("test")
    right = cache.array("test", "logits", VALUES).read(0).argmax(1) == labels
    return {
        **{key: teacher[key] for key in ("network", "sha256")},
        "test_accuracy": 100.0 * float(right.mean()),
        "seconds_per_image": seconds_per_image(cache),
    }


def check_teacher(workspace: Workspace, cache: Cache) -> None:
    """Refuses a cache of another teacher or split than the one that kdtool.toml names."""
    for setting, found, what in (
        ("teacher_sha256", cache.identity["teacher"]["sha256"], "teacher"),
        ("split_digest", cache.identity["teacher"]["split_digest"], "teacher's split"),
    ):
        wanted = workspace.settings.get(setting)
        if wanted is not None and wanted != found:
            other = str(workspace.folder / "OTHER.zarr")
            repair = shlex.join(["kdtool", "extract", *workspace.folder_words, "--cache", other])
            raise IdentityError(
                f"{cache.path} is the cache of another {what}: {found[:12]} there, {str(wanted)[:12]} in "
                f"{workspace.folder / 'kdtool.toml'}; name this teacher's with --cache, or make it: `{repair}`"
            )


def facts_of(cache: Cache, config: DistillConfig) -> Facts:
    """What methods may know of the run."""
    labels = cache.labels("train")
    return Facts(len(labels), cache.layout.classes, labels, config.recipe.batch, config.recipe.epochs, config.seed)


def held_views(cache: Cache, needs: Needs) -> int:
    """The views that the cache holds of all needed keys; without needs, of its logits."""
    keys = [target.key for target in needs.targets] or ["logits"]
    return min(cache.views(key) for key in keys) or 1


def beside_teacher(workspace: Workspace, cache: Cache, job: Job, needs: Needs) -> Job:
    """The same training with the living teacher in place of the cache."""
    validated = [target for target in needs.targets if target.key in needs.validated]
    selecting = living(workspace, cache, job.validation.images, validated) if job.validation and validated else None
    source = living(workspace, cache, job.train.images, needs.targets)
    return replace(job, source=source if job.bound else None, validation_source=selecting)


def begun_views(folder: Path) -> int:
    """The views that the run in a folder walks, though the cache may have changed since; 0 where none was begun."""
    known = folder / "config.toml"
    views = read_toml(known).get("views") if known.exists() and begun(folder) else 0
    return views if type(views) is int else 0


def all_views_of(cache: Cache, config: DistillConfig) -> int:
    """The views that a training without a cache walks: all placements, or a new one in each epoch."""
    return seen_by(cache).rule().placements or config.recipe.epochs


def staged(
    methods: Sequence[Method],
    needs: Needs,
    student: Shapes,
    teacher: Shapes,
    facts: Facts,
    fitted: Callable[[str], dict[str, Any]],
) -> tuple[tuple[Stage, ...], tuple[Bound, ...]]:
    """The stages of a run, and its methods with what they build for this student; fitted: what a fit has learned."""
    stages = [method.stages(student, teacher, facts) for method in methods]
    bound = []
    for number, (method, taps) in enumerate(zip(methods, needs.taps, strict=True)):
        learned = {fit.key: fitted(fit.key) for fit in method.fits(student, teacher)}
        adapters = functools.partial(method.adapters, student, teacher, facts, learned)
        bound.append(Bound(method, taps, adapters, stages[number][0].weights if number else None))
    return tuple(stages[0]) if stages else (Stage("train"),), tuple(bound)


def data_of(workspace: Workspace, cache: Cache, folder: str | None, progress: Progress) -> Dataset:
    """The data set that the cache was extracted from; another decoder than the cache's is told of."""
    found = load_data(seen_by(cache), folder or workspace.settings.get("data_folder"), progress)
    there, here = cache.identity["preprocessing"].get("decoder"), found.prepared.get("decoder")
    if there != here:
        progress.note(
            f"the teacher saw pictures decoded by {_versions(there)}, and here it is {_versions(here)}: single pixels "
            "may differ in their last bit"
        )
    return found


def _versions(decoder: Mapping[str, str] | None) -> str:
    return ", ".join(f"{name} {version}" for name, version in (decoder or {}).items()) or "nothing"


def check_placements(cache: Cache, views: int) -> None:
    """Refuses more views than there are different ones."""
    if views:
        check_views(seen_by(cache).rule(), views)


def seen_by(cache: Cache) -> Seen:
    """How the teacher saw the data set of a cache, the augmentation of its views included."""
    return seen_in(cache.identity, cache.layout.classes)


def seen_in(identity: Mapping[str, Any], classes: int) -> Seen:
    """The same from the identity of a cache."""
    about, how = identity["data"], identity["preprocessing"]
    return Seen(
        about["name"],
        about["digest"],
        classes,
        tuple(about["image_shape"]),
        identity["augmentation"],
        tuple(how["mean"]),
        tuple(how["std"]),
    )


def make_job(
    cache: Cache,
    data: Dataset,
    student: nn.Module,
    stages: tuple[Stage, ...],
    bound: tuple[Bound, ...],
    needs: Needs,
    config: DistillConfig,
    views: int,
    device: torch.device,
    precision: str,
) -> Job:
    """The training that a configuration describes, on the cache's split and views."""
    rule = seen_by(cache).rule()
    has_validation = "validation" in cache.layout.samples
    validated = [target for target in needs.targets if target.key in needs.validated]
    rates = config.head_learning_rate, config.recipe.learning_rate
    head, head_factor = head_rate(student, seen_by(cache).image_shape, *rates)
    return Job(
        student=placed(student, device, precision),
        stages=stages,
        bound=bound,
        source=CachedTeacher(cache, needs.targets, device) if bound else None,
        train=labelled(data.train, cache.index("train"), rule, data, device),
        test=labelled(data.test, np.arange(len(data.test.labels)), rule, data, device),
        validation=labelled(data.train, cache.index("validation"), rule, data, device) if has_validation else None,
        validation_source=CachedTeacher(cache, validated, device, "validation")
        if has_validation and validated
        else None,
        recipe=config.recipe,
        views=views,
        seed=config.seed,
        precision=precision,
        shuffle_block=config.shuffle_block or None,
        head=head,
        head_factor=head_factor,
        keep=config.keep_weights,
    )
