"""What a distillation method is: hyper-parameters, what it needs of the teacher, and loss terms.

A method is a frozen dataclass. It never sees the teacher, so it cannot run it; everything else (extract, the check
before distill, command-line options, the table of methods, conformance tests) follows from what it declares here.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

import torch
from torch import nn

from kdtool.errors import UsageError, unknown
from kdtool.targets import Batch, Cached, Facts, Fit, Shapes, Stage, Target

if TYPE_CHECKING:
    from kdtool.targets import Taps


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods; the defaults fit a method of one stage without parameters or state of its own."""

    name: ClassVar[str]
    paper: ClassVar[str]
    added: ClassVar[dict[str, str] | None] = None  # the options with which `--with` adds it to another; None: never
    combines: ClassVar[bool] = True  # whether `--with` may add to it

    @property
    def inert(self) -> tuple[str, ...]:
        """Parameters of the adapters that the mathematics leaves without gradient; `x.bias` means `a.b.x.bias` too."""
        return ()

    @abstractmethod
    def student_taps(self, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
        """The taps of the student that `terms` and the hooks read."""

    @abstractmethod
    def targets(self, student: Shapes, teacher: Shapes) -> tuple[Target, ...]:
        """What must be stored of the teacher. A tap that a network lacks is refused by name."""

    def fits(self, student: Shapes, teacher: Shapes) -> tuple[Fit, ...]:
        """Fits that the adapters read, beside those that the targets name."""
        return ()

    def always(self, teacher: Shapes) -> tuple[Target, ...]:
        """What a plain extract stores for this method with its defaults, whatever the student will be."""
        return ()

    def adapters(self, student: Shapes, teacher: Shapes, facts: Facts, fitted: FittedResults) -> nn.Module:
        """One module: parameters that train with the student, buffers that are all of the method's state."""
        return nn.Module()

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """The stages of the training; the weights may depend on the batch, the classes and the epochs of the run."""
        return (Stage(),)

    @abstractmethod
    def terms(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> dict[str, torch.Tensor]:
        """The named, unweighted scalar losses of a batch. Called when at least one term of the stage is active."""

    def after_step(self, student: Taps, cached: Cached, batch: Batch, adapters: nn.Module) -> None:  # noqa: B027
        """Hook after every optimiser step, active terms or not; under several ranks it sees the global batch."""

    def after_epoch(self, adapters: nn.Module) -> None:  # noqa: B027
        """Hook after every epoch."""

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Field name -> default."""
        return {field.name: field.default for field in dataclasses.fields(cls)}

    def with_options(self, options: dict[str, str]) -> Self:
        """A copy with fields set from the text of `--set name=value`; unknown names and wrong types are refused."""
        hints = get_type_hints(type(self))
        changed: dict[str, Any] = {}
        for key, text in options.items():
            if key not in self.options():
                raise unknown(f"option of method {self.name}", key, self.options())
            changed[key] = parse(f"{self.name}.{key}", text, hints[key])
        return dataclasses.replace(self, **changed)


FittedResults = dict[str, dict[str, Any]]  # fit key -> name -> array (numpy)


def parse(name: str, text: str, kind: Any) -> Any:
    """The value of an option from its text, for the types that options have."""
    optional = text.lower() == "none" and type(None) in getattr(kind, "__args__", ())
    if optional:
        return None
    kinds = [k for k in getattr(kind, "__args__", (kind,)) if k not in (type(None), Ellipsis)]
    kind, several = kinds[0], getattr(kind, "__origin__", None) is tuple
    if several:
        return tuple(parse(name, part.strip(), kind) for part in text.split(",")) if text else ()
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"option {name} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        raise UsageError(f"option {name} is of type {kind.__name__}, and {text!r} is not") from None
    need(kind is not float or math.isfinite(value), f"option {name} is a finite number, not {text!r}")
    return value


def need(condition: bool, message: str) -> None:
    """Refuses an option or a pair of networks that a method cannot work with."""
    if not condition:
        raise UsageError(message)
