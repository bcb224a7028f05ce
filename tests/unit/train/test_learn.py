"""Learning one dataset without a store: unusual data is learned, or rejected with a reason."""

import gc
from collections.abc import Iterator

import pytest
import torch

from benchmarks.baselines import BASELINES
from cmcl.contract.errors import NothingToLearn
from cmcl.contract.methods import BUILT_IN_METHODS
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from workers.methods.registry import method_class, method_for
from workers.model.heads import PairedRows
from workers.nullspace.certificate import PairWeights
from workers.train.certify import PastDataset, certificates, weights_of
from workers.train.evaluation import HeldOut, measure
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.rows import RowsInMemory

PAIR = ModalityPair(first="image", second="text")
SPEC = ModelSpec(
    width=8,
    modalities={"image": 12, "text": 6},
    training=TrainingSpec(epochs=8, batch_size=16, learning_rate=3e-3),
)


def spec_with(**changes: object) -> ModelSpec:
    return SPEC.model_copy(update=changes)


def latent_rows(seed: int, rows: int = 64) -> PairedRows:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 4, generator=generator)
    sides = [
        shared @ torch.randn(4, width, generator=generator)
        + 0.1 * torch.randn(rows, width, generator=generator)
        for width in SPEC.widths.values()
    ]
    keys = torch.arange(rows)
    return PairedRows(sides[0], sides[1], keys, keys)


def learned_from(
    rows: PairedRows,
    spec: ModelSpec = SPEC,
    before: ModelState | None = None,
    *earlier: PastDataset,
) -> TrainingResult:
    task = Task(PAIR, RowsInMemory(rows), seed=1, past=earlier)
    return learn(spec, before or initial_state(spec), task)


def as_rows(first: torch.Tensor, second: torch.Tensor) -> PairedRows:
    keys = torch.arange(len(first))
    return PairedRows(first, second, keys, keys)


