"""Co2L and CILA term by term, with memory rows as negatives only."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.cila import CILA
from benchmarks.baselines.co2l import Co2L, relation_loss
from cmcl.contract.modality import ModalityPair
from tests.fakes.rotated_rows import seen
from tests.unit.methods.contexts import (
    AUDIO_DEPTH,
    AUDIO_IMAGE,
    IMAGE_TEXT,
    TEXT_IMAGE,
    TRAINING,
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
from workers.methods.method import TrainingContext
from workers.model.rows import PairedRows

NEW, SIZE = random_rows(IMAGE_TEXT, seed=1), 8
Weights = dict[str, Tensor]


def embedded(weights: Weights, pair: ModalityPair, rows: PairedRows) -> dict[str, Tensor]:
    """Unit embeddings of both sides by modality."""
    sides = zip(pair.modalities, (rows.first_NI, rows.second_NJ), strict=True)
    outputs = {modality: side @ weights[modality].mT for modality, side in sides}
    return {modality: one / one.norm(dim=1, keepdim=True) for modality, one in outputs.items()}


def keys_of(pair: ModalityPair, rows: PairedRows) -> dict[str, list[int]]:
    first, second = pair.modalities
    return {first: rows.first_keys_N.tolist(), second: rows.second_keys_N.tolist()}


def contrast_by_loops(now: Weights, known: ModalityPair, memory: PairedRows) -> Tensor:
    batch, stored = embedded(now, IMAGE_TEXT, NEW), embedded(now, known, memory)
    keys, stored_keys = keys_of(IMAGE_TEXT, NEW), keys_of(known, memory)
    total = torch.zeros((), dtype=torch.float64)
    for query, partner in (("image", "text"), ("text", "image")):
        for i in range(len(NEW)):
            same = [j for j in range(len(NEW)) if any(keys[m][i] == keys[m][j] for m in keys)]
            against = [batch[partner][j] for j in range(len(NEW))]
            for row, key in zip(stored.get(partner, []), stored_keys.get(partner, []), strict=True):
                if key not in {keys[partner][j] for j in same}:
                    against.append(row)
            scores = torch.stack(against) @ batch[query][i] / TRAINING.temperature
            total = total - sum(scores[j] - scores.logsumexp(0) for j in same) / len(same)
    return total / (2 * len(NEW))


def relations_by_loops(
    before: Weights, now: Weights, pair: ModalityPair, rows: PairedRows
) -> Tensor:
    """Sum over rows and over columns of the cross-entropy, halved."""
    (past_a, past_b), (now_a, now_b) = (
        tuple(embedded(weights, pair, rows).values()) for weights in (before, now)
    )
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(rows)):
        for past, current in (
            (past_b @ past_a[i], now_b @ now_a[i]),
            (past_a @ past_b[i], now_a @ now_b[i]),
        ):
            target, log_share = (past / 0.01).softmax(0), (current / 0.2).log_softmax(0)
            total = total - (target * log_share).sum() / 2
    return total


def distillation_by_loops(
    before: Weights, now: Weights, known: ModalityPair, memory: PairedRows
) -> Tensor:
    of_batch = relations_by_loops(before, now, IMAGE_TEXT, NEW)
    of_memory = relations_by_loops(before, now, known, memory)
    return (of_batch + of_memory) / (len(NEW) + len(memory))


def with_item_of_the_batch(memory: PairedRows, known: ModalityPair) -> PairedRows:
    """The same image in the memory as in the batch: it must not be its own negative.

    Its text is also that of another row, for which it must not be a negative either.
    """
    index = known.modalities.index("image")
    sides = [memory.first_NI.clone(), memory.second_NJ.clone()]
    keys = [memory.first_keys_N.clone(), memory.second_keys_N.clone()]
    sides[index][0], keys[index][0] = NEW.first_NI[-1], NEW.first_keys_N[-1]
    return PairedRows(sides[0], sides[1], keys[0], keys[1])


@pytest.mark.parametrize("known", [IMAGE_TEXT, TEXT_IMAGE, AUDIO_IMAGE])
def test_gradient_equals_both_terms_written_as_loops(known: ModalityPair) -> None:
    memory = with_item_of_the_batch(random_rows(known, seed=2, rows=SIZE), known)
    method = Co2L(memory_rows=SIZE, distillation=0.6)
    context = context_on(IMAGE_TEXT, kept=taught(method, (known, memory)))
    pair = pair_for(method, context)
    now, before = weights_now(context, pair), dict(context.heads.weights)
    value = contrast_by_loops(now, known, memory) + 0.6 * distillation_by_loops(
        before, now, known, memory
    )
    found = gradients_left_by(method, context, pair, NEW)
    torch.testing.assert_close(found, gradients_of(value, pair))


@pytest.mark.parametrize("method", [Co2L(memory_rows=SIZE), CILA(memory_rows=SIZE)])
def test_nothing_is_distilled_without_a_common_head(method: Co2L) -> None:
    """The parent's heads would be those of the seed, which are useless."""
    kept = taught(method, (AUDIO_DEPTH, random_rows(AUDIO_DEPTH, seed=2)))
    context = context_on(IMAGE_TEXT, kept=kept)
    pair = pair_for(method, context)
    expected = gradients_of(loss_by_loops(weights_now(context, pair), IMAGE_TEXT, NEW, 0.2), pair)
    torch.testing.assert_close(gradients_left_by(method, context, pair, NEW), expected)


