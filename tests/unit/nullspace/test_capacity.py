"""How full a head is, and the forecast from how it filled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.nullspace.capacity import EnergyRanks, capacity, datasets_left, energy_ranks
from workers.nullspace.subspace import EigenBasis, identity_basis


def spectrum(*values: float) -> EigenBasis:
    return EigenBasis(
        torch.eye(len(values), dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    )


def test_ranks_count_the_directions_that_hold_the_energy() -> None:
    assert energy_ranks(spectrum(88, 5, 3, 3, 1)) == EnergyRanks(2, 3, 4, width=5)
    assert energy_ranks(identity_basis(4)) == EnergyRanks(0, 0, 0, width=4)


def test_blocked_share_is_counted_from_the_mask() -> None:
    free = torch.ones(2, 4, dtype=torch.bool)
    free[0, :3] = False
    state = capacity(spectrum(1, 0), spectrum(1, 1, 1, 0), free, [1.0, 0.625])
    assert state.blocked_share == 3 / 8
    assert (state.outputs.at_99, state.inputs.at_99) == (1, 3)
    assert state.datasets_left == datasets_left([1.0, 0.625])


@settings(max_examples=60)
@given(st.floats(0.15, 1.0), st.floats(0.2, 0.98), st.integers(2, 8))
def test_a_geometric_stream_is_forecast_exactly(start: float, factor: float, seen: int) -> None:
    shares = [start * factor**step for step in range(200)]
    fitting = sum(share >= 0.1 - 1e-12 for share in shares) - seen
    assert datasets_left(shares[:seen]) == max(fitting, 0)


def test_the_forecast_follows_the_latest_datasets() -> None:
    slow_at_last = [1.0, 0.5, 0.4, 0.396, 0.392, 0.388]
    left = datasets_left(slow_at_last)
    assert left is not None
    assert left > 100


def test_a_full_head_has_room_for_none() -> None:
    assert datasets_left([0.3, 0.09]) == 0
    assert datasets_left([0.0]) == 0


@pytest.mark.parametrize("shares", [[], [0.7], [0.7, 0.7], [0.5, 0.6], [0.6, 0.59999]])
def test_no_fall_gives_no_forecast(shares: list[float]) -> None:
    assert datasets_left(shares) is None


def test_a_share_that_ends_on_ten_percent_still_fits() -> None:
    assert datasets_left([0.4, 0.2]) == 1
    # 0.6 of the rest each time, of which rounding makes a little less than one dataset.
    assert datasets_left([0.1 / 0.6 / 0.6, 0.1 / 0.6]) == 1
    assert datasets_left([0.9, 0.3, 0.1]) == 0


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="it must be from 0 to 1"):
        datasets_left([share, 0.5])


def test_a_mask_of_another_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask of \(2, 2\), spectra of \(2, 3\)"):
        capacity(identity_basis(2), identity_basis(3), torch.ones(2, 2, dtype=torch.bool), [])