ROWS = latent_rows(0)
RAMP = torch.linspace(1, 9, 32)[:, None]
# Rows of unit length are all equal.
STILL = {
    "all rows equal": as_rows(torch.ones(32, 12), torch.ones(32, 6)),
    "rank one": as_rows(RAMP * torch.ones(12), RAMP * torch.ones(6)),
    "one side alone": as_rows(ROWS.first_NI[:32], torch.ones(32, 6)),
    "an entry far larger than the rest": as_rows(
        ROWS.first_NI, torch.cat([ROWS.second_NJ[:, :5], torch.full((64, 1), 1.7e9)], dim=1)
    ),
}
ODD = {
    "rank one about the mean": as_rows(
        torch.cat([RAMP, torch.ones(32, 11)], dim=1), torch.cat([RAMP, torch.ones(32, 5)], dim=1)
    ),
    "constant columns": as_rows(
        torch.cat([ROWS.first_NI[:, :6], torch.full((64, 6), 3.0)], dim=1), ROWS.second_NJ
    ),
    "a column of zeros": as_rows(
        torch.cat([ROWS.first_NI[:, :11], torch.zeros(64, 1)], dim=1), ROWS.second_NJ
    ),
    "huge norms in float16": as_rows((ROWS.first_NI * 4000).half(), (ROWS.second_NJ * 4000).half()),
    "exactly one batch": ROWS.at(slice(0, 16)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_data_is_learned_twice_without_nan(name: str) -> None:
    """The second time it meets its own moments, mask, shares and replay."""
    first = learned_from(ODD[name])
    again = learned_from(ODD[name], before=first.model_state)
    for weight in again.model_state.heads.weights.values():
        assert bool(weight.isfinite().all())
    found = measure(again.model_state.heads, PAIR, HeldOut(ODD[name], None))
    assert found.at_1 >= 0


@pytest.mark.parametrize("policy", ["improve", "preserve"])
@pytest.mark.parametrize("name", STILL)
def test_a_side_that_does_not_vary_is_refused(name: str, policy: str) -> None:
    """Its heads would be zero, and the version would retrieve nothing."""
    with pytest.raises(NothingToLearn, match="have the same feature of"):
        learned_from(STILL[name], spec_with(policy=policy))


def test_a_pair_whose_scores_were_all_zero_does_not_keep_the_model_from_learning() -> None:
    heads = initial_state(SPEC).heads
    zero = heads.replaced({name: 0 * weight for name, weight in heads.weights.items()})
    moments = learned_from(ROWS).moments
    past = PastDataset.in_memory("zero", PAIR, moments, weights_of(PAIR, zero))
    (found,) = certificates([past], zero, learned_from(ROWS).model_state.heads).values()
    assert (found.drift.since_learned, set(found.quality.norm_change.values())) == (0.0, {0.0})


@pytest.fixture
def _without_older_objects() -> Iterator[None]:
    """Exclude objects of other tests from collections and counts, which would take seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_without_older_objects")
@pytest.mark.parametrize("name", [*BUILT_IN_METHODS, *BASELINES])
def test_learning_leaves_nothing_in_memory(name: str) -> None:
    """Warm ranks learn one dataset after another in the same processes."""
    spec = SPEC.model_copy(update={"method": name})
    place = BASELINES.get(name)
    method = method_for(spec) if place is None else method_class(place).from_spec(spec)

    def learned(seed: int, before: ModelState) -> ModelState:
        task = Task(PAIR, RowsInMemory(latent_rows(seed)), seed=1)
        return learn(spec, before, task, method=method).model_state

    before = learned(0, initial_state(spec))
    tensors, modules = _in_memory()
    learned(1, before)
    tensors_then, modules_then = _in_memory()
    assert tensors_then <= tensors
    assert modules_then <= modules


def _in_memory() -> tuple[int, int]:
    """Tensors, and modules that train."""
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]
    tensors = sum(issubclass(kind, torch.Tensor) for kind in kinds)
    return tensors, sum(issubclass(kind, torch.nn.Module) for kind in kinds)


def test_a_dataset_smaller_than_a_batch_is_rejected_where_rows_are_trained_on() -> None:
    with pytest.raises(NothingToLearn, match=r"5 rows and one batch takes 16.*policy improve"):
        learned_from(ROWS.at(slice(0, 5)), spec_with(policy="preserve"))


@pytest.mark.parametrize("rows", [2, 3, 5, 15])
def test_a_few_pairs_are_learned_from_their_moments(rows: int) -> None:
    few = ROWS.at(slice(0, rows))
    heads = learned_from(few).model_state.heads
    assert all(bool(weight_EI.isfinite().all()) for weight_EI in heads.weights.values())
    scores_NN = heads.embed("image", few.first_NI) @ heads.embed("text", few.second_NJ).mT
    assert scores_NN.diagonal().mean() > scores_NN.mean() + 0.2


@pytest.mark.parametrize("rows", [0, 1])
def test_one_pair_is_rejected_with_a_message(rows: int) -> None:
    with pytest.raises(NothingToLearn, match=f"{rows} rows, and at least 2"):
        learned_from(ROWS.at(slice(0, rows)))


def test_a_space_that_is_full_says_what_to_do() -> None:
    full = spec_with(policy="preserve", kept_energy=1.0).model_copy(update={"width": 6})
    first = learned_from(latent_rows(1), full)
    with pytest.raises(NothingToLearn, match=r"all \d+ entries .*100 %.*larger width.*kept_energy"):
        learned_from(latent_rows(2), full, first.model_state)


def test_shrinking_keeps_the_bound_and_says_what_it_cost() -> None:
    spec = spec_with(policy="preserve", kept_energy=0.3, max_drift=0.02)
    first = learned_from(latent_rows(1), spec)
    heads = first.model_state.heads
    earlier = PastDataset.in_memory("one", PAIR, first.moments, weights_of(PAIR, heads))
    second = learned_from(latent_rows(2), spec, first.model_state, earlier)
    assert second.shrinkage is not None
    assert second.shrinkage.drift_before > 0.02 >= second.shrinkage.drift_after
    assert second.shrinkage.loss_after > second.shrinkage.loss_before
    drift = certificates([earlier], heads, second.model_state.heads)["one"].drift
    assert drift.since_learned == pytest.approx(second.shrinkage.drift_after, rel=1e-4)


def test_conditioning_stays_that_of_the_first_dataset() -> None:
    spec = spec_with(policy="preserve")
    first = learned_from(latent_rows(1), spec).model_state
    second = learned_from(latent_rows(2), spec, before=first).model_state
    for modality in PAIR.modalities:
        assert second.heads.conditioning[modality] is first.heads.conditioning[modality]


def test_old_scores_stay_to_rounding_when_the_pair_comes_again() -> None:
    """Exactly low-rank old data, everything protected, through the whole of learn()."""
    spec = ModelSpec(
        width=16,
        modalities={"image": 30, "text": 24},
        training=TrainingSpec(epochs=30, batch_size=32, learning_rate=3e-3),
        policy="preserve",
        kept_energy=1.0,
        max_drift=1e6,
    )
    generator = torch.Generator().manual_seed(0)
    mixing = [torch.randn(3, width, generator=generator) for width in (30, 24)]
    new_mixing = [torch.randn(20, width, generator=generator) for width in (30, 24)]

    def rows(mix: list[torch.Tensor], seed: int) -> PairedRows:
        latent = torch.randn(64, len(mix[0]), generator=torch.Generator().manual_seed(seed))
        return as_rows(latent @ mix[0], latent @ mix[1])

    first = learned_from(rows(mixing, 1), spec)
    then = weights_of(PAIR, first.model_state.heads)
    second = learned_from(rows(new_mixing, 2), spec, first.model_state)
    now = second.model_state.heads
    old = rows(mixing, 1)
    features = [now.prepare("image", old.first_NI), now.prepare("text", old.second_NJ)]

    def scores(weights: PairWeights) -> torch.Tensor:
        return (features[0] @ weights.first_EI.mT) @ (features[1] @ weights.second_EJ.mT).mT

    before, after = scores(then), scores(weights_of(PAIR, now))
    assert float((after - before).norm() / before.norm()) < 1e-3
    for modality in PAIR.modalities:
        moved = now.weights[modality] - first.model_state.heads.weights[modality]
        assert float(moved.norm()) > 0.1
