"""The moments of all datasets that a version has learned, pooled by pair of modalities."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from cmcl.contract.modality import ModalityPair
from workers.model.heads import ModalityHeads
from workers.nullspace.moments import PairMoments, SecondMoment


@dataclass(frozen=True)
class Memory:
    """Moments pooled by pair, so that the cost of the next dataset does not grow with their number.

    The only data of earlier datasets that training needs, besides the heads.

    Keys are pairs in lexical order; `PairMoments.first` belongs to the lexically first modality.
    `datasets` counts how many are pooled under each.
    """

    by_pair: Mapping[tuple[str, str], PairMoments] = field(default_factory=dict)
    datasets: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def with_dataset(self, pair: ModalityPair, moments: PairMoments) -> "Memory":
        """Return this memory with one more dataset."""
        key, moments = _ordered(pair, moments)
        known = self.by_pair.get(key)
        return Memory(
            {**self.by_pair, key: known + moments if known else moments},
            {**self.datasets, key: self.datasets.get(key, 0) + 1},
        )

    def datasets_of(self, pair: ModalityPair) -> int:
        """Number of datasets of this pair, in either order."""
        return self.datasets.get(_key(pair), 0)

    def has(self, pair: ModalityPair) -> bool:
        """Whether there is a dataset of this pair, in either order."""
        return _key(pair) in self.by_pair

    def touching(self, pair: ModalityPair) -> list[tuple[ModalityPair, PairMoments]]:
        """All pairs that share a modality with `pair`, the shared one first.

        `pair` itself keeps its order.
        """
        found = []
        for names, moments in self.by_pair.items():
            shared = set(names) & set(pair.modalities)
            known, oriented = ModalityPair(first=names[0], second=names[1]), moments
            if known.first != pair.first and (known.first not in shared or len(shared) == 2):
                known, oriented = known.swapped(), moments.swapped()
            if shared:
                found.append((known, oriented))
        return found

    def inputs_of(self, modality: str) -> SecondMoment | None:
        """Summed second moment (I × I) of all features that this head has learned from."""
        return _total([own for own, _, _ in self._sides(modality)])

    def partners_of(self, modality: str, heads: ModalityHeads) -> SecondMoment | None:
        """Summed second moment (E × E) of the partners' embeddings, under today's heads.

        Only of partners that the modality has had: spans of others protect the wrong directions and
        cost 4 to 5 points of recall (docs/log.md).
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


def _key(pair: ModalityPair) -> tuple[str, str]:
    first, second = sorted(pair.modalities)
    return first, second


def _ordered(pair: ModalityPair, moments: PairMoments) -> tuple[tuple[str, str], PairMoments]:
    key = _key(pair)
    return key, moments if key == pair.modalities else moments.swapped()


def _total(moments: list[SecondMoment]) -> SecondMoment | None:
    return reduce(add, moments) if moments else None
