"""Migration of stored vectors: exact where possible, otherwise with the predicted error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.nullspace.migrate import Migration, expected_moment, migration
from workers.nullspace.moments import SecondMoment, no_rows

DOUBLE = torch.float64
FEATURES = 8


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def features(seed: int, count: int = 300) -> torch.Tensor:
    """Unit rows with a falling spectrum, and the constant 1."""
    rows = random(seed, count, FEATURES) * torch.logspace(0, -1.5, FEATURES, dtype=DOUBLE) + 0.1
    rows = torch.nn.functional.normalize(rows, dim=1)
    return torch.cat([rows, torch.ones(count, 1, dtype=DOUBLE)], dim=1)


def moment(rows_BI: torch.Tensor) -> SecondMoment:
    return no_rows(rows_BI.shape[1]).add_rows_(rows_BI)


def of_many(rows_BI: torch.Tensor) -> SecondMoment:
    """The moment of a billion copies of each row, which makes the shrinkage negligible."""
    return SecondMoment(len(rows_BI) * 10**9, moment(rows_BI).sum_II * 10**9)


def heads(seed: int, width: int, step: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    old = random(seed, width, FEATURES + 1)
    return old, old + step * random(seed + 1, width, FEATURES + 1)


def measured_error(
    found: Migration, rows: torch.Tensor, old: torch.Tensor, new: torch.Tensor
) -> float:
    target = rows @ new.mT
    error = found.apply(rows @ old.mT) - target
    return float((error.square().sum() / target.square().sum()).sqrt())


@settings(max_examples=20)
@given(st.integers(0, 500), st.integers(FEATURES + 1, 14))
def test_full_column_rank_migrates_any_row_exactly(seed: int, width: int) -> None:
    old, new = heads(seed, width)
    found = migration(moment(features(seed, count=3)), old, new)
    unseen = random(seed + 9, 50, FEATURES + 1)
    assert (found.exact, found.rank) == (True, FEATURES + 1)
    assert found.predicted_error < 1e-6
    assert measured_error(found, unseen, old, new) < 1e-6


@settings(max_examples=20)
@given(st.integers(0, 500), st.integers(1, FEATURES))
def test_error_on_the_rows_equals_the_measured_one(seed: int, width: int) -> None:
    rows, (old, new) = features(seed), heads(seed, width)
    found = migration(moment(rows), old, new)
    assert not found.exact
    assert found.error_on_rows > 1e-3
    assert found.error_on_rows == pytest.approx(measured_error(found, rows, old, new), rel=1e-6)
    many = migration(of_many(rows), old, new)
    assert many.predicted_error == pytest.approx(many.error_on_rows, rel=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 500), st.integers(1, FEATURES))
def test_of_many_rows_no_other_map_has_a_smaller_error(seed: int, width: int) -> None:
    rows, (old, new) = features(seed), heads(seed, width)
    found = migration(of_many(rows), old, new)
    best = torch.linalg.lstsq(rows @ old.mT, rows @ new.mT).solution.mT
    torch.testing.assert_close(found.map_EE, best, atol=1e-6, rtol=1e-5)
    # The error as method.md has it: tr(W_new S W_newᵀ) − tr(A W_old S W_newᵀ).
    target = moment(rows).through(new).sum_II.trace()
    left = target - (found.map_EE @ old @ moment(rows).sum_II @ new.mT).trace()
    assert found.error_on_rows**2 == pytest.approx(float(left / target), rel=1e-4)


def test_held_out_rows_have_about_the_predicted_error() -> None:
    old, new = heads(1, 5)
    found = migration(moment(features(2, count=2000)), old, new)
    held_out = measured_error(found, features(3, count=1000), old, new)
    assert held_out == pytest.approx(found.predicted_error, rel=0.1)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_few_rows_neither_lose_nor_promise_too_much(count: int) -> None:
    """A least-squares map of fewer rows than E fits them all, and is garbage for all others."""
    old, new = heads(30, 6)
    rows, unseen = features(31, count), features(32, 1000)
    found = migration(moment(rows), old, new)
    error = measured_error(found, unseen, old, new)
    assert found.predicted_error > found.error_on_rows
    assert error < 2 * found.predicted_error
    fitted = torch.linalg.lstsq(rows @ old.mT, rows @ new.mT, driver="gelsd").solution
    change = unseen @ old.mT @ fitted - unseen @ new.mT
    assert error < 0.8 * float(change.norm() / (unseen @ new.mT).norm())


@settings(max_examples=20)
@given(st.integers(0, 500), st.integers(1, 12))
def test_expected_moment_keeps_energy_and_mean(seed: int, count: int) -> None:
    rows = features(seed, count + 1)
    expected_II, mean_II = expected_moment(moment(rows)).sum_II, moment(rows).mean_II
    assert torch.linalg.eigvalsh(expected_II)[0] > -1e-12
    torch.testing.assert_close(expected_II.trace(), mean_II.trace())
    torch.testing.assert_close(expected_II[-1], mean_II[-1])
    torch.testing.assert_close(expected_II[:, -1], mean_II[:, -1])


@pytest.mark.parametrize("count", [3, 6, 12])
def test_expected_moment_is_nearer_to_that_of_gaussian_rows(count: int) -> None:
    scale_F = torch.logspace(0, -0.5, FEATURES, dtype=DOUBLE)
    raw, expected = 0.0, 0.0
    for seed in range(200):
        rows = torch.cat([random(seed, count, FEATURES) * scale_F, torch.ones(count, 1)], dim=1)
        inputs = moment(rows)
        drawn = covariance(expected_moment(inputs).sum_II)
        raw += float((covariance(inputs.mean_II) - scale_F.square().diag()).square().sum())
        expected += float((drawn - scale_F.square().diag()).square().sum())
    assert expected < 0.8 * raw


def covariance(mean_II: torch.Tensor) -> torch.Tensor:
    return mean_II[:-1, :-1] - torch.outer(mean_II[:-1, -1], mean_II[:-1, -1])


def test_a_singular_head_reports_its_rank_and_error() -> None:
    rows, (old, new) = features(6), heads(7, 12)
    old = old.clone()
    old[:, 2] = old[:, 5]
    # Rounding of stored heads must not be mistaken for a direction and blown up.
    old = (old + 1e-9 * random(8, 12, FEATURES + 1)).float()
    found = migration(moment(rows), old, new)
    assert (found.exact, found.rank) == (False, FEATURES)
    assert found.condition < 1e4
    assert 1e-3 < found.predicted_error < 1
    measured = measured_error(found, rows, old.double(), new)
    assert found.error_on_rows == pytest.approx(measured, rel=1e-6)
    assert found.map_EE.norm() < 100


def test_a_head_injective_on_its_data_migrates_that_data() -> None:
    rows = random(9, 40, 3) @ random(10, 3, FEATURES + 1)
    old, new = heads(11, 5)
    found = migration(of_many(rows), old, new)
    assert not found.exact
    assert found.predicted_error < 1e-3
    assert measured_error(found, rows, old, new) < 1e-6


def test_unit_vectors_keep_their_direction() -> None:
    rows, (old, new) = features(12), heads(13, 12)
    stored = torch.nn.functional.normalize(rows @ old.mT, dim=1)
    expected = torch.nn.functional.normalize(rows @ new.mT, dim=1)
    found = migration(moment(rows), old, new)
    torch.testing.assert_close(found.apply_unit(stored), expected, atol=1e-9, rtol=0)
    single = found.apply_unit(stored.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, expected.float(), atol=1e-4, rtol=0)


def test_a_map_that_would_be_garbage_is_refused() -> None:
    rows, (old, new) = moment(features(19)), heads(20, 5)
    nothing = SecondMoment(0, rows.sum_II * 0)
    for inputs, before, after, words in (
        (rows, old * 0, new, "rank 0"),
        (SecondMoment(3, rows.sum_II * 0), old, new, "rank 0"),
        (nothing, old, new, "0 rows"),
        (rows, old * float("nan"), new, "must be finite"),
        (rows, old, new * float("inf"), "must be finite"),
        (rows, old[:, 1:], new, "different widths"),
    ):
        with pytest.raises(ValueError, match=words):
            migration(inputs, before, after)


def test_stored_vectors_that_do_not_fit_are_refused() -> None:
    found = migration(moment(features(21)), *heads(22, 5))
    with pytest.raises(ValueError, match="stored vectors of width 4, not 5"):
        found.apply(torch.ones(2, 4))
    with pytest.raises(ValueError, match="must be finite"):
        found.apply_unit(torch.full((2, 5), float("nan")))
