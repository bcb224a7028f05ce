"""What a run has found out before its first update: it is the same to the end, and part of every
checkpoint, so that a run that goes on need not find it out again."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cmcl.contract.modality import ModalityPair
from workers.model.artifact import moment_tensors, moments_from
from workers.model.heads import ModalityHeads
from workers.nullspace.conditioning import Conditioning
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import PairMoments
from workers.nullspace.subspace import EigenBasis
from workers.train.run import Tensors, part_of


@dataclass(frozen=True)
class Start:
    """The parent's heads with the conditioning of new modalities, the dataset's moments, and where
    the heads of the pair may move (empty until that is known)."""

    heads: ModalityHeads
    moments: PairMoments
    spaces: Mapping[str, UpdateSpace] = field(default_factory=dict)

    def tensors(self) -> Tensors:
        """All but the parent's weights, which are known."""
        named = {f"moments/{name}": value for name, value in moment_tensors(self.moments).items()}
        for modality, space in self.spaces.items():
            conditioning = self.heads.conditioning[modality]
            parts = {
                "mean": conditioning.mean_F,
                "map": conditioning.map_FF,
                "output_vectors": space.outputs.vectors_II,
                "output_values": space.outputs.values_I,
                "input_vectors": space.inputs.vectors_II,
                "input_values": space.inputs.values_I,
                "free": space.free_EI,
            }
            named |= {f"spaces/{modality}/{name}": value for name, value in parts.items()}
        return named

    @classmethod
    def of(cls, saved: Tensors, parent: ModalityHeads, pair: ModalityPair) -> "Start":
        """From a checkpoint's tensors."""
        spaces, conditionings = {}, {}
        for modality in pair.modalities:
            parts = part_of(saved, f"spaces/{modality}")
            conditionings[modality] = Conditioning(parts["mean"], parts["map"])
            outputs = EigenBasis(parts["output_vectors"], parts["output_values"])
            inputs = EigenBasis(parts["input_vectors"], parts["input_values"])
            spaces[modality] = UpdateSpace(outputs, inputs, parts["free"])
        moments = moments_from(part_of(saved, "moments"), "")
        return cls(parent.conditioned(conditionings), moments, spaces)
