"""Which rows are held out: always the same ones, and never a copy of what is trained on."""

import numpy as np
import pyarrow as pa

from workers.prepare.features import held_out_rows

VALUES_BI = np.random.default_rng(3).normal(size=(4000, 4)).astype(np.float32)


def held_out(values_BI: np.ndarray, share: float) -> np.ndarray:
    flat = pa.array(values_BI.reshape(-1))
    return held_out_rows(pa.FixedSizeListArray.from_arrays(flat, values_BI.shape[1]), share)


def test_about_the_share_is_held_out_and_a_larger_share_holds_out_the_same_and_more() -> None:
    before_B = np.zeros(4000, bool)
    for share in (0.01, 0.1, 0.5):
        rows_B = held_out(VALUES_BI, share)
        # Four standard deviations of a fair draw.
        assert abs(rows_B.mean() - share) < 4 * np.sqrt(share * (1 - share) / 4000)
        assert not (before_B & ~rows_B).any()
        before_B = rows_B


def test_held_out_rows_do_not_depend_on_order_or_other_rows_and_equal_ones_stay_together() -> None:
    chosen_B = held_out(VALUES_BI, 0.2)
    order_B = np.random.default_rng(4).permutation(4000)
    assert np.array_equal(held_out(VALUES_BI[order_B], 0.2), chosen_B[order_B])
    assert np.array_equal(held_out(VALUES_BI[1000:1100], 0.2), chosen_B[1000:1100])
    assert np.array_equal(held_out(np.repeat(VALUES_BI, 5, axis=0), 0.2), np.repeat(chosen_B, 5))


def test_the_held_out_rows_never_change() -> None:
    # A new release that chose others would train on what older versions were measured on.
    values_BI = np.arange(400, dtype=np.float32).reshape(100, 4)
    expected = [7, 14, 35, 36, 39, 48, 65, 81, 95]
    assert np.flatnonzero(held_out(values_BI, 0.1)).tolist() == expected


def test_equal_numbers_choose_alike_in_float16_and_with_negative_zero() -> None:
    halves_BI = VALUES_BI.astype(np.float16)
    halves_BI[:, 0] = 0.0
    negative_BI = halves_BI.copy()
    negative_BI[:, 0] = -0.0
    chosen_B = held_out(halves_BI, 0.2)
    assert np.array_equal(chosen_B, held_out(halves_BI.astype(np.float32), 0.2))
    assert np.array_equal(chosen_B, held_out(negative_BI, 0.2))
