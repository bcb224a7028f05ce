"""`paper_as_published` follows the published code, written a second time in NumPy, to 1e-6 in each step.

The eleven steps of the protocol: which pair each step trains, and which modalities a sample of its source
has, in the order in which they are stored. Five pairs are not the stored positions 0 and 1.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from benchmarks.baselines.paper_as_published import PaperAsPublished
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import TrainingSpec
from tests.fakes.rotated_rows import rotated, seen
from tests.golden.paper_reference import Array, Learner, Rows, Settings, loss, same_items
from workers.methods.method import MethodState, Recipe, TrainingContext
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.memory import Memory
from workers.nullspace.moments import pair_moments
from workers.train.loop import new_heads, train_pair
from workers.train.rows import BatchPlan, permuted_batches
from workers.train.run import Run

WEIGHT_DECAY = 0.5
STEPS = (
    (("text", "video"), ("text", "video")),  # UCF101
    (("text", "audio"), ("text", "audio")),  # ESC-50
    (("vision", "depth"), ("vision", "text", "depth")),  # NYUDv2
    (("text", "audio"), ("text", "audio")),  # Clotho
    (("text", "audio"), ("text", "audio", "video")),  # VGGSound-S
    (("text", "video"), ("text", "audio", "video")),
    (("audio", "video"), ("text", "audio", "video")),
    (("vision", "tactile"), ("vision", "text", "tactile")),  # TVL
    (("text", "tactile"), ("vision", "text", "tactile")),
    (("vision", "text"), ("vision", "text", "tactile")),
    (("vision", "thermal"), ("vision", "thermal")),  # LLVIP
)
# Lengths of features differ between modalities, as those of ImageBind do.
LENGTHS = {
    "vision": 1.0,
    "text": 3.0,
    "audio": 0.7,
    "thermal": 1.5,
    "depth": 0.5,
    "video": 1.2,
    "tactile": 2.0,
}
WIDTH = 6


def rows_of(step: int) -> Rows:
    """Related features of all modalities of a source; the last two rows have the same second item.

    Sources have different numbers of rows, so that the counter matters.
    """
    random = np.random.default_rng(step)
    pair, positions = STEPS[step]
    count = 24 + 2 * step
    shared = random.normal(size=(count, 4))
    features = {
        modality: LENGTHS[modality]
        * 0.3
        * (shared @ random.normal(size=(4, WIDTH)) + 0.3 * random.normal(size=(count, WIDTH)) + 0.5)
        for modality in positions
    }
    features[pair[1]][-1] = features[pair[1]][-2]
    first, second = (np.hstack([features[m], np.ones((count, 1))]) for m in pair)
    stored = (features[positions[0]], features[positions[1]])
    return Rows(first, second, range(count), [*range(count - 1), count - 2], stored)


def first_weights() -> dict[str, Array]:
    """The identity, without a bias."""
    identity = np.hstack([np.eye(WIDTH), np.zeros((WIDTH, 1))])
    return {modality: identity.copy() for modality in LENGTHS}


def by_reference(settings: Settings, training: TrainingSpec) -> list[dict[str, Array]]:
    learner, after = Learner(first_weights(), settings), []
    for step, (pair, _) in enumerate(STEPS):
        rows = rows_of(step)
        learner.learn(pair, rows, batches_of(training, rows, step))
        after.append(dict(learner.weights))
    return after


def batches_of(training: TrainingSpec, rows: Rows, seed: int) -> Sequence[Sequence[int]]:
    plan = BatchPlan(training.batch_size, training.epochs, seed)
    return [batch.tolist() for batch in permuted_batches(len(rows.first_NI), plan)]


def by_baseline(settings: Settings, training: TrainingSpec) -> list[dict[str, Array]]:
    stored = {
        step: pair_moments(*(with_constant(side) for side in rows_of(step).stored))
        for step, (pair, positions) in enumerate(STEPS)
        if pair != positions[:2]
    }
    assert len(stored) == 5
    method = PaperAsPublished(
        settings.input_threshold, settings.output_threshold, settings.largest_norm, stored
    )
    heads = ModalityHeads({name: torch.from_numpy(one) for name, one in first_weights().items()})
    recipe = Recipe(settings.decay, averaged_share=0.0, unit_length=settings.unit_length)
    state: MethodState = {}
    after = []
    for step, (names, _) in enumerate(STEPS):
        pair, tensors = ModalityPair(first=names[0], second=names[1]), as_tensors(rows_of(step))
        context = TrainingContext(heads, Memory(), state, pair, training, step, recipe)
        spaces = method.update_spaces(context)
        trained = train_pair(method, context, spaces, rotated(context, spaces, tensors), Run())
        heads = new_heads(context, spaces, trained.changes)
        state = method.next_state(context, heads, seen(tensors))
        after.append({name: weight.numpy() for name, weight in heads.weights.items()})
    return after


def with_constant(rows_NF: Array) -> torch.Tensor:
    return torch.from_numpy(np.hstack([rows_NF, np.ones((len(rows_NF), 1))]))


def as_tensors(rows: Rows) -> PairedRows:
    return PairedRows(
        torch.from_numpy(rows.first_NI),
        torch.from_numpy(rows.second_NI),
        torch.tensor(rows.first_items_N),
        torch.tensor(rows.second_items_N),
    )


def settings_of(
    training: TrainingSpec, unit_length: bool, thresholds: tuple[float, float]
) -> Settings:
    return Settings(
        training.learning_rate,
        WEIGHT_DECAY,
        training.temperature,
        unit_length,
        *thresholds,
        largest_norm=1.0,
    )


def training_with(temperature: float) -> TrainingSpec:
    return TrainingSpec(epochs=3, batch_size=8, learning_rate=1e-2, temperature=temperature)


@pytest.mark.parametrize(
    ("unit_length", "temperature", "thresholds"),
    [
        (False, 1.0, (0.1, 0.0)),
        (True, 0.07, (0.1, 0.0)),
        (True, 0.2, (0.0, 0.1)),
        (True, 0.2, (1e9, 0.0)),
    ],
    ids=["published", "service's loss", "all inputs, leading outputs", "nothing projected"],
)
def test_weights_follow_the_reference_in_each_of_the_eleven_steps(
    unit_length: bool, temperature: float, thresholds: tuple[float, float]
) -> None:
    training = training_with(temperature)
    settings = settings_of(training, unit_length, thresholds)
    expected, found = by_reference(settings, training), by_baseline(settings, training)
    for step in range(len(STEPS)):
        for modality in LENGTHS:
            np.testing.assert_allclose(
                found[step][modality], expected[step][modality], rtol=0, atol=1e-6
            )


def test_cases_clip_and_project_some_directions_and_leave_others() -> None:
    """Otherwise parity would hold with any clipping and any projection."""
    training = training_with(1.0)
    learner = Learner(first_weights(), settings_of(training, False, (0.1, 0.0)))
    ranks, clipped = [], []
    for step, (pair, _) in enumerate(STEPS):
        rows = rows_of(step)
        batches = batches_of(training, rows, step)
        for modality in pair:
            both = learner.projections(modality)
            ranks.append(None if both is None else round(float(both[1].trace())))
            assert both is None or round(float(both[0].trace())) == WIDTH
        gradients = learner.gradients(pair, rows, batches[0])
        clipped.append(np.sqrt(sum((gradient**2).sum() for gradient in gradients)) > 1)
        learner.learn(pair, rows, batches)
    assert ranks[:2] == [None, None]
    assert any(rank is not None and 0 < rank < WIDTH for rank in ranks)
    assert len({rank for rank in ranks if rank is not None}) > 1
    assert set(clipped) == {True, False}


@pytest.mark.parametrize("unit_length", [True, False])
def test_gradient_of_the_reference_is_that_of_its_loss(unit_length: bool) -> None:
    """Central differences, entry by entry."""
    (pair, _), rows = STEPS[0], rows_of(0)
    batch = range(len(rows.first_NI) - 8, len(rows.first_NI))
    training = training_with(0.3)
    learner = Learner(first_weights(), settings_of(training, unit_length, (0.1, 0.0)))

    def value() -> float:
        sides = [
            side[batch] @ learner.weights[modality].T
            for side, modality in zip((rows.first_NI, rows.second_NI), pair, strict=True)
        ]
        if unit_length:
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
