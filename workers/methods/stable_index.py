"""What was published stays where it is: the spans of all vectors that versions have given out.

Shapes: E width of the embeddings, I width of what a head reads.

A stored vector of any version keeps its scores against later queries if no later change enters
the span of its version's embeddings along old inputs. One sum of W S Wᵀ per modality, over all
versions that published, is all that this needs: E × E numbers, kept with the version.
"""

from collections.abc import Mapping
from functools import reduce
from operator import add

from torch import Tensor

from workers.methods.port import Kept, Lesson
from workers.model.heads import ModalityHeads
from workers.model.rows import PairedRows
from workers.nullspace.compatibility import published_outputs
from workers.nullspace.moments import SecondMoment, sum_of_products


def published_spans(lesson: Lesson) -> SecondMoment | None:
    """Summed moment of what both modalities of the pair have published; None if nothing yet."""
    found = [
        SecondMoment(0, lesson.kept[_name(modality)])
        for modality in lesson.pair.modalities
        if _name(modality) in lesson.kept
    ]
    return reduce(add, found) if found else None


def with_publication(lesson: Lesson, trained: ModalityHeads, rows: PairedRows) -> Kept:
    """What is kept from now on: the two new heads are about to be published."""
    kept = dict(lesson.kept)
    sides = zip(lesson.pair.modalities, (rows.first_NI, rows.second_NJ), strict=True)
    for modality, rows_NI in sides:
        inputs = _inputs(lesson, modality, rows_NI)
        sum_EE = published_outputs(inputs, trained.weights[modality]).sum_II
        earlier: Mapping[str, Tensor] = lesson.kept
        name = _name(modality)
        kept[name] = earlier[name] + sum_EE if name in earlier else sum_EE
    return kept


def _inputs(lesson: Lesson, modality: str, rows_NI: Tensor) -> SecondMoment:
    """All that this head has read, the new rows included: what an index may hold."""
    new = SecondMoment(len(rows_NI), sum_of_products(rows_NI, rows_NI))
    known = lesson.memory.inputs_of(modality)
    return new if known is None else known + new


def _name(modality: str) -> str:
    return f"published/{modality}"
