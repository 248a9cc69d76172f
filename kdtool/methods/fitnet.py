"""FitNet: the student's middle map, through a regressor, imitates the teacher's (Romero et al. 2015, arXiv 1412.6550).

By default as RepDistiller runs it: one stage, cross-entropy + 100 times the hint loss, on stage2 of both. Departures of
that form from the paper, each with its way back:

* one stage; the paper first trains the layers up to the hint on the hint loss alone and then the whole student on
  labels and softened logits. `two_stage=true` has the first, and with `--with kd` also the second.
* the hint loss is a mean over all elements, the paper's Eq. 3 half a sum; a learning rate or weight makes up for it.
* the regressor has BatchNorm and ReLU (kdtool.methods.regressor); `plain=true` is the convolution alone, as in SRM's
  comparison (Tran et al. 2021, arXiv 2103.17012), which sums over several layers.

Left out: the paper's annealing of the weight of the softened logits, and its maxout networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from kdtool.errors import unknown
from kdtool.methods.initialisation import LEARNING_RATE, adam_phases, check_init, init_stage
from kdtool.methods.maps import MapPair, Paired, PairwiseMethod, second_stage, whole_map
from kdtool.methods.precision import at_least_float32
from kdtool.methods.protocol import need
from kdtool.methods.regressor import check_regressor, regressor
from kdtool.methods.vectors import VALUES
from kdtool.targets import Facts, Shapes, Stage, Target

if TYPE_CHECKING:
    from kdtool.targets import Arrays


@at_least_float32
def hint_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The mean over all elements of (r - t)^2 (Eq. 3 of the paper, which halves and sums; the mean: RepDistiller).

    student_map: r, the student's map after the regressor; teacher_map: t; both (B, C, H, W). No gradient reaches t.
    """
    need(
        student_map.shape == teacher_map.shape,
        f"the hint loss compares maps of equal shape, not {tuple(student_map.shape)} and {tuple(teacher_map.shape)}; "
        "bring the student's there by a regressor",
    )
    return functional.mse_loss(student_map, teacher_map.detach())


FIRST_STAGE = ("init_epochs", "init_learning_rate", "init_recipe", "init_batch")  # options of it alone


@dataclass(frozen=True)
class FitNet(PairwiseMethod):
    """Hints.

    weight: of the hint loss beside the task. layers: pairs of taps, STUDENT:TEACHER, whose losses are summed; none for
    stage2. plain: the regressor without BatchNorm and ReLU. two_stage: a stage "hint" on the hint loss alone, then
    "distill" without it; `--with kd` then gives the paper's second stage. init_epochs, init_learning_rate, init_recipe
    and init_batch belong to that first stage: SGD at a constant rate for 30 of 240 epochs, or with init_recipe=srm as
    in SRM's comparison, Adam in three phases for 160 of 200 epochs with batches four times the run's.
    """

    name: ClassVar[str] = "fitnet"
    paper: ClassVar[str] = "Romero et al. 2015, arXiv 1412.6550"

    weight: float = 100.0
    plain: bool = False
    two_stage: bool = False
    init_epochs: int | None = None
    init_learning_rate: float = LEARNING_RATE
    init_recipe: str | None = None
    init_batch: int | None = None

    def __post_init__(self) -> None:
        check_init(self.name, self.init_epochs, self.init_learning_rate)
        given = [f"fitnet.{name}" for name in FIRST_STAGE if getattr(self, name) != getattr(type(self), name)]
        need(self.two_stage or not given, f"{' and '.join(given)} needs fitnet.two_stage=true")
        if self.init_recipe not in (None, "srm"):
            raise unknown("fitnet.init_recipe", self.init_recipe, ("srm",))
        adam = self.init_recipe == "srm"
        need(adam or self.init_batch is None, "option fitnet.init_batch needs fitnet.init_recipe=srm")
        need(self.init_batch is None or self.init_batch >= 1, "option fitnet.init_batch is at least 1")
        need(
            not adam or self.init_learning_rate == LEARNING_RATE,
            "option fitnet.init_learning_rate is of a constant rate, and fitnet.init_recipe=srm has phases of its own",
        )
        need(
            not self.two_stage or self.weight == type(self).weight,
            "option fitnet.weight weighs hints against the task, which two_stage=true keeps apart; leave it out, or "
            "change init_learning_rate",
        )

    @property
    def inert(self) -> tuple[str, ...]:
        """The regressors' biases, which BatchNorm takes out again."""
        return () if self.plain else ("convolution.bias",)

    def default(self, student: Shapes, teacher: Shapes) -> Sequence[tuple[str, str]]:
        """stage2."""
        return second_stage(student, teacher)

    def pairs(self, student: Shapes, teacher: Shapes) -> tuple[MapPair, ...]:
        """The hints, of sizes that there is a regressor for."""
        pairs = super().pairs(student, teacher)
        for pair in pairs:
            check_regressor(self.name, pair)
        return pairs

    def target(self, pair: MapPair) -> Target:
        """The hint, whole."""
        return whole_map(pair.teacher)

    def module(self, pair: MapPair) -> nn.Module:
        """The regressor."""
        return regressor(pair, norm=not self.plain, relu=not self.plain)

    def stages(self, student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Stage, ...]:
        """One, or the hints and then a training without them."""
        if not self.two_stage:
            return super().stages(student, teacher, facts)
        taps = self.student_taps(student, teacher)
        hint = init_stage("hint", "fitnet", 1.0, taps, facts, self.init_epochs, self.init_learning_rate)
        if self.init_recipe == "srm":
            epochs = self.init_epochs or max(1, round(facts.epochs * 160 / 200))
            batch = self.init_batch or min(4 * facts.batch, facts.samples)
            hint = replace(hint, epochs=epochs, recipe=adam_phases(batch))
        return hint, Stage(weights={})

    def loss(self, student_map: Tensor, stored: Arrays, pair: MapPair, adapters: Paired) -> Tensor:
        """`hint_loss` behind the regressor."""
        return hint_loss(adapters.of(pair)(student_map), stored[VALUES])
