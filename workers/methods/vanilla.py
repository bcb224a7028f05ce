"""No protection: each dataset trains freely. The reason why the other methods exist."""

from collections.abc import Mapping

import torch

from workers.contract.modality import ModalityPair
from workers.methods.port import UpdateSpace
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.subspace import identity_basis


class Vanilla:
    """The loss alone, in the original coordinates."""

    def update_spaces(
        self, heads: ModalityHeads, memory: Memory, pair: ModalityPair
    ) -> Mapping[str, UpdateSpace]:
        return {
            modality: everything_free(*heads.weights[modality].shape)
            for modality in pair.modalities
        }


def everything_free(width: int, head_width: int) -> UpdateSpace:
    """The space of a head from which nothing must be kept."""
    return UpdateSpace(
        outputs=identity_basis(width),
        inputs=identity_basis(head_width),
        free_EI=torch.ones(width, head_width, dtype=torch.bool),
    )
