"""Moment replay, sampled replay and the two policies of the null space."""

import dataclasses

import pytest
import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, ProtectionSpec, TrainingSpec
from workers.methods.method import Batch, ReplicaGroup, Solved, TrainingContext
from workers.methods.moment_replay import MomentReplay
from workers.methods.nullspace import DriftPenalty, Preserve, input_basis
from workers.methods.sampled_replay import gaussian_rows
from workers.model.heads import ModalityHeads, initial_heads
from workers.model.memory import Memory
from workers.model.pair import PairInEigenCoordinates, trained_weight
from workers.model.rows import PairedRows
from workers.nullspace.certificate import PairWeights, quality_loss, relative_drift
from workers.nullspace.moments import PairMoments, SecondMoment, pair_moments
from workers.nullspace.subspace import eigenbasis
from workers.train.certify import PastDataset, certificates, weights_of
from workers.train.data.rows import HeldRows
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.loop import TrainedPair

IMAGE_TEXT = ModalityPair(first="image", second="text")
AUDIO_IMAGE = ModalityPair(first="audio", second="image")
TEXT_AUDIO = ModalityPair(first="text", second="audio")
TRAINING = TrainingSpec(epochs=6, batch_size=32, learning_rate=3e-3)
SPEC = ModelSpec(width=12, modalities={"image": 20, "text": 9, "audio": 14}, training=TRAINING)


def raw_rows(pair: ModalityPair, seed: int, rows: int = 256) -> PairedRows:
    """Pairs that share a latent of rank 6, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 6, generator=generator)
    sides = []
    for modality in pair.modalities:
        mixing = torch.Generator().manual_seed(sum(map(ord, modality)))
        width = SPEC.widths[modality]
        clean = shared @ torch.randn(6, width, generator=mixing)
        sides.append(clean + 0.3 * torch.randn(rows, width, generator=generator) + 1.0)
    keys = torch.arange(rows)
    return PairedRows(sides[0], sides[1], keys, keys)


def learn_one(
    spec: ModelSpec, before: ModelState, pair: ModalityPair, seed: int, *earlier: PastDataset
) -> TrainingResult:
    task = Task(pair, HeldRows(raw_rows(pair, seed)), seed, earlier)
    return learn(spec, before, task)


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
    return learn(spec, before, Task(pair, HeldRows(rows), 0))


def random_context(pair: ModalityPair, *datasets: ModalityPair) -> TrainingContext:
    """Heads that have learned what their moments say, more or less: true pairs score higher."""
    model_state = initial_state(SPEC)
    for seed, dataset in enumerate(datasets):
        model_state = learn_one(SPEC, model_state, dataset, seed).model_state
    double = {name: weight.double() for name, weight in model_state.heads.weights.items()}
    heads = model_state.heads.replaced(double)
    return TrainingContext(heads, model_state.memory, {}, pair, TRAINING, seed=0)


def moved_pair(context: TrainingContext) -> PairInEigenCoordinates:
    """The pair somewhere on its way, in float64."""
    spaces = Preserve(0.8).update_spaces(context)
    first, second = ((context.heads.weights[m], spaces[m]) for m in context.pair.modalities)
    pair = PairInEigenCoordinates(first, second)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for change in pair.changes:
            change.copy_(0.2 * torch.randn(change.shape, generator=generator, dtype=torch.float64))
    return pair


@pytest.mark.parametrize("pair", [IMAGE_TEXT, AUDIO_IMAGE, TEXT_AUDIO], ids=str)
def test_gradient_of_moment_replay_is_that_of_the_quality_losses(pair: ModalityPair) -> None:
    """Closed form against finite differences of the certificate, counted once per dataset."""
    context = random_context(pair, IMAGE_TEXT, IMAGE_TEXT, AUDIO_IMAGE)
    module = moved_pair(context)
    replayed = 0.7 * MomentReplay(context, module).loss(ReplicaGroup())
    replayed.backward()

    def total() -> float:
        loss = 0.0
        turned = module.second.space.outputs.vectors_II
        now = dict(context.heads.weights)
        for name, head, common in zip(
            pair.modalities, (module.first, module.second), module.weights(), strict=True
        ):
            now[name] = turned @ common.detach() @ head.space.inputs.vectors_II.mT
        for (first, second), moments in context.memory.by_pair.items():
            key = ModalityPair(first=first, second=second)
            parent = weights_of(key, context.heads)
            current = PairWeights(now[first], now[second])
            loss += context.memory.datasets_of(key) * quality_loss(moments, parent, current)
        return 0.7 * loss

    assert float(replayed.detach()) == pytest.approx(total(), rel=1e-9)
    for head in (module.first, module.second):
        row, column = (int(index) for index in head.free_EI.nonzero()[3])
        step, data = 1e-5, head.change_EI.data
        data[row, column] += step
        above = total()
        data[row, column] -= 2 * step
        below = total()
        data[row, column] += step
        assert head.change_EI.grad is not None
        expected = pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-8)
        assert float(head.change_EI.grad[row, column]) == expected
        assert torch.equal(head.change_EI.grad * (1 - head.free_EI), torch.zeros_like(data))


def test_sampled_rows_have_the_moments_that_they_are_drawn_from() -> None:
    rows = raw_rows(IMAGE_TEXT, seed=4, rows=64)
    ones = torch.ones(64, 1)
    moments = pair_moments(
        torch.cat([rows.first_NI, ones], dim=1), torch.cat([rows.second_NJ, ones], dim=1)
    )
    sampled = gaussian_rows(moments, 60_000, torch.Generator().manual_seed(0))
    first, second = sampled[:, :21], sampled[:, 21:]
    assert bool((first[:, -1] == 1).all())
    assert bool((second[:, -1] == 1).all())
    again, scale = pair_moments(first, second).mean, moments.mean.first.sum_II.abs().max()
    for ours, theirs in (
        (again.first.sum_II, moments.mean.first.sum_II),
        (again.second.sum_II, moments.mean.second.sum_II),
        (again.cross_IJ, moments.mean.cross_IJ),
    ):
        assert float((ours - theirs).abs().max() / scale) < 0.02


def test_moments_of_rank_one_can_be_sampled() -> None:
    first, second = torch.ones(5, 3), torch.ones(5, 2)
    sampled = gaussian_rows(pair_moments(first, second), 10, torch.Generator())
    torch.testing.assert_close(sampled, torch.ones(10, 5), atol=0.01, rtol=0)


def test_what_are_no_moments_is_refused() -> None:
    good = pair_moments(torch.rand(5, 3), torch.rand(5, 2))
    bad = PairMoments(
        dataclasses.replace(good.first, sum_II=-good.first.sum_II), good.second, good.cross_IJ
    )
    with pytest.raises(ValueError, match="covariance is not positive"):
        gaussian_rows(bad, 10, torch.Generator())


@pytest.fixture(scope="module")
def policies() -> dict[str, tuple[ModalityHeads, ModalityHeads, PastDataset]]:
    """By policy: heads after the first and the second dataset, and the first's certificate data."""
    found = {}
    for policy in ("improve", "replay", "preserve"):
        spec = SPEC.model_copy(update={"protection": ProtectionSpec(policy=policy, max_drift=0.2)})
        one = learn_one(spec, initial_state(spec), IMAGE_TEXT, 0)
        heads = one.model_state.heads
        earlier = PastDataset.held("one", IMAGE_TEXT, one.moments, weights_of(IMAGE_TEXT, heads))
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
        [(pair, moments)] = context.memory.touching(IMAGE_TEXT)
        return (
            relative_drift(moments, weights_of(pair, context.heads), weights_of(pair, heads)) ** 2
        )

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


