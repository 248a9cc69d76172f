"""PubFig83 (Pinto et al. 2011) from a local folder: faces of 83 people, 13,838 pictures.

The publication has no parts: its authors drew their own again and again, and the split of the authors of SRM, who use
it, is not published. So a third of the pictures is the test part here, drawn once by seed 0, of each person in
proportion: results compare with one another, and with the papers' in their order of size only.
"""

from pathlib import Path

from kdtool.data import published
from kdtool.data.folders import divided
from kdtool.data.listing import AS_PUBLISHED, Listing, by_class, classes_below
from kdtool.errors import DamageError

PEOPLE = 83
OWN = "pubfig83"


def pubfig83(folder: Path) -> Listing:
    """PubFig83 from `folder`, which is `pubfig83` with a folder for each person, or holds it.

    Raises UsageError where there is none, DamageError where people or pictures are missing.
    """
    root = folder / OWN if (folder / OWN).is_dir() else folder
    people = classes_below(root) if root.is_dir() else ()
    if len(people) != PEOPLE:
        if root.name != OWN or not people:
            raise published.lacking("pubfig83", folder, OWN, (f"a folder for each of {PEOPLE} people",))
        raise DamageError(
            f"{root} has {len(people)} folders, one for each of {PEOPLE} people is expected; "
            "unpack the published archive again"
        )
    train, test = divided(by_class(root, "", people), people, 3)
    return Listing("pubfig83", root, train, test, people, accepted=AS_PUBLISHED)
