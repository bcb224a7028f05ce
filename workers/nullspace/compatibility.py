"""How far scores of vectors that an old version stored change under queries of a new one."""

from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.moments import PairMoments


def stored_change(moments: PairMoments, old: PairWeights, new: PairWeights) -> float:
    """The larger relative change of the two sides' scores, over all row combinations of a dataset, from its moments.

    A vector of the first side stored by the old version and a query of the second side by the new one have the score
    x_uᵀ W_u,oldᵀ W_v,new x_v: that of a version with one old and one new head, so its change is the drift (6) of that
    version. Exactly zero if nothing moved.
    """
    # Named by the side whose vectors are stored, and so whose head is old.
    first_stored = PairWeights(old.first_EI, new.second_EJ)
    second_stored = PairWeights(new.first_EI, old.second_EJ)
    return max(PairScores(moments).drift(old, mixed) for mixed in (first_stored, second_stored))
