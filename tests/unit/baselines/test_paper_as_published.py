"""The published order: what it zeroes, what it leaves free, and where decay ends.

That whole trainings agree with a second implementation is in tests/golden/.
"""

from typing import Any

import pytest
import torch

from benchmarks.baselines.paper_as_published import PaperAsPublished, projector
from tests.unit.methods.contexts import (
    AUDIO_IMAGE,
    IMAGE_TEXT,
    batch_of,
    context_on,
    gradients_left_by,
    gradients_of,
    loss_by_loops,
    pair_for,
    random_rows,
    taught,
    weights_now,
)
from workers.methods.method import Recipe
from workers.model.heads import PairedRows

NEW, OLD = random_rows(IMAGE_TEXT, seed=1), random_rows(AUDIO_IMAGE, seed=2)
METHOD = PaperAsPublished(input_threshold=1e-6, largest_norm=1e9)


def test_old_inputs_get_no_gradient_but_that_of_the_bias() -> None:
    """Only the image head has a past. Old outputs do not matter: the projection is one-sided."""
    context = context_on(IMAGE_TEXT, kept=taught(METHOD, (AUDIO_IMAGE, OLD)))
    pair = pair_for(METHOD, context)
    image, text = gradients_left_by(METHOD, context, pair, NEW)
    features = OLD.second_NJ[:, :-1]
    free = gradients_of(loss_by_loops(weights_now(context, pair), IMAGE_TEXT, NEW, 0.2), pair)
    along_old = image[:, :-1] @ features.mT
    assert float((free[0][:, :-1] @ features.mT).abs().max()) > 1e-2
    torch.testing.assert_close(along_old, torch.zeros_like(along_old), rtol=0, atol=1e-10)
    torch.testing.assert_close(image[:, -1], free[0][:, -1])
    torch.testing.assert_close(text, free[1])
    assert float(image[:, :-1].abs().max()) > 1e-2


def test_gradients_of_both_heads_are_clipped_together() -> None:
    context = context_on(IMAGE_TEXT)
    pair = pair_for(METHOD, context)
    free = gradients_of(loss_by_loops(weights_now(context, pair), IMAGE_TEXT, NEW, 0.2), pair)
    norm = float(torch.cat([one.reshape(-1) for one in free]).norm())
    clipped = PaperAsPublished(largest_norm=norm / 4)
    found = gradients_left_by(clipped, context, pair, NEW)
    torch.testing.assert_close(found, [one / 4 for one in free], rtol=1e-4, atol=0)


def test_decay_without_a_gradient_shrinks_the_head_itself() -> None:
    """(1 − rate · decay)ⁿ W for all columns but the bias, which stays."""
    context = context_on(IMAGE_TEXT, recipe=Recipe(weight_decay=0.5))
    pair = pair_for(METHOD, context)
    start = [head.weight_EI.detach().clone() for head in (pair.first, pair.second)]
    rule = METHOD.update_rule(context, pair)
    same = torch.zeros(len(NEW), dtype=torch.int64)
    batch = batch_of(context, pair, PairedRows(NEW.first_NI, NEW.second_NJ, same, same))
    optimizer = torch.optim.SGD(pair.changes, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        rule.backward(batch)
        for change in pair.changes:
            assert change.grad is not None
            change.grad.zero_()
        optimizer.step()
        rule.after_update(0.1)
    for head, before in zip((pair.first, pair.second), start, strict=True):
        torch.testing.assert_close(head.weight_EI[:, :-1], 0.95**3 * before[:, :-1])
        torch.testing.assert_close(head.weight_EI[:, -1], before[:, -1])


def test_no_direction_is_zero_at_a_threshold_of_zero() -> None:
    """Not even those that nothing was seen in, as rounding leaves them in float32."""
    mean = torch.diag(torch.tensor([2.0, 1.0, 0.0]).double())
    assert torch.equal(projector(mean, 0.0), torch.eye(3).double())
    assert torch.equal(projector(torch.zeros(3, 3).double(), 0.0), torch.zeros(3, 3).double())
    torch.testing.assert_close(projector(mean, 1.5), torch.diag(torch.tensor([1.0, 0, 0]).double()))


@pytest.mark.parametrize(
    "settings", [{"input_threshold": -1.0}, {"output_threshold": -1.0}, {"largest_norm": 0.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="permitted"):
        PaperAsPublished(**settings)
