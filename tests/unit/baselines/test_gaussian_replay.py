"""Gaussian replay: the loss, and that of rows drawn from the moments of earlier pairs."""

import pytest
import torch

from benchmarks.baselines.gaussian_replay import GaussianReplay
from benchmarks.baselines.sampled_replay import SAMPLED_ROWS, gaussian_rows
from tests.unit.methods.contexts import (
    AUDIO_DEPTH,
    AUDIO_IMAGE,
    IMAGE_TEXT,
    context_on,
    gradients_left_by,
    gradients_of,
    info_nce_by_loops,
    loss_by_loops,
    pair_for,
    random_rows,
    weights_now,
)
from workers.methods.method import Vanilla
from workers.model.rows import PairedRows
from workers.nullspace.moments import pair_moments

NEW, OLD = random_rows(IMAGE_TEXT, seed=1), random_rows(AUDIO_IMAGE, seed=2)


def test_gradient_is_that_of_the_batch_and_of_drawn_rows() -> None:
    """Two datasets of one pair are pooled, and count twice."""
    known = [(AUDIO_IMAGE, OLD), (AUDIO_IMAGE, random_rows(AUDIO_IMAGE, seed=3))]
    method, context = GaussianReplay(weight=0.7), context_on(IMAGE_TEXT, known)
    pair = pair_for(method, context)
    # The numbers are drawn in the order: seeds of pairs, which pair, which of its rows.
    random = torch.Generator().manual_seed(context.seed)
    seed = int(torch.randint(2**62, (1,), generator=random))
    torch.multinomial(torch.tensor([2.0]), 1, generator=random)
    index = torch.randint(SAMPLED_ROWS, (context.training.batch_size,), generator=random)
    both = [pair_moments(rows.first_NI, rows.second_NJ) for _, rows in known]
    moments = (both[0] + both[1]).swapped()
    drawn = gaussian_rows(moments, SAMPLED_ROWS, torch.Generator().manual_seed(seed))[index]
    image, audio = drawn[:, :7].double(), drawn[:, 7:].double()
    now, rows = weights_now(context, pair), PairedRows(image, audio, index, index)
    replayed = info_nce_by_loops(image @ now["image"].mT, audio @ now["audio"].mT, rows, 0.2)
    value = loss_by_loops(now, IMAGE_TEXT, NEW, 0.2) + 0.7 * 2 * replayed
    found = gradients_left_by(method, context, pair, NEW)
    torch.testing.assert_close(found, gradients_of(value, pair), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("weight", "known"),
    [(0.0, AUDIO_IMAGE), (1.0, AUDIO_DEPTH), (1.0, None)],
    ids=["no weight", "no common head", "first dataset"],
)
def test_without_replay_it_is_the_loss_alone_to_the_bit(weight: float, known: object) -> None:
    datasets = [(known, random_rows(known, seed=2))] if known else []  # type: ignore[arg-type]
    context = context_on(IMAGE_TEXT, datasets)  # type: ignore[arg-type]
    pair = pair_for(Vanilla(), context)
    found = gradients_left_by(GaussianReplay(weight), context, pair, NEW)
    pair.zero_grad()
    assert all(map(torch.equal, found, gradients_left_by(Vanilla(), context, pair, NEW)))


def test_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight is -1; permitted are 0 and more"):
        GaussianReplay(-1)
