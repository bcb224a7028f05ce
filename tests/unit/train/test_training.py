"""Training in eigen-coordinates: what is blocked never moves, and what is free learns."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from cmcl.contract.errors import TrainingDiverged
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from tests.fakes.rotated_rows import rotate, rotated
from workers.methods.method import Method, Recipe, TrainingContext, UpdateRule, Vanilla
from workers.methods.preserve import Preserve
from workers.model.heads import ModalityHeads, PairedRows, initial_heads
from workers.model.loss import unit
from workers.model.memory import Memory
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.mask import everything_free
from workers.nullspace.moments import PairMoments, pair_moments
from workers.train.distributed import World
from workers.train.loop import TrainedPair, new_heads, optimizer_for, train_pair
from workers.train.run import Run, UpdateDone, Watcher

IMAGE_TEXT = ModalityPair(first="image", second="text")
DEPTH_IMAGE = ModalityPair(first="depth", second="image")
SPEC = ModelSpec(
    width=16,
    lift=0,
    modalities={"image": 24, "text": 10, "depth": 12},
    training=TrainingSpec(epochs=30, batch_size=32, learning_rate=3e-3),
)
ALONE = World(0, 1)


def features(pair: ModalityPair, rank: int, seed: int, rows: int = 128) -> list[torch.Tensor]:
    """Paired features that lie in `rank` dimensions, with the constant 1."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, rank, generator=generator)
    sides = [
        unit(shared @ torch.randn(rank, SPEC.widths[modality], generator=generator))
        for modality in pair.modalities
    ]
    return [torch.cat([side, torch.ones(rows, 1)], dim=1) for side in sides]


@dataclass(frozen=True)
class Outcome:
    """The result of training, and the heads that follow from it."""

    heads: ModalityHeads
    trained: TrainedPair


class RecordingWatcher(Watcher):
    """Calls a function for each update."""

    def __init__(self, on_update: Callable[[UpdateDone], None]) -> None:
        self._on_update = on_update

    def update_done(self, update: UpdateDone) -> None:
        self._on_update(update)


def context_on(
    pair: ModalityPair,
    memory: Memory,
    training: TrainingSpec = SPEC.training,
    recipe: Recipe | None = None,
) -> TrainingContext:
    return TrainingContext(initial_heads(SPEC), memory, {}, pair, training, 1, recipe or Recipe())


def train(
    pair: ModalityPair,
    rows: list[torch.Tensor],
    memory: Memory,
    method: Method | float | None,
    training: TrainingSpec = SPEC.training,
    *,
    recipe: Recipe | None = None,
    on_update: Callable[[UpdateDone], None] = lambda _: None,
) -> Outcome:
    """A number is the energy that the method keeps; None protects nothing."""
    if not isinstance(method, Method):
        method = Vanilla() if method is None else Preserve(method)
    context, keys = context_on(pair, memory, training, recipe), torch.arange(len(rows[0]))
    spaces = method.update_spaces(context)
    data = PairedRows(rows[0], rows[1], keys, keys)
    watcher = RecordingWatcher(on_update)
    rows_turned = rotated(context, spaces, data)
    trained = train_pair(method, context, spaces, rows_turned, Run(watcher=watcher))
    return Outcome(new_heads(context, spaces, trained.changes), trained)


def drift(moments: PairMoments, pair: ModalityPair, now: Outcome) -> float:
    start = initial_heads(SPEC).weights
    first, second = pair.modalities
    return PairScores(moments).drift(
        PairWeights(start[first], start[second]),
        PairWeights(now.heads.weights[first], now.heads.weights[second]),
    )


def test_scores_of_a_low_rank_dataset_stay_put_while_the_next_is_learned() -> None:
    """One head of the old pair moves: the mask holds its scores to the rounding of float32."""
    old = pair_moments(*features(IMAGE_TEXT, rank=5, seed=0))
    memory = Memory().with_dataset(IMAGE_TEXT, old)
    new = features(DEPTH_IMAGE, rank=8, seed=1)
    protected, free = (train(DEPTH_IMAGE, new, memory, kept) for kept in (1.0, None))
    assert drift(old, IMAGE_TEXT, protected) < 1e-5
    assert drift(old, IMAGE_TEXT, free) > 0.05
    chance = math.log(SPEC.training.batch_size)
    assert protected.trained.final_loss < 0.15 * chance
    assert free.trained.final_loss < 0.15 * chance


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_blocked_entries_are_bit_equal_after_training(decay: float) -> None:
    memory = Memory().with_dataset(IMAGE_TEXT, pair_moments(*features(IMAGE_TEXT, 5, seed=2)))
    context = context_on(IMAGE_TEXT, memory)
    spaces = Preserve(0.99).update_spaces(context)
    first, second = ((context.heads.weights[m], spaces[m]) for m in IMAGE_TEXT.modalities)
    module = PairInEigenCoordinates(first, second)
    stepper = optimizer_for(module, 0.1, decay)
    rows = features(IMAGE_TEXT, 9, seed=3)
    for _ in range(20):
        out = module(rotate(rows[0], spaces["image"]), rotate(rows[1], spaces["text"]))
        stepper.zero_grad()
        (out[0] * out[1]).sum().backward()
        stepper.step()
    for head, modality in ((module.first, "image"), (module.second, "text")):
        blocked = ~spaces[modality].free_EI
        assert blocked.any()
        assert torch.equal(head.change_EI[blocked], torch.zeros(int(blocked.sum())))
        assert (head.change_EI[~blocked] != 0).any()


