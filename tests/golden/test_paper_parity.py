"""Method `paper` follows the published algorithm, written a second time in NumPy, to 1e-6."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import TrainingSpec
from tests.fakes.rotated_rows import rotated
from tests.golden.paper_reference import Learner, Rows, Settings, loss, same_items, slopes
from workers.methods.method import TrainingContext
from workers.methods.paper import Paper
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.model.rows import PairedRows
from workers.nullspace.moments import pair_moments
from workers.train.data.order import Plan, permuted_batches
from workers.train.loop import new_heads, train_pair
from workers.train.run import Run

WIDTH = 5
WIDTHS = {"image": 7, "text": 6, "audio": 8}
RANKS = {"image": 4, "text": 3, "audio": 3}
# A partner of rank 3 leaves P_out a null space of two; then the pair comes again, rotated round.
STREAM = (("image", "text"), ("audio", "image"), ("text", "image"))
ROWS = 24


def rows_of(pair: tuple[str, str], seed: int) -> Rows:
    """Features of low rank around a mean; the last two rows have the same second item."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=(ROWS, 4))
    sides = []
    for modality in pair:
        span = random.normal(size=(RANKS[modality], WIDTHS[modality]))
        side = (shared @ random.normal(size=(4, RANKS[modality])) + 0.5) @ span
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        sides.append(np.hstack([side, np.ones((ROWS, 1))]))
    sides[1][-1] = sides[1][-2]
    return Rows(sides[0], sides[1], range(ROWS), [*range(ROWS - 1), ROWS - 2])


def first_weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=(WIDTH, width + 1)) for name, width in WIDTHS.items()}


def by_reference(settings: Settings, training: TrainingSpec) -> list[dict[str, np.ndarray]]:
    learner, after = Learner(first_weights(), settings), []
    for number, pair in enumerate(STREAM):
        learner.learn(pair, rows_of(pair, number), batches_of(training, number))
        after.append(dict(learner.weights))
    return after


def batches_of(training: TrainingSpec, seed: int) -> Sequence[Sequence[int]]:
    batches = permuted_batches(ROWS, Plan(training.batch_size, training.epochs, seed))
    return [batch.tolist() for batch in batches]


def by_product(settings: Settings, training: TrainingSpec) -> list[dict[str, np.ndarray]]:
    method = Paper(settings.input_threshold, settings.output_threshold)
    heads = ModalityHeads({name: torch.from_numpy(one) for name, one in first_weights().items()})
    memory, after = Memory(), []
    for number, names in enumerate(STREAM):
        pair, rows = ModalityPair(first=names[0], second=names[1]), rows_of(names, number)
        context = TrainingContext(heads, memory, {}, pair, training, seed=number)
        spaces = method.update_spaces(context)
        tensors = as_tensors(rows)
        trained = train_pair(method, context, spaces, rotated(context, spaces, tensors), Run())
        heads = new_heads(context, spaces, trained.changes)
        memory = memory.with_dataset(pair, pair_moments(tensors.first_NI, tensors.second_NJ))
        after.append({name: weight.numpy() for name, weight in heads.weights.items()})
    return after


def as_tensors(rows: Rows) -> PairedRows:
    return PairedRows(
        torch.from_numpy(rows.first_NI),
        torch.from_numpy(rows.second_NI),
        torch.tensor(rows.first_items_N),
        torch.tensor(rows.second_items_N),
    )


@pytest.mark.parametrize(
    ("unit_vectors", "temperature", "thresholds"),
    [
        (True, 0.07, (0.1, 0.0)),
        (False, 1.0, (0.1, 0.0)),
        (True, 0.2, (0.0, 1.0)),
        (True, 0.2, (1e9, 0.0)),
    ],
    ids=["service's loss", "published loss", "all inputs, leading outputs", "nothing projected"],
)
def test_weights_follow_the_reference_over_three_datasets(
    unit_vectors: bool, temperature: float, thresholds: tuple[float, float]
) -> None:
    training = TrainingSpec(
        epochs=4,
        batch_size=8,
        learning_rate=1e-2,
        weight_decay=0.5,
        temperature=temperature,
        unit_vectors=unit_vectors,
        averaged_share=0,
    )
    settings = Settings(1e-2, 0.5, temperature, unit_vectors, *thresholds)
    for expected, found in zip(
        by_reference(settings, training), by_product(settings, training), strict=True
    ):
        for modality in WIDTHS:
            np.testing.assert_allclose(found[modality], expected[modality], rtol=0, atol=1e-6)


def test_cases_project_some_directions_and_leave_others() -> None:
    """Else parity would hold with any projections."""
    learner = Learner(first_weights(), Settings(1e-2, 0.5, 0.07, True, 0.1, 0.0))
    ranks = {}
    for number, pair in enumerate(STREAM):
        for modality in pair:
            spans = learner.projections(modality)
            ranks[number, modality] = spans and [round(float(one.trace())) for one in spans]
        learner.learn(pair, rows_of(pair, number), batches_of(TrainingSpec(batch_size=8), number))
    assert ranks[0, "image"] is None
    assert ranks[1, "audio"] is None
    outputs, inputs = ranks[1, "image"] or [0, 0]
    assert 0 < outputs < WIDTH
    assert 0 < inputs < RANKS["image"]


@pytest.mark.parametrize("unit_vectors", [True, False])
def test_gradient_of_the_reference_is_that_of_its_loss(unit_vectors: bool) -> None:
    """Central differences, entry by entry."""
    pair, rows, batch = STREAM[0], rows_of(STREAM[0], 0), range(16, ROWS)
    learner = Learner(first_weights(), Settings(0.0, 0.0, 0.3, unit_vectors, 0.1, 0.0))

    def value() -> float:
        sides = [
            side[batch] @ learner.weights[modality].T
            for side, modality in zip((rows.first_NI, rows.second_NI), pair, strict=True)
        ]
        if unit_vectors:
            sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
        return loss(sides[0] @ sides[1].T / 0.3, same_items(rows, batch))

    for modality, gradient in zip(pair, learner.gradients(pair, rows, batch), strict=True):
        weight, numeric = learner.weights[modality], np.zeros_like(gradient)
        for entry in np.ndindex(*weight.shape):
            ends = []
            for sign in (1, -1):
                learner.weights[modality] = weight.copy()
                learner.weights[modality][entry] += sign * 1e-6
                ends.append(value())
            numeric[entry] = (ends[0] - ends[1]) / 2e-6
        learner.weights[modality] = weight
        np.testing.assert_allclose(numeric, gradient, rtol=1e-5, atol=1e-8)


def test_slopes_vanish_where_shares_are_right() -> None:
    """With a single item everything is positive of everything: nothing is left to learn."""
    assert np.abs(slopes(np.zeros((4, 4)), np.ones((4, 4)))).max() < 1e-15
