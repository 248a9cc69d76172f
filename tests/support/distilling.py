"""The training that `distill` would run, before it runs."""

from collections.abc import Sequence

import torch

from kdtool.cache import open_cache
from kdtool.engine import distill as stage
from kdtool.engine.distill import DistillConfig
from kdtool.engine.folder import Workspace
from kdtool.engine.job import Job, seeded
from kdtool.engine.optim import Recipe
from kdtool.methods.protocol import Method
from kdtool.models import create, tap_shapes
from kdtool.progress import Silent

CPU = torch.device("cpu")


def make_job(workspace: Workspace, methods: Sequence[Method], plan: Recipe, device: torch.device = CPU) -> Job:
    """The job of a resnet8 with some methods, from the cache of a workspace."""
    cache = open_cache(workspace.cache)
    config = DistillConfig("resnet8", tuple(methods), plan, seed=7)
    facts = stage.facts_of(cache, config)
    with seeded(config.seed):
        student = create("resnet8", cache.layout.classes)
    shapes = tap_shapes(student, tuple(cache.identity["data"]["image_shape"]))
    needs = stage.needs_of(methods, shapes, cache.layout.tap_shapes, facts)
    stages, bound = stage.staged(methods, needs, shapes, cache.layout.tap_shapes, facts, cache.fitted)
    data = stage.data_of(workspace, cache, None, Silent())
    return stage.make_job(cache, data, student, stages, bound, needs, config, 3, device, "float32")
