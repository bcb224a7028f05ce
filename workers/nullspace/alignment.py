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

from collections.abc import Mapping
from functools import reduce
from operator import add

import torch
from torch import Tensor

from workers.nullspace.closed_form import typical_variance
from workers.nullspace.eigenvectors import with_canonical_signs
from workers.nullspace.moments import SecondMoment

Heads = Mapping[str, Tensor]
"""By modality: E × I."""


def aligned(new: Heads, old: Heads, inputs: Mapping[str, SecondMoment]) -> dict[str, Tensor]:
    """`new`, turned onto `old` by one rotation, (13); float64.

    `inputs`: the features' moments, of the modalities to align by. Each of these counts alike,
    independently of the number of its rows and the length of its embeddings. Unchanged without any.
    """
    parts = [_agreement(new[name], old[name], moment) for name, moment in sorted(inputs.items())]
    if not parts:
        return {name: weight_EI.double() for name, weight_EI in new.items()}
    left_EE, _, right_EE = torch.linalg.svd(reduce(add, parts))
    rotation_EE = left_EE @ right_EE
    return {name: rotation_EE @ weight_EI.double() for name, weight_EI in new.items()}


def on_principal_axes(heads: Heads, inputs: Mapping[str, SecondMoment]) -> dict[str, Tensor]:
    """`heads`, turned so that the embeddings of all modalities together vary most along the first axis,
    and less along each further one; float64. `inputs`: the features' moments, each counts alike."""
    spread_EE = reduce(
        add, (_spread(heads[name], moment) for name, moment in sorted(inputs.items()))
    )
    axes_EE = with_canonical_signs(torch.linalg.eigh(spread_EE).eigenvectors.flip(1))
    return {name: axes_EE.mT @ weight_EI.double() for name, weight_EI in heads.items()}


def joining_head(
    partner_EJ: Tensor, cross_IJ: Tensor, inputs: SecondMoment, ridge: float
) -> Tensor:
    """The head (E × I, float32) of a new modality whose embeddings are nearest to its partners', (15).

    `cross_IJ`: Σ x_u x_vᵀ of the new modality u with its partner v, over `inputs.count` rows. `ridge`: e, relative
    to the typical variance of the features.
    """
    # W_u = argmin Σ |W x_u − W_v x_v|² + e |W|², so W_u (C + e I) = W_v Xᵀ, with means instead of sums.
    mean_II = inputs.mean_II
    wanted_EI = partner_EJ.double() @ cross_IJ.mT / max(inputs.count, 1)
    floor = ridge * typical_variance(mean_II)
    ridged_II = mean_II + floor * torch.eye(len(mean_II), dtype=mean_II.dtype)
    head_EI: Tensor = torch.linalg.solve(ridged_II, wanted_EI, left=False)
    return head_EI.float()


def _spread(weight_EI: Tensor, moment: SecondMoment) -> Tensor:
    """Second moment of the embeddings (E × E), of trace 1."""
    spread_EE = moment.through(weight_EI).mean_II.double()
    size = float(spread_EE.trace())
    return spread_EE / size if size > 0 else spread_EE


def unit_scale(weight_EI: Tensor, inputs: SecondMoment) -> Tensor:
    """The head times the number that makes the root mean square length of its embeddings 1; float64.

    Lengths are taken off embeddings before they are compared, so no cosine changes; scores of
    versions become comparable. Unchanged if all embeddings are zero.
    """
    weight_EI = weight_EI.double()
    size = _mean_product(weight_EI @ inputs.mean_II, weight_EI)
    return weight_EI / size**0.5 if size > 0 else weight_EI


def _agreement(new_EI: Tensor, old_EI: Tensor, moment: SecondMoment) -> Tensor:
    """W_old S W_newᵀ (E × E), relative to the sizes of both."""
    mean_II = moment.mean_II
    new_EI, old_EI = new_EI.to(mean_II), old_EI.to(mean_II)
    old_moment_EI = old_EI @ mean_II
    crossed_EE = old_moment_EI @ new_EI.mT
    size = (_mean_product(new_EI @ mean_II, new_EI) * _mean_product(old_moment_EI, old_EI)) ** 0.5
    return crossed_EE / size if size > 0 else crossed_EE


def _mean_product(moment_EI: Tensor, weight_EI: Tensor) -> float:
    """tr W S Wᵀ from W S and W: the mean square length of embeddings."""
    return max(float((moment_EI * weight_EI).sum()), 0.0)
