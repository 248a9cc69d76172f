"""The table of methods, and their classes: frozen dataclasses whose fields are their options, as KDA(weight=0.08).

A loss as a plain function lies in the module of its method, as `kdtool.methods.kda.kda_loss`. Adding a method is a file
beside this one and a line in the table.
"""

import dataclasses
import sys
from collections.abc import Sequence

from kdtool.errors import unknown
from kdtool.methods.ab import AB as AB
from kdtool.methods.at import AT as AT
from kdtool.methods.cc import CC as CC
from kdtool.methods.crd import CRD as CRD
from kdtool.methods.fitnet import FitNet as FitNet
from kdtool.methods.fsp import FSP as FSP
from kdtool.methods.ft import FT as FT
from kdtool.methods.icd import ICD as ICD
from kdtool.methods.kd import KD as KD
from kdtool.methods.kda import KDA as KDA
from kdtool.methods.logits import Logits as Logits
from kdtool.methods.nst import NST as NST
from kdtool.methods.own import load_method
from kdtool.methods.pkt import PKT as PKT
from kdtool.methods.protocol import Method, need
from kdtool.methods.rkd import RKD as RKD
from kdtool.methods.sp import SP as SP
from kdtool.methods.srm import SRM as SRM
from kdtool.methods.vectors import ClassCentres, vector
from kdtool.methods.vid import VID as VID
from kdtool.targets import Fit, Shapes, Target, by_key

KINDS: tuple[type[Method], ...] = (
    *(KD, Logits, KDA, SRM, ICD),
    *(FitNet, AT, SP, CC, VID, RKD, PKT, AB, FT, FSP, NST, CRD),
)
METHODS: dict[str, type[Method]] = {kind.name: kind for kind in KINDS}

# What every `kdtool extract` stores, whatever methods will be used.
DEFAULT_TARGETS: tuple[Target, ...] = (vector("after_fc"), vector("before_fc"))
DEFAULT_FITS: tuple[Fit, ...] = (ClassCentres("after_fc"), ClassCentres("before_fc"))


def plain_targets(teacher: Shapes, without: Sequence[str] = ()) -> tuple[Target, ...]:
    """What a plain extract stores beside `DEFAULT_TARGETS`, but that of the methods in `without`."""
    chosen = [kind() for name, kind in METHODS.items() if name not in without]
    return tuple(by_key([target for one in chosen for target in one.always(teacher)]).values())


def recorded_kinds(own: Sequence[str] = ()) -> dict[str, type]:
    """Dataclasses by class name, encoders and fits among them: of this package, and of the modules of `own` methods.

    With them `kdtool.targets.rebuild` makes an encoder or a fit from its record in a cache.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{__name__}.")]
    modules += [sys.modules[load_method(reference).__module__] for reference in own]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {value.__name__: value for value in found if dataclasses.is_dataclass(value)}


def method(name: str) -> Method:
    """A method by name, or a user's own by `path.to:MyMethod`, with its defaults."""
    if ":" in name:
        kind = load_method(name)
        known = METHODS.get(kind.name, kind)
        need(known is kind, f"--method {name}: kdtool has a method {kind.name!r} of its own; give yours another name")
        return kind()
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]()


def check_added(first: Method, added: Sequence[str]) -> None:
    """Refuses methods, by name, whose terms cannot be added to those of another; any two would have no one schedule."""
    addable = [name for name, kind in METHODS.items() if kind.added is not None]
    for name in added:
        need(added.count(name) == 1, f"--with {name} is named twice")
        need(name in addable, f"--with {name}: only {', '.join(addable)} can be added to another method")
        need(first.combines, f"--with {name}: the method {first.name} is KD itself")


def reference(of: Method) -> str:
    """What `method` finds it by."""
    kind = type(of)
    return of.name if METHODS.get(of.name) is kind else f"{kind.__module__}:{kind.__qualname__}"
