"""Dual-sided null space (arXiv 2503.14963, made exact): blocked entries never move."""

from collections.abc import Mapping
from dataclasses import dataclass

from workers.contract.modality import ModalityPair
from workers.methods.port import UpdateSpace
from workers.methods.vanilla import everything_free
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.mask import rectangular_mask
from workers.nullspace.subspace import eigenbasis


@dataclass(frozen=True)
class NullSpace:
    """Block an entry when its input and its output direction both matter to earlier datasets.

    Inputs: all features the head has learned from. Outputs: the embeddings of all partners it
    really had, under today's heads. `kept_energy` is the share of either trace that is protected.
    """

    kept_energy: float

    def update_spaces(
        self, heads: ModalityHeads, memory: Memory, pair: ModalityPair
    ) -> Mapping[str, UpdateSpace]:
        return {modality: self._space(heads, memory, modality) for modality in pair.modalities}

    def _space(self, heads: ModalityHeads, memory: Memory, modality: str) -> UpdateSpace:
        learned = memory.inputs_of(modality)
        partners = memory.partners_of(modality, heads)
        if learned is None or partners is None:
            return everything_free(*heads.weights[modality].shape)
        outputs, inputs = eigenbasis(partners), eigenbasis(learned)
        return UpdateSpace(outputs, inputs, rectangular_mask(outputs, inputs, self.kept_energy))
