"""The product's loop as in a job: `learn` on a model with protected directions.

Shapes: N rows of a dataset, I and J widths of the two sides.
"""

import time
from dataclasses import dataclass

import torch

from benchmarks.training.bare import Sides
from benchmarks.training.timing import WindowTimer
from cmcl.contract.job import Phase
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, Precision, ProtectionSpec, TrainingSpec
from workers.model.rows import PairedRows
from workers.train.data.rows import HeldRows, TrainingRows
from workers.train.distributed import world
from workers.train.learn import ModelState, Task, TrainingResult, initial_state, learn
from workers.train.run import Run, UpdateDone, Watcher

PAIR = ModalityPair(first="image", second="text")
# Each side has learned with a different partner before, so that both heads have protected
# directions.
_BEFORE = ModalityPair(first="audio", second="image"), ModalityPair(first="depth", second="text")
# Settings measured in addition to the mask alone, which computes the same products as its peers.
POLICIES = {
    "mask": ProtectionSpec(policy="preserve", drift_penalty=0.0, max_drift=1e9),
    "improve": ProtectionSpec(policy="improve"),
}


@dataclass
class Clock(Watcher):
    """Times each update of a training after this share of the updates.

    `initial_state`: seconds of training up to and including its first update.
    """

    windows: WindowTimer
    begin: float = 0.0
    initial_state: float = 0.0
    _entered: float = 0.0

    def enter(self, phase: Phase) -> None:
        if phase == "training":
            self._entered = time.perf_counter()

    def update_done(self, update: UpdateDone) -> None:
        if update.done == 1:
            self.initial_state = time.perf_counter() - self._entered
        if update.done > self.begin * update.total:
            self.windows.tick()


def spec_of(
    width: int, batch: int, epochs: int, policy: str, precision: Precision = "float32"
) -> ModelSpec:
    """Return a spec whose heads have `width` inputs: features have one number less, because a
    constant is appended."""
    names = {name for pair in (*_BEFORE, PAIR) for name in pair.modalities}
    return ModelSpec(
        width=width,
        modalities=dict.fromkeys(sorted(names), width - 1),
        protection=POLICIES[policy],
        training=TrainingSpec(epochs=epochs, batch_size=batch, precision=precision),
    )


def learned_before(width: int) -> ModelState:
    """Return the state of a model after two datasets, one for each head."""
    spec, known = spec_of(width, width, 1, "mask"), None
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
    policy: str
    precision: Precision = "float32"

    def run(self, clock: Clock) -> TrainingResult:
        """Train for one pass over the rows."""
        width, _ = self.known.heads.weights[PAIR.first].shape
        spec = spec_of(width, self.batch, 1, self.policy, self.precision)
        task = Task(PAIR, self.rows, seed=7)
        return learn(spec, self.known, task, Run(world(), watcher=clock))


def held(sides: Sides) -> HeldRows:
    """Return all rows in memory, each item once."""
    keys_N = torch.arange(len(sides))
    return HeldRows(PairedRows(sides.first_NI, sides.second_NJ, keys_N, keys_N))
