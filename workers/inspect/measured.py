"""What held-out rows say about two versions: beside it stands what moments had predicted.

Shapes: N rows, F width of the raw feature, E width of the embeddings.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from workers.model.heads import ModalityHeads
from workers.model.rows import PairedRows
from workers.nullspace.compatibility import Compatibility, MixedScores, measured_agreement
from workers.nullspace.migrate import Migration

# Scores of this many rows against all others are held at once.
_ROWS_AT_ONCE = 1024
_PERCENTILE = 0.01


@dataclass(frozen=True)
class Embedded:
    """Both sides of paired rows under one version (N × E): unnormalised, or at unit length."""

    first_NE: Tensor
    second_NE: Tensor

    @property
    def unit(self) -> "Embedded":
        """As the service answers and users store them."""
        normalize = torch.nn.functional.normalize
        return Embedded(normalize(self.first_NE, dim=1), normalize(self.second_NE, dim=1))


@dataclass(frozen=True)
class MeasuredPair:
    """Held-out rows under both versions.

    `scores`: of unnormalised embeddings, what the moments predict; `unit_scores`: the same of unit
    embeddings, as they are stored; the overlaps are shares of the ten best stored unit vectors
    that are still among the ten best for queries of the new version.
    """

    rows: int
    scores: Compatibility
    unit_scores: Compatibility
    first_stored_overlap: float
    second_stored_overlap: float


@dataclass(frozen=True)
class MeasuredMigration:
    """Held-out rows of one modality, migrated and encoded anew.

    `error`: relative root mean square error of unnormalised embeddings; `cosine_mean` and
    `cosine_percentile_1`: between migrated unit vectors and those encoded anew;
    `cosine_unmigrated`: the mean before migrating.
    """

    rows: int
    error: float
    cosine_mean: float
    cosine_percentile_1: float
    cosine_unmigrated: float


def embedded(heads: ModalityHeads, pair: ModalityPair, raw: PairedRows) -> Embedded:
    """Unnormalised embeddings, float64, of raw features."""
    return Embedded(
        heads.outputs(pair.first, raw.first_NI).double(),
        heads.outputs(pair.second, raw.second_NJ).double(),
    )


def measured_pair(old: Embedded, new: Embedded) -> MeasuredPair:
    """Both from `embedded`: the same rows under the old and the new version."""
    unit_old, unit_new = old.unit, new.unit
    return MeasuredPair(
        len(old.first_NE),
        measured_scores(old, new),
        measured_scores(unit_old, unit_new),
        measured_agreement(
            unit_old.first_NE, unit_new.second_NE, unit_old.second_NE
        ).top_10_overlap,
        measured_agreement(unit_old.second_NE, unit_new.first_NE, unit_old.first_NE).top_10_overlap,
    )


def measured_scores(old: Embedded, new: Embedded) -> Compatibility:
    """What `nullspace.compatibility` predicts, counted out over all row combinations."""
    first_stored = Embedded(old.first_NE, new.second_NE)
    second_stored = Embedded(new.first_NE, old.second_NE)
    first, second = (
        MixedScores(_relative_change(old, mixed), _relative_change(new, mixed))
        for mixed in (first_stored, second_stored)
    )
    return Compatibility(first, second, both_new=_relative_change(old, new))


def measured_migration(
    found: Migration, modality: str, old: ModalityHeads, new: ModalityHeads, raw_NF: Tensor
) -> MeasuredMigration:
    """Migrate what the old version gives for these rows, and hold it against the new one's."""
    stored_NE = old.outputs(modality, raw_NF).double()
    anew_NE = new.outputs(modality, raw_NF).double()
    missed = float((found.apply(stored_NE) - anew_NE).square().sum())
    unit_stored_NE = old.embed(modality, raw_NF)
    cosine_N = _cosines(found.apply_unit(unit_stored_NE), anew_NE)
    return MeasuredMigration(
        rows=len(raw_NF),
        error=_root_ratio(missed, float(anew_NE.square().sum())),
        cosine_mean=float(cosine_N.mean()),
        cosine_percentile_1=float(cosine_N.quantile(_PERCENTILE)),
        cosine_unmigrated=float(_cosines(unit_stored_NE, anew_NE).mean()),
    )


def _cosines(one_NE: Tensor, other_NE: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one_NE.double(), other_NE, dim=1)


def _relative_change(before: Embedded, after: Embedded) -> float:
    """Root mean square change of all scores, relative to their size before."""
    change, size = 0.0, 0.0
    for rows in _chunks(len(before.first_NE)):
        before_NN = before.first_NE[rows] @ before.second_NE.mT
        after_NN = after.first_NE[rows] @ after.second_NE.mT
        change += float((after_NN - before_NN).square().sum())
        size += float(before_NN.square().sum())
    return _root_ratio(change, size)


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, rows, _ROWS_AT_ONCE))


def _root_ratio(change: float, size: float) -> float:
    if size <= 0:
        return 0.0 if change <= 0 else float("inf")
    return float((change / size) ** 0.5)