def test_eigen_coordinates_change_no_embedding_before_training() -> None:
    memory = Memory().with_dataset(IMAGE_TEXT, pair_moments(*features(IMAGE_TEXT, 5, seed=4)))
    context = context_on(IMAGE_TEXT, memory)
    spaces = Preserve(0.9).update_spaces(context)
    weights = context.heads.weights
    first, second = ((weights[m], spaces[m]) for m in IMAGE_TEXT.modalities)
    rows = features(IMAGE_TEXT, 9, seed=5)
    one, other = PairInEigenCoordinates(first, second)(
        rotate(rows[0], spaces["image"]), rotate(rows[1], spaces["text"])
    )
    expected = (rows[0] @ weights["image"].mT) @ (rows[1] @ weights["text"].mT).mT
    torch.testing.assert_close(one @ other.mT, expected, atol=1e-5, rtol=1e-5)


def test_training_twice_gives_the_same_bits() -> None:
    rows = features(IMAGE_TEXT, rank=8, seed=6)
    one, other = (train(IMAGE_TEXT, rows, Memory(), 0.95) for _ in range(2))
    assert all(
        torch.equal(one.heads.weights[name], other.heads.weights[name]) for name in SPEC.modalities
    )


def test_heads_of_other_modalities_are_left_alone() -> None:
    trained = train(IMAGE_TEXT, features(IMAGE_TEXT, 8, seed=7), Memory(), 0.95)
    start = initial_heads(SPEC).weights
    assert torch.equal(trained.heads.weights["depth"], start["depth"])
    assert not torch.equal(trained.heads.weights["image"], start["image"])


def test_each_update_is_reported_with_its_number() -> None:
    reported: list[UpdateDone] = []
    train(IMAGE_TEXT, features(IMAGE_TEXT, 8, seed=8), Memory(), None, on_update=reported.append)
    assert [update.done for update in reported] == list(range(1, 121))
    assert {update.total for update in reported} == {120}
    assert reported[-1].local_loss < reported[0].local_loss


def test_heads_are_the_mean_over_the_last_share_of_updates() -> None:
    """One update after one epoch of one batch: the mean of both is half way between."""
    rows = features(IMAGE_TEXT, 8, seed=9)

    def after(epochs: int, share: float) -> torch.Tensor:
        training = TrainingSpec(epochs=epochs, batch_size=128)
        recipe = Recipe(averaged_share=share)
        return train(IMAGE_TEXT, rows, Memory(), None, training, recipe=recipe).trained.changes[0]

    mean = (after(1, 0.0) + after(2, 0.0)) / 2
    torch.testing.assert_close(after(2, 0.9), mean)


@pytest.mark.parametrize("unit_length", [True, False])
def test_the_first_loss_is_that_of_embeddings_with_the_length_that_the_recipe_says(
    unit_length: bool,
) -> None:
    """One batch, whose loss is computed before the update."""
    rows, training = features(IMAGE_TEXT, 8, seed=9), TrainingSpec(epochs=1, batch_size=128)
    recipe, losses = Recipe(averaged_share=0.0, unit_length=unit_length), list[float]()
    train(
        IMAGE_TEXT,
        rows,
        Memory(),
        None,
        training,
        recipe=recipe,
        on_update=lambda update: losses.append(float(update.local_loss)),
    )
    start = initial_heads(SPEC).weights
    outputs = [
        side @ start[name].mT for side, name in zip(rows, IMAGE_TEXT.modalities, strict=True)
    ]
    first, second = (unit(each) if unit_length else each for each in outputs)
    scores, own = first @ second.mT / training.temperature, torch.arange(len(first))
    expected = sum(torch.nn.functional.cross_entropy(each, own) for each in (scores, scores.mT)) / 2
    assert losses[0] == pytest.approx(float(expected), rel=1e-4)


