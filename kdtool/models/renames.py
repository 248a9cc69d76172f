"""Names of tensors in published checkpoints, as the names of the same layers in our networks.

RepDistiller's resnets and wide resnets (which CRD, ICD and mdistiller share) and the ImageNet layouts for 32x32 of
weiaicunzai's pytorch-cifar100, from which KDA took its resnet18. Left out: its other families.
"""

import re
from collections.abc import Collection, Iterable

Rules = tuple[tuple[str, str], ...]

TABLES: tuple[Rules, ...] = (
    (  # RepDistiller: resnet8 to resnet110, x4
        (r"^conv1\.", "stem.0."),
        (r"^bn1\.", "stem.1."),
        (r"^layer(\d)\.(\d+)\.downsample\.", r"stage\1.\2.shortcut."),
        (r"^layer(\d)\.", r"stage\1."),
    ),
    (  # RepDistiller: wide resnets
        (r"^conv1\.", "stem."),
        (r"^bn1\.", "bn."),
        (r"^block(\d)\.layer\.(\d+)\.convShortcut\.", r"stage\1.\2.shortcut."),
        (r"^block(\d)\.layer\.", r"stage\1."),
    ),
    (  # pytorch-cifar100: resnet18, resnet34, whose conv2_x is the first stage
        (r"^conv1\.", "stem."),
        *(
            (rf"^conv{stage + 1}_x\.(\d+)\.{theirs}\.", rf"stage{stage}.\1.{layer}.")
            for stage in range(1, 5)
            for theirs, layer in (
                (r"residual_function\.0", "conv1"),
                (r"residual_function\.1", "bn1"),
                (r"residual_function\.3", "conv2"),
                (r"residual_function\.4", "bn2"),
                ("shortcut", "shortcut"),
            )
        ),
    ),
)


def ours(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """name -> our name, by the first table under which every one is among `wanted`; as they are where none fits."""
    for table in TABLES:
        found = {name: _renamed(name, table) for name in names}
        if set(found.values()) <= set(wanted):
            return found
    return {name: name for name in names}


def _renamed(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        changed = re.sub(pattern, replacement, name)
        if changed != name:
            return changed
    return name
