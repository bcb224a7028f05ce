"""Online EWC: its Fisher information, how that decays, and the pull that follows from it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.ewc import EWC, fisher
from benchmarks.baselines.replay_memory import full_batches
from tests.fakes.rotated_rows import seen
from tests.unit.methods.contexts import (
    IMAGE_TEXT,
    TEXT_IMAGE,
    TRAINING,
    context_on,
    gradients_left_by,
    loss_by_loops,
    pair_for,
    random_heads,
    random_rows,
)
from workers.model.heads import ModalityHeads, PairedRows

STEP = 1e-5


def numeric_gradient(heads: ModalityHeads, modality: str, rows: PairedRows) -> Tensor:
    """Central differences, entry by entry."""
    weight = heads.weights[modality]
    gradient = torch.zeros_like(weight)
    for entry in range(weight.numel()):
        moved = torch.zeros_like(weight)
        moved.view(-1)[entry] = STEP
        up, down = (
            loss_by_loops({**heads.weights, modality: weight + sign * moved}, IMAGE_TEXT, rows, 0.2)
            for sign in (1, -1)
        )
        gradient.view(-1)[entry] = (up - down) / (2 * STEP)
    return gradient


def test_fisher_is_the_mean_squared_gradient_of_batches() -> None:
    """19 rows in batches of 8 are two batches; the remaining three are not used."""
    context, heads, rows = context_on(IMAGE_TEXT), random_heads(3), random_rows(IMAGE_TEXT, 2, 19)
    batches = [rows.at(index) for index in full_batches(19, 8, context.seed)]
    assert [len(batch) for batch in batches] == [8, 8]
    for modality, found in fisher(context, heads, rows).items():
        squares = [numeric_gradient(heads, modality, batch).square() for batch in batches]
        torch.testing.assert_close(found, (squares[0] + squares[1]) / 2, rtol=1e-5, atol=1e-9)


def test_old_fisher_decays_when_a_modality_comes_again() -> None:
    method, heads = EWC(decay=0.5), random_heads(3)
    first, second = random_rows(IMAGE_TEXT, 2), random_rows(TEXT_IMAGE, 3)
    kept = method.next_state(context_on(IMAGE_TEXT), heads, seen(first))
    again = method.next_state(context_on(TEXT_IMAGE, kept=kept), heads, seen(second))
    old, new = (
        fisher(context_on(IMAGE_TEXT), heads, first),
        fisher(context_on(TEXT_IMAGE), heads, second),
    )
    for modality in ("image", "text"):
        expected = 0.5 * old[modality] + new[modality]
        assert torch.equal(again[f"ewc/{modality}/fisher"], expected)


def test_penalty_pulls_by_twice_strength_times_fisher() -> None:
    """The text head has no past yet, so only the image head is pulled."""
    importance = torch.rand(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kept = {"ewc/image/fisher": importance, "ewc/audio/fisher": importance}
    context, rows = context_on(IMAGE_TEXT, kept=kept), random_rows(IMAGE_TEXT, 1)
    pair = pair_for(EWC(), context)
    pulled = gradients_left_by(EWC(3.0), context, pair, rows)
    pair.zero_grad()
    bare = gradients_left_by(EWC(), context_on(IMAGE_TEXT), pair, rows)
    strength = 3.0 * TRAINING.batch_size / 2
    expected = 2 * strength * importance * pair.first.change_EI.detach()
    torch.testing.assert_close(pulled[0] - bare[0], expected)
    assert torch.equal(pulled[1], bare[1])


def test_rows_that_fill_no_batch_still_teach_something() -> None:
    context = replace(context_on(IMAGE_TEXT), training=TRAINING)
    found = fisher(context, random_heads(3), random_rows(IMAGE_TEXT, 2, 5))
    assert all(float(one.max()) > 0 for one in found.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"strength": -1.0}, "strength is -1.0"), ({"decay": 1.5}, "decay is 1.5; .* 0 to 1")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EWC(**settings)
