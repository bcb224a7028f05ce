"""The policy preserve: what it blocks, its penalty, and where its heads start."""

import pytest
import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from tests.unit.methods.learned import (
    AUDIO_IMAGE,
    IMAGE_TEXT,
    SPEC,
    TEXT_AUDIO,
    TRAINING,
    learn_one,
    moved_pair,
    random_context,
    raw_rows,
)
from workers.methods.method import Batch, Solved, TrainingContext
from workers.methods.preserve import DriftPenalty, Preserve, input_basis
from workers.model.heads import ModalityHeads, PairedRows, initial_heads
from workers.model.memory import Memory
from workers.model.pair import trained_weight
from workers.nullspace.certificate import PairScores
from workers.nullspace.moments import SecondMoment
from workers.nullspace.subspace import eigenbasis
from workers.train.certify import PastDataset, certificates, weights_of
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.rows import RowsInMemory


def low_rank_rows(pair: ModalityPair, seed: int) -> PairedRows:
    """Both sides of rank 2, so that much stays free."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(128, 2, generator=generator)
    first, second = (
        latent @ torch.randn(2, SPEC.widths[modality], generator=generator)
        for modality in pair.modalities
    )
    keys = torch.arange(128)
    return PairedRows(first, second, keys, keys)


def learn_rows(
    spec: ModelSpec, before: ModelState, pair: ModalityPair, rows: PairedRows
) -> TrainingResult:
    return learn(spec, before, Task(pair, RowsInMemory(rows), 0))


@pytest.fixture(scope="module")
def policies() -> dict[str, tuple[ModalityHeads, ModalityHeads, PastDataset]]:
    """By policy: heads after the first and the second dataset, and the first's certificate data."""
    found = {}
    for policy in ("improve", "preserve"):
        spec = SPEC.model_copy(update={"policy": policy, "max_drift": 0.2})
        one = learn_one(spec, initial_state(spec), IMAGE_TEXT, 0)
        heads = one.model_state.heads
        earlier = PastDataset.in_memory(
            "one", IMAGE_TEXT, one.moments, weights_of(IMAGE_TEXT, heads)
        )
        two = learn_one(spec, one.model_state, AUDIO_IMAGE, 1, earlier)
        found[policy] = (heads, two.model_state.heads, earlier)
    return found


def test_penalty_is_the_gradient_of_the_squared_drift_of_one_head() -> None:
    """Against the certificate: one old pair, of which only the image head moves."""
    context = random_context(AUDIO_IMAGE, IMAGE_TEXT)
    module = moved_pair(context)
    rule = DriftPenalty(module, weight=1.0)
    start = module.second.change_EI.detach().clone()

    def squared_drift(change: torch.Tensor) -> float:
        space = module.second.space
        moved = dict(context.heads.weights)
        moved["image"] = trained_weight(moved["image"], change, space)
        heads = context.heads.replaced(moved)
        (moments,) = context.memory.by_pair.values()
        before, now = weights_of(IMAGE_TEXT, context.heads), weights_of(IMAGE_TEXT, heads)
        return PairScores(moments).drift(before, now) ** 2

    rule.backward(Batch(lambda: 0 * module.second.change_EI.sum(), raw_rows(AUDIO_IMAGE, 0)))
    gradient = module.second.change_EI.grad
    assert gradient is not None
    row, column = (int(index) for index in module.second.free_EI.nonzero()[0])
    step = torch.zeros_like(start)
    step[row, column] = 1e-4
    slope = (squared_drift(start + step) - squared_drift(start - step)) / 2e-4
    assert float(gradient[row, column]) == pytest.approx(slope, rel=1e-4)


def test_max_drift_is_kept_under_every_policy(policies) -> None:  # type: ignore[no-untyped-def]
    for parent, now, earlier in policies.values():
        drift = certificates([earlier], parent, now)["one"].drift
        assert 0 < drift.since_learned <= 0.2
        assert drift.since_learned == pytest.approx(drift.against_parent)


def test_sealed_bases_are_those_of_the_memory() -> None:
    """The stored decomposition of the last dataset equals a new one."""
    spec = SPEC.model_copy(update={"policy": "preserve"})
    one = learn_one(spec, initial_state(spec), IMAGE_TEXT, 0).model_state
    two = learn_one(spec, one, AUDIO_IMAGE, 1).model_state
    for modality in SPEC.modalities:
        inputs = two.memory.inputs_of(modality)
        assert inputs is not None
        context = TrainingContext(
            two.heads, two.memory, two.method_state, IMAGE_TEXT, TRAINING, seed=0
        )
        sealed = input_basis(context, modality, SecondMoment(0, torch.zeros_like(inputs.sum_II)))
        moment = sealed.moment_II
        torch.testing.assert_close(moment, inputs.sum_II, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("again", [False, True])
def test_new_pairs_train_in_one_output_basis(again: bool) -> None:
    context = random_context(IMAGE_TEXT if again else TEXT_AUDIO, IMAGE_TEXT, AUDIO_IMAGE)
    first, second = Preserve(0.9).update_spaces(context).values()
    assert torch.equal(first.outputs.vectors_II, second.outputs.vectors_II) is not again


def test_two_new_modalities_are_solved() -> None:
    spec = SPEC.model_copy(update={"policy": "preserve"})
    learned = learn_one(spec, initial_state(spec), IMAGE_TEXT, 0)
    assert isinstance(learned.trained, Solved)


def test_outputs_beyond_the_directions_of_the_first_dataset_are_used_by_later_ones() -> None:
    spec = SPEC.model_copy(update={"policy": "preserve"})
    one = learn_rows(spec, initial_state(spec), IMAGE_TEXT, low_rank_rows(IMAGE_TEXT, 0))
    two = learn_one(spec, one.model_state, AUDIO_IMAGE, 1).model_state
    for name in AUDIO_IMAGE.modalities:
        inputs = two.memory.inputs_of(name)
        assert inputs is not None
        # Rows of rank 2 have two directions, and the second dataset has six.
        assert eigenbasis(inputs.through(two.heads.weights[name])).rank_at(0.99) > 2


def test_initial_heads_are_the_seed_alone() -> None:
    assert initial_state(SPEC).memory == Memory()
    for name, weight in initial_heads(SPEC).weights.items():
        assert torch.equal(initial_state(SPEC).heads.weights[name], weight)
