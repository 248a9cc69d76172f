"""The table of methods. Adding one is a file beside this one and a line in the table."""

from kdtool.errors import unknown
from kdtool.methods.kd import KD
from kdtool.methods.kda import KDA
from kdtool.methods.protocol import Method
from kdtool.methods.vectors import ClassCentres, vector
from kdtool.targets import Fit, Target

METHODS: dict[str, type[Method]] = {method.name: method for method in (KD, KDA)}

# What a plain `kdtool extract` stores, whatever methods will be used.
DEFAULT_TARGETS: tuple[Target, ...] = (vector("after_fc"), vector("before_fc"))
DEFAULT_FITS: tuple[Fit, ...] = (ClassCentres("after_fc"), ClassCentres("before_fc"))


def method(name: str) -> Method:
    """A method by name, with its defaults."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]()
