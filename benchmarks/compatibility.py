"""Do vectors stored by one version and queries of another still score as they did, and how well do they migrate?

Predicted from moments, and measured on held-out rows.
Shapes: N rows, F width of the raw feature, E width of the embeddings, I and J widths of the two sides' features.

Scores are inner products of embeddings W x, as in the certificate. The prediction holds for those, and not for unit vectors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from workers.model.heads import ModalityHeads
from workers.model.loss import unit
from workers.model.rows import PairedRows
from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.migrate import Migration
from workers.nullspace.moments import PairMoments

# Scores of this many rows against all others are held at once.
_ROWS_AT_ONCE = 1024
_PERCENTILE = 0.01


@dataclass(frozen=True)
class MixedScores:
    """Old stored vectors against new queries: relative root mean square change of all scores.

    `against_old`: relative to the scores of the old version alone. `against_new`: relative to those
    after re-indexing with the new version.
    """

    against_old: float
    against_new: float


@dataclass(frozen=True)
class Compatibility:
    """Two versions on one dataset. `both_new`: change of the scores after re-indexing."""

    first_stored: MixedScores
    second_stored: MixedScores
    both_new: float


def compatibility(moments: PairMoments, old: PairWeights, new: PairWeights) -> Compatibility:
    """Over all row combinations of a dataset, exactly and from its moments alone.

    A vector of the first side stored by the old version and a query of the second side by the new
    one have the score x_uᵀ W_u,oldᵀ W_v,new x_v. That is the score of a version with one old and one
    new head, so its change is the drift (6) of that version. Exactly zero if nothing moved.
    """
    # Named by the side whose vectors are stored, and so whose head is old.
    first_stored = PairWeights(old.first_EI, new.second_EJ)
    second_stored = PairWeights(new.first_EI, old.second_EJ)
    return Compatibility(
        _mixed(moments, first_stored, old, new),
        _mixed(moments, second_stored, old, new),
        both_new=PairScores(moments).drift(old, new),
    )


def _mixed(
    moments: PairMoments, mixed: PairWeights, old: PairWeights, new: PairWeights
) -> MixedScores:
    return MixedScores(PairScores(moments).drift(old, mixed), PairScores(moments).drift(new, mixed))


@dataclass(frozen=True)
class Embedded:
    """Both sides of paired rows under one version (N × E): unnormalised, or at unit length."""

    first_NE: Tensor
    second_NE: Tensor

    @property
    def unit(self) -> "Embedded":
        """At unit length, as the service returns them."""
        return Embedded(unit(self.first_NE), unit(self.second_NE))


@dataclass(frozen=True)
class MeasuredPair:
    """Held-out rows under both versions.

    `scores`: of unnormalised embeddings, which the moments predict. `unit_scores`: of unit embeddings, as they are
    stored.
    """

    rows: int
    scores: Compatibility
    unit_scores: Compatibility


def embedded(heads: ModalityHeads, pair: ModalityPair, raw: PairedRows) -> Embedded:
    """Unnormalised embeddings, float64, of raw features."""
    return Embedded(
        heads.outputs(pair.first, raw.first_NI).double(),
        heads.outputs(pair.second, raw.second_NJ).double(),
    )


def measured_pair(old: Embedded, new: Embedded) -> MeasuredPair:
    """Compare the same rows under the old and the new version (from `embedded`)."""
    return MeasuredPair(
        len(old.first_NE), measured_scores(old, new), measured_scores(old.unit, new.unit)
    )


def measured_scores(old: Embedded, new: Embedded) -> Compatibility:
    """What `compatibility` predicts, measured over all row combinations."""
    first_stored = Embedded(old.first_NE, new.second_NE)
    second_stored = Embedded(new.first_NE, old.second_NE)
    first, second = (
        MixedScores(_relative_change(old, mixed), _relative_change(new, mixed))
        for mixed in (first_stored, second_stored)
    )
    return Compatibility(first, second, both_new=_relative_change(old, new))


def _relative_change(before: Embedded, after: Embedded) -> float:
    """Root mean square change of all scores, relative to their size before."""
    change, size = 0.0, 0.0
    for start in range(0, len(before.first_NE), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        before_NN = before.first_NE[rows] @ before.second_NE.mT
        after_NN = after.first_NE[rows] @ after.second_NE.mT
        change += float((after_NN - before_NN).square().sum())
        size += float(before_NN.square().sum())
    return _root_ratio(change, size)


@dataclass(frozen=True)
class MeasuredMigration:
    """Held-out rows of one modality, migrated and re-encoded.

    `error`: relative root mean square error of unnormalised embeddings. `cosine_mean` and
    `cosine_percentile_1`: between migrated and re-encoded unit vectors. `cosine_unmigrated`: the mean
    without migration.
    """

    rows: int
    error: float
    cosine_mean: float
    cosine_percentile_1: float
    cosine_unmigrated: float


def measured_migration(
    found: Migration, modality: str, old: ModalityHeads, new: ModalityHeads, raw_NF: Tensor
) -> MeasuredMigration:
    """Migrate the old version's embeddings of these rows, and compare them with the new one's."""
    stored_NE = old.outputs(modality, raw_NF).double()
    reencoded_NE = new.outputs(modality, raw_NF).double()
    missed = float((found.apply(stored_NE) - reencoded_NE).square().sum())
    unit_stored_NE = old.embed(modality, raw_NF)
    cosine_N = _cosines(found.apply_unit(unit_stored_NE), reencoded_NE)
    return MeasuredMigration(
        rows=len(raw_NF),
        error=_root_ratio(missed, float(reencoded_NE.square().sum())),
        cosine_mean=float(cosine_N.mean()),
        cosine_percentile_1=float(cosine_N.quantile(_PERCENTILE)),
        cosine_unmigrated=float(_cosines(unit_stored_NE, reencoded_NE).mean()),
    )


def _cosines(one_NE: Tensor, other_NE: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one_NE.double(), other_NE, dim=1)


def _root_ratio(change: float, size: float) -> float:
    """√(change / size), infinite if something changed that was zero."""
    if size <= 0:
        return 0.0 if change <= 0 else float("inf")
    return float((change / size) ** 0.5)
