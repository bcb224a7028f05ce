"""The head of a new modality, from the moments of its first dataset (equation 15)."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.nullspace.centred import CentredMoments, centred
from workers.nullspace.joining import aligned_choice, aligned_head, joining_head
from workers.nullspace.moments import pair_moments


def rows(seed: int, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 1000))
def test_embeddings_of_a_rotated_encoder_are_those_of_the_old_one(seed: int) -> None:
    old_NJ = rows(seed, (200, 6))
    new_NI = old_NJ @ torch.linalg.qr(rows(seed + 1, (6, 6))).Q
    head_EJ = rows(seed + 2, (4, 6))
    moments = pair_moments(new_NI, old_NJ)
    joined_EI = joining_head(head_EJ, moments.cross_IJ, moments.first, 0.003)
    wanted_NE, found_NE = old_NJ @ head_EJ.mT, new_NI @ joined_EI.mT
    assert (found_NE - wanted_NE).norm() < 0.02 * wanted_NE.norm()


@given(seed=st.integers(0, 1000))
def test_no_head_near_it_has_nearer_embeddings(seed: int) -> None:
    old_NJ, new_NI = rows(seed, (40, 5)).double(), rows(seed + 1, (40, 7)).double()
    head_EJ = rows(seed + 2, (3, 5))
    moments = pair_moments(new_NI, old_NJ)
    joined_EI = joining_head(head_EJ, moments.cross_IJ, moments.first, 0.1).double()
    covariance_II = new_NI.mT @ new_NI / 40
    ridge = 0.1 * covariance_II.square().sum() / covariance_II.trace()

    def cost(weight_EI: torch.Tensor) -> float:
        misses_NE = new_NI @ weight_EI.mT - old_NJ @ head_EJ.double().mT
        return float(misses_NE.square().sum() / 40 + ridge * weight_EI.square().sum())

    step_EI = 1e-3 * rows(seed + 3, (3, 7)).double()
    assert cost(joined_EI) < min(cost(joined_EI + step_EI), cost(joined_EI - step_EI))


def test_a_single_row_gives_a_finite_head() -> None:
    moments = pair_moments(torch.ones(1, 4), torch.ones(1, 3))
    joined_EI = joining_head(torch.ones(2, 3), moments.cross_IJ, moments.first, 0.003)
    assert joined_EI.isfinite().all()
    assert (joined_EI @ torch.ones(4) - 3).abs().max() < 0.1


def with_constant(rows_NF: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows_NF, torch.ones(len(rows_NF), 1)], dim=1)


def centred_rows(first_NF: torch.Tensor, second_NG: torch.Tensor) -> CentredMoments:
    return centred(pair_moments(with_constant(first_NF), with_constant(second_NG)), 2.0)


@given(seed=st.integers(0, 1000))
def test_an_aligned_head_gives_the_embeddings_of_the_other_encoder(seed: int) -> None:
    """Also where both encoders have a mean, and the other head a bias."""
    other_NG = rows(seed, (200, 6)) + 3
    own_NF = other_NG @ torch.linalg.qr(rows(seed + 1, (6, 6))).Q - 2
    head_EJ = rows(seed + 2, (4, 7))
    head_EI = aligned_head(head_EJ, centred_rows(own_NF, other_NG), 2.0**-16)
    wanted_NE, found_NE = (
        with_constant(other_NG) @ head_EJ.mT,
        with_constant(own_NF) @ head_EI.mT,
    )
    torch.testing.assert_close(found_NE, wanted_NE, rtol=0, atol=0.01)


def test_the_ridge_grows_with_the_noise_of_the_features() -> None:
    def choice(noise: float) -> tuple[float, float]:
        other_NG = rows(0, (400, 20))
        own_NF = other_NG + noise * rows(1, (400, 20))
        found = aligned_choice(
            (
                centred_rows(own_NF[:200], other_NG[:200]),
                centred_rows(own_NF[200:], other_NG[200:]),
            )
        )
        return found.ridges[0], found.score

    (low, exact), (high, noisy) = choice(0.0), choice(2.0)
    assert low < 1e-3 < high
    assert exact > 0.999
    # Of the variance, 1 / (1 + noise²) can be predicted.
    assert 0.1 < noisy < 0.2


def test_halves_without_variance_choose_the_largest_ridge() -> None:
    constant = centred_rows(torch.ones(9, 3), rows(0, (9, 3)))
    found = aligned_choice((constant, constant))
    assert (found.ridges, found.score) == ((2.0**-4, 2.0**-4), 0.0)
