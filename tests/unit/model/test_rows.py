"""Rows are split into halves by content alone."""

import torch

from workers.model.heads import PairedRows


def rows(count: int, seed: int = 0) -> PairedRows:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-(2**63), 2**63 - 1, (2, count), generator=generator)
    return PairedRows(torch.rand(count, 2), torch.rand(count, 3), keys[0], keys[1])


def test_halves_have_each_row_once_and_about_as_many() -> None:
    whole = rows(10_000)
    first, second = whole.halves()
    assert len(first) + len(second) == 10_000
    assert abs(len(first) - len(second)) < 400
    together = torch.cat([first.first_keys_N, second.first_keys_N]).sort().values
    assert torch.equal(together, whole.first_keys_N.sort().values)


def test_a_row_is_in_the_same_half_wherever_it_is() -> None:
    whole = rows(200)
    order = torch.randperm(200)
    alone = [len(whole.at(slice(row, row + 1)).halves()[0]) for row in range(200)]
    assert len(whole.halves()[0]) == sum(alone)
    shuffled, _ = whole.at(order).halves()
    ours, _ = whole.halves()
    assert torch.equal(shuffled.first_keys_N.sort().values, ours.first_keys_N.sort().values)


def test_rows_that_share_one_side_are_in_both_halves() -> None:
    """A label's text has many rows: the halves would otherwise know different labels."""
    whole = rows(1000)
    one_text = PairedRows(
        whole.first_NI, whole.second_NJ, whole.first_keys_N, torch.full((1000,), 7)
    )
    first, second = one_text.halves()
    assert min(len(first), len(second)) > 400


def test_small_numbers_as_keys_are_spread_too() -> None:
    keys = torch.arange(1000)
    first, second = PairedRows(torch.rand(1000, 2), torch.rand(1000, 2), keys, keys).halves()
    assert min(len(first), len(second)) > 400
