"""Which rows are held out: always the same ones, and never a copy of what is trained on."""

import numpy as np
import pyarrow as pa
import pytest

from workers.prepare.features import held_out_rows


def feature_a(values_BI: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_BI.reshape(-1)), values_BI.shape[1])


def random_values(rows: int = 4000, kind: type = np.float32) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(rows, 4)).astype(kind)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_about_the_share_is_held_out(share: float) -> None:
    rows = held_out_rows(feature_a(random_values()), share)
    # Four standard deviations of a fair draw.
    assert abs(rows.mean() - share) < 4 * np.sqrt(share * (1 - share) / 4000)


def test_held_out_rows_do_not_depend_on_order_or_other_rows() -> None:
    values_BI = random_values()
    chosen_B = held_out_rows(feature_a(values_BI), 0.2)
    order_B = np.random.default_rng(4).permutation(4000)
    assert np.array_equal(held_out_rows(feature_a(values_BI[order_B]), 0.2), chosen_B[order_B])
    assert np.array_equal(held_out_rows(feature_a(values_BI[1000:1100]), 0.2), chosen_B[1000:1100])


def test_the_held_out_rows_never_change() -> None:
    # A new release that chose others would train on what older versions were measured on.
    values_BI = np.arange(400, dtype=np.float32).reshape(100, 4)
    assert np.flatnonzero(held_out_rows(feature_a(values_BI), 0.1)).tolist() == [
        7,
        14,
        35,
        36,
        39,
        48,
        65,
        81,
        95,
    ]


def test_a_larger_share_holds_out_the_same_and_more() -> None:
    values = feature_a(random_values())
    small_B, large_B = (held_out_rows(values, share) for share in (0.1, 0.3))
    assert not (small_B & ~large_B).any()
    assert large_B.sum() > small_B.sum()


def test_equal_features_stay_together() -> None:
    values_BI = np.repeat(random_values(800), 5, axis=0)
    chosen_B = held_out_rows(feature_a(values_BI), 0.3)
    assert set(chosen_B.reshape(800, 5).sum(axis=1).tolist()) == {0, 5}


def test_float16_and_float32_of_the_same_number_choose_alike() -> None:
    halves_BI = random_values(kind=np.float16)
    assert np.array_equal(
        held_out_rows(feature_a(halves_BI), 0.2),
        held_out_rows(feature_a(halves_BI.astype(np.float32)), 0.2),
    )


def test_negative_zero_is_zero() -> None:
    zeros_BI = random_values()
    zeros_BI[:, 0] = 0.0
    negative_BI = zeros_BI.copy()
    negative_BI[:, 0] = -0.0
    assert np.array_equal(
        held_out_rows(feature_a(zeros_BI), 0.2), held_out_rows(feature_a(negative_BI), 0.2)
    )
