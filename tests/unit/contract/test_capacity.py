"""Forecast of how many more datasets fit, from the free shares of a head so far."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmcl.contract.capacity import forecast


def _left(free_shares: list[float]) -> int | None:
    return forecast(free_shares).datasets_left


@settings(max_examples=60)
@given(st.floats(0.15, 1.0), st.floats(0.2, 0.98), st.integers(2, 8))
def test_a_geometric_stream_is_forecast_exactly(start: float, factor: float, seen: int) -> None:
    shares = [start * factor**step for step in range(200)]
    fitting = sum(share >= 0.1 - 1e-12 for share in shares) - seen
    assert _left(shares[:seen]) == max(fitting, 0)


def test_the_forecast_follows_the_latest_datasets() -> None:
    slow_at_last = [1.0, 0.5, 0.4, 0.396, 0.392, 0.388]
    left = _left(slow_at_last)
    assert left is not None
    assert left > 100


def test_a_share_that_ends_on_ten_percent_still_fits() -> None:
    assert _left([0.4, 0.2]) == 1
    # 0.6 of the rest each time, of which rounding makes a little less than one dataset.
    assert _left([0.1 / 0.6 / 0.6, 0.1 / 0.6]) == 1
    assert _left([0.9, 0.3, 0.1]) == 0


@settings(max_examples=60)
@given(st.floats(0.15, 1.0), st.floats(0.2, 0.98), st.integers(2, 8), st.integers(0, 20))
def test_the_share_after_further_datasets_follows_from_what_each_takes(
    start: float, factor: float, seen: int, more: int
) -> None:
    found = forecast([start * factor**step for step in range(seen)])
    assert found.taken_per_dataset == pytest.approx(1 - factor)
    last = start * factor ** (seen - 1)
    after = last * (1 - (found.taken_per_dataset or 0)) ** more
    assert after == pytest.approx(start * factor ** (seen - 1 + more))
