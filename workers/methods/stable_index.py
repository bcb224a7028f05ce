"""What was published stays where it is: the spans of all vectors that versions have given out.

Shapes: E width of the embeddings, I width of what a head reads.

A stored vector of any version keeps its scores against later queries if no later change enters
the span of its version's embeddings along old inputs. One sum of W S Wᵀ per modality, over all
versions that published, is all that this needs: E × E numbers, kept with the version.
"""

from functools import reduce
from operator import add

from torch import Tensor

from workers.methods.port import Kept, Lesson
from workers.methods.sealed import inputs_with
from workers.model.heads import ModalityHeads
from workers.nullspace.compatibility import published_outputs
from workers.nullspace.moments import PairMoments, SecondMoment


def published_spans(lesson: Lesson) -> SecondMoment | None:
    """Summed moment of what both modalities of the pair have published; None if nothing yet."""
    found = [
        SecondMoment(0, lesson.kept[_name(modality)])
        for modality in lesson.pair.modalities
        if _name(modality) in lesson.kept
    ]
    return reduce(add, found) if found else None


def with_publication(lesson: Lesson, kept: Kept, trained: ModalityHeads, new: PairMoments) -> Kept:
    """What is kept, and the spans of what the two new heads are about to publish.

    An index may hold all that a head has read, so that is what must not move in their span.
    """
    published: dict[str, Tensor] = dict(kept)
    for modality, inputs in inputs_with(lesson, new).items():
        sum_EE = published_outputs(inputs, trained.weights[modality]).sum_II
        name = _name(modality)
        published[name] = kept[name] + sum_EE if name in kept else sum_EE
    return published


def _name(modality: str) -> str:
    return f"published/{modality}"