def test_bfloat16_products_learn_with_heads_of_float32() -> None:
    """On any device."""
    rows = features(IMAGE_TEXT, 8, seed=11)
    rough = SPEC.training.model_copy(update={"precision": "bfloat16"})
    exact_run, rough_run = (
        train(IMAGE_TEXT, rows, Memory(), None, training) for training in (SPEC.training, rough)
    )
    assert rough_run.trained.final_loss != exact_run.trained.final_loss
    assert abs(rough_run.trained.final_loss - exact_run.trained.final_loss) < 0.1
    assert rough_run.heads.weights["image"].dtype == torch.float32


def test_training_ends_soon_after_the_first_loss_that_is_not_finite() -> None:
    class BreaksInTheMiddle(Vanilla):
        def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
            return _BreaksAt(14, pair)

    rows, losses = features(IMAGE_TEXT, 8, seed=20), list[float]()
    with pytest.raises(
        TrainingDiverged, match=r"smaller training\.learning_rate \(now 0\.003\)"
    ) as error:
        train(
            IMAGE_TEXT,
            rows,
            Memory(),
            BreaksInTheMiddle(),
            on_update=lambda update: losses.append(float(update.local_loss)),
        )
    first = next(done for done, loss in enumerate(losses, start=1) if not math.isfinite(loss))
    assert f"loss of update {first} of 120" in str(error.value)
    assert 14 < first <= len(losses) < first + 10


def test_heads_that_only_the_last_update_broke_are_no_result() -> None:
    """Its loss is still finite."""

    class LastUpdateBreaks(Vanilla):
        def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
            return _BreaksAt(12, pair)

    rows = features(IMAGE_TEXT, 8, seed=20)
    short = SPEC.training.model_copy(update={"epochs": 3})
    with pytest.raises(TrainingDiverged, match="heads are not finite after the last update, 12"):
        train(IMAGE_TEXT, rows, Memory(), LastUpdateBreaks(), short)


class _BreaksAt(UpdateRule):
    def __init__(self, update: int, pair: PairInEigenCoordinates) -> None:
        self._left, self._pair = update, pair

    @torch.no_grad()
    def after_update(self, learning_rate: float) -> None:
        assert learning_rate == SPEC.training.learning_rate
        self._left -= 1
        if self._left == 0:
            self._pair.second.change_EI[0, 0] = math.inf


def test_reported_update_figures_are_those_of_the_mask() -> None:
    """Gradient norm, share removed and drift so far, against the formulas."""
    memory = Memory().with_dataset(IMAGE_TEXT, pair_moments(*features(IMAGE_TEXT, 5, seed=12)))
    context = context_on(DEPTH_IMAGE, memory)
    spaces = Preserve(0.9).update_spaces(context)
    first, second = ((context.heads.weights[m], spaces[m]) for m in DEPTH_IMAGE.modalities)
    pair = PairInEigenCoordinates(first, second)
    rows = features(DEPTH_IMAGE, 9, seed=13)
    turned_rows = [
        rotate(side, spaces[m]) for side, m in zip(rows, context.pair.modalities, strict=True)
    ]
    pair.record_gradients(True)
    out = pair(*turned_rows)
    (out[0] * out[1]).sum().backward()
    free = PairInEigenCoordinates(
        *((weight, everything_free(*weight.shape)) for weight, _ in (first, second))
    )
    with torch.no_grad():
        pair.second.change_EI.add_(0.01 * pair.second.free_EI)
    left = sum(
        float(change.grad.square().sum()) for change in pair.changes if change.grad is not None
    )
    whole = sum(
        float(each[0]) for head in (pair.first, pair.second) for each in head.recorded or []
    )
    assert pair.gradient_norm() == pytest.approx(left**0.5)
    assert 0 < pair.removed_share() < 1
    # Two sums of float32, of which one is nearly the other.
    assert pair.removed_share() == pytest.approx(1 - left / whole, rel=1e-4)
    space, change = spaces["image"], pair.second.change_EI.detach().double()
    size = (space.energy_EI * pair.second.start_EI.double().square()).sum()
    expected = ((space.energy_EI * change.square()).sum() / size) ** 0.5
    assert pair.drift_so_far() == pytest.approx(float(expected), rel=1e-4)
    assert free.drift_so_far() is None
    pair.record_gradients(False)
    assert pair.removed_share() == 0.0
