"""Ceilings of continual methods: joint training on all rows at once, and each dataset alone.

Joint training has the product's initial heads, conditioning (by each modality's first dataset in
stream order), loss and optimizer. Each batch comes from one dataset; batches of all datasets are in
random order. Heads are evaluated after several numbers of epochs. Shapes: B rows of a batch, E width of
the embeddings, I width of what a head reads.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.chain import Dataset
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.contract.version import Recall
from workers.methods.method import Recipe
from workers.model.heads import ModalityHeads, PairedRows, initial_heads
from workers.model.loss import symmetric_info_nce, unit
from workers.train.evaluation import measure
from workers.train.learn import Task, condition_new_modalities, initial_state, learn, prepare_rows
from workers.train.rows import RowsInMemory
from workers.train.run import Run


@dataclass(frozen=True)
class JointOutcome:
    """Recall on every dataset and CPU time of training, by number of epochs."""

    recalls: dict[int, list[Recall]]
    seconds: dict[int, float]


@dataclass(frozen=True)
class JointSetting:
    """How joint training starts, and what of it is evaluated.

    `averaged`: the mean of the heads after each of the second half of the epochs, instead of the
    last ones. `from_closed_form`: start from the heads that the product solves, at a third of its
    rate of training on rows, which would leave that start.
    """

    averaged: bool = False
    from_closed_form: bool = False


_POLISHING_RATE = 3e-4


def train_jointly(
    stream: Sequence[Dataset],
    spec: ModelSpec,
    epochs: Sequence[int],
    setting: JointSetting = JointSetting(),
) -> JointOutcome:
    """Train up to the largest number of epochs, and evaluate after each given number.

    Raises ArithmeticError if the loss is not finite.
    """
    began, measuring = time.process_time(), 0.0
    recalls, seconds = {}, {}
    for epoch, heads in joint_heads(stream, spec, epochs, setting):
        paused = time.process_time()
        seconds[epoch] = paused - began - measuring
        recalls[epoch] = [measure(heads, one.pair, one.held_out) for one in stream]
        measuring += time.process_time() - paused
    return JointOutcome(recalls, seconds)


def joint_heads(
    stream: Sequence[Dataset], spec: ModelSpec, epochs: Sequence[int], setting: JointSetting
) -> Iterator[tuple[int, ModalityHeads]]:
    """Yield each given number of epochs, and the heads after it.

    Raises ArithmeticError if the loss is not finite.
    """
    if setting.from_closed_form:
        training = spec.training.model_copy(update={"learning_rate": _POLISHING_RATE})
        heads = closed_form_heads(stream, spec)
        spec = spec.model_copy(update={"training": training})
    else:
        heads = conditioned_heads(stream, spec)
    rows = [prepare_rows(heads, dataset.pair, dataset.training) for dataset in stream]
    joint = _Joint([dataset.pair for dataset in stream], rows, heads, spec)
    after = list[ModalityHeads]()
    for epoch in range(1, max(epochs) + 1):
        joint.train_epoch()
        after.append(joint.heads())
        if epoch in epochs:
            yield epoch, mean_heads(after[epoch // 2 :]) if setting.averaged else after[-1]


def conditioned_heads(stream: Sequence[Dataset], spec: ModelSpec) -> ModalityHeads:
    """Return the initial heads without a lift, with every modality conditioned by its first dataset."""
    heads = initial_heads(spec.model_copy(update={"lift": 0}))
    for dataset in stream:
        heads = condition_new_modalities(
            spec, heads, dataset.pair, RowsInMemory(dataset.training), Run()
        )
    return heads


def closed_form_heads(stream: Sequence[Dataset], spec: ModelSpec) -> ModalityHeads:
    """Return the heads that the product solves from the moments of the whole stream."""
    state = initial_state(spec)
    for number, dataset in enumerate(stream):
        task = Task(dataset.pair, RowsInMemory(dataset.training), spec.seed * 1000 + number)
        state = learn(spec, state, task).model_state
    return state.heads


def mean_heads(several: Sequence[ModalityHeads]) -> ModalityHeads:
    """Return the mean of the weights; conditioning is that of the first."""
    first = several[0]
    return first.replaced(
        {
            name: torch.stack([heads.weights[name] for heads in several]).mean(0)
            for name in first.weights
        }
    )


def learn_alone(stream: Sequence[Dataset], spec: ModelSpec) -> JointOutcome:
    """Learn each dataset in a model of its own, which has the whole width for it: one "epoch"."""
    began = time.process_time()
    recalls = [measure(closed_form_heads([one], spec), one.pair, one.held_out) for one in stream]
    return JointOutcome({1: recalls}, {1: time.process_time() - began})


class _Joint:
    """State of joint training: the change of every head, and the order of the batches."""

    def __init__(
        self,
        pairs: Sequence[ModalityPair],
        rows: Sequence[PairedRows],
        heads: ModalityHeads,
        spec: ModelSpec,
    ) -> None:
        self._pairs, self._rows, self._start = pairs, rows, heads
        self._training = spec.training
        self._changes = {
            modality: nn.Parameter(torch.zeros_like(weight_EI))
            for modality, weight_EI in heads.weights.items()
        }
        self._optimizer = _optimizer(self._changes, spec.training)
        self._random = torch.Generator().manual_seed(spec.seed)

    def heads(self) -> ModalityHeads:
        """Return the current heads."""
        return self._start.replaced({name: self._weight(name).detach() for name in self._changes})

    def train_epoch(self) -> None:
        """Train for one pass over all datasets."""
        for dataset, index_B in self._batches():
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss(self._pairs[dataset], self._rows[dataset].at(index_B))
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        if not math.isfinite(float(loss.detach())):
            raise ArithmeticError("joint training diverged: its loss is not finite")

    def _loss(self, pair: ModalityPair, batch: PairedRows) -> Tensor:
        both = (
            self._embeddings(pair.first, batch.first_NI),
            self._embeddings(pair.second, batch.second_NJ),
        )
        return symmetric_info_nce(both, batch.positives_in(batch), self._training.temperature)

    def _embeddings(self, modality: str, prepared_BI: Tensor) -> Tensor:
        return unit(prepared_BI @ self._weight(modality).mT)

    def _weight(self, modality: str) -> Tensor:
        return self._start.weights[modality] + self._changes[modality]

    def _batches(self) -> Iterator[tuple[int, Tensor]]:
        """Yield full batches of every dataset, each permuted, in random order."""
        size, batches = self._training.batch_size, list[tuple[int, Tensor]]()
        for dataset, rows in enumerate(self._rows):
            order_N = torch.randperm(len(rows), generator=self._random)
            starts = range(0, len(rows) - len(rows) % size, size)
            batches += [(dataset, order_N[start : start + size]) for start in starts]
        for place in torch.randperm(len(batches), generator=self._random).tolist():
            yield batches[place]


def _optimizer(changes: Mapping[str, nn.Parameter], spec: TrainingSpec) -> torch.optim.Optimizer:
    """Return AdamW. As in the product, weight decay acts on the change of a head."""
    return torch.optim.AdamW(
        list(changes.values()), lr=spec.learning_rate, weight_decay=Recipe.weight_decay, fused=True
    )
