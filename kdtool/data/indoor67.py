"""MIT Indoor-67 (Quattoni and Torralba 2009) from a local folder: 67 classes, 5,360 pictures to train, 1,340 to test.

The two parts are those of the authors' lists, about 80 and 20 pictures of each class; the other 8,920 pictures are in
neither. Left out: annotations of objects.
"""

from pathlib import Path

import numpy as np

from kdtool.data import published
from kdtool.data.listing import AS_PUBLISHED, Files, Listing, classes_below
from kdtool.data.published import CUT, damaged

NEEDED = ("Images/", "TrainImages.txt", "TestImages.txt")


def indoor67(folder: Path) -> Listing:
    """Indoor-67 from `folder`, which is `indoor67` or holds it. Raises UsageError, DamageError."""
    root = published.find(folder, ("indoor67",), NEEDED)
    if not root:
        raise published.lacking("indoor67", folder, "indoor67", NEEDED)
    classes = classes_below(root / "Images")
    train, test = (_listed(root, f"{part}Images.txt", classes) for part in ("Train", "Test"))
    both = sorted(set(train.names) & set(test.names))
    if both:
        raise damaged(root / "TestImages.txt", f"it names {both[0]!r}, which TrainImages.txt names too")
    return Listing("indoor67", root, train, test, classes, accepted=AS_PUBLISHED)


def _listed(root: Path, file: str, classes: tuple[str, ...]) -> Files:
    """The pictures of a list, which names them as CLASS/FILE."""
    paths = published.lines(root / file, "surrogateescape")
    label_of = {name: label for label, name in enumerate(classes)}
    odd = next((path for path in paths if path.split("/")[0] not in label_of), None)
    if odd is not None or not paths:
        finding = f"it names {odd[:CUT]!r}, and Images/ has no such class" if odd is not None else "it is empty"
        raise damaged(root / file, finding)
    names = published.below(root, [f"Images/{path}" for path in paths], root / file)
    return Files(names, np.array([label_of[path.split("/")[0]] for path in paths], dtype=np.int64))
