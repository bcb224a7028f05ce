"""Every method through three datasets of the real loop: it learns, repeats, and keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.anchor import Anchor
from benchmarks.baselines.cflat import CFlat
from benchmarks.baselines.cila import CILA
from benchmarks.baselines.co2l import Co2L
from benchmarks.baselines.der import DER
from benchmarks.baselines.derpp import DERpp
from benchmarks.baselines.ewc import EWC
from benchmarks.baselines.gem import GEM
from benchmarks.baselines.replay_memory import loss_on, memories_in
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from tests.fakes.rotated_rows import rotated, seen
from workers.methods.method import Method, TrainingContext
from workers.methods.paper import Paper
from workers.model.artifact import load_method_state, save_method_state
from workers.model.heads import initial_heads, prepare
from workers.model.memory import Memory
from workers.model.rows import PairedRows
from workers.nullspace.moments import pair_moments
from workers.train.loop import new_heads, train_pair
from workers.train.run import Run

SPEC = ModelSpec(
    width=8,
    modalities={"image": 12, "text": 8, "audio": 10},
    training=TrainingSpec(epochs=4, batch_size=16, learning_rate=1e-2, averaged_share=0.25),
)
STREAM = tuple(
    ModalityPair(first=first, second=second)
    for first, second in (("image", "text"), ("audio", "image"), ("text", "image"))
)
METHODS: dict[str, Method] = {
    "anchor": Anchor(),
    "ewc": EWC(),
    "gem": GEM(memory_rows=20),
    "der": DER(memory_rows=20),
    "derpp": DERpp(memory_rows=20),
    "co2l": Co2L(memory_rows=20),
    "cila": CILA(memory_rows=20),
    "cflat": CFlat(),
    "paper": Paper(input_threshold=1e-3),
}
REPLAYS = {"gem", "der", "derpp", "co2l", "cila"}


@dataclass(frozen=True)
class Chain:
    """Heads and what was kept at the end, and each dataset's loss before and after its training."""

    weights: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    losses: list[tuple[float, float]]


def rows_of(pair: ModalityPair, seed: int, rows: int = 64) -> PairedRows:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 5, generator=generator)
    first, second = (
        prepare(shared @ torch.randn(5, SPEC.modalities[name], generator=generator))
        for name in pair.modalities
    )
    return PairedRows(first, second, torch.arange(rows), torch.arange(rows))


def run(method: Method, seed: int = 0, training: TrainingSpec = SPEC.training) -> Chain:
    """As `workers.train.learn` does it, with the files of a version between the datasets."""
    heads, memory, kept, losses = initial_heads(SPEC), Memory(), dict[str, Tensor](), []
    for number, pair in enumerate(STREAM):
        rows = rows_of(pair, number)
        context = TrainingContext(heads, memory, kept, pair, training, seed + number)
        spaces = method.update_spaces(context)
        trained = train_pair(method, context, spaces, rotated(context, spaces, rows), Run())
        heads = new_heads(context, spaces, trained.changes)
        kept = load_method_state(save_method_state(method.next_state(context, heads, seen(rows))))
        memory = memory.with_dataset(pair, pair_moments(rows.first_NI, rows.second_NJ))
        before, after = (
            float(loss_on(weights, pair, rows, training))
            for weights in (context.heads.weights, heads.weights)
        )
        losses.append((before, after))
    return Chain(heads.weights, kept, losses)


@cache
def chain_of(name: str) -> Chain:
    """The usual run of a method, made once for all tests that look at it."""
    return run(METHODS[name])


@pytest.mark.parametrize("name", METHODS)
def test_every_dataset_is_learned_and_stays_finite(name: str) -> None:
    chain = chain_of(name)
    assert all(bool(weight.isfinite().all()) for weight in chain.weights.values())
    assert all(after < 0.8 * before for before, after in chain.losses), chain.losses


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_gives_the_same_bits(name: str) -> None:
    one, same, other = chain_of(name), run(METHODS[name]), run(METHODS[name], seed=7)
    assert all(torch.equal(one.weights[key], same.weights[key]) for key in one.weights)
    assert one.kept.keys() == same.kept.keys()
    assert all(torch.equal(one.kept[key], same.kept[key]) for key in one.kept)
    assert not torch.equal(one.weights["image"], other.weights["image"])


@pytest.mark.parametrize("name", METHODS)
def test_method_state_is_restored_from_a_version(name: str) -> None:
    """`run` passes it through the files; here it is seen that the right things are in them."""
    kept = chain_of(name).kept
    assert len(memories_in(kept)) == (len(STREAM) if name in REPLAYS else 0)
    assert ("ewc/audio/fisher" in kept) == (name == "ewc")
    assert ("cila/contrast" in kept) == (name == "cila")
    assert bool(kept) == (name in REPLAYS | {"ewc"})


@pytest.mark.parametrize("name", METHODS)
def test_method_trains_otherwise_than_the_loss_alone(name: str) -> None:
    found, alone = chain_of(name).weights, run(Method()).weights
    assert not torch.equal(found["image"], alone["image"])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "change",
    [{"optimizer": "sgd", "learning_rate": 0.02}, {"unit_vectors": False, "temperature": 1.0}],
    ids=["sgd", "outputs of any length"],
)
def test_other_ways_of_training_stay_finite(name: str, change: dict[str, object]) -> None:
    chain = run(METHODS[name], training=SPEC.training.model_copy(update=change))
    assert all(bool(weight.isfinite().all()) for weight in chain.weights.values())


def test_learnt_temperature_disturbs_no_method() -> None:
    training = SPEC.training.model_copy(update={"learn_temperature": True})
    for method in METHODS.values():
        chain = run(method, training=training)
        assert all(bool(weight.isfinite().all()) for weight in chain.weights.values())
