"""Input bases, decomposed when a dataset ends and kept, so that the next one starts at once.

Shapes: I width of what a head reads.

What a head has read does not depend on any weights, so its eigenbasis can be had as soon as its
moments are complete: in the shadow of the job that completed them, and not before the first
update of the next.
"""

from torch import Tensor

from workers.methods.port import Kept, Lesson
from workers.nullspace.moments import PairMoments, SecondMoment
from workers.nullspace.subspace import EigenBasis, eigenbasis


def with_sealed_bases(lesson: Lesson, kept: Kept, new: PairMoments) -> Kept:
    """What is kept, and the bases of all that the two heads have read, the new dataset included."""
    sealed: dict[str, Tensor] = dict(kept)
    for modality, inputs in inputs_with(lesson, new).items():
        basis = eigenbasis(inputs)
        sealed[_name(modality, "vectors")] = basis.vectors_II
        sealed[_name(modality, "values")] = basis.values_I
    return sealed


def input_basis(lesson: Lesson, modality: str, inputs: SecondMoment) -> EigenBasis:
    """The sealed basis of these inputs; decomposed now where none is kept."""
    name = _name(modality, "vectors")
    if name not in lesson.kept:
        return eigenbasis(inputs)
    return EigenBasis(lesson.kept[name], lesson.kept[_name(modality, "values")])


def inputs_with(lesson: Lesson, new: PairMoments) -> dict[str, SecondMoment]:
    """By modality: summed moment of all that its head has read, the new dataset included."""
    sides = zip(lesson.pair.modalities, (new.first, new.second), strict=True)
    return {modality: _inputs(lesson, modality, moment) for modality, moment in sides}


def _inputs(lesson: Lesson, modality: str, new: SecondMoment) -> SecondMoment:
    known = lesson.memory.inputs_of(modality)
    return new if known is None else known + new


def _name(modality: str, what: str) -> str:
    return f"basis/{modality}/{what}"
