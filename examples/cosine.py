"""A method of one's own: the student's vector, projected, shall point where the teacher's does."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from kdtool.methods.protocol import Method
from kdtool.methods.vectors import VALUES, vector
from kdtool.targets import Stage, Weight


@dataclass(frozen=True)
class Cosine(Method):
    name: ClassVar[str] = "cosine"
    paper: ClassVar[str] = "none; an example"
    weight: float = 1.0  # every field is an option: --set cosine.weight=2

    def student_taps(self, student, teacher):
        return ("before_fc",)  # what is read of the student

    def targets(self, student, teacher):
        return (vector("before_fc"),)  # what extract stores of the teacher

    def adapters(self, student, teacher, facts, fitted):
        return nn.Linear(student["before_fc"][0], teacher["before_fc"][0])  # trains with the student

    def stages(self, student, teacher, facts):
        return (Stage(weights={"cosine": Weight(self.weight)}),)

    def terms(self, student, cached, batch, adapters):
        cosine = nn.functional.cosine_similarity(adapters(student["before_fc"]), cached["before_fc"][VALUES])
        return {"cosine": 1 - cosine.mean()}
