"""The published projection: what it zeroes, what it leaves free, and where decay ends.

That whole trainings agree with a second implementation is in tests/golden/.
"""

from dataclasses import replace

import pytest
import torch

from tests.unit.methods.contexts import (
    AUDIO_IMAGE,
    IMAGE_TEXT,
    TRAINING,
    batch_of,
    context_on,
    gradients_left_by,
    gradients_of,
    loss_by_loops,
    pair_for,
    random_heads,
    random_rows,
    weights_now,
)
from workers.methods.paper import Paper, span_above
from workers.model.rows import PairedRows
from workers.nullspace.moments import SecondMoment, pair_moments

NEW, OLD = random_rows(IMAGE_TEXT, seed=1), random_rows(AUDIO_IMAGE, seed=2)
METHOD = Paper(input_threshold=1e-6, output_threshold=0.0)


def test_old_inputs_get_no_gradient_along_old_outputs() -> None:
    """Only the image head has a past: audio's embeddings, of rank 3 like its features."""
    context = context_on(IMAGE_TEXT, [(AUDIO_IMAGE, OLD)])
    pair = pair_for(METHOD, context)
    image, text = gradients_left_by(METHOD, context, pair, NEW)
    features = OLD.second_NJ[:, :-1]
    embeddings = OLD.first_NI[:, :-1] @ random_heads(0).weights["audio"][:, :-1].mT
    along_old = embeddings @ image[:, :-1] @ features.mT
    free = gradients_of(loss_by_loops(weights_now(context, pair), IMAGE_TEXT, NEW, 0.2), pair)
    assert float((embeddings @ free[0][:, :-1] @ features.mT).abs().max()) > 1e-2
    torch.testing.assert_close(along_old, torch.zeros_like(along_old), rtol=0, atol=1e-10)
    torch.testing.assert_close(image[:, -1], free[0][:, -1])
    torch.testing.assert_close(text, free[1])
    assert float((image - free[0]).abs().max()) > 1e-2
    assert float(image[:, :-1].abs().max()) > 1e-2


def test_first_dataset_is_not_projected() -> None:
    context = context_on(IMAGE_TEXT)
    pair = pair_for(METHOD, context)
    expected = gradients_of(loss_by_loops(weights_now(context, pair), IMAGE_TEXT, NEW, 0.2), pair)
    torch.testing.assert_close(gradients_left_by(METHOD, context, pair, NEW), expected)


def test_decay_without_a_gradient_shrinks_the_head_itself() -> None:
    """(1 − rate · decay)ⁿ W for all columns but the bias, which stays."""
    training = replace(context_on(IMAGE_TEXT), training=TRAINING).training
    training = training.model_copy(update={"learning_rate": 0.1, "weight_decay": 0.5})
    context = context_on(IMAGE_TEXT, training=training)
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
        rule.after_update()
    for head, before in zip((pair.first, pair.second), start, strict=True):
        torch.testing.assert_close(head.weight_EI[:, :-1], 0.95**3 * before[:, :-1])
        torch.testing.assert_close(head.weight_EI[:, -1], before[:, -1])


def test_span_has_the_directions_above_the_threshold() -> None:
    moment = SecondMoment(10, torch.diag(torch.tensor([30.0, 9.0, 0.5, 0.0]).double()))
    ranks = {cut: span_above(moment, cut).shape[1] for cut in (0.0, 0.04, 0.06, 1.0, 5.0)}
    assert ranks == {0.0: 3, 0.04: 3, 0.06: 2, 1.0: 1, 5.0: 0}


def test_threshold_does_not_depend_on_the_number_of_rows() -> None:
    once = pair_moments(OLD.first_NI, OLD.second_NJ).first
    many = SecondMoment(50 * once.count, 50 * once.sum_II)
    cut = float(torch.linalg.eigvalsh(once.mean_II)[-2]) / 2
    assert span_above(once, cut).shape == span_above(many, cut).shape


def test_negative_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="input_threshold is -1"):
        Paper(input_threshold=-1)