def test_relation_loss_is_least_where_relations_are_kept() -> None:
    past = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    now = past.clone().requires_grad_()
    relation_loss(past, now).backward()
    torch.testing.assert_close(now.grad, torch.zeros_like(past), rtol=0, atol=1e-12)
    assert float(relation_loss(past, past)) < float(relation_loss(past, past.flip(0)))


def test_cila_adds_up_both_losses_over_datasets() -> None:
    """Means over a pass of one batch: what the loops say of the whole dataset."""
    method, old = CILA(memory_rows=SIZE), random_rows(AUDIO_IMAGE, seed=2, rows=SIZE)
    kept = taught(method, (AUDIO_IMAGE, old))
    alone = loss_by_loops(dict(random_heads(100).weights), AUDIO_IMAGE, old, 0.2)
    assert float(kept["cila/contrast"]) == pytest.approx(float(alone))
    assert float(kept["cila/distillation"]) == 0.0

    kept = {**kept, "cila/distillation": torch.tensor(5.0, dtype=torch.float64)}
    context, now = context_on(IMAGE_TEXT, kept=kept), dict(random_heads(7).weights)
    kept = method.next_state(context, random_heads(7), seen(NEW))
    before = dict(context.heads.weights)
    contrast = alone + contrast_by_loops(now, AUDIO_IMAGE, old)
    distilled = 5.0 + distillation_by_loops(before, now, AUDIO_IMAGE, old)
    assert float(kept["cila/contrast"]) == pytest.approx(float(contrast))
    assert float(kept["cila/distillation"]) == pytest.approx(float(distilled))


@pytest.mark.parametrize(("distilled", "coefficient"), [(8.0, 3.0), (2.0, 1.0), (0.0, 1.0)])
def test_cila_coefficient_is_the_ratio_of_sums_but_at_least_1(
    distilled: float, coefficient: float
) -> None:
    kept = {"cila/contrast": torch.tensor(4.0), "cila/distillation": torch.tensor(distilled)}
    assert CILA(distillation=1.5).coefficient(context_on(IMAGE_TEXT, kept=kept)) == coefficient
    assert CILA(distillation=1.5).coefficient(context_on(IMAGE_TEXT)) == 1.0


def test_cila_steps_like_co2l_with_its_own_coefficient() -> None:
    memory = random_rows(AUDIO_IMAGE, seed=2, rows=SIZE)
    kept = {
        **taught(Co2L(memory_rows=SIZE), (AUDIO_IMAGE, memory)),
        "cila/contrast": torch.tensor(2.0),
        "cila/distillation": torch.tensor(5.0),
    }

    def step(method: Co2L, context: TrainingContext) -> list[Tensor]:
        return gradients_left_by(method, context, pair_for(method, context), NEW)

    context = context_on(IMAGE_TEXT, kept=kept)
    found = step(CILA(memory_rows=SIZE, distillation=1.0), context)
    expected = step(Co2L(memory_rows=SIZE, distillation=2.5), replace(context))
    assert all(map(torch.equal, found, expected))
    assert math.isfinite(float(found[0].sum()))


def test_temperatures_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="past_temperature is 0"):
        Co2L(past_temperature=0)
