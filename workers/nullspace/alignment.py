"""Turn new heads onto those of the parent, so that stored vectors stay comparable.

Shapes: E width of the embeddings, I what a head reads.

One rotation R of all heads changes no score, W_uᵀ Rᵀ R W_v = W_uᵀ W_v, but it decides how a new query
meets a vector that the parent has stored. The R that brings new embeddings nearest to the parent's,
in the mean square over all rows, follows from moments (orthogonal Procrustes, Schönemann 1966):

    R = argmax tr(R Mᵀ) = U Vᵀ,   M = Σ_u W_old S_u W_newᵀ = U Σ Vᵀ                            (13)

Heads without a parent to be aligned with have the choice of R free. Turned to the principal axes of
all embeddings, the first d of the E numbers are the d that keep most of them, so that a shorter vector
is a prefix; alignment keeps this order in later versions as far as it keeps embeddings.
"""

import torch
from torch import Tensor

from workers.nullspace.eigenvectors import with_canonical_signs


def rotation_onto(agreement_EE: Tensor) -> Tensor:
    """R of (13), E × E. `agreement_EE`: M, the sum over modalities of the means of z_old z_newᵀ.

    NaN where M is not finite: of a polish that diverged, which is an error of its own (`check_finite`).
    """
    if not agreement_EE.isfinite().all():
        return torch.full_like(agreement_EE, torch.nan)
    left_EE, _, right_EE = torch.linalg.svd(agreement_EE)
    rotation_EE: Tensor = left_EE @ right_EE
    return rotation_EE


def principal_axes(spread_EE: Tensor) -> Tensor:
    """The rotation (E × E) after which embeddings vary most along the first axis, and less along each further one.

    `spread_EE`: the sum over modalities of the means of z zᵀ.
    """
    axes_EE = with_canonical_signs(torch.linalg.eigh(spread_EE).eigenvectors.flip(1))
    return axes_EE.mT
