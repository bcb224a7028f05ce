"""Do vectors stored by one version and queries of another still score as they did?

Shapes: N stored vectors, Q queries, E width of the embeddings, I and J widths of the two sides'
features.

Scores are inner products of embeddings W x, as in the certificate. The prediction holds for those.
For stored unit vectors, measure: `measured_agreement` takes what is stored.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.certificate import PairWeights, relative_drift
from workers.nullspace.moments import PairMoments

_TOP = 10
_CHUNK_QUERIES = 1024
# Equal stored vectors must tie, although a matrix product may round their scores differently.
_TIE = 1e-6


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


@dataclass(frozen=True)
class Agreement:
    """Agreement measured on held-out rows.

    `relative_difference`: root mean square change of all scores, relative to their size before.
    `top_10_overlap`: share of the ten best stored vectors that were among the ten best before.
    """

    relative_difference: float
    top_10_overlap: float


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
        both_new=relative_drift(moments, old, new),
    )


def stored_change(moments: PairMoments, old: PairWeights, new: PairWeights) -> float:
    """The larger `against_old` of the two sides: the most that an index sees that the old version stored.

    A third of the cost of `compatibility`.
    """
    # Without `against_new` and `both_new`, which need three more certificates.
    first_stored = PairWeights(old.first_EI, new.second_EJ)
    second_stored = PairWeights(new.first_EI, old.second_EJ)
    return max(relative_drift(moments, old, mixed) for mixed in (first_stored, second_stored))


def _mixed(
    moments: PairMoments, mixed: PairWeights, old: PairWeights, new: PairWeights
) -> MixedScores:
    return MixedScores(relative_drift(moments, old, mixed), relative_drift(moments, new, mixed))


def measured_agreement(
    stored_old_NE: Tensor, query_new_QE: Tensor, query_old_QE: Tensor
) -> Agreement:
    """Compare scores and ranking of the same queries before and after, on vectors stored before.

    A retrieved vector counts as kept if it was among the ten best or tied with the tenth, so that
    equal vectors are interchangeable. Raises ValueError for shapes that do not fit, no rows, and
    values that are not finite.
    """
    _check(stored_old_NE, query_new_QE, query_old_QE)
    stored_NE = stored_old_NE.double()
    change, size, kept = 0.0, 0.0, 0.0
    # In chunks of queries: the scores of all at once would take Q × N of memory.
    for start in range(0, len(query_old_QE), _CHUNK_QUERIES):
        rows = slice(start, start + _CHUNK_QUERIES)
        old_QN = query_old_QE[rows].double() @ stored_NE.mT
        new_QN = query_new_QE[rows].double() @ stored_NE.mT
        # Sums of squares over all scores; the roots are taken once, at the end.
        change += float((new_QN - old_QN).square().sum())
        size += float(old_QN.square().sum())
        kept += float(kept_share(old_QN, new_QN).sum())
    return Agreement(root_ratio(change, size), kept / len(query_old_QE))


def kept_share(old_QN: Tensor, new_QN: Tensor) -> Tensor:
    """Per query, the share of the ten best by new scores that are among the ten best by old ones.

    Ties with the tenth count as among the ten best.
    """
    top = min(_TOP, old_QN.shape[1])
    # The tenth best old score of each query, lowered by the rounding of its largest score.
    threshold_Q1 = old_QN.topk(top, dim=1).values[:, -1:]
    scale_Q1 = old_QN.abs().amax(dim=1, keepdim=True)
    # Old scores of the new ten best: each is kept if it reaches the old tenth.
    before_QK = old_QN.gather(1, new_QN.topk(top, dim=1).indices)
    return (before_QK >= threshold_Q1 - _TIE * scale_Q1).double().mean(dim=1)


def root_ratio(change: float, size: float) -> float:
    """√(change / size), infinite if something changed that was zero."""
    if size <= 0:
        return 0.0 if change <= 0 else float("inf")
    return float((change / size) ** 0.5)


def _check(stored_NE: Tensor, new_QE: Tensor, old_QE: Tensor) -> None:
    if new_QE.shape != old_QE.shape or stored_NE.shape[1:] != old_QE.shape[1:]:
        shapes = [tuple(rows.shape) for rows in (stored_NE, new_QE, old_QE)]
        raise ValueError(f"stored vectors, new and old queries of shapes {shapes} do not fit")
    if 0 in (len(stored_NE), len(old_QE)):
        raise ValueError(f"{len(stored_NE)} stored vectors and {len(old_QE)} queries: need 1 each")
    if not all(torch.isfinite(rows).all() for rows in (stored_NE, new_QE, old_QE)):
        raise ValueError("stored vectors and queries must be finite")
