"""Ridges are chosen by a score on rows that heads were not solved from, exact from moments."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workers.nullspace.centred import CentredMoments, centred, pooled
from workers.nullspace.closed_form import solve
from workers.nullspace.moments import pair_moments
from workers.nullspace.two_folds import RIDGES, Choice, best_choice, climbed, score_on

PAIR = ("image", "text")


def sides_of(seed: int, rows: int, noise: tuple[float, float] = (0.5, 0.5)) -> list[Tensor]:
    """Both sides come from the same five numbers, with noise of a size of its own."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 5, generator=generator)
    sides = []
    for width, size in zip((30, 20), noise, strict=True):
        mixing = torch.randn(5, width, generator=torch.Generator().manual_seed(width))
        side = shared @ mixing + 3 + size * torch.randn(rows, width, generator=generator)
        sides.append(torch.cat([side / 10, torch.ones(rows, 1)], dim=1))
    return sides


def half(sides: list[Tensor], number: int) -> CentredMoments:
    return centred(pair_moments(sides[0][number::2], sides[1][number::2]), 1.0)


def choice(sides: list[Tensor]) -> Choice:
    return best_choice((half(sides, 0), half(sides, 1)))


def score_of_rows(sides: list[Tensor], ridges: dict[str, float], number: int) -> float:
    """(12) by brute force: heads of one half, scores of all row combinations of the other."""
    moments = pooled({PAIR: half(sides, number)})
    (group,) = solve(moments, ridges, 20, torch.float64, tolerance=1e-8).groups
    heads = group.weights(group.scaling(20))
    first, second = (side[1 - number :: 2].double() for side in sides)
    scores_NN = (first @ heads["image"].mT) @ (second @ heads["text"].mT).mT
    return float(scores_NN.diagonal().mean() ** 2 / scores_NN.square().mean())


def test_the_score_is_that_of_the_rows() -> None:
    sides = sides_of(1, 300)
    found = choice(sides)
    ridges = dict(zip(PAIR, found.ridges, strict=True))
    expected = [score_of_rows(sides, ridges, number) for number in (0, 1)]
    assert found.score == pytest.approx(sum(expected) / 2, rel=1e-3)


def test_no_ridges_around_the_choice_score_better_on_rows() -> None:
    sides = sides_of(2, 120)
    found = choice(sides)

    def score(first: float, second: float) -> float:
        ridges = {"image": first, "text": second}
        return sum(score_of_rows(sides, ridges, number) for number in (0, 1))

    best = score(*found.ridges)
    for factors in ((2, 1), (0.5, 1), (1, 2), (1, 0.5)):
        around = [ridge * factor for ridge, factor in zip(found.ridges, factors, strict=True)]
        if all(RIDGES[0] <= ridge <= RIDGES[-1] for ridge in around):
            assert score(*around) <= best * (1 + 1e-3)


def test_the_noisier_side_gets_the_larger_ridge() -> None:
    first, second = choice(sides_of(3, 80, (3.0, 0.1))).ridges
    assert first > second
    first, second = choice(sides_of(3, 80, (0.1, 3.0))).ridges
    assert first < second


def test_fewer_rows_get_no_smaller_ridges() -> None:
    few, many = choice(sides_of(4, 40, (2.0, 2.0))), choice(sides_of(4, 4000, (2.0, 2.0)))
    assert all(one >= other for one, other in zip(few.ridges, many.ridges, strict=True))


@pytest.mark.parametrize("rows", [0, 1])
def test_a_half_without_rows_or_variance_leaves_the_start(rows: int) -> None:
    sides = sides_of(5, 50)
    empty = centred(pair_moments(sides[0][:rows], sides[1][:rows]), 1.0)
    assert best_choice((half(sides, 0), empty)) == Choice((0.02, 0.02), 0.0, 1)


