"""How far scores of vectors that an old version stored change under queries of a new one.

Shapes: N stored vectors, Q queries.
"""

from torch import Tensor

from workers.nullspace.certificate import PairWeights, relative_drift
from workers.nullspace.moments import PairMoments

_TOP = 10
# Equal stored vectors must tie, although a matrix product may round their scores differently.
_TIE = 1e-6


def stored_change(moments: PairMoments, old: PairWeights, new: PairWeights) -> float:
    """The larger relative change of the two sides' scores, over all row combinations of a dataset, from its moments.

    A vector of the first side stored by the old version and a query of the second side by the new one have the score
    x_uᵀ W_u,oldᵀ W_v,new x_v: that of a version with one old and one new head, so its change is the drift (6) of that
    version. Exactly zero if nothing moved.
    """
    # Named by the side whose vectors are stored, and so whose head is old.
    first_stored = PairWeights(old.first_EI, new.second_EJ)
    second_stored = PairWeights(new.first_EI, old.second_EJ)
    return max(relative_drift(moments, old, mixed) for mixed in (first_stored, second_stored))


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
