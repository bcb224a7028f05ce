"""Random features that are appended to those of a modality: part of the version, exact for every method."""

from dataclasses import replace

import pytest
import torch

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModalitySpec, ModelSpec, TrainingSpec
from workers.model import artifact
from workers.model.heads import PairedRows, initial_heads, unit_rows
from workers.model.pair import RotatedFeatures
from workers.nullspace.conditioning import Lift
from workers.nullspace.mask import free_in
from workers.nullspace.moments import SecondMoment
from workers.nullspace.subspace import eigenbasis
from workers.train.certify import PastDataset, certificates, weights_of
from workers.train.evaluation import HeldOut, measure
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.rows import RowsInMemory

PAIR = ModalityPair(first="image", second="text")
SPEC = ModelSpec(
    width=8,
    modalities={"audio": 5, "image": 12, "text": 6},
    lift=20,
    training=TrainingSpec(epochs=8, batch_size=16, learning_rate=3e-3),
)


def spec_of(policy: str) -> ModelSpec:
    return SPEC.model_copy(update={"policy": policy})


def rows_of(seed: int, count: int = 300) -> PairedRows:
    """The text is a function of the image's numbers that no linear head sees: their absolutes."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, 4, generator=generator)
    image = shared @ torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    text = shared.abs() @ torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    keys = torch.arange(count) + 1000 * seed
    return PairedRows(image, text, keys, keys)


def learned(spec: ModelSpec, seed: int = 1, before: ModelState | None = None) -> TrainingResult:
    return learn(
        spec, before or initial_state(spec), Task(PAIR, RowsInMemory(rows_of(seed)), seed=1)
    )


def test_every_modality_has_its_lift_from_the_start() -> None:
    heads = initial_heads(SPEC)
    assert {name: tuple(it.shape) for name, it in heads.weights.items()} == {
        "audio": (8, 26),
        "image": (8, 33),
        "text": (8, 27),
    }
    assert heads.prepare("image", torch.randn(3, 12)).shape == (3, 33)
    after = learned(SPEC).model_state.heads
    assert all(
        torch.equal(after.lifts[name].random_FK, it.random_FK) for name, it in heads.lifts.items()
    )


def test_lifted_heads_survive_a_round_trip() -> None:
    heads = learned(SPEC).model_state.heads
    saved = artifact.save_heads(heads)
    again = artifact.load_heads(saved, SPEC)
    raw = torch.randn(4, 12)
    assert torch.equal(again.embed("image", raw), heads.embed("image", raw))
    for name, (features, embeddings) in artifact.load_selftest(
        artifact.save_selftest(heads, SPEC), SPEC.modalities
    ).items():
        artifact.check_selftest(name, again.embed(name, features), embeddings)
    wider = SPEC.model_copy(
        update={"modalities": {**SPEC.modalities, "image": ModalitySpec(width=13)}}
    )
    with pytest.raises(InvalidVersion, match="expected"):
        artifact.load_heads(saved, wider)


def test_random_features_depend_on_the_seed_and_the_modality_alone() -> None:
    def lift(seed: int, modality: str) -> torch.Tensor:
        spec = SPEC.model_copy(update={"seed": seed})
        return initial_heads(spec).lifts[modality].random_FK

    assert torch.equal(lift(1, "image"), lift(1, "image"))
    assert not torch.equal(lift(1, "image"), lift(2, "image"))
    assert not torch.equal(lift(1, "image")[:5], lift(1, "audio"))


def test_the_default_depends_on_the_policy() -> None:
    by_policy = {
        policy: [
            spec_of(policy).model_copy(update={"lift": None}).lift_for(each) for each in (10, 640)
        ]
        for policy in ("improve", "preserve")
    }
    assert by_policy == {"improve": [80, 1024], "preserve": [0, 0]}
    assert SPEC.lift_for(640) == 20


def test_a_lift_appends_positive_parts_of_random_products() -> None:
    lift = Lift(torch.tensor([[1.0, -2.0], [0.0, 1.0]]))
    lifted = lift(torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(lifted, torch.tensor([[0.6, 0.8, 0.6, 0.0]]))


def test_lifted_features_are_as_long_as_the_others() -> None:
    heads = learned(SPEC).model_state.heads
    prepared = heads.prepare("image", torch.randn(2000, 12))
    torch.testing.assert_close(prepared[:, :12].norm(dim=1), torch.ones(2000))
    lengths = prepared[:, 12:-1].square().sum(dim=1).mean()
    assert 0.05 < float(lengths) < 1.5


def test_rotated_features_are_those_that_heads_read() -> None:
    heads = learned(spec_of("preserve")).model_state.heads
    raw = torch.randn(5, 12)
    prepared = heads.prepare("image", raw)
    moment = SecondMoment(5, (prepared.mT @ prepared).double())
    space = free_in(eigenbasis(SecondMoment(1, torch.eye(8).double())), 33)
    space = type(space)(space.outputs, eigenbasis(moment), space.free_EI)
    rotated = RotatedFeatures.from_space(
        heads.conditioning["image"], heads.lifts["image"], space, torch.device("cpu")
    )(raw)
    expected = prepared @ space.inputs.vectors_II.float()
    torch.testing.assert_close(rotated, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["improve", "preserve"])
def test_every_policy_learns_with_a_lift_and_certifies(policy: str) -> None:
    spec = spec_of(policy)
    first = learned(spec)
    heads = first.model_state.heads
    past = PastDataset.in_memory("one", PAIR, first.moments, weights_of(PAIR, heads))
    second = learned(spec, 2, first.model_state)
    now = second.model_state.heads
    certificate = certificates([past], heads, now)["one"]
    assert certificate.drift.since_learned >= 0
    assert certificate.quality.now < 0


def test_a_lift_finds_what_no_linear_head_sees() -> None:
    def recall(spec: ModelSpec) -> float:
        heads = learned(spec).model_state.heads
        return measure(heads, PAIR, HeldOut(rows_of(3), None)).at_10

    assert (
        recall(SPEC.model_copy(update={"lift": 64}))
        > recall(SPEC.model_copy(update={"lift": 0})) + 0.1
    )


def test_a_constant_that_encoders_add_costs_no_recall() -> None:
    """Random features of rows in a narrow cone hardly change sign, unless the rows are centred."""
    spec = SPEC.model_copy(update={"lift": 64})

    def recall(constant: float, centred: bool) -> float:
        def added(rows: PairedRows) -> PairedRows:
            first_NI, second_NJ = (
                unit_rows(each) + constant for each in (rows.first_NI, rows.second_NJ)
            )
            return replace(rows, first_NI=first_NI, second_NJ=second_NJ)

        of_spec = spec.model_copy(update={"centred": centred})
        task = Task(PAIR, RowsInMemory(added(rows_of(1, 2000))), seed=0)
        heads = learn(of_spec, initial_state(of_spec), task).model_state.heads
        return measure(heads, PAIR, HeldOut(added(rows_of(3)), None)).at_10

    without = recall(0.0, centred=True)
    assert recall(3.0, centred=True) > without - 0.03
    assert recall(3.0, centred=False) < without - 0.1


def test_without_a_lift_nothing_changes() -> None:
    spec = SPEC.model_copy(update={"lift": 0})
    heads = initial_heads(spec)
    assert "image/lift" not in artifact.load_method_state(artifact.save_heads(heads)[1])
