"""The moments of all datasets that a version has learned, pooled by pair of modalities."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import add
from typing import TypeVar

from cmcl.contract.modality import ModalityPair
from workers.model.heads import ModalityHeads
from workers.nullspace.centred import CentredMoments, PairNames
from workers.nullspace.moments import PairMoments, SecondMoment

Moments = TypeVar("Moments", PairMoments, CentredMoments)


@dataclass(frozen=True)
class Chosen:
    """Numbers that datasets chose by their halves (`nullspace.two_folds`), in rising order."""

    numbers: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert list(self.numbers) == sorted(self.numbers)

    def __add__(self, other: "Chosen") -> "Chosen":
        return Chosen(tuple(sorted(self.numbers + other.numbers)))

    def without(self, number: float) -> "Chosen":
        """Remove one that is equal to it. Raises ValueError if there is none."""
        place = self.numbers.index(number)
        return Chosen(self.numbers[:place] + self.numbers[place + 1 :])

    @property
    def ridge(self) -> float:
        """The geometric mean, divided by √count: the noise of pooled covariances falls with datasets."""
        count = len(self.numbers)
        assert count, "no dataset chose a ridge"
        # A sum that is rounded once, so that the order of datasets does not matter.
        return math.exp(math.fsum(map(math.log, self.numbers)) / count) / math.sqrt(count)

    @property
    def total(self) -> float:
        """The sum. Datasets may agree in different directions."""
        return sum(self.numbers)


@dataclass(frozen=True)
class Memory:
    """What a version keeps of its datasets to learn the next one: their moments, pooled by pair.

    Its matrices do not grow with the number of datasets. Under `improve` each dataset adds its means and a few
    numbers: its weight, its ridges, and how many of its directions are significant.

    Keys are pairs in lexical order; the first side belongs to the lexically first modality.
    `datasets` counts how many are pooled under each. Masks need uncentred `moments`. The
    closed form needs `centred` ones, in which each dataset is centred by its own means, the `ridges` of
    modalities, and how many directions are `significant` in the datasets of each pair (infinity: no limit). A model
    keeps what its policy needs.
    """

    moments: Mapping[PairNames, PairMoments] = field(default_factory=dict)
    datasets: Mapping[PairNames, int] = field(default_factory=dict)
    centred: Mapping[PairNames, CentredMoments] = field(default_factory=dict)
    ridges: Mapping[str, Chosen] = field(default_factory=dict)
    significant: Mapping[PairNames, Chosen] = field(default_factory=dict)

    def with_dataset(self, pair: ModalityPair, moments: PairMoments) -> "Memory":
        """Return this memory with one more dataset, for masks."""
        key, moments = _key(pair), in_order(pair, moments)
        known = self.moments.get(key)
        total = known + moments if known else moments
        return replace(self._counting(key), moments={**self.moments, key: total})

    def with_sums(
        self,
        pair: ModalityPair,
        sums: CentredMoments,
        ridges: Mapping[str, float],
        significant: int | None = None,
    ) -> "Memory":
        """Return this memory with what one more dataset adds, for the closed form.

        `ridges`, `significant`: what the dataset chose (`nullspace.two_folds`).
        """
        key, sums = _key(pair), in_order(pair, sums)
        known = self.centred.get(key)
        chosen = {
            name: self.ridges.get(name, Chosen()) + Chosen((ridge,))
            for name, ridge in ridges.items()
        }
        counted = self.significant.get(key, Chosen()) + Chosen((_number(significant),))
        return replace(
            self._counting(key),
            centred={**self.centred, key: known + sums if known else sums},
            ridges={**self.ridges, **chosen},
            significant={**self.significant, key: counted},
        )

    def without_sums(
        self,
        pair: ModalityPair,
        sums: CentredMoments,
        ridges: Mapping[str, float],
        significant: int | None = None,
    ) -> "Memory":
        """Take back what `with_sums` added, to the bit: the memory that never had the dataset.

        Raises ValueError if the memory does not have it.
        """
        key, sums = _key(pair), in_order(pair, sums)
        rest = self.centred[key] - sums if key in self.centred else None
        if rest is None or bool((rest.weights_D < 0).any()):
            raise ValueError(f"the memory has no dataset of {' and '.join(key)} with these moments")
        left = {name: self.ridges[name].without(ridge) for name, ridge in ridges.items()}
        pairs = {**self.centred, key: rest}
        counts = {**self.datasets, key: self.datasets[key] - 1}
        counted = {**self.significant, key: self.significant[key].without(_number(significant))}
        assert counts[key] >= 0
        if not counts[key]:
            # A pair without a dataset connects nothing.
            del pairs[key], counts[key], counted[key]
        known = {**self.ridges, **left}
        return replace(
            self,
            centred=pairs,
            datasets=counts,
            ridges={name: each for name, each in known.items() if each.numbers},
            significant=counted,
        )

    def _counting(self, key: PairNames) -> "Memory":
        return replace(self, datasets={**self.datasets, key: self.datasets.get(key, 0) + 1})

    @cached_property
    def by_pair(self) -> Mapping[PairNames, PairMoments]:
        """Uncentred moments of each pair. From centred ones, a dataset counts by its weight."""
        return self.moments or {key: each.pooled for key, each in self.centred.items()}

    def has(self, pair: ModalityPair) -> bool:
        """Whether there is a dataset of this pair, in either order."""
        return _key(pair) in self.datasets

    def has_learned(self, modality: str) -> bool:
        """Whether a dataset has this modality."""
        return any(modality in pair for pair in self.datasets)

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


def _number(significant: int | None) -> float:
    return math.inf if significant is None else significant


def _key(pair: ModalityPair) -> PairNames:
    first, second = sorted(pair.modalities)
    return first, second


def in_order(pair: ModalityPair, moments: Moments) -> Moments:
    """Moments of a pair in the lexical order of its modalities, or back from there."""
    return moments if _key(pair) == pair.modalities else moments.swapped()


def _total(moments: list[SecondMoment]) -> SecondMoment | None:
    return reduce(add, moments) if moments else None
