"""DER and DER++ are the loss, the error against stored outputs, and the loss on a second draw."""

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.der import DER, DERpp
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
    random_heads,
    random_rows,
    taught,
    weights_now,
)
from workers.methods.method import Method
from workers.model.heads import PairedRows

NEW, SIZE = random_rows(IMAGE_TEXT, seed=1), 8


def output_error_by_loops(
    weights: dict[str, Tensor], known: ModalityPair, rows: PairedRows
) -> Tensor:
    """Against the outputs of the heads that had learned the rows (`taught` says which)."""
    then, total = random_heads(100).weights, torch.zeros((), dtype=torch.float64)
    for side, modality in zip((rows.first_NI, rows.second_NJ), known.modalities, strict=True):
        for row in side:
            total = total + (weights[modality] @ row - then[modality] @ row).square().sum()
    return total / len(rows)


@pytest.mark.parametrize("known", [IMAGE_TEXT, TEXT_IMAGE, AUDIO_IMAGE])
def test_der_adds_the_squared_error_of_stored_outputs(known: ModalityPair) -> None:
    """The memory is as large as a batch, so that a draw is all of it."""
    old = random_rows(known, seed=2, rows=SIZE)
    method = DER(memory_rows=SIZE, alpha=0.7)
    context = context_on(IMAGE_TEXT, kept=taught(method, (known, old)))
    pair = pair_for(method, context)
    now = weights_now(context, pair)
    value = loss_by_loops(now, IMAGE_TEXT, NEW, 0.2) + 0.7 * output_error_by_loops(now, known, old)
    found = gradients_left_by(method, context, pair, NEW)
    torch.testing.assert_close(found, gradients_of(value, pair))


def test_derpp_adds_the_loss_on_the_memory() -> None:
    old = random_rows(AUDIO_IMAGE, seed=2, rows=SIZE)
    method = DERpp(memory_rows=SIZE, alpha=0.7, beta=0.3)
    context = context_on(IMAGE_TEXT, kept=taught(method, (AUDIO_IMAGE, old)))
    pair = pair_for(method, context)
    now = weights_now(context, pair)
    value = (
        loss_by_loops(now, IMAGE_TEXT, NEW, 0.2)
        + 0.7 * output_error_by_loops(now, AUDIO_IMAGE, old)
        + 0.3 * loss_by_loops(now, AUDIO_IMAGE, old, 0.2)
    )
    found = gradients_left_by(method, context, pair, NEW)
    torch.testing.assert_close(found, gradients_of(value, pair))


@pytest.mark.parametrize("method", [DER(memory_rows=SIZE), DERpp(memory_rows=SIZE)])
def test_memory_of_other_heads_leaves_the_loss_alone(method: Method) -> None:
    kept = taught(method, (AUDIO_DEPTH, random_rows(AUDIO_DEPTH, seed=2)))
    context = context_on(IMAGE_TEXT, kept=kept)
    pair = pair_for(method, context)
    expected = gradients_of(loss_by_loops(weights_now(context, pair), IMAGE_TEXT, NEW, 0.2), pair)
    torch.testing.assert_close(gradients_left_by(method, context, pair, NEW), expected)


def test_negative_weights_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="alpha is -1"):
        DER(alpha=-1)
    with pytest.raises(ValueError, match="beta is -1"):
        DERpp(beta=-1)
