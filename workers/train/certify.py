"""What became of the earlier datasets: measured from their moments, and bounded where asked.

Shapes: E width of the embeddings, I width of what a head reads.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Drift, HeadCapacity, Protection, Quality, Shrinkage
from workers.methods.port import Lesson
from workers.methods.sealed import input_basis
from workers.methods.stable_index import published_spans
from workers.model.heads import ModalityHeads
from workers.nullspace.certificate import PairWeights, relative_drift, relative_norm_change
from workers.nullspace.mask import UpdateSpace, product_mask
from workers.nullspace.moments import PairMoments
from workers.nullspace.replay import quality_loss
from workers.nullspace.shrink import Shrunk, shrink_to_bound
from workers.nullspace.subspace import eigenbasis
from workers.train.distributed import ALONE, World, largest
from workers.train.loop import new_heads

# Ranks of a head's spectra are told at this share of the energy.
_CAPACITY_ENERGY = 0.95


@dataclass(frozen=True)
class Remembered:
    """What is left of an earlier dataset: its own moments, and the heads that learned it."""

    moments: PairMoments
    then: PairWeights

    @property
    def nbytes(self) -> int:
        """Of memory."""
        moments, then = self.moments, self.then
        sums = (moments.first.sum_II, moments.second.sum_II, moments.cross_IJ)
        return sum(tensor.nbytes for tensor in (*sums, then.first_EI, then.second_EJ))


@dataclass(frozen=True)
class Earlier:
    """A dataset of an earlier version. `read` gives what is left of it, whenever that is needed: their
    number grows without end, and memory holds one."""

    dataset: str
    pair: ModalityPair
    read: Callable[[], Remembered]

    @classmethod
    def held(
        cls, dataset: str, pair: ModalityPair, moments: PairMoments, then: PairWeights
    ) -> "Earlier":
        """One that is in memory anyway."""
        remembered = Remembered(moments, then)
        return cls(dataset, pair, lambda: remembered)

    def drift(self, now: ModalityHeads) -> float:
        """Since the version that learned it; infinite where it is no number."""
        left = self.read()
        drift = relative_drift(left.moments, left.then, weights_of(self.pair, now))
        return math.inf if math.isnan(drift) else drift


def weights_of(pair: ModalityPair, heads: ModalityHeads) -> PairWeights:
    """The two heads of a pair."""
    return PairWeights(heads.weights[pair.first], heads.weights[pair.second])


def own_earlier(earlier: Sequence[Earlier], here: World) -> Sequence[Earlier]:
    """A share of the earlier datasets for each rank: their number grows without end.

    It is the same share whatever a rank does with them, so that memory holds what was read before.
    """
    return earlier[here.rank :: here.size]


@dataclass(frozen=True)
class Limited:
    """Changes that keep the bound; `shrunk` is None where none was asked for."""

    changes: tuple[Tensor, Tensor]
    shrunk: Shrunk | None = None


def limit_drift(
    spec: ModelSpec,
    lesson: Lesson,
    spaces: Mapping[str, UpdateSpace],
    changes: tuple[Tensor, Tensor],
    earlier: Sequence[Earlier],
    here: World = ALONE,
) -> Limited:
    """Shrink the changes of both heads until no earlier dataset moved by more than permitted.

    Each rank measures those of its share; the result is alike on all.
    """
    bound = spec.drift_bound
    if bound is None or not _touched(earlier, lesson):
        return Limited(changes)
    own = _touched(own_earlier(earlier, here), lesson)

    def largest_drift(candidate: tuple[Tensor, Tensor]) -> float:
        heads = new_heads(lesson, spaces, candidate)
        return largest(max((one.drift(heads) for one in own), default=0.0), here)

    first, second = (spaces[modality] for modality in lesson.pair.modalities)
    return Limited(*shrink_to_bound(changes, (first, second), largest_drift, bound))


def _touched(earlier: Sequence[Earlier], lesson: Lesson) -> list[Earlier]:
    """Those that have a modality of the pair in training."""
    return [one for one in earlier if set(one.pair.modalities) & set(lesson.pair.modalities)]


@dataclass(frozen=True)
class Certificate:
    """What became of one earlier dataset."""

    drift: Drift
    quality: Quality


def certificates(
    earlier: Iterable[Earlier], parent: ModalityHeads, now: ModalityHeads
) -> dict[str, Certificate]:
    """Of every earlier dataset: its drift since the version that learned it and since the parent, how
    good it still is, and how the norms of its embeddings changed."""
    return {
        one.dataset: _certificate(
            one.pair, one.read(), weights_of(one.pair, parent), weights_of(one.pair, now)
        )
        for one in earlier
    }


def _certificate(
    pair: ModalityPair, left: Remembered, parent: PairWeights, now: PairWeights
) -> Certificate:
    moments, then = left.moments, left.then
    first, second = pair.modalities
    drift = Drift(
        since_learned=relative_drift(moments, then, now),
        against_parent=relative_drift(moments, parent, now),
    )
    norm_change = {
        first: relative_norm_change(moments.first, then.first_EI, now.first_EI),
        second: relative_norm_change(moments.second, then.second_EJ, now.second_EJ),
    }
    return Certificate(
        drift, Quality(now=quality_loss(moments, then, now), norm_change=norm_change)
    )


def protections(spec: ModelSpec, spaces: Mapping[str, UpdateSpace]) -> dict[str, Protection]:
    """How much of each head was closed."""
    kept = spec.protection.energy
    return {
        modality: Protection(
            input_rank=space.inputs.rank_at(kept),
            input_width=space.inputs.width,
            output_rank=space.outputs.rank_at(kept),
            output_width=space.outputs.width,
            blocked_share=space.blocked_share,
        )
        for modality, space in spaces.items()
    }


def capacities(spec: ModelSpec, lessons: Mapping[str, Lesson]) -> dict[str, HeadCapacity]:
    """How full each head is for the next dataset, by what the method `nullspace` would block.

    `lessons`: what is known now, by modality that has learned something, with the latest pair that
    had it. The inputs' bases are sealed already where the method seals them.
    """
    found = {modality: _capacity(spec, one, modality) for modality, one in lessons.items()}
    return {modality: measured for modality, measured in found.items() if measured is not None}


def _capacity(spec: ModelSpec, lesson: Lesson, modality: str) -> HeadCapacity | None:
    learned = lesson.memory.inputs_of(modality)
    partners = lesson.memory.partners_of(modality, lesson.heads)
    if learned is None or partners is None:
        return None
    published = published_spans(lesson) if spec.protection.stable_index else None
    outputs = eigenbasis(partners + published if published else partners)
    inputs = input_basis(lesson, modality, learned)
    free_EI = product_mask(outputs, inputs, spec.protection.energy)
    return HeadCapacity(
        free_share=float(free_EI.double().mean()),
        input_rank=inputs.rank_at(_CAPACITY_ENERGY),
        input_width=inputs.width,
        output_rank=outputs.rank_at(_CAPACITY_ENERGY),
        output_width=outputs.width,
    )


def shrinkage(
    limited: Limited,
    loss_of: Callable[[tuple[Tensor, Tensor]], float],
    trained: tuple[Tensor, Tensor],
) -> Shrinkage | None:
    """What keeping the bound cost on the new rows; None where nothing had to be shrunk."""
    shrunk = limited.shrunk
    if shrunk is None or shrunk.drift_before == shrunk.drift_after:
        return None
    return Shrinkage(
        **asdict(shrunk), loss_before=loss_of(trained), loss_after=loss_of(limited.changes)
    )
