"""The moment anchor is the loss and the squared relative drift of every earlier pair."""

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.anchor import Anchor
from cmcl.contract.modality import ModalityPair
from tests.unit.methods.contexts import (
    AUDIO_DEPTH,
    AUDIO_IMAGE,
    IMAGE_TEXT,
    TEXT_IMAGE,
    context_on,
    gradients_left_by,
    gradients_of,
    loss_by_loops,
    pair_for,
    random_rows,
    weights_now,
)
from workers.methods.method import TrainingContext
from workers.model.pair import PairInEigenCoordinates
from workers.model.rows import PairedRows

NEW = random_rows(IMAGE_TEXT, seed=1)


def drift_by_brute_force(
    context: TrainingContext, pair: PairInEigenCoordinates, known: ModalityPair, rows: PairedRows
) -> Tensor:
    """Mean square change of the scores of all row combinations, relative to that of the scores."""
    now, then = weights_now(context, pair), context.heads.weights
    first, second = known.modalities
    before = (rows.first_NI @ then[first].mT) @ (rows.second_NJ @ then[second].mT).mT
    after = (rows.first_NI @ now[first].mT) @ (rows.second_NJ @ now[second].mT).mT
    return (after - before).square().mean() / before.square().mean()


def assert_penalty(known: list[tuple[ModalityPair, PairedRows]], weight: float) -> None:
    context = context_on(IMAGE_TEXT, known)
    pair = pair_for(Anchor(), context)
    value = loss_by_loops(weights_now(context, pair), IMAGE_TEXT, NEW, 0.2)
    for one, rows in known:
        value = value + weight * drift_by_brute_force(context, pair, one, rows)
    expected = gradients_of(value, pair)
    found = gradients_left_by(Anchor(weight), context, pair, NEW)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("known", [IMAGE_TEXT, TEXT_IMAGE, AUDIO_IMAGE])
def test_penalty_equals_brute_force_over_all_row_pairs(known: ModalityPair) -> None:
    """The very pair, the same the other way round, and a pair of which one head moves."""
    assert_penalty([(known, random_rows(known, seed=2, rows=11))], weight=0.7)


def test_penalties_of_several_pairs_add_up() -> None:
    pairs = (IMAGE_TEXT, AUDIO_IMAGE)
    assert_penalty([(known, random_rows(known, seed=3)) for known in pairs], weight=1.0)


def test_pooled_datasets_count_as_often_as_they_are() -> None:
    rows = random_rows(AUDIO_IMAGE, seed=4)
    assert_penalty([(AUDIO_IMAGE, rows)] * 3, weight=1.0)


def test_pair_without_a_common_head_adds_nothing() -> None:
    known = [(AUDIO_DEPTH, random_rows(AUDIO_DEPTH, seed=5))]
    context, bare = context_on(IMAGE_TEXT, known), context_on(IMAGE_TEXT)
    pair = pair_for(Anchor(), context)
    found = gradients_left_by(Anchor(), context, pair, NEW)
    pair.zero_grad()
    for one, other in zip(found, gradients_left_by(Anchor(), bare, pair, NEW), strict=True):
        assert torch.equal(one, other)


def test_scores_that_are_all_zero_anchor_nothing() -> None:
    rows = random_rows(AUDIO_IMAGE, seed=6)
    dead = PairedRows(
        torch.zeros_like(rows.first_NI), rows.second_NJ, rows.first_keys_N, rows.second_keys_N
    )
    context = context_on(IMAGE_TEXT, [(AUDIO_IMAGE, dead)])
    found = gradients_left_by(Anchor(), context, pair_for(Anchor(), context), NEW)
    assert all(bool(gradient.isfinite().all()) for gradient in found)


def test_a_negative_weight_is_rejected_with_a_message() -> None:
    with pytest.raises(ValueError, match="weight is -1; permitted are 0 and more"):
        Anchor(-1)
