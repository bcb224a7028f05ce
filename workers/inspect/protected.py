"""What earlier datasets have closed of one head: the moments that its mask is made of.

Shapes: E width of the embeddings, I width of what the head reads.
"""

from workers.contract.model import ModelSpec
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.compatibility import published_outputs
from workers.nullspace.preflight import HeadMoments


def protected_moments(
    spec: ModelSpec, heads: ModalityHeads, memory: Memory, modality: str
) -> HeadMoments | None:
    """Inputs (I × I) and outputs (E × E) that the method `nullspace` protects; None: nothing yet.

    Outputs are the embeddings of the partners under these heads, with `stable_index` the
    modality's own as well (workers/methods/nullspace.py).
    """
    inputs, partners = memory.inputs_of(modality), memory.partners_of(modality, heads)
    if inputs is None or partners is None:
        return None
    if spec.protection.stable_index:
        partners = partners + published_outputs(inputs, heads.weights[modality])
    return HeadMoments(inputs, partners)


def remark_on_method(spec: ModelSpec) -> tuple[str, ...]:
    """Only one method has these masks; for the others they say what it would protect."""
    if spec.method == "nullspace":
        return ()
    return (f"The method is {spec.method}: blocked is what nullspace would block.",)
