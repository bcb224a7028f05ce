"""The published update equals a slow loop in plain PyTorch, and figures equal their definition."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.chain import Dataset, learn_one
from benchmarks.paper.features import EvaluationRows, StepData
from benchmarks.paper.metrics import StepFigures, drawn_recall, measure_step, summary
from benchmarks.paper.protocol import STEPS, Step
from benchmarks.paper.unscaled import (
    PublishedUpdate,
    published_start,
    radii,
    unscaled_steps,
    with_lengths,
)
from cmcl.contract.model import ModelSpec
from workers.methods.method import Recipe, Vanilla
from workers.model.heads import PairedRows
from workers.train.evaluation import HeldOut
from workers.train.rows import BatchPlan, permuted_batches

WIDTH, ROWS, BATCH, EPOCHS, RATE, DECAY = 6, 40, 8, 3, 0.01, 0.1


def step_data(step: Step = STEPS[1]) -> StepData:
    """Features whose lengths differ by a factor of ten between the sides."""
    draws = torch.Generator().manual_seed(3)
    first_NF = torch.randn(ROWS, WIDTH, generator=draws)
    second_NF = 0.1 * (first_NF + 0.3 * torch.randn(ROWS, WIDTH, generator=draws))
    keys_N = torch.zeros(ROWS, dtype=torch.int64)  # all rows would be positives of each other
    training = PairedRows(first_NF, second_NF, keys_N, keys_N)
    test = EvaluationRows(first_NF[:9], second_NF[:9])
    return StepData(step, training, test)


def spec() -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "width": WIDTH,
            "method": "vanilla",
            "modalities": {"text": WIDTH + 1, "audio": WIDTH + 1},
            "training": {
                "epochs": EPOCHS,
                "batch_size": BATCH,
                "learning_rate": RATE,
                "temperature": 1.0,
            },
        }
    )


def slow_loop(data: StepData) -> list[torch.Tensor]:
    """Weight and bias of two torch.nn.Linear, as changes of the identity: with the decay of the product."""
    changes = [torch.zeros(WIDTH, WIDTH + 1, requires_grad=True) for _ in range(2)]
    start = torch.cat([torch.eye(WIDTH), torch.zeros(WIDTH, 1)], dim=1)
    optimizer = torch.optim.AdamW(changes, lr=RATE, weight_decay=DECAY, eps=1e-6)
    plan = BatchPlan(BATCH, EPOCHS, 0)
    total = plan.updates(ROWS)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / total)
    for index_B in permuted_batches(ROWS, plan):
        sides = (data.training.first_NI[index_B], data.training.second_NJ[index_B])
        first, second = (
            torch.cat([side, torch.ones(BATCH, 1)], dim=1) @ (start + change).mT
            for side, change in zip(sides, changes, strict=True)
        )
        optimizer.zero_grad()
        loss = cross_entropy(first @ second.mT, torch.arange(BATCH))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(changes, 1.0)
        optimizer.step()
        decay.step()
    return [(start + change).detach() for change in changes]


def test_the_published_update_equals_a_slow_loop() -> None:
    data = step_data()
    lengths = radii([data])
    (unscaled,) = unscaled_steps([data], lengths)
    keys_N = unscaled.training.first_keys_N
    held_out = HeldOut(PairedRows(keys_N, keys_N, keys_N, keys_N), None)
    dataset = Dataset("one", data.step.pair, unscaled.training, held_out)
    method = PublishedUpdate(Vanilla(), BatchPlan(BATCH, EPOCHS, 0).updates(ROWS))
    recipe = Recipe(DECAY, averaged_share=0.0, unit_length=False)
    learned = learn_one(spec(), published_start(spec(), lengths), dataset, (), method, recipe)
    first_EI, second_EI = (
        learned.model_state.heads.weights[modality] for modality in ("text", "audio")
    )
    expected_first_EI, expected_second_EI = slow_loop(data)
    moved = expected_first_EI - torch.cat([torch.eye(WIDTH), torch.zeros(WIDTH, 1)], dim=1)
    assert moved.abs().max() > 0.01
    torch.testing.assert_close(first_EI, expected_first_EI, atol=2e-5, rtol=0)
    # The bias of the second head adds the same to all scores of a row: its gradient is rounding.
    torch.testing.assert_close(second_EI[:, :-1], expected_second_EI[:, :-1], atol=2e-5, rtol=0)


def test_heads_read_features_with_their_lengths() -> None:
    data = step_data()
    lengths = radii([data])
    heads = published_start(spec(), lengths).heads
    for modality, rows_NF in (("text", data.test.first_NF), ("audio", data.test.second_NF)):
        given = with_lengths(rows_NF, lengths[modality])
        torch.testing.assert_close(heads.outputs(modality, given), rows_NF, atol=1e-6, rtol=1e-5)


def test_accuracy_and_recall_are_those_of_the_definition() -> None:
    draws = torch.Generator().manual_seed(0)
    first, second, texts = (torch.randn(30, 4, generator=draws) for _ in range(3))
    classes = torch.randint(5, (30,), generator=draws)
    data = step_data()
    test = EvaluationRows(first, second, texts[:5], classes, queries=1)
    data = StepData(STEPS[1], data.training, test)
    found = measure_step(lambda modality, rows: 2 * rows, data, seed=0)
    scores = second.numpy() @ texts[:5].numpy().T
    assert found.accuracy == pytest.approx(np.mean(scores.argmax(axis=1) == classes.numpy()))
    # Fewer than 1,000 rows: every draw has all of them, so that recall needs no random numbers.
    scores = first.numpy() @ second.numpy().T
    for count, value in ((1, found.recall_at_1), (5, found.recall_at_5), (10, found.recall_at_10)):
        ways = [
            np.mean([row in np.argsort(-way[row])[:count] for row in range(30)])
            for way in (scores, scores.T)
        ]
        assert value == pytest.approx(np.mean(ways))


def test_draws_have_at_most_a_thousand_rows_and_follow_from_the_seed() -> None:
    rows = torch.randn(1500, 8, generator=torch.Generator().manual_seed(1))
    other = rows + torch.randn(1500, 8, generator=torch.Generator().manual_seed(2))
    assert drawn_recall(rows, other, 5) == drawn_recall(rows, other, 5)
    assert drawn_recall(rows, other, 5) != drawn_recall(rows, other, 6)
    # Against all 1,500 rows recall would be lower than in draws of 1,000.
    best = (rows @ other.mT).argmax(dim=1)
    everywhere = float((best == torch.arange(1500)).double().mean())
    assert drawn_recall(rows, other, 5)[0] > everywhere


def test_backward_transfer_is_over_earlier_steps_that_have_the_test() -> None:
    def figures(accuracy: float | None, at_10: float | None) -> StepFigures:
        return StepFigures(accuracy, at_10, at_10, at_10)

    matrix = [
        [figures(0.5, None), figures(None, 0.1), figures(0.0, 0.0)],
        [figures(0.4, None), figures(None, 0.6), figures(0.0, 0.0)],
        [figures(0.3, None), figures(None, 0.5), figures(0.7, 0.9)],
    ]
    found = summary(matrix)
    assert found["bwt_accuracy"] == pytest.approx(-0.2)
    assert found["bwt_recall_at_10"] == pytest.approx(-0.1)
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["recall_at_10"] == pytest.approx(0.7)
