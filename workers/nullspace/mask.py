"""Which entries of an update may move, in the eigen-coordinates of its inputs and outputs.

Shapes: E width of the embeddings, I width of the features.

A change Δ of a head moves old scores by Σ r_i s_j (Vᵀ Δ U)_ij² in mean square, with (s, U) the
eigen-pairs of the earlier inputs and (r, V) those of the partners' embeddings: in the coordinates
M = Vᵀ Δ U interference is elementwise, and so is protection.
"""

import torch
from torch import Tensor

from workers.nullspace.subspace import EigenBasis


def rectangular_mask(outputs: EigenBasis, inputs: EigenBasis, kept_energy: float) -> Tensor:
    """Free entries (bool, E × I): all but those where both directions are protected.

    Protected are the leading directions that keep `kept_energy` of the trace on either side: the
    dual-sided projection of arXiv 2503.14963, made elementwise.
    """
    free_EI = torch.ones(outputs.width, inputs.width, dtype=torch.bool)
    free_EI[: outputs.rank_at(kept_energy), : inputs.rank_at(kept_energy)] = False
    return free_EI
