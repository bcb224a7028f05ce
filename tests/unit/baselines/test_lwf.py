"""LwF and ZSCL: the loss and the cross-entropy of old and new scores, term by term."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.lwf import ZSCL, LwF
from cmcl.contract.modality import ModalityPair
from tests.fakes.rotated_rows import seen
from tests.unit.methods.contexts import (
    AUDIO_DEPTH,
    AUDIO_IMAGE,
    IMAGE_TEXT,
    TRAINING,
    context_on,
    gradients_left_by,
    gradients_of,
    loss_by_loops,
    pair_for,
    random_heads,
    random_rows,
    weights_now,
)
from workers.methods.method import MethodState, TrainingContext, Vanilla

NEW = random_rows(IMAGE_TEXT, seed=1)
SOFTENED = 2.0 * TRAINING.temperature


def known(*pairs: ModalityPair) -> list[tuple[ModalityPair, object]]:
    return [(pair, random_rows(pair, seed=2)) for pair in pairs]


def context_after(*pairs: ModalityPair) -> TrainingContext:
    return context_on(IMAGE_TEXT, known(*pairs))  # type: ignore[arg-type]


def unit_rows(weights: dict[str, Tensor], name: str) -> Tensor:
    outputs = {"image": NEW.first_NI, "text": NEW.second_NJ}[name] @ weights[name].mT
    return outputs / outputs.norm(dim=1, keepdim=True)


def distilled_by_loops(
    past: dict[str, Tensor], now: dict[str, Tensor], sides: tuple[str, str]
) -> Tensor:
    """The mean over rows and over columns of the cross-entropy, halved."""
    left, right = ([unit_rows(weights, side) for weights in (past, now)] for side in sides)
    count, total = len(NEW), torch.zeros((), dtype=torch.float64)
    for i in range(count):
        others = [j for j in range(count) if sides[0] != sides[1] or j != i]
        for query, keys in ((left, right), (right, left)):
            target = (keys[0][others] @ query[0][i] / SOFTENED).softmax(0)
            log_share = (keys[1][others] @ query[1][i] / SOFTENED).log_softmax(0)
            total = total - (target * log_share).sum()
    return total / (2 * count)


@pytest.mark.parametrize(
    ("pair", "sides"),
    [(IMAGE_TEXT, ("image", "text")), (AUDIO_IMAGE, ("image", "image"))],
    ids=["both heads have learned", "one has"],
)
def test_gradient_equals_both_terms_written_as_loops(
    pair: ModalityPair, sides: tuple[str, str]
) -> None:
    method, context = LwF(distillation=0.6), context_after(pair)
    heads = pair_for(method, context)
    now, past = weights_now(context, heads), dict(context.heads.weights)
    value = loss_by_loops(now, IMAGE_TEXT, NEW, TRAINING.temperature)
    value = value + 0.6 * distilled_by_loops(past, now, sides)
    found = gradients_left_by(method, context, heads, NEW)
    torch.testing.assert_close(found, gradients_of(value, heads))


@pytest.mark.parametrize(
    ("distillation", "pair"),
    [(0.0, IMAGE_TEXT), (0.0, AUDIO_IMAGE), (1.0, AUDIO_DEPTH)],
    ids=["no weight", "no weight, one side", "nothing to distil"],
)
def test_without_distillation_it_is_the_loss_alone_to_the_bit(
    distillation: float, pair: ModalityPair
) -> None:
    context = context_after(pair)
    heads = pair_for(Vanilla(), context)
    found = gradients_left_by(LwF(distillation), context, heads, NEW)
    heads.zero_grad()
    assert all(map(torch.equal, found, gradients_left_by(Vanilla(), context, heads, NEW)))


def test_teacher_of_zscl_is_the_head_after_the_first_dataset() -> None:
    """Its image head is from the first dataset, its text head from the second, after any later ones."""
    method, first, second = ZSCL(distillation=0.6), random_heads(11), random_heads(12)
    context = context_after(IMAGE_TEXT)
    state: MethodState = {}
    for pair, trained in (
        (AUDIO_IMAGE, first),
        (IMAGE_TEXT, second),
        (IMAGE_TEXT, random_heads(13)),
    ):
        before = replace(context, pair=pair, method_state=state)
        state = method.next_state(before, trained, seen(random_rows(pair, seed=3)))
    context = replace(context, method_state=state)
    heads = pair_for(method, context)
    now = weights_now(context, heads)
    past = {"image": first.weights["image"], "text": second.weights["text"]}
    value = loss_by_loops(now, IMAGE_TEXT, NEW, TRAINING.temperature)
    value = value + 0.6 * distilled_by_loops(past, now, ("image", "text"))
    found = gradients_left_by(method, context, heads, NEW)
    torch.testing.assert_close(found, gradients_of(value, heads))


@pytest.mark.parametrize("settings", [{"distillation": -1.0}, {"softening": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="permitted"):
        LwF(**settings)
