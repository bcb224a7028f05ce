"""What moments of a small dataset reveal: whether a given feature is one of the rows."""

import torch

from workers.model.heads import unit_rows, with_constant
from workers.nullspace.centred import CentredMoments, dataset_moments
from workers.nullspace.moments import pair_moments

ROWS, WIDTH = 20, 30


def outside(moments: CentredMoments, feature_BF: torch.Tensor) -> torch.Tensor:
    """The share of each feature's distance to the mean that lies outside of the span of the rows."""
    centred_BF = feature_BF.double() - moments.first_means_DF[0]
    energies, directions_FF = torch.linalg.eigh(moments.first_FF)
    span_FN = directions_FF[:, energies > 1e-6 * energies[-1]]
    rest_BF = centred_BF - centred_BF @ span_FN @ span_FN.mT
    return rest_BF.norm(dim=1) / centred_BF.norm(dim=1)


def test_rows_of_a_small_dataset_lie_in_the_span_of_its_moments_and_others_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, strangers = (
        unit_rows(torch.randn(ROWS, WIDTH, generator=generator)) for _ in range(3)
    )
    moments = dataset_moments(pair_moments(with_constant(first), with_constant(second)))
    assert float(outside(moments, first).max()) < 1e-3
    assert float(outside(moments, strangers).min()) > 0.3
