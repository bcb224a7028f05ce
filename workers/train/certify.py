"""Drift and quality of past datasets: measured from their moments, and bounded on request.

Shapes: E width of the embeddings, I width of what a head reads.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Drift, HeadCapacity, Protection, Quality, Shrinkage
from workers.methods.method import TrainingContext
from workers.methods.preserve import protected_space
from workers.model.heads import ModalityHeads
from workers.nullspace.certificate import KEPT_HEADS, PairScores, PairWeights
from workers.nullspace.mask import UpdateSpace, everything_free
from workers.nullspace.moments import PairMoments
from workers.nullspace.shrink import Shrunk, scale_to_bound, shrink_to_bound
from workers.train.distributed import SINGLE_PROCESS, World, all_reduce_max, rank_share
from workers.train.loop import mean_loss, new_heads, rotation_of
from workers.train.rows import RotatedRows, TrainingRows
from workers.train.run import Run

T = TypeVar("T")

# Share of the energy at which the used directions of a head are counted.
_CAPACITY_ENERGY = 0.95


@dataclass(frozen=True)
class PastState:
    """What is stored of a past dataset: its scores under any heads, and the heads that learned it."""

    scores: PairScores
    then: PairWeights

    @property
    def nbytes(self) -> int:
        """Bytes of memory, with those of each of the heads whose scores are kept: float32 weights, float64 products."""
        heads = self.then.first_EI.nbytes + self.then.second_EJ.nbytes
        return self.scores.nbytes + heads + KEPT_HEADS * 3 * heads


@dataclass(frozen=True)
class PastDataset:
    """A dataset of an earlier version.

    `read` loads its state when it is needed: the number of past datasets is unbounded, and memory needs
    room for one only.
    """

    dataset: str
    pair: ModalityPair
    read: Callable[[], PastState]
    attainable: float | None = None

    @classmethod
    def in_memory(
        cls, dataset: str, pair: ModalityPair, moments: PairMoments, then: PairWeights
    ) -> "PastDataset":
        """One whose state is in memory."""
        state = PastState(PairScores(moments), then)
        return cls(dataset, pair, lambda: state)

    def drift(self, now: ModalityHeads) -> float:
        """Drift since the version that learned it; NaN counts as infinite."""
        state = self.read()
        drift = state.scores.drift(state.then, weights_of(self.pair, now))
        return math.inf if math.isnan(drift) else drift


def weights_of(pair: ModalityPair, heads: ModalityHeads) -> PairWeights:
    """The two heads of a pair."""
    return PairWeights(heads.weights[pair.first], heads.weights[pair.second])


def limit_drift(
    spec: ModelSpec,
    context: TrainingContext,
    spaces: Mapping[str, UpdateSpace],
    changes: tuple[Tensor, Tensor],
    past: Sequence[PastDataset],
    here: World = SINGLE_PROCESS,
) -> tuple[tuple[Tensor, Tensor], Shrunk | None]:
    """Shrink the changes of both heads until no past dataset drifts by more than `max_drift`, if there is a bound.

    Each rank measures its part of the past datasets. The result is the same on all ranks.
    """
    bound = spec.drift_bound
    if bound is None or not _affected(past, context):
        return changes, None
    own = _affected(rank_share(past, here), context)

    def largest_drift(candidate: tuple[Tensor, Tensor]) -> float:
        heads = new_heads(context, spaces, candidate)
        return all_reduce_max(max((one.drift(heads) for one in own), default=0.0), here)

    first, second = (spaces[modality] for modality in context.pair.modalities)
    return shrink_to_bound(changes, (first, second), largest_drift, bound)


def limit_step(
    spec: ModelSpec,
    context: TrainingContext,
    solved: Mapping[str, Tensor],
    past: Sequence[PastDataset],
    here: World = SINGLE_PROCESS,
) -> tuple[ModalityHeads, Shrunk | None]:
    """Go from the parent's heads towards the solved ones until a past dataset drifts by `max_drift`, if there is a bound.

    Heads that have learned nothing yet are the solved ones, since no past score depends on them. Each
    rank measures its part of the past datasets. The result is the same on all ranks.
    """
    bound, parent = spec.drift_bound, context.heads
    if bound is None or not past:
        return parent.replaced(solved), None
    own = rank_share(past, here)
    known = {name for name in solved if context.memory.has_learned(name)}

    def heads_at(scale: float) -> ModalityHeads:
        steps = {
            name: torch.lerp(parent.weights[name], new, scale) if name in known else new
            for name, new in solved.items()
        }
        return parent.replaced(steps)

    def largest_drift(scale: float) -> float:
        heads = heads_at(scale)
        return all_reduce_max(max((one.drift(heads) for one in own), default=0.0), here)

    shrunk = scale_to_bound(largest_drift, bound)
    return heads_at(shrunk.scale), shrunk


def cost_of_step(
    context: TrainingContext,
    shrunk: Shrunk | None,
    solved: Mapping[str, Tensor],
    limited: ModalityHeads,
    rows: TrainingRows,
    run: Run,
) -> Shrinkage | None:
    """What `max_drift` cost the new rows: from `solved` to `limited`. None if it changed nothing."""
    names, parent = context.pair.modalities, context.heads.weights
    spaces = {name: everything_free(*parent[name].shape) for name in names}
    rotated = RotatedRows(rows, rotation_of(context, spaces, run.device))

    def loss_of(weights: Mapping[str, Tensor]) -> float:
        first, second = ((weights[name] - parent[name]).to(run.device) for name in names)
        return mean_loss(context, spaces, rotated, run, (first, second))

    return shrinkage(shrunk, loss_of, solved, limited.weights)


def _affected(past: Sequence[PastDataset], context: TrainingContext) -> list[PastDataset]:
    """Past datasets that have a modality of the pair in training; scores of others do not change."""
    return [one for one in past if set(one.pair.modalities) & set(context.pair.modalities)]


@dataclass(frozen=True)
class Certificate:
    """Drift and quality of one past dataset, and how its scores correlate with those of the parent
    (`PairScores.correlations`)."""

    drift: Drift
    quality: Quality
    correlations: tuple[float, float]


def certificates(
    past: Iterable[PastDataset], parent: ModalityHeads, now: ModalityHeads
) -> dict[str, Certificate]:
    """For every past dataset: its drift since the version that learned it and since the parent, its
    quality, and the change of the norms of its embeddings."""
    return {
        one.dataset: _certificate(one, weights_of(one.pair, parent), weights_of(one.pair, now))
        for one in past
    }


def _certificate(one: PastDataset, parent: PairWeights, now: PairWeights) -> Certificate:
    state = one.read()
    scores, then = state.scores, state.then
    drift = Drift(since_learned=scores.drift(then, now), against_parent=scores.drift(parent, now))
    norm_changes = dict(zip(one.pair.modalities, scores.norm_changes(then, now), strict=True))
    best = None if one.attainable is None else scores.lowest_loss(then, one.attainable)
    quality = Quality(now=scores.quality(then, now), best=best, norm_change=norm_changes)
    return Certificate(drift, quality, scores.correlations(parent, now))


def protections(spec: ModelSpec, spaces: Mapping[str, UpdateSpace]) -> dict[str, Protection]:
    """How much of each head was blocked."""
    kept = spec.kept_energy
    return {
        modality: Protection(
            input_directions=space.inputs.rank_at(kept),
            input_width=space.inputs.width,
            output_directions=space.outputs.rank_at(kept),
            output_width=space.outputs.width,
            blocked_share=space.blocked_share,
        )
        for modality, space in spaces.items()
    }


def capacities(spec: ModelSpec, contexts: Mapping[str, TrainingContext]) -> dict[str, HeadCapacity]:
    """How full each head is for the next dataset, by what the policy `preserve` would block.

    `contexts`: those after this dataset, by modality that has learned something, with its latest pair.
    """
    found = {modality: _capacity(spec, one, modality) for modality, one in contexts.items()}
    return {modality: measured for modality, measured in found.items() if measured is not None}


def _capacity(spec: ModelSpec, context: TrainingContext, modality: str) -> HeadCapacity | None:
    space = protected_space(context, modality, spec.kept_energy)
    if space is None:
        return None
    return HeadCapacity(
        free_share=float(space.free_EI.double().mean()),
        input_directions=space.inputs.rank_at(_CAPACITY_ENERGY),
        input_width=space.inputs.width,
        output_directions=space.outputs.rank_at(_CAPACITY_ENERGY),
        output_width=space.outputs.width,
    )


def shrinkage(
    shrunk: Shrunk | None, loss_of: Callable[[T], float], before: T, after: T
) -> Shrinkage | None:
    """The loss on the new rows before and after shrinking; None if nothing was shrunk."""
    if shrunk is None or shrunk.drift_before == shrunk.drift_after:
        return None
    return Shrinkage(**asdict(shrunk), loss_before=loss_of(before), loss_after=loss_of(after))
