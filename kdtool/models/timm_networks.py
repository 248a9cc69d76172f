"""timm's networks as `timm:NAME`, an extra; weights start random, as timm draws them. Left out: pretrained weights."""

import importlib
import importlib.util
from types import ModuleType

from torch import nn

from kdtool.errors import ResourceError, UsageError
from kdtool.models.foreign import before_head, check_known, out_of_place, with_taps
from kdtool.models.taps import tap_shapes
from kdtool.models.torchvision_networks import library as torchvision


def library() -> ModuleType:
    """timm; UsageError where it is not installed, ResourceError where it cannot be imported."""
    if importlib.util.find_spec("timm") is None:
        raise UsageError('networks timm:NAME need the library timm: run `pip install "kdtool[timm]"`')
    torchvision()  # timm needs it, and where it is broken this says so
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        raise ResourceError(f"timm cannot be imported ({error}); `kdtool doctor` tells what is installed") from error


def check(name: str) -> None:
    """UsageError for a name that is none of timm's architectures; a name with the tag of weights (a.b) is none."""
    check_known("timm", name, library().list_models())


def create(name: str, classes: int) -> nn.Module:
    """timm's network of a name, without its prefix, for so many classes.

    Taps: stem and stages as in `stages`; before_fc, the input of its classifier, where that is one linear layer.
    """
    check(name)
    model: nn.Module = library().create_model(name, pretrained=False, num_classes=classes)
    out_of_place(model)
    return with_taps(model, {**stages(model), **before_head(model)})


def stages(model: nn.Module) -> dict[str, str]:
    """stem, stage1.. of the layers that timm lists in `feature_info`, as tap -> module path.

    Those whose output, at the network's own image size, is a map (channels, H, W) of the listed channels: not tokens of
    a transformer, not maps with the channels last. Of several at one stride the last. The first of them is the stem if
    it lies at stride 1 or 2; the others are the stages in their order.
    """
    modules = dict(model.named_modules())
    listed = [entry for entry in getattr(model, "feature_info", ()) if entry.get("module") in modules]
    size: tuple[int, int, int] = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    try:
        shapes = tap_shapes(model, size, [entry["module"] for entry in listed])
    except UsageError:  # one of them does not run, or gives several tensors
        return {}
    maps = [entry for entry in listed if _is_map(shapes[entry["module"]], entry["num_chs"])]
    last = {entry["reduction"]: entry["module"] for entry in maps}
    first = 0 if last and min(last) <= 2 else 1
    return {f"stage{number}" if number else "stem": path for number, path in enumerate(last.values(), first)}


def _is_map(shape: tuple[int, ...], channels: int) -> bool:
    return len(shape) == 3 and shape[0] == channels
