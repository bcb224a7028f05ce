"""Policy `improve`: solve all heads from the moments of all datasets, then polish and align them.

Shapes: E width of the embeddings, I width of what a head reads, K directions.

No row of any dataset is read: the new one's moments are all that learning it needs. The heads are a
function of the sum of all moments, and of the parent only by a common rotation, so the order of
datasets changes no score, given the features (a narrow cone is centred by its first dataset, decision 57). Four steps:

    choose   ridges and the number of significant directions, by the two halves of the new dataset
             (workers/nullspace/two_folds.py)
    solve    canonical directions of all pairs together (workers/nullspace/closed_form.py)
    polish   InfoNCE on rows drawn from moments, within the directions that are kept (polish.py)
    align    one rotation of all heads that datasets connect, onto the parent's (workers/nullspace/alignment.py)

A modality that is aligned to another one, and has no other dataset, takes no part in this: afterwards its head is solved
to reproduce the embeddings of that one (workers/nullspace/joining.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from workers.methods.method import Method, Solved, TrainingContext
from workers.methods.polish import (
    Mixing,
    PolishSettings,
    ReducedPair,
    ReducedSide,
    polished,
    reduced,
    weights,
    with_constant,
)
from workers.model.memory import Memory
from workers.nullspace.alignment import principal_axes, rotation_onto
from workers.nullspace.centred import (
    CentredMoments,
    PairNames,
    centred,
    components,
    dataset_moments,
    pooled,
)
from workers.nullspace.closed_form import Directions, solve
from workers.nullspace.joining import aligned_choice, aligned_head
from workers.nullspace.moments import PairMoments
from workers.nullspace.threads import in_threads
from workers.nullspace.two_folds import Choice, best_choice

# The polish chooses among this many directions, however narrow the embeddings are.
_DIRECTIONS = 256
# Its updates for each dataset, and their learning rate (docs/decisions/0047). With K directions
# beyond these both fall as 256 / K. The rate: AdamW moves each of the K entries of a row by about the rate, also where
# the gradient is small. The updates: the time of one grows with K², and twice as many led to the same recall.
_UPDATES, _LEARNING_RATE = 94, 6e-4
# To choose E of K directions takes (K / E)² times as many updates, but no more than this (docs/decisions/0046).
_MOST_UPDATES = 4 * _UPDATES
# All datasets together have the updates of five at most, so that the polish costs the same after a thousand datasets.
_MOST_DATASETS = 5
# Rows of a head that are this much shorter than its longest one are zero, but for the rounding of a rotation.
_ROUNDING = 1e-5
# The precision of the block iteration. Whitening, decomposition and results are in float64.
_PRECISION = torch.float32


@dataclass(frozen=True)
class Improve(Method):
    """All heads in closed form. `training` gives temperature and batch size of the polish."""

    training: TrainingSpec
    seed: int
    # By modality that reproduces the embeddings of another one, that one.
    aligned: Mapping[str, str] = field(default_factory=dict)

    solves = True

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> "Improve":
        aligned = {name: each.aligned_to for name, each in spec.modalities.items()}
        return cls(
            spec.training, spec.seed, {name: other for name, other in aligned.items() if other}
        )

    def choose(self, pair: ModalityPair, halves: tuple[PairMoments, PairMoments]) -> Choice:
        one, other = (centred(half, 1.0) for half in halves)
        if self.aligned.get(pair.first) == pair.second:
            return aligned_choice((one, other))
        if self.aligned.get(pair.second) == pair.first:
            return aligned_choice((one.swapped(), other.swapped()))
        return best_choice((one, other))

    def solve(self, context: TrainingContext, memory: Memory) -> Solved:
        joining = self._joining(memory)
        width = context.heads.width
        pairs = {pair: each for pair, each in memory.centred.items() if pair not in joining}
        ridges = {name: each.ridge for name, each in memory.ridges.items()}
        # Where the dataset of an aligned modality is the only one.
        ridges |= {
            other: ridges[name]
            for name, other in self.aligned.items()
            if name in ridges and other not in ridges
        }
        limits = {pair: each.total for pair, each in memory.significant.items() if pair in pairs}
        solution = solve(pooled(pairs), ridges, max(width, _DIRECTIONS), _PRECISION, limits)
        found, directions, updates, loss = dict[str, Tensor](), 0, 0, 0.0
        for solved in solution.groups:
            group, reduced = _significant(solved, reduced_pairs(pairs, solved), limits)
            polish = polished(
                {name: with_constant(group.scaling(width)) for name in group.heads},
                [each for each in reduced if each.correlates],
                self._settings(group.rank, width),
            )
            found |= weights(group, _turned(polish.mixing, group, reduced, context))
            directions = max(directions, min(group.rank, width))
            updates += polish.updates
            loss = max(loss, polish.loss)
        for pair, (name, other) in joining.items():
            sums = memory.centred[pair] if pair[0] == name else memory.centred[pair].swapped()
            found[name] = aligned_head(found[other], sums, ridges[name])
        assert found.keys() == {name for pair in memory.centred for name in pair}
        return Solved(
            weights={name: weight_EI.float() for name, weight_EI in found.items()},
            final_loss=loss,
            updates=updates,
            temperature=self.training.temperature,
            directions=directions,
            groups=tuple(components([*memory.centred])),
        )

    def _joining(self, memory: Memory) -> dict[PairNames, tuple[str, str]]:
        """By pair whose dataset shapes no other head: the modality that is aligned, and the one that it is aligned to.

        The latter has another dataset, and the former has not. Otherwise the two are modalities like any others.
        """
        found = {}
        for name, other in self.aligned.items():
            own = [pair for pair in memory.centred if name in pair]
            partners = [pair for pair in memory.centred if other in pair and name not in pair]
            if own == [tuple(sorted((name, other)))] and partners:
                found[own[0]] = (name, other)
        return found

    def solve_first(
        self, context: TrainingContext, halves: tuple[PairMoments, PairMoments]
    ) -> Solved:
        """Solve two modalities that have learned nothing from their dataset alone, the sum of its `halves`.

        For heads that are trained later: outputs beyond the dataset's directions keep the weights of `context`. Where
        both heads of a pair are zero, so is the gradient of each, and no later dataset could use that output.
        """
        choice = self.choose(context.pair, halves)
        sums = dataset_moments(halves[0] + halves[1])
        ridges = choice.by_modality(context.pair.modalities, None)
        memory = Memory().with_sums(context.pair, sums, ridges, choice.significant)
        solved = self.solve(context, memory)
        weights = {}
        for name, weight_EI in solved.weights.items():
            sizes_E1 = weight_EI.norm(dim=1, keepdim=True)
            is_rounding_E1 = sizes_E1 <= _ROUNDING * sizes_E1.max()
            weights[name] = torch.where(is_rounding_E1, context.heads.weights[name], weight_EI)
        return replace(solved, weights=weights)

    def _settings(self, directions: int, width: int) -> PolishSettings:
        few = min(1.0, _DIRECTIONS / max(directions, 1))
        updates = _UPDATES * few * max(1.0, directions / width) ** 2
        of_each = min(_MOST_UPDATES, round(updates))
        return PolishSettings(
            of_each,
            _MOST_DATASETS * of_each,
            _LEARNING_RATE * few,
            self.training.batch_size,
            self.training.temperature,
            self.seed,
        )


def reduced_pairs(
    pairs: Mapping[PairNames, CentredMoments], group: Directions
) -> list[ReducedPair]:
    """The pairs of a group in its directions, in lexical order."""
    return in_threads(
        lambda pair: reduced(pair, pairs[pair], group),
        [each for each in sorted(pairs) if each[0] in group.heads and pairs[each].weight > 0],
    )


def _significant(
    group: Directions, pairs: list[ReducedPair], limits: Mapping[PairNames, float]
) -> tuple[Directions, list[ReducedPair]]:
    """The directions that are significant for any pair: of the group, and of its pairs.

    Of each pair they are those with the largest correlations, as many as its datasets have together. Pairs share
    directions, so their union has at most as many as all pairs. There, each pair keeps as many canonical correlations
    as it has significant directions.
    """
    counts = [limits.get(each.pair, math.inf) for each in pairs]
    kept_K = torch.zeros(group.rank, dtype=torch.bool)
    for each, count in zip(pairs, counts, strict=True):
        largest = each.correlations.topk(int(min(count, group.rank)))
        kept_K[largest.indices[largest.values > 0]] = True
    assert int(kept_K.sum()) <= sum(counts), "more directions than all pairs have together"

    def limited(of_pair: tuple[ReducedPair, float]) -> ReducedPair:
        kept = of_pair[0].at(kept_K)
        return kept.limited(of_pair[1]) if kept.correlates else kept

    return group.at(kept_K), in_threads(limited, [*zip(pairs, counts, strict=True)])


def _turned(
    mixing: Mixing, group: Directions, pairs: list[ReducedPair], context: TrainingContext
) -> Mixing:
    """The mixing at unit scale, turned so that heads are the parent's as far as the parent has learned them.

    Unit scale: the root mean square length of each modality's embeddings is 1. No cosine changes, and scores of versions
    become comparable. The first heads of a group are turned to their principal axes. Each modality counts alike,
    independently of its number of rows.
    """
    sides = {name: _sides(pairs, name) for name in sorted(mixing)}
    spreads, scaled = dict[str, Tensor](), Mixing()
    for name, mixing_EK in mixing.items():
        terms = [share * side.spread(group.heads[name], mixing_EK) for share, side in sides[name]]
        spread_EE = torch.stack(terms).sum(0)
        size = float(spread_EE.trace())
        scale = size**-0.5 if size > 0 else 1.0
        spreads[name], scaled[name] = scale**2 * spread_EE, scale * mixing_EK
    agreements = [
        share * side.agreement(context.heads.weights[name], scaled[name])
        for name in sides
        if context.memory.has_learned(name)
        for share, side in sides[name]
    ]
    rotation_EE = (
        rotation_onto(torch.stack(agreements).sum(0))
        if agreements
        else principal_axes(torch.stack([spreads[name] for name in sides]).sum(0))
    )
    return {name: rotation_EE @ mixing_EK for name, mixing_EK in scaled.items()}


def _sides(pairs: list[ReducedPair], name: str) -> list[tuple[float, ReducedSide]]:
    """A modality's side of each pair that has it, with the pair's share of the rows."""
    own = [each for each in pairs if name in each.pair]
    rows = sum(each.rows for each in own)
    return [(each.rows / rows, each.sides[each.pair.index(name)]) for each in own]
