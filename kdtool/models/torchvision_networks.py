"""torchvision's classifiers as `tv:NAME`, with the taps of seven of them; weights start random, as torchvision draws.

torchvision is imported when a network is asked for. Left out: its pretrained weights (`weights.load_initial` reads a
local file), and the auxiliary classifiers of googlenet and inception_v3.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from kdtool.errors import ResourceError
from kdtool.models.foreign import before_head, check_known, out_of_place, with_taps

PREFIX = "tv:"

# The stem of SRM (arXiv 2103.17012) is what the first pooling gives. A stage's .preact is what its last ReLU reads;
# the other networks' stages end in a sum, a pooling or a shuffle of channels.
TAPS: dict[str, dict[str, str]] = {
    **{
        name: {
            "stem": "maxpool",
            **{f"stage{number}": f"layer{number}" for number in range(1, 5)},
            **{f"stage{number}.preact": f"layer{number}.{last}.relu:input" for number, last in enumerate(lasts, 1)},
            "before_fc": "fc:input",
        }
        for name, lasts in {  # the number of each stage's last block, from 0
            "resnet18": (1, 1, 1, 1),
            "resnet34": (2, 3, 5, 2),
            "resnet50": (2, 3, 5, 2),
            "resnext50_32x4d": (2, 3, 5, 2),
        }.items()
    },
    "densenet121": {
        "stem": "features.pool0",
        **{f"stage{number}": f"features.transition{number}" for number in range(1, 4)},
        "stage4": "features.denseblock4",
        "before_fc": "classifier:input",
    },
    "shufflenet_v2_x1_0": {
        "stem": "maxpool",
        **{f"stage{number - 1}": f"stage{number}" for number in range(2, 5)},
        "before_fc": "fc:input",
    },
    "mobilenet_v2": {  # the stem at stride 2, then the last outputs at strides 4, 8, 16 and 32
        "stem": "features.0",
        **{f"stage{number}": f"features.{place}" for number, place in enumerate((3, 6, 13, 17), 1)},
        "before_fc": "classifier:input",
    },
}
OPTIONS: dict[str, Mapping[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def library() -> ModuleType:
    """torchvision.models; ResourceError where torchvision is absent or does not fit the installed torch."""
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: its operators are built for another torch
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResourceError(
            f"torchvision cannot be imported ({text}), and networks of torchvision and timm need it; `kdtool doctor` "
            "tells which one fits the installed torch"
        ) from error


def check(name: str) -> None:
    """UsageError, with the nearest right name, for a name that is no classifier of torchvision."""
    models = library()
    check_known("torchvision", name, models.list_models(module=models))


def create(name: str, classes: int) -> nn.Module:
    """torchvision's network of a name, without its prefix, for so many classes."""
    check(name)
    model: nn.Module = library().get_model(name, weights=None, num_classes=classes, **OPTIONS.get(name, {}))
    out_of_place(model)
    return with_taps(model, TAPS.get(name) or before_head(model))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {f"{PREFIX}{name}": partial(create, name) for name in TAPS}
