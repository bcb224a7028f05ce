"""One stream through one method: the datasets in order, each learned from the one before.

The code under test is the product's own (`workers.train.learn`), without store, service or Ray.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cmcl.contract.errors import TrainingDiverged
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Recall
from workers.methods.method import Method
from workers.model.evaluation import HeldOut, measure
from workers.model.rows import PairedRows
from workers.train.certify import PastDataset, weights_of
from workers.train.data.rows import HeldRows
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn


@dataclass(frozen=True)
class Dataset:
    """One dataset of a stream: raw features to learn from and to be measured on."""

    name: str
    pair: ModalityPair
    training: PairedRows
    held_out: HeldOut


@dataclass(frozen=True)
class Outcome:
    """What a run gave. `matrix[t][s]`: dataset s measured after version t + 1.

    The diagonal is what was just learned, what lies right of it forward transfer. `untrained[s]`:
    dataset s under the heads of the seed. `drifts[s]`: dataset s, all but the last, at the end
    against the version that learned it. `seconds` are those of learning, without measuring.
    """

    untrained: list[Recall]
    matrix: list[list[Recall]]
    drifts: list[float]
    seconds: float


def run_chain(stream: Sequence[Dataset], spec: ModelSpec, method: Method | None = None) -> Outcome:
    """Learn the datasets in order and measure all of them after each, with the spec's method or this.

    Raises ArithmeticError if a training diverged.
    """
    model_state, earlier = initial_state(spec), tuple[PastDataset, ...]()
    untrained = _measure_all(model_state, stream)
    matrix, seconds = [], 0.0
    for dataset in stream:
        began = time.perf_counter()
        try:
            learned = learn_one(spec, model_state, dataset, earlier, method)
        except TrainingDiverged as error:
            raise ArithmeticError(f"{dataset.name}: {error}") from error
        seconds += time.perf_counter() - began
        model_state, earlier = learned.model_state, (*earlier, _remember(dataset, learned))
        matrix.append(_measure_all(model_state, stream))
    drifts = [one.drift(model_state.heads) for one in earlier[:-1]]
    return Outcome(untrained, matrix, drifts, seconds)


def learn_one(
    spec: ModelSpec,
    before: ModelState,
    dataset: Dataset,
    earlier: tuple[PastDataset, ...],
    method: Method | None = None,
) -> TrainingResult:
    """One dataset with the product's own code."""
    task = Task(
        dataset.pair,
        HeldRows(dataset.training),
        seed=spec.seed * 1000 + len(earlier),
        past=earlier,
    )
    return learn(spec, before, task, method=method)


def _measure_all(model_state: ModelState, stream: Sequence[Dataset]) -> list[Recall]:
    return [measure(model_state.heads, one.pair, one.held_out) for one in stream]


def _remember(dataset: Dataset, learned: TrainingResult) -> PastDataset:
    heads = learned.model_state.heads
    return PastDataset.held(
        dataset.name, dataset.pair, learned.moments, weights_of(dataset.pair, heads)
    )
