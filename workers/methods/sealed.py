"""Input bases, decomposed when a dataset ends and kept, so that the next one starts at once.

Shapes: I width of what a head reads.

What a head has read does not depend on any weights, so its eigenbasis can be had as soon as its
moments are complete: in the shadow of the job that completed them, and not before the first
update of the next.
"""

from torch import Tensor

from workers.methods.port import Kept, Lesson
from workers.model.rows import PairedRows
from workers.nullspace.moments import SecondMoment, sum_of_products
from workers.nullspace.subspace import EigenBasis, eigenbasis


def with_sealed_bases(lesson: Lesson, kept: Kept, rows: PairedRows) -> Kept:
    """What is kept, and the bases of all that the two heads have read, the new rows included."""
    sealed: dict[str, Tensor] = dict(kept)
    for modality, inputs in inputs_with(lesson, rows).items():
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


def inputs_with(lesson: Lesson, rows: PairedRows) -> dict[str, SecondMoment]:
    """By modality: summed moment of all that its head has read, these rows included."""
    sides = zip(lesson.pair.modalities, (rows.first_NI, rows.second_NJ), strict=True)
    return {modality: _inputs(lesson, modality, rows_NI) for modality, rows_NI in sides}


def _inputs(lesson: Lesson, modality: str, rows_NI: Tensor) -> SecondMoment:
    new = SecondMoment(len(rows_NI), sum_of_products(rows_NI, rows_NI))
    known = lesson.memory.inputs_of(modality)
    return new if known is None else known + new


def _name(modality: str, what: str) -> str:
    return f"basis/{modality}/{what}"
