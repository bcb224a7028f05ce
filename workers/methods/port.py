"""The port for methods: what may move in each of the two heads that the next dataset trains.

Shapes: E width of the embeddings, I width of what a head reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from workers.contract.modality import ModalityPair
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.subspace import EigenBasis


@dataclass(frozen=True)
class UpdateSpace:
    """Where one head trains: M in  W = W₀ + V M Uᵀ, and which entries of M may move.

    `outputs` is V with its eigenvalues, `inputs` is U; `free_EI` is True where M may move.
    """

    outputs: EigenBasis
    inputs: EigenBasis
    free_EI: Tensor


class Method(Protocol):
    """How earlier datasets shape the training of the next one."""

    def update_spaces(
        self, heads: ModalityHeads, memory: Memory, pair: ModalityPair
    ) -> Mapping[str, UpdateSpace]:
        """The space of each of the pair's two modalities, from what the parent version knows."""
        ...
