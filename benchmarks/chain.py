"""Learn the datasets of a stream in order with one method.

Uses the product's training code (`workers.train.learn`), without store, service or Ray.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.mixed import mixed_recall
from cmcl.contract.errors import TrainingDiverged
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Recall
from workers.methods.method import Method, Recipe
from workers.model.heads import PairedRows
from workers.train.certify import PastDataset, weights_of
from workers.train.evaluation import HeldOut, measure
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.rows import RowsInMemory
from workers.train.run import Run


@dataclass(frozen=True)
class Dataset:
    """One dataset of a stream: raw features for training and for evaluation."""

    name: str
    pair: ModalityPair
    training: PairedRows
    held_out: HeldOut


@dataclass(frozen=True)
class Outcome:
    """Result of a run. `matrix[t][s]`: dataset s evaluated after version t + 1.

    The diagonal has the dataset just learned; entries to the right of it are forward transfer.
    `untrained[s]`: dataset s with the initial heads. `drifts[s]`: drift of dataset s at the end
    relative to the version that learned it, for all but the last. `seconds`: CPU time of
    training, without evaluation. `mixed`: R@1 and R@10 at the end among the items of all other
    modalities (benchmarks/mixed.py).
    """

    untrained: list[Recall]
    matrix: list[list[Recall]]
    drifts: list[float]
    seconds: float
    mixed: tuple[float, float]


def run_chain(stream: Sequence[Dataset], spec: ModelSpec, method: Method | None = None) -> Outcome:
    """Learn the datasets in order and evaluate all of them after each. `method` replaces the
    spec's.

    Raises ArithmeticError if training diverges.
    """
    model_state, earlier = initial_state(spec), tuple[PastDataset, ...]()
    untrained = _measure_all(model_state, stream)
    matrix, seconds = [], 0.0
    for dataset in stream:
        began = time.process_time()
        try:
            learned = learn_one(spec, model_state, dataset, earlier, method)
        except TrainingDiverged as error:
            raise ArithmeticError(f"{dataset.name}: {error}") from error
        seconds += time.process_time() - began
        model_state, earlier = learned.model_state, (*earlier, remember(dataset, learned))
        matrix.append(_measure_all(model_state, stream))
    drifts = [one.drift(model_state.heads) for one in earlier[:-1]]
    mixed = mixed_recall(model_state.heads, [(one.pair, one.held_out) for one in stream])
    return Outcome(untrained, matrix, drifts, seconds, mixed)


def learn_one(
    spec: ModelSpec,
    before: ModelState,
    dataset: Dataset,
    earlier: tuple[PastDataset, ...],
    method: Method | None = None,
    recipe: Recipe | None = None,
) -> TrainingResult:
    """Learn one dataset with the product's code."""
    task = Task(
        dataset.pair,
        RowsInMemory(dataset.training),
        seed=spec.seed * 1000 + len(earlier),
        past=earlier,
    )
    return learn(spec, before, task, Run(recipe=recipe or Recipe()), method)


def _measure_all(model_state: ModelState, stream: Sequence[Dataset]) -> list[Recall]:
    return [measure(model_state.heads, one.pair, one.held_out) for one in stream]


def remember(dataset: Dataset, learned: TrainingResult) -> PastDataset:
    """Return what later datasets need to know of this one."""
    heads = learned.model_state.heads
    return PastDataset.in_memory(
        dataset.name, dataset.pair, learned.moments, weights_of(dataset.pair, heads)
    )