@pytest.mark.parametrize(("classes", "count"), [(3, 2), (10, 12), (40, 48)])
def test_classes_agree_in_one_direction_less_than_there_are(classes: int, count: int) -> None:
    """And not in those in which the rows of a half agree by chance."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(1200) % classes
    names = torch.randn(classes, 60, generator=generator)
    images = names[labels] + torch.randn(1200, 60, generator=generator)
    sides = [torch.cat([each, torch.ones(1200, 1)], dim=1) for each in (images, names[labels])]
    by_class = [
        centred(pair_moments(*(side[rows] for side in sides)), 1.0)
        for rows in (torch.arange(1200) // classes % 2 == number for number in (0, 1))
    ]
    assert best_choice((by_class[0], by_class[1])).significant == count


def test_more_directions_than_are_counted_are_no_limit() -> None:
    generator = torch.Generator().manual_seed(7)
    first = torch.randn(4000, 400, generator=generator)
    sides = [torch.cat([first, torch.ones(4000, 1)], dim=1)] * 2
    assert choice(sides).significant is None


@pytest.mark.parametrize(("rows", "count"), [(40, 48), (100, 128), (140, None)])
def test_of_few_rows_all_directions_that_vary_are_significant(rows: int, count: int | None) -> None:
    """A half of them has fewer directions, and may agree by chance in none."""
    generator = torch.Generator().manual_seed(rows)
    first, second = (torch.randn(rows, 200, generator=generator) for _ in range(2))
    for other in (first, second):
        sides = [torch.cat([side, torch.ones(rows, 1)], dim=1) for side in (first, other)]
        assert choice(sides).significant == count


@pytest.mark.parametrize("seed", range(4))
def test_sides_that_do_not_agree_have_one_direction(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sides = [
        torch.cat([torch.randn(600, 200, generator=generator), torch.ones(600, 1)], dim=1)
        for _ in range(2)
    ]
    assert choice(sides).significant == 1


@given(*[st.integers(0, 9)] * 4)
def test_the_climb_ends_at_the_only_maximum(one: int, other: int, top: int, peak: int) -> None:
    asked = []

    def score_of(steps: tuple[int, int]) -> float:
        asked.append(steps)
        return -abs(steps[0] - top) - 2 * abs(steps[1] - peak)

    assert climbed(score_of, (one, other), 10) == ((top, peak), 0)
    assert len(asked) == len(set(asked))


def test_of_equal_scores_the_start_stays() -> None:
    assert climbed(lambda _: 1.0, (4, 4), 9) == ((4, 4), 1.0)


def heads_of(moments: CentredMoments, found: Choice) -> dict[str, Tensor]:
    """Heads of one half in the significant directions, without the constant."""
    ridges = dict(zip(PAIR, found.ridges, strict=True))
    (group,) = solve(pooled({PAIR: moments}), ridges, 20, torch.float64, tolerance=1e-8).groups
    heads = group.weights(group.scaling(20))
    return {name: head_KI[: found.significant, :-1] for name, head_KI in heads.items()}


def test_the_correlation_of_the_halves_is_that_of_the_scores_of_all_rows() -> None:
    sides = sides_of(1, 300)
    found = choice(sides)
    first, second = (side[:, :-1].double() - side[:, :-1].double().mean(0) for side in sides)
    one, other = (
        (first @ heads["image"].mT) @ (second @ heads["text"].mT).mT
        for heads in (heads_of(half(sides, number), found) for number in (0, 1))
    )
    size = (one.square().sum() * other.square().sum()).sqrt()
    assert found.correlation == pytest.approx(float((one * other).sum() / size), abs=5e-3)


def test_halves_of_fewer_rows_correlate_less_so_that_chance_leaves_more() -> None:
    few, many = (choice(sides_of(4, rows, (2.0, 2.0))).correlation for rows in (60, 4000))
    assert few is not None
    assert many is not None
    assert few < many < 1


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_shuffled_pairs_agree_less_by_their_share(share: float) -> None:
    earlier, (first, second) = half(sides_of(8, 2000), 0), sides_of(9, 1000)
    clean = score_on(earlier, (0.02, 0.02), centred(pair_moments(first, second), 1.0))
    partners = torch.arange(1000)
    partners[: round(1000 * share)] = partners[: round(1000 * share)].roll(1)
    shuffled = score_on(earlier, (0.02, 0.02), centred(pair_moments(first, second[partners]), 1.0))
    assert shuffled**0.5 == pytest.approx((1 - share) * clean**0.5, abs=3 / 1000**0.5)


def test_nothing_agrees_with_rows_that_do_not_vary() -> None:
    sides = sides_of(5, 50)
    empty = centred(pair_moments(*(side[:1] for side in sides)), 1.0)
    for pair in ((half(sides, 0), empty), (empty, half(sides, 0))):
        assert score_on(pair[0], (0.02, 0.02), pair[1]) == 0
