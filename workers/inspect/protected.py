"""What earlier datasets have closed of one head: the moments that its mask is made of.

Shapes: E width of the embeddings, I width of what the head reads.
"""

from cmcl.contract.model import ModelSpec
from workers.methods.port import Lesson
from workers.methods.stable_index import published_spans
from workers.nullspace.preflight import HeadMoments


def protected_moments(spec: ModelSpec, lesson: Lesson, modality: str) -> HeadMoments | None:
    """Inputs (I × I) and outputs (E × E) that the method `nullspace` protects; None: nothing yet.

    Outputs are the embeddings of the partners under today's heads; with `stable_index` also what
    both modalities of the lesson's pair have published (workers/methods/nullspace.py).
    """
    inputs = lesson.memory.inputs_of(modality)
    partners = lesson.memory.partners_of(modality, lesson.heads)
    if inputs is None or partners is None:
        return None
    published = published_spans(lesson) if spec.protection.stable_index else None
    return HeadMoments(inputs, partners + published if published else partners)


def remark_on_method(spec: ModelSpec) -> tuple[str, ...]:
    """Only one method has these masks; for the others they say what it would protect."""
    if spec.method == "nullspace":
        return ()
    return (f"The method is {spec.method}: blocked is what nullspace would block.",)
