"""Dual-sided null space (arXiv 2503.14963, made exact): blocked entries never move.

Two policies. `preserve` is the mask, and a price on what it leaves free: old scores stay put. `improve` adds moment replay in
what the mask leaves free: old scores move, for the better.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from workers.methods.drift_penalty import PenalisedDrift
from workers.methods.moment_replay import MomentReplay
from workers.methods.port import Batch, Kept, Lesson, Method, UpdateRule
from workers.methods.sampled_replay import SampledReplay
from workers.methods.stable_index import published_spans, with_publication
from workers.model.heads import ModalityHeads
from workers.model.pair import PairInEigenCoordinates
from workers.model.rows import PairedRows
from workers.nullspace.mask import UpdateSpace, everything_free, product_mask
from workers.nullspace.shares import disjoint_shares
from workers.nullspace.subspace import eigenbasis

# A term that every k-th update carries k-fold costs a k-th and learns alike (docs/log.md).
_MOMENTS_EVERY, _SAMPLED_EVERY = 4, 2
# Weight of sampled rows beside that of whole datasets.
_SAMPLED_SHARE = 0.6


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
        spaces = {modality: self._space(lesson, modality) for modality in lesson.pair.modalities}
        if not lesson.memory.has(lesson.pair):
            return spaces
        first, second = lesson.pair.modalities
        shares = disjoint_shares(spaces[first], spaces[second], self.kept_energy, product_mask)
        return dict(zip(lesson.pair.modalities, shares, strict=True))

    def _space(self, lesson: Lesson, modality: str) -> UpdateSpace:
        learned = lesson.memory.inputs_of(modality)
        partners = lesson.memory.partners_of(modality, lesson.heads)
        if learned is None or partners is None:
            return everything_free(*lesson.heads.weights[modality].shape)
        published = published_spans(lesson) if self.stable_index else None
        outputs = eigenbasis(partners + published if published else partners)
        inputs = eigenbasis(learned)
        return UpdateSpace(outputs, inputs, product_mask(outputs, inputs, self.kept_energy))

    def update_rule(
        self, lesson: Lesson, pair: PairInEigenCoordinates, rows: PairedRows
    ) -> UpdateRule:
        return PenalisedDrift(pair, self.drift_penalty)

    def keep(self, lesson: Lesson, trained: ModalityHeads, rows: PairedRows) -> Kept:
        return with_publication(lesson, trained, rows) if self.stable_index else lesson.kept


@dataclass(frozen=True)
class Improve(Preserve):
    """The mask, and earlier datasets that go on teaching through their moments."""

    replay_weight: float = 1.0

    def update_rule(
        self, lesson: Lesson, pair: PairInEigenCoordinates, rows: PairedRows
    ) -> UpdateRule:
        replay = MomentReplay(lesson, pair), SampledReplay(lesson, pair)
        return _Replaying(pair, *replay, self.replay_weight)


@dataclass
class _Replaying(UpdateRule):
    """Quadratic loss of whole datasets now and then, InfoNCE of sampled rows in between."""

    pair: PairInEigenCoordinates
    moments: MomentReplay
    sampled: SampledReplay
    weight: float
    updates: int = 0

    def backward(self, batch: Batch) -> Tensor:
        loss = batch.loss()
        total = loss
        if self.updates % _SAMPLED_EVERY == 0:
            total = loss + self.weight * _SAMPLED_SHARE * _SAMPLED_EVERY * self.sampled.loss()
        total.backward()  # type: ignore[no-untyped-call]
        if self.updates % _MOMENTS_EVERY == 0:
            self.moments.add_gradient(self.pair, self.weight * _MOMENTS_EVERY)
        self.updates += 1
        return loss.detach()
