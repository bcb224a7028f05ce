"""The ledger of moments: all that a version remembers of the datasets it has seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from workers.contract.modality import ModalityPair
from workers.model.heads import ModalityHeads
from workers.nullspace.moments import PairMoments, SecondMoment


@dataclass(frozen=True)
class Memory:
    """Moments pooled by pair, so that the cost of the next dataset does not grow with their number.

    Keys are pairs in lexical order; `PairMoments.first` belongs to the lexically first modality.
    """

    by_pair: Mapping[tuple[str, str], PairMoments] = field(default_factory=dict)

    def with_dataset(self, pair: ModalityPair, moments: PairMoments) -> "Memory":
        """This memory and one more dataset."""
        key, moments = _ordered(pair, moments)
        known = self.by_pair.get(key)
        return Memory({**self.by_pair, key: known + moments if known else moments})

    def inputs_of(self, modality: str) -> SecondMoment | None:
        """Summed second moment of all features that this head has learned from."""
        return _total([own for own, _, _ in self._sides(modality)])

    def partners_of(self, modality: str, heads: ModalityHeads) -> SecondMoment | None:
        """Summed second moment of the partners' embeddings, under today's heads.

        Of the partners that the modality really had: spans of other partners protect the wrong
        directions and cost 4 to 5 points of recall (shared experiments, docs/log.md).
        """
        return _total(
            [other.through(heads.weights[partner]) for _, other, partner in self._sides(modality)]
        )

    def _sides(self, modality: str) -> list[tuple[SecondMoment, SecondMoment, str]]:
        """(own moment, partner's moment, partner) for each pair that the modality is part of."""
        sides = []
        for (first, second), moments in self.by_pair.items():
            if modality == first:
                sides.append((moments.first, moments.second, second))
            if modality == second:
                sides.append((moments.second, moments.first, first))
        return sides


def _ordered(pair: ModalityPair, moments: PairMoments) -> tuple[tuple[str, str], PairMoments]:
    first, second = pair.modalities
    return ((first, second), moments) if first < second else ((second, first), moments.swapped())


def _total(moments: list[SecondMoment]) -> SecondMoment | None:
    return reduce(add, moments) if moments else None
