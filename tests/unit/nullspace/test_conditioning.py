"""Conditioning centres and mildly whitens by one dataset's moments, for any dataset."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.nullspace.conditioning import NARROW_CONE, centring, conditioning
from workers.nullspace.moments import SecondMoment, moment_about, no_rows

DOUBLE = torch.float64


def cone(seed: int, count: int = 200, width: int = 8) -> torch.Tensor:
    """Unit rows around a common direction, with a spread that differs by column."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.05, 1, width, dtype=DOUBLE)
    rows = torch.randn(count, width, generator=generator, dtype=DOUBLE) * spread + 2
    return torch.nn.functional.normalize(rows, dim=1)


def homogeneous_moment(unit_BF: torch.Tensor) -> SecondMoment:
    rows = torch.cat([unit_BF, unit_BF.new_ones(len(unit_BF), 1)], dim=1)
    return no_rows(rows.shape[1]).add_rows_(rows)


def conditioned_by_itself(unit_BF: torch.Tensor, ridge: float = 0.3) -> torch.Tensor:
    return conditioning(homogeneous_moment(unit_BF), ridge)(unit_BF)


def covariance(rows_BF: torch.Tensor) -> torch.Tensor:
    return torch.cov(rows_BF.mT.double(), correction=0)


def assert_unit(rows_BF: torch.Tensor) -> None:
    torch.testing.assert_close(
        rows_BF.double().norm(dim=1), torch.ones(len(rows_BF), dtype=DOUBLE), atol=2e-3, rtol=0
    )


@settings(max_examples=20)
@given(st.integers(0, 500), st.floats(0.01, 1.0))
def test_a_variance_comes_out_as_itself_over_itself_plus_floor(seed: int, ridge: float) -> None:
    unit = cone(seed)
    fitted = conditioning(homogeneous_moment(unit), ridge)
    whitened = (unit - fitted.mean_F.double()) @ fitted.map.double()
    before = torch.linalg.eigvalsh(covariance(unit))
    expected = before / (before + ridge * before.max())
    after = torch.linalg.eigvalsh(covariance(whitened))
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whitened.mean(0), torch.zeros(8, dtype=DOUBLE), atol=1e-5, rtol=0)


@settings(max_examples=20)
@given(st.integers(0, 500))
def test_rotated_features_come_out_rotated(seed: int) -> None:
    unit = cone(seed)
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=DOUBLE)).Q
    torch.testing.assert_close(
        conditioned_by_itself(unit @ turn), conditioned_by_itself(unit) @ turn, atol=2e-5, rtol=0
    )


def test_conditioned_rows_of_a_cone_point_everywhere() -> None:
    unit = cone(1)
    conditioned = conditioned_by_itself(unit)
    assert (unit @ unit.mT).mean() > 0.7
    assert (conditioned @ conditioned.mT).mean().abs() < 0.05
    assert_unit(conditioned)


@settings(max_examples=20)
@given(st.permutations(range(4)))
def test_order_of_shards_changes_nothing(order: list[int]) -> None:
    shards = [homogeneous_moment(shard) for shard in cone(2).float().chunk(4)]
    total = SecondMoment(0, torch.zeros(9, 9, dtype=DOUBLE))
    for index in order:
        total = total + shards[index]
    one = conditioning(total, 0.1)
    other = conditioning(homogeneous_moment(cone(2).float()), 0.1)
    torch.testing.assert_close(one.map, other.map, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(one.mean_F, other.mean_F, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 7, 2000])
def test_rows_without_spread_are_left_as_they_are(count: int) -> None:
    """Also in float32, if products are of what rows differ by."""
    unit = cone(6, count=1).float().expand(count, -1)
    ones_B1 = torch.ones(count, 1)
    shift_I = torch.cat([unit[0], torch.zeros(1)])
    fitted = conditioning(moment_about(torch.cat([unit, ones_B1], dim=1), shift_I), 0.01)
    torch.testing.assert_close(fitted(unit), unit)


def test_variances_that_rounding_made_negative_give_no_nan() -> None:
    line = torch.outer(
        torch.randn(200, generator=torch.Generator().manual_seed(7)), torch.eye(8)[0]
    )
    unit = torch.nn.functional.normalize(torch.ones(8) + 0.04 * line, dim=1).double()
    moment = homogeneous_moment(unit)
    # What products of float32 rows may take away; the floor is at 2e-7.
    moment.sum_II[:-1, :-1] -= 1e-6 * moment.count * torch.eye(8)
    fitted = conditioning(moment, 1e-3)
    assert not torch.equal(fitted.map, torch.eye(8))
    assert_unit(fitted(unit))


def test_constant_columns_do_no_harm() -> None:
    unit = cone(8)
    unit = torch.nn.functional.normalize(torch.cat([unit, torch.zeros(200, 2)], dim=1), dim=1)
    conditioned = conditioned_by_itself(unit)
    torch.testing.assert_close(
        conditioned[:, :8], conditioned_by_itself(cone(8)), atol=1e-5, rtol=0
    )
    assert (conditioned[:, 8:].abs() < 1e-6).all()


def test_a_row_on_the_mean_has_no_direction() -> None:
    fitted = conditioning(homogeneous_moment(cone(9)), 0.1)
    for rows in (fitted.mean_F, fitted.mean_F * (1 + 1e-7), fitted.mean_F.double()):
        assert torch.equal(fitted(rows[None]), torch.zeros_like(rows[None]))


def test_huge_float16_features_do_not_overflow() -> None:
    raw = (cone(10) * 60_000).half()
    unit = torch.nn.functional.normalize(raw.float(), dim=1).half()
    fitted = conditioning(homogeneous_moment(unit.float()), 0.01)
    assert fitted(unit).dtype == torch.float16
    assert_unit(fitted(unit))
    assert_unit(fitted(raw))
    torch.testing.assert_close(fitted(unit).float(), fitted(unit.float()), atol=1e-3, rtol=0)


def test_moments_that_cannot_condition_are_refused() -> None:
    moment = homogeneous_moment(cone(12))
    with pytest.raises(ValueError, match="0 rows"):
        conditioning(SecondMoment(0, moment.sum_II * 0), 0.1)
    with pytest.raises(ValueError, match="not finite"):
        conditioning(SecondMoment(200, moment.sum_II * float("nan")), 0.1)
    with pytest.raises(ValueError, match="the last column must be 1"):
        conditioning(SecondMoment(200, moment.sum_II * 2), 0.1)


def test_features_in_a_narrow_cone_are_read_about_their_mean_at_unit_spread() -> None:
    unit = cone(13)
    assert unit.mean(0).square().sum() > NARROW_CONE
    read = centring(homogeneous_moment(unit))(unit)
    torch.testing.assert_close(read.mean(0), torch.zeros(8, dtype=DOUBLE), atol=1e-5, rtol=0)
    assert float(read.square().sum(1).mean()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 3.0, 30.0])
def test_a_constant_that_an_encoder_adds_does_not_change_what_is_read(constant: float) -> None:
    """Only the direction of the constant is lost, in which rows of unit length no longer differ."""
    rows = torch.randn(200, 40, generator=torch.Generator().manual_seed(16), dtype=DOUBLE)
    direction = torch.zeros(40, dtype=DOUBLE)
    direction[0] = 1.0

    def read(added: float) -> torch.Tensor:
        unit = torch.nn.functional.normalize(
            torch.nn.functional.normalize(rows, dim=1) + added * direction, dim=1
        )
        return centring(homogeneous_moment(unit))(unit)[:, 1:]

    one, other = read(10.0), read(10.0 + constant)
    torch.testing.assert_close(one, other, atol=0.05, rtol=0)
