"""Heads that reproduce the embeddings of another modality, in closed form from moments.

Shapes: E width of the embeddings, F and G widths of the two sides' features, I and J with the constant 1.

The other modality's head stays as it is, and so does every score that it has:

    W_u = W_v X_vu (C_u + e I)⁻¹                                                               (15)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.nullspace.centred import CentredMoments
from workers.nullspace.closed_form import NO_VARIANCE, typical_variance
from workers.nullspace.moments import SecondMoment
from workers.nullspace.threads import in_threads
from workers.nullspace.two_folds import Choice

# To choose from, relative to the typical variance. Two encoders of the same items agree far more than two modalities
# do, so these reach far below the ridges of `two_folds`.
_RIDGES = tuple(2.0**-step for step in range(4, 17))


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


def aligned_head(partner_EJ: Tensor, moments: CentredMoments, ridge: float) -> Tensor:
    """The head (E × I, float32) of the first side whose embeddings are nearest to those of the second, (15) about means.

    `ridge`: relative to the typical variance of the first side.
    """
    weight_EG, bias_E = partner_EJ[:, :-1].double(), partner_EJ[:, -1].double()
    weight = moments.weight
    mean_F, mean_G = moments.first_mean_F / weight, moments.second_mean_G / weight
    ridged_FF = moments.first_FF.clone()
    ridged_FF.diagonal().add_(ridge * typical_variance(moments.first_FF))
    wanted_FE = moments.cross_FG @ weight_EG.mT
    head_EF = torch.cholesky_solve(wanted_FE, torch.linalg.cholesky(ridged_FF)).mT
    # The mean of one side has the embedding of the mean of the other.
    own_E = weight_EG @ mean_G + bias_E - head_EF @ mean_F
    return torch.cat([head_EF, own_E[:, None]], dim=1).float()


def aligned_choice(halves: tuple[CentredMoments, CentredMoments]) -> Choice:
    """The ridge with which the features of the first side predict those of the second best, from one half to the other.

    For both sides; the score is the share of the second side's variance that is predicted. The largest ridge, with score
    0, if a half does not vary.
    """
    if any(
        half.weight <= 0 or float(side.trace()) <= half.weight * NO_VARIANCE
        for half in halves
        for side in (half.first_FF, half.second_GG)
    ):
        return Choice((_RIDGES[0], _RIDGES[0]), 0.0)
    one, other = in_threads(lambda fold: _errors(*fold), (halves, halves[::-1]))
    errors = [(first + second) / 2 for first, second in zip(one, other, strict=True)]
    best = min(range(len(_RIDGES)), key=errors.__getitem__)
    return Choice((_RIDGES[best], _RIDGES[best]), 1 - errors[best])


def _errors(here: CentredMoments, there: CentredMoments) -> Sequence[float]:
    """By ridge, the mean square error on `there` of predictions that are solved from `here`, relative to the variance."""
    values_S, vectors_FS = torch.linalg.eigh(here.first_FF / here.weight)
    cross_SG = vectors_FS.mT @ here.cross_FG / here.weight
    # Of the other half about the means of this one.
    first_F = there.first_mean_F / there.weight - here.first_mean_F / here.weight
    second_G = there.second_mean_G / there.weight - here.second_mean_G / here.weight
    first_SS = vectors_FS.mT @ (there.first_FF / there.weight + first_F.outer(first_F)) @ vectors_FS
    pairs_SG = vectors_FS.mT @ (there.cross_FG / there.weight + first_F.outer(second_G))
    variance = float(there.second_GG.trace() / there.weight + second_G.square().sum())
    # With P = D X and D = (s + e)⁻¹: E |y − Pᵀ x|² = E |y|² − 2 tr(Pᵀ E x yᵀ) + tr(Pᵀ E x xᵀ P).
    agreement_S = (cross_SG * pairs_SG).sum(1)
    size_SS = first_SS * (cross_SG @ cross_SG.mT)
    typical = typical_variance(here.first_FF) / here.weight
    found = []
    for ridge in _RIDGES:
        scale_S = 1 / (values_S.clamp(min=0) + ridge * typical)
        error = variance - 2 * float(scale_S @ agreement_S) + float(scale_S @ size_SS @ scale_S)
        found.append(error / variance)
    return found
