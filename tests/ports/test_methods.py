"""The suite of the port of methods: every method that is registered, through three datasets of the product's code.

It runs for the built-in methods, all baselines of benchmarks/baselines and the methods of installed packages, by
their registries. A method of your own needs no test here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import BASELINES
from cmcl.contract.methods import BUILT_IN_METHODS, installed_methods
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from workers.methods.method import Method, Recipe
from workers.methods.registry import method_class, method_for
from workers.model.artifact import load_method_state, save_method_state
from workers.model.heads import PairedRows
from workers.train.distributed import World
from workers.train.evaluation import HeldOut, measure
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.rows import RowsInMemory
from workers.train.run import Checkpoints, Run, Tensors

POLICIES = ("preserve",)
METHODS = (*BUILT_IN_METHODS, *POLICIES, *BASELINES, *installed_methods())
TRAINING = TrainingSpec(epochs=4, batch_size=16, learning_rate=3e-2)
RECIPE = Recipe(averaged_share=0.25)
WIDTH, WIDTHS = 8, {"image": 12, "text": 8, "audio": 10}
STREAM = tuple(
    ModalityPair(first=first, second=second)
    for first, second in (("image", "text"), ("audio", "image"), ("text", "image"))
)
ROWS, LATENT = 64, 5


def spec_for(name: str, **training: object) -> ModelSpec:
    chosen = {"policy": name} if name in POLICIES else {"method": name}
    return ModelSpec.model_validate(
        {
            "width": WIDTH,
            "lift": 0,
            "modalities": WIDTHS,
            **chosen,
            "training": TRAINING.model_copy(update=training),
        }
    )


def method_named(name: str, spec: ModelSpec) -> Method:
    place = BASELINES.get(name)
    return method_for(spec) if place is None else method_class(place).from_spec(spec)


# Methods that update heads on rows, and do not solve them from moments.
TRAINED = [name for name in METHODS if not method_named(name, spec_for(name)).solves]


def rows_of(spec: ModelSpec, number: int) -> PairedRows:
    """Both sides of a row come from the same latent numbers, mapped by a matrix of the modality's own."""
    generator = torch.Generator().manual_seed(number)
    shared = torch.randn(ROWS, LATENT, generator=generator)
    first, second = (
        shared @ mixing(spec, name)
        + 0.05 * torch.randn(ROWS, spec.widths[name], generator=generator)
        for name in STREAM[number].modalities
    )
    keys = torch.arange(ROWS) + ROWS * number
    return PairedRows(first, second, keys, keys)


def mixing(spec: ModelSpec, modality: str) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, modality)))
    return torch.randn(LATENT, spec.widths[modality], generator=generator)


@dataclass(frozen=True)
class Chain:
    """What each dataset left, and its R@10 before and after it was learned."""

    results: list[TrainingResult]
    recalls: list[tuple[float, float]]

    @property
    def state(self) -> ModelState:
        return self.results[-1].model_state


def run(name: str, seed: int = 0, recipe: Recipe = RECIPE, **training: object) -> Chain:
    """Learn the stream; the method's state passes through the files of a version between datasets."""
    spec = spec_for(name, **training)
    method, state = method_named(name, spec), initial_state(spec)
    results, recalls = [], []
    for number in range(len(STREAM)):
        result = learned(spec, method, state, number, seed, Run(recipe=recipe))
        held = HeldOut(rows_of(spec, number), None)
        before, after = (
            measure(version.heads, STREAM[number], held).at_10
            for version in (state, result.model_state)
        )
        recalls.append((before, after))
        results.append(result)
        kept = load_method_state(save_method_state(result.model_state.method_state))
        state = ModelState(result.model_state.heads, result.model_state.memory, kept)
    return Chain(results, recalls)


def learned(
    spec: ModelSpec,
    method: Method,
    before: ModelState,
    number: int,
    seed: int = 0,
    run: Run | None = None,
) -> TrainingResult:
    task = Task(STREAM[number], RowsInMemory(rows_of(spec, number)), seed + number)
    return learn(spec, before, task, run or Run(recipe=RECIPE), method)


@cache
def chain_of(name: str) -> Chain:
    """The usual run of a method, made once for all tests that look at it."""
    return run(name)


def are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def assert_finite(state: ModelState) -> None:
    assert all(bool(weight.isfinite().all()) for weight in state.heads.weights.values())
    assert all(bool(tensor.isfinite().all()) for tensor in state.method_state.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_dataset_is_learned(name: str) -> None:
    chain = chain_of(name)
    assert_finite(chain.state)
    # The third pair was learned before, so that there is less to gain.
    assert all(after > before + 0.3 for before, after in chain.recalls[:2]), chain.recalls
    assert chain.recalls[2][1] > 0.9, chain.recalls


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_gives_the_same_bits(name: str) -> None:
    """Another order of rows gives other heads, unless they are solved from sums."""
    state, same, other = chain_of(name).state, run(name).state, run(name, seed=7).state
    assert are_equal(state.heads.weights, same.heads.weights)
    assert are_equal(state.method_state, same.method_state)
    assert are_equal(state.heads.weights, other.heads.weights) == (name not in TRAINED)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "vanilla"])
def test_method_trains_otherwise_than_the_loss_alone(name: str) -> None:
    found, alone = chain_of(name).state.heads, chain_of("vanilla").state.heads
    assert not torch.equal(found.weights["image"], alone.weights["image"])


@pytest.mark.parametrize("name", TRAINED)
def test_outputs_of_any_length_stay_finite(name: str) -> None:
    recipe = Recipe(averaged_share=0.25, unit_length=False)
    assert_finite(run(name, recipe=recipe, temperature=1.0).state)


@dataclass
class KeptInMemory(Checkpoints):
    """The state after one update, from which another run continues."""

    after: int
    start: Tensors | None = None
    saved: Tensors | None = None
    resumes: bool = field(default=False)

    def newest(self, here: World) -> Tensors | None:
        return {**self.start, **self.saved} if self.resumes and self.start and self.saved else None

    def set_start(self, start: Tensors) -> None:
        self.start = {name: tensor.clone() for name, tensor in start.items()}

    def save_if_due(self, updates: int, state: Callable[[], Tensors]) -> None:
        if updates == self.after:
            self.saved = {name: tensor.clone() for name, tensor in state().items()}


@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(name: str) -> None:
    """In the third dataset, of a pair that was learned before."""
    spec, chain = spec_for(name), chain_of(name)
    method, before = method_named(name, spec), chain.results[1].model_state
    checkpoints = KeptInMemory(after=5)
    whole = learned(
        spec, method, before, 2, run=Run(checkpoints=checkpoints, recipe=RECIPE)
    ).model_state
    assert checkpoints.saved is not None
    checkpoints.resumes = True
    rest = learned(
        spec, method, before, 2, run=Run(checkpoints=checkpoints, recipe=RECIPE)
    ).model_state
    assert are_equal(whole.heads.weights, rest.heads.weights)
    assert are_equal(whole.method_state, rest.method_state)
