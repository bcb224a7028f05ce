"""Adam-NSCL: steps of AdamW stay in the null space of earlier inputs."""

import pytest
import torch

from benchmarks.baselines.adam_nscl import AdamNSCL
from tests.fakes.rotated_rows import rotated
from tests.unit.methods.contexts import (
    AUDIO_IMAGE,
    IMAGE_TEXT,
    TRAINING,
    context_on,
    pair_for,
    random_rows,
)
from workers.methods.method import Recipe
from workers.train.loop import new_heads, train_pair
from workers.train.run import Run

NEW, OLD = random_rows(IMAGE_TEXT, seed=1, rows=16), random_rows(AUDIO_IMAGE, seed=2)


def test_old_outputs_stay_through_a_training_with_adamw_and_decay() -> None:
    """Old images have rank 4 of 7 with the bias, and what is left is learned."""
    training = TRAINING.model_copy(update={"epochs": 4})
    context = context_on(
        IMAGE_TEXT, [(AUDIO_IMAGE, OLD)], training=training, recipe=Recipe(weight_decay=0.5)
    )
    method = AdamNSCL(share=0)
    spaces = method.update_spaces(context)
    trained = train_pair(method, context, spaces, rotated(context, spaces, NEW), Run())
    after = new_heads(context, spaces, trained.changes)
    change = after.weights["image"] - context.heads.weights["image"]
    assert float((OLD.second_NJ @ change.mT).abs().max()) < 1e-12
    assert float(change.abs().max()) > 1e-2
    assert float((after.weights["text"] - context.heads.weights["text"]).abs().max()) > 1e-2


def test_the_null_space_holds_the_share_of_the_energy() -> None:
    """A step moves old outputs only along the smallest eigenvalues."""
    context = context_on(IMAGE_TEXT, [(AUDIO_IMAGE, OLD)])
    values, vectors = torch.linalg.eigh(OLD.second_NJ.mT @ OLD.second_NJ)
    # Between the shares of the four and the five smallest eigenvalues.
    shares = values.cumsum(0) / values.sum()
    method = AdamNSCL(share=float(shares[3:5].mean()))
    pair = pair_for(method, context)
    before = pair.first.change_EI.detach().clone()
    method.update_rule(context, pair).after_update(0.1)
    expected = before @ vectors[:, :4] @ vectors[:, :4].mT
    torch.testing.assert_close(pair.first.change_EI.detach(), expected)


def test_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="share is 1; permitted are 0 to below 1"):
        AdamNSCL(share=1)
