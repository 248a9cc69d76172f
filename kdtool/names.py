"""The names of methods, networks, data sets and recipes as plain text, for shell completion: nothing is imported.

The registries themselves import torch; a test holds these lists against them.
"""

from importlib import resources

METHODS = (
    *("kd", "logits", "kda", "srm", "icd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst"),
    "crd",
)
ADDED = ("kd",)  # methods that `--with` adds to another

NETWORKS = (
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4"),
    *("resnet18", "resnet34", "resnet18x0.5", "resnet50", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
    *("vgg8", "vgg11", "vgg13", "vgg16", "vgg19", "mobilenetv2", "shufflev1", "shufflev2"),
    *("allcnn", "allcnn_transfer", "densenet121"),
    *("tv:resnet18", "tv:resnet34", "tv:resnet50", "tv:resnext50_32x4d", "tv:densenet121", "tv:shufflenet_v2_x1_0"),
    "tv:mobilenet_v2",
)
TAPS = ("stem", "stage1", "stage2", "stage3", "stage4", "before_fc", "after_fc")  # of most networks

DATA_SETS = (
    *("cifar10", "cifar100", "cub200", "digits", "flowers102", "folder", "imagenet", "indoor67", "pubfig83"),
    *("stanford_cars", "stl10", "stl10_unlabelled", "tiny_imagenet"),
)
PUBLISHED = tuple(name for name in DATA_SETS if name not in ("digits", "folder", "stl10_unlabelled"))

RECIPES = ("kda", "crd", "icd", "srm", "probe-icd", "probe-crd", "probe-srm")


def tables() -> list[str]:
    """The recipes of `kdtool reproduce` that come with kdtool."""
    found = (entry.name for entry in resources.files("kdtool.workflows").joinpath("recipes").iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml") and name != "groups.toml")
