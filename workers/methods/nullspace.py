"""Dual-sided null space (arXiv 2503.14963, made exact): blocked entries never move.

Two policies. `preserve` is the mask, and a price on what it leaves free: old scores stay put. `improve` adds moment replay in
what the mask leaves free: old scores move, for the better.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.methods.drift_penalty import PenalisedDrift
from workers.methods.moment_replay import MomentReplay
from workers.methods.port import Batch, Kept, Lesson, Method, Seen, State, UpdateRule
from workers.methods.sampled_replay import SampledReplay
from workers.methods.sealed import input_basis, with_sealed_bases
from workers.methods.stable_index import published_spans, with_publication
from workers.model.heads import ModalityHeads
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.mask import UpdateSpace, free_in, product_mask
from workers.nullspace.moments import SecondMoment
from workers.nullspace.shares import disjoint_shares
from workers.nullspace.subspace import EigenBasis, common_eigenbasis, eigenbasis

# A term that every k-th update carries k-fold costs a k-th and learns alike (docs/log.md).
_MOMENTS_EVERY, _SAMPLED_EVERY = 4, 2
# Weight of sampled rows beside that of whole datasets.
_SAMPLED_SHARE = 0.3


@dataclass(frozen=True)
class Preserve(Method):
    """Block the entries whose input and output directions matter to earlier datasets.

    Inputs: all features the head has learned from. Outputs: the embeddings of all partners it
    really had, under today's heads; with `stable_index` also all that both modalities have ever
    published. `kept_energy` is the share of Σ r_i s_j that is blocked; what is left free pays
    `drift_penalty` for each unit of squared relative drift.
    """

    kept_energy: float
    drift_penalty: float = 0.0
    stable_index: bool = False

    def update_spaces(self, lesson: Lesson) -> Mapping[str, UpdateSpace]:
        needs = {modality: self._need(lesson, modality) for modality in lesson.pair.modalities}
        found = [need for need in needs.values() if need is not None]
        if not found:
            return super().update_spaces(lesson)
        if lesson.memory.has(lesson.pair):
            return self._in_shares(lesson, *found)
        # With one output basis for both heads an update needs no turn from one to the other.
        outputs = common_eigenbasis([need.outputs for need in found])
        return {
            modality: self._space(outputs, need)
            if need
            else free_in(outputs, lesson.heads.weights[modality].shape[1])
            for modality, need in needs.items()
        }

    def _in_shares(self, lesson: Lesson, first: "_Need", second: "_Need") -> dict[str, UpdateSpace]:
        """The pair comes again: what both heads may do to old inputs must not meet."""
        own = [self._space(eigenbasis(need.outputs), need) for need in (first, second)]
        shares = disjoint_shares(own[0], own[1], self.kept_energy, product_mask)
        return dict(zip(lesson.pair.modalities, shares, strict=True))

    def _space(self, outputs: EigenBasis, need: "_Need") -> UpdateSpace:
        free_EI = product_mask(outputs, need.inputs, self.kept_energy)
        return UpdateSpace(outputs, need.inputs, free_EI)

    def _need(self, lesson: Lesson, modality: str) -> "_Need | None":
        """None for a head that has learned nothing yet."""
        learned = lesson.memory.inputs_of(modality)
        partners = lesson.memory.partners_of(modality, lesson.heads)
        if learned is None or partners is None:
            return None
        published = published_spans(lesson) if self.stable_index else None
        outputs = partners + published if published else partners
        return _Need(input_basis(lesson, modality, learned), outputs)

    def update_rule(self, lesson: Lesson, pair: PairInEigenCoordinates) -> UpdateRule:
        return PenalisedDrift(pair, self.drift_penalty)

    def keep(self, lesson: Lesson, trained: ModalityHeads, seen: Seen) -> Kept:
        kept = with_sealed_bases(lesson, lesson.kept, seen.moments)
        return with_publication(lesson, kept, trained, seen.moments) if self.stable_index else kept


@dataclass(frozen=True)
class _Need:
    """What earlier datasets need of a head: features it reads, directions it must not disturb."""

    inputs: EigenBasis
    outputs: SecondMoment


@dataclass(frozen=True)
class Improve(Preserve):
    """The mask, and earlier datasets that go on teaching through their moments."""

    replay_weight: float = 1.0

    def update_rule(self, lesson: Lesson, pair: PairInEigenCoordinates) -> UpdateRule:
        replay = MomentReplay(lesson, pair), SampledReplay(lesson, pair)
        return _Replaying(*replay, self.replay_weight)


@dataclass
class _Replaying(UpdateRule):
    """Quadratic loss of whole datasets now and then, InfoNCE of sampled rows in between."""

    moments: MomentReplay
    sampled: SampledReplay
    weight: float
    updates: int = 0

    def backward(self, batch: Batch) -> Tensor:
        loss = batch.loss()
        total = loss
        if self.updates % _SAMPLED_EVERY == 0:
            replayed = self.sampled.loss(batch.peers)
            total = total + self.weight * _SAMPLED_SHARE * _SAMPLED_EVERY * replayed
        if self.updates % _MOMENTS_EVERY == 0:
            total = total + self.weight * _MOMENTS_EVERY * self.moments.loss(batch.peers)
        total.backward()  # type: ignore[no-untyped-call]
        self.updates += 1
        return loss.detach()

    def state(self) -> State:
        return {"updates": torch.tensor(self.updates), "sampled": self.sampled.random.get_state()}

    def restore(self, state: State) -> None:
        self.updates = int(state["updates"])
        self.sampled.random.set_state(state["sampled"])