def test_replay_keeps_earlier_datasets_better_than_preserve(policies) -> None:  # type: ignore[no-untyped-def]
    quality = {
        policy: certificates([earlier], now, now)["one"].quality.now
        for policy, (_, now, earlier) in policies.items()
    }
    assert quality["replay"] < -0.97
    assert quality["replay"] < quality["preserve"]


def test_sealed_bases_are_those_of_the_memory() -> None:
    """The stored decomposition of the last dataset equals a new one."""
    spec = SPEC.model_copy(update={"protection": ProtectionSpec(policy="replay")})
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


@pytest.mark.parametrize(("stable", "permitted"), [(True, 1e-4), (False, None)])
def test_a_stable_index_keeps_its_scores_over_two_updates(
    stable: bool, permitted: float | None
) -> None:
    """Vectors of version 1, of low rank, against queries of version 3; both modalities moved."""
    protection = ProtectionSpec(
        policy="preserve", kept_energy=1.0, max_drift=1e6, stable_index=stable
    )
    spec = SPEC.model_copy(update={"width": 24, "protection": protection})
    low = low_rank_rows(IMAGE_TEXT, seed=0)
    one = learn_rows(spec, initial_state(spec), IMAGE_TEXT, low)
    two = learn_one(spec, one.model_state, AUDIO_IMAGE, 1)
    three = learn_one(spec, two.model_state, TEXT_AUDIO, 2)
    index, queries = (
        learned.model_state.heads.outputs("image", low.first_NI) for learned in (one, three)
    )
    before, after = index @ index.mT, queries @ index.mT
    change = float((after - before).norm() / before.norm())
    assert float((queries - index).norm()) > 0.01
    assert change < permitted if permitted else change > 1e-3


@pytest.mark.parametrize("policy", ["preserve", "replay"])
def test_two_new_modalities_are_solved_under_preserve_and_trained_under_replay(policy: str) -> None:
    spec = SPEC.model_copy(update={"protection": ProtectionSpec(policy=policy)})
    learned = learn_one(spec, initial_state(spec), IMAGE_TEXT, 0)
    assert isinstance(learned.trained, Solved if policy == "preserve" else TrainedPair)


def test_outputs_beyond_the_directions_of_the_first_dataset_are_used_by_later_ones() -> None:
    spec = SPEC.model_copy(update={"protection": ProtectionSpec(policy="preserve")})
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
