"""InfoNCE on rows that are drawn from moments, in a few directions."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from workers.methods.polish import (
    Polished,
    PolishSettings,
    ReducedPair,
    _AdamState,
    _gradients,
    _info_nce,
    _samplers,
    polished,
    reduced,
    weights,
    with_constant,
)
from workers.model.loss import symmetric_info_nce, unit
from workers.nullspace.centred import CentredMoments, centred, pooled
from workers.nullspace.closed_form import Directions, solve, whitened
from workers.nullspace.moments import pair_moments

PAIR = ("image", "text")
SETTINGS = PolishSettings(
    updates=40, most_updates=200, learning_rate=3e-3, batch_size=32, temperature=0.1, seed=0
)


def sides(seed: int = 0, rows: int = 400) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    found = []
    for width in (9, 7):
        mixing = torch.randn(5, width, generator=torch.Generator().manual_seed(width)).double()
        noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        side = shared @ mixing + 0.5 * noise + 3
        found.append(torch.cat([side, torch.ones(rows, 1, dtype=torch.float64)], dim=1))
    return found


MOMENTS: CentredMoments = centred(pair_moments(*sides()), weight=20.0)
TWICE = MOMENTS + MOMENTS
(GROUP,) = solve(pooled({PAIR: MOMENTS}), dict.fromkeys(PAIR, 0.01), 5, torch.float64).groups


def start(width: int = 3) -> dict[str, torch.Tensor]:
    return {name: with_constant(GROUP.scaling(width)) for name in PAIR}


def loss_of(mixing: dict[str, torch.Tensor]) -> float:
    """InfoNCE of fresh rows."""
    heads = weights(GROUP, mixing)
    embeddings = [
        torch.nn.functional.normalize(side @ heads[name].mT, dim=1)
        for name, side in zip(PAIR, sides(seed=1, rows=64), strict=True)
    ]
    scores = embeddings[0] @ embeddings[1].mT / SETTINGS.temperature
    target = torch.arange(64)
    both = [torch.nn.functional.cross_entropy(way, target) for way in (scores, scores.mT)]
    return float(sum(both)) / 2


def in_directions(seed: int = 0) -> list[torch.Tensor]:
    """Rows of both sides in the directions of the group (N × K)."""
    return [
        (side[:, :-1] - GROUP.means[name]) @ GROUP.heads[name].mT
        for name, side in zip(PAIR, sides(seed), strict=True)
    ]


def test_reduced_moments_are_those_of_reduced_rows_and_the_ridge() -> None:
    found, rows = reduced(PAIR, MOMENTS, GROUP), torch.cat(in_directions(), dim=1)
    ridges = [GROUP.ridges[name] * GROUP.heads[name] @ GROUP.heads[name].mT for name in PAIR]
    expected = rows.mT.cov(correction=0) + torch.block_diag(*ridges)
    torch.testing.assert_close(found.covariance_LL, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.means_DL, rows.mean(0, keepdim=True))


def test_means_of_embeddings_are_those_of_rows() -> None:
    """Of the embeddings under the mixing, and of these with those of other heads."""
    mixing = torch.randn(3, 6, generator=torch.Generator().manual_seed(5)).double()
    old = torch.randn(3, 10, generator=torch.Generator().manual_seed(6))
    side = reduced(PAIR, TWICE, GROUP).sides[0]
    rows = sides()[0]
    new = rows @ weights(GROUP, {"image": mixing})["image"].mT
    spread, agreement = new.mT @ new / len(rows), (rows @ old.double().mT).mT @ new / len(rows)
    found = side.spread(GROUP.heads["image"], mixing), side.agreement(old, mixing)
    torch.testing.assert_close(found, (spread, agreement), rtol=1e-5, atol=1e-4)


def random_pair() -> ReducedPair:
    """Two datasets in five directions, in which the sides have no simple form."""
    random = torch.Generator().manual_seed(0)
    root_LL = torch.randn(10, 10, generator=random, dtype=torch.float64)
    means_DL = 10 * torch.randn(2, 10, generator=random, dtype=torch.float64)
    return replace(
        reduced(PAIR, TWICE, GROUP), covariance_LL=root_LL @ root_LL.mT, means_DL=means_DL
    )


def canonical_correlations(pair: ReducedPair) -> torch.Tensor:
    covariance = pair.covariance_LL
    roots = [torch.linalg.cholesky(covariance[at, at]) for at in (slice(5), slice(5, 10))]
    return torch.linalg.svdvals(whitened(covariance[:5, 5:], roots[0], roots[1]))


def test_rows_are_drawn_about_the_means_of_their_dataset_with_the_moments_of_the_pair() -> None:
    pair, random = random_pair(), torch.Generator().manual_seed(1)
    for sampler, mean in zip(_samplers(pair), pair.means_DL, strict=True):
        sides = sampler.draw(200_000, random)
        assert all(bool((side[:, -1] == 1).all()) for side in sides)
        rows = torch.cat([side[:, :-1] for side in sides], dim=1).double()
        near = 0.03 * float(pair.covariance_LL.diagonal().max())
        torch.testing.assert_close(rows.mean(0), mean, rtol=0, atol=near)
        torch.testing.assert_close(rows.mT.cov(), pair.covariance_LL, rtol=0, atol=near)


def test_gradients_are_those_of_symmetric_info_nce() -> None:
    random = torch.Generator().manual_seed(3)
    rows = tuple(torch.randn(16, 6, generator=random, dtype=torch.float64) for _ in range(2))
    rows[0][3] = 0
    mixing = [
        torch.randn(4, 6, generator=random, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    ]
    embeddings = [unit(row @ each.mT) for row, each in zip(rows, mixing, strict=True)]
    alone = torch.eye(16, dtype=torch.bool)
    loss = symmetric_info_nce((embeddings[0], embeddings[1]), alone, SETTINGS.temperature)
    expected = torch.autograd.grad(loss, mixing)
    first, second = (each.detach() for each in mixing)
    scores, found = _gradients((rows[0], rows[1]), (first, second), SETTINGS.temperature)
    assert _info_nce(scores) == pytest.approx(float(loss.detach()))
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize("count", [0, 2])
def test_a_limited_pair_has_its_leading_correlations_and_varies_as_before(count: int) -> None:
    pair = random_pair()
    limited, expected = pair.limited(count), canonical_correlations(pair)
    expected[count:] = 0
    torch.testing.assert_close(canonical_correlations(limited), expected, rtol=0, atol=0.02)
    for side in (slice(5), slice(5, 10)):
        assert torch.equal(limited.covariance_LL[side, side], pair.covariance_LL[side, side])
    assert pair.limited(5) is pair


def test_datasets_that_share_a_side_are_in_one_order_whatever_rounding_says() -> None:
    """Their means on that side differ by rounding alone, and decide the order of sums."""
    one, other = TWICE.first_means_DF[0], TWICE.second_means_DG[0]
    found = []
    for tiny in (1e-9, -1e-9):
        means = torch.stack([one, one + tiny])
        partners = torch.stack([other, other + 1])
        order = means[:, 0].argsort()
        moments = replace(TWICE, first_means_DF=means[order], second_means_DG=partners[order])
        found.append(reduced(PAIR, moments, GROUP).means_DL)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_heads_apply_the_mixing_to_centred_directions() -> None:
    mixing = {
        name: torch.randn(3, 6, generator=torch.Generator().manual_seed(5)).double()
        for name in PAIR
    }
    image = sides()[0]
    directions = (image[:, :-1] - GROUP.means["image"]) @ GROUP.heads["image"].mT
    expected = directions @ mixing["image"][:, :-1].mT + mixing["image"][:, -1]
    torch.testing.assert_close(image @ weights(GROUP, mixing)["image"].mT, expected)


def polish(settings: PolishSettings = SETTINGS) -> Polished:
    return polished(start(), [reduced(PAIR, TWICE, GROUP)], settings)


def test_polishing_lowers_the_loss_of_fresh_rows() -> None:
    """From a start that mixes all directions, the last of which agree least."""
    mixed = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()
    bad = {name: with_constant(mixed) for name in PAIR}
    settings = replace(SETTINGS, updates=100, learning_rate=1e-2)
    found = polished(bad, [reduced(PAIR, TWICE, GROUP)], settings)
    assert found.updates == 200, "100 for each of the two datasets that the pair stands for"
    assert loss_of(found.mixing) < loss_of(bad) - 0.2


def test_equal_moments_and_seeds_give_equal_bits() -> None:
    one, other = polish(), polish()
    assert all(torch.equal(one.mixing[name], other.mixing[name]) for name in PAIR)


@pytest.mark.parametrize(
    ("pairs", "settings"),
    [([], SETTINGS), ([reduced(PAIR, MOMENTS, GROUP)], replace(SETTINGS, updates=0))],
)
def test_without_an_update_the_start_stays(
    pairs: list[ReducedPair], settings: PolishSettings
) -> None:
    found = polished(start(), pairs, settings)
    assert found.updates == 0
    assert all(torch.equal(found.mixing[name], start()[name]) for name in PAIR)


def test_each_dataset_has_the_same_number_of_updates() -> None:
    one = reduced(PAIR, MOMENTS, GROUP)
    assert polished(start(), [one, reduced(PAIR, TWICE, GROUP)], SETTINGS).updates == 120


def test_the_updates_of_all_datasets_together_are_bounded() -> None:
    found = polish(replace(SETTINGS, most_updates=50))
    assert found.updates == 50
    assert loss_of(found.mixing) != loss_of(start())


def test_small_updates_leave_other_cores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used = list[int]()
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    polish()
    assert used == [1, threads]


def test_directions_without_agreement_have_no_part() -> None:
    """A group of rank 0 has heads of zeros after any polish."""
    nothing = Directions(
        torch.zeros(0, dtype=torch.float64),
        {name: GROUP.heads[name][:0] for name in PAIR},
        GROUP.means,
        GROUP.ridges,
    )
    found = polished(
        {name: with_constant(nothing.scaling(3)) for name in PAIR},
        [reduced(PAIR, MOMENTS, nothing)],
        SETTINGS,
    )
    for weight in weights(nothing, found.mixing).values():
        assert bool(weight.isfinite().all())
        assert not bool(weight[:, :-1].any())


def test_a_process_that_polishes_does_not_import_the_compiler() -> None:
    """It takes 3.4 s of CPU, of the 11 of a small dataset's job in a process that has just started."""
    program = (
        "import sys; from tests.unit.methods import test_polish as it; "
        "made = it.polished(it.start(), [it.reduced(it.PAIR, it.MOMENTS, it.GROUP)], it.SETTINGS); "
        "assert made.updates == 40; sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_its_steps_are_those_of_adamw_to_the_bit() -> None:
    random = torch.Generator().manual_seed(0)
    starts = [torch.randn(3, 4, generator=random) for _ in range(2)]
    ours = [each.clone() for each in starts]
    theirs = [torch.nn.Parameter(each.clone()) for each in starts]
    states = [_AdamState.of(each) for each in ours]
    optimizer = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0, fused=True)
    for update in range(9):
        # The second parameter has no part in every third update.
        moved = range(1 if update % 3 == 0 else 2)
        optimizer.zero_grad(set_to_none=True)
        for each in moved:
            gradient = torch.randn(3, 4, generator=random)
            states[each].step(ours[each], gradient, 1e-2)
            theirs[each].grad = gradient
        optimizer.step()
    for own, other, before in zip(ours, theirs, starts, strict=True):
        assert torch.equal(own, other)
        assert not torch.equal(own, before)
