"""Replay from moments: the gradient of moment replay, the rows of sampled replay, and which pairs touch one."""

import dataclasses

import pytest
import torch

from benchmarks.baselines.moment_replay import MomentReplay
from benchmarks.baselines.sampled_replay import datasets_of, gaussian_rows, touching
from cmcl.contract.modality import ModalityPair
from tests.unit.methods.learned import (
    AUDIO_IMAGE,
    IMAGE_TEXT,
    TEXT_AUDIO,
    moved_pair,
    random_context,
    raw_rows,
)
from workers.methods.method import ReplicaGroup
from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.moments import PairMoments, pair_moments
from workers.train.certify import weights_of


@pytest.mark.parametrize("pair", [IMAGE_TEXT, AUDIO_IMAGE, TEXT_AUDIO], ids=str)
def test_gradient_of_moment_replay_is_that_of_the_quality_losses(pair: ModalityPair) -> None:
    """Closed form against finite differences of the certificate, counted once per dataset."""
    context = random_context(pair, IMAGE_TEXT, IMAGE_TEXT, AUDIO_IMAGE)
    module = moved_pair(context)
    replayed = 0.7 * MomentReplay(context, module).loss(ReplicaGroup())
    replayed.backward()

    def total() -> float:
        loss = 0.0
        turned = module.second.space.outputs.vectors_II
        now = dict(context.heads.weights)
        for name, head, common in zip(
            pair.modalities, (module.first, module.second), module.weights(), strict=True
        ):
            now[name] = turned @ common.detach() @ head.space.inputs.vectors_II.mT
        for (first, second), moments in context.memory.by_pair.items():
            key = ModalityPair(first=first, second=second)
            parent = weights_of(key, context.heads)
            current = PairWeights(now[first], now[second])
            loss += datasets_of(context.memory, key) * PairScores(moments).quality(parent, current)
        return 0.7 * loss

    assert float(replayed.detach()) == pytest.approx(total(), rel=1e-9)
    for head in (module.first, module.second):
        row, column = (int(index) for index in head.free_EI.nonzero()[3])
        step, data = 1e-5, head.change_EI.data
        data[row, column] += step
        above = total()
        data[row, column] -= 2 * step
        below = total()
        data[row, column] += step
        assert head.change_EI.grad is not None
        expected = pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-8)
        assert float(head.change_EI.grad[row, column]) == expected
        assert torch.equal(head.change_EI.grad * (1 - head.free_EI), torch.zeros_like(data))


def test_sampled_rows_have_the_moments_that_they_are_drawn_from() -> None:
    rows = raw_rows(IMAGE_TEXT, seed=4, rows=64)
    ones = torch.ones(64, 1)
    moments = pair_moments(
        torch.cat([rows.first_NI, ones], dim=1), torch.cat([rows.second_NJ, ones], dim=1)
    )
    sampled = gaussian_rows(moments, 60_000, torch.Generator().manual_seed(0))
    first, second = sampled[:, :21], sampled[:, 21:]
    assert bool((first[:, -1] == 1).all())
    assert bool((second[:, -1] == 1).all())
    again, scale = pair_moments(first, second).mean, moments.mean.first.sum_II.abs().max()
    for ours, theirs in (
        (again.first.sum_II, moments.mean.first.sum_II),
        (again.second.sum_II, moments.mean.second.sum_II),
        (again.cross_IJ, moments.mean.cross_IJ),
    ):
        assert float((ours - theirs).abs().max() / scale) < 0.02


def test_moments_of_rank_one_can_be_sampled() -> None:
    first, second = torch.ones(5, 3), torch.ones(5, 2)
    sampled = gaussian_rows(pair_moments(first, second), 10, torch.Generator())
    torch.testing.assert_close(sampled, torch.ones(10, 5), atol=0.01, rtol=0)


def test_what_are_no_moments_is_refused() -> None:
    good = pair_moments(torch.rand(5, 3), torch.rand(5, 2))
    bad = PairMoments(
        dataclasses.replace(good.first, sum_II=-good.first.sum_II), good.second, good.cross_IJ
    )
    with pytest.raises(ValueError, match="covariance is not positive"):
        gaussian_rows(bad, 10, torch.Generator())


def test_pairs_that_share_a_modality_are_found_shared_one_first() -> None:
    memory = random_context(IMAGE_TEXT, IMAGE_TEXT, AUDIO_IMAGE).memory
    found = touching(memory, ModalityPair(first="text", second="audio"))
    assert [str(pair) for pair, _ in found] == ["text,image", "audio,image"]
    for pair, moments in found:
        inputs = memory.inputs_of(pair.first)
        assert inputs is not None
        assert moments.first.sum_II.shape == inputs.sum_II.shape
    assert datasets_of(memory, IMAGE_TEXT.swapped()) == 1
