"""The product's loop as in a job, and the bare loop that it is compared with.

`ProductLoop` is `learn` on a model with protected directions. `BareLoop` is the products of two heads and their
scores, and an optimizer, written for speed: hand-written gradients in persistent buffers, one exponential for both
directions, one positive per row, no protection, no progress reports. `AutogradLoop` is the straightforward version.
Shapes: B rows of a batch, N of the dataset, E width of the embeddings, I and J of the two sides.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.training.timing import WindowTimer
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, Precision, TrainingSpec
from workers.model.heads import PairedRows
from workers.train.distributed import world
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.rows import RowsInMemory, TrainingRows
from workers.train.run import Run, UpdateDone, Watcher

_TEMPERATURE = 0.07

PAIR = ModalityPair(first="image", second="text")
# Each side has learned with a different partner before, so that both heads have protected
# directions.
_BEFORE = ModalityPair(first="audio", second="image"), ModalityPair(first="depth", second="text")
# `preserve` without a bound to shrink to: all that it computes in an update.
_NO_BOUND = 1e9


@dataclass(frozen=True)
class Sides:
    """Both sides of a dataset in memory, row by row."""

    first_NI: Tensor
    second_NJ: Tensor

    def __len__(self) -> int:
        return len(self.first_NI)


def batches(rows: int, batch: int, updates: int, seed: int) -> Iterator[Tensor]:
    """Yield row numbers of each batch, shuffled as in a real loop, over endless epochs."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < updates:
        order_N = torch.randperm(rows, generator=generator)
        for start in range(0, rows - rows % batch, batch):
            if done == updates:
                return
            yield order_N[start : start + batch]
            done += 1


class AutogradLoop:
    """Two heads under symmetric InfoNCE and fused AdamW, differentiated by torch."""

    def __init__(self, sides: Sides, width: int) -> None:
        self._sides = sides
        self.heads = tuple(
            nn.Parameter(torch.eye(width, rows.shape[1]))
            for rows in (sides.first_NI, sides.second_NJ)
        )
        self._optimizer = torch.optim.AdamW(self.heads, lr=1e-3, fused=True)

    def update(self, index_B: Tensor) -> None:
        """Do one update on these rows."""
        self._optimizer.zero_grad(set_to_none=True)
        self._gradients(self._sides.first_NI[index_B], self._sides.second_NJ[index_B])
        self._optimizer.step()

    def _gradients(self, first_BI: Tensor, second_BJ: Tensor) -> None:
        first_BE = normalize(first_BI @ self.heads[0].mT)
        second_BE = normalize(second_BJ @ self.heads[1].mT)
        scores_BB = first_BE @ second_BE.mT / _TEMPERATURE
        own_B = torch.arange(len(first_BI))
        loss = (cross_entropy(scores_BB, own_B) + cross_entropy(scores_BB.mT, own_B)) / 2
        loss.backward()  # type: ignore[no-untyped-call]


class BareLoop(AutogradLoop):
    """The same update with hand-written gradients: seven products and few passes over memory."""

    @torch.no_grad()
    def _gradients(self, first_BI: Tensor, second_BJ: Tensor) -> None:
        heads = self.heads
        units = [_unit(first_BI @ heads[0].mT), _unit(second_BJ @ heads[1].mT)]
        (first_BE, first_lengths_B), (second_BE, second_lengths_B) = units
        by_scores_BB = _score_gradient(first_BE @ second_BE.mT)
        by_first_BE = by_scores_BB @ second_BE
        by_second_BE = by_scores_BB.mT @ first_BE
        heads[0].grad = _through(by_first_BE, first_BE, first_lengths_B).mT @ first_BI
        heads[1].grad = _through(by_second_BE, second_BE, second_lengths_B).mT @ second_BJ


def _unit(raw_BE: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise in place. Return the rows and their former lengths (B × 1)."""
    lengths_B1 = torch.linalg.vector_norm(raw_BE, dim=1, keepdim=True)
    return raw_BE.div_(lengths_B1), lengths_B1


def _score_gradient(scores_BB: Tensor) -> Tensor:
    """Compute ∂loss/∂scores in place. Scores of unit vectors are at most 1, so the maximum need not
    be subtracted."""
    shares_BB = scores_BB.sub_(1).div_(_TEMPERATURE).exp_()
    by_row_B1 = shares_BB.sum(1, keepdim=True).reciprocal_()
    by_column_B = shares_BB.sum(0).reciprocal_()
    shares_BB.mul_(by_row_B1 + by_column_B)
    shares_BB.diagonal().sub_(2)
    return shares_BB.mul_(1 / (2 * len(scores_BB) * _TEMPERATURE))


def _through(by_unit_BE: Tensor, unit_BE: Tensor, lengths_B1: Tensor) -> Tensor:
    """Propagate the gradient through the normalisation, in place."""
    along_B1 = torch.linalg.vecdot(by_unit_BE, unit_BE).unsqueeze(1)
    return by_unit_BE.addcmul_(unit_BE, along_B1, value=-1).div_(lengths_B1)


@dataclass
class Clock(Watcher):
    """Times each update of a training."""

    windows: WindowTimer

    def update_done(self, update: UpdateDone) -> None:
        self.windows.tick()


def spec_of(width: int, batch: int, epochs: int, precision: Precision = "float32") -> ModelSpec:
    """Return a spec whose heads have `width` inputs: features have one number less, because a
    constant is appended."""
    names = {name for pair in (*_BEFORE, PAIR) for name in pair.modalities}
    return ModelSpec(
        width=width,
        modalities=dict.fromkeys(sorted(names), width - 1),
        policy="preserve",
        max_drift=_NO_BOUND,
        training=TrainingSpec(epochs=epochs, batch_size=batch, precision=precision),
    )


def learned_before(width: int) -> ModelState:
    """Return the state of a model after two datasets, one for each head."""
    spec, known = spec_of(width, width, 1), None
    for seed, pair in enumerate(_BEFORE, start=1):
        task = Task(pair, held(random_sides(2 * width, width - 1, seed)), seed)
        known = learn(spec, known or initial_state(spec), task).model_state
    assert known is not None
    return known


def random_sides(rows: int, width: int, seed: int) -> Sides:
    """Return rows whose k-th direction has the variance 1 / k, similar to real features."""
    generator = torch.Generator().manual_seed(seed)
    scale_I = torch.arange(1, width + 1).rsqrt()
    first, second = (torch.randn(rows, width, generator=generator) * scale_I for _ in range(2))
    return Sides(first, second)


@dataclass(frozen=True)
class ProductLoop:
    """A dataset that all ranks of the process group learn, once per `run`."""

    known: ModelState
    rows: TrainingRows
    batch: int
    precision: Precision = "float32"

    def run(self, clock: Clock) -> TrainingResult:
        """Train for one pass over the rows."""
        width, _ = self.known.heads.weights[PAIR.first].shape
        spec = spec_of(width, self.batch, 1, self.precision)
        task = Task(PAIR, self.rows, seed=7)
        return learn(spec, self.known, task, Run(world(), watcher=clock))


def held(sides: Sides) -> RowsInMemory:
    """Return all rows in memory, each item once."""
    keys_N = torch.arange(len(sides))
    return RowsInMemory(PairedRows(sides.first_NI, sides.second_NJ, keys_N, keys_N))
